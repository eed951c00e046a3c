"""Breaks of Gaussian integrals over z: a grid for the density, and the places where f(mean + sigma z) bends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from varflow.laws.integrand import Integrand
from varflow.laws.panels import Array, Index, Rows

REACHES = (12.0, 18.0, 24.0, 30.0, 36.0, 42.0, 48.0)
"""How far to go, in standard deviations: the first where f times density has died out."""
_SLACK = 1e-13
_OFF = 0.4871


@dataclass(frozen=True)
class Line:
    """f(mean + sigma z) for every row: arrays [rows]."""

    f: Integrand
    mean: Array
    sigma: Array

    def take(self, rows: Index) -> Line:
        """Some rows of it."""
        return Line(self.f, self.mean[rows], self.sigma[rows])

    def at(self, sigma: Array) -> Line:
        """The same mean, that of the first row, at other standard deviations."""
        return Line(self.f, np.full(len(sigma), self.mean[0]), sigma)

    @property
    def one_mean(self) -> bool:
        """Whether all rows have the same mean."""
        return bool(np.all(self.mean == self.mean[0]))

    def values(self, row: Index, z: Array) -> Array:
        """f at z [n, m], line n belonging to ``row[n]``."""
        return self.f(self.mean[row][:, None] + self.sigma[row][:, None] * z)

    def breaks(self, reach: float, width: float) -> Array:
        """Where f bends, in z, [rows, m]: all kinks, and soft bends where panels of ``width`` miss them."""
        span = np.abs(self.sigma) * reach
        lo, hi = np.min(self.mean - span), np.max(self.mean + span)
        mesh = self.f.mesh(float(max(abs(lo), abs(hi))))
        gaps = np.diff(mesh, prepend=-np.inf, append=np.inf)
        fine = np.minimum(gaps[1:], gaps[:-1]) < width * np.max(np.abs(self.sigma))
        keep = (fine | np.isin(mesh, self.f.breaks)) & (mesh > lo) & (mesh < hi)
        return np.asarray((mesh[keep] - self.mean[:, None]) / self.sigma[:, None])

    def kinks(self) -> Array:
        """Kinks and jumps in z, [rows, m]."""
        return np.asarray((self.f.breaks - self.mean[:, None]) / self.sigma[:, None])


def mesh(base: Array, *parts: Array) -> Array:
    """Sorted breaks [rows, m]: the base grid and every row's own points within it."""
    rows = parts[0].shape[0]
    every = np.concatenate([np.broadcast_to(base, (rows, len(base))), *parts], axis=1)
    every = np.clip(every, base[0], base[-1])
    every.sort(axis=1)
    return np.asarray(every)


def uniform(reach: float, width: float) -> Array:
    """A grid of the given width over [-reach, reach]."""
    return np.linspace(-reach, reach, round(2 * reach / width) + 1)


def chunks(sigma: Array, most: int = 10**9) -> Iterator[Index]:
    """Rows of similar sigma, at most ``most`` together."""
    order = np.argsort(sigma, kind="stable")
    octave = np.floor(np.log2(sigma[order]))
    for part in np.split(order, np.flatnonzero(np.diff(octave)) + 1):
        for i in range(0, len(part), most):
            yield part[i : i + most]


def parts(count: int, most: int = 512) -> Iterator[Index]:
    """0, 1, ..., count - 1 in runs of at most ``most``."""
    for i in range(0, count, most):
        yield np.arange(i, min(i + most, count))


@dataclass
class Overflow:
    """Rows in which f times the density grew beyond all numbers, upwards or downwards."""

    rows: int
    up: npt.NDArray[np.bool_] = field(init=False)
    down: npt.NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.up = np.zeros(self.rows, dtype=bool)
        self.down = np.zeros(self.rows, dtype=bool)

    def cleared(self, row: Index, values: Array) -> Array:
        """The values, infinite ones replaced by 0 and remembered."""
        lost = ~np.isfinite(values)
        if not lost.any():
            return values
        self.up[row[np.any(values == np.inf, axis=1)]] = True
        self.down[row[np.any(values == -np.inf, axis=1)]] = True
        return np.where(lost, 0.0, values)

    def applied(self, result: Array) -> Array:
        """inf, -inf, or nan for rows that went both ways."""
        result = np.where(self.up, np.inf, result)
        return np.where(self.down, np.where(self.up, np.nan, -np.inf), result)


def damped(values: Array, z: Array, halves: int) -> Array:
    """values * density(z)^(halves / 2)."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        root = np.exp(-0.25 * z * z) / (2 * np.pi) ** 0.25
        for _ in range(halves):
            values = values * root
    return values


def finite(values: Array) -> Array:
    """The values, 0 where a singularity is met."""
    lost = ~np.isfinite(values)
    return np.where(lost, 0.0, values) if lost.any() else values


def damped_product(first: Array, second: Array, z: Array) -> Array:
    """first * second * density(z), without overflow where the result has none."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        root = np.exp(-0.25 * z * z) / (2 * np.pi) ** 0.25
        return np.asarray((first * root) * (second * root))


def reaches(values: Rows, halves: int, overflow: Overflow) -> Array:
    """How far to integrate each row, [rows]: until values(row, z) density(z)^(halves/2) has died out.

    Rows that never do are noted as overflowing.
    """
    rows = overflow.rows
    result = np.full(rows, REACHES[-1])
    left = np.arange(rows)
    for reach in REACHES:
        steps = np.arange(-reach, reach) + _OFF
        z = np.broadcast_to(steps, (len(left), len(steps)))
        heights = overflow.cleared(left, damped(values(left, z), z, halves))
        sizes = np.abs(heights)
        edges = np.maximum(sizes[:, :2].max(axis=1), sizes[:, -2:].max(axis=1))
        done = edges <= _SLACK * sizes.sum(axis=1)
        done |= (overflow.up | overflow.down)[left]
        result[left[done]] = reach
        if reach == REACHES[-1]:
            ends = heights[~done][:, [0, 1, -2, -1]]
            overflow.up[left[~done]] = np.any(ends > 0, axis=1)
            overflow.down[left[~done]] = np.any(ends < 0, axis=1)
        left = left[~done]
        if len(left) == 0:
            break
    return result
