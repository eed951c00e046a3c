"""Numbers: Gaussian integrals by adaptive Gauss-Kronrod panels, and formulas that contain them.

Panels are graded around every kink and every scale that the integrand shows (the roots of its affine
arguments), then halved where the 10- and the 21-point rule disagree. All panels of all rows (parameter
points, outer nodes) are evaluated together. Rule: QUADPACK qk21 (Piessens et al. 1983).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import sympy as sp

from varflow.laws.algebra import affine, affine_parts, ordered
from varflow.laws.integral import GaussianExpectation
from varflow.laws.numeric import Array, broadcast, vectorized, with_enough_digits

TOLERANCE = 2e-12
REACH = 12.0
LEVELS = 34
MAX_PANELS = 60_000
TINY = 1e-100
_HALF_NODES = np.array(
    [
        0.995657163025808080735527280689003,
        0.973906528517171720077964012084452,
        0.930157491355708226001207180059508,
        0.865063366688984510732096688423493,
        0.780817726586416897063717578345042,
        0.679409568299024406234327365114874,
        0.562757134668604683339000099272694,
        0.433395394129247190799265943165784,
        0.294392862701460198131126603103866,
        0.148874338981631210884826001129720,
        0.0,
    ]
)
_HALF_KRONROD = np.array(
    [
        0.011694638867371874278064396062192,
        0.032558162307964727478818972459390,
        0.054755896574351996031381300244580,
        0.075039674810919952767043140916190,
        0.093125454583697605535065465083366,
        0.109387158802297641899210590325805,
        0.123491976262065851077958109585166,
        0.134709217311473325928054001771707,
        0.142775938577060080797094273138717,
        0.147739104901338491374841515972068,
        0.149445554002916905664936468389821,
    ]
)
_HALF_GAUSS = np.array(
    [
        0.066671344308688137593568809893332,
        0.149451349150580593145863396957658,
        0.219086362515982043995534934228163,
        0.269266719309996355091226921569473,
        0.295524224714752870173815619188769,
    ]
)
NODES = np.concatenate([-_HALF_NODES, _HALF_NODES[-2::-1]])
KRONROD = np.concatenate([_HALF_KRONROD, _HALF_KRONROD[-2::-1]])
GAUSS = np.zeros(21)
GAUSS[1:10:2] = _HALF_GAUSS
GAUSS[11:20:2] = _HALF_GAUSS[::-1]

OUTER_PANELS = 150
Rows = Callable[[Any, Array], tuple[Array, Array]]
"""f(row indices [n], points [n, 21]) -> values and magnitudes [n, 21]; rounding is relative to the latter."""


def integrate_rows(
    f: Rows, breaks: Array, weight: Array | None = None, most: int = MAX_PANELS
) -> tuple[Array, Array]:
    """For each row, the integrals of f and its magnitude from the first to the last sorted break.

    ``weight``: how much a row counts in what the caller sums; light rows need fewer digits.
    """
    rows = breaks.shape[0]
    weight = np.zeros(rows) if weight is None else np.maximum(weight, 1e-290)
    row = np.repeat(np.arange(rows), breaks.shape[1] - 1)
    a, b = breaks[:, :-1].ravel(), breaks[:, 1:].ravel()
    total, size = np.zeros(rows), np.zeros(rows)
    wide = b > a
    row, a, b = row[wide], a[wide], b[wide]
    for level in range(LEVELS):
        if len(a) == 0:
            break
        value, mass, error = _panels(f, row, a, b)
        scale = size + np.bincount(row, mass, rows)
        light = np.where(weight > 0, 0.01 * np.max(weight * scale) / weight, 0.0)
        bad = error > TOLERANCE * (np.maximum(0.05 * scale, light)[row] + 1e-300)
        bad &= (b - a) > 1e-13 * (np.abs(a) + np.abs(b))
        bad &= (level < LEVELS - 1) & (np.count_nonzero(bad) < most)
        total += np.bincount(row[~bad], value[~bad], rows)
        size += np.bincount(row[~bad], mass[~bad], rows)
        middle = (a[bad] + b[bad]) / 2
        row = np.concatenate([row[bad], row[bad]])
        a, b = np.concatenate([a[bad], middle]), np.concatenate([middle, b[bad]])
    return total, size


def _panels(f: Rows, row: Any, a: Array, b: Array) -> tuple[Array, Array, Array]:
    half, centre = (b - a) / 2, (a + b) / 2
    values, magnitudes = f(row, centre[:, None] + half[:, None] * NODES)
    value = half * (values @ KRONROD)
    mass = half * (magnitudes @ KRONROD)
    raw = np.abs(value - half * (values @ GAUSS))
    floor = np.maximum(mass, 1e-300)
    error = np.where(raw > 0, floor * np.minimum(1.0, (200 * raw / floor) ** 1.5), 0.0)
    return value, mass, np.where(error < 1e-15 * floor, 0.0, error)


@dataclass(frozen=True)
class Integral:
    """A GaussianExpectation made ready for numbers: its integrand, covariances and affine arguments."""

    parameters: tuple[sp.Symbol, ...]
    integrand: Callable[..., Any]
    covariance: tuple[Callable[..., Any], ...]
    arguments: tuple[tuple[Callable[..., Any], ...], ...]

    def __call__(self, *values: Any) -> Any:
        """Its value at parameter points (arrays broadcast)."""
        arrays = broadcast(values)
        shape = arrays[0].shape if arrays else ()
        flat = [v.ravel() for v in arrays]
        rows = int(np.prod(shape)) if shape else 1
        points, back = _unique(flat, rows)
        law = [_column(c(*points), points, rows) for c in self.covariance]
        rule = _one if len(law) == 1 else _two
        with np.errstate(all="ignore"):
            result = rule(self, points, law)
        return result[back].reshape(shape) if shape else float(result[0])


def _unique(flat: list[Array], rows: int) -> tuple[list[Array], Any]:
    if not flat:
        return [], np.zeros(rows, dtype=int)
    table, back = np.unique(np.stack(flat, axis=1), axis=0, return_inverse=True)
    return [np.ascontiguousarray(c) for c in table.T], np.ravel(back)


def _column(value: Any, points: list[Array], rows: int) -> Array:
    n = len(points[0]) if points else 1
    return np.array(np.broadcast_to(np.asarray(value, dtype=float), (n,)))


@lru_cache(maxsize=1024)
def prepare(expectation: GaussianExpectation) -> Integral:
    """Compile the parts of an expectation once."""
    parameters = tuple(ordered(expectation.free_symbols))
    zs = expectation.variables
    arguments = []
    for form in _affine_arguments(expectation.integrand, zs):
        found = affine(form, zs)
        if found is not None:
            parts = [found[0].get(z, sp.S.Zero) for z in zs] + [found[1]]
            arguments.append(tuple(vectorized(p, parameters) for p in parts))
    return Integral(
        parameters,
        vectorized(expectation.integrand, (*zs, *parameters)),
        tuple(compile_formula(c, parameters) for c in expectation.covariance),
        tuple(arguments),
    )


def _affine_arguments(body: sp.Expr, zs: Sequence[sp.Symbol]) -> list[sp.Expr]:
    names = frozenset(zs)
    whole = [body]
    for node in body.atoms(sp.Max, sp.Min):
        for first, second in combinations(node.args, 2):
            whole.append(first - second)
    found = {p.scale * p.form + p.constant for part in whole for p in affine_parts(part, names)}
    return sorted({sp.expand(form) for form in found}, key=sp.default_sort_key)


_GRADES = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 32.0])
_SIGMAS = np.array([0.0, 1 / 16, 0.25, 1.0, 2.0, 3.5, 5.0, 7.0, 9.0, REACH])


def _graded(centre: Array, scale: Array, grades: Array = _GRADES) -> Array:
    offsets = np.concatenate([-grades[:0:-1], grades])
    return np.asarray(centre[:, None] + scale[:, None] * offsets)


def _mesh(mean: Array, sigma: Array, centres: list[tuple[Array, Array]]) -> Array:
    """Sorted breaks per row: the Gaussian's own, and those around each centre, within reach."""
    lo, hi = mean - REACH * sigma, mean + REACH * sigma
    parts = [_graded(mean, sigma, _SIGMAS)]
    for centre, scale in centres:
        good = np.isfinite(centre) & np.isfinite(scale)
        parts.append(_graded(np.where(good, centre, mean), np.where(good, scale, 0.0)))
    breaks: Array = np.clip(np.concatenate(parts, axis=1), lo[:, None], hi[:, None])
    breaks.sort(axis=1)
    return np.asarray(breaks)


def _evaluated(self: Integral, points: list[Array], *z: Array, row: Any) -> Array:
    extra = (slice(None),) + (None,) * (z[0].ndim - 1)
    values = self.integrand(*z, *[p[row][extra] for p in points])
    return np.asarray(np.broadcast_to(np.asarray(values, dtype=float), z[0].shape))


def _with_size(values: Array) -> tuple[Array, Array]:
    return values, np.abs(values)


def _density(x: Array) -> Array:
    return np.asarray(np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi))


def _one(self: Integral, points: list[Array], law: list[Array]) -> Array:
    q = law[0]
    sigma = np.sqrt(np.maximum(q, TINY))
    centres = []
    for slope, constant in self.arguments:
        a = _column(slope(*points), points, len(q))
        centres.append((-_column(constant(*points), points, len(q)) / a, 1 / np.abs(a)))
    breaks = _mesh(np.zeros_like(q), sigma, centres)

    def f(row: Any, z: Array) -> tuple[Array, Array]:
        s = sigma[row][:, None]
        return _with_size(_evaluated(self, points, z, row=row) * _density(z / s) / s)

    return integrate_rows(f, breaks)[0]


def _two(self: Integral, points: list[Array], law: list[Array]) -> Array:
    """The outer variable z_1, then z_2 given z_1; a vanishing conditional variance is one integral."""
    q1, c, q2 = (np.asarray(x) for x in law)
    q1 = np.maximum(q1, TINY)
    slope = c / q1
    left = q2 - c * slope
    flat = left <= 1e-13 * np.maximum(q2, TINY)
    result = np.empty_like(q1)
    for kind, rule in ((flat, _on_line), (~flat, _nested)):
        if kind.any():
            sub = [p[kind] for p in points]
            result[kind] = rule(self, sub, q1[kind], slope[kind], np.maximum(left[kind], 0.0))
    return result


def _arguments(self: Integral, points: list[Array], n: int) -> list[tuple[Array, Array, Array]]:
    return [
        (
            _column(a1(*points), points, n),
            _column(a2(*points), points, n),
            _column(b(*points), points, n),
        )
        for a1, a2, b in self.arguments
    ]


def _on_line(self: Integral, points: list[Array], q1: Array, slope: Array, left: Array) -> Array:
    sigma = np.sqrt(q1)
    centres = []
    for a1, a2, b in _arguments(self, points, len(q1)):
        along = a1 + a2 * slope
        centres.append((-b / along, 1 / np.abs(along)))
    breaks = _mesh(np.zeros_like(q1), sigma, centres)

    def f(row: Any, z: Array) -> tuple[Array, Array]:
        s = sigma[row][:, None]
        second = slope[row][:, None] * z
        return _with_size(_evaluated(self, points, z, second, row=row) * _density(z / s) / s)

    return integrate_rows(f, breaks)[0]


def _nested(self: Integral, points: list[Array], q1: Array, slope: Array, left: Array) -> Array:
    sigma, spread = np.sqrt(q1), np.sqrt(left)
    arguments = _arguments(self, points, len(q1))
    centres = []
    for a1, a2, b in arguments:
        along = a1 + a2 * slope
        centres.append((-b / a1, np.where(a2 == 0, 1 / np.abs(a1), np.nan)))
        near = np.abs(a2) * spread / np.abs(along)
        centres.append((-b / along, np.where(a2 == 0, np.nan, near)))
        centres.append((-b / along, np.where(a2 == 0, np.nan, near + 1 / np.abs(along))))
    breaks = _mesh(np.zeros_like(q1), sigma, centres)

    def outer(row: Any, z: Array) -> tuple[Array, Array]:
        weight = _density(z / sigma[row][:, None]) / sigma[row][:, None]
        value, size = _inner(self, points, arguments, row, z, (q1, slope, spread))
        return value * weight, size * weight

    def single(k: int) -> Array:
        def shifted(row: Any, z: Array) -> tuple[Array, Array]:
            return outer(row + k, z)

        return integrate_rows(shifted, breaks[k : k + 1], most=OUTER_PANELS)[0]

    return np.concatenate([single(k) for k in range(len(q1))])


def _inner(
    self: Integral,
    points: list[Array],
    arguments: list[tuple[Array, Array, Array]],
    row: Any,
    z: Array,
    law: tuple[Array, Array, Array],
) -> tuple[Array, Array]:
    """E over z_2 given z_1 = z, for every outer node."""
    q1, slope, spread = law
    owner = np.repeat(row, z.shape[1])
    first = z.ravel()
    mean, s = slope[owner] * first, spread[owner]
    centres = [
        (-(b[owner] + a1[owner] * first) / a2[owner], 1 / np.abs(a2[owner]))
        for a1, a2, b in arguments
        if np.any(a2 != 0)
    ]
    breaks = _mesh(mean, s, centres)

    def f(node: Any, second: Array) -> tuple[Array, Array]:
        z1 = np.broadcast_to(first[node][:, None], second.shape)
        weight = _density((second - mean[node][:, None]) / s[node][:, None]) / s[node][:, None]
        return _with_size(_evaluated(self, points, z1, second, row=owner[node]) * weight)

    importance = _density(first / np.sqrt(q1[owner]))
    value, size = integrate_rows(f, breaks, importance)
    return value.reshape(z.shape), size.reshape(z.shape)


def evaluate(
    expectation: GaussianExpectation, values: Mapping[sp.Symbol, float] | None = None
) -> float:
    """The number of an expectation, its parameters given."""
    ready = prepare(expectation)
    table = values or {}
    return float(ready(*[float(table[p]) for p in ready.parameters]))


@lru_cache(maxsize=1024)
def _compiled(expr: sp.Expr, symbols: tuple[sp.Symbol, ...]) -> Callable[..., Any]:
    found = sorted(expr.atoms(GaussianExpectation), key=sp.default_sort_key)
    inner = {g for big in found for g in big.atoms(GaussianExpectation) if g != big}
    integrals = [g for g in found if g not in inner]
    names = tuple(sp.Dummy(f"I{k}", real=True) for k in range(len(integrals)))
    outer = expr.xreplace(dict(zip(integrals, names, strict=True)))
    function = with_enough_digits(outer, (*symbols, *names))
    parts = [(prepare(g), [symbols.index(p) for p in prepare(g).parameters]) for g in integrals]

    def plain(values: list[Array]) -> Array:
        numbers = [part(*[values[i] for i in index]) for part, index in parts]
        with np.errstate(all="ignore"):
            result = np.asarray(function(*values, *numbers))
        result = result.real if np.iscomplexobj(result) else result
        shape = values[0].shape if values else ()
        return np.array(np.broadcast_to(result, shape), dtype=float)

    return _at_zero(plain, [bool(s.is_positive) for s in symbols])


def _at_zero(plain: Callable[[list[Array]], Array], positive: list[bool]) -> Callable[..., Any]:
    """Where the formula is 0/0 at a vanishing variance, its limit."""

    def formula(*values: Any) -> Any:
        arrays = broadcast(values)
        result = plain(arrays)
        lost = ~np.isfinite(result)
        if lost.any():
            near = [
                np.where((a[lost] == 0) & p, TINY, a[lost])
                for a, p in zip(arrays, positive, strict=True)
            ]
            result[lost] = plain(near)
        return result if result.shape else float(result)

    return formula


def compile_formula(expr: sp.Expr, symbols: Sequence[sp.Symbol]) -> Callable[..., Any]:
    """The formula as a function of floats or numpy arrays (broadcast), integrals included.

    Arguments in the order of ``symbols``; a float for scalars, else float64 of the common shape.
    """
    unknown = expr.free_symbols - set(symbols)
    if unknown:
        raise ValueError(f"no value for {sorted(map(str, unknown))}")
    return _compiled(expr, tuple(symbols))
