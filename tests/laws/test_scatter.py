"""Gaussian vectors over their own length, against samples of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from varflow.laws.scatter import Normalized, Shrinkage

Array = npt.NDArray[np.float64]
P, ZERO = 4, np.zeros((1, 1))


def matrix(seed: int) -> Array:
    a = np.random.default_rng(seed).normal(size=(P, P))
    return np.asarray(a @ a.T / P + 0.05 * np.eye(P))


def four(within: Array, between: Array) -> tuple[Array, ...]:
    return np.diag(within)[:, None].copy(), within, np.diag(between)[:, None].copy(), between


def field(own: Array, common: Array, members: int, draws: int, seed: int) -> Array:
    """Gaussian vectors of ``members`` that have ``common`` in common: (draws, members, P)."""
    random = np.random.default_rng(seed)
    parts = [random.normal(size=(draws, n, P)) @ np.linalg.cholesky(m).T for m, n in ((own, members), (common, 1))]
    return np.asarray(parts[0] + parts[1])


@pytest.mark.parametrize("members", [3, None])
def test_moments_of_normalized_vectors(members: int | None) -> None:
    """With each other and with another value, at one position and between two, within a member and between two."""
    own, common, turn = matrix(1), 2 * matrix(2), np.random.default_rng(3).normal(size=(P, P))
    draws, n = (150_000, 3) if members else (6_000, 300)
    y = field(own, common, n, draws, 4)
    z = y - y.mean((1, 2), keepdims=True)
    z /= np.sqrt((z**2).mean((1, 2), keepdims=True))
    w = y @ turn.T
    entries, many, count = four(own + common, common), members is None, np.full((1, 1), float(members or 0))
    for across in (False, True):
        for itself, other, beside in ((True, z, ()), (False, w, four((own + common) @ turn.T, common @ turn.T))):
            stated = Normalized(P, many, True, across, itself).apply(count, ZERO, *entries, *beside)
            drawn = z[:, 0].T @ other[:, int(across)] / draws
            assert stated == pytest.approx(drawn, abs=6 * float(np.abs(stated).max() + 1) / draws**0.5)
            diagonal = Normalized(P, many, False, across, itself).apply(count, ZERO, *entries, *beside)
            assert diagonal[:, 0] == pytest.approx(np.diag(stated))
    own_moment = Normalized(P, many, False, False, True).apply(count, ZERO, *entries)
    assert own_moment.mean() == pytest.approx(1)


@pytest.mark.parametrize("members", [3, None])
def test_shrinkage(members: int | None) -> None:
    """Gradients of any covariance on their way through a normalization."""
    own, common = matrix(5), matrix(6)
    draws, n = (150_000, 3) if members else (4_000, 300)
    y, d = field(own, common, n, draws, 7), field(matrix(8), matrix(9), n, draws, 10)
    y, d = (v - v.mean((1, 2), keepdims=True) for v in (y, d))
    variance = (y**2).mean((1, 2), keepdims=True)
    back = (d - y * (y * d).mean((1, 2), keepdims=True) / variance) / np.sqrt(variance)
    entries, gradient = four(own + common, common), four(matrix(8) + matrix(9), matrix(9))
    count = np.full((1, 1), float(members or 0))
    stated = Shrinkage(P, members is None).apply(count, ZERO, *entries, *gradient).item()
    assert stated == pytest.approx((back**2).mean() / (d**2).mean(), rel=0.01)


def test_exchangeable_entries() -> None:
    """Numbers instead of matrices say the same; independent entries have known moments."""
    numbers = tuple(np.array([[x]]) for x in (1.5, 0.4, 0.3, 0.2))
    eye, ones = np.eye(P), np.ones((P, P))
    full = four(1.1 * eye + 0.4 * ones, 0.1 * eye + 0.2 * ones)
    eps, three = np.full((1, 1), 0.1), np.full((1, 1), 3.0)
    for position in (False, True):
        for across in (False, True):
            rule = Normalized(P, False, position, across)
            assert rule.apply(three, eps, *numbers, *numbers) == pytest.approx(
                rule.apply(three, eps, *full, *full).ravel()[1])
    assert Shrinkage(P, False).apply(three, eps, *numbers, *numbers) == pytest.approx(
        Shrinkage(P, False).apply(three, eps, *full, *full))
    alone = (np.full((1, 1), 2.0), ZERO, ZERO, ZERO)
    for n, stated in ((2, 0.0), (3, np.inf), (4, 4 / 3 * 2), (16, 16 / 15 * 14 / 13)):
        assert 2 * Shrinkage(n, False).apply(np.ones((1, 1)), ZERO, *alone, *alone).item() == pytest.approx(stated)
