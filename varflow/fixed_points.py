"""Fixed points of a map of one number, their stability and the depth over which it is reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

LOW, HIGH, POINTS = 1e-8, 1e8, 257
MARGIN, SAME = 1e-6, 1e-9
"""A slope this close to 1 in size is marginal; a map this close to the identity is the identity."""
SPLIT = 17
Map = Callable[[Any], Any]


@dataclass(frozen=True)
class FixedPoint:
    """A value that a map keeps: ``slope`` of the map there decides whether it attracts.

    ``stability`` is "stable" (|slope| < 1), "unstable" (> 1) or "marginal"; ``depth_scale`` = 1/|log |slope||
    is the number of layers over which a small deviation changes by e, infinite at a marginal point.
    """

    value: float
    slope: float

    @property
    def stability(self) -> str:
        """stable, unstable or marginal."""
        size = abs(self.slope)
        if abs(size - 1) <= MARGIN:
            return "marginal"
        return "stable" if size < 1 else "unstable"

    @property
    def depth_scale(self) -> float:
        """1/|log |slope||, in layers (Schoenholz et al. 2017)."""
        size = abs(self.slope)
        if self.stability == "marginal":
            return math.inf
        return 0.0 if size == 0 or math.isinf(size) else 1 / abs(math.log(size))


@dataclass(frozen=True)
class FixedPoints:
    """The fixed points of a map in increasing order; ``every`` where the map keeps every value (q' = q).

    Roots are found by changes of sign on a grid: a point where the map only touches the diagonal is missed.
    """

    points: tuple[FixedPoint, ...]
    every: bool = False

    def __iter__(self) -> Iterator[FixedPoint]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    @property
    def stable(self) -> tuple[FixedPoint, ...]:
        """Those that attract."""
        return tuple(p for p in self.points if p.stability == "stable")


def roots(f: Map, grid: Any) -> list[float]:
    """Where f changes sign on a grid, each bracket split until it is a float wide; f takes arrays."""
    values = np.asarray(f(grid), dtype=float)
    found = [float(x) for x in grid[values == 0.0]]
    for k in np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0):
        low, high = float(grid[k]), float(grid[k + 1])
        for _ in range(14):
            inner = np.linspace(low, high, SPLIT)
            signs = np.sign(np.asarray(f(inner), dtype=float))
            at = int(np.argmax(signs != signs[0]))
            low, high = float(inner[at - 1]), float(inner[at])
            if high - low <= 4e-16 * abs(high):
                break
        middle = (low + high) / 2
        found.append(middle if abs(middle) > 1e-12 else 0.0)
    return sorted(found)


def variance_points(step: Map, slope: Map, low: float = LOW, high: float = HIGH) -> FixedPoints:
    """Fixed points of q -> q' over q = 0 and [low, high]."""
    grid = np.geomspace(low, high, POINTS)
    with np.errstate(all="ignore"):
        ratio = np.asarray(step(grid), dtype=float) / grid
        usable = np.isfinite(ratio)
        if usable.all() and np.max(np.abs(ratio - 1)) < SAME:
            return FixedPoints((), every=True)
        found = roots(lambda q: np.nan_to_num(np.asarray(step(q)) / q, nan=np.inf) - 1, grid[usable])
        points = [FixedPoint(q, float(slope(q))) for q in found]
        tiny = low * 1e-4
        start = float(step(tiny)) / tiny
    return FixedPoints((*([FixedPoint(0.0, start)] if start < 1 / math.sqrt(tiny) else []), *points))


def correlation_points(step: Map, slope: Map, chi: float) -> FixedPoints:
    """Fixed points of c -> c' over [-1, 1]; c = 1, of slope ``chi``, is always one."""
    grid = np.linspace(-1.0, 1.0, 33)[:-1]
    with np.errstate(all="ignore"):
        excess = np.asarray(step(grid), dtype=float) - grid
        if np.max(np.abs(excess)) < SAME:
            return FixedPoints((), every=True)
        opposite = abs(excess[0]) < 1e-11
        if opposite:
            grid = grid[1:]
        near = 1 - np.geomspace(2.0**-4, 1e-6, 11)[1:]
        found = roots(lambda c: np.asarray(step(c)) - c, np.concatenate([grid, near]))
        points = [FixedPoint(c, float(slope(c))) for c in found]
    if opposite:
        points.insert(0, FixedPoint(-1.0, float(slope(-1.0))))
    return FixedPoints((*points, FixedPoint(1.0, chi)))
