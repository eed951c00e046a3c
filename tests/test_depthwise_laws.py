"""Laws of depthwise convolutions: what is known, each against brute force too."""

from __future__ import annotations

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
    norm,
)

PI = sp.pi


def test_depthwise_separable() -> None:
    """The fan of a full convolution, counted for the depthwise weights, attenuates by 1/C."""
    net, x = image("c", 8, 8)
    h = net.relu(net.depthwise_conv(x, 3, name="dw", variance="2/(9*c)"), name="r")
    net.pointwise_conv(h, "c", name="y", **HE)
    d, c = vf.derive(net), net.symbols["c"]
    assert d["dw"].second_moment == d["y"].second_moment == 2 / c
    net, x = image("c", 8, 8)
    net.separable_conv(x, "m", 3, name="W")
    solved = vf.solve(net)
    assert (solved["W.depthwise"].variance, solved["W.pointwise"].variance) == (sp.Rational(1, 9), 1 / c)


@pytest.mark.parametrize("channels", [8, 64])
def test_depthwise(channels: int) -> None:
    """2/k^2 whatever the channels; relu halves the second moment, as the law is symmetric."""
    net, x = image(channels, 6, 6)
    net.relu(net.depthwise_conv(x, 3, name="dw", **RING, **HE), name="y")

    def forward(draw: Draw) -> Tensor:
        x = F.pad(draw.input(channels, 6, 6), (1, 1, 1, 1), mode="circular")
        return F.relu(draw.name("dw", F.conv2d(x, draw.weight(channels, 1, 3, 3, scale=2), groups=channels)))

    numbers = check(net, forward, bias=0, draws=800 if channels == 8 else 200)
    assert numbers["dw"]["second_moment"] == 2 and numbers["y"]["second_moment"] == 1


def test_depthwise_moments_are_exact() -> None:
    """k^2 fresh zero-mean weights for each channel: nothing but second moments enters."""
    net, x = image("c", 6, 6)
    net.depthwise_conv(x, 3, name="y", **RING, **HE)
    assert vf.derive(net)["y"].exactness == "exact"


def test_mean_of_a_rectified_depthwise_convolution() -> None:
    """E relu(y) = E|y|/2, |w|^2 a chi square of k^2 degrees: sqrt(q/2 pi) Gamma(5) / (Gamma(9/2) sqrt(9/2))."""
    net, x = image("c", 6, 6)
    net.relu(net.depthwise_conv(x, 3, **RING, **HE), name="y")
    d = vf.derive(net)["y"]
    assert d.mean == 128 * sp.sqrt(2) / (105 * PI) and d.exactness == "exact" and d.tier == "closed"
    w = np.random.default_rng(0).standard_normal((200_000, 9)) * np.sqrt(2 / 9)
    assert float(d.mean) == pytest.approx(np.sqrt((w**2).sum(1) / (2 * np.pi)).mean(), rel=0.003)
    net, x = image("c", 3, 3)
    net.relu(net.depthwise_conv(x, 3, padding=1, **HE), name="y")
    sizes = np.sqrt(np.outer([2, 3, 2], [2, 3, 2]).ravel() * 2 / 9 / (2 * np.pi))
    chi = {k: np.sqrt(np.random.default_rng(k).chisquare(k, 200_000) / k).mean() for k in (4, 6, 9)}
    inside = np.outer([2, 3, 2], [2, 3, 2]).ravel()
    stated = np.mean([s * chi[k] for s, k in zip(sizes, inside, strict=True)])
    assert vf.derive(net).numeric({"c": 8})["y"]["mean"] == pytest.approx(stated, rel=0.003)


def depthwise(draw: Draw, x: Tensor, scale: float = 2) -> Tensor:
    """3x3, weights of variance scale / 9, on a ring."""
    c = x.shape[1]
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), draw.weight(c, 1, 3, 3, scale=scale), groups=c)


def test_depthwise_pooled() -> None:
    """The k^2 weights of a channel are one for all its places: its sizes are correlated, 7 % of the mean here; and the
    gradient of a global mean, the same at all places, knows the weights that it returns through: it gains
    sum E w_t w_t' asin(rho) / pi over pairs of taps, rho = sum_s w_s w_(s+t-t') / |w|^2, which is 0.236."""
    net, x = image(N, 8, 8)
    h = net.relu(net.depthwise_conv(x, 3, name="dw", **RING, **HE), name="r")
    net.linear(net.mean_pool(h, name="gap"), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("r", F.relu(draw.name("dw", depthwise(draw, draw.input(N, 8, 8)))))
        return F.linear(draw.name("gap", h.mean((2, 3))), draw.weight(N, N))

    numbers = check(net, forward, draws=1200)
    untied = numbers["dw"]["grad_second_moment"] * 2
    assert numbers["x"]["grad_second_moment"] / untied == pytest.approx(1.236, abs=0.005)


def test_normalized_depthwise_pooled() -> None:
    """The gradient of a global mean is the same at all places, and returns through the weights of its own slopes: a
    fifth of it, behind batch norm too, where 8/11 (E relu'')^2 = 8/11 / (2 pi) stands beside E relu'^2 = 1/2."""
    net, x = image(N, 8, 8)
    h = net.batch_norm(net.depthwise_conv(x, 3, name="dw", **RING, **HE), batch=16)
    net.linear(net.mean_pool(net.relu(h), name="gap"), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = norm(draw.name("dw", depthwise(draw, draw.input(N, 8, 8))))
        return F.linear(draw.name("gap", F.relu(h).mean((2, 3))), draw.weight(N, N))

    numbers = check(net, forward, draws=150, samples=16, bias=0.02)
    untied = numbers["dw"]["grad_second_moment"] * 2 * 7 / 9
    assert numbers["x"]["grad_second_moment"] / untied == pytest.approx(1 + 8 / 11 / np.pi, abs=0.02)


def test_depthwise_pooled_behind_borders() -> None:
    """The gradient of a global mean is the same at all places in front of the mean, not in front of a padded
    convolution: corners and edges covary by the taps that both are read with."""
    net, x = image(64, 8, 8)
    h = net.relu(net.depthwise_conv(x, 3, name="dw", stride=2, **RING, **HE), name="r")
    h = net.conv(h, 64, 3, padding=1, name="c", **HE)
    net.linear(net.mean_pool(h, name="gap"), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        x, w = draw.input(64, 8, 8), draw.weight(64, 1, 3, 3, scale=2)
        h = draw.name("dw", F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), w, stride=2, groups=64))
        h = draw.name("c", draw.conv(draw.name("r", F.relu(h)), 64, 3, 2, padding=1))
        return F.linear(draw.name("gap", h.mean((2, 3))), draw.weight(N, 64))

    numbers = check(net, forward, draws=1500)
    tie = numbers["x"]["grad_second_moment"] / numbers["dw"]["grad_second_moment"] * 2 - 1
    assert tie == pytest.approx(0.039, abs=0.004)


@pytest.mark.parametrize("stride", [1, 2])
def test_ties_of_normalized_depthwise_weights(stride: int) -> None:
    """E w_t w_t' / |w|^2 f'(y) f'(y') over pairs of taps that read one entry: 72 of them, or 4 on average at stride 2,
    by the weights alone: y, y' are Gaussian given them, of correlation sum_s w_s w_(s+d) / |w|^2."""
    net, x = image("c", "s", "s")
    h = net.batch_norm(net.depthwise_conv(x, 3, name="dw", stride=stride, **RING, **HE))
    net.mean_pool(net.relu(h), name="gap")
    d = vf.derive(net)
    pairs = {1: 72, 2: 4}[stride]
    behind, front = d["dw"].grad_second_moment, d["x"].grad_second_moment
    assert behind is not None
    assert front is not None
    tie = front / behind / sp.Rational(14, 9) * stride**2 - 1
    assert sp.simplify(tie - sp.Rational(pairs * stride**2, 99) / PI) == 0
    w = np.random.default_rng(0).standard_normal((100_000, 3, 3))
    taps, found = [(i, j) for i in range(3) for j in range(3)], 0.0
    for a in taps:
        for b in taps:
            if a != b and all((p - q) % stride == 0 for p, q in zip(a, b, strict=True)):
                inner = [slice(max(0, q - p), 3 + min(0, q - p)) for p, q in zip(a, b, strict=True)]
                outer = [slice(max(0, p - q), 3 + min(0, p - q)) for p, q in zip(a, b, strict=True)]
                rho = (w[:, *inner] * w[:, *outer]).sum((1, 2)) / (w**2).sum((1, 2))
                found += (w[:, *a] * w[:, *b] / (w**2).sum((1, 2)) * np.arcsin(rho)).mean() / np.pi
    assert float(tie) == pytest.approx(found, rel=0.04)


def test_depthwise_residual() -> None:
    """x + relu(depthwise(x)): E x relu(y) = E x |y| / 2 = 0, as the size of y does not see the sign of x."""
    net, x = image("c", 6, 6)
    net.add(x, net.relu(net.depthwise_conv(x, 3, name="dw", **RING, **HE)), name="y")
    d = vf.derive(net)
    assert (d["y"].second_moment, d["y"].tier, d["y"].exactness) == (2, "closed", "exact")

    def forward(draw: Draw) -> Tensor:
        x = draw.input(N, 6, 6)
        return x + F.relu(draw.name("dw", depthwise(draw, x)))

    check(net, forward, {"c": N}, draws=200)


def test_depthwise_gate() -> None:
    """relu(depthwise(r)) silu(x), r = relu(x): the convolution of channel c reads channel c; 42 % of the product."""
    net, x = image(N, 6, 6)
    r = net.relu(x, name="r")
    h = net.relu(net.depthwise_conv(r, 3, name="dw", **RING, **HE))
    net.multiply(h, net.activation(x, "silu"), name="y")

    def forward(draw: Draw) -> Tensor:
        x = draw.input(N, 6, 6)
        h = draw.name("dw", depthwise(draw, draw.name("r", F.relu(x))))
        return F.relu(h) * F.silu(x)

    check(net, forward, draws=1200, bias=0.015)


def test_square_beside_what_a_depthwise_convolution_reads() -> None:
    """E y^2 x^2 = Var(w) (E x^4 + 8 (E x^2)^2), in closed form: 2/9 (3 + 8) for unit entries."""
    net, x = image("c", 6, 6)
    y = net.depthwise_conv(x, 3, name="dw", **RING, **HE)
    net.multiply(y, x, name="p")
    net.multiply(net.relu(y), x, name="half")
    d = vf.derive(net)
    assert (d["p"].second_moment, d["half"].second_moment) == (sp.Rational(22, 9), sp.Rational(11, 9))
    assert d["p"].mean == 0


def test_depthwise_network() -> None:
    """Depthwise, pointwise, and a strided depthwise convolution with zero padding, as in MobileNet."""
    net, x = image(N, 6, 6)
    h = net.relu(net.depthwise_conv(x, 3, padding=1, name="dw", **HE))
    h = net.relu(net.pointwise_conv(h, N, name="pw", **HE))
    net.relu(net.depthwise_conv(h, 3, padding=1, stride=2, name="dw2", **HE), name="y")

    def forward(draw: Draw) -> Tensor:
        x, w = draw.input(N, 6, 6), draw.weight(N, 1, 3, 3, scale=2)
        h = F.relu(draw.name("dw", F.conv2d(x, w, padding=1, groups=N)))
        h = F.relu(draw.name("pw", draw.conv(h, N, 1, 2)))
        return F.relu(draw.name("dw2", F.conv2d(h, draw.weight(N, 1, 3, 3, scale=2), padding=1, stride=2, groups=N)))

    check(net, forward, backward=False, bias=0.03, draws=400)
