"""The search for constants that no formula gives: sign changes of one, Newton's method for several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import sympy as sp

from varflow.errors import InputError, SolveError
from varflow.laws.expectation import compile_formula
from varflow.tailor_conditions import Condition, evaluated
from varflow.tailor_model import Tailored

STARTS, ROUNDS = 40, 60
ENOUGH, FINE, ROUNDING = 1e-9, 1e-13, 1e-13
Values = Any


@dataclass(frozen=True)
class Search:
    """Equations ``left`` = 0 and ``numeric`` conditions in the unknowns ``rest``; ``table`` gives the others."""

    subject: Tailored
    table: Mapping[sp.Symbol, sp.Expr]
    left: Sequence[sp.Expr]
    numeric: Sequence[Condition]
    rest: Sequence[sp.Symbol]
    near: Mapping[str, float]

    @cached_property
    def _compiled(self) -> list[tuple[sp.Symbol, Callable[..., Any]]]:
        """Moments in use, as functions of the unknowns."""
        used = set().union(*(e.free_symbols for e in (*self.left, *self.table.values())))
        integrals = {s: m for s, m in self.subject.integral.items() if s in used}
        loose = (
            set().union(*(m.free_symbols for m in integrals.values()), used)
            - set(self.rest)
            - set(integrals)
        )
        loose -= set(self.table)
        if loose:
            raise SolveError(
                "the equations have no closed solution and hold open symbols",
                why=", ".join(sorted(map(str, loose))),
                instead="numbers for them",
            )
        return [(s, compile_formula(m, tuple(self.rest))) for s, m in integrals.items()]

    @cached_property
    def _algebra(self) -> list[Callable[..., Any]]:
        names = (*self.rest, *(s for s, _ in self._compiled))
        return [sp.lambdify(names, e, "numpy") for e in self.left]

    def missed(self, points: Values) -> Values:
        """Residuals [equation, point] at points [unknown, point]; nan where constants are not real."""
        with np.errstate(all="ignore"):
            moments = [np.broadcast_to(f(*points), points.shape[1:]) for _, f in self._compiled]
            rows = [np.broadcast_to(f(*points, *moments), points.shape[1:]) for f in self._algebra]
        rows += [np.array([self._numeric(c, p) for p in points.T]) for c in self.numeric]
        return np.array(rows, dtype=float)

    def roundings(self, points: Values) -> Values:
        """Residuals [equation, point] that are as good as zero: the rounding of the terms of the equations."""
        terms = [sp.Add(*map(sp.Abs, sp.Add.make_args(e))) for e in self.left]
        sizes = replace(self, left=terms, numeric=()).missed(points)
        numbers = np.zeros((len(self.numeric), points.shape[1]))
        return np.concatenate([ROUNDING * sizes.reshape(len(terms), points.shape[1]), numbers])

    def _numeric(self, condition: Condition, point: Values) -> float:
        known = dict(zip(self.rest, map(float, point), strict=True))
        moments = {s: float(f(*point)) for s, f in self._compiled}
        with np.errstate(all="ignore"):
            others = {u: evaluated(v, {**known, **moments}) for u, v in self.table.items()}
        if not all(map(np.isfinite, others.values())) or condition.numeric is None:
            return float("nan")
        return condition.numeric({**known, **others})


def search(task: Search) -> list[dict[sp.Symbol, float]]:
    """Points where all equations vanish.

    Raises InputError for fewer equations than unknowns, SolveError where an open symbol is in the way.
    """
    if len(task.left) + len(task.numeric) < len(task.rest):
        names = ", ".join(map(str, task.rest))
        raise InputError(
            f"the conditions do not determine {names}", instead="more conditions, or fixed values"
        )
    if len(task.rest) == 1:
        return [{task.rest[0]: x} for x in _on_line(task)]
    return [dict(zip(task.rest, p, strict=True)) for p in _newton(task)]


# -- one unknown -----------------------------------------------------------------------------------------------


def _on_line(task: Search) -> list[float]:
    """Sign changes along one unknown, those of rounding left out; where every value costs a network, on a coarse grid
    from -8 to 8."""
    coarse = np.array([1e-6, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.2, 2, 4, 8])
    sizes = coarse if task.numeric else np.geomspace(1e-4, 1e3, 301)
    grid = sizes if task.rest[0].is_positive else np.concatenate([-sizes[::-1], [0.0], sizes])
    values, zero = task.missed(grid[None, :])[0], task.roundings(grid[None, :])[0]
    signs = np.where(np.abs(values) <= zero, 0.0, np.sign(values))
    if not np.any(np.abs(signs) == 1):
        return [float(x) for x, v in zip(grid, values, strict=True) if v == 0]
    alone = (signs[1:-1] == 0) & (np.abs(signs[:-2] * signs[2:]) == 1)
    found = [float(x) for x in grid[1:-1][alone]]
    for k in np.flatnonzero(signs[:-1] * signs[1:] < 0):
        found.append(
            _bisected(lambda x: float(task.missed(np.array([[x]]))[0, 0]), grid[k], grid[k + 1])
        )
    return found


def _bisected(f: Callable[[float], float], low: float, high: float) -> float:
    from scipy.optimize import brentq

    return float(brentq(f, low, high, xtol=1e-15, rtol=1e-14))


# -- several unknowns ------------------------------------------------------------------------------------------


def _starts(rest: Sequence[sp.Symbol], near: Mapping[str, float]) -> Values:
    """Starting points [unknown, start]: positive ones as logarithms."""
    options = {"b": (0.0, -2.3, -1.0), "c": (0.0, 1.0, -1.0, 0.3), "d": (0.0, 1.0, -1.0)}
    values = []
    for u in rest:
        base = near.get(u.name, 0.5)
        values.append(options.get(u.name, (base, base + 0.5, base / 2)))
    first = np.array(list(product(*values)), dtype=float).T[:, :STARTS]
    random = np.random.default_rng(0).uniform(
        -1.5, 1.5, (len(rest), max(0, STARTS - first.shape[1]))
    )
    return np.concatenate([first, random], axis=1)


def _newton(task: Search) -> list[tuple[float, ...]]:
    """Newton's method from all starts at once, with differences for derivatives and the best of four steps."""
    positive = np.array([bool(u.is_positive) for u in task.rest])[:, None]

    def shown(z: Values) -> Values:
        return np.where(positive, np.exp(np.clip(z, -12, 12)), np.clip(z, -1e3, 1e3))

    def f(z: Values) -> Values:
        return task.missed(shown(z))

    points = _starts(task.rest, task.near)
    best, found = _size(f(points)), []
    for _ in range(ROUNDS):
        finished = (best < FINE) | ~np.isfinite(best)
        found.append(shown(points[:, best < FINE]))
        points, best = points[:, ~finished], best[~finished]
        if not points.shape[1]:
            break
        points, now = _improved(f, points, best)
        stuck = now >= best * (1 - 1e-3)
        found.append(shown(points[:, stuck & (best < ENOUGH)]))
        points, best = points[:, ~stuck], now[~stuck]
    return [tuple(map(float, p)) for p in np.concatenate(found, axis=1).T]


def _improved(f: Callable[[Values], Values], points: Values, best: Values) -> tuple[Values, Values]:
    """The best of four lengths of a Newton step, or the point itself."""
    step = _direction(f, points)
    lengths = (1.0, 0.4, 0.1, 0.01)
    trials = np.concatenate([points + t * step for t in lengths], axis=1)
    sizes = _size(f(trials)).reshape(len(lengths), -1)
    chosen, every = sizes.argmin(axis=0), np.arange(points.shape[1])
    better = sizes[chosen, every] < best
    moved = trials.reshape(len(points), len(lengths), -1)[:, chosen, every]
    return np.where(better, moved, points), np.where(better, sizes[chosen, every], best)


def _size(values: Values) -> Values:
    return np.nan_to_num(np.abs(values).max(axis=0), nan=np.inf)


def _direction(f: Callable[[Values], Values], points: Values) -> Values:
    """Newton steps of length one at most, by least squares."""
    n, h = len(points), 1e-5
    shifts = [points + s * h * np.eye(n)[:, [k]] for k in range(n) for s in (1, -1)]
    values = f(np.concatenate([points, *shifts], axis=1)).reshape(-1, 2 * n + 1, points.shape[1])
    centre, sides = values[:, 0], values[:, 1:]
    jacobian = (sides[:, 0::2] - sides[:, 1::2]) / (2 * h)
    steps = np.zeros_like(points)
    for k in range(points.shape[1]):
        if np.isfinite(jacobian[:, :, k]).all() and np.isfinite(centre[:, k]).all():
            steps[:, k] = np.linalg.lstsq(jacobian[:, :, k], -centre[:, k], rcond=None)[0]
    return steps / np.maximum(np.linalg.norm(steps, axis=0), 1.0)
