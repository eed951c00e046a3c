"""Stochastic depth: samples of different masks have different scales, in values and in gradients."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import sympy as sp

import varflow as vf
from tests.convolutional import GAIN, Draw, F, Tensor, brute, image, near, norm, torch
from varflow.laws import mixtures
from varflow.laws.mixtures import combinations
from varflow.laws.population import run_population
from varflow.lowering import lower
from varflow.network import Network
from varflow.simulate.cpu import simulate

HERMITE = np.polynomial.hermite_e.hermegauss(80)


def _mean(f: Any, variance: float) -> float:
    """E f(x), x Gaussian of this variance."""
    points, weights = HERMITE
    return float(weights @ f(np.sqrt(variance) * points) / weights.sum())


def _silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def _slope(x: Any) -> Any:
    s = 1 / (1 + np.exp(-x))
    return s * (1 + x * (1 - s))


def _one_block(keep: str) -> Network:
    net = Network("block")
    x = net.input("x", "n")
    path = net.drop_path(net.linear(x, "n", name="c", **GAIN), p=1 - sp.Rational(keep), name="path")
    net.silu(net.batch_norm(net.linear(net.add(x, path), "n", name="d", **GAIN), name="norm"), name="y")
    return net


@pytest.mark.parametrize("keep", ["1/2", "4/5"])
def test_one_block_by_quadrature(keep: str) -> None:
    """Variances 1 and 1 + 1/keep^2; the batch norm divides both by their mean; the branch's gradient has its mask."""
    found = vf.derive(_one_block(keep)).numeric({"n": 512})
    k = float(sp.Rational(keep))
    chances, variances = np.array([k, 1 - k]), np.array([1 + 1 / k**2, 1.0])
    total = chances @ variances
    values = [_mean(lambda x: _silu(x) ** 2, v / total) for v in variances]
    slopes = np.array([_mean(lambda x: _slope(x) ** 2, v / total) for v in variances]) / total
    assert found["y"]["second_moment"] == pytest.approx(chances @ values, rel=1e-6)
    assert found["d"]["second_moment"] == pytest.approx(total, rel=1e-6)
    assert found["norm"]["second_moment"] == pytest.approx(1, rel=1e-9)
    assert found["c"]["grad_second_moment"] == pytest.approx(slopes[0] / k, rel=1e-6)
    assert found["x"]["grad_second_moment"] == pytest.approx(chances @ (slopes * variances), rel=1e-6)


@pytest.mark.parametrize(("function", "label"), [("silu", "closure"), ("relu", "exact")])
def test_formulas_say_what_they_take_for_gaussian(function: str, label: str) -> None:
    """Formulas see a mean variance: right for relu^2, whose mean is linear in it."""
    assert vf.derive(_stack(function, 1, 64))["a"].exactness == label


def test_combinations() -> None:
    """All of few masks; of many some, with the probability of every mask."""
    masks, weights = combinations([0.5, 0.8])
    assert weights.sum() == pytest.approx(1) and weights @ masks == pytest.approx([0.5, 0.8])
    keep = [0.975, 0.95, 0.9, 0.875, 0.85, 0.825, 0.8, 0.5]
    masks, weights = combinations(keep)
    assert len(masks) == mixtures.SOME and weights.min() > 0
    assert weights.sum() == pytest.approx(1) and weights @ masks == pytest.approx(keep)


def test_some_combinations_are_good_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six masks by all their combinations and by some of them."""
    net = _stack("silu", 6, 64)
    every = vf.derive(net).numeric({})
    monkeypatch.setattr(mixtures, "EXACTLY", 1)
    some = vf.derive(net).numeric({})
    for name, law in every.items():
        assert some[name]["second_moment"] == pytest.approx(law["second_moment"], rel=0.02)
        assert some[name]["grad_second_moment"] == pytest.approx(law["grad_second_moment"], rel=0.06)


def _stack(function: str, blocks: int, width: int, p: str = "1/2") -> Network:
    net = Network("stack")
    x = net.input("x", width)
    for k in range(blocks):
        h = net.activation(net.batch_norm(net.linear(x, width, name=f"c{k}", **GAIN)), function, name=f"a{k}")
        h = net.drop_path(net.batch_norm(net.linear(h, width, **GAIN), name=f"m{k}"), p=p, name=f"p{k}")
        x = net.add(x, h, name=f"s{k}")
    a = net.activation(net.batch_norm(net.linear(x, width, **GAIN)), function, name="a")
    net.linear(a, width, name="y", **GAIN)
    return net


def _linear(draw: Draw, x: Tensor, out: int) -> Tensor:
    return F.linear(x, draw.weight(out, x.shape[1]))


def _mask(draw: Draw, keep: float, axes: int) -> Tensor:
    shape = (draw.samples, *(1 for _ in range(axes)))
    return (torch.empty(*shape).uniform_(generator=draw.random) < keep).float() / keep


def test_dense_blocks() -> None:
    """Three residual blocks that half of the samples skip: the gradient of the first branch, whose mask makes later
    values of the sample larger, is a fifth above that of Gaussian values of the same variance."""
    width = 256
    numbers = vf.derive(_stack("silu", 3, width)).numeric({})

    def forward(draw: Draw) -> Tensor:
        x = draw.input(width)
        for k in range(3):
            a = draw.name(f"a{k}", F.silu(norm(draw.name(f"c{k}", _linear(draw, x, width)))))
            m = draw.name(f"m{k}", norm(_linear(draw, a, width)))
            x = draw.name(f"s{k}", x + draw.name(f"p{k}", _mask(draw, 0.5, 1) * m))
        return _linear(draw, draw.name("a", F.silu(norm(_linear(draw, x, width)))), width)

    for name, (value, gradient) in brute(forward, draws=60, samples=384).items():
        near(numbers[name]["second_moment"], value, 0.02, f"{name} forward")
        near(numbers[name]["grad_second_moment"], gradient, 0.03, f"{name} backward")
    assert numbers["m0"]["grad_second_moment"] > 1.15 * numbers["p0"]["grad_second_moment"] * 2


@pytest.mark.parametrize("function", ["silu", "relu"])
def test_blocks_of_images(function: str) -> None:
    """Padded convolutions, batch norm and global averaging: means over positions depend on the masks."""
    width, act = 48, getattr(F, function)
    net, x = image(width, 6, 6)
    for k in range(2):
        h = net.batch_norm(net.conv(x, width, 3, padding=1, name=f"c{k}", **GAIN))
        h = net.activation(h, function, name=f"a{k}")
        h = net.batch_norm(net.conv(h, width, 3, padding=1, **GAIN), name=f"m{k}")
        x = net.add(x, net.drop_path(h, p="2/5", name=f"p{k}"), name=f"s{k}")
    h = net.activation(net.batch_norm(net.conv(x, width, 3, padding=1, **GAIN)), function, name="a")
    net.linear(net.mean_pool(h, name="pool"), width, name="y", **GAIN)
    numbers = vf.derive(net).numeric({})

    def forward(draw: Draw) -> Tensor:
        x = draw.input(width, 6, 6)
        for k in range(2):
            a = draw.name(f"a{k}", act(norm(draw.name(f"c{k}", draw.conv(x, width, 3, 1, padding=1)))))
            m = draw.name(f"m{k}", norm(draw.conv(a, width, 3, 1, padding=1)))
            x = draw.name(f"s{k}", x + draw.name(f"p{k}", _mask(draw, 0.6, 3) * m))
        a = draw.name("a", act(norm(draw.conv(x, width, 3, 1, padding=1))))
        return _linear(draw, draw.name("pool", a.mean((2, 3))), width)

    for name, (value, gradient) in brute(forward, draws=60, samples=64).items():
        near(numbers[name]["second_moment"], value, 0.03, f"{name} forward")
        near(numbers[name]["grad_second_moment"], gradient, 0.05, f"{name} backward")


def test_masks_of_one_name_are_one() -> None:
    """Two branches dropped together: variances 1 and 1 + 2/keep^2 with one mask, four combinations of two."""
    def made(names: tuple[str, str]) -> float:
        net = Network("twins")
        x = net.input("x", 64)
        paths = [net.drop_path(net.linear(x, 64, **GAIN), p="1/2", mask=m) for m in names]
        net.silu(net.linear(net.add(x, *paths), 64, **GAIN), name="y")
        return float(vf.derive(net).numeric({})["y"]["second_moment"])

    def stated(counts: list[int]) -> float:
        return float(np.mean([_mean(lambda x: _silu(x) ** 2, 1 + 4 * c) for c in counts]))

    assert made(("m", "m")) == pytest.approx(stated([0, 2]), rel=1e-6)
    assert made(("m", "o")) == pytest.approx(stated([a + b for a, b in product((0, 1), repeat=2)]), rel=1e-6)


def test_gradient_of_a_product_behind_a_mask() -> None:
    """tanh(m x u + v), v Gaussian: x receives m u f', which all masks but one take away; by quadrature."""
    net = Network("product")
    x, u = net.input("x", "n"), net.input("u", "n")
    path = net.drop_path(net.multiply(x, u), p="1/5")
    net.tanh(net.add(path, net.linear(u, "n", name="v", variance="1/fan_in")), name="y")
    points = np.linspace(-8, 8, 161)
    weights = np.exp(-(points**2) / 2) * 0.1 / np.sqrt(2 * np.pi)
    a, b, c = np.meshgrid(points, points, points)
    slopes = (b / 0.8 / np.cosh(a * b / 0.8 + c) ** 2) ** 2
    wanted = 0.8 * np.einsum("ijk,i,j,k", slopes, weights, weights, weights)
    found = vf.derive(net).numeric({"n": 64})["x"]["grad_second_moment"]
    assert found == pytest.approx(wanted, rel=1e-2)  # a population's


def _encoder(depth: int, tokens: int, post: bool, causal: bool = False, conv: bool = False) -> Network:
    """Transformer blocks with stochastic depth, in front of their norms or behind."""
    net = Network("encoder")
    h = net.input("x", 128, (tokens,))
    h = net.conv(h, 128, 3, padding=1, variance="1/fan_in", name="stem") if conv else h
    fields = {f"{part}_variance": "1/fan_in" for part in ("query", "key", "value", "output")}
    for k in range(depth):
        for kind in ("attention", "mlp"):
            inner = h if post else net.layer_norm(h)
            if kind == "attention":
                path = net.self_attention(inner, heads=8, causal=causal, **fields)
            else:
                path = net.linear(net.relu(net.linear(inner, 256, **GAIN)), 128, **GAIN)
            h = net.add(h, net.drop_path(path, p="2/5"), name=f"{kind}{k}")
            h = net.layer_norm(h, name=f"norm{kind}{k}") if post else h
    net.layer_norm(h, name="y")
    return net


@pytest.mark.parametrize("fields", [{}, {"post": True}, {"causal": True}, {"conv": True}], ids=str)
def test_transformers_with_stochastic_depth(fields: dict[str, bool]) -> None:
    """A sample whose path is dropped has a smaller stream, and a larger gradient behind its norm: without its mask
    gradients were up to 20 % too small. Behind a causal mask, or a convolution with borders, populations say so."""
    net = _encoder(1, 4, **{"post": False, **fields})
    program, numbers = lower(net), vf.derive(net).numeric({})
    seen = simulate(program, 250, samples=8, seed=2)
    for name in program.values:
        for field, s in (("second_moment", seen.forward[name]), ("grad_second_moment", seen.backward[name])):
            assert abs(numbers[name][field] - s.second_moment) < 0.04 * s.second_moment + 4 * s.standard_error, name


def test_a_norm_behind_a_dropped_skip() -> None:
    """x + m x/keep is x or (1 + 1/keep) x: the gradient in front of the norm is that over the mean of both squares."""
    net = Network("skip")
    h = net.self_attention(net.input("x", 64, (3,)), heads=4, **{
        f"{part}_variance": "1/fan_in" for part in ("query", "key", "value", "output")})
    h = net.layer_norm(h, name="z")
    net.layer_norm(net.add(h, net.drop_path(h, p="1/4"), name="sum"))
    found = vf.derive(net).numeric({})["sum"]["grad_second_moment"]
    assert found == pytest.approx(0.75 * (3 / 7) ** 2 + 0.25, rel=1e-6)


def test_populations_know_masks() -> None:
    """Four dropped branches in front of a norm, more than all combinations are counted of: q = prod (1 + m/keep^2)."""
    net = Network("many")
    h = net.input("x", 64)
    for k in range(4):
        h = net.add(h, net.drop_path(net.linear(h, 64, variance="1/fan_in"), p="1/2"), name=f"s{k}")
    net.rms_norm(h, name="y")
    program = lower(net)
    found = run_population(program, size=2**10, repeats=40).second_moment[program.gradients["s3"]]
    assert found == pytest.approx((1 / 2 + 1 / 2 / 5) ** 4, rel=0.08)
