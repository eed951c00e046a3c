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

from varflow.errors import UnsupportedError
from varflow.laws.population_cells import Array, Places, Value, combine, gram, whole

Noise: TypeAlias = Callable[[int, Sequence[Value]], Array]
"""Unit Gaussian noise for a value of so many channels, orthogonal to given values."""

TINY = 1e-10


def turned(matrix: Places) -> Places:
    """The transpose of a matrix, or of each in a stack."""
    return np.swapaxes(matrix, -1, -2)


def identity(like: Places) -> Places:
    """Identity matrices, as many and as large as ``like``."""
    return np.broadcast_to(np.eye(like.shape[-1]), like.shape)


def root(covariance: Places) -> Places:
    """Symmetric roots of covariance matrices, rounding below zero cut off."""
    if covariance.shape[-1] == 1:
        return np.sqrt(np.maximum(covariance, 0.0))
    values, vectors = np.linalg.eigh((covariance + turned(covariance)) / 2)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ turned(vectors))


def solve(matrix: Places, right: Places) -> Places:
    """``matrix^+ right`` for Gram matrices, directions of no weight dropped."""
    scale = np.sqrt(np.maximum(np.diagonal(matrix, axis1=-2, axis2=-1), 0.0))
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    values, vectors = np.linalg.eigh(matrix * inverse[..., :, None] * inverse[..., None, :])
    keep = values > TINY * np.maximum(1.0, values[..., -1:])
    weights = np.divide(1.0, values, out=np.zeros_like(values), where=keep)
    inner = turned(vectors) @ (inverse[..., :, None] * right)
    return np.asarray(inverse[..., :, None] * ((vectors * weights[..., None, :]) @ inner))


def shared_out(values: Sequence[Value], coefficients: Places) -> list[tuple[Value, Places]]:
    """Values with the rows of ``coefficients`` that belong to each."""
    return list(zip(values, np.split(coefficients, len(values), axis=-2), strict=True))


def cross_gram(sides: Sequence[Value], x: Value) -> Places:
    """Products of earlier values with a new one, stacked over positions."""
    return np.concatenate([gram(side, x) for side in sides], axis=-2)


@dataclass
class Ledger:
    """Uses in one orientation: inputs, Gaussian parts of outputs, and the inputs' Gram matrix."""

    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    gram: Places = field(default_factory=lambda: np.zeros((0, 0)))

    def predict(self, x: Value, own: Places) -> tuple[list[tuple[Value, Places]], Places]:
        """What earlier outputs say about the output for ``x``, and the part of its Gram that they leave."""
        if not self.inputs:
            return [], own
        cross = cross_gram(self.inputs, x)
        coefficients = solve(self.gram, cross)
        return shared_out(self.outputs, coefficients), own - turned(cross) @ coefficients

    def add(self, x: Value, output: Value, own: Places) -> None:
        """Write down a use."""
        if self.inputs:
            cross = cross_gram(self.inputs, x)
            self.gram = np.block([[self.gram, cross], [turned(cross), own]])
        else:
            self.gram = own
        self.inputs.append(x)
        self.outputs.append(output)


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
        length, summed = (self.columns, self.rows) if transpose else (self.rows, self.columns)
        own = gram(x, x)
        known, rest = same.predict(x, own)
        fresh = whole(length, self.noise(length, [*same.outputs, *other.inputs]))
        gaussian = combine([(fresh, root(summed * self.variance * rest)), *known])
        if remember:
            same.add(x, gaussian, own)
        if not other.inputs:
            return gaussian
        if self.one_way:
            raise UnsupportedError(
                f"the orthogonal weight {self.name!r} is used as W and as W^T", why="its law given the first use is "
                "known for a square matrix without a mask", instead="a square matrix, or distribution: normal")
        slopes = summed / length * solve(other.gram, cross_gram(other.outputs, x))
        return combine([(gaussian, identity(own)), *shared_out(other.inputs, slopes)])


@dataclass
class HaarMatrix:
    """sqrt(s) O with O Haar on the orthogonal group: the pairs O x = y known so far fix the next one."""

    size: int
    scale: float
    noise: Noise
    pairs: tuple[Ledger, Ledger] = field(default_factory=lambda: (Ledger(), Ledger()))

    def apply(self, x: Value, transpose: bool, remember: bool) -> Value:
        """W x, or W^T x, given all remembered uses."""
        own = gram(x, x)
        ledger = self.pairs[transpose]
        known, rest = ledger.predict(x, own)
        fresh = whole(self.size, self.noise(self.size, ledger.outputs))
        image = combine([(fresh, root(rest)), *known])
        if remember:
            ledger.add(x, image, own)
            self.pairs[not transpose].add(image, x, own)
        return combine([(image, np.sqrt(self.scale) * identity(own))])
