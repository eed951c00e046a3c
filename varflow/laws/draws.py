"""Points for samples of images: Gaussian fields of given covariances, and weights from a scrambled Sobol sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from varflow.laws.distributions import NoFormula
from varflow.laws.positions import Array, completed

MANY, MOST_COLUMNS = 200, 2304
MOST_QUASI = 64
MIRRORS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
"""Signs of weights and of sources."""
CLEAR = 1.2
"""Eigenvalues of a covariance between samples beyond what noise has, times this, are kept."""
SEEN = 1e-9
"""Eigenvalues, in units of the largest, below which taps see nothing."""
_LOG = np.linspace(-40.0, 120.0, 6401)
Shape = tuple[int, ...]
Pairs = dict[tuple[int, int], tuple[Array, ...]]


@dataclass(frozen=True)
class Source:
    """A Gaussian field on a grid. ``signs``: only its covariances matter, as those of gradients do, two of which stand
    in a product: then it is made of signs, whose squares do not fluctuate."""

    grid: Shape
    signs: bool = False


@dataclass(frozen=True)
class Weights:
    """Weights of a channel: their number, distribution, and the place of their variance among the arguments."""

    count: int
    distribution: str
    variance: int


class Arrays:
    """Arrays that are equal by content."""

    def __init__(self, arrays: tuple[Array, ...]) -> None:
        self.arrays = arrays
        self._key = tuple((a.shape, a.tobytes()) for a in arrays)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arrays) and self._key == other._key


def related(sources: list[Source], entries: tuple[Array, ...], index: dict[tuple[int, int], int],
             each: int) -> list[list[int]]:
    """Sources in families that are independent of each other."""
    families: list[list[int]] = []
    for j, source in enumerate(sources):
        joined = [f for f in families if any(sources[i] == source and any(
            np.any(e != 0) for e in entries[each * index[i, j] : each * index[i, j] + each]) for i in f)]
        families = [f for f in families if f not in joined] + [[*(i for f in joined for i in f), j]]
    return [sorted(f) for f in families]


def normal(rng: Any, *shape: int) -> Array:
    return np.asarray(rng.standard_normal(shape))


def random_signs(rng: Any, *shape: int) -> Array:
    return np.asarray(2.0 * rng.integers(0, 2, shape) - 1)


def quasi(count: int, columns: int) -> Array:
    """Normal points, from a scrambled Sobol sequence for the last of the columns, which matter most; in random order,
    so that they are independent of the points of other sequences."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    few = min(columns, MOST_QUASI)
    u = qmc.Sobol(few, scramble=True, rng=np.random.default_rng(few)).random(count)
    u = u[np.random.default_rng(count).permutation(count)]
    rest = np.random.default_rng(columns).standard_normal((count, columns - few))
    return np.concatenate([rest, ndtri(np.clip(u[:, ::-1], 1e-12, 1 - 1e-12))], axis=1)


def jointly(mine: list[int], pairs: Pairs,
             places: int) -> Callable[..., list[Array]]:
    """What makes fields (points x places) of noise (a function of columns)."""
    if all(a.size == 1 for pair in pairs.values() for a in pair):
        same, other = (np.array([[pairs[min(i, j), max(i, j)][k].item() for j in mine] for i in mine]) for k in (0, 1))
        return partial(_exchangeable, same, other, places)
    return by_root(root(matrix(mine, pairs, places)), len(mine))


def matrix(mine: list[int], pairs: Pairs, places: int) -> Array:
    if len(mine) * places > MOST_COLUMNS:
        raise NoFormula("too many places for a sample of images")
    blocks = [[completed(pairs[i, j][1], pairs[i, j][0], places) if i <= j
               else completed(pairs[j, i][1], pairs[j, i][0], places).T for j in mine] for i in mine]
    found = np.block(blocks)
    return np.asarray((found + found.T) / 2)


def by_root(root: Array, count: int) -> Callable[..., list[Array]]:
    def made(noise: Callable[..., Array]) -> list[Array]:
        drawn = noise(len(root)) @ root.T
        return list(np.moveaxis(drawn.reshape(len(drawn), count, -1), 1, 0))

    return made


def _exchangeable(same: Array, other: Array, places: int, noise: Callable[..., Array]) -> list[Array]:
    """Fields of one covariance at every place and one between any two: deviations from the mean, and the mean."""
    n = len(same)
    own = np.einsum("ij,njp->nip", root(same - other), noise(n, places))
    common = noise(n) @ root(same + (places - 1) * other).T / np.sqrt(places)
    return list(np.moveaxis(own - own.mean(axis=2, keepdims=True) + common[:, :, None], 1, 0))


def root(matrix: Array) -> Array:
    """A square root of a covariance, rounding cut off."""
    return _root_of(Arrays((matrix,)))


@lru_cache(maxsize=4)
def _root_of(given: Arrays) -> Array:
    (matrix,) = given.arrays
    if len(matrix) > MANY:
        try:
            return np.linalg.cholesky(matrix + 1e-9 * np.trace(matrix) / len(matrix) * np.eye(len(matrix)))
        except np.linalg.LinAlgError:
            pass
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def clear(matrix: Array) -> Array:
    """A covariance between samples without what it owes to noise, as its negative eigenvalues show."""
    return _cleared(Arrays((matrix,)))


@lru_cache(maxsize=4)
def _cleared(given: Arrays) -> Array:
    values, vectors = np.linalg.eigh(given.arrays[0])
    kept = values > -CLEAR * min(values[0], 0.0) + 1e-12 * abs(values[-1])
    return np.asarray((vectors[:, kept] * values[kept]) @ vectors[:, kept].T)


def weight_lists(weights: Sequence[Weights], variances: Sequence[float], groups: int) -> list[Array]:
    """Taps x groups of each weight, beside its mirror images. All are columns of one sequence: points of two Sobol
    sequences, however scrambled, are not independent of each other."""
    from scipy.stats import qmc

    ends = np.cumsum([w.count for w in weights])
    count, columns = groups // len(MIRRORS), int(ends[-1]) if len(ends) else 0
    few, rng = min(columns, MOST_QUASI), np.random.default_rng((columns, len(weights)))
    u = qmc.Sobol(few, scramble=True, rng=rng).random(count) if few else np.empty((count, 0))
    u = np.concatenate([u, rng.random((count, columns - few))], axis=1)
    return [_weights_at(u[:, end - w.count : end], w.distribution, v)
            for w, v, end in zip(weights, variances, ends, strict=True)]


def _weights_at(u: Array, distribution: str, variance: float) -> Array:
    """Taps x groups from uniform points, beside their mirror images."""
    from scipy.special import ndtri

    if distribution == "normal":
        z = ndtri(np.clip(u, 1e-12, 1 - 1e-12))
    else:
        z = np.sqrt(12) * (u - 0.5) if distribution == "uniform" else np.sign(u - 0.5)
    z = z * np.sqrt(variance / (z**2).mean())
    return np.asarray(np.concatenate([s * z for s, _ in MIRRORS]).T)


def inverse_square(scale: Array, eps: float) -> float:
    """E[1/(w^T C w + eps)] of unit Gaussian weights."""
    values = np.linalg.eigvalsh(scale)
    seen = values[values > SEEN * values[-1]]
    if eps == 0 and len(seen) <= 2:
        return float("inf")
    x = np.exp(_LOG) / seen[-1]
    terms = np.exp(_LOG - np.log1p(2 * x[:, None] * seen).sum(axis=1) / 2 - x * eps) / seen[-1]
    return float(terms.sum() * (_LOG[1] - _LOG[0]))
