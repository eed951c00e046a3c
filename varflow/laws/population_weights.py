"""Random matrices of a population: each use of a weight is drawn given all earlier uses.

A matrix of i.i.d. entries of variance v (Yang 2020, arXiv:2006.14548, theorem 2.10; Bolthausen 2014): uses in
one orientation are jointly Gaussian of covariance v m E[x x'], m the length summed over; a use in the other
orientation adds sum_j x_j v m E[dh/dg_j], found by Stein's lemma from E[g_j h], g_j the Gaussian part of the
earlier use. A Haar matrix is conditioned on the pairs it has mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from varflow.errors import UnsupportedError
from varflow.laws.population_cells import Array, Value, combine, gram, whole

Square: TypeAlias = npt.NDArray[np.float64]
Noise: TypeAlias = Callable[[int, Sequence[Value]], Array]
"""Unit Gaussian noise for a value of so many channels, orthogonal to given values."""

TINY = 1e-10


def root(covariance: Square) -> Square:
    """Symmetric root of a covariance matrix, rounding below zero cut off."""
    if covariance.size == 1:
        return np.sqrt(np.maximum(covariance, 0.0))
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def solve(matrix: Square, right: Square) -> Square:
    """``matrix^+ right`` for a Gram matrix, directions of no weight dropped."""
    scale = np.sqrt(np.maximum(np.diag(matrix), 0.0))
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    values, vectors = np.linalg.eigh(matrix * np.outer(inverse, inverse))
    keep = values > TINY * max(1.0, float(values[-1]))
    weights = np.divide(1.0, values, out=np.zeros_like(values), where=keep)
    return np.asarray(inverse[:, None] * (vectors * weights) @ (vectors.T @ (inverse[:, None] * right)))


@dataclass
class Ledger:
    """Uses in one orientation: inputs, Gaussian parts of outputs, and the inputs' Gram matrix."""

    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    gram: Square = field(default_factory=lambda: np.zeros((0, 0)))

    def cross(self, sides: Sequence[Value], x: Value) -> Square:
        """Products of earlier values with a new one, stacked over places."""
        return np.concatenate([gram(side, x) for side in sides])

    def add(self, x: Value, output: Value, cross: Square, own: Square) -> None:
        """Write down a use."""
        self.inputs.append(x)
        self.outputs.append(output)
        self.gram = np.block([[self.gram, cross], [cross.T, own]]) if len(self.gram) else own

    def mix(self, values: Sequence[Value], coefficients: Square) -> list[tuple[Value, Square]]:
        """Values with the rows of ``coefficients`` that belong to each."""
        return list(zip(values, np.split(coefficients, len(values)), strict=True))


@dataclass
class Matrix:
    """A ``rows x columns`` matrix of i.i.d. entries, or a semi-orthogonal one used in one orientation.

    ``variance`` is that of an entry; with ``one_way`` set, use in both orientations raises UnsupportedError.
    """

    rows: int
    columns: int
    variance: float
    noise: Noise
    name: str = ""
    one_way: bool = False
    ledgers: tuple[Ledger, Ledger] = field(default_factory=lambda: (Ledger(), Ledger()))

    def apply(self, x: Value, transpose: bool, remember: bool) -> Value:
        """W x, or W^T x, given all remembered uses."""
        same, other = self.ledgers[transpose], self.ledgers[not transpose]
        summed, length = (self.rows, self.columns) if transpose else (self.columns, self.rows)
        own = gram(x, x)
        cross = same.cross(same.inputs, x) if same.inputs else np.zeros((0, len(own)))
        hat = self._gaussian(same, other, own, cross, summed * self.variance, length)
        if remember:
            same.add(x, hat, cross, own)
        if not other.inputs:
            return hat
        if self.one_way:
            raise UnsupportedError(
                f"the orthogonal weight {self.name!r} is used as W and as W^T", why="its law given the first use is "
                "known for a square matrix without a mask", instead="a square matrix, or distribution: normal")
        ratio = summed / (self.rows + self.columns - summed)
        slopes = ratio * solve(other.gram, other.cross(other.outputs, x))
        return combine([(hat, np.eye(len(own))), *other.mix(other.inputs, slopes)])

    def _gaussian(self, same: Ledger, other: Ledger, own: Square, cross: Square, scale: float,
                  length: int) -> Value:
        coefficients = solve(same.gram, cross) if len(cross) else cross
        spread = root(scale * (own - cross.T @ coefficients))
        fresh = whole(length, self.noise(length, [*same.outputs, *other.inputs]))
        return combine([(fresh, spread), *(same.mix(same.outputs, coefficients) if len(cross) else [])])


@dataclass
class HaarMatrix:
    """sqrt(s) O with O Haar on the orthogonal group: O x = y pairs known so far fix the next one."""

    size: int
    scale: float
    noise: Noise
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)

    def apply(self, x: Value, transpose: bool, remember: bool) -> Value:
        """W x, or W^T x, given all remembered uses."""
        known, images = (self.outputs, self.inputs) if transpose else (self.inputs, self.outputs)
        terms: list[tuple[Value, Square]] = []
        rest = gram(x, x)
        if known:
            cross = np.concatenate([gram(k, x) for k in known])
            coefficients = solve(np.block([[gram(a, b) for b in known] for a in known]), cross)
            terms = list(zip(images, np.split(coefficients, len(known)), strict=True))
            rest = rest - cross.T @ coefficients
        fresh = whole(self.size, self.noise(self.size, images))
        image = combine([(fresh, root(rest)), *terms])
        if remember:
            known.append(x)
            images.append(image)
        return combine([(image, np.sqrt(self.scale) * np.eye(len(rest)))])
