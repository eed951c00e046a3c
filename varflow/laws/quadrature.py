"""Numbers: Gaussian integrals by adaptive Gauss-Kronrod panels, and formulas that contain them.

Panels are graded around every kink and every scale that the integrand shows (the roots of its affine
arguments), then halved where the 10- and the 21-point rule disagree. All panels of all rows (parameter
points, outer nodes) are evaluated together. Integrals run as far out as the integrand lives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import sympy as sp

from varflow.errors import UnsupportedError, VarflowError
from varflow.laws.algebra import affine, affine_parts, ordered, size
from varflow.laws.distinct import different_rows
from varflow.laws.domain import Divergent, NotReal, tilt, too_steep
from varflow.laws.integral import GaussianExpectation
from varflow.laws.kronrod import MAX_PANELS, integrate_rows
from varflow.laws.meshes import Overflow, reaches
from varflow.laws.numeric import (
    Array,
    broadcast,
    vectorized,
    with_enough_digits,
)
from varflow.laws.separable import Sides, evaluated, sides
from varflow.laws.softmax import SoftmaxMoment, with_softmax

TINY = 1e-100
OUTER_PANELS = 4000
DIRECTIONS = 8
TOGETHER = 48
"""Points at which a double integral is found together."""
KEPT = 4096
LEAST_PANELS, WORK = 2000, 4_000_000
Values = Callable[[Any, Array], Array]
"""f(row of each line [n], points [n, m]) -> values [n, m]."""


@dataclass(frozen=True)
class Integral:
    """A GaussianExpectation made ready for numbers: its integrand, covariances and affine arguments."""

    parameters: tuple[sp.Symbol, ...]
    integrand: Callable[..., Any]
    covariance: tuple[Callable[..., Any], ...]
    arguments: tuple[tuple[Callable[..., Any], ...], ...]
    too_steep: Callable[[float], None] | None = None
    sides: Sides | None = None
    most: int = MAX_PANELS
    """Panels of one integral: fewer for a long integrand, so that all take about the same time."""
    calm: tuple[float, Callable[..., Any]] | None = None
    """a and g, for an integrand exp(a z^2) g: E of it is E g at variance q / (1 - 2 a q), over sqrt(1 - 2 a q)."""
    known: dict[tuple[float, ...], float | VarflowError] = field(default_factory=dict, compare=False)

    def __call__(self, *values: Any) -> Any:
        """Its value at parameter points (arrays broadcast); nan where the covariances are impossible.

        Raises Divergent, NotReal, UnsupportedError where there is no number.
        """
        arrays = broadcast(values)
        if arrays and arrays[0].shape:
            return self._on_grid(arrays)
        return self._at_point(tuple(float(v) for v in arrays))

    def _at_point(self, point: tuple[float, ...]) -> float:
        """One number, or its refusal, found once."""
        if point not in self.known:
            if len(self.known) >= KEPT:
                self.known.clear()
            try:
                self.known[point] = self._on_grid([np.asarray(v) for v in point])
            except VarflowError as error:
                self.known[point] = error
        found = self.known[point]
        if isinstance(found, VarflowError):
            raise found.with_traceback(None)
        return found

    def _on_grid(self, arrays: list[Array]) -> Any:
        shape = arrays[0].shape if arrays else ()
        flat = [v.ravel() for v in arrays]
        rows = int(np.prod(shape)) if shape else 1
        points, back = _unique(flat, rows)
        law = [_column(c(*points), points, rows) for c in self.covariance]
        if self.too_steep is not None:
            self.too_steep(float(np.max(law[0])))
        with np.errstate(all="ignore"):
            result = self._of_one(points, law) if len(law) == 1 else self._of_two(points, law)
        return result[back].reshape(shape) if shape else float(result[0])

    def _of_one(self, points: list[Array], law: list[Array]) -> Array:
        if self.calm is None or np.any(2 * self.calm[0] * law[0] >= 1):
            return _one(self, points, law)
        left = 1 - 2 * self.calm[0] * law[0]
        rest = replace(self, integrand=self.calm[1], calm=None)
        return _one(rest, points, [law[0] / left]) / np.sqrt(left)

    def _of_two(self, points: list[Array], law: list[Array]) -> Array:
        result = np.full(len(law[0]), np.nan)
        left = law[1] ** 2 <= law[0] * law[2] * (1 + 1e-6) + TINY
        if self.sides is not None:
            law_left = [np.asarray(x[left]) for x in law]
            values, sure = evaluated(self.sides, law_left)
            result[left] = values
            left[left] = ~sure
        if left.any():
            result[left] = _two(self, [p[left] for p in points], [x[left] for x in law])
        return result


def _unique(flat: list[Array], rows: int) -> tuple[list[Array], Any]:
    if not flat:
        return [], np.zeros(rows, dtype=int)
    first, back = different_rows(np.stack(flat, axis=1))
    return [np.ascontiguousarray(c[first]) for c in flat], back


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
        vectorized(expectation.integrand, (*zs, *parameters), real=True),
        tuple(compile_formula(c, parameters) for c in expectation.covariance),
        tuple(arguments),
        too_steep(expectation.integrand, zs[0]) if len(zs) == 1 else None,
        sides(expectation.integrand, zs),
        max(LEAST_PANELS, min(MAX_PANELS, WORK // size(expectation.integrand))),
        _calm(expectation.integrand, zs, parameters),
    )


def _calm(
    body: sp.Expr, zs: Sequence[sp.Symbol], parameters: tuple[sp.Symbol, ...]
) -> tuple[float, Callable[..., Any]] | None:
    rate, rest = tilt(body, zs[0]) if len(zs) == 1 else (sp.S.Zero, body)
    return None if rate == 0 else (float(rate), vectorized(rest, (*zs, *parameters), real=True))


def _affine_arguments(body: sp.Expr, zs: Sequence[sp.Symbol]) -> list[sp.Expr]:
    names = frozenset(zs)
    whole = [body]
    for node in body.atoms(sp.Max, sp.Min):
        for first, second in combinations(node.args, 2):
            whole.append(first - second)
    found = {p.scale * p.form + p.constant for part in whole for p in affine_parts(part, names)}
    return sorted({sp.expand(form) for form in found}, key=sp.default_sort_key)


_GRADES = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 32.0])
_SIGMAS = np.array([0.0, 1 / 16, 0.25, 1.0, 2.0, 3.5, 5.0, 7.0, 9.0, 12.0])
_FAR = np.array([15.0, 18.0, 21.0, 24.0, 30.0, 36.0, 42.0, 48.0])


def _graded(centre: Array, scale: Array, grades: Array = _GRADES) -> Array:
    offsets = np.concatenate([-grades[:0:-1], grades])
    return np.asarray(centre[:, None] + scale[:, None] * offsets)


def _mesh(mean: Array, sigma: Array, centres: list[tuple[Array, Array]], reach: Array) -> Array:
    """Sorted breaks per row: the Gaussian's own, and those around each centre, within reach."""
    lo, hi = mean - reach * sigma, mean + reach * sigma
    far = _FAR[np.max(reach) >= _FAR] if len(reach) else _FAR[:0]
    parts = [_graded(mean, sigma, np.concatenate([_SIGMAS, far]))]
    for centre, scale in centres:
        good = np.isfinite(centre) & np.isfinite(scale)
        parts.append(_graded(np.where(good, centre, mean), np.where(good, scale, 0.0)))
    breaks: Array = np.clip(np.concatenate(parts, axis=1), lo[:, None], hi[:, None])
    breaks.sort(axis=1)
    return np.asarray(breaks)


def _evaluated(self: Integral, points: list[Array], *z: Array, row: Any) -> Array:
    extra = (slice(None),) + (None,) * (z[0].ndim - 1)
    values = np.asarray(self.integrand(*z, *[p[row][extra] for p in points]))
    if np.iscomplexobj(values) or np.isnan(values).any():
        _refuse(np.broadcast_to(values, z[0].shape), z)
    return np.asarray(np.broadcast_to(values.real.astype(float), z[0].shape))


def _refuse(values: Any, z: tuple[Array, ...]) -> None:
    lost = np.isnan(values) | (np.imag(values) != 0)
    if lost.any():
        first = np.unravel_index(np.argmax(lost), lost.shape)
        place = ", ".join(f"{float(x[first]):.6g}" for x in z)
        raise NotReal(
            "an integrand is not real on the whole line",
            why=f"it has no real value at {place}, and a Gaussian variable takes every value",
            instead="a function that is real and finite everywhere",
        )


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
    return _along(lambda row, z: _evaluated(self, points, z, row=row), sigma, centres, self.most)


def _along(
    values: Values, sigma: Array, centres: list[tuple[Array, Array]], most: int
) -> Array:
    """E values(row, z) with z ~ N(0, sigma^2), for every row."""
    overflow = Overflow(len(sigma))
    reach = reaches(lambda row, t: values(row, sigma[row][:, None] * t), 2, overflow)
    _require_finite(values, sigma, overflow)

    def f(row: Any, z: Array) -> tuple[Array, Array]:
        s = sigma[row][:, None]
        heights = values(row, z) * _density(z / s) / s
        return _with_size(overflow.cleared(row, heights))

    return overflow.applied(
        integrate_rows(f, _mesh(np.zeros_like(sigma), sigma, centres, reach), most=most)[0]
    )


def _require_finite(values: Values, sigma: Array, overflow: Overflow) -> None:
    """Raise Divergent where f grows like exp(z^2) or faster; what only overflows stays inf."""
    for row in np.flatnonzero(overflow.up | overflow.down)[:8]:
        at = np.linspace(1.0, 48.0, 95)
        for side in (sigma[row], -sigma[row]):
            heights = np.abs(values(np.full(2, row), side * np.stack([at, at / 2])))
            good = np.isfinite(heights[0]) & np.all(heights > 0, axis=0)
            logs = np.log(heights[:, good][:, -1:])
            if np.any((logs[0] > 100) & (logs[0] > 3 * logs[1])):
                raise Divergent(
                    "an expectation is infinite",
                    why=f"the function outgrows the density of a Gaussian of variance {sigma[row] ** 2:.6g}",
                    instead="a smaller variance, or a function of slower growth",
                )


def _two(self: Integral, points: list[Array], law: list[Array]) -> Array:
    """The outer variable z_1, then z_2 given z_1; a vanishing conditional variance is one integral."""
    q1, c, q2 = (np.asarray(x) for x in law)
    q1 = np.maximum(q1, TINY)
    slope = c / q1
    left = q2 - c * slope
    flat = left <= 1e-15 * np.maximum(q2, TINY)
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

    def values(row: Any, z: Array) -> Array:
        return _evaluated(self, points, z, slope[row][:, None] * z, row=row)

    return _along(values, sigma, centres, self.most)


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
    reach, overflow = _reach_in_plane(self, points, sigma, (slope, spread))
    breaks = _mesh(np.zeros_like(q1), sigma, centres, reach)

    def outer(row: Any, z: Array) -> tuple[Array, Array]:
        weight = _density(z / sigma[row][:, None]) / sigma[row][:, None]
        value, size = _inner(self, points, arguments, row, z, (q1, slope, spread, reach))
        return value * weight, size * weight

    def some(first: int, count: int) -> Array:
        def shifted(row: Any, z: Array) -> tuple[Array, Array]:
            return outer(row + first, z)

        try:
            return integrate_rows(shifted, breaks[first : first + count], most=OUTER_PANELS * count)[0]
        except UnsupportedError:  # one of them may have taken the others' panels
            if count == 1:
                raise
        return np.concatenate([some(first + k, 1) for k in range(count)])

    starts = range(0, len(q1), TOGETHER)
    return overflow.applied(np.concatenate([some(k, min(TOGETHER, len(q1) - k)) for k in starts]))


def _reach_in_plane(
    self: Integral, points: list[Array], sigma: Array, turn: tuple[Array, Array]
) -> tuple[Array, Overflow]:
    """How far to integrate each row: the farthest of several directions through the origin."""
    slope, spread = turn
    overflow, farthest = Overflow(len(sigma)), np.zeros(len(sigma))
    for angle in np.arange(DIRECTIONS) * np.pi / DIRECTIONS:
        first, second = sigma * np.cos(angle), spread * np.sin(angle)

        def values(row: Any, t: Array, first: Array = first, second: Array = second) -> Array:
            z = first[row][:, None] * t
            other = slope[row][:, None] * z + second[row][:, None] * t
            return _evaluated(self, points, z, other, row=row)

        farthest = np.maximum(farthest, reaches(values, 2, overflow))
        _require_finite(values, np.ones(len(sigma)), overflow)
    return farthest, overflow


def _inner(
    self: Integral,
    points: list[Array],
    arguments: list[tuple[Array, Array, Array]],
    row: Any,
    z: Array,
    law: tuple[Array, Array, Array, Array],
) -> tuple[Array, Array]:
    """E over z_2 given z_1 = z, for every outer node."""
    q1, slope, spread, reach = law
    owner = np.repeat(row, z.shape[1])
    first = z.ravel()
    mean, s = slope[owner] * first, spread[owner]
    centres = [
        (-(b[owner] + a1[owner] * first) / a2[owner], 1 / np.abs(a2[owner]))
        for a1, a2, b in arguments
        if np.any(a2 != 0)
    ]
    breaks = _mesh(mean, s, centres, reach[owner])

    def f(node: Any, second: Array) -> tuple[Array, Array]:
        z1 = np.broadcast_to(first[node][:, None], second.shape)
        weight = _density((second - mean[node][:, None]) / s[node][:, None]) / s[node][:, None]
        values = _evaluated(self, points, z1, second, row=owner[node]) * weight
        return _with_size(np.where(np.isfinite(values), values, 0.0))

    importance = _density(first / np.sqrt(q1[owner]))
    value, size = integrate_rows(f, breaks, importance, group=owner)
    return value.reshape(z.shape), size.reshape(z.shape)


def evaluate(
    expectation: GaussianExpectation, values: Mapping[sp.Symbol, float] | None = None
) -> float:
    """The number of an expectation, its parameters given."""
    table = values or {}
    symbols = tuple(ordered(expectation.free_symbols))
    return float(compile_formula(expectation, symbols)(*[float(table[p]) for p in symbols]))


@lru_cache(maxsize=1024)
def _compiled(expr: sp.Expr, symbols: tuple[sp.Symbol, ...]) -> Callable[..., Any]:
    found = sorted(expr.atoms(GaussianExpectation), key=sp.default_sort_key)
    named = {g: sp.Dummy(f"I{k}", real=True) for k, g in enumerate(found)}
    outer = expr.xreplace(named)
    seen = outer.free_symbols
    integrals = [g for g in found if named[g] in seen]
    function = with_enough_digits(outer, (*symbols, *(named[g] for g in integrals)))
    parts = [_part(g, symbols) for g in integrals]

    def plain(values: list[Array]) -> Array:
        numbers = [part(values) for part in parts]
        with np.errstate(all="ignore"):
            result = np.asarray(function(*values, *numbers))
        result = result.real if np.iscomplexobj(result) else result
        shape = values[0].shape if values else ()
        return np.array(np.broadcast_to(result, shape), dtype=float)

    return _at_zero(plain, [bool(s.is_positive) for s in symbols])


def _part(g: GaussianExpectation, symbols: tuple[sp.Symbol, ...]) -> Callable[[list[Array]], Any]:
    """An expectation as a function of the symbols' values; integrals in its integrand are parameters of it."""
    inside = sorted(g.integrand.atoms(GaussianExpectation, SoftmaxMoment), key=sp.default_sort_key)
    named = {e: sp.Dummy(f"J{k}", real=True) for k, e in enumerate(inside)}
    ready = prepare(GaussianExpectation(g.integrand.xreplace(named), g.variables, g.covariance) if inside else g)
    whole = {name: compile_formula(e, symbols) for e, name in named.items() if name in ready.parameters}
    place = {s: i for i, s in enumerate(symbols)}

    def number(values: list[Array]) -> Any:
        return ready(*[whole[p](*values) if p in whole else values[place[p]] for p in ready.parameters])

    return number


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
    if expr.has(SoftmaxMoment):
        return with_softmax(expr, tuple(symbols), compile_formula)
    return _compiled(expr, tuple(symbols))
