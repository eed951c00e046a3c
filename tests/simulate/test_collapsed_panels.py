"""Collapsed products of more columns than a panel of their factors has: what they must agree with, and their law."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from varflow.simulate.kernels import RandomMatrix
from varflow.simulate.kernels_collapse import Revealed, collapse
from varflow.simulate.kernels_product import PANEL

DRAWS, INNER, OUTER = 400, 60, 70
Values = NDArray[np.float32]


def uses(columns: int, draws: int = 3) -> tuple[list[tuple[Values, Values]], list[tuple[Values, Values]]]:
    """(x, W x) and (d, W^T d): twice each in turns, later arguments made of earlier results; one column is twice
    another."""
    weight, known = RandomMatrix(OUTER, INNER, 0, INNER**-0.5), Revealed(draws, (2 * columns, 2 * columns))
    rng = np.random.default_rng(columns)
    x = rng.standard_normal((columns, INNER)).astype(np.float32).repeat(draws).reshape(columns, INNER, draws)
    x = np.ascontiguousarray(x.transpose(2, 0, 1))
    x[:, -1] = 2 * x[:, 0]
    d = np.broadcast_to(rng.standard_normal((columns, OUTER)).astype(np.float32), (draws, columns, OUTER)).copy()
    for k in range(2):
        y = collapse(x, weight, known, 2 * k, seed=3)
        e = collapse(d, weight, known, 2 * k + 1, seed=3, transpose=True)
        x, d = np.tanh(e), np.tanh(y)
    return known.uses[False], known.uses[True]


@pytest.mark.parametrize("columns", [PANEL - 1, PANEL, PANEL + 1, 2 * PANEL + 3, 27])
def test_one_matrix_stands_behind_all_uses(columns: int) -> None:
    """d . W x = W^T d . x for every pair of columns, and what is linear stays so."""
    right, left = uses(columns)
    for x, y in right:
        for d, e in left:
            there, back = (np.einsum("ndk,nxk->ndx", *pair, dtype=np.float64) for pair in ((d, y), (e, x)))
            np.testing.assert_allclose(there, back, atol=2e-3)
    np.testing.assert_allclose(right[0][1][:, -1], 2 * right[0][1][:, 0], rtol=1e-4, atol=1e-4)


def test_the_covariance_is_that_of_the_columns() -> None:
    """E y_i . y_j = (n_out / n_in) x_i . x_j, for results of a matrix that nothing is known of, and behind its
    transpose: the law of what is fresh, without what is known."""
    columns = 2 * PANEL + 1
    right, left = uses(columns, DRAWS)
    x, y = right[0]
    found = np.einsum("nik,njk->nij", y, y, dtype=np.float64)
    expected = OUTER / INNER * (x[0].astype(np.float64) @ x[0].T)
    z = (found.mean(axis=0) - expected) / (found.std(axis=0) / DRAWS**0.5)
    assert np.abs(z).max() < 5
    d, e = left[0]
    inside = np.linalg.qr(x[0, :-1].T.astype(np.float64))[0]
    fresh = e - (e @ inside) @ inside.T
    found = np.einsum("nik,njk->nij", fresh, fresh)
    expected = (INNER - columns + 1) / INNER * (d[0].astype(np.float64) @ d[0].T)
    z = (found.mean(axis=0) - expected) / (found.std(axis=0) / DRAWS**0.5)
    assert np.abs(z).max() < 5

