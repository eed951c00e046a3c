"""The gains of one activation: its moments at a Gaussian input, and the initialization they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import sympy as sp

from varflow.errors import InputError
from varflow.laws.expectation import (
    GaussianExpectation,
    Normal,
    compile_formula,
    derivative,
    expect,
)
from varflow.symbols import X

FIELDS = (
    "mean",
    "second_moment",
    "variance",
    "init_gain",
    "init_gain_centered",
    "derivative_second_moment",
    "chi",
)
_LATEX = {
    "mean": r"\mathbb{E} f",
    "second_moment": r"\mathbb{E} f^2",
    "variance": r"\operatorname{Var} f",
    "init_gain": r"1/\sqrt{\mathbb{E} f^2}",
    "init_gain_centered": r"1/\sqrt{\operatorname{Var} f}",
    "derivative_second_moment": r"\mathbb{E} f'^2",
    "chi": r"\chi",
}


@dataclass(frozen=True)
class ActivationGain:
    """Moments of f(z), z ~ N(m, q), and what follows from them.

    ``variance`` is Var f(z); ``init_gain`` = 1/sqrt(E f^2) keeps the second moment at 1 and
    ``init_gain_centered`` = 1/sqrt(Var f) the variance (Brock et al. 2021); None where the moment is zero.
    ``derivative_second_moment`` is E f'(z)^2, jumps left out; ``chi`` = q E f'^2 / E f^2 is the slope at
    correlation 1 of the map from the correlation of two inputs to E[f f] / E f^2 (Schoenholz et al. 2017),
    infinite for an activation that jumps. ``closed_form`` says for each field whether it has no integral.
    """

    activation: sp.Expr
    input_variance: sp.Expr
    input_mean: sp.Expr
    mean: sp.Expr
    second_moment: sp.Expr
    variance: sp.Expr
    init_gain: sp.Expr | None
    init_gain_centered: sp.Expr | None
    derivative_second_moment: sp.Expr
    chi: sp.Expr | None

    @property
    def closed_form(self) -> Mapping[str, bool]:
        """Whether each field is free of unevaluated integrals."""
        values = {name: getattr(self, name) for name in FIELDS}
        return MappingProxyType(
            {k: v is not None and not v.has(GaussianExpectation) for k, v in values.items()}
        )

    def numeric(self, values: Mapping[str, float] | None = None) -> dict[str, float | None]:
        """Every field as a float; ``values`` for the symbols that are left, by name.

        Raises InputError naming the symbols without a value.
        """
        table = {str(k): float(v) for k, v in (values or {}).items()}
        return {name: self._number(getattr(self, name), table) for name in FIELDS}

    def _number(self, expr: sp.Expr | None, table: Mapping[str, float]) -> float | None:
        if expr is None:
            return None
        symbols = sorted(expr.free_symbols, key=sp.default_sort_key)
        missing = [str(s) for s in symbols if str(s) not in table]
        if missing:
            raise InputError(
                f"no value for {', '.join(missing)}", instead="numeric({NAME: NUMBER})"
            )
        return float(compile_formula(expr, symbols)(*[table[str(s)] for s in symbols]))

    def _repr_latex_(self) -> str:
        rows = (
            rf"{_LATEX[name]} &= {sp.latex(getattr(self, name))}"
            for name in FIELDS
            if getattr(self, name) is not None
        )
        return "$\\begin{aligned}" + r" \\ ".join(rows) + "\\end{aligned}$"


def gain(
    activation: str | sp.Expr, q: sp.Expr | float = 1, mean: sp.Expr | float = 0
) -> ActivationGain:
    """The gains of an activation at z ~ N(mean, q).

    ``activation``: a name, a text in ``x``, or a sympy expression with ``varflow.symbols.X`` or exactly one
    symbol. ``q`` (the variance of z) and ``mean`` are numbers or sympy expressions. Raises ExpressionError
    for a text that is no expression, InputError for one without a clear argument, NoFormula.
    """
    expr = _parsed(activation)
    return _gain(_in_x(expr), _exact(q), _exact(mean))


def _parsed(activation: str | sp.Expr) -> sp.Expr:
    if not isinstance(activation, str):
        return activation
    from varflow.expressions import parse_activation

    return parse_activation(activation)


def _in_x(expr: sp.Expr) -> sp.Expr:
    symbols = expr.free_symbols
    if X in symbols or not symbols:
        return expr
    if len(symbols) > 1:
        raise InputError(
            f"which of {', '.join(sorted(map(str, symbols)))} is the argument?",
            instead="use varflow.symbols.X for the argument",
        )
    return expr.xreplace({next(iter(symbols)): X})


def _exact(value: sp.Expr | float) -> sp.Expr:
    if isinstance(value, sp.Expr):
        return value
    return sp.Integer(value) if isinstance(value, int) else sp.Rational(str(value))


@lru_cache(maxsize=512)
def _gain(f: sp.Expr, q: sp.Expr, mean: sp.Expr) -> ActivationGain:
    slope = derivative(f, X)

    def average(expr: sp.Expr) -> sp.Expr:
        return expect(expr.xreplace({X: X + mean}), {X: Normal()}, lambda u, v: q)

    first, second, slopes = average(f), average(f**2), average(slope**2)
    variance = second - first**2
    return ActivationGain(
        activation=f,
        input_variance=q,
        input_mean=mean,
        mean=first,
        second_moment=second,
        variance=variance,
        init_gain=_inverse_root(second),
        init_gain_centered=_inverse_root(variance),
        derivative_second_moment=slopes,
        chi=None if second == 0 else _chi(f, q, slopes, second),
    )


def _chi(f: sp.Expr, q: sp.Expr, slopes: sp.Expr, second: sp.Expr) -> sp.Expr:
    from varflow.laws.expectation import has_jump

    return sp.oo if has_jump(f, X) else q * slopes / second


def _inverse_root(moment: sp.Expr) -> sp.Expr | None:
    return None if sp.expand(moment) == 0 else 1 / sp.sqrt(moment)
