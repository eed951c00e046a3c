"""Whether E f(z) of one Gaussian exists: f real on the whole line, no pole, no growth beyond the density.

Most functions pass by their shape alone. The others are looked at: samples over the line, roots of what
stands in denominators, the exponent of |f| at each of them, and |f| against the density far out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import sympy as sp

from varflow.laws.algebra import depends, size
from varflow.laws.distributions import NoFormula
from varflow.laws.precise import mp_function
from varflow.laws.straight import NoProgram

Array = Any
LARGEST = 4000
_BOUNDED = (sp.tanh, sp.atan, sp.acot, sp.erf, sp.erfc, sp.sin, sp.cos, sp.sign, sp.Heaviside)
_LINEAR = (sp.asinh, sp.Abs, sp.Max, sp.Min)
_EXPONENTIAL = (sp.exp, sp.sinh, sp.cosh)
EXPONENTIAL, MOST_POLES = 1000, 6
_FAR, REACH, FAINT = (6.0, 9.0, 12.0, 17.0, 24.0, 34.0), 2, -30.0


class Divergent(NoFormula):
    """An expectation that is infinite, or has no value."""


class NotReal(NoFormula):
    """A function that is not real somewhere on the line."""


@lru_cache(maxsize=8192)
def growth(expr: sp.Basic, z: sp.Symbol) -> int | None:
    """A power k with |f| = O(1 + |z|^k), EXPONENTIAL for exp(O(|z|)), None if not seen at once.

    An answer also says that f is real and bounded on every interval.
    """
    if not depends(expr, (z,)):
        return 0 if expr.is_real is not False else None
    if expr == z:
        return 1
    if isinstance(expr, (sp.Add, sp.Mul, *_LINEAR)):
        found = [growth(a, z) for a in expr.args]
        if None in found:
            return None
        known = [k for k in found if k is not None]
        return min(sum(known), EXPONENTIAL) if isinstance(expr, sp.Mul) else max(known)
    if isinstance(expr, _BOUNDED):
        return None if growth(expr.args[0], z) is None else 0
    if isinstance(expr, _EXPONENTIAL):
        inside = growth(expr.args[0], z)
        return None if inside is None or inside > 1 else EXPONENTIAL if inside else 0
    if isinstance(expr, sp.log):
        inside = growth(expr.args[0], z)
        return 1 if inside is not None and _above_zero(expr.args[0]) else None
    if isinstance(expr, sp.Pow):
        return _growth_of_power(expr, z)
    if isinstance(expr, sp.Piecewise):
        found = [growth(e, z) for e, _ in expr.args]
        return None if None in found else max(k for k in found if k is not None)
    return None


def _growth_of_power(expr: sp.Pow, z: sp.Symbol) -> int | None:
    inside = growth(expr.base, z)
    if inside is None or not expr.exp.is_Rational:
        return None
    if expr.exp.is_Integer and expr.exp.is_positive:
        return min(inside * int(expr.exp), EXPONENTIAL)
    if not _above_zero(expr.base):
        return None
    return 0 if expr.exp.is_negative else int(sp.ceiling(inside * expr.exp))


def _above_zero(expr: sp.Expr) -> bool:
    """Whether a sum is visibly at least a positive number."""
    constant, rest = expr.as_coeff_Add()
    return bool(constant.is_positive and rest.is_nonnegative)


@lru_cache(maxsize=2048)
def check(f: sp.Expr, z: sp.Symbol, variance: sp.Expr | None = None) -> None:
    """Raise Divergent if E f(z), z ~ N(0, variance), is seen not to exist; None: any variance."""
    if growth(f, z) is not None or f.free_symbols != {z} or size(f, LARGEST) == LARGEST:
        return
    _require_finite(f)
    try:
        _Function(f, z).check(variance)
    except NoProgram:
        return


@lru_cache(maxsize=2048)
def require_real(f: sp.Expr, z: sp.Symbol) -> None:
    """Raise NotReal if f(z) is seen not to be real somewhere on the line; its parameters being numbers."""
    if growth(f, z) is not None or f.free_symbols != {z} or size(f, LARGEST) == LARGEST:
        return
    _require_finite(f)
    try:
        _Function(f, z).real(None)
    except NoProgram:
        return


def _require_finite(f: sp.Expr) -> None:
    if f.has(sp.zoo, sp.oo, -sp.oo, sp.nan):
        raise Divergent(
            "the function is infinite on part of the line",
            where=_shown(f),
            instead="a function that is finite on the whole line",
        )


def too_steep(f: sp.Expr, z: sp.Symbol) -> Callable[[float], None] | None:
    """A check of a variance that raises Divergent where f outgrows the density; None if f never does."""
    if f.free_symbols != {z} or growth(f, z) is not None or size(f, LARGEST) == LARGEST:
        return None
    try:
        return _Function(f, z).decays
    except NoProgram:
        return None


def tilt(f: sp.Expr, z: sp.Symbol) -> tuple[sp.Expr, sp.Expr]:
    """a and g of f = exp(a z^2) g, a a positive number and no such factor left in g; else 0 and f."""
    growths = [p for p in sp.Mul.make_args(f) if isinstance(p, sp.exp) and p.args[0].is_polynomial(z)]
    exponent = sp.expand(sp.Add(*[p.args[0] for p in growths]))
    a = exponent.coeff(z, 2)
    if not (a.is_number and a.is_positive) or sp.degree(exponent, z) != 2:
        return sp.S.Zero, f
    rest = [p for p in sp.Mul.make_args(f) if p not in growths]
    return a, sp.Mul(*rest, sp.exp(exponent - a * z**2))


class _Function:
    """One function of one variable, and its numbers."""

    def __init__(self, f: sp.Expr, z: sp.Symbol) -> None:
        self.f, self.z = f, z
        self.exact = mp_function(f, (z,))
        growth_rate, self.calm = tilt(f, z)
        self.rate = float(growth_rate)

    def check(self, variance: sp.Expr | None) -> None:
        q = float(variance) if variance is not None and variance.is_number else None
        self.real(q)
        for place in self.poles(q):
            self.integrable(place)
        self.decays(q)

    def real(self, q: float | None) -> None:
        points = _samples(q)
        with np.errstate(all="ignore"):
            values = np.broadcast_to(_numeric(self.f, self.z)(points), points.shape)
        lost = points[~np.isfinite(values)]
        for x in lost[np.argsort(np.abs(lost), kind="stable")][:8]:
            if self.exact(x) is None:
                raise NotReal(
                    "the function is not real and finite on the whole line",
                    where=_shown(self.f),
                    why=f"it has no real value at {x:.4g}, and a Gaussian variable takes every value",
                    instead="a function that is real and finite on the whole line",
                )

    def poles(self, q: float | None) -> list[Any]:
        """Where a denominator of f is zero."""
        parts = sorted(set(_denominators(self.f, self.z)), key=sp.default_sort_key)[:MOST_POLES]
        return [root for part in parts for root in zeros(part, self.z, q)]

    def integrable(self, place: Any) -> None:
        """Refuse |f| ~ |z - place|^-p with p >= 1."""
        import mpmath as mp

        for side in (1, -1):
            with mp.workdps(60):
                steps = [mp.mpf(10) ** -k for k in (12, 16, 20)]
                sizes = [self.exact(place + side * h, 60) for h in steps]
                if any(s is None or s == 0 for s in sizes):
                    continue
                logs = [mp.log(abs(s)) for s in sizes]
                powers = [(b - a) / (4 * mp.log(10)) for a, b in pairwise(logs)]
            if min(powers) > 0.999:
                raise Divergent(
                    "the expectation does not exist",
                    where=_shown(self.f),
                    why=f"the function grows like |x - x0|^-{float(powers[-1]):.3g} at x0 = {float(place):.4g}",
                    instead="a function without poles",
                )

    def decays(self, q: float | None) -> None:
        """Refuse growth that the density exp(-z^2 / 2q) does not outweigh."""
        if q and 0 < 2 * self.rate * q < 1:
            left = q / (1 - 2 * self.rate * q)
            return None if growth(self.calm, self.z) else _Function(self.calm, self.z).decays(left)
        sigma, at = float(np.sqrt(q)) if q else 1.0, np.array(_FAR)
        for logs in (self.sizes(side * sigma * at) for side in (1, -1)):
            where = f" at q = {q:.4g}" if q else ""
            if _outgrows(logs, at, q is not None):
                raise Divergent(
                    f"the expectation is infinite{where}",
                    where=_shown(self.f),
                    why="the function grows faster than the Gaussian density decays",
                    instead="a smaller variance, or a function of slower growth",
                )
            if q and FAINT < logs[REACH] - at[REACH] ** 2 / 2 < np.inf:
                raise NoFormula(
                    f"the integral is out of reach of quadrature{where}",
                    where=_shown(self.f),
                    why=f"what lies beyond {at[REACH]:g} standard deviations counts",
                    instead="a smaller variance, or a function of slower growth",
                )

    def sizes(self, points: Array) -> Array:
        """log|f| at points; -inf where f is zero or not finite."""
        import mpmath as mp

        values = (self.exact(x) for x in points)
        return np.array([-np.inf if v is None or v == 0 else float(mp.log(abs(v))) for v in values])


def _outgrows(logs: Array, at: Array, known: bool) -> bool:
    """Whether log|f| - at^2/2 does not fall (``known`` variance), or log|f| / at^2 grows without end."""
    if not np.all(np.isfinite(logs)):
        return False
    if known:
        left = logs - at**2 / 2
        return bool(left[-1] > left[-2] - 1.0 and left[-1] > -40.0)
    ratio = logs / at**2
    return bool(np.all(np.diff(ratio) > 0) and ratio[-1] > 2 * ratio[2] > 0 and ratio[-1] > 1)


def _shown(f: sp.Expr) -> str:
    if size(f, 60) == 60:
        return "the function"
    return str(f.xreplace({s: sp.Symbol("x") for s in f.free_symbols}))[:100]


def _numeric(f: sp.Expr, z: sp.Symbol) -> Any:
    from varflow.laws.numeric import vectorized

    return vectorized(f, (z,), real=True)


def _samples(q: float | None) -> Array:
    """Irrational points of the line, dense near 0, as far as the density reaches."""
    reach = max(13.0 * (float(np.sqrt(q)) if q else 1.0), 10.0)
    close = np.geomspace(1e-5 * reach, reach, 240) * 1.0000137
    even = (np.arange(260) + 0.5137) * reach / 260
    half = np.concatenate([close, even])
    return np.sort(np.concatenate([-half * 0.9973, half]))


_POLES = {sp.tan: sp.cos, sp.sec: sp.cos, sp.cot: sp.sin, sp.csc: sp.sin, sp.coth: sp.sinh}


def _denominators(f: sp.Expr, z: sp.Symbol) -> Iterator[sp.Expr]:
    """What is zero where f may be infinite."""
    for part in sp.preorder_traversal(f):
        if not isinstance(part, sp.Expr) or not depends(part, (z,)):
            continue
        if isinstance(part, sp.Pow) and not part.exp.is_nonnegative and part.base != sp.E:
            yield part.base
        elif part.func in _POLES:
            yield _POLES[part.func](part.args[0])
        elif isinstance(part, (sp.gamma, sp.polygamma, sp.loggamma)):
            yield sp.sin(sp.pi * part.args[-1])


def _brackets(points: Array, values: Array) -> list[tuple[float, float]]:
    """Intervals where values change sign or come close to zero, nearest to the origin first."""
    good = np.isfinite(values)
    x, y = points[good], values[good]
    if len(x) < 3:
        return []
    change = np.flatnonzero(np.sign(y[1:]) * np.sign(y[:-1]) <= 0)
    pairs = [(x[k], x[k + 1]) for k in change]
    size_ = np.abs(y)
    left, here, right = size_[:-2], size_[1:-1], size_[2:]
    deep = (here < np.maximum(left, right) / 2) | (here < 1e-3 * np.median(size_))
    dip = np.flatnonzero((here <= np.minimum(left, right)) & deep) + 1
    pairs += [(x[k - 1], x[k + 1]) for k in dip]
    return sorted({(float(a), float(b)) for a, b in pairs}, key=lambda p: abs(p[0] + p[1]))


@lru_cache(maxsize=1024)
def zeros(below: sp.Expr, z: sp.Symbol, q: float | None) -> tuple[Any, ...]:
    """The zeros of a function that are nearest to the origin."""
    points = np.sort(np.concatenate([_samples(q), _samples(q) * 0.0173]))
    with np.errstate(all="ignore"):
        values = np.broadcast_to(_numeric(below, z)(points), points.shape)
    exact = mp_function(below, (z,))
    brackets = _brackets(points, np.asarray(values, dtype=float))[:MOST_POLES]
    found = (_root(exact, a, b) for a, b in brackets)
    return tuple(root for root in found if root is not None)


def _root(exact: Any, a: float, b: float) -> Any:
    """A zero of the function in [a, b] to fifty digits, else None."""
    import mpmath as mp

    with mp.workdps(60):
        low, high = mp.mpf(a), mp.mpf(b)
        first, last = exact(low, 60), exact(high, 60)
        if first is None or last is None:
            return None
        if first * last > 0:
            return _double_root(exact, low, high)
        return _crossing(exact, low, high, first, last)


def _crossing(exact: Any, low: Any, high: Any, first: Any, last: Any) -> Any:
    """Illinois iteration (Dowell and Jarratt 1971), bisection where it stalls."""
    import mpmath as mp

    for k in range(240):
        place = high - last * (high - low) / (last - first) if k % 4 else (low + high) / 2
        value = exact(place, 60)
        if value is None or value == 0 or abs(high - low) < mp.mpf(10) ** -50:
            break
        if value * last < 0:
            low, first = high, last
        else:
            first /= 2
        high, last = place, value
    place = mp.mpf(0) if abs(place) < mp.mpf(10) ** -30 else place
    value = exact(place, 60)
    return place if value is None or abs(value) < mp.mpf(10) ** -20 else None


def _double_root(exact: Any, low: Any, high: Any) -> Any:
    """Where |g| has its minimum in the interval, if that is zero."""
    import mpmath as mp

    golden = (mp.sqrt(5) - 1) / 2
    for _ in range(120):
        a, b = high - golden * (high - low), low + golden * (high - low)
        first, second = exact(a, 60), exact(b, 60)
        if first is None or second is None:
            return None
        low, high = (low, b) if abs(first) < abs(second) else (a, high)
    place = (low + high) / 2
    if abs(place) < mp.mpf(10) ** -15:
        place = mp.mpf(0)
    value = exact(place, 60)
    return place if value is not None and abs(value) < mp.mpf(10) ** -20 else None
