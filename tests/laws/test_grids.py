"""Gaussian moments and kernels on grids against closed forms and high-precision integrals."""

from __future__ import annotations

from functools import partial
from typing import Any

import mpmath as mp
import numpy as np
import numpy.typing as npt
import pytest
import sympy as sp

from varflow.activations import ACTIVATIONS
from varflow.errors import InputError
from varflow.laws.grids import Integrand, gaussian_kernel, gaussian_moment
from varflow.symbols import X as x

Array = npt.NDArray[np.float64]
RELU = sp.Max(x, 0)
STEP = sp.Heaviside(x)
VARIANCES = np.array([1e-6, 0.3, 1e6])
CORRELATIONS = np.array(
    [-1, -1 + 1e-12, -0.9999, -0.5, 0, 1e-9, 0.3, 0.97, 0.985, 1 - 1e-7, 1 - 1e-14, 1]
)


def arc_cosine(q1: Array, q2: Array, r: Array) -> Array:
    """E relu(u) relu(v), Cho and Saul 2009."""
    angle = np.arccos(r)
    return np.asarray(np.sqrt(q1 * q2) * (np.sin(angle) + (np.pi - angle) * r) / (2 * np.pi))


def orthant(q1: Array, q2: Array, r: Array) -> Array:
    return np.asarray((np.pi - np.arccos(r)) / (2 * np.pi) + 0 * q1 * q2)


def arc_sine(q1: Array, q2: Array, r: Array) -> Array:
    """E erf(u) erf(v), Williams 1997."""
    s = 2 * np.sqrt(q1 * q2) * r / np.sqrt((1 + 2 * q1) * (1 + 2 * q2))
    return np.asarray(2 / np.pi * np.arcsin(s))


def exponential(q1: Array, q2: Array, r: Array) -> Array:
    return np.asarray(np.exp((q1 + q2) / 2 + r * np.sqrt(q1 * q2)))


def waves(q1: Array, q2: Array, r: Array) -> Array:
    """E sin(3 u) sin(3 v)."""
    c = r * np.sqrt(q1 * q2)
    plus, minus = (np.exp(-4.5 * (q1 + q2 + s * 2 * c)) for s in (1, -1))
    return np.asarray((minus - plus) / 2)


@pytest.mark.parametrize(
    ("f", "want", "variances"),
    [
        (RELU, arc_cosine, VARIANCES),
        (STEP, orthant, VARIANCES),
        (sp.erf(x), arc_sine, VARIANCES),
        (sp.exp(x), exponential, np.array([1e-6, 1.0, 100.0])),
        (sp.sin(3 * x), waves, np.array([1e-6, 1.0, 10.0])),
        (lambda t: np.maximum(t, 0.0), arc_cosine, VARIANCES),
    ],
    ids=["relu", "step", "erf", "exp", "sin", "callable"],
)
def test_kernels_with_closed_forms(f: Any, want: Any, variances: Array) -> None:
    q1, q2 = variances[:, None, None], variances[None, :, None][:, ::2]
    got = gaussian_kernel(f, f, q1, q2, CORRELATIONS)
    exact = want(q1, q2, CORRELATIONS)
    scale = np.sqrt(want(q1, q1, np.ones(1)) * want(q2, q2, np.ones(1)))
    assert got.shape == exact.shape
    assert np.max(np.abs(got - exact) / scale) < 1e-10


def test_moments_of_every_scale() -> None:
    assert np.allclose(gaussian_moment(RELU**2, VARIANCES), VARIANCES / 2, rtol=1e-12)
    q = 10.0 ** np.arange(-6, 4)
    assert np.allclose(
        gaussian_moment(sp.sin(30 * x) ** 2, q), -np.expm1(-1800 * q) / 2, rtol=1e-11
    )
    shifted = gaussian_moment(sp.exp(x), [1.0, 100.0], mean=[[0.5], [-3.0]])
    assert np.allclose(
        shifted, np.exp(np.array([[0.5], [-3.0]]) + np.array([0.5, 50.0])), rtol=1e-11
    )


def test_vanishing_variance_is_the_limit() -> None:
    assert gaussian_moment(STEP, 0.0) == 0.5
    assert np.array_equal(gaussian_moment(sp.sign(x - 1), 0.0, [0.0, 1.0, 2.0]), [-1.0, 0.0, 1.0])
    assert gaussian_kernel(STEP, sp.exp(x), 0.0, 2.0, 0.3) == pytest.approx(0.5 * np.e, rel=1e-12)
    assert gaussian_kernel(STEP, STEP, 0.0, 0.0, 1.0) == 0.5
    assert gaussian_kernel(STEP, STEP, 0.0, 0.0, -1.0) == 0.0


def test_what_has_no_value_is_refused_or_infinite() -> None:
    assert gaussian_moment(sp.exp(x), 1e4) == np.inf
    assert gaussian_moment(sp.exp(x**2), 0.5) == np.inf
    assert gaussian_moment(-sp.exp(x**2), 2.0) == -np.inf
    assert gaussian_moment(sp.exp(x**2), 0.25) == pytest.approx(np.sqrt(2), rel=1e-11)
    with pytest.raises(InputError, match="no real value"):
        gaussian_moment(sp.sqrt(x), 1.0)
    with pytest.raises(InputError, match="no value for a"):
        gaussian_moment(x * sp.Symbol("a"), 1.0)
    with pytest.raises(InputError, match="negative"):
        gaussian_moment(RELU, -1.0)
    with pytest.raises(InputError, match="correlation"):
        gaussian_kernel(RELU, RELU, 1.0, 1.0, 1.5)


def test_kinks_of_a_callable_are_found() -> None:
    f = Integrand(lambda t: np.where(t < 0.3, 0.0, np.sqrt(2) * t) + np.abs(t + 7.1))
    g = Integrand(
        sp.Piecewise((0, x < sp.Rational(3, 10)), (sp.sqrt(2) * x, True)) + sp.Abs(x + 7.1)
    )
    q = 10.0 ** np.arange(-4, 5)
    assert np.allclose(gaussian_moment(f, q), gaussian_moment(g, q), rtol=1e-11)
    assert np.allclose(f.breaks, [-7.1, 0.3], rtol=1e-10)
    r = np.array([-0.999, 0.2, 0.9999])
    args = (q[:, None], 2 * q[:, None], r, 0.4, -0.2)
    assert np.allclose(gaussian_kernel(f, f, *args), gaussian_kernel(g, g, *args), rtol=1e-10)


def test_no_activation_overflows() -> None:
    """log(a + b exp(x)), logistic functions and their products are evaluated in stable forms."""
    extra = [sp.log(2 + sp.exp(-x)), sp.exp(-x) / (2 + sp.exp(-x)) ** 2, 3 - 3 * sp.tanh(x**3)]
    every = [a.at() for a in ACTIVATIONS.values() if a.name != "exp"]
    for f in [*every, *extra]:
        q = [1e-6, 1.0, 100.0 if f.has(sp.sin, sp.cos) else 1e6]
        assert np.all(np.isfinite(gaussian_moment(f**2, q))), f


def test_ten_thousand_pairs_at_once() -> None:
    q, r = np.geomspace(0.01, 100, 100)[:, None], np.linspace(-1, 1, 100)
    table = gaussian_kernel(RELU, sp.tanh(x), q, q, r)
    assert table.shape == (100, 100)
    one = [gaussian_kernel(RELU, sp.tanh(x), q[k, 0], q[k, 0], r[k]) for k in range(0, 100, 9)]
    assert np.allclose(np.diagonal(table)[::9], one, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["relu", "tanh", "hardtanh"])
def test_distinct_variances_share_their_coefficients(name: str) -> None:
    """A thousand different standard deviations, from a few of them, equal each alone."""
    f = ACTIVATIONS[name].at()
    rng = np.random.default_rng(3)
    q1, q2 = 10 ** rng.uniform(-1, 1, (2, 1000))
    r = np.concatenate([rng.uniform(-1, 1, 990), np.linspace(-0.9999, 0.9999, 10)])
    together = gaussian_kernel(f, f, q1, q2, r)
    alone = [gaussian_kernel(f, f, *args) for args in zip(q1[::50], q2[::50], r[::50], strict=True)]
    scale = np.sqrt(gaussian_moment(f**2, q1) * gaussian_moment(f**2, q2))
    assert np.max(np.abs(together[::50] - alone) / scale[::50]) < 2e-13
    one = [gaussian_moment(f**2, q) for q in q1[::50]]
    assert np.allclose(gaussian_moment(f**2, q1)[::50], one, rtol=1e-13)
    if name == "relu":
        assert np.max(np.abs(together - arc_cosine(q1, q2, r)) / scale) < 2e-13


def test_a_kink_beside_a_border_of_the_panels() -> None:
    """Standard deviations at which a bend of the mesh falls just beside a panel of the series."""
    q = np.linspace(1.8, 2.0, 4001)
    exact = arc_cosine(q, q, np.full(1, 0.5))
    shifted = gaussian_kernel(sp.Max(x, 0) + sp.Abs(x - 2), RELU, q, 1.0, 0.5, 0.0, 0.0)
    plain = gaussian_kernel(sp.Abs(x - 2), RELU, q, 1.0, 0.5)
    assert np.max(np.abs(gaussian_kernel(RELU, RELU, q, q, 0.5) - exact)) < 1e-12
    assert np.max(np.abs(shifted - plain - arc_cosine(q, np.ones(1), np.full(1, 0.5)))) < 1e-12


def test_small_kernels_keep_their_digits() -> None:
    """Thresholds far out: E f(u) f(v) is a millionth of E f^2, and equals the integral of the joint density."""
    from varflow.laws.separable import evaluated

    f = sp.Piecewise((x, x > 1), (0, True))
    law = [np.array([v]) for v in (0.05, 0.01, 0.04)]
    value, sure = evaluated((f, f), law)
    spread = 0.05 * 0.04 - 0.01**2

    def inner(u: Any) -> Any:
        """The integral over v > 1 of v times the joint density at u."""
        mean, s = 0.2 * u, mp.sqrt(mp.mpf(spread) / mp.mpf("0.05"))
        t = (1 - mean) / s
        tail = mp.erfc(t / mp.sqrt(2)) / 2
        return (mean * tail + s * mp.npdf(t)) * u * mp.npdf(u, 0, mp.sqrt(mp.mpf("0.05")))

    with mp.workdps(30):
        want = mp.quad(inner, [1, 1.2, 1.5, 2, 3, 4])
    assert sure.all()
    assert float(value[0]) == pytest.approx(float(want), rel=1e-10)


@pytest.mark.filterwarnings("error")
def test_singularities_that_have_an_integral() -> None:
    """sqrt(abs(x)) and log(abs(x)): finite moments and kernels, no warning; E f'^2 is infinite and said to be."""
    root, log = sp.sqrt(sp.Abs(x)), sp.log(sp.Abs(x))
    slope = sp.sign(x) / (2 * root)
    want = 2**0.25 * float(sp.gamma(sp.Rational(3, 4))) / np.sqrt(np.pi)
    assert gaussian_moment(root, 1.0) == pytest.approx(want, rel=1e-10)
    assert gaussian_moment(log, 1.0) == pytest.approx(-float(sp.EulerGamma + sp.log(2)) / 2, rel=1e-12)
    assert gaussian_moment(slope**2, 1.0) == np.inf
    assert gaussian_moment(1 / sp.Abs(x) ** sp.Rational(3, 2), 1.0) == np.inf
    r = np.array([0.5 - 1e-3, 0.5, 0.5 + 1e-3, 0.99])
    values = gaussian_kernel(root, root, 1.0, 1.0, r)
    assert np.isfinite(gaussian_kernel(log, log, 1.0, 1.0, r)).all()
    assert gaussian_kernel(slope, slope, 1.0, 1.0, 0.5) == pytest.approx(
        (values[2] - values[0]) / 2e-3, rel=1e-5
    )


def _constant(value: sp.Expr, *_: sp.Symbol) -> sp.Expr:
    return value


def test_growth_up_to_the_density() -> None:
    """exp(x^2) f has an expectation below q = 1/2, however close."""
    from varflow.laws.distributions import NoFormula
    from varflow.laws.expectation import Normal, compile_formula, expect

    f = sp.exp(x**2) / (1 + sp.exp(-x))
    for q in (0.1, 0.4, 0.49, 0.4999):
        law = sp.Rational(str(q))
        number = compile_formula(expect(f, {x: Normal()}, partial(_constant, law)), ())()
        assert float(number) == pytest.approx(0.5 / np.sqrt(1 - 2 * q), rel=1e-11)
    for q in (0.5, 0.6):
        with pytest.raises(NoFormula, match="infinite"):
            expect(f, {x: Normal()}, partial(_constant, sp.Rational(str(q))))
