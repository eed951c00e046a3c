"""Points of jointly Gaussian variables: scrambled Sobol sequences with antithetic points (Owen 1998)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
POINTS = 2**13


@lru_cache(maxsize=64)
def drawn(sources: int, masks: int) -> tuple[Array, Array]:
    """Antithetic Gaussian points (2 POINTS, sources), and uniform ones for masks."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    dimensions = max(sources + masks, 1)
    u = qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(dimensions)).random(POINTS)
    z = ndtri(np.clip(u[:, :sources], 1e-12, 1 - 1e-12))
    both = np.concatenate([u[:, sources:], u[:, sources:]])
    return np.concatenate([z, -z]), both


def antithetic(count: int) -> Array:
    """Standard Gaussian points (2 POINTS, count)."""
    return drawn(count, 0)[0]


def root_of(matrix: Array) -> Array:
    """A square root of a covariance, large variances first; rounding cut off."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0)))[:, ::-1])
