"""Gaussian expectations of arbitrary functions on grids of parameters: numbers, many at a time.

``gaussian_moment`` is E f(mean + sqrt(q) z); ``gaussian_kernel`` is E f(u) g(v) for jointly Gaussian u, v.
Both take a sympy expression in ``symbols.X`` or a callable on numpy arrays, broadcast their parameters, and
aim at 1e-10 of the natural scale sqrt(E f^2 E g^2). One dimension: Gauss-Legendre panels refined where
the Legendre coefficients of the integrand do not decay. Two: Mehler's series, its remainder bounded by
Parseval's identity, where that bound is small enough; else ``rotated`` coordinates.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from varflow.errors import InputError
from varflow.laws.distinct import distinct_rows
from varflow.laws.hermite import SIZES, Coefficients, Collector, grid, mehler, remainder
from varflow.laws.integrand import Function, Integrand, integrand
from varflow.laws.meshes import (
    Line,
    Overflow,
    chunks,
    damped,
    damped_product,
    finite,
    mesh,
    parts,
    reaches,
    uniform,
)
from varflow.laws.panels import Array, Index, integrate, resolved
from varflow.laws.rotated import rotated
from varflow.laws.scales import ROWS, tabulated

__all__ = ["Integrand", "gaussian_kernel", "gaussian_moment"]

ACCEPTED = 1e-13
BLOCK = 16_384
MOMENT_NODES = 32
SCALES = {64: 56, 256: 104, 1024: 200}
"""Standard deviations within an octave from which the coefficients at all others follow."""
WIDTH = 3.0
"""Of panels before refinement, in standard deviations: 24 nodes resolve the density on it."""


def gaussian_moment(f: Function, q: Any, mean: Any = 0.0) -> Array:
    """E f(mean + sqrt(q) z), z ~ N(0, 1); ``q`` >= 0 and ``mean`` broadcast, the result has their shape.

    At q = 0 it is f(mean), at a jump the mean of both sides. inf or -inf where f grows so fast that the
    integral diverges or f overflows within it; nan where it does so in both directions.
    Raises InputError for a negative or infinite parameter, and for an f that is not real.
    """
    f = integrand(f)
    (q, mean), shape = _parameters(q, mean)
    _check_variances(q)
    rows = np.stack([q, mean], axis=1)
    first, back = distinct_rows(rows)
    table = rows[first]
    result = np.empty(len(table))
    zero = table[:, 0] == 0
    result[zero] = f.at(table[zero, 1])
    rows = table[~zero]
    result[~zero] = moments(Line(f, rows[:, 1], np.sqrt(rows[:, 0])))
    return np.asarray(result[back].reshape(shape))


def moments(line: Line) -> Array:
    """E f(mean + sigma z) for every row, sigma > 0."""
    result = np.empty(len(line.sigma))
    for rows in chunks(line.sigma):
        result[rows] = _moments_in_octave(line.take(rows))
    return result


def _moments_in_octave(line: Line) -> Array:
    def table(sigma: Array) -> tuple[Array, Array]:
        value, size = _moments_of(line.at(sigma))
        return value[:, None], size

    if line.one_mean:
        return np.asarray(tabulated(line.sigma, MOMENT_NODES, table)[:, 0])
    return np.concatenate([_moments_of(line.take(part))[0] for part in parts(len(line.sigma))])


def _moments_of(line: Line) -> tuple[Array, Array]:
    """E f and E abs(f)."""
    overflow = Overflow(len(line.sigma))
    reach = reaches(line.values, 2, overflow)
    result, size = np.empty(len(line.sigma)), np.empty(len(line.sigma))
    for one in np.unique(reach):
        rows = np.flatnonzero(reach == one)
        part = line.take(rows)
        base = uniform(one, WIDTH)

        def f(row: Index, z: Array, part: Line = part, rows: Index = rows) -> Array:
            return overflow.cleared(rows[row], damped(part.values(row, z), z, 2))

        result[rows], size[rows] = integrate(f, mesh(base, part.breaks(one, WIDTH)))
    return overflow.applied(result), overflow.applied(size)


def gaussian_kernel(
    f: Function,
    g: Function,
    q1: Any,
    q2: Any,
    r: Any,
    mean1: Any = 0.0,
    mean2: Any = 0.0,
) -> Array:
    """E f(u) g(v), u ~ N(mean1, q1), v ~ N(mean2, q2), correlation r; all five broadcast.

    r = 1 and r = -1 are exact (one dimension); a vanishing variance makes its function a constant, at a
    jump the mean of both sides. inf, -inf or nan where E f^2 or E g^2 diverges or overflows.
    Raises InputError for a negative variance, for abs(r) > 1, and for functions that are not real.
    """
    f, g = integrand(f), integrand(g)
    (q1, q2, r, mean1, mean2), shape = _parameters(q1, q2, r, mean1, mean2)
    _check_variances(q1, q2)
    if np.any(np.abs(r) > 1 + 1e-9):
        raise InputError(
            f"a correlation is {float(r[np.argmax(np.abs(r))])!r}", why="it lies between -1 and 1"
        )
    r = np.clip(r, -1.0, 1.0)
    rows = np.stack([q1, mean1, q2, mean2, r], axis=1)
    first, back = distinct_rows(rows)
    order = first[np.lexsort(rows[first, :4].T[::-1])]
    result = np.empty(len(rows))
    for i in range(0, len(order), BLOCK):
        some = order[i : i + BLOCK]
        result[some] = _kernel(f, g, rows[some])
    return np.asarray(result[first[back]].reshape(shape))


def _parameters(*values: Any) -> tuple[list[Array], tuple[int, ...]]:
    arrays = np.broadcast_arrays(*[np.asarray(v, dtype=float) for v in values])
    if not all(np.isfinite(a).all() for a in arrays):
        raise InputError("a parameter of a Gaussian expectation is not a finite number")
    return [a.ravel() for a in arrays], arrays[0].shape


def _check_variances(*variances: Array) -> None:
    if any(np.any(q < 0) for q in variances):
        raise InputError("a variance is negative", why="q is the variance of a Gaussian variable")


def _kernel(f: Integrand, g: Integrand, table: Array) -> Array:
    q1, m1, q2, m2, r = table.T
    result = np.empty(len(table))
    fixed = (q1 == 0) | (q2 == 0)
    line = ~fixed & (np.abs(r) == 1)
    rest = ~fixed & ~line
    for kind, rule in ((fixed, _fixed), (line, _on_line), (rest, _plane)):
        if kind.any():
            first = Line(f, m1[kind], np.sqrt(q1[kind]))
            second = Line(g, m2[kind], np.sqrt(q2[kind]))
            result[kind] = rule(first, second, r[kind])
    return result


def _fixed(first: Line, second: Line, r: Array) -> Array:
    """At least one variable is a constant."""
    product = np.asarray(
        gaussian_moment(first.f, first.sigma**2, first.mean)
        * gaussian_moment(second.f, second.sigma**2, second.mean)
    )
    both = (first.sigma == 0) & (second.sigma == 0) & (np.abs(r) == 1)
    if both.any():
        below, above = first.f.sides(first.mean[both])
        left, right = second.f.sides(second.mean[both])
        same = r[both] > 0
        product[both] = (
            below * np.where(same, left, right) + above * np.where(same, right, left)
        ) / 2
    return product


def _on_line(first: Line, second: Line, r: Array) -> Array:
    """r = 1 or -1: one variable."""
    second = Line(second.f, second.mean, second.sigma * r)
    result = np.empty(len(r))
    for rows in chunks(first.sigma, ROWS):
        result[rows] = _product(first.take(rows), second.take(rows))
    return result


def _product(first: Line, second: Line) -> Array:
    overflow = Overflow(len(first.sigma))
    reach = np.maximum(reaches(first.values, 1, overflow), reaches(second.values, 1, overflow))
    result = np.empty(len(reach))
    for one in np.unique(reach):
        rows = np.flatnonzero(reach == one)
        left, right = first.take(rows), second.take(rows)

        def f(
            row: Index, z: Array, left: Line = left, right: Line = right, rows: Index = rows
        ) -> Array:
            values = damped_product(left.values(row, z), right.values(row, z), z)
            return overflow.cleared(rows[row], values)

        breaks = mesh(uniform(one, WIDTH), left.breaks(one, WIDTH), right.breaks(one, WIDTH))
        result[rows] = integrate(f, breaks)[0]
    return _signed(overflow, result, first, second)


def _signed(overflow: Overflow, result: Array, first: Line, second: Line) -> Array:
    """A product that overflows: the sign is only known where both functions are nonnegative."""
    lost = overflow.up | overflow.down
    return np.where(lost, np.where(overflow.down, np.nan, np.inf), result)


def _plane(first: Line, second: Line, r: Array) -> Array:
    """abs(r) < 1: Mehler's series where it converges, rotated coordinates elsewhere."""
    left, i, right, j = _distinct_sides(first, second)
    overflow = Overflow(len(r))
    reach1, reach2 = _reached(left, i, overflow), _reached(right, j, overflow)
    result, scale = np.zeros(len(r)), np.zeros(len(r))
    todo = np.flatnonzero(~(overflow.up | overflow.down))
    for size in SIZES:
        todo = _series(size, (left, reach1, i), (right, reach2, j), r, todo, (result, scale))
    if len(todo):
        reach = np.maximum(reach1[i], reach2[j])[todo]
        result[todo] = rotated(first.take(todo), second.take(todo), r[todo], reach, scale[todo])
    return _signed(overflow, result, first, second)


def _distinct_sides(first: Line, second: Line) -> tuple[Line, Index, Line, Index]:
    """The different rows of both sides, and which of them every pair has; one table where f is g."""
    if first.f is not second.f:
        return *_distinct(first), *_distinct(second)
    both, place = _distinct(
        Line(
            first.f,
            np.concatenate([first.mean, second.mean]),
            np.concatenate([first.sigma, second.sigma]),
        )
    )
    i, j = np.split(place, 2)
    return both, i, both, j


def _distinct(line: Line) -> tuple[Line, Index]:
    first, back = distinct_rows(np.stack([line.sigma, line.mean], axis=1))
    return Line(line.f, line.mean[first], line.sigma[first]), back


def _reached(line: Line, owner: Index, overflow: Overflow) -> Array:
    own = Overflow(len(line.sigma))
    reach = reaches(line.values, 1, own)
    overflow.up |= own.up[owner]
    overflow.down |= own.down[owner]
    return reach


Side = tuple[Line, Array, Index]


def _series(
    size: int, left: Side, right: Side, r: Array, todo: Index, out: tuple[Array, Array]
) -> Index:
    """Fill in the pairs whose series of ``size`` terms is accurate enough; the others are left.

    ``out``: results and natural scales sqrt(E f^2 E g^2).
    """
    result, scale = out
    if len(todo) == 0:
        return todo
    trial = todo[_worth(size, r[todo])]
    if len(trial) == 0:
        return todo
    a, i, b, j = _both(size, left, right, trial)
    bound = remainder(a.tail[i], b.tail[j], r[trial], size)
    scale[trial] = np.sqrt(a.square[i] * b.square[j])
    good = bound <= ACCEPTED * scale[trial]
    result[trial[good]] = mehler(a, b, i[good], j[good], r[trial[good]])
    return np.setdiff1d(todo, trial[good])


def _worth(size: int, r: Array) -> Any:
    return np.abs(r) > -1 if size < SIZES[-1] else np.abs(r) < 0.98


def _both(
    size: int, left: Side, right: Side, trial: Index
) -> tuple[Coefficients, Index, Coefficients, Index]:
    if left[0] is not right[0]:
        return *_coefficients(size, left, trial), *_coefficients(size, right, trial)
    owner = np.concatenate([left[2][trial], right[2][trial]])
    made, place = _coefficients(size, (left[0], left[1], owner), np.arange(len(owner)))
    i, j = np.split(place, 2)
    return made, i, made, j


def _coefficients(size: int, side: Side, trial: Index) -> tuple[Coefficients, Index]:
    line, reach, owner = side
    used, place = np.unique(owner[trial], return_inverse=True)
    line, reach = line.take(used), reach[used]
    values, norm = np.empty((len(used), size)), np.empty(len(used))
    for rows in chunks(line.sigma):
        made = _in_octave(size, reach[rows], line.take(rows))
        values[rows], norm[rows] = made[:, :-1], made[:, -1]
    return Coefficients(values, norm**2), np.ravel(place)


def _in_octave(size: int, reach: Array, line: Line) -> Array:
    """Coefficients and sqrt(E f^2), [rows, size + 1], of rows whose sigma differ by less than a factor of two."""

    def table(sigma: Array) -> tuple[Array, Array]:
        made = _resolve(size, float(reach.max()), line.at(sigma))
        return made, made[:, -1]

    if line.one_mean:
        return tabulated(line.sigma, SCALES[size], table)
    result = np.empty((len(line.sigma), size + 1))
    for one in np.unique(reach):
        inside = np.flatnonzero(reach == one)
        for part in parts(len(inside)):
            result[inside[part]] = _resolve(size, float(one), line.take(inside[part]))
    return result


def _resolve(size: int, reach: float, line: Line) -> Array:
    collector = Collector(size, reach, len(line.sigma))

    def f(row: Index, z: Array) -> Array:
        return finite(damped(line.values(row, z), z, 1))

    base = grid(size, reach)
    for panels in resolved(f, mesh(base, line.breaks(reach, base[1] - base[0]))):
        collector.add(panels)
    made = collector.result()
    return np.column_stack([made.values, np.sqrt(made.square)])
