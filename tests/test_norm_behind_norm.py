"""A norm directly behind another one: what the first takes off a gradient that the second has passed on."""

from __future__ import annotations

import pytest

import varflow as vf
from varflow.lowering import lower
from varflow.network import Network
from varflow.simulate.cpu import simulate


@pytest.mark.parametrize("transposed", [False, True])
def test_group_norm_behind_instance_norm(transposed: bool) -> None:
    """The mean that the group norm takes off is one number for a channel, whose normalized values add up to zero; the
    moment was refused for it, and the gradient in front of both 2.8 times too large. What is left is the group's own
    projection, which the instance norm takes off once more."""
    net = Network("norms")
    x = net.input("x", 64, (8, 8))
    more = {"stride": 2, "output_padding": 1} if transposed else {}
    make = net.conv_transpose if transposed else net.conv
    h = net.instance_norm(make(x, 64, 3, padding=1, variance="1/fan_in", name="c", **more), name="i")
    net.linear(net.mean_pool(net.relu(net.group_norm(h, groups=2, name="g"))), 64, variance="2/fan_in", name="y")
    numbers, seen = vf.derive(net).numeric({}), simulate(lower(net), 60, samples=8, seed=1).backward
    for name, most in (("g", 0.03), ("i", 0.03), ("c", 0.12), ("x", 0.12)):
        assert abs(numbers[name]["grad_second_moment"] / seen[name].second_moment - 1) < most
