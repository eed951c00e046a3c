"""Independence, discrete variables, batch samples, integrals, limits."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import varflow as vf
from varflow.laws.expectation import (
    Bernoulli,
    Distribution,
    GaussianExpectation,
    NoFormula,
    Normal,
    OneHot,
    Opaque,
    Sphere,
    compile_formula,
    derivative,
    expect,
    has_jump,
)

x, u, v, w, t = sp.symbols("x u v w t", real=True)
a, c = sp.symbols("a c", real=True)
q, q1, q2, p = sp.symbols("q q1 q2 p", positive=True)
PAIR = {(u, u): q1, (u, v): c, (v, u): c, (v, v): q2}


def pair(s: sp.Symbol, z: sp.Symbol) -> sp.Expr:
    return PAIR[s, z]


def independent(s: sp.Symbol, z: sp.Symbol) -> sp.Expr:
    return q if s == z else sp.S.Zero


def relu(z: sp.Expr) -> sp.Expr:
    return sp.Piecewise((z, z > 0), (0, True))


NORMAL: dict[sp.Symbol, Distribution] = {s: Normal() for s in (x, u, v, w, t)}


def test_independent_factors() -> None:
    value = expect(relu(x) * (w + relu(w)) ** 2 * sp.tanh(v) ** 2, NORMAL, independent)
    tanh = expect(sp.tanh(v) ** 2, NORMAL, independent)
    assert sp.expand(value - sp.sqrt(q / (2 * sp.pi)) * sp.Rational(5, 2) * q * tanh) == 0


def test_residual_with_parameter() -> None:
    value = expect((x + a * relu(w)) ** 2, NORMAL, independent)
    assert sp.expand(value - q - a**2 * q / 2) == 0


def test_self_residual() -> None:
    assert expect((x + relu(x)) ** 2, NORMAL, independent) == 5 * q / 2


def test_sum_of_many_kinks_stays_closed() -> None:
    value = expect((relu(x) + relu(u) + relu(v) + relu(w) + relu(t)) ** 2, NORMAL, independent)
    assert sp.expand(value - 5 * q / 2 - 10 * q / sp.pi) == 0


def test_three_correlated_steps() -> None:
    r = sp.Rational(1, 2)
    value = expect(
        sp.Heaviside(u) * sp.Heaviside(v) * sp.Heaviside(w),
        NORMAL,
        lambda s, z: sp.S.One if s == z else r,
    )
    assert value == sp.Rational(1, 4)


def test_regression_onto_a_kinked_integral() -> None:
    value = expect(u**2 * sp.Max(sp.tanh(v), 0), NORMAL, pair)
    assert all(len(g.variables) == 1 for g in value.atoms(GaussianExpectation))
    number = compile_formula(value, [q1, c, q2])(1.3, 0.4, 0.8)
    direct = GaussianExpectation(u**2 * sp.Max(sp.tanh(v), 0), (u, v), (q1, c, q2))
    assert math.isclose(number, compile_formula(direct, [q1, c, q2])(1.3, 0.4, 0.8), rel_tol=1e-10)


def test_stein_on_a_smooth_integral() -> None:
    value = expect(u * sp.tanh(v), NORMAL, pair)
    assert sp.expand(value - c * expect(1 - sp.tanh(v) ** 2, NORMAL, pair)) == 0


def test_odd_parts_vanish() -> None:
    sigmoid = 1 / (1 + sp.exp(-x))
    half = sp.Rational(1, 2)
    assert expect(sigmoid, NORMAL, independent) == half
    assert expect(sp.diff(x * sigmoid, x), NORMAL, independent) == half
    assert expect(sp.atan(x) * x**2 + x**4, NORMAL, independent) == 3 * q**2
    assert expect(sp.tanh(u) * sp.tanh(v) * u, NORMAL, pair) == 0


def test_three_dependent_variables_have_no_formula() -> None:
    with pytest.raises(NoFormula, match="3 dependent"):
        expect(sp.tanh(u * v * w + u + v), NORMAL, lambda s, z: q if s == z else q / 3)


def test_linear_forms_lower_the_dimension() -> None:
    value = expect(sp.tanh(u + v + w) ** 2, NORMAL, lambda s, z: q if s == z else q / 3)
    (found,) = value.atoms(GaussianExpectation)
    assert found.covariance == (5 * q,)


def test_degenerate_covariances() -> None:
    same = expect(relu(u) * relu(v), NORMAL, lambda s, z: q)
    assert same == q / 2
    opposite = expect(relu(u) * relu(v), NORMAL, lambda s, z: q if s == z else -q)
    assert opposite == 0
    assert expect(sp.cos(u), NORMAL, lambda s, z: sp.S.Zero) == 1


def test_bernoulli() -> None:
    laws: dict[sp.Symbol, Distribution] = {u: Bernoulli(p), x: Normal()}
    assert expect(u**3 * x**2 / p**2, laws, independent) == q / p
    value = expect(relu(x + u) ** 2, laws, independent)
    wanted = p * expect(relu(x + 1) ** 2, laws, independent) + (1 - p) * q / 2
    assert sp.expand(value - wanted) == 0


def test_one_hot() -> None:
    kind = OneHot((u, v), (p, 1 - p))
    laws: dict[sp.Symbol, Distribution] = {u: kind, v: kind, x: Normal(), w: Normal()}
    assert sp.expand(expect((2 * u * x + v * w) ** 2, laws, independent) - (3 * p + 1) * q) == 0
    assert (
        sp.expand(expect(relu(2 * u * x + v) ** 2, laws, independent) - (p + 1 - p) + p - 2 * p * q)
        == 0
    )


def test_opaque() -> None:
    laws: dict[sp.Symbol, Distribution] = {u: Opaque({1: a, 2: p}), x: Normal()}
    assert expect(u**2 * x**2 + u, laws, independent) == p * q + a
    for bad in (u**3, relu(u), sp.tanh(u)):
        with pytest.raises(NoFormula):
            expect(bad, laws, independent)


B = sp.Symbol("B", positive=True, integer=True)


def test_batch_samples() -> None:
    laws: dict[sp.Symbol, Distribution] = {u: Sphere(B, "bn"), v: Sphere(B, "bn")}

    def value(expr: sp.Expr) -> sp.Expr:
        return expect(expr, laws, independent)

    assert value(relu(u) ** 2) == sp.Rational(1, 2)
    assert value(sp.Heaviside(u)) == sp.Rational(1, 2)
    assert sp.simplify(value(u**4) - 3 * (B - 1) / (B + 1)) == 0
    assert sp.simplify(value(u * v) + 1 / (B - 1)) == 0
    assert math.isclose(float(value(relu(u)).subs(B, 8)), 0.4134, abs_tol=5e-5)
    with pytest.raises(NoFormula):
        value(sp.tanh(u))
    with pytest.raises(NoFormula):
        value(relu(u) + relu(u) ** 2 * relu(u - 1))


def test_batch_samples_against_draws() -> None:
    laws: dict[sp.Symbol, Distribution] = {u: Sphere(sp.Integer(5)), v: Sphere(sp.Integer(5))}
    f = relu(u) * relu(v)
    formula = float(expect(f, laws, independent))
    rng = np.random.default_rng(0)
    d = rng.standard_normal((400_000, 5))
    d -= d.mean(axis=1, keepdims=True)
    y = math.sqrt(5) * d / np.linalg.norm(d, axis=1, keepdims=True)
    sample = np.maximum(y[:, 0], 0) * np.maximum(y[:, 1], 0)
    assert abs(sample.mean() - formula) < 5 * sample.std() / math.sqrt(len(sample))


def integral(body: sp.Expr) -> sp.Expr:
    return GaussianExpectation(body, (x,), (q,))


def test_integrals_are_canonical() -> None:
    assert integral(sp.tanh(x)) == GaussianExpectation(sp.tanh(u), (u,), (q,))
    first = GaussianExpectation(sp.tanh(u) * sp.atan(v), (u, v), (q1, c, q2))
    assert first == GaussianExpectation(sp.tanh(v) * sp.atan(u), (u, v), (q2, c, q1))
    assert pickle.loads(pickle.dumps(first)) == first
    assert first.free_symbols == {q1, c, q2}
    assert integral(sp.tanh(x)).subs(q, 2 * p).covariance == (2 * p,)
    assert r"\mathbb{E}" in sp.latex(first**2)
    assert "tanh" in str(first)


def test_price_theorem() -> None:
    value = integral(sp.tanh(x) ** 2)
    slope = float(value.diff(q).subs(q, 2).evalf())
    step = 1e-3
    number = compile_formula(value, [q])
    assert math.isclose(slope, (number(2 + step) - number(2 - step)) / (2 * step), rel_tol=1e-6)
    kinked = integral(sp.tanh(relu(x)))
    exact = compile_formula(kinked.diff(q), [q])(2.0)
    number = compile_formula(kinked, [q])
    assert math.isclose(exact, (number(2 + step) - number(2 - step)) / (2 * step), rel_tol=1e-6)


SIGMOID = 1 / (1 + sp.exp(-x))
SMOOTH = {
    "tanh": sp.tanh(x) ** 2,
    "silu": (x * SIGMOID) ** 2,
    "silu_slope": sp.diff(x * SIGMOID, x) ** 2,
    "softplus": sp.log(1 + sp.exp(x)) ** 2,
    "softsign": (x / (1 + sp.Abs(x))) ** 2,
    "hard": sp.Piecewise((sp.tanh(x), x > 1), (sp.atan(x), True)),
    "sharp": sp.tanh(300 * x + 5) ** 2,
}


@pytest.mark.parametrize("name", sorted(SMOOTH))
@pytest.mark.parametrize("variance", [1e-6, 0.3, 1.0, 50.0, 1e6])
def test_quadrature(name: str, variance: float) -> None:
    """Against a brute trapezoid in sinh-spaced points: no shared code, no shared mesh."""
    f = SMOOTH[name]
    got = compile_formula(integral(f), [q])(variance)
    number = sp.lambdify(x, f, "numpy")
    total = 0.0
    s = math.sqrt(variance)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    small = min(1e-4, s * 1e-3)
    edges = np.concatenate([[0.0], np.geomspace(small, 13 * s, 600)])
    cuts = np.unique(np.concatenate([edges, -edges, [-5 / 300, 1.0]]))
    cuts = cuts[np.abs(cuts) <= 13 * s]
    half, middle = np.diff(cuts) / 2, (cuts[1:] + cuts[:-1]) / 2
    z = np.clip(middle[:, None] + half[:, None] * nodes, -13 * s, 13 * s)
    near = np.clip(z, -700, 700)
    with np.errstate(all="ignore"):
        values = number(z)
    far = np.abs(z) > 300
    limits = {"silu": np.where(z > 0, z**2, 0), "silu_slope": np.where(z > 0, 1.0, 0.0)}
    limits["softplus"] = np.where(z > 0, z**2, 0.0)
    values = np.where(far, limits.get(name, number(near) if name not in limits else 0), values)
    if name in ("softsign", "hard"):
        values = number(z)
    density = np.exp(-0.5 * (z / s) ** 2) / (s * math.sqrt(2 * math.pi))
    total = float(np.sum(half * ((values * density) @ weights)))
    assert math.isclose(got, total, rel_tol=1e-10, abs_tol=1e-16)


def test_quadrature_grids_and_zero_variance() -> None:
    f = compile_formula(integral(sp.tanh(x) ** 2) + q, [q])
    grid = np.array([[0.0, 1e-8], [1.0, 4.0]])
    out = f(grid)
    assert out.shape == grid.shape and np.all(np.isfinite(out))
    assert out[0, 0] == pytest.approx(0.0, abs=1e-90)
    assert out[1, 0] == pytest.approx(f(1.0), rel=1e-14)
    kernel = compile_formula(expect(relu(u) * relu(v), NORMAL, pair), [q1, c, q2])
    assert abs(kernel(0.0, 0.0, 1.0)) < 1e-45 and abs(kernel(0.0, 0.0, 0.0)) < 1e-90
    assert kernel(2.0, 2.0, 2.0) == pytest.approx(1.0)


@pytest.mark.parametrize("r", [-1.0, -0.999999999, 0.0, 0.5, 0.99, 0.9999999999, 1.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_pairs_at_every_correlation(r: float, scale: float) -> None:
    """arc-cosine kernel, Cho and Saul (2009), by quadrature."""
    direct = GaussianExpectation(relu(u) * relu(v), (u, v), (q1, c, q2))
    got = compile_formula(direct, [q1, c, q2])(scale, r * 2 * scale, 4 * scale)
    wanted = compile_formula(expect(relu(u) * relu(v), NORMAL, pair), [q1, c, q2])
    assert got == pytest.approx(
        wanted(scale, r * 2 * scale, 4 * scale), rel=2e-10, abs=1e-12 * scale
    )


def test_tanh_pairs_meet_the_single_integral() -> None:
    single = compile_formula(integral(sp.tanh(x) ** 2), [q])
    double = compile_formula(expect(sp.tanh(u) * sp.tanh(v), NORMAL, pair), [q1, c, q2])
    for variance in (1e-4, 1.0, 30.0):
        assert double(variance, variance, variance) == pytest.approx(single(variance), rel=1e-10)
        near = double(variance, variance * (1 - 1e-9), variance)
        assert near == pytest.approx(single(variance), rel=1e-7)


def test_bad_numbers() -> None:
    with pytest.raises(ValueError, match="no value for"):
        compile_formula(q + q1, [q])
    assert compile_formula(sp.Integer(3), [])() == 3.0


def test_derivative_and_jumps() -> None:
    assert derivative(sp.sign(x), x) == 0 and derivative(sp.Heaviside(x), x) == 0
    assert derivative(sp.Abs(x), x) == sp.sign(x)
    for f, slope in [
        (sp.Max(x, 0), sp.Heaviside(x)),
        (sp.Min(sp.Max(x, 0), 6), sp.Heaviside(x) - sp.Heaviside(x - 6)),
        (x * sp.sign(x), sp.sign(x)),
        (sp.tanh(sp.Abs(x)), (1 - sp.tanh(sp.Abs(x)) ** 2) * sp.sign(x)),
    ]:
        number = sp.lambdify(x, derivative(f, x) - slope)
        assert all(abs(number(z)) < 1e-14 for z in (-2.5, -0.3, 0.4, 3.7, 7.1))
    assert not has_jump(sp.Max(x, 0), x) and has_jump(sp.sign(x), x)
    assert has_jump(sp.Piecewise((x, sp.Abs(x) > 1), (0, True)), x)
    assert has_jump(sp.Heaviside(x) * u, x) and not has_jump(sp.Heaviside(x) * u, u)
    assert not has_jump(relu(x + u) * sp.tanh(u), x) and not has_jump(x**2, x)
    assert not has_jump(sp.Piecewise((x, x > 0), (sp.exp(x) - 1, True)), x)


def test_jumps_at_borders_without_a_formula() -> None:
    crossing = sp.tanh(x) - x / 2 + sp.Rational(1, 10)
    assert not has_jump(sp.Max(sp.tanh(x), x / 2), x) and not has_jump(sp.Abs(crossing), x)
    assert not has_jump(sp.sign(crossing) * crossing, x) and has_jump(sp.sign(crossing), x)
    assert not has_jump(sp.sign(crossing) * sp.cbrt(sp.Abs(crossing)), x)
    meeting, apart = (sp.Piecewise((sp.exp(x), sp.exp(x) > 2 + x), (k + x, True)) for k in (2, 3))
    assert not has_jump(meeting, x) and has_jump(apart, x)
    assert not has_jump(sp.Max(sp.tanh(x * u), x), x) and has_jump(sp.sign(sp.tanh(x) - u * x / 2), x)


def test_slopes_of_the_largest_of_several() -> None:
    parts = (sp.tanh(x), x / 2, sp.sin(3 * x) / 4, sp.exp(x) - 1)
    for extreme, best in ((sp.Max, max), (sp.Min, min)):
        slope = derivative(extreme(*parts), x)
        for place in (-2.3, -0.9, -0.2, 0.4, 1.1, 2.7):
            winner = best(parts, key=lambda f: float(f.subs(x, place)))
            assert float(slope.subs(x, place)) == pytest.approx(float(winner.diff(x).subs(x, place)))


PIECE = st.tuples(st.integers(-3, 3), st.integers(-2, 2))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.fractions(-2, 2, max_denominator=4), min_size=1, max_size=3, unique=True),
    st.lists(PIECE, min_size=4, max_size=4),
    st.integers(1, 3),
)
def test_random_piecewise_linear(
    cuts: list[Fraction], parts: list[tuple[int, int]], power: int
) -> None:
    """Closed form against the integral of the same function, and cells against the original."""
    borders = sorted(cuts)
    branches = [
        (k * x + d, x < sp.Rational(str(b))) for (k, d), b in zip(parts, borders, strict=False)
    ]
    f = sp.Piecewise(*branches, (parts[-1][0] * x + parts[-1][1], True))
    power_of_f = f**power
    closed = expect(power_of_f, {x: Normal()}, independent)
    assert not closed.has(GaussianExpectation)
    number = compile_formula(closed, [q])(0.7)
    reference = (
        compile_formula(integral(power_of_f), [q])(0.7) if power_of_f.free_symbols else number
    )
    assert number == pytest.approx(reference, rel=1e-11, abs=1e-12)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.tuples(PIECE, PIECE), st.floats(-0.95, 0.95))
def test_random_kinked_pairs(slopes: tuple[tuple[int, int], tuple[int, int]], r: float) -> None:
    (k1, k2), (l1, l2) = slopes
    f = sp.Piecewise((k1 * u, u > 0), (k2 * u, True)) * sp.Piecewise(
        (l1 * v, v > 0), (l2 * v, True)
    )
    formula = expect(f, NORMAL, pair)
    assert not formula.has(GaussianExpectation)
    if not f.free_symbols >= {u, v}:
        return
    got = compile_formula(formula, [q1, c, q2])(1.5, 1.5 * r, 1.5)
    direct = compile_formula(GaussianExpectation(f, (u, v), (q1, c, q2)), [q1, c, q2])
    assert got == pytest.approx(direct(1.5, 1.5 * r, 1.5), rel=1e-10, abs=1e-11)


def test_against_draws() -> None:
    f = sp.Max(u, 0) * sp.tanh(v) + sp.Abs(u + v)
    value = compile_formula(expect(f, NORMAL, pair), [q1, c, q2])(1.2, 0.5, 0.8)
    rng = np.random.default_rng(1)
    z = rng.multivariate_normal([0, 0], [[1.2, 0.5], [0.5, 0.8]], size=400_000)
    sample = np.maximum(z[:, 0], 0) * np.tanh(z[:, 1]) + np.abs(z.sum(axis=1))
    assert abs(sample.mean() - value) < 5 * sample.std() / math.sqrt(len(sample))


def test_limits() -> None:
    with pytest.raises(NoFormula, match="too many terms"):
        expect((x + u + v + w + t + 1) ** 40, NORMAL, independent)


def test_forms_that_are_multiples_of_one_variable() -> None:
    """selu(u (v + 1/2)): given v, both cuts are multiples of u; their Gram matrix was inverted."""
    net = vf.Network("gate")
    x = net.input("x", "n")
    u, v = (net.linear(x, "n", variance="1/fan_in", name=name) for name in "uv")
    net.activation(net.multiply(u, net.activation(v, "x + 1/2")), "selu", name="y")
    found = vf.derive(net).numeric({"n": 64})
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((2, 4_000_000))
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    p = u * (v + 0.5)
    y = scale * np.where(p > 0, p, alpha * np.expm1(p))
    slope = scale * np.where(p > 0, 1.0, alpha * np.exp(p))
    wanted = [np.mean(y**2), np.mean((slope * (v + 0.5)) ** 2), np.mean((slope * u) ** 2)]
    got = [found["y"]["second_moment"], found["u"]["grad_second_moment"], found["v"]["grad_second_moment"]]
    assert got == pytest.approx(wanted, rel=5e-3)
