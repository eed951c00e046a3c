"""Random matrices of a population: each use of a weight is drawn given all earlier uses.

A matrix of i.i.d. entries of variance v (Yang 2020, arXiv:2006.14548, theorem 2.10; Bolthausen 2014): uses in
one orientation are jointly Gaussian of covariance v m E[x x'], m the length summed over: rows of a Cholesky factor
of the inputs' Gram matrix times orthonormal noise, one more row and one more noise with every use. A use in the
other orientation adds sum_j x_j v m E[dh/dg_j], found by Stein's lemma from E[g_j h], g_j the Gaussian part of the
earlier use. A Haar matrix is conditioned on the pairs it has mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from varflow.errors import UnsupportedError
from varflow.laws.population_cells import Array, Places, Value, array_mix, combine, gram, whole

TINY = 1e-10


class Noise(Protocol):
    """Half of unit Gaussian noise for a value of so many channels, the other half its negative."""

    def __call__(self, channels: int, against: Sequence[Value], basis: Array | None = None) -> Array:
        """Noise orthogonal to given values and to a ``basis`` of orthonormal earlier noise."""


def paired(half: Array) -> Array:
    """Antithetic coordinates."""
    return np.concatenate([half, -half])


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


def factors(rest: Places, own: Places) -> tuple[Places, Places]:
    """A with A^T A = ``rest``, what earlier uses leave of a Gram matrix ``own``, and its inverse, transposed;
    directions of no weight are zero in both."""
    scale = np.sqrt(np.maximum(np.diagonal(own, axis1=-2, axis2=-1), 0.0))
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    values, vectors = np.linalg.eigh(rest * inverse[..., :, None] * inverse[..., None, :])
    sizes = np.sqrt(np.where(values > TINY, values, 0.0))
    back = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    left, right = (turned(vectors) * a[..., :, None] for a in (sizes, back))
    return left * scale[..., None, :], right * inverse[..., None, :]


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
class Rows:
    """Arrays of coordinates one behind another along the last axis, in room that doubles."""

    room: Array = field(default_factory=lambda: np.zeros((0, 0, 0)))
    count: int = 0

    def add(self, array: Array) -> None:
        """One more array."""
        more = self.count + array.shape[2]
        if more > len(self.room):
            room = np.empty((max(more, 2 * len(self.room)), *array.shape[:2]))
            if self.count:
                room[: self.count] = self.room[: self.count]
            self.room = room
        self.room[self.count : more] = np.moveaxis(array, 2, 0)
        self.count = more

    @property
    def array(self) -> Array:
        """All of them, as one array."""
        return np.moveaxis(self.room[: self.count], 0, 2)


@dataclass
class Uses:
    """Uses in one orientation: inputs, the orthonormal noise of their outputs, and the ``inverse`` Cholesky factor of
    the inputs' Gram matrix (rows of zeros in directions of no weight); outputs where they are asked for."""

    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    noise: Rows = field(default_factory=Rows)
    inverse: Places = field(default_factory=lambda: np.zeros((0, 0)))

    def solve(self, right: Places) -> Places:
        """The Gram matrix's inverse (in directions of some weight) times ``right``."""
        return np.asarray(turned(self.inverse) @ (self.inverse @ right))

    def known(self, x: Value, own: Places) -> Places:
        """The new row of the factor over earlier noise."""
        return np.asarray(self.inverse @ cross_gram(self.inputs, x)) if self.inputs else own[..., :0, :]

    def add(self, x: Value, noise: Array, known: Places, back: Places) -> None:
        """Write down a use: its noise, and the new row of the factor over earlier noise and, inverted, over its own."""
        if self.inputs:
            corner = -back @ turned(known) @ self.inverse
            above = np.zeros((*self.inverse.shape[:-1], back.shape[-1]))
            self.inverse = np.block([[self.inverse, above], [corner, back]])
        else:
            self.inverse = back
        self.inputs.append(x)
        self.noise.add(noise)


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
    uses: tuple[Uses, Uses] = field(default_factory=lambda: (Uses(), Uses()))

    def apply(self, x: Value, transpose: bool, remember: bool, both: bool, told: bool = True) -> Value:
        """W x, or W^T x, given all remembered uses; ``both``: in both orientations; ``told``: whether x depends on what
        came out of the other one (of few coordinates the products with it are not zero where it does not)."""
        other = self.uses[not transpose]
        gaussian = self._gaussian(x, transpose, remember, both)
        if not other.inputs or not told:
            return gaussian
        if self.one_way:
            raise UnsupportedError(
                f"the orthogonal weight {self.name!r} is used as W and as W^T", why="its law given the first use is "
                "known for a square matrix without a mask", instead="a square matrix, or distribution: normal")
        length, summed = (self.columns, self.rows) if transpose else (self.rows, self.columns)
        slopes = summed / length * other.solve(cross_gram(other.outputs, x))
        return combine([(gaussian, identity(gram(x, x))), *shared_out(other.inputs, slopes)])

    def _gaussian(self, x: Value, transpose: bool, remember: bool, both: bool) -> Value:
        """What earlier uses in the other orientation leave random."""
        same, other = self.uses[transpose], self.uses[not transpose]
        length, summed = (self.columns, self.rows) if transpose else (self.rows, self.columns)
        own = gram(x, x)
        known = same.known(x, own)
        new, back = factors(own - turned(known) @ known, own)
        fresh = self.noise(length, other.inputs, same.noise.array if same.inputs else None)
        half = array_mix(fresh, np.sqrt(summed * self.variance) * new)
        if same.inputs:
            half += array_mix(same.noise.array, np.sqrt(summed * self.variance) * known)
        gaussian = whole(length, paired(half))
        if remember:
            same.add(x, fresh, known, back)
            same.outputs += [gaussian] if both else []
        return gaussian


@dataclass
class HaarMatrix:
    """sqrt(s) O with O Haar on the orthogonal group: the pairs O x = y known so far fix the next one."""

    size: int
    scale: float
    noise: Noise
    pairs: tuple[Ledger, Ledger] = field(default_factory=lambda: (Ledger(), Ledger()))

    def apply(self, x: Value, transpose: bool, remember: bool, both: bool, told: bool = True) -> Value:
        """W x, or W^T x, given all remembered uses."""
        own = gram(x, x)
        ledger = self.pairs[transpose]
        known, rest = ledger.predict(x, own)
        fresh = whole(self.size, paired(self.noise(self.size, ledger.outputs)))
        image = combine([(fresh, root(rest)), *known])
        if remember:
            ledger.add(x, image, own)
            self.pairs[not transpose].add(image, x, own)
        return combine([(image, np.sqrt(self.scale) * identity(own))])
