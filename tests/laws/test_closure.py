"""The Gaussian closure: a labelled formula beside a population's number, with its error."""

from __future__ import annotations

import numpy as np
import pytest

import varflow as vf
from varflow.errors import InputError, UnsupportedError
from varflow.load import graph_names, load


def nested() -> vf.Network:
    """tanh of a sum of products and nonlinear terms of four Gaussians: no formula."""
    net = vf.Network("nested")
    x = net.input("x", channels=64)
    a, b, c, e = (net.linear(x, 64, variance="1/fan_in", name=n) for n in "abce")
    h = net.add(net.multiply(net.tanh(a), b), net.gelu(c), net.relu(e), name="h")
    net.softplus(h, name="y")
    return net


def test_closure_beside_the_population() -> None:
    d = vf.derive(nested())
    assert (d["y"].second_moment, d["y"].tier) == (None, "population")
    numbers = d["y"].numeric()
    rng = np.random.default_rng(1)
    a, b, c, e = rng.standard_normal((4, 1_000_000))
    from scipy.special import ndtr

    h = np.tanh(a) * b + c * ndtr(c) + np.maximum(e, 0)
    truth = float((np.logaddexp(0, h) ** 2).mean())
    gaussian = h.mean() + h.std() * rng.standard_normal(h.size)
    assert numbers["second_moment"] == pytest.approx(truth, rel=0.01)
    assert numbers["closure"] == pytest.approx(float((np.logaddexp(0, gaussian) ** 2).mean()), rel=0.01)
    assert numbers["closure_error"] == pytest.approx(abs(numbers["closure"] / truth - 1), abs=0.01)


def test_formulas_only() -> None:
    d = vf.derive(nested(), tier="closed")
    assert d["y"].second_moment is not None
    assert d["y"].exactness == "closure"
    assert any("jointly Gaussian" in a for a in d["y"].assumptions)
    assert d["h"].exactness == "wide"


def test_where_a_formula_exists_there_is_no_closure() -> None:
    d = vf.derive(nested())
    assert d["h"].closure is None
    assert d.closed["h"].second_moment == d["h"].second_moment


def test_nothing_is_measured_where_formulas_are_asked_for() -> None:
    net = vf.Network("batch norm twice")
    x = net.batch_norm(net.relu(net.linear(net.input("x", channels=64), 64, variance="1/fan_in")), batch=8)
    net.tanh(x, name="y")
    d = vf.derive(net, tier="closed")
    if d["y"].second_moment is None:
        with pytest.raises(UnsupportedError, match="formula"):
            d["y"].numeric()
    with pytest.raises(InputError):
        vf.derive(net, tier="best")


@pytest.mark.parametrize("graph", graph_names())
def test_nine_nodes_in_ten_have_formulas(graph: str) -> None:
    d = vf.derive(load(graph), tier="closed")
    have = [m is not None for law in d.values() for m in (law.forward.second, law.backward and law.backward.second)]
    assert sum(have) >= 0.9 * len(have)
