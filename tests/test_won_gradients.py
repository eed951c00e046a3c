"""Gradients in front of maxima whose readers see a normalized maximum, and of gradients that pass two maxima, against
PyTorch; covariances between places where the windows at borders are of many kinds."""

from __future__ import annotations

import numpy as np
import pytest

import varflow as vf
from tests.convolutional import HE, Draw, F, N, Tensor, check, image, norm, torch
from varflow.laws.fitted import fitted
from varflow.lowering import lower
from varflow.network import Network
from varflow.simulate.cpu import simulate


def test_gradients_gated_by_a_normalized_maximum() -> None:
    """The slope is relu' of k max - m: a function of the largest with coefficients, in windows that overlap."""
    net, x = image(N, 12, 12)
    h = net.relu(net.batch_norm(net.conv(x, N, kernel=3, padding=1, name="c", **HE), name="n"))
    h = net.max_pool(h, 3, stride=2, padding=1, name="m")
    net.conv(net.relu(net.batch_norm(h)), N, kernel=3, name="y", **HE)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("n", norm(draw.name("c", draw.conv(draw.input(N, 12, 12), N, 3, 2.0, padding=1)))).relu()
        return draw.conv(norm(draw.name("m", F.max_pool2d(h, 3, 2, 1))).relu(), N, 3, 2.0)

    check(net, forward, draws=120, samples=16, bias=0.02)


def test_many_readers_of_a_maximum_that_normalize() -> None:
    """Two layers of a dense block read one maximum: the gradient is a sum over readers, each with its slope."""
    net, x = image(N, 10, 10)
    h = net.relu(net.batch_norm(net.conv(x, N, kernel=3, padding=1, name="c", **HE), name="n"), name="r")
    h = net.max_pool(h, 3, stride=2, padding=1, name="m")
    for k in range(2):
        layer = net.conv(net.relu(net.batch_norm(h)), N, kernel=3, padding=1, **HE)
        h = net.concat(h, layer, name=f"d{k}")
    net.pointwise_conv(net.relu(net.batch_norm(h)), N, name="y", **HE)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("n", norm(draw.name("c", draw.conv(draw.input(N, 10, 10), N, 3, 2.0, padding=1))))
        h = draw.name("m", F.max_pool2d(draw.name("r", h.relu()), 3, 2, 1))
        for k in range(2):
            h = draw.name(f"d{k}", torch.cat([h, draw.conv(norm(h).relu(), N, 3, 2.0, padding=1)], 1))
        return draw.conv(norm(h).relu(), N, 1, 2.0)

    check(net, forward, draws=120, samples=16, bias=0.03)


def test_gradients_behind_a_second_maximum() -> None:
    """What the first maximum's entries win comes through a norm from entries that win the second one."""
    net, x = image(N, 13, 13)
    h = net.relu(net.batch_norm(net.conv(x, N, kernel=3, padding=1, name="c", **HE)))
    h = net.max_pool(h, 3, stride=2, name="m")
    h = net.relu(net.batch_norm(net.pointwise_conv(h, 2 * N, **HE)))
    h = net.relu(net.batch_norm(net.conv(h, 2 * N, kernel=3, padding=1, name="c2", **HE)))
    net.max_pool(h, 3, stride=2, name="y")

    def forward(draw: Draw) -> Tensor:
        h = norm(draw.name("c", draw.conv(draw.input(N, 13, 13), N, 3, 2.0, padding=1))).relu()
        h = norm(draw.conv(draw.name("m", F.max_pool2d(h, 3, 2)), 2 * N, 1, 2.0)).relu()
        h = norm(draw.name("c2", draw.conv(h, 2 * N, 3, 2.0, padding=1))).relu()
        return F.max_pool2d(h, 3, 2)

    check(net, forward, draws=120, samples=16, bias=0.04)


def test_functions_that_a_quadratic_does_not_fit_are_evaluated() -> None:
    """Frequent rows first: those of the middle of an image."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.integers(0, 2, (90, 9)), np.zeros((1, 9))]).astype(float)
    rows = np.unique(rows, axis=0)
    counts = np.where(rows.any(axis=1), 1.0, 1000.0)

    def evaluate(row: np.ndarray) -> float:
        return float(np.prod(1 + row))

    true = np.array([evaluate(r) for r in rows])
    assert fitted(rows, evaluate, 64, counts) == pytest.approx(true, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("densenet121", 64), ("inception_v3_stem", 75)])
def test_first_gradients_of_published_graphs_have_numbers(name: str, size: int) -> None:
    d = vf.derive(vf.load(name))
    gradients = {k: v["grad_second_moment"] for k, v in d.numeric({"size": size}).items()}
    assert np.isfinite(list(gradients.values())).all()
    assert gradients["x"] > 0


def test_two_pools_of_one_value_are_a_closure() -> None:
    """What arrives at the one is a function of the other's maximum: said to be exact, it was 7 % low."""
    net = Network("two")
    x = net.input("x", 64, (8, 8))
    p = net.max_pool(x, 3, 2, 1, name="p")
    q = net.max_pool(net.scale(x, "2/3", name="scaled"), 3, 2, 1, name="q")
    net.linear(net.mean_pool(net.multiply(q, net.tanh(p))), 64, variance="1/fan_in", name="y")
    d = vf.derive(net)
    assert d["scaled"].grad_exactness == "closure" and d["q"].grad_exactness == "exact"
    number, seen = d.numeric({})["scaled"]["grad_second_moment"], simulate(lower(net), 100, samples=8, seed=1)
    assert abs(number / seen.backward["scaled"].second_moment - 1) < 0.1
