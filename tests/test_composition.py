"""Networks as compositions: slopes, curvatures, correlations, and finite networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sympy as sp

import varflow as vf
from varflow.composition import (
    IDENTITY,
    Part,
    curvature,
    layers,
    local_curvature,
    local_slope,
    maximum,
    slope,
)
from varflow.depthmap import LocalMap
from varflow.errors import InputError, SolveError
from varflow.maps import C


def resnet(weight: str) -> Part:
    """The residual network of the tests of DKS: 3, 4, 23 and 3 blocks of three layers."""
    first, other = vf.residual(vf.chain(3), weight, vf.LAYER), vf.residual(vf.chain(3), weight)
    blocks = [p for n in (3, 4, 23, 3) for p in (first, *[other] * (n - 1))]
    return vf.sequence(*blocks, vf.LAYER)


def test_chains_multiply_and_add() -> None:
    assert slope(vf.chain(5), sp.Rational(3, 2)) == sp.Rational(3, 2) ** 5
    assert curvature(vf.chain(5), sp.Rational(1, 10)) == sp.Rational(1, 2)
    assert local_slope(vf.chain(4), 16) == 2
    assert layers(resnet("0.6")) == 100 and layers(IDENTITY) == 0


def test_residual_networks() -> None:
    """Zhang et al. (2022): the maximal curvature of this network is 65.8 local ones; the slope by its definition."""
    assert local_curvature(resnet("0.6"), "0.2") == sp.Rational(1, 329)
    mu = float(local_slope(resnet("0.6"), 1.2))
    x, weight = 1.0, 0.36
    for blocks in (3, 4, 23, 3):
        for k in range(blocks):
            x = weight * x * (mu if k == 0 else 1) + (1 - weight) * mu**3 * x
    assert x * mu == pytest.approx(1.2, rel=1e-12)


def test_a_branch_may_be_worse_than_the_whole() -> None:
    net = vf.residual(vf.chain(3), "0.9")
    assert maximum(net, 0.0, lambda y: y + 1) == 3
    assert net.through(0.0, lambda y: y + 1) == pytest.approx(0.19 * 3)


def test_errors() -> None:
    with pytest.raises(InputError, match="shortcut weight"):
        vf.residual(vf.chain(2), 1.5)
    with pytest.raises(InputError, match="depth"):
        vf.chain(-1)
    with pytest.raises(SolveError, match="slopes multiply"):
        local_slope(vf.chain(3), 0.5)
    for solve in (local_slope, local_curvature):
        with pytest.raises(SolveError, match="no nonlinear layer"):
            solve(IDENTITY, 2)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "elu", "leaky_relu(0.3)", "softplus"])
def test_local_map_is_interpolated_well(name: str) -> None:
    local = LocalMap(vf.network_map(name, 1).activation, 1.3)
    for c in (0.0, 0.37, 0.9, 0.9999, 1.0, -0.4):
        assert local(c) == pytest.approx(float(local.direct(c)), abs=2e-12)


def test_formula_of_the_local_map() -> None:
    """Cho and Saul (2009); Daniely et al. (2016): (sqrt(1-c^2) + (pi - acos c) c)/pi."""
    formula = vf.network_map("relu", 1).formula
    assert formula is not None
    for c in (-0.5, 0.2, 0.8):
        wanted = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi
        assert float(formula.subs(C, c)) == pytest.approx(wanted, rel=1e-12)


def test_slopes_of_a_network() -> None:
    tanh = vf.network_map("tanh", 5)
    h = 1e-4
    assert tanh.slope == pytest.approx((tanh.c(1.0) - tanh.c(1 - h)) / h, rel=2e-3)
    assert tanh.largest_slope == pytest.approx(tanh.local_slope**5)
    bend = (tanh.local(1.0) - 2 * tanh.local(1 - h) + tanh.local(1 - 2 * h)) / h**2
    assert tanh.local_curvature == pytest.approx(bend, rel=5e-3)
    assert vf.network_map("relu", 3).local_curvature == math.inf
    assert vf.network_map("relu", 4).trajectory(0.0)[2] == pytest.approx(0.4937310902003716, rel=1e-10)
    with pytest.raises(InputError, match="symbols"):
        vf.network_map("leaky_relu(a)", 3).c(0.0)


def test_wide_residual_networks_follow_the_map() -> None:
    """x <- w x + sqrt(1 - w^2) W f(x), f scaled to keep q = 1: the correlation of two inputs, measured."""
    net = vf.sequence(*[vf.residual(vf.LAYER, "0.6")] * 6)
    predicted = vf.network_map("relu", net).c(0.1)
    rng, measured = np.random.default_rng(0), []
    for _ in range(8):
        u, v = rng.standard_normal((2, 600))
        x = np.stack([u, 0.1 * u + math.sqrt(0.99) * v])
        for _ in range(6):
            weights = rng.standard_normal((600, 600)) / math.sqrt(600)
            x = 0.6 * x + 0.8 * math.sqrt(2) * np.maximum(x, 0) @ weights
        measured.append(x[0] @ x[1] / np.sqrt(x[0] @ x[0] * (x[1] @ x[1])))
    error = float(np.std(measured)) / math.sqrt(8)
    assert error < 0.03 and float(np.mean(measured)) == pytest.approx(predicted, abs=5 * error)
