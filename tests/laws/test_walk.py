"""The post-activation stream: closed moments against a random walk simulated here."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

import varflow as vf
from varflow.laws.walk import spitzer


def simulated(steps: int, size: int = 400_000) -> tuple[float, float]:
    """(E x_L, E x_L^2) of x -> relu(x + g), x_0 = 0, g standard normal."""
    rng = np.random.default_rng(steps)
    x = np.zeros(size)
    for _ in range(steps):
        x = np.maximum(x + rng.standard_normal(size), 0)
    return float(x.mean()), float((x**2).mean())


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
def test_spitzer_against_a_simulated_walk(steps: int) -> None:
    first, second = (float(m) for m in spitzer(steps))
    mean, square = simulated(steps)
    assert first == pytest.approx(mean, rel=0.01)
    assert second == pytest.approx(square, rel=0.015)


def test_many_steps_agree_with_few_in_form() -> None:
    first, second = spitzer(60)
    k = np.arange(1, 61)
    pairs = sum(1 / np.sqrt(i * j) for i in k for j in k if i + j <= 60)
    assert float(first) == pytest.approx(np.sum(1 / np.sqrt(2 * np.pi * k)), rel=1e-12)
    assert float(second) == pytest.approx(30 + pairs / (2 * np.pi), rel=1e-12)


def stream(relu: str, blocks: int) -> vf.Derivation:
    net = vf.Network("stream")
    x = net.activation(net.linear(net.input("x", channels="n"), "n", variance="s/fan_in"), relu)
    for i in range(blocks):
        g = net.linear(net.rms_norm(x), "n", variance="s/fan_in")
        x = net.activation(net.add(x, g), relu, name=f"y{i}")
    return vf.derive(net)


@pytest.mark.parametrize("relu", ["relu", "Piecewise((x, x > 0), (0, True))", "(x + abs(x))/2"])
def test_the_engine_finds_the_closed_form(relu: str) -> None:
    d = stream(relu, 5)
    s = sp.Rational(17, 10)
    for i in range(5):
        first, second = spitzer(i + 2)
        law = {f: getattr(d[f"y{i}"], f).subs(d.network.symbols["s"], s) for f in ("mean", "second_moment")}
        assert float(law["second_moment"]) == pytest.approx(float(second * s), rel=1e-12)
        assert float(law["mean"]) == pytest.approx(float(first * sp.sqrt(s)), rel=1e-12)
    assert d["y4"].exactness == "wide"


def test_unequal_steps_are_left_to_the_population() -> None:
    net = vf.Network("stream")
    x = net.relu(net.linear(net.input("x", channels=64), 64, variance="1/fan_in"))
    for i in range(4):
        g = net.linear(net.rms_norm(x), 64, variance=f"{i + 2}/fan_in")
        x = net.relu(net.add(x, g), name=f"y{i}")
    d = vf.derive(net)
    assert d["y3"].second_moment is None
    assert d["y3"].tier == "population"
    rng = np.random.default_rng(0)
    y = np.maximum(rng.standard_normal(400_000), 0)
    for i in range(4):
        y = np.maximum(y + np.sqrt(i + 2) * rng.standard_normal(y.size), 0)
    assert d["y3"].numeric()["second_moment"] == pytest.approx(float((y**2).mean()), rel=0.02)
