"""Criticality: which weight and bias variances let signals and gradients pass through any depth.

A layer takes x ~ N(0, q) to W f(x) + b, with s_w = fan_in Var(W_ij) and s_b = Var(b_i). Its two slopes at a
fixed point q* = s_w E f^2 + s_b of the variance are

    chi_parallel = dq'/dq            (deviations of the variance; Schoenholz et al. 2017, eq. 7),
    chi_perp = s_w E f'^2            (angles between inputs, and gradients; Poole et al. 2016; chi_1).

The critical line is {(s_w, s_b): chi_perp = 1}, the edge of chaos, parametrized by q*. A critical point in the
sense of Roberts, Yaida and Hanin (2022, chapter 5) has chi_parallel = 1 as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import sympy as sp

from varflow.criticality_arguments import number, variance
from varflow.criticality_decay import CorrelationDecay, KernelDecay, correlation_decay, kernel_decay
from varflow.errors import InputError, SolveError, UnsupportedError
from varflow.fixed_points import roots
from varflow.laws.expectation import GaussianExpectation, has_jump
from varflow.maps import Q
from varflow.meanfield import Phase, phase_of
from varflow.onevariable import activation_in_x, exact, text
from varflow.smallsignal import SmallSignal, scale_invariant, small_signal
from varflow.symbols import X
from varflow.variances import Variances

GRID = np.geomspace(1e-6, 1e4, 401)
SCALE_INVARIANT, ZERO, HALF_STABLE, NONE = "scale-invariant", "K*=0", "half-stable", "none"


@dataclass(frozen=True)
class CriticalPoint:
    """A point of the critical line: chi_perp = 1 at the fixed point ``q`` of the variance.

    ``sw`` = fan_in Var(W_ij) and ``sb`` = Var(b_i) are formulas where ``closed_form``, else numbers (about
    1e-12). ``q`` is None where every q is a fixed point (scale-invariant activations). ``chi_parallel`` is
    dq'/dq there; ``stability`` of q: stable, marginal, unstable, or half-stable from above
    or below (a double fixed point, which attracts from that side only).
    ``decay`` says how 1 - correlation falls with depth, ``kernel_decay`` how the variance itself does where
    q* = 0; None where that is not known.
    """

    q: sp.Expr | None
    sw: sp.Expr
    sb: sp.Expr
    chi_parallel: float
    stability: str
    closed_form: bool
    decay: CorrelationDecay | None = None
    kernel_decay: KernelDecay | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document: formulas as text under their names, floats under ``value``."""
        names = ("q", "sw", "sb")
        formulas = {n: None if getattr(self, n) is None else text(getattr(self, n)) for n in names}
        numbers = {n: _number(getattr(self, n)) for n in names}
        return {
            **formulas,
            "value": numbers,
            "chi_parallel": self.chi_parallel,
            "stability": self.stability,
            "closed_form": self.closed_form,
            "decay": None if self.decay is None else self.decay.to_dict(),
            "kernel_decay": None if self.kernel_decay is None else self.kernel_decay.to_dict(),
        }


def _number(value: sp.Expr | None) -> float | None:
    return None if value is None or value.free_symbols else float(value)


@dataclass(frozen=True)
class Criticality:
    """Criticality of one activation; made by :func:`criticality`.

    ``keep`` is the probability that dropout keeps an entry of f(x) (inverted dropout); 1 without dropout.
    """

    activation: sp.Expr
    keep: sp.Expr = sp.S.One

    # -- the activation ------------------------------------------------------------------------------------

    @cached_property
    def variances(self) -> Variances:
        """Second moments of the activation over arrays of q."""
        return Variances(self.activation)

    @cached_property
    def expansion(self) -> SmallSignal | None:
        """The activation at 0, from both sides."""
        return small_signal(self.activation)

    @cached_property
    def slopes(self) -> tuple[sp.Expr, sp.Expr] | None:
        """(slope for x > 0, for x < 0) of a scale-invariant activation, else None."""
        return scale_invariant(self.activation)

    @property
    def parameters(self) -> list[str]:
        """Symbols of the activation that stand for numbers."""
        return sorted(str(s) for s in self.activation.free_symbols - {X})

    def _require_numbers(self) -> None:
        if self.parameters:
            raise InputError(
                f"no number for {', '.join(self.parameters)}",
                why="only scale-invariant activations keep symbols",
                instead="numbers in the activation",
            )

    # -- classification ------------------------------------------------------------------------------------

    @cached_property
    def obstacle(self) -> str:
        """Why there is no critical point at all; empty where there may be one."""
        if self.keep != 1:
            return "dropout: two copies of one input decorrelate (c* < 1), whatever s_w and s_b"
        if X not in self.activation.free_symbols:
            return "the activation is constant: no gradient passes"
        if has_jump(self.activation, X):
            return "the activation jumps: chi_perp is infinite for every s_w > 0"
        return ""

    @cached_property
    def points(self) -> tuple[CriticalPoint, ...]:
        """Every point with chi_parallel = chi_perp = 1 and s_b >= 0, by q*, whether it attracts or not."""
        if self.obstacle:
            return ()
        if self.slopes is not None:
            return (self._invariant_point(),)
        self._require_numbers()
        zero = self._zero_point()
        return (*([zero] if zero else []), *map(self._tangent_point, self._tangents()))

    @cached_property
    def kind(self) -> str:
        """scale-invariant, K*=0, half-stable or none (Roberts, Yaida and Hanin 2022, section 5.3).

        From the expansion at 0 and the numbers, never the name. K*=0: f(0) = 0 and the variance falls to 0 as
        a power of depth. half-stable: where q* = 0 repels or is no fixed point, a double fixed point q* > 0.
        K*=0 also stands for a repelling q* = 0 where there is nothing else: its point says so.
        """
        if not self.points:
            return NONE
        if self.slopes is not None:
            return SCALE_INVARIANT
        return ZERO if self.point is not None and self.point.q == 0 else HALF_STABLE

    @cached_property
    def point(self) -> CriticalPoint | None:
        """The critical point of the class: at q* = 0 where that attracts, else the least q* > 0; None: none."""
        if not self.points:
            return None
        first = self.points[0]
        repels = first.q == 0 and first.stability == "unstable"
        return self.points[1] if repels and len(self.points) > 1 else first

    @cached_property
    def reason(self) -> str:
        """One sentence that says why the activation is of its kind."""
        if self.obstacle:
            return self.obstacle
        if self.kind == NONE:
            return "no q* has chi_parallel = chi_perp = 1 with s_b >= 0 (E[f f''] = 0 there), nor f(0) = 0 != f'(0)"
        if self.kind == SCALE_INVARIANT:
            return "f(t x) = t f(x) for t > 0: every q is kept"
        assert self.point is not None
        if self.kind == HALF_STABLE:
            return "E[f f''] = 0 at q* > 0, where the variance map touches the diagonal"
        verb = "repels" if self.point.stability == "unstable" else "attracts"
        return f"f(0) = 0 and f'(0) != 0: q* = 0 {verb}"

    def _invariant_point(self) -> CriticalPoint:
        assert self.slopes is not None
        right, left = self.slopes
        sw = sp.cancel(2 / (right**2 + left**2))
        decay = correlation_decay(self.activation, sw, sp.S.One)
        return CriticalPoint(None, sw, sp.S.Zero, 1.0, "marginal", True, decay)

    def _zero_point(self) -> CriticalPoint | None:
        near = self.expansion
        if near is None or not near.vanishes or near.unit_slope == 0:
            return None
        fall = kernel_decay(near)
        rate = self._first_change(near.unit_slope) if fall is None else float(fall.rate)
        stability = "marginal" if rate == 0 else "stable" if rate < 0 else "unstable"
        return CriticalPoint(
            sp.S.Zero, 1 / near.unit_slope, sp.S.Zero, 1.0, stability, True, None, fall
        )

    def _first_change(self, slope: sp.Expr) -> float:
        """E f^2 / (A q) - 1 at the least q where it is not 0: where no power of q changes E f^2 (hardtanh)."""
        change = np.asarray(self.variances.second(GRID)) / (float(slope) * GRID) - 1
        seen = change[np.abs(change) > 1e-9]
        return float(seen[0]) if seen.size else 0.0

    def _tangents(self) -> list[float]:
        """q > 0 with dE f^2/dq = E f'^2: where chi_perp = 1 makes chi_parallel = 1."""

        def gap(q: Any) -> Any:
            slope = self.variances.slopes(q)
            return (self.variances.second_slope(q) - slope) / slope

        with np.errstate(all="ignore"):
            usable = np.abs(gap(GRID)) > 1e-7
            found = roots(gap, GRID[usable]) if usable.any() else []
        return [q for q in found if self._bias(q) >= -1e-12 * q and self._reliable(q)]

    def _reliable(self, q: float) -> bool:
        """Whether two integrals for dE f^2/dq agree: they do not where f grows beyond what floats can sum."""
        if self.variances.elementary:
            return True
        one, other = self.variances.stein_slope(q), float(self.variances.second_slope(q))
        return abs(one - other) <= 1e-6 * abs(one)

    def _bias(self, q: float) -> float:
        return q - float(self.variances.second(q)) / float(self.variances.slopes(q))

    def _tangent_point(self, q: float) -> CriticalPoint:
        """chi_parallel falls through 1 (above q* the variance returns) or rises through it."""
        falls = float(self.variances.second_slope(1.001 * q)) < float(
            self.variances.second_slope(q)
        )
        return self._numeric_point(q, f"half-stable from {'above' if falls else 'below'}")

    # -- the critical line -----------------------------------------------------------------------------------

    @cached_property
    def line_formulas(self) -> tuple[sp.Expr, sp.Expr]:
        """(s_w, s_b) on the line as functions of q* (``varflow.maps.Q``): 1/E f'^2 and q - E f^2/E f'^2."""
        self._require_line()
        second, slope = self.variances.formulas
        return 1 / slope, Q - second / slope

    def line(self, q: Any) -> tuple[Any, Any]:
        """(s_w, s_b) on the critical line at fixed points q* (float or array); nan where s_b would be negative."""
        self._require_line()
        self._require_numbers()
        q = np.asarray(q, dtype=float)
        with np.errstate(all="ignore"):
            slope = self.variances.slopes(q)
            sw, sb = 1 / slope, q - self.variances.second(q) / slope
        real = sb >= -1e-12 * q
        sw, sb = np.where(real, sw, np.nan), np.where(real, np.maximum(sb, 0.0), np.nan)
        return (sw, sb) if q.shape else (float(sw), float(sb))

    def _require_line(self) -> None:
        if self.obstacle:
            raise SolveError("there is no critical line", why=self.obstacle)

    def at(self, q: Any = None, *, sb: Any = None, sw: Any = None) -> CriticalPoint:
        """The initialization on the critical line at a fixed point q*, or at a given s_b, or at a given s_w.

        Of several, the one of least q* whose fixed point attracts. Raises SolveError where there is none.
        """
        given = [v for v in (q, sb, sw) if v is not None]
        if len(given) != 1:
            raise InputError("one of q, sb and sw says where on the line", instead="at(sb=0.05)")
        self._require_line()
        name = "q" if q is not None else "sb" if sb is not None else "sw"
        asked = variance(given[0], name)
        if self.slopes is not None:
            return self._on_invariant_line(q, sb, sw)
        self._require_numbers()
        target, side = number(asked, name), name
        if q is not None:
            return self._exact_point(asked)
        found = self._points_where(side, target)
        if not found:
            raise SolveError(
                f"no point of the critical line has {side} = {target:g}", why=self._range(side)
            )
        kept = [p for p in found if p.stability != "unstable"]
        return (kept or found)[0]

    def _on_invariant_line(self, q: Any, sb: Any, sw: Any) -> CriticalPoint:
        point = self._invariant_point()
        if sb is not None and exact(sb) != 0:
            raise SolveError(
                f"no point of the critical line has sb = {sb}",
                why="a scale-invariant activation keeps the variance without bias only",
            )
        if sw is not None and sp.cancel(exact(sw) - point.sw) != 0:
            raise SolveError(
                f"no point of the critical line has sw = {sw}",
                why=f"it is the point sw = {point.sw}",
            )
        if q is None:
            return point
        return CriticalPoint(exact(q), point.sw, point.sb, 1.0, "marginal", True, point.decay)

    def _exact_point(self, q: sp.Expr) -> CriticalPoint:
        """The point at q*, as formulas where E f^2 and E f'^2 have closed forms."""
        if q == 0:
            zero = self._zero_point()
            if zero is None:
                raise SolveError(
                    "q* = 0 is no critical fixed point", why="f(0) is not 0, or f'(0) is 0"
                )
            return zero
        number = self._numeric_point(float(q), "")
        if float(number.sb) < 0:
            raise SolveError(
                f"no point of the critical line has q* = {q}", why="s_b would be negative"
            )
        sw, sb = (e.subs(Q, q) for e in self.line_formulas)
        if sw.has(GaussianExpectation) or sb.has(GaussianExpectation):
            return number
        decay = correlation_decay(self.activation, sw, q)
        return CriticalPoint(q, sw, sb, number.chi_parallel, number.stability, True, decay)

    def _points_where(self, side: str, target: float) -> list[CriticalPoint]:
        column = 0 if side == "sw" else 1
        if side == "sb" and target == 0:
            zero = self._zero_point()
            if zero is not None:
                return [zero]

        def gap(q: Any) -> Any:
            slope = self.variances.slopes(q)
            line = 1 / slope, q - self.variances.second(q) / slope
            return line[column] - target

        with np.errstate(all="ignore"):
            usable = np.isfinite(gap(GRID))
            found = roots(gap, GRID[usable])
        kept = [q for q in found if self._bias(q) >= -1e-12 * q and self._reliable(q)]
        return [self._numeric_point(q, "") for q in kept]

    def _range(self, side: str) -> str:
        sw, sb = self.line(GRID)
        values = sw if side == "sw" else sb
        values = values[np.isfinite(values)]
        if not values.size:
            return "the critical line has no point with s_b >= 0 and q* > 0"
        return (
            f"it runs from {side} = {values.min():.6g} to {values.max():.6g} (q* from 1e-6 to 1e4)"
        )

    def _numeric_point(self, q: float, stability: str) -> CriticalPoint:
        slope = float(self.variances.slopes(q))
        if not slope > 0:
            raise SolveError(f"no point of the critical line is known at q* = {q:g}", why="E f'^2 is 0 in floats")
        sw, sb = 1 / slope, self._bias(q)
        sb = 0.0 if abs(sb) < 1e-12 * q else sb
        along = float(self.variances.second_slope(q)) / slope
        settled = (
            "marginal" if abs(along - 1) < 1e-8 else "stable" if abs(along) < 1 else "unstable"
        )
        decay = correlation_decay(self.activation, sp.Float(sw, 15), sp.Float(q, 15))
        place = [sp.Float(v, 15) for v in (q, sw, sb)]
        return CriticalPoint(
            place[0], place[1], place[2], along, stability or settled, False, decay
        )

    # -- the rest of the plane -------------------------------------------------------------------------------

    def phase(self, sw: Any, sb: Any = 0, start: float | None = None) -> Phase:
        """Fixed points, slopes, phase and depth scales at any (s_w, s_b); see :class:`varflow.meanfield.Phase`.

        ``start``: the variance of the first pre-activation, which decides between several stable fixed points
        [default: s_w + s_b, that of a unit input]. Raises InputError for negative variances.
        """
        self._require_numbers()
        begin = None if start is None else number(variance(start, "start"), "start")
        keep = number(self.keep, "1 - dropout", "a number for the drop rate")
        return phase_of(self.variances, number(sw, "sw"), number(sb, "sb"), keep, begin)

    def depth_scales(
        self, sw: Any, sb: Any = 0, start: float | None = None
    ) -> Mapping[str, float | None]:
        """{"xi_q": .., "xi_c": .., "xi_gradient": ..} in layers; see :class:`varflow.meanfield.Phase`."""
        found = self.phase(sw, sb, start)
        return {"xi_q": found.xi_q, "xi_c": found.xi_c, "xi_gradient": found.xi_gradient}

    def dropout(self, rate: Any) -> Criticality:
        """The same with dropout of f(x): ``rate`` of the entries are dropped, the rest divided by 1 - rate.

        Schoenholz et al. (2017, section 5): there is no critical point; ``phase`` gives the depth scale.
        """
        keep = 1 - exact(rate)
        if keep.is_number and not 0 < float(keep) <= 1:
            raise InputError(f"a drop rate of {rate}", instead="0 <= rate < 1")
        return Criticality(self.activation, keep)

    def plot(
        self,
        path: str | Path,
        sw: tuple[float, float] | None = None,
        sb: tuple[float, float] | None = None,
    ) -> Path:
        """Write the phase diagram over (s_w, s_b); suffix .png, .pdf or .svg. Raises MissingExtraError without
        matplotlib (the extra ``plot``)."""
        from varflow.criticality_plot import draw

        self._require_numbers()
        if self.keep != 1:
            raise UnsupportedError("there is no phase diagram with dropout", why=self.obstacle)
        return draw(self, Path(path), sw, sb)

    # -- documents -------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The JSON document without its schema number."""
        return {
            "activation": text(self.activation),
            "keep": _number(self.keep),
            "kind": self.kind,
            "reason": self.reason,
            "point": None if self.point is None else self.point.to_dict(),
            "points": [p.to_dict() for p in self.points],
        }

    def _repr_latex_(self) -> str:
        if self.point is None:
            return rf"$\text{{{self.kind}: {self.reason}}}$"
        sw, sb = sp.latex(self.point.sw), sp.latex(self.point.sb)
        return rf"$\text{{{self.kind}}}:\ \sigma_w^2 = {sw},\ \sigma_b^2 = {sb}$"


def criticality(activation: str | sp.Expr, dropout: Any = 0) -> Criticality:
    """Criticality of an activation: its class, its critical point and line, phases and depth scales.

    ``activation``: a name, a text in ``x``, or a sympy expression with ``varflow.symbols.X`` or exactly one
    symbol; ``dropout``: the rate at which entries of f(x) are dropped. Raises ExpressionError for a text that
    is no expression, InputError for an expression without a clear argument.
    """
    made = _criticality(activation_in_x(activation))
    return made if dropout == 0 else made.dropout(dropout)


@lru_cache(maxsize=256)
def _criticality(f: sp.Expr) -> Criticality:
    return Criticality(f)
