"""Products with generated matrices, normalization and statistics, against explicit arrays and autograd."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from varflow.errors import InputError, ShapeError
from varflow.simulate import jit, kernels
from varflow.simulate import rng_reference as reference
from varflow.simulate.kernels import RandomMatrix, contract
from varflow.simulate.kernels_standardize import standardize, standardize_backward


def normals(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def relative(got: NDArray[Any], want: NDArray[Any]) -> float:
    return float(np.abs(got - want).max() / np.sqrt(np.mean(np.square(want))))


MATRICES = [
    RandomMatrix(5, 7, tensor=1),
    RandomMatrix(9, 3, tensor=2, std=0.3, distribution="uniform"),
    RandomMatrix(3, 70, tensor=3, distribution="truncated_normal"),
    RandomMatrix(6, 11, tensor=4, distribution="rademacher", keep=0.4, mask_tensor=5),
    RandomMatrix(4, 5, tensor=6, std=0.25, distribution="constant"),
]


@pytest.mark.parametrize("matrix", MATRICES, ids=lambda m: m.distribution)
def test_contract_against_the_reference_generator(matrix: RandomMatrix) -> None:
    def entry(draw: int, index: int) -> float:
        value = matrix.std * reference.element(matrix.distribution, 8, draw, matrix.tensor, index)
        kept = matrix.keep == 1 or reference.element(
            "bernoulli", 8, draw, matrix.mask_tensor, index, matrix.keep
        )
        return value * kept

    size = matrix.rows * matrix.columns
    flat = [[entry(3 + d, i) for i in range(size)] for d in range(2)]
    w = np.array(flat).reshape(2, matrix.rows, matrix.columns)
    h, v = normals(2, 3, matrix.columns), normals(2, 3, matrix.rows)
    forward = contract(h, matrix, seed=8, first_draw=3)
    back = contract(v, matrix, seed=8, first_draw=3, transpose=True)
    assert relative(forward, np.einsum("dpi,doi->dpo", h, w)) < 3e-6
    assert relative(back, np.einsum("dpo,doi->dpi", v, w)) < 3e-6


SIZES = [
    (1, 1, 1),
    (130, 27, 9),
    (64, 1024, 3),
    (33, 2500, 2),
    (700, 500, 1),
    (3, 4100, 1),
    (2, 5000, 17),
]


@pytest.mark.parametrize(("rows", "columns", "places"), SIZES)
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_contract_against_dense(rows: int, columns: int, places: int, keep: float) -> None:
    matrix = RandomMatrix(rows, columns, tensor=7, std=0.2, keep=keep, mask_tensor=9)
    w = matrix.dense(5, 2, first_draw=1).astype(np.float64)
    h, v = normals(2, places, columns), normals(2, places, rows)
    forward = contract(h, matrix, seed=5, first_draw=1)
    back = contract(v, matrix, seed=5, first_draw=1, transpose=True)
    assert relative(forward, np.einsum("dpi,doi->dpo", h, w)) < 3e-6
    assert relative(back, np.einsum("dpo,doi->dpi", v, w)) < 3e-6


def test_the_two_directions_are_transposes() -> None:
    matrix = RandomMatrix(150, 220, tensor=3, keep=0.7, mask_tensor=4)
    h, v = normals(4, 2, 220), normals(4, 2, 150, seed=1)
    left = (contract(h, matrix, seed=1).astype(float) * v).sum(axis=2)
    right = (contract(v, matrix, seed=1, transpose=True).astype(float) * h).sum(axis=2)
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-3)


def test_sparse_mask_is_independent_of_the_entries() -> None:
    matrix = RandomMatrix(300, 300, tensor=3, keep=0.3, mask_tensor=4)
    w = matrix.dense(0, 4).ravel().astype(float)
    assert abs((w != 0).mean() - 0.3) < 5 * np.sqrt(0.21 / w.size)
    assert abs((w[w != 0] ** 2).mean() - 1) < 5 * np.sqrt(2 / (0.3 * w.size))


def test_bits_do_not_depend_on_threads_or_chunks() -> None:
    matrix = RandomMatrix(90, 80, tensor=3)
    h = normals(11, 2, 80)
    threads = jit.get_threads()
    try:
        jit.set_threads(1)
        one = contract(h, matrix, seed=1)
        jit.set_threads(3)
        three = contract(h, matrix, seed=1)
    finally:
        jit.set_threads(threads)
    parts = [contract(h[a:b], matrix, seed=1, first_draw=a) for a, b in ((0, 4), (4, 5), (5, 11))]
    assert np.array_equal(one, three)
    assert np.array_equal(one, np.concatenate(parts))


def test_contract_errors() -> None:
    with pytest.raises(ShapeError, match="7 channels"):
        contract(normals(1, 1, 6), RandomMatrix(5, 7, tensor=1), seed=0)
    with pytest.raises(InputError, match="mask_tensor"):
        RandomMatrix(5, 7, tensor=0, keep=0.5)
    with pytest.raises(InputError, match="unknown distribution"):
        RandomMatrix(5, 7, tensor=1, distribution="cauchy")


@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (60, 20), (20, 60)])
def test_haar(rows: int, columns: int) -> None:
    q = kernels.haar(rows, columns, seed=1, tensor=2, draws=200, scale=2.0).astype(float)
    gram = q @ q.transpose(0, 2, 1) if rows < columns else q.transpose(0, 2, 1) @ q
    np.testing.assert_allclose(
        gram, np.broadcast_to(4 * np.eye(gram.shape[1]), gram.shape), atol=1e-5
    )
    entries = q[:, 0, 0] * np.sqrt(max(rows, columns)) / 2
    assert abs(entries.mean()) < 5 / np.sqrt(200)
    assert abs((entries**2).mean() - 1) < 5 * np.sqrt(2 / 200)
    again = kernels.haar(rows, columns, seed=1, tensor=2, draws=3, first_draw=7, scale=2.0)
    assert np.array_equal(again, q[7:10].astype(np.float32))
    h = normals(200, 3, columns)
    product = kernels.multiply(h, q.astype(np.float32))
    np.testing.assert_allclose(product, np.einsum("dpi,doi->dpo", h, q), rtol=1e-4, atol=1e-4)


def test_moments() -> None:
    x = normals(5, 3, 2000) * 2 + 1
    wide = x.astype(np.float64).reshape(5, -1)
    want = np.stack([(wide**k).mean(axis=1) for k in (1, 2, 4)], axis=1)
    np.testing.assert_allclose(kernels.moments(x), want, rtol=1e-12)


@pytest.mark.parametrize("places", [1, 40])
def test_weight_gradient_moment(places: int) -> None:
    uses = [(normals(3, places, 12, seed=k), normals(3, places, 17, seed=10 + k)) for k in range(2)]
    gradient = sum(np.einsum("dpo,dpi->doi", d.astype(float), h.astype(float)) for d, h in uses)
    want = np.mean(np.square(gradient), axis=(1, 2))
    np.testing.assert_allclose(kernels.weight_gradient_moment(uses), want, rtol=1e-6)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("channel", {}),
    ("channel", {"groups": 4, "eps": 1e-2}),
    ("channel", {"center": False}),
    ("sample", {}),
    ("sample", {"positions": 3, "eps": 1e-3}),
    ("sample", {"center": False}),
    ("batch", {"positions": 3}),
]


@pytest.mark.parametrize(("axis", "options"), CASES, ids=str)
def test_standardize_against_autograd(axis: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    x, dy = normals(3, 12, 20) * 2 + 1, normals(3, 12, 20, seed=1)
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    groups, positions = options.get("groups", 1), options.get("positions", 1)
    shape = (3, 12 * groups, 20 // groups, 1)
    if axis != "channel":
        shape = (3, 1, 12, 20) if axis == "batch" else (3, 1, 12 // positions, positions * 20)
    folded = leaf.reshape(shape)
    centred = folded - folded.mean(dim=2, keepdim=True) if options.get("center", True) else folded
    variance = centred.square().mean(dim=2, keepdim=True) + options.get("eps", 0.0)
    y = (centred / variance.sqrt()).reshape(x.shape)
    y.backward(torch.tensor(dy, dtype=torch.float64))
    np.testing.assert_allclose(
        standardize(x, axis, **options), y.detach().numpy(), rtol=1e-5, atol=1e-6
    )
    got = standardize_backward(x, dy, axis, **options)
    np.testing.assert_allclose(got, leaf.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_standardize_errors() -> None:
    with pytest.raises(ShapeError, match="groups"):
        standardize(normals(1, 1, 5), groups=2)
    with pytest.raises(InputError, match="axis"):
        standardize(normals(1, 1, 5), "width")


def test_means_and_expansion() -> None:
    x = normals(2, 12, 5)
    parts = x.reshape(2, 4, 3, 5)
    np.testing.assert_allclose(
        kernels.channel_mean(x)[..., 0], x.mean(axis=2), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        kernels.position_mean(x, 3), parts.mean(axis=2), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(kernels.sample_mean(x, 4), parts.mean(axis=1), rtol=1e-5, atol=1e-6)
    expanded = kernels.position_expand(kernels.position_mean(x, 3), 3)
    assert expanded.shape == x.shape
    assert np.array_equal(expanded[:, 0], expanded[:, 2])


def test_gather_and_scatter_are_transposes() -> None:
    index = np.array([[-1, 0, 1], [0, 1, 2], [1, 2, -1], [2, 2, 0]])
    x, y = normals(2, 3, 5), normals(2, 4, 15, seed=1)
    taps = kernels.gather(x, index)
    assert np.array_equal(taps[:, 1, 5:10], x[:, 1])
    assert not taps[:, 0, :5].any()
    left = (taps.astype(float) * y).sum(axis=(1, 2))
    right = (x.astype(float) * kernels.scatter(y, index, 3)).sum(axis=(1, 2))
    np.testing.assert_allclose(left, right, rtol=1e-5)


def test_kernels_survive_a_fork() -> None:
    script = (
        "import multiprocessing, numpy as np\n"
        "from varflow.simulate import rng\n"
        "def f(_=0): return rng.sample('normal', (8, 100), seed=1, tensor=1).sum()\n"
        "a = f()\n"
        "with multiprocessing.get_context('fork').Pool(1) as p: assert p.map(f, [0])[0] == a\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
