"""The spectrum of a deep Jacobian: published formulas, and matrices drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy as sp

import varflow as vf
from varflow.errors import InputError, UnsupportedError

L = sp.Symbol("L", positive=True)


def drawn(slope: Callable[[Any], Any], depth: int, sw: float, orthogonal: bool, size: int = 200) -> Any:
    """(mean, variance, third moment, largest) of squared singular values, averaged over draws."""
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(8):
        j = np.eye(size)
        for _ in range(depth):
            w = rng.standard_normal((size, size)) * math.sqrt(sw / size)
            if orthogonal:
                w = np.linalg.qr(w)[0] * math.sqrt(sw)
            j = slope(rng.standard_normal(size))[:, None] * (w @ j)
        s = np.linalg.svd(j, compute_uv=False) ** 2
        rows.append([s.mean(), s.var(), np.mean(s**3), s.max()])
    return np.mean(rows, axis=0)


def test_linear_networks() -> None:
    """Fuss-Catalan moments: 1/(k L + 1) binom(k L + k, k) of Gaussian products."""
    gauss = vf.jacobian_spectrum("identity", "L")
    assert sp.simplify(gauss.largest - (L + 1) ** (L + 1) / L**L) == 0
    for k in (1, 2, 3, 4):
        for depth in (1, 2, 5):
            wanted = sp.binomial(k * depth + k, k) / (k * depth + 1)
            assert gauss.moment(k).subs(L, depth) == wanted
    assert vf.jacobian_spectrum("identity", "L", "orthogonal").isometry and not gauss.isometry


def test_relu_networks() -> None:
    """Pennington et al. (2017): 2 L and L; the edges by the stationary point of the inverse of the moment series."""
    gauss, orthogonal = (vf.jacobian_spectrum("relu", "L", w) for w in ("normal", "orthogonal"))
    assert gauss.variance == 2 * L and orthogonal.variance == L
    assert sp.simplify(orthogonal.largest.subs(L, 3)) == sp.Rational(27, 4)
    assert vf.jacobian_spectrum("relu", 1, "orthogonal").largest == 2
    assert vf.jacobian_spectrum("relu", 1).largest.equals(gauss.largest.subs(L, 1))


def test_smooth_orthogonal_networks_approach_isometry() -> None:
    """The variance falls with q: tanh at small signals is linear; relu's does not depend on q."""
    values = [float(vf.jacobian_spectrum("erf", 10, "orthogonal", q=q).variance) for q in ("1", "1/10", "1/100")]
    assert values[0] > 10 * values[1] > 100 * values[2] * 5
    assert vf.jacobian_spectrum("relu", 10, "orthogonal", q=5).variance == 10


def test_away_from_criticality() -> None:
    found = vf.jacobian_spectrum("relu", 4, sw=1)
    assert found.chi == sp.Rational(1, 2) and found.mean == sp.Rational(1, 16)
    assert found.variance == sp.Rational(8, 256)


@pytest.mark.parametrize(
    ("name", "slope"),
    [("tanh", lambda x: 1 / np.cosh(x) ** 2), ("leaky_relu(0.3)", lambda x: np.where(x > 0, 1.0, 0.3)),
     ("relu", lambda x: (x > 0) * 1.0)],
)
@pytest.mark.parametrize("weights", ["normal", "orthogonal"])
def test_drawn_matrices(name: str, slope: Callable[[Any], Any], weights: str) -> None:
    found = vf.jacobian_spectrum(name, 3, weights)
    mean, variance, third, largest = drawn(slope, 3, float(found.sw), weights == "orthogonal")
    assert mean == pytest.approx(1, rel=5e-2)
    assert variance == pytest.approx(float(found.variance), rel=0.15)
    assert third == pytest.approx(float(found.moment(3).evalf()), rel=0.3)
    assert largest == pytest.approx(float(found.largest), rel=0.1)


def test_unbounded_slopes() -> None:
    assert vf.jacobian_spectrum("square", 2).largest == sp.oo


def test_errors() -> None:
    with pytest.raises(InputError, match="no spectrum is known"):
        vf.jacobian_spectrum("relu", 3, "sparse")
    with pytest.raises(UnsupportedError, match="jumps"):
        vf.jacobian_spectrum("sign", 3)
    with pytest.raises(InputError, match="constant"):
        vf.jacobian_spectrum("0*x", 3)
    with pytest.raises(InputError, match="numbers for depth"):
        _ = vf.jacobian_spectrum("tanh", "L").largest
    with pytest.raises(InputError, match="moment 0"):
        vf.jacobian_spectrum("relu", 3).moment(0)
    assert vf.jacobian_spectrum("relu", 3).to_dict()["value"]["variance"] == 6
