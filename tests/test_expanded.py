"""Values without positions at every place of an image: conditions, embeddings of time, context. Against simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy as sp

import varflow as vf
from varflow.errors import ErrorList
from varflow.lowering import lower
from varflow.network import Handle, Network
from varflow.simulate.cpu import simulate

N, SIZE = 192, (6, 6)
TWO: Any = {"variance": "2/fan_in"}


def condition(net: Network, name: str, size: tuple[int, ...] = SIZE) -> Handle:
    """A linear function of an embedding, everywhere."""
    if "emb" not in net.graph:
        net.silu(net.linear(net.input("t", 192), 192, variance="1/fan_in", bias="1/4"), name="emb")
    y: Handle = net.expand(net.linear(Handle("emb"), N, name=name, **TWO), positions=size, name=f"{name} everywhere")
    return y


def image(net: Network) -> Handle:
    y: Handle = net.conv(net.input("x", N, SIZE), N, 3, padding=1, name="c1", **TWO)
    return y


def embedded() -> Network:
    """A diffusion model's block: time is added to every place."""
    net = Network("embedded")
    h = net.relu(net.add(image(net), condition(net, "time"), name="sum"), name="r")
    net.add(Handle("x"), net.conv(h, N, 3, padding=1, name="c2", **TWO), name="y")
    return net


def modulated() -> Network:
    """Scale and shift by a condition (FiLM)."""
    net = Network("modulated")
    h = image(net)
    f = net.add(h, net.multiply(h, condition(net, "scale")), condition(net, "shift"), name="f")
    net.linear(net.mean_pool(net.relu(f), name="pool"), 64, name="y", **TWO)
    return net


def pooled() -> Network:
    net = Network("pooled")
    p = net.max_pool(net.add(image(net), condition(net, "time")), 2, name="p")
    net.conv(net.relu(p, name="r"), N, 3, name="y", **TWO)
    return net


def context() -> Network:
    """An image beside its own mean (global context)."""
    net = Network("context")
    h = image(net)
    mean = net.linear(net.mean_pool(net.relu(h)), N, variance="1/fan_in", name="mean")
    net.conv(net.relu(net.add(h, net.expand(mean, positions=SIZE)), name="r"), N, 3, padding=1, name="y", **TWO)
    return net


@pytest.mark.parametrize("make", [embedded, modulated, pooled, context], ids=lambda f: f.__name__)
def test_against_simulation(make: Callable[[], Network]) -> None:
    net = make()
    law, program = vf.derive(net).numeric({}), lower(net)
    seen = simulate(program, 100, samples=8, seed=3)
    for name in program.values:
        for field, s in (("second_moment", seen.forward[name]), ("grad_second_moment", seen.backward[name])):
            wanted = law[name][field]
            assert abs(wanted - s.second_moment) < 0.015 * s.second_moment + 4 * s.standard_error, (name, field)


def test_places_share_all_of_it() -> None:
    """The mean over places is the value itself; its gradient is that of the sum."""
    net = Network("shared")
    x = net.input("x", "n")
    net.mean_pool(net.expand(x, positions=(3, 5), name="e"), name="y")
    d = vf.derive(net)
    assert d["e"].second_moment == d["y"].second_moment == 1
    assert d["x"].grad_second_moment == 1 and d["e"].grad_second_moment == sp.Rational(1, 225)


def test_independent_gradients_add_up() -> None:
    net = Network("sum")
    net.expand(net.input("x", "n"), positions=("h", "w"), name="e")
    d = vf.derive(net)
    h, w = (net.symbols[name] for name in "hw")
    assert sp.expand(d["x"].grad_second_moment - h * w) == 0


@pytest.mark.parametrize(("have", "positions", "why"), [
    ((4,), (4,), "takes a value without positions"), ((), (), "has no positions")])
def test_what_cannot_be_expanded(have: tuple[int, ...], positions: tuple[int, ...], why: str) -> None:
    net = Network("wrong")
    net.expand(net.input("x", 8, have), positions=positions, name="e")
    with pytest.raises(ErrorList, match=why):
        vf.derive(net)


def test_a_sum_that_needs_it_says_so() -> None:
    net = Network("apart")
    net.add(net.input("x", 8, (4,)), net.input("z", 8), name="y")
    with pytest.raises(ErrorList, match=r"instead: expand \(the layer\)"):
        vf.derive(net)
