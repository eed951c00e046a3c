"""A smooth function at many rows from its values at some."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from varflow.laws.fitted import fitted

Array = npt.NDArray[np.float64]


def correlation_rows(places: int) -> Array:
    """(q, q', c) of pairs of places whose moments fall off towards a border."""
    q = 1 - 0.4 * np.exp(-np.arange(places) / 2.0)
    near = np.exp(-np.abs(np.subtract.outer(np.arange(places), np.arange(places))) / 3.0)
    c = 0.5 * near * np.sqrt(np.outer(q, q))
    first, second = np.broadcast_to(q[:, None], c.shape), np.broadcast_to(q, c.shape)
    return np.stack([first.ravel(), second.ravel(), c.ravel()], axis=1)


def arc_cosine(row: Array) -> float:
    """E[relu(u) relu(v)]."""
    q, r, c = row
    angle = np.arccos(c / np.sqrt(q * r))
    return float(np.sqrt(q * r) * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi))


@pytest.mark.parametrize("places", [12, 40])
def test_an_arc_cosine_kernel_between_places(places: int) -> None:
    rows = correlation_rows(places)
    calls: list[int] = []

    def evaluate(row: Array) -> float:
        calls.append(1)
        return arc_cosine(row)

    found, true = fitted(rows, evaluate, 64), np.array([arc_cosine(row) for row in rows])
    assert len(calls) <= 64
    assert np.abs(found - true).max() < 0.01 * true.mean()
    assert true.std() > 0.1 * true.mean()


def test_few_rows_are_evaluated_one_by_one() -> None:
    rows = correlation_rows(5)
    assert fitted(rows, arc_cosine, 64).tolist() == [arc_cosine(row) for row in rows]
