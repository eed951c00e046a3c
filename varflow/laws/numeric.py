"""Formulas as numpy functions that neither overflow nor lose digits where the formula does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import sympy as sp
from sympy.core.function import AppliedUndef

from varflow.binormal import Phi2, by_numpy, exp_phi2, exp_phi2_by_numpy
from varflow.errors import UnsupportedError
from varflow.laws.algebra import ordered
from varflow.laws.precise import function_of, guarded
from varflow.laws.straight import NoProgram, bottom_up
from varflow.waves import BY_NUMPY, CosTail, SinTail

Array = npt.NDArray[np.float64]


class softplus(sp.Function):  # type: ignore[misc]
    """log(1 + exp(x))."""

    nargs = 1


class expit(sp.Function):  # type: ignore[misc]
    """1 / (1 + exp(-x))."""

    nargs = 1


class tail_of(sp.Function):  # type: ignore[misc]
    """erfc(x), never rewritten as 2 - erfc(-x)."""

    nargs = 1


class exp_erfc(sp.Function):  # type: ignore[misc]
    """exp(a) erfc(b), given a, b and a - b^2."""

    nargs = 3


class exp_cos_tail(sp.Function):  # type: ignore[misc]
    """exp(e) CosTail(a, b), given e, a, b, e - a^2/2 and e - b^2/2."""

    nargs = 5


class exp_sin_tail(sp.Function):  # type: ignore[misc]
    """exp(e) SinTail(a, b), given e, a, b, e - a^2/2 and e - b^2/2."""

    nargs = 5


def stable(expr: sp.Expr) -> sp.Expr:
    """Logistic functions, softplus and exp times a tail in a form that floats can evaluate."""
    made: sp.Expr = bottom_up(expr, (_rewritten,))
    return made


def _rewritten(expr: sp.Expr) -> sp.Expr:
    """One node, its arguments being stable."""
    if isinstance(expr, sp.Add):
        return _complement(expr)
    if isinstance(expr, sp.log):
        return _softplus(expr)
    if isinstance(expr, sp.Pow) and expr.base != sp.E:
        return _logistic(expr)
    if isinstance(expr, sp.Mul):
        expr = _balanced(expr) if expr.has(expit) else _one_power(expr)
        return _tail(expr) if isinstance(expr, sp.Mul) else expr
    return expr


def _plus_exp(expr: sp.Expr) -> tuple[sp.Expr, sp.Expr] | None:
    """(a, h) of a + b exp(..) = a (1 + exp(h)) with positive numbers a and b, else None."""
    constant, rest = expr.as_coeff_Add()
    number, power = rest.as_coeff_Mul()
    if not (constant.is_positive and number.is_positive and isinstance(power, sp.exp)):
        return None
    return constant, power.args[0] + sp.log(number / constant)


def _complement(expr: sp.Add) -> sp.Expr:
    """k + k erf(x) + ... as k erfc(-x) + ..., k + k tanh(x) + ... as 2 k expit(2 x) + ...: no digits lost
    where it is small."""
    constant, _ = expr.as_coeff_Add()
    for term in expr.args if constant != 0 else ():
        number, tail = term.as_coeff_Mul()
        if abs(number) != abs(constant) or not isinstance(tail, (sp.erf, sp.tanh)):
            continue
        x = tail.args[0] if number == constant else -tail.args[0]
        small = tail_of(-x) if isinstance(tail, sp.erf) else 2 * expit(2 * x)
        return constant * small + (expr - constant - term)
    return expr


def logistic(expr: sp.Expr) -> sp.Expr:
    """The expression with k + k tanh(u) as 2 k / (1 + exp(-2 u)), whose derivative loses no digits either."""
    made: sp.Expr = bottom_up(expr, (_as_logistic,))
    return made


def _as_logistic(expr: sp.Expr) -> sp.Expr:
    constant = expr.as_coeff_Add()[0] if isinstance(expr, sp.Add) else sp.S.Zero
    for term in expr.args if constant != 0 else ():
        number, tail = term.as_coeff_Mul()
        if abs(number) == abs(constant) and isinstance(tail, sp.tanh):
            u = tail.args[0] if number == constant else -tail.args[0]
            return constant * 2 / (1 + sp.exp(-2 * u)) + (expr - constant - term)
    return expr


def _softplus(expr: sp.Expr) -> sp.Expr:
    found = _plus_exp(expr.args[0])
    return expr if found is None else softplus(found[1]) + sp.log(found[0])


def _logistic(expr: sp.Pow) -> sp.Expr:
    """(a + a exp(h))^-n as a^-n expit(-h)^n."""
    found = _plus_exp(expr.base) if isinstance(expr.base, sp.Add) else None
    if found is None or not expr.exp.is_negative:
        return expr
    return found[0] ** expr.exp * expit(-found[1]) ** (-expr.exp)


def _multiple(growth: sp.Expr, h: sp.Expr) -> tuple[int, sp.Expr]:
    """m and the number c of growth = c - m h; m = 0 where it is of another form."""
    place = next((s for s in ordered(h.free_symbols)), None)
    if place is None or not growth.has(place):
        return 0, growth
    sample = {s: sp.Float(0.37 + k / 7) for k, s in enumerate(ordered((growth + h).free_symbols))}
    slopes = growth.diff(place) / h.diff(place)
    if slopes.has(sp.Derivative, sp.Subs):
        return 0, growth
    try:
        ratio = -slopes.xreplace(sample)
    except TypeError:  # a condition inside compares what is not real there
        return 0, growth
    m = round(float(ratio)) if ratio.is_Number and ratio.is_finite and abs(ratio) < 100 else 0
    left = sp.expand(growth + m * h) if m and abs(float(ratio) - m) < 1e-6 else growth
    return (m, left) if left.is_number else (0, growth)


def _balanced(expr: sp.Mul) -> sp.Expr:
    """exp(-m h) expit(h)^n, 0 < m <= n, as expit(-h)^m expit(h)^(n - m)."""
    exponents = [f.args[0] for f in expr.args if isinstance(f, sp.exp)]
    rest = [f for f in expr.args if not isinstance(f, sp.exp)]
    for k, factor in enumerate(rest):
        base, n = factor.as_base_exp()
        if not isinstance(base, expit) or not n.is_Integer:
            continue
        h = base.args[0]
        for growths in ([sp.Add(*exponents)], exponents):  # all together, else one of them
            found = ((g, *_multiple(g, h)) for g in growths if g != 0)
            growth, m, left = next((f for f in found if 0 < f[1] <= n), (sp.S.Zero, 0, sp.S.Zero))
            if m:
                rest[k] = expit(-h) ** m * expit(h) ** (n - m)
                exponents = [left, *(g for g in exponents if growths is exponents and g != growth)]
                break
    return sp.Mul(sp.exp(sp.Add(*exponents)), *rest)


def _one_power(expr: sp.Mul) -> sp.Expr:
    """exp(a) exp(b) as exp(a + b): one factor may overflow before the other vanishes."""
    powers = [f for f in expr.args if isinstance(f, sp.exp)]
    if len(powers) < 2:
        return expr
    return sp.Mul(sp.exp(sp.Add(*(f.args[0] for f in powers))), *(f for f in expr.args if f not in powers))


def _tail(expr: sp.Mul) -> sp.Expr:
    powers = [a for a in expr.args if isinstance(a, sp.exp)]
    tails = [a for a in expr.args if isinstance(a, (sp.erfc, CosTail, SinTail, Phi2))]
    if len(powers) != 1 or len(tails) != 1:
        return expr
    e, tail = powers[0].args[0], tails[0]
    rest = [f for f in expr.args if f not in (powers[0], tail)]
    if isinstance(tail, sp.erfc):
        b = tail.args[0]
        return sp.Mul(exp_erfc(e, b, sp.expand(e - b**2)), *rest)
    if isinstance(tail, Phi2):
        return sp.Mul(exp_phi2(e, *tail.args), *rest)
    a, b = tail.args
    both = exp_cos_tail if isinstance(tail, CosTail) else exp_sin_tail
    return sp.Mul(both(e, a, b, sp.expand(e - a**2 / 2), sp.expand(e - b**2 / 2)), *rest)


def _np_softplus(x: Array) -> Array:
    return np.asarray(np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x))))


def _np_expit(x: Array) -> Array:
    from scipy.special import expit as special

    return np.asarray(special(x))


def _np_erf(x: Array) -> Array:
    from scipy.special import erf

    return np.asarray(erf(x))


def _np_erfc(x: Array) -> Array:
    from scipy.special import erfc

    return np.asarray(erfc(x))


def _np_exp_erfc(a: Array, b: Array, gap: Array) -> Array:
    from scipy.special import erfc, erfcx

    b = np.asarray(b, dtype=float)
    far = np.exp(gap) * erfcx(np.maximum(b, 0.0))
    return np.where(b > 0, far, np.exp(np.where(b > 0, 0.0, a)) * erfc(np.minimum(b, 0.0)))


def _np_gamma(x: Array) -> Array:
    from scipy.special import gamma

    return np.asarray(gamma(x))


def _np_loggamma(x: Array) -> Array:
    from scipy.special import gammaln

    return np.asarray(gammaln(x))


def _np_asin(x: Array) -> Array:
    return np.arcsin(np.clip(x, -1.0, 1.0))


def _np_sqrt(x: Any) -> Any:
    return np.sqrt(np.maximum(x, 0.0)) if not np.iscomplexobj(x) else np.sqrt(x)


_MODULE = {
    "softplus": _np_softplus,
    "expit": _np_expit,
    "erf": _np_erf,
    "erfc": _np_erfc,
    "tail_of": _np_erfc,
    "exp_erfc": _np_exp_erfc,
    "gamma": _np_gamma,
    "loggamma": _np_loggamma,
    "asin": _np_asin,
    "arcsin": _np_asin,
    "sqrt": _np_sqrt,
    "Phi2": by_numpy,
    "exp_phi2": exp_phi2_by_numpy,
    **BY_NUMPY,
}


def _np_real_sqrt(x: Any) -> Any:
    return np.sqrt(np.where((x < 0) & (x > -1e-12), 0.0, x))


_REAL = {k: f for k, f in _MODULE.items() if k not in ("sqrt", "asin", "arcsin")}
_REAL["sqrt"] = _np_real_sqrt


@lru_cache(maxsize=2048)
def vectorized(
    expr: sp.Expr, symbols: tuple[sp.Symbol, ...], real: bool = False
) -> Callable[..., Any]:
    """The expression as a function of numpy arrays (no GaussianExpectation inside).

    Square roots and arc sines just outside their domain are those of its border, since formulas get there
    by rounding; with ``real`` they are nan.
    """
    table = _REAL if real else _MODULE
    shaped = stable(expr)
    try:
        return function_of(shaped, symbols, table)
    except NoProgram:
        if shaped.has(sp.zoo, sp.nan):
            raise UnsupportedError(
                "a formula is infinite", why="it divides by zero on part of the line"
            ) from None
        unknown = sorted(str(f.func) for f in shaped.atoms(AppliedUndef))
        if unknown:
            raise UnsupportedError(
                f"no numbers for the function {unknown[0]}", instead="a function that sympy defines"
            ) from None
        made: Callable[..., Any] = sp.lambdify(list(symbols), shaped, modules=[table, "numpy"])
        return made


@lru_cache(maxsize=2048)
def with_enough_digits(expr: sp.Expr, symbols: tuple[sp.Symbol, ...]) -> Callable[..., Any]:
    """``vectorized`` for a closed form: where its terms cancel, more digits than doubles have."""
    try:
        return guarded(stable(expr), symbols, _MODULE, expr)
    except NoProgram:
        return vectorized(expr, symbols)


def broadcast(values: Sequence[Any]) -> list[Array]:
    """Arrays of one common shape, floats."""
    return list(np.broadcast_arrays(*[np.asarray(v, dtype=float) for v in values]))
