"""The maps of one activation: how a variance and a correlation go through one layer, and where they settle.

One layer takes x ~ N(0, q), two inputs of which correlate by c, to W f(x) + b with s = fan_in Var(W_ij) and
bias variance b (Poole et al. 2016; Schoenholz et al. 2017):

    q' = s E f(x)^2 + b,     c' = (s E[f(u) f(v)] + b) / q',   u, v ~ N(0, q) of correlation c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import sympy as sp

from varflow.errors import InputError
from varflow.fixed_points import FixedPoint, FixedPoints, correlation_points, variance_points
from varflow.gain_fields import variance_of
from varflow.gain_numbers import ActivationNumbers, Function
from varflow.laws.expectation import (
    Divergent,
    GaussianExpectation,
    Normal,
    compile_formula,
    derivative,
    expect,
    has_jump,
)
from varflow.symbols import X, positive

__all__ = ["ActivationMaps", "C", "FixedPoint", "FixedPoints", "Q", "activation_maps"]
Q = positive("q")
"""The variance of the argument in formulas of maps."""
C = sp.Symbol("c", real=True)
"""The correlation of two arguments, from -1 to 1, in formulas of maps."""
_U, _V = sp.Symbol("u", real=True), sp.Symbol("v", real=True)


@lru_cache(maxsize=512)
def _average(expr: sp.Expr) -> sp.Expr:
    """E over X ~ N(0, Q)."""
    return expect(expr, {X: Normal()}, lambda u, v: Q)


@lru_cache(maxsize=512)
def _pair(f: sp.Expr) -> sp.Expr:
    """E[f(u) f(v)] over u, v ~ N(0, Q) of correlation C."""
    body = f.xreplace({X: _U}) * f.xreplace({X: _V})
    return expect(body, {_U: Normal(), _V: Normal()}, lambda u, v: Q if u == v else Q * C)


def closed(formula: sp.Expr | None, *symbols: sp.Symbol) -> Callable[..., Any] | None:
    """A formula without integrals as a function of arrays; None for another."""
    if formula is None or formula.has(GaussianExpectation):
        return None
    return compile_formula(formula, symbols)


def _with_ends(
    formula: Callable[..., Any] | None, numbers: Callable[..., Any], waves: bool
) -> Callable[..., Any]:
    """A formula of (q, c); by a line integral at c = 1 and -1, where kinks at several places make it 0/0.

    With ``waves``, which no quadrature follows to large variances, only where the formula has no value.
    """
    if formula is None:
        return numbers

    def run(q: Any, c: Any) -> Any:
        values = np.array(formula(q, c), dtype=float)
        q, c = (np.broadcast_to(np.asarray(x, dtype=float), values.shape) for x in (q, c))
        lost = np.isnan(values) | ((np.abs(c) == 1) & (not waves))
        if lost.any():
            values[lost] = numbers(q[lost], c[lost])
        return values

    return run


@dataclass(frozen=True)
class ActivationMaps:
    """The variance map and the correlation map of ``activation`` between weights of scale ``weight_scale``.

    ``activation`` is an expression in ``symbols.X``, or a function of a numpy array (then every formula is
    None and every method still a number). ``weight_scale`` is s = fan_in Var(W_ij), ``bias_variance`` b.
    Formulas are sympy expressions in ``Q`` (variance of the argument) and ``C`` (correlation), made on demand;
    methods take floats or arrays (broadcast) and return floats or arrays.
    """

    activation: Function
    weight_scale: sp.Expr
    bias_variance: sp.Expr = sp.S.Zero

    # -- formulas ------------------------------------------------------------------------------------------

    @cached_property
    def second_moment_formula(self) -> sp.Expr | None:
        """E f(x)^2, x ~ N(0, Q)."""
        f = self.activation
        return _average(f**2) if isinstance(f, sp.Expr) else None

    @cached_property
    def derivative_second_moment_formula(self) -> sp.Expr | None:
        """E f'(x)^2, x ~ N(0, Q), jumps left out; infinite where it is not integrable."""
        f = self.activation
        try:
            return _average(derivative(f, X) ** 2) if isinstance(f, sp.Expr) else None
        except Divergent:
            return sp.oo

    @cached_property
    def kernel(self) -> sp.Expr | None:
        """E[f(u) f(v)] (the dual kernel of Cho and Saul 2009, Daniely et al. 2016)."""
        f = self.activation
        return _pair(f) if isinstance(f, sp.Expr) else None

    @cached_property
    def derivative_kernel(self) -> sp.Expr | None:
        """E[f'(u) f'(v)], jumps left out; None where f'^2 is not integrable."""
        f = self.activation
        if not isinstance(f, sp.Expr) or self.derivative_second_moment_formula == sp.oo:
            return None
        return _pair(derivative(f, X))

    @cached_property
    def q_map(self) -> sp.Expr | None:
        """q' = s E f(x)^2 + b."""
        second = self.second_moment_formula
        return None if second is None else self.weight_scale * second + self.bias_variance

    @cached_property
    def q_slope(self) -> sp.Expr | None:
        """dq'/dq = s E[f(x)^2 (x^2/q - 1)] / (2 q); jumps included."""
        f = self.activation
        if not isinstance(f, sp.Expr):
            return None
        return self.weight_scale * _average(f**2 * (X**2 / Q - 1)) / (2 * Q)

    @cached_property
    def c_map(self) -> sp.Expr | None:
        """c' = (s E[f(u) f(v)] + b) / q'."""
        if self.kernel is None or self.q_map == 0:
            return None
        return (self.weight_scale * self.kernel + self.bias_variance) / self.q_map

    @cached_property
    def chi(self) -> sp.Expr | None:
        """Slope of the correlation map at c = 1: s q E f'^2 / q', s E f'^2 where q' = q; oo where f jumps."""
        slopes, f = self.derivative_second_moment_formula, self.activation
        if slopes is None or self.q_map == 0:
            return None
        if slopes == sp.oo or has_jump(f, X):
            return sp.oo
        return self.weight_scale * Q * slopes / self.q_map

    # -- numbers -------------------------------------------------------------------------------------------

    @cached_property
    def numbers(self) -> ActivationNumbers:
        """Moments and kernels of the activation alone, over arrays."""
        return ActivationNumbers(self.activation)

    @cached_property
    def scales(self) -> tuple[float, float]:
        """(s, b) as floats. Raises InputError where either holds a symbol."""
        for value in (self.weight_scale, self.bias_variance):
            if value.free_symbols:
                raise InputError(f"no number for {', '.join(sorted(map(str, value.free_symbols)))}",
                                 why="maps are followed in numbers", instead="a number for it")
        return float(self.weight_scale), float(self.bias_variance)

    @cached_property
    def _waves(self) -> Callable[..., Any] | None:
        """The formula of E f^2 where f oscillates, which no quadrature follows to large variances."""
        f = self.activation
        return closed(self.second_moment_formula, Q) if isinstance(f, sp.Expr) and f.has(sp.sin, sp.cos) else None

    @cached_property
    def _kernel(self) -> Callable[..., Any]:
        return _with_ends(closed(self.kernel, Q, C), self.numbers.kernel, self._waves is not None)

    @property
    def _steep(self) -> bool:
        """Whether f'^2 is not integrable."""
        return bool(self.derivative_second_moment_formula == sp.oo)

    @cached_property
    def _kernel_slope(self) -> Callable[..., Any]:
        if self._steep:
            return self.numbers.kernel_rise
        found = None if self.numbers.jumps else closed(self.derivative_kernel, Q, C)
        kernel = _with_ends(found, self.numbers.derivative_kernel, self._waves is not None)
        return self.numbers.kernel_slope if found is None else lambda q, c: q * kernel(q, c)

    def second_moment(self, q: Any) -> Any:
        """E f(x)^2, x ~ N(0, q)."""
        if self._waves is None:
            return self.numbers.second_moment(q)
        q = np.asarray(q, dtype=float)
        near = self.numbers.second_moment(np.minimum(q, 1.0))
        return np.where(q > 1, self._waves(np.maximum(q, 1.0)), near)

    def next_variance(self, q: Any) -> Any:
        """q'."""
        s, b = self.scales
        return s * self.second_moment(q) + b

    def variance_slope(self, q: Any) -> Any:
        """dq'/dq."""
        return self.scales[0] * self.numbers.second_moment_slope(q)

    def next_correlation(self, c: Any, q: Any) -> Any:
        """c', for two arguments of variance q."""
        s, b = self.scales
        return (s * self._kernel(q, c) + b) / self.next_variance(q)

    def correlation_slope(self, c: Any, q: Any) -> Any:
        """dc'/dc, for two arguments of variance q."""
        return self.scales[0] * self._kernel_slope(q, c) / self.next_variance(q)

    def chi_at(self, q: Any) -> Any:
        """Slope of the correlation map at c = 1, for arguments of variance q; infinite where f jumps."""
        if self.numbers.jumps or self._steep:
            return np.full(np.shape(q), np.inf) if np.shape(q) else np.inf
        return self.scales[0] * np.asarray(q) * self.numbers.derivative_second_moment(q) / self.next_variance(q)

    def _repr_latex_(self) -> str:
        rows = (rf"{left} &= {value}" for left, value in self._shown())
        return "$\\begin{aligned}" + r" \\ ".join(rows) + "\\end{aligned}$"

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(f"<tr><td>${left}$</td><td>${escape(value, quote=False)}$</td></tr>"
                       for left, value in self._shown())
        return f"<table>{rows}</table>"

    def _shown(self) -> list[tuple[str, str]]:
        from varflow.export.formulas import printed

        found = [("s", self.weight_scale), ("b", self.bias_variance), ("q'", self.q_map),
                 (r"\mathbb{E}[f(u) f(v)]", self.kernel), (r"\chi", self.chi)]
        return [(left, printed(value, {})) for left, value in found if value is not None]

    # -- fixed points --------------------------------------------------------------------------------------

    @cached_property
    def fixed_points(self) -> FixedPoints:
        """Every q* with q' = q (0, and from 1e-8 to 1e8; from 1e-4 to 1e4 without a formula), least first."""
        narrow = {} if isinstance(self.activation, sp.Expr) else {"low": 1e-4, "high": 1e4}
        return variance_points(self.next_variance, self.variance_slope, **narrow)

    def correlation_fixed_points(self, q: float) -> FixedPoints:
        """Every c* in [-1, 1] with c' = c at variance q, which should be a fixed point of the variance."""
        return correlation_points(lambda c: self.next_correlation(c, q), lambda c: self.correlation_slope(c, q),
                                  float(self.chi_at(q)))


def activation_maps(activation: Function, weight_scale: sp.Expr | float | None = None,
                    bias_variance: sp.Expr | float = 0) -> ActivationMaps:
    """The maps of an activation; without ``weight_scale``, s = 1/E f(z)^2 (the init gain squared), which keeps q = 1.

    Raises InputError for an activation that is zero, which no scale can preserve, and for negative scales.
    """
    if weight_scale is None:
        second = ActivationMaps(activation, sp.S.One).second_moment_formula
        value = None if second is None else second.xreplace({Q: sp.S.One})
        if value is None:
            value = sp.Float(float(ActivationNumbers(activation).second_moment(1.0)), 15)
        if value == 0:
            raise InputError("the activation is zero", why="no weight scale preserves it", instead="weight_scale=1")
        weight_scale = 1 / value
    return ActivationMaps(activation, variance_of(weight_scale, "weight scale"),
                          variance_of(bias_variance, "bias variance"))
