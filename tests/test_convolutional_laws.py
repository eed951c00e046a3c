"""Fans, borders, phases and branches of convolutional networks: what is known, each against brute force too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import sympy as sp

import varflow as vf
from tests.convolutional import (
    GAIN,
    HE,
    RING,
    Draw,
    F,
    N,
    Tensor,
    check,
    image,
    near,
    one_thread,
    profile,
    same,
    torch,
)
from varflow.lowering import lower
from varflow.network import Handle, Network
from varflow.simulate.cpu import simulate

PI = sp.pi


# -- fans ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "fields", "fan_in"), [
    ("conv", {"out_channels": "m", "kernel": 5, "padding": 2}, "25*c"),
    ("conv", {"out_channels": "m", "kernel": (3, 5), "stride": 2, "dilation": 2}, "15*c"),
    ("conv", {"out_channels": "m", "kernel": 3, "groups": 2}, "9*c/2"),
    ("pointwise_conv", {"out_channels": "m"}, "c"),
    ("depthwise_conv", {"kernel": 7}, "49"),
    ("conv_transpose", {"out_channels": "m", "kernel": 3, "stride": 2}, "9*c/4"),
    ("conv_transpose", {"out_channels": "m", "kernel": 6, "stride": 3}, "4*c"),
])
def test_fan(op: str, fields: Mapping[str, Any], fan_in: str) -> None:
    """k^2 C_in, of a group's channels; transposed k^2 C_in / s^2. He's variance is 2 over it and keeps relu(y) at 1."""
    net, x = image("c", 32, 32)
    net.relu(net.apply(op, x, name="W", **fields), name="y")
    stated = sp.sympify(fan_in, {"c": net.symbols["c"]})
    assert vf.derive(net).weights["W"].fan_in == stated
    solved = vf.solve(net)
    assert solved["W"].variance == 2 / stated
    assert solved.derivation["y"].second_moment == 1


# -- borders ---------------------------------------------------------------------------------------


def inside(n: int, k: int = 3) -> Any:
    """The matrix of one axis: 1/k where an output reads an input."""
    return (np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= k // 2) / k


@pytest.mark.parametrize(("size", "share"), [(4, 0.694), (7, 0.82), (14, 0.91), (32, 0.96)])
def test_zero_padding(size: int, share: float) -> None:
    net, x = image(3, size, size)
    net.conv(x, 5, 3, padding="same", name="y", **GAIN)
    d = vf.derive(net)
    numbers = d.numeric({})
    exact = inside(size).sum(1).mean() ** 2
    assert d["y"].second_moment == 1
    assert numbers["y"]["second_moment"] == pytest.approx(exact)
    assert numbers["y"]["second_moment"] == pytest.approx(share, abs=0.005)
    assert numbers["x"]["grad_second_moment"] == pytest.approx(exact * 5 / 3)
    assert profile(net, "y") == pytest.approx(np.outer(inside(size).sum(1), inside(size).sum(1)).ravel())


def padded_stack(sizes: tuple[int, ...], kernel: Any, depth: int, relu: bool = True) -> Network:
    net, x = image(N, *sizes)
    for k in range(depth):
        x = net.conv(x, N, kernel, padding="same", name=f"c{k}", **(HE if relu else GAIN))
        x = net.relu(x, name=f"r{k}") if relu else x
    return net


def test_ten_padded_layers() -> None:
    """M^10 1 along each axis: 0.0589 at 4x4, the factor of one layer falling to that of M's largest eigenvalue."""
    alone = np.linalg.matrix_power(inside(4), 10).sum(1).mean() ** 2
    assert alone == pytest.approx(0.0589, abs=5e-5)
    for relu in (False, True):
        numbers = vf.derive(padded_stack((4, 4), 3, 10, relu)).numeric({})
        last = numbers["r9" if relu else "c9"]
        assert last["second_moment"] == pytest.approx(alone)
        assert numbers["x"]["grad_second_moment"] == pytest.approx(alone)
    net = padded_stack((4, 4), 3, 30, relu=False)
    numbers = vf.derive(net).numeric({})
    rate = ((1 + 2 * np.cos(np.pi / 5)) / 3) ** 2
    assert numbers["c29"]["second_moment"] / numbers["c28"]["second_moment"] == pytest.approx(rate)


@pytest.mark.parametrize(("sizes", "kernel"), [((5,), 3), ((4, 7), (3, 5)), ((3, 5, 4), 3)])
def test_padding_along_each_axis(sizes: tuple[int, ...], kernel: Any) -> None:
    """Axes of different sizes and kernels, one to three of them, to a depth of three."""
    kernels = kernel if isinstance(kernel, tuple) else (kernel,) * len(sizes)
    numbers = vf.derive(padded_stack(sizes, kernel, 3)).numeric({})
    for depth in (1, 2, 3):
        share = np.prod([np.linalg.matrix_power(inside(n, k), depth).sum(1).mean()
                         for n, k in zip(sizes, kernels, strict=True)])
        assert numbers[f"r{depth - 1}"]["second_moment"] == pytest.approx(share)


def test_padded_layers_by_brute_force() -> None:
    def forward(draw: Draw) -> Tensor:
        x = draw.input(N, 4, 4)
        for k in range(3):
            x = draw.name(f"r{k}", F.relu(draw.name(f"c{k}", draw.conv(x, N, 3, 2, padding=1))))
        return draw.conv(x, N, 3, 1, padding=1, stride=2)

    net = padded_stack((4, 4), 3, 3)
    net.conv(Handle("r2"), N, 3, padding=1, stride=2, name="y", **GAIN)
    check(net, forward, draws=400)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_by_the_image(mode: str) -> None:
    """No border is lost, forward."""
    net, x = image(N, 5, 5)
    for k in range(3):
        x = net.relu(net.conv(x, N, 3, padding=1, padding_mode=mode, **HE), name=f"r{k}")
    assert vf.derive(net).numeric({})["r2"]["second_moment"] == pytest.approx(1)


@pytest.mark.parametrize("mode", ["zero", "circular", "reflect"])
def test_gradients_of_pooled_convolutions(mode: str) -> None:
    """Behind global average pooling the gradient is one number for all places: h = g."""
    net, x = image(N, 4, 4)
    padding: dict[str, Any] = {"padding": 1, "padding_mode": "zeros" if mode == "zero" else mode}
    h = net.relu(net.conv(x, N, 3, name="c", **padding, **HE), name="r")
    h = net.relu(net.conv(h, N, 3, name="c2", **padding, **HE))
    net.linear(net.mean_pool(h, name="gap"), N, name="y", **GAIN)

    def layer(draw: Draw, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), **({} if mode == "zero" else {"mode": mode}))
        return draw.conv(x, N, 3, 2)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("r", F.relu(draw.name("c", layer(draw, draw.input(N, 4, 4)))))
        h = F.relu(draw.name("c2", layer(draw, h)))
        return F.linear(draw.name("gap", h.mean((2, 3))), draw.weight(N, N))

    check(net, forward, draws=400, bias=0.03)


def test_profile_of_a_node() -> None:
    net, x = image(3, 4, 4)
    net.conv(x, 5, 3, padding=1, name="y", **GAIN)
    assert vf.derive(net)["y"].profile is not None


def test_mean_of_maxima_of_places_that_covary() -> None:
    """x + conv(x) of a mean: entries covary by how many taps they share at the border. Between windows the moment is
    one of places that differ: the square of a window's own maximum, a fourth more, has no say in it."""
    net, x = image(N, 8, 8, mean="3/10", second_moment="3/2")
    m = net.max_pool(net.add(x, net.conv(x, N, 3, padding=1, name="c", **GAIN)), 2, name="m")
    net.mean_pool(m, name="y")

    def forward(draw: Draw) -> Tensor:
        x = draw.name("x", (draw.normal(draw.samples, N, 8, 8) * 1.41**0.5 + 0.3).requires_grad_())
        return draw.name("m", F.max_pool2d(x + draw.name("c", draw.conv(x, N, 3, 1, padding=1)), 2)).mean((2, 3))

    numbers = check(net, forward, backward=False, draws=600, bias=0.005)
    assert numbers["y"]["variance"] == pytest.approx(0.13, abs=0.02)


# -- transposed convolutions -----------------------------------------------------------------------


def test_transposed_convolution_by_phase() -> None:
    """k = 3, s = 2: 4, 2 and 1 taps reach a place; the average is 1."""
    net, x = image(N, 6, 6)
    net.conv_transpose(x, N, 3, stride=2, name="y", **GAIN)
    assert vf.derive(net)["y"].second_moment == 1
    found = profile(net, "y").reshape(13, 13)[2:-2, 2:-2]
    cell = found[:2, :2]
    assert cell / cell.min() == pytest.approx(np.array([[4, 2], [2, 1]]))
    assert cell.mean() == pytest.approx(1)
    taps = F.conv_transpose2d(torch.ones(1, 1, 6, 6), torch.ones(1, 1, 3, 3), stride=2)[0, 0].numpy() * 4 / 9
    assert profile(net, "y").reshape(13, 13) == pytest.approx(taps)
    check(net, lambda draw: draw.transposed(draw.input(N, 6, 6), N, 3, 2))


@pytest.mark.parametrize(("k", "s", "ratio"), [(3, 2, 4), (4, 2, 1), (2, 2, 1), (5, 3, 4), (6, 3, 1), (4, 3, 4)])
def test_checkerboard(k: int, s: int, ratio: int) -> None:
    """The largest over the smallest phase, 1 if the stride divides the kernel."""
    net, x = image(8, 8, 8)
    net.conv_transpose(x, 8, k, stride=s, name="y", **GAIN)
    wide = (8 - 1) * s + k
    found = profile(net, "y").reshape(wide, wide)[2 * s: -2 * s, 2 * s: -2 * s]
    assert found.max() / found.min() == pytest.approx(ratio)
    assert found[:s, :s].mean() == pytest.approx(1)


def test_places_between_phases() -> None:
    """k = 4, s = 2, places correlated by 1/2: neighbours share no tap; every other place does."""
    net, x = image(N, 6, position_correlation="1/2")
    h = net.conv_transpose(x, N, 4, stride=2, padding=1, name="t", **GAIN)
    net.linear(net.avg_pool(h, 2, 1, name="p"), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("t", draw.transposed(draw.input(N, 6, correlation=0.5), N, 4, 2, padding=1))
        return draw.conv(draw.name("p", F.avg_pool1d(h, 2, 1)), N, 1, 1)

    check(net, forward, backward=False, draws=600)


def test_places_of_a_cell() -> None:
    """k = s = 2: places of a cell read one place by different taps."""
    net, x = image(N, 6, position_correlation="1/2")
    h = net.conv_transpose(x, N, 2, stride=2, **GAIN)
    net.linear(net.avg_pool(h, 2, name="p"), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = draw.transposed(draw.input(N, 6, correlation=0.5), N, 2, 2)
        return draw.conv(draw.name("p", F.avg_pool1d(h, 2)), N, 1, 1)

    assert check(net, forward, draws=600)["p"]["second_moment"] == pytest.approx(0.5)


# -- several branches ------------------------------------------------------------------------------


def inception(ended: bool, channels: tuple[int, ...] = (N, N, N)) -> tuple[Network, list[Handle]]:
    net, x = image(N, 5, 5)
    ends = []
    for k, m in enumerate(channels):
        h = net.relu(net.pointwise_conv(x, m, name=f"reduce{k}", **HE))
        h = net.conv(h, m, 3, name=f"conv{k}", **RING, **(HE if ended else GAIN))
        ends.append(net.relu(h, name=f"end{k}") if ended else h)
    return net, ends


def branches(draw: Draw, ended: bool, channels: tuple[int, ...] = (N, N, N)) -> list[Tensor]:
    x = draw.input(N, 5, 5)
    hidden = [F.relu(draw.conv(x, m, 1, 2)) for m in channels]
    ends = [draw.conv(h, m, 3, 1 + ended, ring=True) for h, m in zip(hidden, channels, strict=True)]
    return [F.relu(h) if ended else h for h in ends]


def test_summed_branches() -> None:
    """Branches that end in their weights: three times the second moment, and 1/sqrt(3) restores it."""
    net, ends = inception(False)
    net.add(*ends, weights=("1/sqrt(3)",) * 3, name="scaled")
    net.add(*ends, name="y")
    d = vf.derive(net)
    assert (d["y"].second_moment, d["scaled"].second_moment) == (3, 1)
    assert vf.solve(vf.load("inception_block_sum")).derivation["y"].gain == 3
    net, ends = inception(False)
    net.add(*ends, name="y")
    check(net, lambda draw: sum(branches(draw, False)))


def test_summed_branches_that_end_in_relu() -> None:
    """Means add up: 3 + 6/pi."""
    net, ends = inception(True)
    net.add(*ends, name="y")
    assert same(vf.derive(net)["y"].second_moment, 3 + 6 / PI)
    check(net, lambda draw: sum(branches(draw, True)), draws=300, bias=0.03)


def test_concatenated_branches() -> None:
    """Branches of unequal widths count by their channels."""
    net, ends = inception(True, (16, 32, 48))
    h = net.concat(*ends, name="all")
    net.conv(h, N, 3, name="y", **RING, **GAIN)
    d = vf.derive(net)
    assert d["y"].second_moment == 1
    assert [d[f"end{k}"].grad_second_moment for k in range(3)] == [sp.Rational(N, 96)] * 3

    def forward(draw: Draw) -> Tensor:
        h = draw.name("all", torch.cat(branches(draw, True, (16, 32, 48)), 1))
        return draw.conv(h, N, 3, 1, ring=True)

    check(net, forward, bias=0.02)
    net, x = image("n", "s", "s")
    ends = [net.pointwise_conv(x, size, variance=f"{q}/fan_in") for size, q in (("n", 1), ("2*n", 2), ("3*n", 4))]
    net.concat(*ends, name="y")
    assert same(vf.derive(net)["y"].second_moment, sp.Rational(1 + 4 + 12, 6))


def test_unet_skips() -> None:
    """A skip of equal width doubles the fan: weights for one half double q, 1/sqrt(2) before them restores it."""
    net, x = image("c", "2*m", "2*m")
    skip = net.relu(net.conv(x, "c", 3, name="down", **RING, **HE))
    up = net.conv_transpose(net.avg_pool(skip, 2), "c", 2, stride=2, name="up", variance="s_up/fan_in")
    both = net.concat(skip, up, name="both")
    net.conv(both, "c", 3, name="y", **RING)
    net.conv(both, "c", 3, name="half", variance="1/(9*c)", **RING)
    net.conv(net.scale(both, "1/sqrt(2)"), "c", 3, name="restored", variance="1/(9*c)", **RING)
    d = vf.derive(net)
    q = d["both"].second_moment
    assert q is not None and d["y"].second_moment is not None
    assert d.weights["y"].fan_in == 18 * net.symbols["c"]
    assert same(d["half"].second_moment, 2 * q) and same(d["restored"].second_moment, q)


def test_fans_of_the_shipped_unet() -> None:
    weights = vf.derive(vf.load("unet")).weights
    for k in range(1, 5):
        assert weights[f"up{k}a"].fan_in == 2 * weights[f"up{k}b"].fan_in


def test_unet_solved() -> None:
    assert vf.solve(vf.load("unet"))["up1"].variance is not None


# -- an autoencoder, and gradients of weights ------------------------------------------------------


def test_small_last_layer() -> None:
    """The shipped autoencoder's output is proportional to its last layer's scale; the gradient reaches the code."""
    d = vf.derive(vf.load("conv_vae"))
    a, c, m, size = (d.network.symbols[k] for k in ("a", "c", "m", "d"))
    assert same(d["latent"].second_moment, sp.Rational(1, 2) + sp.exp(sp.Rational(1, 4)))
    assert same(d["y"].second_moment, a * (sp.Rational(1, 4) + sp.exp(sp.Rational(1, 4)) / 2))
    assert same(d["latent"].grad_second_moment, 96 * a * m**2 / size)
    assert same(d["relu6"].grad_second_moment, 12 * a / c)
    values = {"c": 16, "m": 1, "d": 16}
    small, large = (d.numeric({**values, "a": x}) for x in (0.01, 1))
    assert small["y"]["second_moment"] == pytest.approx(small["relu6"]["second_moment"] / 100, rel=0.35)
    assert large["y"]["second_moment"] == pytest.approx(100 * small["y"]["second_moment"])
    assert small["latent"]["grad_second_moment"] > 0.005


def test_weight_gradients() -> None:
    """E[(dL/dW)^2] = sum over places of g q under each tap, for independent cotangents: two layers, zero padding.

    Summed over taps and places it is P q_y / (fan_in Var) (k^2 of them share it) where places are uncorrelated.
    """
    net, x = image(16, 8, 8)
    h = net.relu(net.conv(x, 16, 3, padding=1, name="c1", **HE), name="r")
    net.conv(h, 16, 3, padding=1, name="c2", **HE)
    d = vf.derive(net)
    numbers = d.numeric({})
    stated = {"c2": 64 * numbers["c2"]["second_moment"] / 2, "c1": 64 * numbers["x"]["grad_second_moment"] / 2}
    random, rows = torch.Generator().manual_seed(3), []
    with one_thread():
        for _ in range(150):
            draw = Draw(1, random)
            w1, w2 = (draw.weight(16, 16, 3, 3, scale=2).requires_grad_() for _ in range(2))
            y = F.conv2d(F.relu(F.conv2d(draw.normal(1, 16, 8, 8), w1, padding=1)), w2, padding=1)
            y.backward(draw.normal(*y.shape))
            rows.append([float((w.grad**2).mean()) for w in (w1, w2)])
    found = simulate(d.program, 150, weights=True, samples=1).weights
    for k, name in enumerate(("c1", "c2")):
        near(stated[name], np.array(rows)[:, k], 0.01, f"{name} by PyTorch")
        assert abs(found[name].second_moment - stated[name]) < 4.5 * found[name].standard_error + 0.01 * stated[name]


def test_a_transpose_on_another_grid_of_what_does_not_know_the_weight() -> None:
    """Strides differ, so that the products cannot be told apart tap by tap: none is needed."""
    net = Network("apart")
    net.conv(net.input("z", "n", (8, 8)), "n", 1, stride=2, variance="2/fan_in", name="W")
    t = net.conv_transpose(net.input("x", "n", (8, 8)), "n", 1, weight="W", name="t")
    net.conv(t, "n", 1, weight="W", name="u")
    d = vf.derive(net)
    assert d["t"].second_moment == 2 and d["u"].second_moment == 8
    seen = simulate(lower(net.bind({"n": 256})), 100, samples=2, seed=1).forward
    for name in ("t", "u"):
        assert abs(d.numeric({"n": 256})[name]["second_moment"] / seen[name].second_moment - 1) < 0.02
