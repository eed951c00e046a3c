"""Several depthwise convolutions of one value: they grow with the same places, forward and backward. Against
simulation, and by hand: y = W h, z = V h on a ring of independent places have E y^2 z^2 = E S^2, S = (a + b + c)/3 the
mean of three squares, 5/3, and W^T (z d), V^T (y d) have 1/3 in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import varflow as vf
from varflow.lowering import lower
from varflow.network import Handle, Network
from varflow.simulate.cpu import simulate

Build = Callable[[Network, Handle, Handle, Handle], Handle]
BOTH: dict[str, Build] = {
    "gate": lambda net, x, y, z: net.multiply(y, z),
    "sigmoid gate": lambda net, x, y, z: net.multiply(y, net.sigmoid(z)),
    "relus": lambda net, x, y, z: net.add(net.relu(y), net.relu(z)),
    "product of relus": lambda net, x, y, z: net.multiply(net.relu(y), net.relu(z)),
    "difference": lambda net, x, y, z: net.subtract(net.gelu(y), net.gelu(z)),
    "gate and skip": lambda net, x, y, z: net.multiply(net.add(x, y), z),
    "mean": lambda net, x, y, z: net.mean_pool(net.abs(net.multiply(y, z))),
    "behind a sum": lambda net, x, y, z: net.relu(net.add(y, z)),
}


def made(build: Build, mode: str = "zeros", kernel: int = 3, n: Any = 128) -> Network:
    net = Network("parallel")
    x = net.input("x", n, (6,))
    y = net.depthwise_conv(x, 3, padding=1, padding_mode=mode, variance="1/fan_in", name="y")
    z = net.depthwise_conv(x, kernel, padding=kernel // 2, padding_mode=mode, variance="1/fan_in", name="z")
    net.output(build(net, x, y, z))
    return net


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("kind", BOTH)
def test_against_simulation(kind: str, kernel: int) -> None:
    """Weights of two convolutions were points of two Sobol sequences, which depend on each other, and their gradients
    were taken as independent: 35 % too large forward, 27 % too small backward and called exact."""
    net = made(BOTH[kind], kernel=kernel)
    program, numbers = lower(net), vf.derive(net).numeric({})
    seen = simulate(program, 200, samples=8, seed=3)
    for name in program.values:
        for field, s in (("second_moment", seen.forward[name]), ("grad_second_moment", seen.backward[name])):
            assert abs(numbers[name][field] - s.second_moment) < 0.03 * s.second_moment + 4 * s.standard_error, name


def test_by_hand() -> None:
    found = vf.derive(made(BOTH["gate"], "circular")).numeric({})
    assert found["multiply_1"]["second_moment"] == pytest.approx(5 / 3, rel=0.03)
    assert found["x"]["grad_second_moment"] == pytest.approx(2 + 2 / 3, rel=0.03)


def test_gradients_of_a_sum_are_independent() -> None:
    """relu'(y + z)^2 has no part that is odd in y and in z: the two paths have nothing in common."""
    found = vf.derive(made(BOTH["behind a sum"], "circular")).numeric({})
    assert found["x"]["grad_second_moment"] == pytest.approx(1.0, rel=0.01)


def test_a_convolution_of_zeros_is_zero() -> None:
    """Three relu values in a window are zero together now and then, and relu' of their sum is zero then: 1/2 was taken,
    19 % too much. By a simulation of its own."""
    net = Network("stack")
    h = net.depthwise_conv(net.input("x", 128, (6,)), 3, padding=1, padding_mode="circular", variance=1, name="y")
    h = net.depthwise_conv(net.relu(h), 3, padding=1, padding_mode="circular", variance=1, name="z")
    net.relu(h, name="out")
    rng = np.random.default_rng(0)
    x, w, v = (rng.standard_normal((200_000, k)) for k in (6, 3, 3))

    def along(w: Any, h: Any) -> Any:
        return sum(w[:, [t]] * np.roll(h, 1 - t, axis=1) for t in range(3))

    z = along(v, np.maximum(along(w, x), 0))
    found = vf.derive(net).numeric({})["z"]["grad_second_moment"]
    assert found == pytest.approx(float(np.mean(z > 0)), rel=0.02)
    assert found < 0.47


@pytest.mark.parametrize("kind", ["depthwise", "maxima", "mask"])
def test_functions_with_parameters_are_sampled(kind: str) -> None:
    """tanh(b x) with a symbol b in laws that are samples: the symbol had no number there."""
    net = Network("parameter")
    net.symbol("b", positive=True)
    x = net.input("x", 64, (6,))
    if kind == "depthwise":
        y = net.depthwise_conv(x, 3, padding=1, variance="1/fan_in")
        net.multiply(net.activation(y, "tanh(b*x)"), x, name="y")
    elif kind == "maxima":
        h = net.max_pool(net.add(net.activation(x, "tanh(b*x)"), net.input("z", 64, (6,))), 2)
        net.max_pool(net.multiply(h, h), 3, name="y")
    else:
        h = net.add(x, net.drop_path(net.linear(x, 64, variance="1/fan_in"), p="1/2"))
        net.multiply(net.activation(net.conv(h, 64, 3, padding=1, variance="1/fan_in"), "tanh(b*x)"), h, name="y")
    s = simulate(lower(net.bind({"b": 0.7})), 300, samples=8, seed=1).forward["y"]
    found = vf.derive(net).numeric({"b": 0.7})["y"]["second_moment"]
    assert abs(found / s.second_moment - 1) < 0.02 + 3 * s.standard_error / s.second_moment
