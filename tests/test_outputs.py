"""Outputs: each a node of the network, once, with a cotangent of its own."""

from __future__ import annotations

from typing import Any

import pytest

import varflow as vf
from varflow.errors import ErrorList, InputError


def network() -> tuple[vf.Network, vf.Handle]:
    net = vf.Network("outputs")
    return net, net.linear(net.input("x", channels="n"), "n", variance="1/fan_in", name="h")


def test_an_output_declared_twice_is_refused() -> None:
    """It had one cotangent, without a word."""
    net, h = network()
    net.output(h, net.relu(h, name="a"), h)
    with pytest.raises(ErrorList, match="output 'h' is declared 2 times"):
        vf.derive(net)


@pytest.mark.parametrize("wrong", ["h", None, ("h",), vf.Handle("z"), vf.Handle("h", "3")])
def test_outputs_are_handles_of_nodes(wrong: Any) -> None:
    net, _ = network()
    with pytest.raises(InputError, match="is not an output of a node of this network"):
        net.output(wrong)


def test_every_output_has_a_cotangent() -> None:
    """A block that returns its input and one value twice: c_h + c_0 + relu' (c_1 + c_2), and the simulation's."""
    body = vf.Network("body")
    u = body.input("u", channels="n")
    body.output(u, k := body.relu(u), k)
    net, h = network()
    net.output(h, *net.block(body, h, name="b"))
    d = vf.derive(net)
    assert [d[n].grad_second_moment for n in ("b:1", "b:2", "h", "x")] == [2, 2, 3, 3]
    assert vf.verify(d, {"n": 64}, 2000, seed=3).verdict == "pass"


def test_a_copy_is_another_output() -> None:
    net, h = network()
    net.output(h, net.identity(h))
    assert vf.derive(net)["h"].grad_second_moment == 2
