"""Moments that do not exist have no numbers, though a sample would give some."""

from __future__ import annotations

import numpy as np
import pytest

import varflow as vf
from varflow.laws.domain import Divergent, NotReal


def behind(function: str, bias: object = None, second: object = 1) -> vf.Derivation:
    net = vf.Network("singular")
    x = net.input("x", channels="n", second_moment=second)
    a = net.linear(x, "n", variance="1/fan_in", bias=bias, name="a")
    net.linear(net.activation(a, function, name="b"), "n", variance="1/fan_in", name="c")
    return vf.derive(net)


def second(d: vf.Derivation, node: str) -> float:
    return float(d[node].numeric({"n": 64})["second_moment"])


@pytest.mark.parametrize("function", ["exp(x^2)", "exp(x^2/4)", "exp(exp(x))", "1/x", "1/(x - 1)", "tan(x)"])
def test_second_moments_that_do_not_exist(function: str) -> None:
    """They were large numbers."""
    for node in ("b", "c"):
        with pytest.raises(Divergent, match=r"the second moment of b: the expectation (is infinite|does not exist)"):
            second(behind(function), node)


@pytest.mark.parametrize("function", ["log(abs(x))", "abs(x)^(-1/4)"])
def test_gradients_that_have_no_second_moment(function: str) -> None:
    d = behind(function)
    assert np.isfinite(float(d["b"].second_moment or np.inf))
    with pytest.raises(Divergent, match=r"E\[\(dL/dx\)\^2\] in front of b"):
        d["a"].numeric({"n": 64})


@pytest.mark.parametrize("function", ["log(x)", "sqrt(x)", "x^(3/2)", "x*sqrt(x)"])
def test_functions_that_are_not_real(function: str) -> None:
    """The square of a root is real everywhere: it had the formula 0."""
    d = behind(function)
    assert d["b"].second_moment is None
    with pytest.raises(NotReal, match="the second moment of b"):
        second(d, "b")


def test_a_root_of_values_above_zero() -> None:
    net = vf.Network("root")
    a = net.relu(net.linear(net.input("x", channels="n"), "n", variance="1/fan_in"), name="a")
    net.activation(a, "sqrt(x)", name="y")
    assert float(vf.derive(net)["y"].second_moment or 0) == pytest.approx((2 * np.pi) ** -0.5, rel=1e-12)


def test_the_variance_counts() -> None:
    """E exp(2 x^2 / 4) is infinite from a variance of 1 on; a bias adds to it."""
    assert second(behind("exp(x^2/4)", second="1/2"), "b") == pytest.approx(2**0.5, rel=1e-9)
    with pytest.raises(Divergent):
        second(behind("exp(x^2/4)", second="1/2", bias="1/2"), "b")


def test_a_function_of_a_function() -> None:
    net = vf.Network("composed")
    a = net.linear(net.input("x", channels="n"), "n", variance="1/fan_in", name="a")
    net.activation(net.square(a), "exp(x)", name="y")
    with pytest.raises(Divergent, match="the second moment of y"):
        second(vf.derive(net), "y")
    net.activation(net.relu(a), "1/(1 + x)", name="z")
    assert 0 < second(vf.derive(net), "z") < 1


def test_a_verification_tells_them_apart() -> None:
    found = vf.verify(behind("1/x"), {"n": 16}, 64)
    check = found.nodes["b"]["forward"]
    assert check.predicted == float("inf") and check.verdict == "inconclusive" and "infinite" in check.note
    assert found.nodes["b"]["backward"].exactness == "exact"
