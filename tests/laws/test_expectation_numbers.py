"""Closed forms in floats: no digits lost from tiny to huge variances; derivatives; random functions."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import sympy as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.laws.highprecision import FUNCTIONS, ONE, PAIRS, USES, closed_one, two
from tests.laws.random_activations import outcome, sample
from varflow.activations import ACTIVATIONS
from varflow.binormal import Phi2, by_mpmath
from varflow.gain import gain
from varflow.laws.expectation import (
    Divergent,
    GaussianExpectation,
    Normal,
    NotReal,
    compile_formula,
    derivative,
    expect,
)
from varflow.symbols import X

x, u, v = sp.symbols("x u v", real=True)
a, b, q, q1, q2 = sp.symbols("a b q q1 q2", positive=True)
m, c = sp.symbols("m c", real=True)
VARIANCES = (1e-6, 1e-2, 1.0, 1e6)


def exactly(formula: sp.Expr, values: dict[sp.Symbol, float]) -> float:
    """sympy's own translation of the formula, in 150 digits."""
    with mp.workdps(150):
        number = sp.lambdify(list(values), formula, [{"Phi2": by_mpmath}, "mpmath"])
        return float(number(*map(mp.mpf, values.values())))


CANCEL = (
    "relu6",
    "elu",
    "celu",
    "hardtanh",
    "hardswish",
    "softshrink",
    "gelu",
    "snake",
    "gaussian",
)


@pytest.mark.parametrize("name", CANCEL)
def test_no_digits_are_lost(name: str) -> None:
    """mean, Var f and E f'^2 at mean 0 and not, q from 1e-6 to 1e6, to 1e-9."""
    f, _ = ONE[name]
    first, second = (closed_one(USES[use](f), name)[0] for use in ("mean", "square"))
    slope = closed_one(USES["slope"](f), name)[0]
    symbols = [q, m, a, b]
    for formula in (first, slope, second - first**2):
        number = compile_formula(formula, symbols)
        for variance in VARIANCES:
            for mean in (0.0, 0.375):
                point = (variance, mean, 0.75, 1.25)
                values = dict(zip(symbols, point, strict=True))
                want = exactly(formula, values)
                got = number(*point)
                assert math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-290), (variance, mean)


@pytest.mark.parametrize(("first", "second"), PAIRS[::3])
def test_kernels_in_floats(first: str, second: str) -> None:
    formula = two(FUNCTIONS[first](u) * FUNCTIONS[second](v))
    number = compile_formula(formula, [q1, c, q2])
    for variance in (1e-6, 1e2):
        for r in (-0.999999, 1e-9, 0.9):
            point = (variance, 2 * r * variance, 4 * variance)
            if "exp" in (first, second) and variance > 10:
                continue
            want = exactly(formula, dict(zip((q1, c, q2), point, strict=True)))
            assert math.isclose(number(*point), want, rel_tol=1e-9, abs_tol=1e-280), (variance, r)


def test_grids_are_repaired_where_they_cancel() -> None:
    """selu's variance at small q: four digits in plain doubles, all of them here."""
    value = gain("selu", q=q).variance
    grid = np.array([[1e-6, 1e-4], [1.0, 100.0]])
    out = compile_formula(value, [q])(grid)
    for got, variance in zip(out.ravel(), grid.ravel(), strict=True):
        assert got == pytest.approx(exactly(value, {q: float(variance)}), rel=1e-10)


def test_every_spelling_is_one_object() -> None:
    spellings = [
        sp.Piecewise((x, x > 0), (0, True)),
        sp.Max(x, 0),
        (x + sp.Abs(x)) / 2,
        sp.Piecewise((0, x < 0), (x, True)),
        -sp.Min(-x, 0),
    ]
    for shape in (x, x**2, sp.tanh(x), sp.exp(x / 2)):
        values = [expect(shape.xreplace({x: f}), {x: Normal()}, lambda s, t: q) for f in spellings]
        assert len(set(values)) == 1


STEP = sp.Heaviside
KINKED = {
    "kink": sp.Max(x, 0) * sp.tanh(x),
    "jump": sp.Piecewise((sp.tanh(x) + 1, x > 1), (sp.atan(x), x > -1), (2, True)),
    "moving": sp.Piecewise((sp.tanh(b * x), x > b), (sp.atan(x), True)),
    "unknown places": sp.tanh(sp.Max(sp.cos(x), x / 3)),
}


def slope_of(formula: sp.Expr, symbols: list[sp.Symbol], point: list[float], k: int) -> float:
    """The central difference of fourth order."""
    f, h = compile_formula(formula, symbols), 1e-3 * point[k]

    def at(shift: float) -> float:
        return float(f(*[p + shift * (i == k) for i, p in enumerate(point)]))

    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


@pytest.mark.parametrize("name", KINKED)
def test_derivatives_with_kinks_and_jumps(name: str) -> None:
    value = GaussianExpectation(KINKED[name], (x,), (q,))
    symbols, point = [q, b], [1.3, 0.4]
    for k, s in enumerate(symbols):
        if s in value.free_symbols:
            got = compile_formula(value.diff(s), symbols)(*point)
            assert got == pytest.approx(slope_of(value, symbols, point, k), rel=1e-7)


TWO = {
    "kink": sp.Max(u, 0) * sp.tanh(v),
    "jump": STEP(u - 1) * sp.tanh(v + 1),
    "jumps": STEP(u - 1) * STEP(v + sp.Rational(1, 2)) * sp.cos(u),
    "tied": sp.Max(u, sp.tanh(v)) * sp.cos(u + v),
}


@pytest.mark.parametrize("name", [n for n in TWO if n != "tied"])
def test_pair_derivatives_with_kinks_and_jumps(name: str) -> None:
    value = GaussianExpectation(TWO[name], (u, v), (q1, c, q2))
    symbols, point = [q1, c, q2], [1.3, 0.4, 0.8]
    for k, s in enumerate(symbols):
        got = compile_formula(value.diff(s), symbols)(*point)
        assert got == pytest.approx(slope_of(value, symbols, point, k), rel=1e-5, abs=1e-7)


def test_derivatives_survive_subs_pickle_and_printing() -> None:
    value = GaussianExpectation(KINKED["jump"], (x,), (q,)).diff(q)
    assert pickle.loads(pickle.dumps(value)) == value
    assert "mathbb{E}" in sp.latex(value) and "E[" in str(value)
    moved = compile_formula(value.subs(q, 2 * b), [b])(0.65)
    assert moved == pytest.approx(compile_formula(value, [q])(1.3), rel=1e-12)


BAD = {
    "sqrt(x)": NotReal,
    "log(x)": NotReal,
    "x^(1/3)": NotReal,
    "acos(x)": NotReal,
    "x^x": NotReal,
    "1/x": Divergent,
    "tan(x)": Divergent,
    "1/(x^2 - 2)": Divergent,
    "gamma(x)": Divergent,
    "exp(1/x)": Divergent,
    "exp(x^2)": Divergent,
    "exp(exp(x))": Divergent,
}


@pytest.mark.parametrize("text", BAD)
def test_what_has_no_moments_is_refused(text: str) -> None:
    with pytest.raises(BAD[text]) as caught:
        gain(text).numeric()
    assert caught.value.what and caught.value.why


def test_divergence_depends_on_the_variance() -> None:
    g = gain("exp(x^2)", q=q)
    assert g.numeric({"q": 0.1})["second_moment"] == pytest.approx((1 - 0.4) ** -0.5, rel=1e-10)
    with pytest.raises(Divergent):
        g.numeric({"q": 1.0})
    assert gain("exp(x^2/8)").numeric()["mean"] == pytest.approx(math.sqrt(4 / 3), rel=1e-12)


def test_infinite_slopes() -> None:
    found = gain("sqrt(abs(x))")
    assert found.derivative_second_moment == sp.oo and found.chi == sp.oo
    assert sp.expand(found.second_moment - sp.sqrt(2) / sp.sqrt(sp.pi)) == 0
    with pytest.raises(Divergent):
        _ = gain("abs(x)^(-1/2)").second_moment


CLOSED = [
    *("relu", "leaky_relu", "prelu", "relu6", "elu", "celu"),
    *("selu", "gelu", "erf", "sin", "cos", "siren"),
    *("snake", "gaussian", "exp", "abs", "sign", "step"),
    *("square", "relu_squared", "relu_power", "hardtanh", "hardswish", "hardsigmoid"),
    *("hardshrink", "softshrink", "threshold", "identity", "bent_identity", "squareplus"),
]


@pytest.mark.parametrize("name", CLOSED)
def test_closed_in_q(name: str) -> None:
    found = gain(name, q=q).closed_form
    assert all(v for k, v in found.items() if k != "chi")


@pytest.mark.parametrize("name", sorted(set(CLOSED) - {"bent_identity", "squareplus"}))
def test_closed_in_q_and_mean(name: str) -> None:
    """But products of two erf off their centre: Owen's T."""
    found = gain(name, q=q, mean=m)
    assert found.closed_form["mean"]
    if name not in ("gelu", "erf"):
        assert found.closed_form["second_moment"]
        assert found.closed_form["derivative_second_moment"]


EDGES = st.lists(st.fractions(-2, 2, max_denominator=3), min_size=1, max_size=2, unique=True)
BODY = st.tuples(st.integers(0, 3), st.integers(-2, 2), st.sampled_from(["1", "exp", "erf", "sin"]))


def body(part: tuple[int, int, str]) -> sp.Expr:
    power, number, kind = part
    factor = {"1": sp.S.One, "exp": sp.exp(x / 2), "erf": sp.erf(x), "sin": sp.sin(2 * x)}[kind]
    return number * x**power * factor + power


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(EDGES, st.lists(BODY, min_size=3, max_size=3), st.floats(-1, 1), st.floats(0.1, 3))
def test_random_pieces(
    cuts: list[Fraction], parts: list[tuple[int, int, str]], mean: float, variance: float
) -> None:
    """Whatever has a closed form: it is the integral, mean and variance included."""
    borders = sorted(sp.Rational(k.numerator, k.denominator) for k in cuts)
    smooth = parts[-1] if parts[-1][2] != "sin" else (1, 1, "exp")
    cases = [
        (body(p if p[2] != "sin" else (2, 1, "1")), x < k)
        for p, k in zip(parts, borders, strict=False)
    ]
    f = sp.Piecewise(*cases, (body(smooth), True))
    formula = expect(f.xreplace({x: x + m}), {x: Normal()}, lambda s, t: q)
    got = compile_formula(formula, [q, m])(variance, mean)
    direct = GaussianExpectation(f.xreplace({x: x + sp.Rational(mean)}), (x,), (q,))
    assert got == pytest.approx(compile_formula(direct, [q])(variance), rel=1e-9, abs=1e-10)


SEEDS = st.integers(20_000, 60_000)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(SEEDS)
def test_random_activations_are_answered_or_refused(seed: int) -> None:
    assert not outcome(*sample(seed)).startswith("not finite")


@pytest.mark.slow
@settings(
    max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(SEEDS)
def test_many_random_activations_are_answered_or_refused(seed: int) -> None:
    assert not outcome(*sample(seed)).startswith("not finite")


def test_conditions_that_are_not_real_everywhere_do_not_escape() -> None:
    """acoth is not real between -1 and 1; beside a logistic function, comparing it there was a TypeError."""
    assert outcome("acot(swish(Piecewise((1/2, acoth(x) < 3), (x, True))))", "1", "0.5") == "answer"


def test_curvature_of_every_activation_has_a_number() -> None:
    for name in ACTIVATIONS:
        slope = derivative(derivative(ACTIVATIONS[name].at(), X), X)
        assert not slope.has(sp.DiracDelta, sp.Derivative)


def test_a_sigmoid_inside_a_softplus_at_any_variance() -> None:
    """The square of its derivative holds exp(-2 z) beside an exponential of a sigmoid: neither may overflow alone."""
    f = sp.log(1 + sp.exp(1 / (1 + sp.exp(-x))))
    formula = compile_formula(expect(sp.diff(f, x) ** 2, {x: Normal()}, lambda *_: q), (q,))

    def s(z: Any) -> Any:
        return 1 / (1 + mp.exp(-z))

    def slope(z: Any) -> Any:
        return s(s(z)) * s(z) * s(-z)

    for variance in (1.0, 1e3, 1e5, 1e8):
        true = mp.quad(lambda z, v=variance: slope(z) ** 2 * mp.npdf(z, 0, mp.sqrt(v)), [-60, -10, 0, 10, 60])
        assert float(formula(variance)) == pytest.approx(float(true), rel=1e-9)


def test_pieces_with_a_bivariate_tail_are_compared() -> None:
    """Bodies that hold Phi2 have numbers when cells are merged."""
    tail = Phi2(x, x / 2, sp.Rational(1, 3))
    formula = expect(sp.Piecewise((x * tail, x > 0), (tail, True)), {x: Normal()}, lambda *_: sp.S.One)
    both: Any = sp.lambdify(x, [x * tail, tail], [{"Phi2": by_mpmath}, "mpmath"])
    true = mp.quad(lambda z: both(z)[int(z <= 0)] * mp.npdf(z), [-10, -3, 0, 3, 10])
    assert float(compile_formula(formula, ())()) == pytest.approx(float(true), rel=1e-6)


def test_a_linear_factor_beside_a_kinked_function_of_sums() -> None:
    """E[s^2 1{|z + g(u)| < 1}], s correlated with z: where the function is zero nothing is divided by it."""
    s, z, w = sp.symbols("s z w", real=True)
    silu = w / (1 + sp.exp(-w))
    inside = sp.Piecewise((0, z + silu < -1), (1, z + silu < 1), (0, True))
    table = {(s, s): sp.S(2), (z, z): sp.S(1), (w, w): sp.S(2), (s, z): sp.Rational(1, 2), (z, s): sp.Rational(1, 2)}
    laws = {s: Normal(), z: Normal(), w: Normal()}
    formula = expect((s * inside) ** 2, laws, lambda a, b: table.get((a, b), sp.S.Zero))
    assert not formula.has(sp.zoo, sp.nan)
    draws = np.random.default_rng(0).standard_normal((3, 2_000_000))
    first, other = draws[0], np.sqrt(2) * draws[1]
    gate = np.abs(first + other / (1 + np.exp(-other))) < 1
    second = 0.5 * first + np.sqrt(2 - 0.25) * draws[2]
    values = second**2 * gate
    error = values.std() / np.sqrt(values.size)
    assert abs(float(compile_formula(formula, ())()) - values.mean()) < 5 * error
