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
from varflow.spectrum import _nodes

L = sp.Symbol("L", positive=True)


def drawn(slope: Callable[[Any], Any], depth: int, sw: float, orthogonal: bool, size: int, count: int) -> Any:
    """Mean, second and third moment and largest of the squared singular values over their mean: a row a matrix."""
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(count):
        j = np.eye(size)
        for _ in range(depth):
            w = rng.standard_normal((size, size)) * math.sqrt(sw / size)
            if orthogonal:
                w = np.linalg.qr(w)[0] * math.sqrt(sw)
            j = slope(rng.standard_normal(size))[:, None] * (w @ j)
        s = np.linalg.svd(j, compute_uv=False) ** 2
        one = s / s.mean()
        rows.append([s.mean(), np.mean(one**2), np.mean(one**3), one.max()])
    return np.array(rows)


def wide(small: Any, large: Any, ratio: float = 4) -> tuple[Any, Any]:
    """The limit of a + b / n from two widths of that ratio (b / n^(2/3) for the largest), and its standard error."""
    weight = ratio ** np.array([1, 1, 1, 2 / 3])
    means = [rows.mean(axis=0) for rows in (small, large)]
    errors = [rows.std(axis=0, ddof=1) / math.sqrt(len(rows)) for rows in (small, large)]
    return (weight * means[1] - means[0]) / (weight - 1), np.hypot(weight * errors[1], errors[0]) / (weight - 1)


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
    """Two sizes of drawn matrices, taken to the limit, within four standard errors of at most 4 %."""
    found = vf.jacobian_spectrum(name, 3, weights)
    rows = [drawn(slope, 3, float(found.sw), weights == "orthogonal", *size) for size in ((50, 400), (200, 40))]
    limit, error = wide(rows[0], rows[1])
    wanted = np.array([1, 1 + float(found.variance), float(found.moment(3).evalf()), float(found.largest)])
    assert np.all(error < 0.04 * wanted)
    assert np.all(np.abs(limit - wanted) < 4 * error)


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


@pytest.mark.parametrize("depth", [-3, 0, 2.5, "-L", sp.Symbol("L", negative=True), float("nan")])
def test_depths(depth: Any) -> None:
    """Layers are counted."""
    with pytest.raises(InputError, match=r"depth|finite"):
        vf.jacobian_spectrum("tanh", depth)


def test_variances() -> None:
    for name in ("q", "sw"):
        with pytest.raises(InputError, match=f"{name} = -1 is negative"):
            vf.jacobian_spectrum("tanh", 3, **{name: -1})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no derivative at 0"):
        vf.jacobian_spectrum("relu", 3, q=0)
    with pytest.raises(InputError, match="f'\\(0\\) = 0"):
        vf.jacobian_spectrum("square", 3, q=0)
    with pytest.raises(InputError, match="sw = 0"):
        vf.jacobian_spectrum("tanh", 3, sw=0)
    still, linear = vf.jacobian_spectrum("tanh", 3, q=0), vf.jacobian_spectrum("identity", 3)
    assert (still.variance, still.largest, still.moment(4)) == (linear.variance, linear.largest, linear.moment(4))


def test_high_moments() -> None:
    """Polynomials in depth and in mu_j/mu_1^j, not nested integrals."""
    assert vf.jacobian_spectrum("identity", 3).moment(10) == sp.binomial(40, 10) / 31
    assert float(vf.jacobian_spectrum("tanh", 3).moment(10)) == pytest.approx(870761334.2986, rel=1e-10)
    for k in (2.5, "2", True):
        with pytest.raises(InputError, match="moment"):
            vf.jacobian_spectrum("tanh", 3).moment(k)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["normal", "orthogonal"])
@pytest.mark.parametrize("depth", [10, 1000, 10**5])
def test_deep_edges(weights: str, depth: int) -> None:
    """The search agrees with the formula of relu; the edge tends to e times the variance (Pennington et al. 2018)."""
    relu, tanh = vf.jacobian_spectrum("relu", depth, weights), vf.jacobian_spectrum("tanh", depth, weights)
    assert float(relu._edge()) == pytest.approx(float(relu.largest.evalf(30)), rel=1e-7)
    assert float(tanh.largest) == pytest.approx(math.e * float(tanh.variance), rel=0.5 / depth)


def test_narrow_slopes() -> None:
    """f' far narrower than the spread of x: E f'^2 = 4/3 / sqrt(2 pi q)."""
    found = vf.jacobian_spectrum("tanh", 1, "orthogonal", q=1e12)
    ratio, weight = _nodes(found.slope, 1e12, 1.0)
    assert float(np.sum(ratio * weight)) == pytest.approx(4 / 3 / math.sqrt(2 * math.pi * 1e12), rel=1e-9)
    assert float(found.largest) == pytest.approx(float(found.sw.evalf()), rel=1e-9)
