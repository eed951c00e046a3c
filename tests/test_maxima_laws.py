"""Maxima over windows whose entries are not alike, several functions of one maximum, and gradients of winners."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import quad
from scipy.stats import norm as normal

import varflow as vf
from tests.convolutional import GAIN, HE, Draw, F, N, Tensor, check, image, profile
from varflow.laws.evaluation import Evaluation
from varflow.laws.largest import sampled_winner, winner
from varflow.laws.maxima import Maximum
from varflow.symbols import arg
from varflow.window import Window


def _largest_moment(variances: list[float], power: int) -> float:
    """E max^k of independent Gaussians: the integral of sum_i phi_i(z) prod_(j != i) Phi_j(z)."""
    roots = np.sqrt(variances)

    def density(z: float) -> float:
        below = normal.cdf(z / roots)
        return float(sum(normal.pdf(z / s) / s * np.prod(np.delete(below, i)) for i, s in enumerate(roots)))

    return float(quad(lambda z: z**power * density(z), -12, 12, limit=200)[0])


@pytest.mark.parametrize("variances", [[1.0, 1.0], [0.25, 1.0, 2.0], [0.1, 1.0, 1.0, 1.5]])
def test_largest_of_unequal_variances(variances: list[float]) -> None:
    law = winner(np.diag(variances))
    for power in (1, 2):
        assert law.expected(law.points**power).sum() == pytest.approx(_largest_moment(variances, power), abs=1e-8)
    assert law.expected(np.ones(1)).sum() == pytest.approx(1, abs=1e-10)


def test_largest_with_a_common_component() -> None:
    """max(u + x_i) = u + max x_i."""
    variances, common = [0.5, 1.0, 0.75], 0.4
    law = winner(np.diag(variances) + common)
    assert law.expected(law.points).sum() == pytest.approx(_largest_moment(variances, 1), abs=1e-8)
    assert law.expected(law.points**2).sum() == pytest.approx(_largest_moment(variances, 2) + common, abs=1e-8)


def test_largest_of_any_covariance() -> None:
    """A sample agrees with the integral where there is one; negative covariances by moments, which continue those of
    positive ones: E max^2 = c + (q - c) E M^2."""
    exact, drawn = (f(np.diag([0.25, 1.0, 2.0]) + 0.3) for f in (winner, sampled_winner))
    assert drawn.expected(np.ones(1)) == pytest.approx(exact.expected(np.ones(1)), abs=4e-3)
    c = -0.2
    law = winner((1 - c) * np.eye(4) + c)
    assert law.expected(law.points**2).sum() == pytest.approx(c + (1 - c) * _largest_moment([1.0] * 4, 2), rel=1e-3)


def test_windows_at_a_border_have_fewer_entries() -> None:
    window = Window((sp.Integer(4),), (3,), (2,), ((1, 1),), (1,))
    found = Maximum(window, arg(0) ** 2).apply(np.ones((1, 1)), np.zeros((1, 1))).ravel()
    assert found == pytest.approx([1, _largest_moment([1.0] * 3, 2)], abs=1e-8)


def test_two_functions_of_one_maximum() -> None:
    """m + leaky(m) and m sigmoid(m) see one density: E (1.1 m)^2 where m < 0, 4 m^2 where m > 0."""
    net, x = image(N, 6, 6)
    h = net.max_pool(x, 2, name="m")
    net.add(h, net.multiply(h, net.activation(h, "sigmoid")), net.leaky_relu(h, 0.1), name="y")

    def forward(draw: Draw) -> Tensor:
        h = draw.name("m", F.max_pool2d(draw.input(N, 6, 6), 2))
        return h + h * h.sigmoid() + F.leaky_relu(h, 0.1)

    check(net, forward, draws=150)
    net, x = image("n", "s", "s")
    h = net.max_pool(x, 2)
    net.add(h, net.leaky_relu(h, 0.1), name="y")
    law = vf.derive(net)["y"]
    z = np.linspace(-9, 9, 20_001)
    density = np.gradient(normal.cdf(z) ** 4, z)
    stated = np.trapezoid(np.where(z > 0, 2, 1.1) ** 2 * z**2 * density, z)
    assert law.second_moment is not None and float(law.second_moment) == pytest.approx(stated, rel=1e-4)


def test_maxima_of_normalized_places() -> None:
    """Instance norm leaves covariances of -1/(P-1)."""
    net, x = image(64, 4, 4, position_correlation="1/2")
    h = net.max_pool(net.instance_norm(x, name="i"), 2, name="m")
    net.pointwise_conv(net.activation(h, "silu"), 64, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("i", F.instance_norm(draw.input(64, 4, 4, correlation=0.5), eps=0))
        return draw.conv(F.silu(draw.name("m", F.max_pool2d(h, 2))), 64, 1, 1)

    check(net, forward, backward=False, bias=0.03)


def test_maxima_behind_a_padded_convolution() -> None:
    """Entries at the border are smaller and win less: the gradient of a layer norm behind them, which divides by the
    variance place by place, and the share of every place."""
    net, x = image(64, 7, 7)
    h = net.max_pool(net.conv(x, 64, 3, padding=1, name="c", **HE), 3, 2, 1, name="m")
    net.layer_norm(h, name="y")

    def forward(draw: Draw) -> Tensor:
        h = draw.name("m", F.max_pool2d(draw.name("c", draw.conv(draw.input(64, 7, 7), 64, 3, 2, padding=1)), 3, 2, 1))
        return F.layer_norm(h.movedim(1, 3), (64,), eps=0).movedim(3, 1)

    check(net, forward, draws=250, bias=0.04)
    found = profile(net, "m").reshape(4, 4)
    assert found[1, 1] > 1.2 * found[0, 0]


@pytest.mark.parametrize("kernel", [2, 3])
def test_covariances_of_what_winners_get(kernel: int) -> None:
    """Global averaging ties the gradients of all windows, an average before sums them up again."""
    net, x = image(N, 8, 8)
    h = net.max_pool(net.avg_pool(x, 3, 1, 1, name="a"), kernel, 2, name="m")
    net.linear(net.mean_pool(net.relu(h)), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("m", F.max_pool2d(draw.name("a", F.avg_pool2d(draw.input(N, 8, 8), 3, 1, 1)), kernel, 2))
        return F.linear(F.relu(h).mean((2, 3)), draw.weight(N, N))

    check(net, forward, draws=300, bias=0.02)


def test_maximum_and_mean_of_one_window() -> None:
    """The two gradients are one: what an entry wins comes on top of its part of the mean."""
    net, x = image(N, 6, 6)
    h = net.relu(x, name="r")
    net.pointwise_conv(net.add(net.max_pool(h, 2), net.avg_pool(h, 2), name="s"), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("r", F.relu(draw.input(N, 6, 6)))
        return draw.conv(draw.name("s", F.max_pool2d(h, 2) + F.avg_pool2d(h, 2)), N, 1, 1)

    check(net, forward, draws=300)


def test_formula_of_correlated_maxima() -> None:
    """relu of the larger of two Gaussians of correlation 1/2, beside its integral over the common part."""
    net, x = image("n", "s", position_correlation="1/2")
    net.max_pool(net.relu(x), 2, name="m")
    law = vf.derive(net)["m"]
    u, density = np.linspace(-9, 9, 2001), normal.pdf(np.linspace(-9, 9, 2001))
    both = (u[:, None] + u[None, :]) * 0.5**0.5
    z = np.maximum(both, 0)
    for moment, power in ((law.mean, 1), (law.second_moment, 2)):
        weight = 2 * normal.cdf(u)[None, :] * density[None, :] * density[:, None]
        assert moment is not None
        assert float(moment) == pytest.approx(float((z**power * weight).sum() * (u[1] - u[0]) ** 2), rel=1e-5)


def test_unet_is_solved() -> None:
    """Every scale of U-Net keeps the second moment, whatever the maxima before it are: 2 behind relu, 1 behind none."""
    solution = vf.solve(vf.load("unet"))
    assert all(a.value == (1 if a.unknown.name in ("s_up1", "s_up2", "s_up3", "s_up4", "s_y") else 2)
               for a in solution.answers)
    assert not any("unit second moment" in note for note in solution.notes)


def test_solved_by_numbers() -> None:
    """Behind the third maximum of an elu no second moment has a formula: its numbers give the scale."""
    net, h = image(64, 16, 16)
    for k in range(4):
        h = net.conv(h, 64, 3, name=f"c{k}", padding=1, padding_mode="circular")
        h = net.elu(h, name="y" if k == 3 else f"f{k}")
        h = net.max_pool(h, 2, name=f"p{k}") if k < 3 else h
    solution = vf.solve(net)
    last = solution.answers[-1]
    assert not last.closed_form and "numbers" in last.note and str(last.condition.rhs) == "q_p2"
    limit = solution.derivation.main
    moments = Evaluation({}, lambda m: float("nan"))
    start, end = (moments.of(limit.second(limit.program.values[k])) for k in ("p2", "y"))
    assert end == pytest.approx(start, rel=1e-8)

    def forward(draw: Draw) -> Tensor:
        h = draw.input(64, 16, 16)
        for k, answer in enumerate(solution.answers):
            h = F.elu(draw.name(f"c{k}", draw.conv(h, 64, 3, float(answer.value), ring=True)))
            h = draw.name(f"p{k}", F.max_pool2d(h, 2)) if k < 3 else h
        return h

    numbers = check(solution.network, forward, backward=False, draws=200, bias=0.03, samples=2)
    assert numbers["y"]["second_moment"] == pytest.approx(numbers["p2"]["second_moment"], rel=0.02)
