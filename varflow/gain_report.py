"""Everything about one activation in one place: its gains, its maps and where they settle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import sympy as sp

from varflow.errors import ExpressionError
from varflow.fixed_points import FixedPoint, FixedPoints
from varflow.gain_fields import FIELDS, GainFields
from varflow.gain_single import ActivationGain
from varflow.printing import to_text
from varflow.symbols import X

if TYPE_CHECKING:
    from varflow.maps import ActivationMaps

SCHEMA = 1
SATURATED = 0.01
"""|f'| below this counts as saturated."""


@dataclass(frozen=True)
class Settled:
    """A fixed point q* of the variance, the slope chi of the correlation map at 1, and the correlations c*."""

    variance: FixedPoint
    chi: float
    correlations: FixedPoints


@dataclass(frozen=True)
class GainReport:
    """The gains of an activation and, for one argument, its maps at ``weight_scale`` and ``bias_variance``.

    Without ``weight_scale`` maps are those of s = 1/E f(z)^2, z ~ N(0, 1) (the init gain squared), which keeps
    q = 1. ``values`` are numbers for symbols in the fields, ``name`` what documents call it.
    """

    gain: GainFields
    weight_scale: sp.Expr | float | None = None
    bias_variance: sp.Expr | float = 0
    values: Mapping[str, float] = field(default_factory=dict)
    name: str = ""

    @property
    def missing(self) -> list[str]:
        """Symbols of the fields without a value."""
        return sorted(self.gain.symbols - set(self.values))

    @property
    def open_symbols(self) -> frozenset[str]:
        """Symbols of the fields and of the maps' scales."""
        scales = [s for s in (self.weight_scale, self.bias_variance) if isinstance(s, sp.Expr)]
        return self.gain.symbols | {str(s) for scale in scales for s in scale.free_symbols}

    @cached_property
    def numbers(self) -> Mapping[str, float | None]:
        """Every field as a float; empty where a symbol has no value."""
        return {} if self.missing else self.gain.numeric(self.values)

    @cached_property
    def saturated(self) -> float | None:
        """The probability of |f'| < ``SATURATED``; None for several inputs, or open symbols."""
        g = self.gain
        if not isinstance(g, ActivationGain) or g.activation.free_symbols - {X}:
            return None
        return None if g.input_variance.free_symbols | g.input_mean.free_symbols else g.saturated_share(SATURATED)

    @cached_property
    def maps(self) -> ActivationMaps | None:
        """The maps of an activation of one argument; None for a function of several inputs, and for zero."""
        g = self.gain
        if not isinstance(g, ActivationGain) or (self.weight_scale is None and g.activation == 0):
            return None
        return g.maps(self.weight_scale, self.bias_variance)

    @property
    def followed(self) -> bool:
        """Whether the maps can be followed in numbers: all symbols given."""
        if self.maps is None or self.gain.symbols:
            return False
        return not (self.maps.weight_scale.free_symbols | self.maps.bias_variance.free_symbols)

    @cached_property
    def settled(self) -> tuple[Settled, ...]:
        """The fixed points of the variance; of a map that keeps every variance, q = 1 alone."""
        if self.maps is None or not self.followed:
            return ()
        points = self.maps.fixed_points
        kept = (FixedPoint(1.0, 1.0),) if points.every else points.points
        return tuple(self._settled(p) for p in kept if p.value > 0)

    def _settled(self, point: FixedPoint) -> Settled:
        assert self.maps is not None
        q = point.value
        return Settled(point, float(self.maps.chi_at(q)), self.maps.correlation_fixed_points(q))

    def document(self, maps: bool = True) -> dict[str, Any]:
        """The JSON document: formulas as text, numbers under ``value``, maps with their fixed points."""
        g = self.gain
        activation = getattr(g, "activation", None)
        result: dict[str, Any] = {"schema": SCHEMA, "activation": formula_text(activation), "title": g.title}
        result |= {"input": {"mean": formula_text(g.input_mean), "variance": formula_text(g.input_variance)}}
        result |= {name: formula_text(getattr(g, name)) for name in FIELDS}
        result |= {"value": dict(self.numbers), "closed_form": dict(g.closed_form)}
        result["saturated_share"] = {"threshold": SATURATED, "value": self.saturated}
        if maps and self.maps is not None:
            result["maps"] = self._maps_document(self.maps)
        return result

    def _maps_document(self, maps: ActivationMaps) -> dict[str, Any]:
        formulas = ("weight_scale", "bias_variance", "q_map", "c_map", "kernel", "derivative_kernel", "chi")
        result: dict[str, Any] = {name: formula_text(getattr(maps, name)) for name in formulas}
        result["keeps_every_q"] = bool(self.settled) and maps.fixed_points.every
        result["fixed_points"] = [
            {"q": s.variance.value, **_point(s.variance), "chi": s.chi,
             "correlations": [{"c": p.value, **_point(p)} for p in s.correlations]}
            for s in self.settled
        ]
        return result


def _point(p: FixedPoint) -> dict[str, Any]:
    return {"slope": p.slope, "stability": p.stability, "depth_scale": p.depth_scale}


def formula_text(expr: sp.Basic | None) -> str | None:
    """A formula in the expression grammar, or as sympy writes it where the grammar has no words."""
    if expr is None:
        return None
    try:
        return to_text(expr)
    except ExpressionError:
        return str(expr)


def readable(expr: sp.Expr) -> sp.Expr:
    """The formula for the eye: fractions of more than nine digits as decimal numbers."""
    long = {r for r in expr.atoms(sp.Rational) if max(abs(r.p), r.q) >= 10**9}
    return expr.xreplace({r: sp.Float(r, 15) for r in long})
