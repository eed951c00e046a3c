"""Sine and cosine on part of the line: tails of the characteristic function, and expectations made of them."""

from __future__ import annotations

import pickle
import random
from itertools import pairwise
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import varflow as vf
from varflow.expressions import parse
from varflow.laws.expectation import GaussianExpectation, Normal, derivative, expect
from varflow.laws.numeric import with_enough_digits
from varflow.printing import to_text
from varflow.symbols import X
from varflow.waves import BY_MPMATH, BY_NUMPY, CosTail, Dawson, SinTail, tail_by_mpmath

x, m, a, b = sp.symbols("x m a b", real=True)
q = sp.Symbol("q", positive=True)
R = sp.Rational


def direct(low: Any, wave: Any) -> Any:
    """int_low^oo density(x) exp(i wave x) dx by quadrature."""
    steps = [mp.mpf(low) + mp.mpf(k) / 4 for k in range(4 * 30)]
    return mp.quad(lambda t: mp.npdf(t) * mp.expj(wave * t), steps)


@given(st.floats(-8, 8), st.floats(-30, 30))
@settings(max_examples=25, deadline=None)
def test_numbers(low: float, wave: float) -> None:
    """Both parts in doubles and in thirty digits against quadrature."""
    with mp.workdps(30):
        want = direct(low, wave)
        assert abs(tail_by_mpmath(mp.mpf(low), mp.mpf(wave)) - want) < 1e-26
    for name, part in (("CosTail", want.real), ("SinTail", want.imag)):
        assert abs(float(BY_NUMPY[name](low, wave)) - float(part)) < 1e-14 * (1 + abs(low * wave))


def test_extremes_do_not_overflow() -> None:
    low, wave = (v.ravel() for v in np.meshgrid([-np.inf, -1e6, -30, -1, 0, 1e-9, 1, 50, 1e5, np.inf],
                                                [-1e6, -3, 0, 1e-8, 40, 1e3, 1e9]))
    for name in ("CosTail", "SinTail"):
        found = BY_NUMPY[name](low, wave)
        assert np.all(np.isfinite(found)) and np.max(np.abs(found)) <= 1
    scaled = BY_NUMPY["exp_cos_tail"](5e5, 1e3, 2.0, 0.0, 5e5 - 2)
    assert float(scaled) == pytest.approx(0.0003989408, rel=1e-2) or abs(float(scaled)) < 4e-4


def test_one_shape() -> None:
    """Signs do not make different objects; special places are elementary; text, LaTeX and pickles."""
    assert CosTail(a, -b) == CosTail(a, b) and SinTail(a, -b) == -SinTail(a, b) == SinTail(-a, -b)
    assert sp.expand(CosTail(-a, b) + CosTail(a, b)) == sp.exp(-(b**2) / 2)
    assert CosTail(0, b) == sp.exp(-(b**2) / 2) / 2 and CosTail(a, 0) == sp.erfc(a / sp.sqrt(2)) / 2
    assert SinTail(0, b) == Dawson(b / sp.sqrt(2)) / sp.sqrt(sp.pi) and Dawson(-a) == -Dawson(a)
    assert CosTail(sp.oo, b) == SinTail(-sp.oo, b) == Dawson(0) == 0
    for f in (CosTail(a, b), SinTail(a, b), Dawson(a)):
        assert pickle.loads(pickle.dumps(f)) == f and f.is_real and f.has(a)
        assert parse(to_text(f), {"a": a, "b": b}) == f
    assert sp.latex(CosTail(a, b) ** 2) == r"Q_{\cos}\left(a; b\right)^{2}" and "Q_{\\sin}" in sp.latex(SinTail(a, b))
    assert sp.latex(Dawson(a)) == r"D_{+}\left(a\right)"


@pytest.mark.parametrize("f", [CosTail(a, b), SinTail(a, b), Dawson(a)])
def test_derivatives(f: sp.Expr) -> None:
    """Against differences in forty digits."""
    place, step = {a: R(3, 10), b: R(-7, 5)}, R(1, 10**10)
    for s in sorted(f.free_symbols, key=str):
        up, down = ({**place, s: place[s] + k * step} for k in (1, -1))
        slope = (f.subs(up).n(40) - f.subs(down).n(40)) / (2 * step)
        assert abs(f.diff(s).subs(place).n(30) - slope) < 1e-18


def relu(z: sp.Expr) -> sp.Expr:
    return sp.Piecewise((z, z > 0), (0, True))


PARTIAL = {
    "relu_sin": (relu(x) * sp.sin(x), [0]),
    "sin_or_x": (sp.Piecewise((sp.sin(x), x > 0), (x, True)), [0]),
    "step_cos_gaussian": (sp.Heaviside(x) * sp.cos(3 * x) * sp.exp(-(x**2) / 3), [0]),
    "half_snake": (sp.Piecewise((x + sp.sin(2 * x) ** 2 / 2, x > 0), (x, True)), [0]),
    "cos_in_a_window": (sp.Piecewise((x**2 * sp.cos(2 * x + 1), sp.And(x > -1, x < R(3, 2))), (sp.cos(x), True)),
                        [-1, R(3, 2)]),
    "elu_like": (sp.Piecewise((sp.sin(x), x > 1), (sp.exp(x) * sp.cos(5 * x), True)), [1]),
    "sin_erf": (x * sp.sin(x) * sp.erf(2 * x - 1), []),
}
USES = {"mean": lambda f: f, "square": lambda f: f**2, "slope": lambda f: almost(f) ** 2,
        "curvature": lambda f: almost(almost(f)) ** 2}


def almost(f: sp.Expr) -> sp.Expr:
    """f' almost everywhere."""
    return derivative(f, x)


def integral(body: sp.Expr, mean: sp.Rational, variance: sp.Rational, kinks: list[Any]) -> Any:
    """E body(x) by Gauss-Legendre panels in fifty digits."""
    with mp.workdps(50):
        f = sp.lambdify(x, body, "mpmath")
        centre, sigma = mp.mpf(mean.p) / mean.q, mp.sqrt(mp.mpf(variance.p) / variance.q)
        places = sorted({centre + sigma * k for k in range(-16, 17)} | {mp.mpf(str(sp.N(k, 50))) for k in kinks})
        total = mp.mpf(0)
        for low, high in pairwise(places):
            inner = [low + (high - low) * k / 2 for k in range(3)]
            total += mp.quad(lambda t: f(t) * mp.npdf((t - centre) / sigma) / sigma, inner, method="gauss-legendre")
        return total


@pytest.mark.parametrize("name", PARTIAL)
@pytest.mark.parametrize("use", USES)
def test_closed_forms(name: str, use: str) -> None:
    """At any mean: equal to quadrature in fifty digits, and nothing imaginary in sight."""
    f, kinks = PARTIAL[name]
    body = USES[use](f)
    formula = expect(body.xreplace({x: x + m}), {x: Normal()}, lambda s, t: q)
    if name == "sin_erf" and use != "mean":
        assert formula.has(GaussianExpectation)
        return
    assert not formula.has(GaussianExpectation, sp.I)
    rng = random.Random(f"{name} {use}")
    place = {m: R(rng.randint(-1500, 1500), 1000), q: R(rng.randint(100, 3000), 1000)}
    want = integral(body, place[m], place[q], kinks)
    with mp.workdps(50):
        got = mp.mpf(str(sp.N(formula.subs(place), 50, maxn=4000)))
        assert abs(got - want) < mp.mpf(10) ** -25 * abs(want)
    again = with_enough_digits(formula, (m, q))(np.array(float(place[m])), np.array(float(place[q])))
    assert float(again) == pytest.approx(float(want), rel=1e-10)


@pytest.mark.parametrize("name", ["relu_sin", "sin_or_x", "half_snake", "elu_like", "cos_in_a_window"])
@pytest.mark.parametrize("mean", [0, R(13, 10), -4])
def test_extreme_variances(name: str, mean: sp.Rational) -> None:
    """Doubles from q = 1e-6 to 1e6 against the formula in many digits."""
    for use in ("mean", "square"):
        body = USES[use](PARTIAL[name][0]).xreplace({x: x + mean})
        formula = expect(body, {x: Normal()}, lambda s, t: q)
        assert not formula.has(GaussianExpectation)
        run, exact = with_enough_digits(formula, (q,)), sp.lambdify(q, formula, [BY_MPMATH, "mpmath"])
        for power in (-6, -3, 0, 2, 4, 6):
            with mp.workdps(120):
                want = exact(mp.mpf(10) ** power)
                assert mp.isfinite(want) and want == mp.re(want)
            if abs(want) > 1e-60:
                assert float(run(np.array(10.0**power))) == pytest.approx(float(want), rel=1e-10)


def test_draws() -> None:
    """relu(x) sin(x) of two million Gaussian numbers."""
    g = vf.gain("relu(x)*sin(x)", q=2, mean=R(1, 2))
    z = np.random.default_rng(0).normal(0.5, np.sqrt(2), 2_000_000)
    f, slope = np.maximum(z, 0) * np.sin(z), (z > 0) * (np.sin(z) + z * np.cos(z))
    for values, field in ((f, "mean"), (f**2, "second_moment"), (slope**2, "derivative_second_moment")):
        assert dict(g.closed_form)[field]
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - g.numeric()[field]) < 5 * error < 0.01 * abs(values.mean())


def test_mixed_pairs() -> None:
    """A kink in one variable and a wave in the other: one half space, one wave."""
    u, v = sp.symbols("u v", real=True)
    c = sp.Symbol("c", real=True)
    law = {(u, u): sp.Integer(1), (u, v): c, (v, u): c, (v, v): q}
    formula = expect(relu(u - 1) * v * sp.sin(2 * v + 1), {u: Normal(), v: Normal()}, lambda s, t: law[s, t])
    assert not formula.has(GaussianExpectation, sp.I) and formula.has(SinTail)
    rng = np.random.default_rng(1)
    z, w = rng.normal(size=(2, 4_000_000))
    other = 0.7 * z + np.sqrt(1.5 - 0.49) * w
    values = np.maximum(z - 1, 0) * other * np.sin(2 * other + 1)
    got = float(formula.subs({c: R(7, 10), q: R(3, 2)}))
    assert abs(values.mean() - got) < 5 * values.std() / 2000
    flat = expect(relu(u - 1) * v * sp.sin(2 * v + 1), {u: Normal(), v: Normal()},
                  lambda s, t: law[s, t].subs({c: R(7, 10), q: R(3, 2)}))
    assert float(flat) == pytest.approx(got, rel=1e-12)


PIECES = ("sin(x)", "x*cos(2*x)", "exp(-x**2)*sin(3*x)", "exp(x/3)*cos(x)", "x", "1", "sin(x)**2*x")


@given(st.sampled_from(PIECES), st.sampled_from(PIECES), st.fractions(-2, 2, max_denominator=5),
       st.fractions(-1, 1, max_denominator=4))
@settings(max_examples=25, deadline=None)
def test_any_two_pieces(left: str, right: str, place: Any, mean: Any) -> None:
    """The formula of a random Piecewise is its integral."""
    cut = R(place.numerator, place.denominator)
    f = sp.Piecewise((sp.sympify(left, {"x": X}), cut > X), (sp.sympify(right, {"x": X}), True))
    g = vf.gain(f, mean=R(mean.numerator, mean.denominator)) if X in f.free_symbols else None
    if g is None:
        return
    assert not g.mean.has(GaussianExpectation) and not g.second_moment.has(GaussianExpectation)
    grid = np.linspace(-12, 12, 400_001)
    weights = np.exp(-grid**2 / 2) / np.sqrt(2 * np.pi) * (grid[1] - grid[0])
    values = np.broadcast_to(sp.lambdify(X, f, "numpy")(grid + float(mean)), grid.shape)
    for power, field in ((1, "mean"), (2, "second_moment")):
        assert g.numeric()[field] == pytest.approx(float(np.sum(values**power * weights)), abs=2e-4)
