"""Maps of one activation: formulas against numbers, fixed points against iteration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sympy as sp

from varflow.activations import ACTIVATIONS
from varflow.errors import InputError
from varflow.fixed_points import FixedPoint, correlation_points, variance_points
from varflow.gain import gain
from varflow.gain_numbers import ActivationNumbers
from varflow.laws.expectation import GaussianExpectation, compile_formula, derivative
from varflow.laws.numeric import logistic
from varflow.maps import ActivationMaps, C, Q, activation_maps
from varflow.symbols import X

SMOOTH = ("tanh", "erf", "gelu", "silu", "sin", "softplus", "asinh")
KINKED = ("relu", "leaky_relu", "hardtanh", "elu", "abs", "relu_squared", "hardswish")
JUMPING = ("sign", "step", "hardshrink")
QS = np.array([0.05, 1.0, 4.0])
CS = np.array([-0.8, 0.0, 0.6])


def maps_of(text: str, scale: float | None = None, bias: float = 0) -> ActivationMaps:
    return activation_maps(gain(text).activation, scale, bias)


def number(formula: sp.Expr | None, q: object, c: object) -> np.ndarray:
    assert formula is not None
    return np.asarray(compile_formula(formula, (Q, C))(q, c), dtype=float)


@pytest.mark.parametrize("name", [*SMOOTH, *KINKED, *JUMPING])
def test_formulas_are_the_numbers(name: str) -> None:
    """Closed forms and symbolic integrals against quadrature on grids."""
    maps = maps_of(name, 1.7, 0.3)
    q, c = np.meshgrid(QS, CS)
    if name in JUMPING or not any(k is not None and k.has(GaussianExpectation) for k in (maps.kernel, maps.q_map)):
        np.testing.assert_allclose(number(maps.kernel, q, c), maps.numbers.kernel(q, c), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(number(maps.derivative_kernel, q, c), maps.numbers.derivative_kernel(q, c),
                                   rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(number(maps.c_map, q, c), maps.next_correlation(c, q), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(number(maps.q_map, QS, 0.0), maps.next_variance(QS), rtol=1e-9)
    np.testing.assert_allclose(number(maps.q_slope, QS, 0.0), maps.variance_slope(QS), rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(number(maps.chi, QS, 0.0), maps.chi_at(QS), rtol=1e-8)


@pytest.mark.parametrize("name", [*SMOOTH, *KINKED, *JUMPING])
def test_slopes_are_those_of_the_maps(name: str) -> None:
    maps = maps_of(name, 1.7, 0.3)
    step = 1e-4
    rise = (maps.next_variance(QS + step) - maps.next_variance(QS - step)) / (2 * step)
    np.testing.assert_allclose(maps.variance_slope(QS), rise, rtol=1e-5, atol=1e-6)
    rise = (maps.next_correlation(CS + step, 1.0) - maps.next_correlation(CS - step, 1.0)) / (2 * step)
    np.testing.assert_allclose(maps.correlation_slope(CS, 1.0), rise, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*SMOOTH, *KINKED])
def test_chi_is_the_slope_at_one(name: str) -> None:
    maps = maps_of(name, 1.3, 0.1)
    assert maps.next_correlation(1.0, 2.0) == pytest.approx(1, rel=1e-10)
    gap = 1e-5
    slope = (1 - maps.next_correlation(1 - gap, 2.0)) / gap
    assert slope == pytest.approx(float(maps.chi_at(2.0)), rel=2e-2)
    wrong = 1.02 * float(maps.chi_at(2.0)) * (1 + 2e-2)
    assert abs(slope - wrong) > 2e-2 * slope


@pytest.mark.parametrize("name", ["tanh", "erf", "elu", "selu", "sigmoid", "asinh", "hardtanh", "softsign"])
def test_init_gain_keeps_unit_variance_and_iteration_finds_it(name: str) -> None:
    maps = maps_of(name)
    assert float(maps.next_variance(1.0)) == pytest.approx(1, rel=1e-9)
    (stable,) = maps.fixed_points.stable
    assert stable.value == pytest.approx(1, rel=1e-9)
    q = np.array([0.5, 1.5])
    for _ in range(400):
        q = maps.next_variance(q)
    np.testing.assert_allclose(q, 1.0, rtol=1e-6)


def test_depth_scales_are_rates_of_decay() -> None:
    maps = maps_of("tanh", 1.8, 0.05)
    (point,) = maps.fixed_points
    q = point.value + 1e-3
    for _ in range(10):
        q = float(maps.next_variance(q))
    assert (q - point.value) / 1e-3 == pytest.approx(math.exp(-10 / point.depth_scale), rel=2e-3)
    near, one = maps.correlation_fixed_points(point.value)
    assert (near.stability, one.value, one.stability) == ("stable", 1.0, "unstable")
    c = near.value - 1e-4
    for _ in range(10):
        c = float(maps.next_correlation(c, point.value))
    assert (near.value - c) / 1e-4 == pytest.approx(math.exp(-10 / near.depth_scale), rel=2e-3)
    assert one.slope == pytest.approx(float(maps.chi_at(point.value)))


def test_relu_keeps_every_variance_and_correlates() -> None:
    """He et al. 2015; Cho and Saul 2009: c' at 0 is 1/pi."""
    maps = maps_of("relu")
    assert maps.weight_scale == 2 and maps.q_map == Q and maps.fixed_points.every
    assert float(maps.next_correlation(0.0, 3.0)) == pytest.approx(1 / math.pi, rel=1e-12)
    (one,) = maps.correlation_fixed_points(1.0)
    assert (one.value, one.stability, one.depth_scale) == (1.0, "marginal", math.inf)
    assert [p.stability for p in maps_of("relu", 1.9).fixed_points] == ["stable"]
    assert [p.stability for p in maps_of("relu", 2.1).fixed_points] == ["unstable"]
    (point,) = maps_of("relu", 1.5, 0.5).fixed_points
    assert point.value == pytest.approx(2) and point.slope == pytest.approx(0.75)


def test_odd_functions_keep_opposite_arguments() -> None:
    values = [p.value for p in maps_of("tanh").correlation_fixed_points(1.0)]
    assert values == [-1.0, 0.0, 1.0]
    assert [p.value for p in maps_of("tanh", 1.5, 0.1).correlation_fixed_points(0.4)][-1] == 1.0
    assert maps_of("identity").correlation_fixed_points(1.0).every


def test_jumps_have_an_infinite_slope_at_one() -> None:
    """sign: c' = 2/pi asin(c)."""
    maps = maps_of("sign")
    assert maps.chi == sp.oo and maps.chi_at(1.0) == math.inf and np.all(np.isinf(maps.chi_at(QS)))
    assert float(maps.next_correlation(0.5, 1.0)) == pytest.approx(1 / 3, rel=1e-10)
    assert [p.value for p in maps.correlation_fixed_points(1.0).stable] == [0.0]
    assert float(maps.correlation_slope(0.0, 1.0)) == pytest.approx(2 / math.pi, rel=1e-6)


def test_slopes_that_are_not_integrable_are_infinite() -> None:
    maps = maps_of("log(abs(x))", 1.0)
    assert maps.chi == sp.oo and maps.chi_at(2.0) == math.inf and maps.derivative_kernel is None
    slope = float(maps.correlation_slope(0.5, 1.0))
    rise = float(maps.next_correlation(0.501, 1.0) - maps.next_correlation(0.499, 1.0)) / 0.002
    assert slope == pytest.approx(rise, rel=1e-4)


def test_a_layers_activations_obey_the_maps() -> None:
    """Two inputs through one wide layer."""
    rng, n, draws = np.random.default_rng(3), 400, 160
    maps = maps_of("tanh", 1.8, 0.2)
    seen = []
    for _ in range(draws):
        x = rng.standard_normal((n, 2)) @ np.linalg.cholesky([[0.8, 0.4], [0.4, 0.8]]).T
        w, b = rng.normal(0, math.sqrt(1.8 / n), (n, n)), rng.normal(0, math.sqrt(0.2), (n, 1))
        y = w @ np.tanh(x) + b
        seen.append([(y**2).mean(), (y[:, 0] * y[:, 1]).mean()])
    mean, error = np.mean(seen, axis=0), np.std(seen, axis=0, ddof=1) / math.sqrt(draws)
    q = float(maps.next_variance(0.8))
    wanted = np.array([q, q * float(maps.next_correlation(0.5, 0.8))])
    assert np.all(np.abs(mean - wanted) < 5 * error)
    assert np.all(error < 0.01 * wanted)


def test_functions_without_a_formula_have_the_same_maps() -> None:
    numeric, symbolic = activation_maps(np.tanh), maps_of("tanh")
    assert numeric.q_map is None and numeric.kernel is None and numeric.chi is None and numeric.c_map is None
    assert numeric.q_slope is None and numeric.derivative_kernel is None
    assert float(numeric.weight_scale) == pytest.approx(float(symbolic.weight_scale), rel=1e-9)
    ours, theirs = numeric.fixed_points.points, symbolic.fixed_points.points
    assert [p.value for p in ours] == pytest.approx([p.value for p in theirs], abs=1e-8)
    assert [p.slope for p in ours] == pytest.approx([p.slope for p in theirs], rel=1e-6)
    np.testing.assert_allclose(numeric.correlation_slope(CS, 1.0), symbolic.correlation_slope(CS, 1.0), rtol=1e-5)
    assert numeric.numbers.curvature is None and numeric.numbers.second_derivative_second_moment(1.0) is None


@pytest.mark.parametrize("name", ["siren", "sin", "cos", "snake"])
def test_waves_at_large_variances(name: str) -> None:
    maps = maps_of(name, 1.0)
    q = np.geomspace(0.01, 20, 9)
    np.testing.assert_allclose(maps.second_moment(q), maps.numbers.second_moment(q), rtol=1e-8)


def test_tails_lose_no_digits() -> None:
    """x Phi(x) and its derivative far below zero."""
    numbers = ActivationNumbers(gain("gelu").activation)
    assert logistic(ACTIVATIONS["gelu_tanh"].at()).has(sp.exp)
    x = -9.0
    tail = math.erfc(9 / math.sqrt(2)) / 2
    density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    assert float(numbers._one(np.array([x]))[0]) == pytest.approx(x * tail, rel=1e-12)
    assert float(numbers._slope(np.array([x]))[0]) == pytest.approx(tail + x * density, rel=1e-9)


def test_moments_of_derivatives() -> None:
    f = ActivationNumbers(gain("gelu").activation)
    g = gain("gelu", q=2, mean=sp.Rational(1, 3))
    numbers = g.numeric()
    at = (2.0, 1 / 3)
    fields = ("mean", "second_moment", "derivative_second_moment", "second_derivative_second_moment")
    for field in fields:
        assert float(getattr(f, field)(*at)) == pytest.approx(numbers[field], rel=1e-9)
    slope = derivative(derivative(gain("gelu").activation, X), X)
    assert not slope.has(sp.DiracDelta)


def test_scales_need_numbers() -> None:
    s = sp.Symbol("s_1", positive=True)
    maps = activation_maps(ACTIVATIONS["relu"].at(), s)
    assert maps.q_map == s * Q / 2 and maps.chi == 1
    with pytest.raises(InputError, match="s_1"):
        maps.next_variance(1.0)
    with pytest.raises(InputError, match="zero"):
        activation_maps(sp.S.Zero)
    flat = activation_maps(sp.S.Zero, 1)
    assert flat.c_map is None and flat.chi is None


def test_fixed_points_of_given_maps() -> None:
    points = variance_points(lambda q: np.sqrt(q), lambda q: 0.5 / np.sqrt(q))
    assert [p.value for p in points] == pytest.approx([1.0])
    points = variance_points(lambda q: q**2, lambda q: 2 * q)
    assert [(p.value, p.stability) for p in points] == [(0.0, "stable"), (pytest.approx(1.0), "unstable")]
    assert variance_points(lambda q: 1.0 * q, lambda q: 1.0).every
    assert len(variance_points(lambda q: q + 1.0, lambda q: 1.0)) == 0
    cubes = correlation_points(lambda c: np.asarray(c) ** 3, lambda c: 3 * c * c, 3.0)
    assert [p.value for p in cubes] == [-1.0, 0.0, 1.0]
    assert FixedPoint(1.0, -0.5).depth_scale == pytest.approx(1 / math.log(2))
    assert FixedPoint(1.0, 0.0).depth_scale == 0.0


@pytest.mark.parametrize(
    "text", ["min(max(x, -1), 2)", "hardswish(x - 1)", "relu(x - 1)^2 + relu(x + 2)", "relu(x - 1)"]
)
def test_maps_end_where_their_formulas_have_no_value(text: str) -> None:
    """At c = 1 the map is 1, at c = -1 it is E f(u) f(-u), by Gauss-Legendre panels between the kinks."""
    maps = activation_maps(gain(text).activation, 1)
    x, w = np.polynomial.legendre.leggauss(24)
    for q in (0.03, 0.9, 30.0):
        kinks = np.array([-4, -2, -1, 1, 2, 4]) / math.sqrt(q)
        cuts = np.unique([*kinks, *np.linspace(-12, 12, 25)])
        cuts = cuts[np.abs(cuts) <= 12]
        z = cuts[:-1, None] + np.diff(cuts)[:, None] * (x + 1) / 2
        weights = np.diff(cuts)[:, None] * w / 2 * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        f = sp.lambdify(X, gain(text).activation, "numpy")
        opposite = np.sum(weights * f(math.sqrt(q) * z) * f(-math.sqrt(q) * z))
        both = np.sum(weights * f(math.sqrt(q) * z) ** 2)
        assert float(maps.next_correlation(1.0, q)) == pytest.approx(1, rel=1e-11)
        assert float(maps.next_correlation(-1.0, q)) == pytest.approx(opposite / both, abs=1e-11)
        assert float(maps.correlation_slope(1.0, q)) == pytest.approx(float(maps.chi_at(q)), rel=1e-10)
