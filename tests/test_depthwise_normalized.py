"""Depthwise convolutions behind which a batch norm stands: numbers, each against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

import varflow as vf
from tests.convolutional import HE, Draw, F, Forward, Tensor, brute, check, image, near, norm
from varflow.network import Handle, Network

PI = math.pi


def test_more_places_than_are_told_apart() -> None:
    """Covariances between samples are averages too where those between places are: no variance is below them."""
    net = vf.Network("large")
    h = net.input("x", "c", positions=(52, 52))
    h = net.activation(net.batch_norm(net.conv(h, "c", 3, padding=1, **HE)), "silu")
    h = net.activation(net.batch_norm(net.depthwise_conv(h, 3, padding=1, **HE)), "silu")
    for _ in range(2):
        h = net.activation(net.batch_norm(net.pointwise_conv(h, "c", **HE)), "silu")
    net.batch_norm(net.depthwise_conv(h, 3, stride=2, padding=1, **HE), name="y")
    numbers = vf.derive(net).numeric({"c": 64})
    assert abs(numbers["y"]["second_moment"] - 1) < 1e-9
    assert all(math.isfinite(n["grad_second_moment"]) for n in numbers.values())


def channel(size: int, stride: int, mode: str, function: str) -> tuple[Network, Handle]:
    """Gaussian images, a function, a depthwise convolution, its norm over a large batch, the function: channels are
    independent, and no width has to be large."""
    net, x = image("c", size, size)
    h = net.depthwise_conv(net.activation(x, function, name="r"), 3, padding=1, stride=stride, name="dw",
                           padding_mode=mode, **HE)
    a = net.activation(net.batch_norm(h, name="n"), function, name="a")
    net.mean_pool(a, name="y")
    return net, a


def drawn(size: int, stride: int, mode: str, function: str) -> Forward:
    def forward(draw: Draw) -> Tensor:
        f = F.relu if function == "relu" else F.silu
        h = draw.name("r", f(draw.input(64, size, size)))
        h = F.pad(h, (1, 1, 1, 1), mode="circular" if mode == "circular" else "constant")
        h = F.conv2d(h, draw.weight(64, 1, 3, 3, scale=2), stride=stride, groups=64)
        return draw.name("a", f(draw.name("n", norm(draw.name("dw", h))))).mean((2, 3))

    return forward


@pytest.mark.parametrize(("size", "stride", "mode", "function"), [
    (6, 1, "circular", "relu"), (7, 2, "zeros", "silu"), (4, 1, "zeros", "relu"), (3, 1, "zeros", "silu"),
])
def test_channels(size: int, stride: int, mode: str, function: str) -> None:
    """Values, the gradient that returns to what is read, and that in front of the function: it knows the sign of the
    value it returns to, which the same gradient at all places shares with those beside it."""
    forward = drawn(size, stride, mode, function)
    numbers = check(channel(size, stride, mode, function)[0], forward, {"c": 64}, bias=0.005, draws=60, samples=512)
    assert numbers["n"]["second_moment"] == pytest.approx(1, abs=1e-9)


def test_mean_squares_of_channels() -> None:
    """The mean of relu over a channel is smaller than a Gaussian's, its square by 4.5 %, which a norm behind the next
    layer sees: 1/sigma^2 = 1/(2 E a^2 - 2 E mean^2)."""
    net, a = channel(6, 1, "circular", "relu")
    net.batch_norm(net.pointwise_conv(a, "c", name="pw", **HE), name="m")
    numbers = vf.derive(net).numeric({"c": 64})
    found = 1 - numbers["m"]["grad_second_moment"] / numbers["pw"]["grad_second_moment"]
    squares: list[float] = []

    def forward(draw: Draw) -> Tensor:
        y = drawn(6, 1, "circular", "relu")(draw)
        squares.append(2 * float((draw.values["a"].detach().mean((0, 2, 3)) ** 2).mean()))
        return y

    brute(forward, draws=40, samples=512)
    assert found == pytest.approx(np.mean(squares), abs=4 * np.std(squares) / 40**0.5 + 0.001)
    assert np.mean(squares) < 0.96 / PI


def test_one_place() -> None:
    """One tap of nine sees an image of one place: y is +-(h - m) / sigma whatever the weight, 1/s^2 has no mean, and
    the gradient in front of both functions is 1/4 over relu's variance."""
    numbers = vf.derive(channel(1, 1, "zeros", "relu")[0]).numeric({"c": 8})
    assert numbers["dw"]["grad_second_moment"] == math.inf
    assert numbers["x"]["grad_second_moment"] == pytest.approx(0.25 / (0.5 - 0.5 / math.pi), rel=0.01)
    assert numbers["a"]["second_moment"] == pytest.approx(0.5, abs=1e-9)


def test_few_taps() -> None:
    """Four taps of nine see an image of 2 x 2 places at stride 2: E[1/s^2] = 1 / ((4 - 2) Var(w) Var(relu)), twice what
    four taps' mean of s^2 says; what returns is E[w_t^2 / |w|^2]."""
    numbers = vf.derive(channel(2, 2, "zeros", "relu")[0]).numeric({"c": 8})
    variance = 2 / 9 * (0.5 - 0.5 / math.pi)
    assert numbers["dw"]["grad_second_moment"] == pytest.approx(0.5 / (2 * variance), rel=1e-4)
    w = np.random.default_rng(0).standard_normal((200_000, 4))
    check(channel(2, 2, "zeros", "relu")[0], drawn(2, 2, "zeros", "relu"), {"c": 64}, bias=0.01, backward=False,
          draws=40, samples=512)
    back = (w**2 / (w**2).sum(axis=1, keepdims=True)).mean() * 0.5 / (0.5 - 0.5 / math.pi)
    assert numbers["r"]["grad_second_moment"] == pytest.approx(back, rel=0.01)


def test_what_samples_share() -> None:
    """Padding gives a channel's places means that all samples share: they set the variance that the next depthwise
    convolution is normalized with, which sees one channel of four places at a time."""
    net, a = channel(2, 1, "zeros", "relu")
    h = net.relu(net.batch_norm(net.pointwise_conv(a, "c", name="pw", **HE), name="m"), name="s")
    h = net.batch_norm(net.depthwise_conv(h, 3, stride=2, padding=1, name="dw2", **HE))
    net.linear(net.flatten(net.relu(h, name="top")), 8, name="z", variance="1/fan_in")

    def forward(draw: Draw) -> Tensor:
        drawn(2, 1, "zeros", "relu")(draw)
        c = draw.values["a"].shape[1]
        h = draw.name("s", F.relu(draw.name("m", norm(draw.name("pw", draw.conv(draw.values["a"], c, 1, 2))))))
        h = draw.name("dw2", F.conv2d(h, draw.weight(c, 1, 3, 3, scale=2), padding=1, stride=2, groups=c))
        return F.linear(draw.name("top", F.relu(norm(h))).flatten(1), draw.weight(8, c))

    numbers = vf.derive(net).numeric({"c": 64})
    for name, (value, gradient) in brute(forward, draws=30, samples=384).items():
        if name in ("s", "m", "top"):
            near(numbers[name]["second_moment"], value, 0.01, name)
            near(numbers[name]["grad_second_moment"], gradient, 0.015, name)


def test_group_norm_of_many_channels_behind_a_depthwise_convolution() -> None:
    """One statistic over 64 channels: none is divided by its own size, as a batch norm does (9/7 of a gradient)."""
    net = vf.Network("groups")
    x = net.input("x", 128, (3, 3))
    d = net.depthwise_conv(x, 3, padding=1, padding_mode="circular", variance="1/fan_in", name="d")
    net.add(x, net.pointwise_conv(net.group_norm(d, 2), 128, variance="1/fan_in"), name="y")
    numbers = vf.derive(net).numbers({})
    assert [numbers.gradient(k) for k in "dx"] == pytest.approx([1.0, 2.0], rel=0.01)
