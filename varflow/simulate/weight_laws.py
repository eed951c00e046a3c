"""Weights normalized by themselves: the scale and the shift that bring i.i.d. entries to their law, row by row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varflow.simulate.kernels_window import RandomTaps

Value = NDArray[np.float32]
Float = NDArray[np.float64]

LAWS = ("standardized", "weight_norm", "spectral")


def row_laws(weight: RandomTaps, *, seed: int, draws: int, first_draw: int = 0) -> Value:
    """(draws, rows, 2): factor and addend of the Gaussian entries of each row (over its taps and columns).

    "standardized" rows have mean 0 and mean square ``std``^2 (Brock et al. 2021); "weight_norm" rows have that mean
    square (Salimans and Kingma 2016); a "spectral" weight has largest singular value ``std`` as a matrix of rows x
    (taps columns), all groups together (Miyato et al. 2018).
    """
    laws = np.empty((draws, weight.rows, 2), np.float32)
    for d in range(draws):
        entries = weight.drawn(seed, 1, first_draw + d)[0].astype(np.float64)
        mean = entries.mean(axis=1) if weight.law == "standardized" else np.zeros(weight.rows)
        scale = weight.std / _size(weight, entries, mean)
        laws[d, :, 0], laws[d, :, 1] = scale, -mean * scale
    return laws


def _size(weight: RandomTaps, entries: Float, mean: Float) -> Float:
    """What the law divides each row by."""
    if weight.law == "spectral":
        gram = entries @ entries.T if weight.rows <= weight.row_length else entries.T @ entries
        return np.full(weight.rows, np.sqrt(np.linalg.eigvalsh(gram)[-1]))
    return np.asarray(np.sqrt(np.square(entries - mean[:, None]).mean(axis=1)))
