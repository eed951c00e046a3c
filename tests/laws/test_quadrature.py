"""Integrals as numbers: against mpmath, at every scale, and what is refused."""

from __future__ import annotations

import time
from pathlib import Path

import mpmath as mp
import numpy as np
import pytest
import sympy as sp

from varflow.errors import VarflowError
from varflow.laws import quadrature
from varflow.laws.integral import GaussianExpectation
from varflow.laws.numeric import vectorized
from varflow.laws.quadrature import compile_formula, evaluate, prepare

z, w = sp.symbols("z w", real=True)
q, p = sp.symbols("q p", positive=True)
c = sp.Symbol("c", real=True)


def sigmoid(x: sp.Expr) -> sp.Expr:
    return 1 / (1 + sp.exp(-x))


SAMPLE = {
    "mish": (z * sp.tanh(sp.log(1 + sp.exp(z))), ()),
    "shifted silu": ((z - 5) * sigmoid(30 * (z - 5)), (5.0,)),
    "kinked sigmoid": (sigmoid(sp.Abs(z - sp.Rational(1, 3))), (1 / 3,)),
    "elu of a line": (
        sp.Piecewise((5 * z - 2, z > sp.Rational(2, 5)), (sp.exp(5 * z - 2) - 1, True)),
        (0.4,),
    ),
    "root": (sp.sqrt(1 + (3 * z + 1) ** 2), ()),
    "capped": (sp.Min(sp.Abs(z), 1) * sp.atan(7 * z + 1), (-1.0, 0.0, 1.0)),
    "narrow bump": (sp.exp(-((40 * z - 30) ** 2)), (0.75,)),
    "wave packet": (sp.cos(3 * z + 1) * sp.exp(-(z**2) / 9), ()),
    "sign of a tanh": (sp.sign(sp.tanh(z) - sp.Rational(1, 2)), (float(mp.atanh(0.5)),)),
}


def by_mpmath(f: sp.Expr, variance: float, kinks: tuple[float, ...]) -> tuple[float, float]:
    """E f and E abs(f) by mpmath's Gauss-Legendre rule on intervals graded around kinks and 0."""
    number = sp.lambdify(z, f, "mpmath")
    with mp.workdps(25):
        sigma = mp.sqrt(variance)
        steps = [mp.mpf(2) ** k for k in range(-8, 14)]
        near = {k + s * d for k in (mp.mpf(0), *map(mp.mpf, kinks)) for d in steps for s in (-1, 1)}
        near |= {mp.mpf(k) for k in (*kinks, 0)} | {k * sigma for k in range(-13, 14)}
        places = sorted(t for t in near if abs(t) <= 13 * sigma)

        def density(t: mp.mpf) -> mp.mpf:
            return mp.exp(-t * t / (2 * sigma**2)) / (sigma * mp.sqrt(2 * mp.pi))

        rule = {"method": "gauss-legendre", "maxdegree": 4}
        total = mp.quad(lambda t: number(t) * density(t), places, **rule)
        size = mp.quad(lambda t: abs(number(t)) * density(t), places, **rule)
    return float(total), float(size)


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.parametrize("variance", [1e-6, 2.0, 1e3])
def test_equals_mpmath(name: str, variance: float) -> None:
    f, kinks = SAMPLE[name]
    want, size = by_mpmath(f, variance, kinks)
    got = compile_formula(GaussianExpectation(f, (z,), (q,)), [q])(variance)
    assert abs(got - want) <= 1e-10 * size


RELU = sp.Max(z, 0)
PAIRS = {
    "tanh": sp.tanh(z) * sp.tanh(w),
    "silu": z * sigmoid(z) * w * sigmoid(w),
    "step and wave": sp.Heaviside(z - 1) * sp.cos(w),
    "hat and relu": sp.Max(1 - sp.Abs(z), 0) * sp.Max(w, 0),
    "sigmoids": sigmoid(sp.Abs(z)) * sigmoid(w),
}


@pytest.mark.parametrize("name", PAIRS)
def test_products_equal_the_nested_rule(name: str) -> None:
    """The engine of grids and the adaptive nested rule share neither meshes nor rules."""
    ready = prepare(GaussianExpectation(PAIRS[name], (z, w), (q, c, p)))
    assert ready.sides is not None
    for first, second, r in [
        (1e-4, 4e-4, 0.6),
        (1.0, 3.0, -0.4),
        (1.0, 1.0, 0.9999),
        (1e4, 1e2, 0.3),
    ]:
        law = [first, r * np.sqrt(first * second), second]
        order = {q: law[0], c: law[1], p: law[2]}
        columns = [
            np.array([float(f(*[order[s] for s in ready.parameters]))]) for f in ready.covariance
        ]
        with np.errstate(all="ignore"):
            nested = quadrature._two(
                ready, [np.array([order[s]]) for s in ready.parameters], columns
            )
        got = ready(*[order[s] for s in ready.parameters])
        assert got == pytest.approx(float(nested[0]), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("r", [-1.0, -1 + 1e-9, -0.3, 0.0, 0.8, 1 - 1e-12, 1.0])
def test_small_values_keep_their_digits(r: float) -> None:
    """E relu(u) relu(v) near r = -1 is far smaller than E relu^2: Cho and Saul 2009."""
    got = compile_formula(GaussianExpectation(RELU * sp.Max(w, 0), (z, w), (q, c, q)), [q, c])(
        2.0, 2 * r
    )
    with mp.workdps(40):
        exact = mp.mpf(2 * r) / 2
        angle = mp.acos(exact)
        want = float(2 * (mp.sin(angle) + (mp.pi - angle) * exact) / (2 * mp.pi))
    assert got == pytest.approx(want, rel=1e-9, abs=1e-30)


def number(f: sp.Expr, *law: object) -> float:
    return evaluate(
        GaussianExpectation(f, (z, w)[: (len(law) + 1) // 2], tuple(map(sp.sympify, law)))
    )


def test_integrals_go_as_far_as_the_integrand_lives() -> None:
    assert number(sp.exp(z), 100) == pytest.approx(np.exp(50), rel=1e-12)
    assert number(sp.exp(z) * sp.tanh(z), 400) == pytest.approx(np.exp(200), rel=1e-12)
    assert number(sp.exp(z + w), 100, 50, 100) == pytest.approx(np.exp(150), rel=1e-11)
    assert number(sp.exp(z * w / 2), 1, 0, 1) == pytest.approx(1 / np.sqrt(0.75), rel=1e-12)
    assert number(sp.exp(z), 10**6) == np.inf


def test_integrable_singularities() -> None:
    assert number(sp.log(z**2), 1) == pytest.approx(-float(sp.EulerGamma + sp.log(2)), rel=1e-12)
    want = sp.gamma(sp.Rational(1, 4)) / (2 ** sp.Rational(1, 4) * sp.sqrt(sp.pi))
    assert number(1 / sp.sqrt(sp.Abs(z)), 1) == pytest.approx(float(want), rel=1e-10)


@pytest.mark.parametrize(
    ("f", "law", "why"),
    [
        (sp.exp(z**2), (sp.Rational(1, 2),), "density"),
        (sp.exp(z**2) * sp.tanh(z), (3,), "density"),
        (sp.exp(z * w), (1, 0, 1), "density"),
        (sp.exp(z**2 / 4) * sp.Abs(w), (9, 1, 1), "density"),
        (1 / z**2, (1,), "pole"),
        (sp.tan(z), (1,), "pole"),
        (sp.sqrt(z), (1,), "no real value"),
        (sp.log(z), (2,), "no real value"),
        (sp.sqrt(z + w), (1, 0, 1), "no real value"),
    ],
)
def test_what_has_no_number_is_refused(f: sp.Expr, law: tuple[object, ...], why: str) -> None:
    with pytest.raises(VarflowError, match=why):
        number(f, *law)


def test_impossible_covariance_has_no_number() -> None:
    assert np.isnan(number(sp.tanh(z) * sp.tanh(w), 1, 2, 1))


def test_nothing_of_a_name_is_run(tmp_path: Path) -> None:
    """Symbols and functions named like code are values and errors, not code."""
    mark = tmp_path / "made"
    evil = sp.Symbol(f'__import__("pathlib").Path("{mark}").touch()', real=True)
    assert vectorized(evil + sp.sin(evil) ** 2, (evil,))(0.0) == 0.0
    assert compile_formula(evil**2, [evil])(3.0) == 9.0
    for name in ("exit", "breakpoint", "__import__", str(evil)):
        with pytest.raises(VarflowError, match="no numbers for"):
            vectorized(sp.Function(name)(z) + z, (z,))
    assert not mark.exists()


def test_points_that_need_more_digits_cost_what_they_cost() -> None:
    """Two thousand different cells by mpmath, each once."""
    mean = sp.Symbol("m", real=True)
    tail = sp.sqrt(q / (2 * sp.pi)) * sp.exp(-(mean**2) / (2 * q)) + mean * (1 + sp.erf(mean / sp.sqrt(2 * q))) / 2
    places = np.linspace(-3.0, 3.0, 4001)
    start = time.process_time()
    got = compile_formula(tail, [q, mean])(0.05, places)
    assert time.process_time() - start < 20
    with mp.workdps(60):
        for k in (0, 700, 1500):
            m, s = mp.mpf(places[k]), mp.sqrt(mp.mpf(0.05))
            want = s * mp.npdf(m / s) + m * mp.erfc(-m / s / mp.sqrt(2)) / 2
            assert float(got[k]) == pytest.approx(float(want), rel=1e-10)


def test_integrals_in_integrals_are_numbers() -> None:
    """One that also stands alone, parameters of an integrand, entries of a covariance: against a product rule."""
    a = GaussianExpectation(sp.tanh(z) ** 2, (z,), (q,))
    b = GaussianExpectation(sp.tanh(z + a) ** 2, (z,), (1,))
    f = GaussianExpectation(sp.tanh(z + b) * sp.tanh(w + a), (z, w), (1, a / 3, 2))
    x, weight = np.polynomial.hermite_e.hermegauss(120)
    weight = weight / weight.sum()
    want_a = weight @ np.tanh(np.sqrt(2) * x) ** 2
    want_b = weight @ np.tanh(x + want_a) ** 2
    second = want_a / 3 * x[:, None] + np.sqrt(2 - (want_a / 3) ** 2) * x
    want = weight @ (np.tanh(x[:, None] + want_b) * np.tanh(second + want_a)) @ weight
    whole = f * a + sp.sqrt(b)
    for got in (float(whole.subs(q, 2)), sp.N(whole.subs(q, 2)), compile_formula(whole, [q])(2.0)):
        assert got == pytest.approx(want * want_a + np.sqrt(want_b), rel=1e-6)


def test_double_integrals_found_together_are_those_found_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One point's size says nothing of the digits that another needs; a point that has no number leaves the others'."""
    f = sp.Max(z + sp.log(1 + sp.exp(w)) - 1, 0) * sp.tanh(w - z)
    find = compile_formula(GaussianExpectation(f, (z, w), (q, q / 3, q)), (q,))
    variances = np.geomspace(1e-6, 1e4, 5)
    together = find(variances)
    monkeypatch.setattr(quadrature, "TOGETHER", 1)
    prepare.cache_clear()
    alone = [float(find(v)) for v in variances]
    assert together == pytest.approx(alone, rel=1e-12)


def test_powers_that_outgrow_each_other_are_one() -> None:
    """exp(-3 z) overflows long before exp(-exp(-2 z)) has taken it back."""
    f = sp.exp(-3 * z) * sp.exp(-sp.exp(-2 * z) / 6 - 1)
    found = compile_formula(GaussianExpectation(f, (z,), (q,)), (q,))
    with mp.workdps(30):
        s = mp.mpf(10) ** 4

        def body(t: mp.mpf) -> mp.mpf:
            return mp.exp(-3 * t - mp.exp(-2 * t) / 6 - 1 - t * t / (2 * s * s)) / (s * mp.sqrt(2 * mp.pi))

        wanted = mp.quad(body, [-60, *range(-10, 30), 60, 200])
    assert float(found(1e8)) == pytest.approx(float(wanted), rel=1e-9)


def test_powers_of_piecewise_exponents_are_one() -> None:
    """E relu(z) exp(-2 relu(z)^2 (1 + 2 tanh(u))^2 - relu(z) tanh(u)/4), the power expanded: one factor overflows."""
    u = sp.Symbol("u", real=True)
    r, t = sp.Piecewise((z, z > 0), (0, True)), sp.tanh(u)
    two = sp.Piecewise((z**2, z > 0), (0, True))
    f = r * sp.exp(-2 * two) * sp.exp(-8 * two * t) * sp.exp(-8 * two * t**2) * sp.exp(-r * t / 4)
    found = compile_formula(GaussianExpectation(f, (z, u), (q, sp.S.Zero, sp.S.One)), (q,))
    y, x = np.linspace(0.0, 24.0, 8001), np.linspace(-9.0, 9.0, 2001)
    tanh = np.tanh(x)[:, None]
    body = y * np.exp(-2 * ((1 + 2 * tanh) * y) ** 2 - y * tanh / 4 - y * y / 4 - x[:, None] ** 2 / 2)
    wanted = np.trapezoid(np.trapezoid(body, y, axis=1), x) / np.sqrt(8 * np.pi**2)
    assert float(found(2.0)) == pytest.approx(float(wanted), rel=1e-5)
