"""Normalization in a population: statistics over channels, or of every coordinate over its batch and places."""

from __future__ import annotations

import numpy as np

from varflow.errors import UnsupportedError
from varflow.laws.population_cells import Array, Value, blockwise
from varflow.program import Standardize

SMALL, MOST_ERRORS = 1e-9, 6
"""What stands for a small number; standard errors of a mean that may be zero."""


def _channel_statistics(norm: Standardize, x: Value, node: str) -> tuple[Array, Array]:
    if norm.groups != 1 and len(x.cells) > 1:
        raise UnsupportedError(f"normalization of several kinds of channels in {norm.groups} groups has no population",
                               node, instead="groups=1")

    def over(level: Array) -> Array:
        return np.asarray(level.mean(axis=1, keepdims=True)) if norm.axis == "group" else level

    mean = over(x.mean(lambda a: a)) if norm.center else np.zeros(())
    spread = np.sqrt(over(x.mean(lambda a: (a - mean) ** 2)) + float(norm.eps))
    if not (spread > 0).all():
        raise UnsupportedError("a value without variance is normalized", node, instead="a positive eps")
    return mean, spread


def _by_channels(norm: Standardize, x: Value) -> bool:
    """Whether statistics are over many channels."""
    return norm.axis == "channel" or (norm.axis == "group" and norm.groups != x.channels)


def _over(norm: Standardize) -> tuple[int, ...]:
    """Axes of a coordinate's statistics: samples and positions, or positions alone (instance norm)."""
    return (2,) if norm.axis == "group" else (1, 2)


def _batch_statistics(norm: Standardize, x: Array) -> tuple[Array, Array]:
    """Mean and 1/sigma of each coordinate; 1/sigma is 0 where sigma is."""
    mean = x.mean(axis=_over(norm), keepdims=True) if norm.center else np.zeros(())
    variance = ((x - mean) ** 2).mean(axis=_over(norm), keepdims=True) + float(norm.eps)
    return mean, np.divide(1.0, np.sqrt(variance), out=np.zeros_like(variance), where=variance > 0)


def standardized(norm: Standardize, x: Value, node: str) -> Value:
    """A value less its mean, over its standard deviation. Raises UnsupportedError where it has no variance."""
    if _by_channels(norm, x):
        center, spread = _channel_statistics(norm, x, node)
        return blockwise(lambda a: _small_for_zero(norm, a, center, spread, (a - center) / spread), [x])

    def over_batch(a: Array) -> Array:
        mean, inverse = _batch_statistics(norm, a)
        return np.asarray((a - mean) * inverse)

    return blockwise(over_batch, [x])


def _small_for_zero(norm: Standardize, a: Array, center: Array, spread: Array, y: Array) -> Array:
    """Dropped values behind a mean that vanishes are small numbers of either sign (see `varflow.laws.dropped`), each
    sign for half of the coordinates."""
    dropped = a == 0
    if not norm.center or not dropped.any():
        return y
    signs = SMALL * (1 - 2 * (np.arange(len(a)) % 2))[:, None, None]
    return np.where(dropped & (np.abs(center) < MOST_ERRORS * spread / np.sqrt(len(a))), signs, y)


def standardized_backward(norm: Standardize, x: Value, d: Value, node: str) -> Value:
    """Over channels the means of d and of y d vanish: they are odd in the cotangent."""
    if _by_channels(norm, x):
        spread = _channel_statistics(norm, x, node)[1]
        return blockwise(lambda a: a / spread, [d])

    def over_batch(a: Array, g: Array) -> Array:
        mean, inverse = _batch_statistics(norm, a)
        y = (a - mean) * inverse
        g = g - g.mean(axis=_over(norm), keepdims=True) if norm.center else g
        return np.asarray((g - y * (y * g).mean(axis=_over(norm), keepdims=True)) * inverse)

    return blockwise(over_batch, [x, d])
