"""Numbers for a derivation: values that a symbol excludes, grids, missing ones."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import sympy as sp

import varflow as vf
from varflow.errors import InputError


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
