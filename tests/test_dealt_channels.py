"""Pixel shuffles of several kinds of channels: heaps have their share of each, in order. Against simulation."""

from __future__ import annotations

import pytest
import sympy as sp

import varflow as vf
from varflow.lowering import lower
from varflow.network import Network
from varflow.simulate.cpu import simulate


def shuffled(first: str, second: str, pooled: bool, back: bool) -> Network:
    """A concatenation of two functions of two inputs, shuffled, (averaged, and shuffled back), its mean read."""
    net = Network("shuffled")
    x, z = net.input("x", 64, (5, 7), second_moment="3/2"), net.input("z", 64, (5, 7))
    h = net.pixel_shuffle(net.concat(net.activation(x, first), net.activation(z, second), name="both"), 2, name="fine")
    h = net.avg_pool(h, 3, stride=1, padding=1, name="avg") if pooled else h
    h = net.pixel_unshuffle(h, 2, name="coarse") if back else h
    net.linear(net.mean_pool(h if back else net.silu(h), name="mean"), 64, variance="1/fan_in", name="y")
    return net


@pytest.mark.parametrize(("pooled", "back"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize(("first", "second"), [("relu", "tanh"), ("tanh", "2*relu(x)")])
def test_against_simulation(first: str, second: str, pooled: bool, back: bool) -> None:
    """Fine channels were taken for mixtures, each place's of its own: means over places were 36 % too small."""
    net = shuffled(first, second, pooled, back)
    program, numbers = lower(net), vf.derive(net).numeric({})
    seen = simulate(program, 60, samples=8, seed=2)
    for name in program.values:
        for field, s in (("second_moment", seen.forward[name]), ("grad_second_moment", seen.backward[name])):
            assert abs(numbers[name][field] - s.second_moment) < 0.03 * s.second_moment + 4 * s.standard_error, name


@pytest.mark.parametrize("function", ["tanh", "relu"])
@pytest.mark.parametrize("kind", ["skip", "gate"])
def test_slopes_of_shuffled_values_have_a_mean(function: str, kind: str) -> None:
    """h + f(h) behind a pixel shuffle: what the slopes' parts at each phase have in common was lost, half of the
    gradient's second moment, and called exact."""
    net = Network("skip")
    h = net.pixel_shuffle(net.activation(net.input("x", 64, (5, 7)), function), 2, name="fine")
    h = net.add(h, net.tanh(h)) if kind == "skip" else net.multiply(h, net.sigmoid(h))
    net.conv(h, 16, 3, variance="1/fan_in", name="y")
    program, numbers = lower(net), vf.derive(net).numeric({})
    seen = simulate(program, 100, samples=8, seed=2).backward
    for name in ("x", "activation_1", "fine"):
        s, number = seen[name], numbers[name]["grad_second_moment"]
        assert abs(number - s.second_moment) < 0.02 * s.second_moment + 4 * s.standard_error


def test_formula() -> None:
    """Half of the fine channels have a mean, over whose places it stays."""
    net = Network("means")
    x = net.concat(net.relu(net.input("x", "4*n", (8, 8))), net.input("z", "4*n", (8, 8)))
    net.mean_pool(net.pixel_shuffle(x, 2), name="mean")
    d = vf.derive(net)
    mean = 1 / sp.sqrt(2 * sp.pi)
    wanted = (mean**2 + (sp.Rational(1, 2) - mean**2) / 256) / 2 + sp.Rational(1, 512)
    assert abs(float(d["mean"].second_moment - wanted)) < 1e-12
