"""Variances given a gate are squares, and stay so."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

import varflow as vf
from varflow.laws.powers import as_powers, powers_within
from varflow.network import Network

z, q = sp.symbols("z q", real=True)
t = sp.tanh(z)
HERMITE = np.polynomial.hermite_e.hermegauss(200)


def test_squares_of_a_function_are_found() -> None:
    assert as_powers(sp.expand((1 + t) ** 2)) == (1 + t) ** 2
    assert as_powers(sp.expand(3 * (t - 2) ** 2)) == 3 * (t - 2) ** 2


@pytest.mark.parametrize("expr", [1 + t, 1 + t + t**2, q + q * t**2, sp.sin(z) + t + 1, z**2 + 2 * z + 1], ids=str)
def test_anything_else_stays(expr: sp.Expr) -> None:
    assert as_powers(expr) == expr


def test_an_argument_keeps_its_value() -> None:
    wide = sp.sqrt(2) * sp.expand((1 + t) ** 2) / (2 * sp.Abs(1 + t))
    found = powers_within(sp.erfc(sp.expand(wide)) + t)
    for x in (-3.0, 0.3, 2.0):
        assert float(found.subs(z, x)) == pytest.approx(float((sp.erfc(wide) + t).subs(z, x)), rel=1e-12)


@pytest.mark.parametrize("function", ["elu", "selu", "hardswish", "relu6", "hardtanh(-1, 1)", "softshrink(1/2)"])
@pytest.mark.parametrize("gate", ["tanh", "sigmoid"])
def test_functions_of_a_gated_skip(function: str, gate: str) -> None:
    """f(x + x tanh(W x)): 1 + 2 tanh + tanh^2 became negative where tanh is nearly -1, and there was no number."""
    net = Network("gated")
    x = net.input("x", "n")
    g = net.activation(net.linear(x, "n", variance="1/fan_in"), gate)
    net.activation(net.add(x, net.multiply(x, g), name="h"), function, name="y")
    found = vf.derive(net).numeric({"n": 64})
    points, weights = HERMITE
    u, v = np.meshgrid(points, points)
    h = u * (1 + (np.tanh(v) if gate == "tanh" else 1 / (1 + np.exp(-v))))
    elu = {alpha: np.where(h > 0, h, alpha * np.expm1(np.minimum(h, 0))) for alpha in (1, 1.6732632423543772)}
    values = {
        "elu": elu[1],
        "selu": 1.0507009873554805 * elu[1.6732632423543772],
        "hardswish": h * np.clip(h + 3, 0, 6) / 6,
        "relu6": np.clip(h, 0, 6),
        "hardtanh(-1, 1)": np.clip(h, -1, 1),
        "softshrink(1/2)": np.sign(h) * np.maximum(np.abs(h) - 0.5, 0),
    }[function]
    wanted = np.einsum("ij,i,j", values**2, weights, weights) / weights.sum() ** 2
    assert found["y"]["second_moment"] == pytest.approx(wanted, rel=2e-3)
