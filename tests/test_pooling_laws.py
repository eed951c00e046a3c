"""Pooling and resampling: what is known, each against brute force too."""

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
    profile,
    torch,
)
from varflow.laws.positions import Average


def test_conv_relu_maxpool_conv() -> None:
    """E max^2 of four relu of N(0, 2)."""
    net, x = image(N, 8, 8)
    h = net.max_pool(net.relu(net.conv(x, N, 3, name="c", **RING, **HE), name="r"), 2, name="m")
    net.conv(h, N, 3, name="y", **RING, **GAIN)
    z = np.linspace(0, 12, 200_001)
    cdf = 0.5 * (1 + np.vectorize(lambda t: float(torch.erf(torch.tensor(t / 2))))(z[::100]))
    density = np.gradient(cdf**4, z[::100])
    stated = float(np.trapezoid(z[::100] ** 2 * density, z[::100]))

    def forward(draw: Draw) -> Tensor:
        h = draw.name("r", F.relu(draw.name("c", draw.conv(draw.input(N, 8, 8), N, 3, 2, ring=True))))
        return draw.conv(draw.name("m", F.max_pool2d(h, 2)), N, 3, 1, ring=True)

    numbers = check(net, forward, bias=0.015)
    assert numbers["m"]["second_moment"] == pytest.approx(stated, rel=1e-3)
    assert numbers["r"]["grad_second_moment"] == pytest.approx(1 / 4)


def test_overlapping_max_pool() -> None:
    """Max 3, stride 2 on i.i.d. places: windows that share a place are more alike than those that do not."""
    net, x = image(64, 17)
    h = net.max_pool(x, 3, 2, name="m")
    net.avg_pool(h, 2, name="y")
    z = np.random.default_rng(0).standard_normal((400_000, 5))
    next_to, far = (z[:, :3].max(1) * z[:, 2:].max(1)).mean(), 9 / (4 * np.pi)
    assert next_to > 1.15 * far
    numbers = vf.derive(net).numeric({})
    q = 1 + 3**0.5 / (2 * np.pi)
    assert numbers["m"]["second_moment"] == pytest.approx(q)
    assert numbers["y"]["second_moment"] == pytest.approx((q + next_to) / 2, rel=5e-3)
    check(net, lambda draw: F.avg_pool1d(draw.name("m", F.max_pool1d(draw.input(64, 17), 3, 2)), 2), backward=False)


def test_formula_of_overlapping_max_pool() -> None:
    net, x = image("n", "p")
    net.avg_pool(net.max_pool(x, 3, 2), 2, name="y")
    law = vf.derive(net)["y"]
    assert law.second_moment is not None
    assert float(law.second_moment) == pytest.approx(1.0727, abs=1e-3) or law.exactness != "exact"


@pytest.mark.parametrize("correlation", [0, 0.5])
@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_pooling_backward(op: str, correlation: float) -> None:
    """Windows of w = 4: g/w for the maximum, g/w^2 for the mean."""
    net, x = image(N, 6, 6, position_correlation=correlation)
    net.pointwise_conv(net.apply(op, x, kernel=2, name="p"), N, name="y", **GAIN)
    pool = F.max_pool2d if op == "max_pool" else F.avg_pool2d

    def forward(draw: Draw) -> Tensor:
        return draw.conv(draw.name("p", pool(draw.input(N, 6, 6, correlation=correlation), 2)), N, 1, 1)

    numbers = check(net, forward, draws=300)
    assert numbers["x"]["grad_second_moment"] == pytest.approx(1 / 4 if op == "max_pool" else 1 / 16)
    if op == "avg_pool":
        assert numbers["p"]["second_moment"] == pytest.approx((1 + 3 * correlation) / 4)


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_global_pooling_backward(op: str) -> None:
    """h = g behind global average pooling: 1/P^2 in all, through a mean; 1/(w P'^2) through a maximum."""
    net, x = image(N, 4, 4)
    net.linear(net.mean_pool(net.apply(op, x, kernel=2, name="p"), name="gap"), N, name="y", **GAIN)
    pool = F.max_pool2d if op == "max_pool" else F.avg_pool2d

    def forward(draw: Draw) -> Tensor:
        h = draw.name("p", pool(draw.input(N, 4, 4), 2))
        return F.linear(draw.name("gap", h.mean((2, 3))), draw.weight(N, N))

    numbers = check(net, forward, draws=300)
    assert numbers["p"]["grad_second_moment"] == pytest.approx(1 / 16)
    assert numbers["x"]["grad_second_moment"] == pytest.approx(1 / 64 if op == "max_pool" else 1 / 256)


@pytest.mark.parametrize("function", ["identity", "relu"])
def test_pooled_maxima_of_correlated_places(function: str) -> None:
    """c' = E_z0[(E_M f)^2]: two windows of two places correlated by 1/2."""
    net, x = image(N, 4, position_correlation="1/2")
    net.mean_pool(net.max_pool(net.activation(x, function), 2, name="p"), name="y")

    def forward(draw: Draw) -> Tensor:
        x = draw.input(N, 4, correlation=0.5)
        return draw.name("p", F.max_pool1d(F.relu(x) if function == "relu" else x, 2)).mean(2)

    numbers = check(net, forward, backward=False, draws=500, bias=0.002, samples=16)
    if function == "identity":
        assert numbers["y"]["second_moment"] == pytest.approx((1 + 0.5 + 0.5 / np.pi) / 2, rel=2e-3)


@pytest.mark.parametrize(("op", "stated"), [("max_pool", 3 / 7), ("avg_pool", 3 / 14)])
def test_places_that_are_left_over(op: str, stated: float) -> None:
    """Seven places, windows of two: the last gets no gradient."""
    net, x = image(N, 7)
    net.linear(net.apply(op, x, kernel=2), N, name="y", **GAIN)
    assert vf.derive(net).numeric({})["x"]["grad_second_moment"] == pytest.approx(stated)


def test_upsampled_and_pooled() -> None:
    """Up-sampling and averaging the same cells is the identity."""
    net, x = image("n", 4, 4)
    net.avg_pool(net.upsample(x, 2), 2, name="y")
    numbers = vf.derive(net).numeric({"n": N})
    assert numbers["y"]["second_moment"] == pytest.approx(1)
    assert numbers["x"]["grad_second_moment"] == pytest.approx(1)


def test_formula_of_upsampled_and_pooled() -> None:
    net, x = image("n", "s", "s")
    net.avg_pool(net.upsample(x, 2), 2, name="y")
    law = vf.derive(net)["y"]
    assert law.second_moment == 1 and law.exactness == "exact"
    assert vf.derive(net)["x"].grad_second_moment == 1


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("kernel", [2, 4])
def test_formulas_of_mixtures_of_mixtures(mode: str, kernel: int) -> None:
    """Far from borders a mixture of a mixture is one mixture: the sum of its squared coefficients, by their matrices on
    a large ring of places, forward and backward."""
    net, x = image("n", "s")
    net.avg_pool(net.upsample(x, 2, mode), kernel, 2, kernel // 2 - 1, name="y")
    up = F.interpolate(torch.eye(160)[None], scale_factor=2, mode="linear" if mode == "bilinear" else mode)
    matrix = F.avg_pool1d(up, kernel, 2, kernel // 2 - 1)[0].T
    d = vf.derive(net)
    second, gradient = d["y"].second_moment, d["x"].grad_second_moment
    assert second is not None and float(second) == pytest.approx(float((matrix[80] ** 2).sum()))
    assert gradient is not None and float(gradient) == pytest.approx(float((matrix[:, 80] ** 2).sum()))


def test_formula_of_overlapping_means() -> None:
    """Windows of three at stride two, two by two: (1 1 2 1 1)/6."""
    net, x = image("n", "s")
    net.avg_pool(net.avg_pool(x, 3, 2), 2, name="y")
    assert vf.derive(net)["y"].second_moment == sp.Rational(8, 36)


def test_upsampled_convolution_pooled() -> None:
    net, x = image(N, 4, 4)
    h = net.relu(net.conv(net.upsample(x, 2), N, 3, padding=1, name="c", **HE))
    net.pointwise_conv(net.avg_pool(h, 2, name="p"), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        x = F.interpolate(draw.input(N, 4, 4), scale_factor=2)
        h = F.relu(draw.name("c", draw.conv(x, N, 3, 2, padding=1)))
        return draw.conv(draw.name("p", F.avg_pool2d(h, 2)), N, 1, 1)

    check(net, forward, bias=0.05)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_upsampled(mode: str) -> None:
    net, x = image(N, 4, 4, position_correlation="1/3")
    net.conv(net.upsample(x, 2, mode, name="u"), N, 3, padding=1, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        x = draw.name("u", F.interpolate(draw.input(N, 4, 4, correlation=1 / 3), scale_factor=2, mode=mode))
        return draw.conv(x, N, 3, 1, padding=1)

    check(net, forward, draws=400)


def test_overlapping_means() -> None:
    """Windows of three at stride two share a place: 1/9 between neighbours."""
    net, x = image(N, 13)
    net.avg_pool(net.avg_pool(x, 3, 2, name="p"), 2, name="y")
    assert vf.derive(net).numeric({})["y"]["second_moment"] == pytest.approx((1 / 3 + 1 / 9) / 2)


def test_formula_of_two_averages() -> None:
    """(q + (w-1) c)/w behind an average of w places, c between two of them."""
    net, x = image("n", "s", "s", position_correlation="1/4")
    h = net.avg_pool(net.relu(net.conv(x, "n", 3, **RING, **HE)), 2, name="a")
    net.mean_pool(h, name="g")
    d = vf.derive(net)
    symbol, q = d.network.symbols["s"], 1
    c = float(np.sqrt(1 - 1 / 16) + (np.pi - np.arccos(1 / 4)) / 4) / np.pi
    averaged, mean = d["a"].second_moment, d["g"].second_moment
    assert averaged is not None and float(averaged) == pytest.approx((q + 3 * c) / 4)
    assert mean is not None and float(mean.subs(symbol, 8)) == pytest.approx(((q + 3 * c) / 4 + 15 * c) / 16)


def test_pixel_shuffle_pooled() -> None:
    """Places of a cell come from different channels: independent, whatever the correlation of places."""
    net, x = image("4*n", 3, 3, position_correlation="1/2")
    net.avg_pool(net.pixel_shuffle(x, 2), 2, name="y")
    assert vf.derive(net).numeric({"n": N})["y"]["second_moment"] == pytest.approx(1 / 4)


def test_gradients_of_a_shuffled_image() -> None:
    """Phases of a cell get different gradients at the border of overlapping windows; a padded convolution before
    the shuffle sees their mean, place by place."""
    net, x = image(N, 4, 4)
    h = net.pixel_shuffle(net.conv(x, "4*" + str(N), 3, padding=1, name="c", **GAIN), 2, name="s")
    net.pointwise_conv(net.avg_pool(h, 3, 2, 1, name="p"), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("s", F.pixel_shuffle(draw.name("c", draw.conv(draw.input(N, 4, 4), 4 * N, 3, 1, padding=1)), 2))
        return draw.conv(draw.name("p", F.avg_pool2d(h, 3, 2, 1)), N, 1, 1)

    check(net, forward, draws=300)


def test_gradients_of_overlapping_maxima() -> None:
    net, x = image(N, 13)
    h = net.relu(net.linear(net.max_pool(x, 3, 2, name="p"), N, name="c", **GAIN))
    net.linear(net.avg_pool(h, 2), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("p", F.max_pool1d(draw.input(N, 13), 3, 2))
        return draw.conv(F.avg_pool1d(F.relu(draw.name("c", draw.conv(h, N, 1, 1))), 2), N, 1, 1)

    check(net, forward, draws=600, bias=0.03)


def test_gradients_of_maxima_by_phase() -> None:
    """Behind a transposed convolution two places of a window are uncorrelated: 3/8 of the gradient."""
    net, x = image(N, 6, position_correlation="1/2")
    h = net.relu(net.conv_transpose(x, N, 4, stride=2, padding=1, name="t", **GAIN), name="r")
    net.linear(net.max_pool(h, 2), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("t", draw.transposed(draw.input(N, 6, correlation=0.5), N, 4, 2, padding=1))
        return draw.conv(F.max_pool1d(draw.name("r", F.relu(h)), 2), N, 1, 1)

    check(net, forward, draws=600, bias=0.02)


def test_maxima_behind_batch_norm_of_a_mean() -> None:
    """A fresh gradient behind a maximum of four: a quarter reaches each entry, whatever stands before."""
    net, x = image(N, 6, 6, mean=1, second_moment="3/2")
    h = net.max_pool(net.batch_norm(net.conv(x, N, 3, padding=1, **GAIN), name="b"), 2)
    net.pointwise_conv(h, N, name="y", **GAIN)
    assert vf.derive(net).numeric({})["b"]["grad_second_moment"] == pytest.approx(1 / 4, rel=1e-3)


def test_gradients_of_maxima_of_a_large_image() -> None:
    """Max 3, stride 2, padding 1 behind batch norm, as ResNet's: numbers where formulas exist."""
    net, x = image(N, 32, 32)
    h = net.relu(net.batch_norm(net.conv(x, N, 3, padding=1, **HE)), name="r")
    net.linear(net.mean_pool(net.max_pool(h, 3, 2, 1, name="p")), N, name="y", **GAIN)
    numbers = vf.derive(net).numeric({})
    assert numbers["p"]["grad_second_moment"] == pytest.approx(256**-2)
    assert numbers["r"]["grad_second_moment"] > 0


def test_profile_of_maxima() -> None:
    """Two zero-padded layers, whose places are correlated: windows in the middle hold larger maxima than corners,
    and a padded convolution behind them sees the middle more often."""
    net, x = image(N, 8, 8)
    for k in range(2):
        x = net.relu(net.conv(x, N, 3, padding=1, name=f"c{k}", **HE))
    net.conv(net.max_pool(x, 2, name="p"), N, 3, padding=1, name="y", **HE)

    def forward(draw: Draw) -> Tensor:
        x = draw.input(N, 8, 8)
        for k in range(2):
            x = F.relu(draw.name(f"c{k}", draw.conv(x, N, 3, 2, padding=1)))
        return draw.conv(draw.name("p", F.max_pool2d(x, 2)), N, 3, 2, padding=1)

    check(net, forward, backward=False, draws=300, samples=8, bias=0.015)
    found = profile(net, "p").reshape(4, 4)
    assert found[1, 1] > 1.3 * found[0, 1] > 1.3 * 1.3 * found[0, 0] * 0.98


def test_maxima_behind_the_borders_of_a_stem() -> None:
    """ResNet's first layers on 64 x 64: what zero padding takes off at the border decides which places are largest
    (0.9 % of the mean), and batch norm behind them leaves exactly one."""
    net = vf.Network("stem")
    x = net.input("x", 3, positions=(64, 64))
    h = net.relu(net.batch_norm(net.conv(x, N, kernel=7, stride=2, padding=3, **HE)))
    h = net.max_pool(h, kernel=3, stride=2, padding=1, name="pool")
    net.batch_norm(net.pointwise_conv(h, N, **HE), name="norm")
    numbers = vf.derive(net).numbers({"n": 64})
    rows = np.array([sum(0 <= 2 * i - 3 + k < 64 for k in range(7)) for i in range(32)])
    sizes = np.sqrt(np.outer(rows, rows) / np.outer(rows, rows).mean())
    rng, found = np.random.default_rng(6), []
    for _ in range(4000):
        padded = np.pad(np.maximum(rng.standard_normal((32, 32)) * sizes, 0), 1)
        largest = np.max([padded[i : i + 32 : 2, j : j + 32 : 2] for i in range(3) for j in range(3)], axis=0)
        found.append((largest**2).mean())
    assert numbers.second("pool") == pytest.approx(np.mean(found), abs=4 * np.std(found) / np.sqrt(len(found)))
    assert numbers.second("pool") > 1.007 * (2.5626 * 15**2 + 2.0208 * 30 + 1.5438) / 256
    assert numbers.second("norm") == pytest.approx(1, abs=1e-6)


def test_averages_behind_normalized_maxima() -> None:
    """DenseNet's first transition without its blocks: neighbouring windows share entries, and batch norm behind them
    puts numbers of its own into the function whose covariance that is."""
    net, x = image(N, 16, 16)
    h = net.max_pool(net.relu(net.batch_norm(net.conv(x, N, 3, padding=1, **HE))), 3, 2, 1, name="p")
    net.avg_pool(net.relu(net.batch_norm(h), name="r"), 2, name="y")
    rows = np.array([sum(0 <= i - 1 + k < 16 for k in range(3)) for i in range(16)])
    sizes = np.sqrt(np.outer(rows, rows) / np.outer(rows, rows).mean())
    entries = np.maximum(np.random.default_rng(2).standard_normal((20000, 16, 16)) * sizes, 0)
    padded = np.pad(entries, ((0, 0), (1, 1), (1, 1)))
    largest = np.max([padded[:, i : i + 16 : 2, j : j + 16 : 2] for i in range(3) for j in range(3)], axis=0)
    value = np.maximum((largest - largest.mean()) / largest.std(), 0)
    means = value.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4))
    squares = (means**2).mean(axis=(1, 2))
    numbers = vf.derive(net).numbers({})
    error = 4 * squares.std() / np.sqrt(len(squares)) + 0.002 * squares.mean()
    assert numbers.second("y") == pytest.approx(squares.mean(), abs=error)


def test_pixel_shuffle_behind_a_nonlinearity() -> None:
    """Zero-padded sub-pixel convolution (Shi et al. 2016): places of a cell are other channels; all have numbers."""
    net, x = image(N, 16, 16)
    h = net.relu(net.conv(x, N, 3, padding=1, name="c", **HE), name="r")
    h = net.conv(net.pixel_shuffle(h, 2, name="s"), N, 5, padding=2, name="d", **GAIN)
    net.activation(h, "tanh", name="y")

    def forward(draw: Draw) -> Tensor:
        h = draw.name("r", F.relu(draw.name("c", draw.conv(draw.input(N, 16, 16), N, 3, 2, padding=1))))
        h = draw.name("s", F.pixel_shuffle(h, 2))
        return torch.tanh(draw.name("d", draw.conv(h, N, 5, 1, padding=2)))

    check(net, forward, bias=0.015)


def test_mean_of_one_place_has_no_pairs() -> None:
    """The moment of two places, of which there are none, may be anything."""
    assert Average().apply(np.full((1, 1), 2.0), np.full((1, 1), np.nan), np.array(1.0)).item() == 2.0


def test_functions_before_and_behind_a_pixel_shuffle() -> None:
    """A function of values that were functions of Gaussians before they were arranged; places of one cell differ in
    channel only."""
    net, x = image(N, 8, 8)
    h = net.relu(net.conv(x, 4 * N, 3, padding=1, name="c", **HE), name="r")
    h = net.activation(net.pixel_shuffle(h, 2, name="s"), "silu", name="a")
    net.avg_pool(net.relu(net.conv(h, N, 3, padding=1, name="e", **HE), name="f"), 2, name="y")

    def forward(draw: Draw) -> Tensor:
        h = draw.name("r", F.relu(draw.name("c", draw.conv(draw.input(N, 8, 8), 4 * N, 3, 2, padding=1))))
        h = draw.name("a", F.silu(draw.name("s", F.pixel_shuffle(h, 2))))
        h = draw.name("f", F.relu(draw.name("e", draw.conv(h, N, 3, 2, padding=1))))
        return draw.name("y", F.avg_pool2d(h, 2))

    check(net, forward)
    assert all(law.second_moment is not None and law.grad_second_moment is not None
               for law in vf.derive(net, tier="closed").values())


def test_a_skip_connection_from_a_max_pool() -> None:
    """The stem and the first block of ResNet-18 (He et al. 2015, table 1): gradients at the pool know the largest."""
    net, x = image(N, 16, 16)
    h = net.relu(net.batch_norm(net.conv(x, 2 * N, 3, padding=1, name="c", **HE), name="b"), name="r")
    p = net.max_pool(h, 3, stride=2, padding=1, name="p")
    h = net.relu(net.batch_norm(net.conv(p, 2 * N, 3, padding=1, name="d", **HE), name="e"))
    h = net.relu(net.add(p, net.batch_norm(net.conv(h, 2 * N, 3, padding=1, **HE), name="f"), name="s"), name="o")
    net.mean_pool(h, name="y")

    def forward(draw: Draw) -> Tensor:
        h = F.relu(draw.name("b", norm(draw.name("c", draw.conv(draw.input(N, 16, 16), 2 * N, 3, 2, padding=1)))))
        p = draw.name("p", F.max_pool2d(draw.name("r", h), 3, stride=2, padding=1))
        h = F.relu(draw.name("e", norm(draw.name("d", draw.conv(p, 2 * N, 3, 2, padding=1)))))
        h = draw.name("f", norm(draw.conv(h, 2 * N, 3, 2, padding=1)))
        return draw.name("o", F.relu(draw.name("s", p + h))).mean((2, 3))

    check(net, forward, bias=0.02, draws=60, samples=32)
