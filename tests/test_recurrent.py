"""Recurrences against PyTorch's own cells: second moments of states and cells of every step, and of their gradients."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.recurrent import NETWORKS, brute_force, deviations, laws
from varflow.laws.population_cells import Array, Value, array_gram, gram, whole
from varflow.laws.population_weights import Matrix

HALF = 2048


@pytest.mark.parametrize(("kind", "steps"), [
    ("lstm", 20), ("gru", 10), ("tanh", 30), *(pytest.param(k, 100, marks=pytest.mark.slow) for k in sorted(NETWORKS))])
def test_second_moments_are_those_of_pytorch(kind: str, steps: int) -> None:
    mean, error = brute_force(kind, steps, 256 if steps < 100 else 512, 16, 8)
    assert (error < 0.02 * mean + 1e-12).all()
    off, allowed = deviations(laws(kind, steps, 512), mean, error)
    assert (np.abs(off) < allowed).all()


def test_what_was_found_for_a_hundred_steps() -> None:
    """``python -m tests.recurrent KIND``, 512 units."""
    rows = json.loads(Path(__file__).with_name("recurrent.json").read_text(encoding="utf-8"))
    assert {r["kind"] for r in rows} == set(NETWORKS)
    for r in rows:
        assert r["steps"] == 100
        assert all(f["steps outside"] == 0 and f["largest deviation"] < 0.03 for f in r["found"].values())


def fresh(rng: np.random.Generator, places: int) -> Array:
    """Half of unit Gaussian coordinates."""
    return rng.standard_normal((HALF, 1, places))


@pytest.mark.parametrize("places", [1, 3])
def test_every_use_of_a_matrix_covaries_with_all_earlier_ones(places: int) -> None:
    """Exactly, on the coordinates at hand; the image of a combination of inputs is that of their images."""
    rng = np.random.default_rng(3)

    def noise(channels: int, against: object, basis: Array | None = None) -> Array:
        columns = fresh(rng, places)
        known = columns[:, :, :0] if basis is None else basis
        rest = columns[:, 0] - known[:, 0] @ array_gram(known, columns)[0]
        q, r = np.linalg.qr(rest)
        return np.asarray(q * np.sign(np.diag(r)) * HALF**0.5)[:, None]

    shared = fresh(rng, places)
    inputs = [np.tanh(np.concatenate([shared + fresh(rng, places), shared - fresh(rng, places)])) for _ in range(40)]
    inputs += [inputs[3] - 2 * inputs[30], inputs[7]]
    values = [whole(64, x) for x in inputs]
    matrix = Matrix(96, 64, 0.02, noise)
    images = [matrix.apply(x, False, True, False) for x in values]
    assert covariances(images) == pytest.approx(0.02 * 64 * covariances(values), abs=1e-9)
    y = [v.cells[0].array for v in images]
    assert y[40] == pytest.approx(y[3] - 2 * y[30], abs=1e-7)
    assert y[41] == pytest.approx(y[7], abs=1e-7)


def covariances(values: list[Value]) -> Array:
    return np.block([[gram(a, b)[0] for b in values] for a in values])
