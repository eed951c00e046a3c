"""Numbers for a derivation: values that a symbol excludes, grids, missing ones."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import sympy as sp

import varflow as vf
from varflow.errors import InputError, UnsupportedError
from varflow.lowering import lower
from varflow.network import Network
from varflow.simulate.cpu import simulate


def chain() -> vf.Derivation:
    net = vf.Network("chain", symbols={"n": sp.Symbol("n", positive=True, integer=True)})
    net.relu(net.linear(net.input("x", channels="n"), "n", variance="s/fan_in", name="w"), name="y")
    return vf.derive(net)


@pytest.mark.parametrize("values", [{"n": -4, "s": 1}, {"n": 2.5, "s": 1}, {"n": 4, "s": 0},
                                    {"n": 4, "s": np.array([1.0, -1.0])}])
def test_values_that_the_symbols_exclude(values: dict[str, float]) -> None:
    with pytest.raises(InputError, match="not"):
        chain()["y"].numeric(values)


def test_missing_values_are_named() -> None:
    with pytest.raises(InputError, match="no value for s"):
        chain().numeric({"n": 4})


def test_grids_of_values() -> None:
    scales = np.linspace(0.5, 3, 6)
    law = chain()["y"].numeric({"n": 64, "s": scales})
    np.testing.assert_allclose(law["second_moment"], scales / 2, rtol=1e-14)
    np.testing.assert_allclose(law["mean"], np.sqrt(scales / (2 * np.pi)), rtol=1e-14)


def test_a_named_activation_is_an_op_of_a_graph() -> None:
    g: nx.DiGraph[str] = nx.DiGraph()
    g.add_node("x", op="input", channels="n")
    g.add_node("h", op="relu")
    g.add_edge("x", "h")
    assert vf.derive(vf.Network.from_networkx(g))["h"].second_moment == sp.Rational(1, 2)
    g.remove_edge("x", "h")
    with pytest.raises(InputError, match="takes 1 input"):
        vf.Network.from_networkx(g)


def test_no_gain_over_nothing() -> None:
    """A state that starts at zero, as those of recurrences do."""
    net = vf.Network("start")
    state = net.input("h", "n", second_moment=0)
    net.linear(net.linear(state, "n", variance="1/fan_in", name="zero"), "n", variance="1/fan_in", bias=1, name="y")
    found = vf.derive(net).numeric({"n": 4})
    assert found["zero"]["second_moment"] == 0 and found["zero"]["local_gain"] is None and found["y"]["gain"] is None
    assert found["y"]["second_moment"] == 1


def test_a_formula_that_floats_do_not_evaluate_gives_way_to_the_population() -> None:
    """Logits of variance 900: nearly all rows are one hot, which the integral refuses and a population simulates; where
    there is no population the reason is said."""
    net = Network("sharp")
    x = net.input("x", 256, (4,))
    fields = {f"{part}_variance": "1/fan_in" for part in ("query", "key", "value", "output")}
    net.self_attention(net.scale(x, 5.6), heads=8, name="y", **fields)
    numbers = vf.derive(net).numbers({})
    s = simulate(lower(net), 100, seed=1).forward["y"]
    assert abs(float(numbers.second("y")) / s.second_moment - 1) < 0.02 + 4 * s.standard_error / s.second_moment
    assert numbers.of_population("y")
    with pytest.raises(UnsupportedError, match="one hot"):
        vf.derive(net, tier="closed").numbers({}).second("y")


def test_kinks_of_copies() -> None:
    """relu6 of a value and of its copy, side by side behind nearest upsampling, with a mean: 0/0 in a closed form."""
    net = Network("copies")
    x = net.upsample(net.input("x", 64, (3, 3), mean="3/10"), 2, mode="nearest")
    h = net.conv(net.relu6(x, name="h"), 64, 3, padding=1, variance="2/fan_in", name="c")
    net.avg_pool(net.relu(net.add(x, h)), 3, stride=2, padding=1, name="y")
    numbers, seen = vf.derive(net).numeric({}), simulate(lower(net), 200, samples=8, seed=1)
    for name in ("h", "c", "y"):
        s = seen.forward[name]
        assert abs(numbers[name]["second_moment"] / s.second_moment - 1) < 0.02 + 4 * s.standard_error / s.second_moment
