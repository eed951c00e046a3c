"""Two cuts, or factors erf and Phi, of one Gaussian of any mean: formulas with Phi2, at any power and decay."""

from __future__ import annotations

import random
import time
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import sympy as sp

import varflow as vf
from tests.laws.test_waves import almost, integral
from varflow.binormal import Phi2, by_mpmath, exp_phi2_by_numpy
from varflow.laws.expectation import GaussianExpectation, Normal, expect
from varflow.laws.numeric import with_enough_digits
from varflow.laws.orthants import Corner, corner_moment

x, m = sp.symbols("x m", real=True)
q, edge = sp.symbols("q edge", positive=True)
R = sp.Rational


def Phi(z: sp.Expr) -> sp.Expr:
    return (1 + sp.erf(z / sp.sqrt(2))) / 2


CASES: dict[str, tuple[sp.Expr, list[Any]]] = {
    "two erf": (sp.erf(x) * sp.erf(2 * x - 1), []),
    "slope of two erf": (almost(sp.erf(x) * sp.erf(2 * x - 1)) ** 2, []),
    "curvature of two erf": (almost(almost(sp.erf(x) * sp.erf(2 * x - 1))) ** 2, []),
    "cubic gelu squared": ((x**3 * Phi(x)) ** 2, []),
    "powers of two Phi": (x**4 * Phi(x) * Phi(R(1, 2) - 2 * x), []),
    "gaussian of two Phi": (x**2 * sp.exp(-(x**2) / 3 + x) * Phi(x) * Phi(x - 1), []),
    "outside a window": (sp.Piecewise((x**3 * sp.erf(x), sp.Abs(x) > edge), (x, True)), [-edge, edge]),
    "in a window": (sp.Piecewise((sp.exp(-(x**2)) * x * Phi(3 * x), sp.And(x > -1, x < edge)), (0, True)), [-1, edge]),
    "size of erf": (sp.Abs(sp.erf(x - 1)) * x, [1]),
    "high power": ((x**6 * Phi(2 * x)) * Phi(2 * x), []),
    "a cut": (sp.Piecewise((x**5 * Phi(1 - x), x > R(1, 3)), (sp.exp(x), True)), [R(1, 3)]),
}


@pytest.mark.parametrize("name", CASES)
def test_closed_forms(name: str) -> None:
    """At a symbolic mean: equal to quadrature in fifty digits."""
    body, kinks = CASES[name]
    formula = expect(body.xreplace({x: x + m}), {x: Normal()}, lambda s, t: q)
    assert not formula.has(GaussianExpectation) and formula.has(Phi2)
    rng = random.Random(name)
    place = {m: R(rng.randint(-1500, 1500), 1000), q: R(rng.randint(100, 3000), 1000), edge: R(7, 5)}
    want = integral(body.xreplace({edge: place[edge]}), place[m], place[q], [sp.sympify(k).subs(place) for k in kinks])
    with mp.workdps(50):
        got = mp.mpf(str(sp.N(formula.subs(place), 50, maxn=4000)))
        assert abs(got - want) < mp.mpf(10) ** -25 * abs(want)
    names = tuple(sorted(formula.free_symbols, key=str))
    again = with_enough_digits(formula, names)(*(np.array(float(place[s])) for s in names))
    assert float(again) == pytest.approx(float(want), rel=1e-10)


@pytest.mark.parametrize("name", ["two erf", "slope of two erf", "powers of two Phi", "cubic gelu squared"])
@pytest.mark.parametrize("mean", [0, R(3, 10)])
def test_extreme_variances(name: str, mean: sp.Rational) -> None:
    """Doubles at q from 1e-6 to 1e6 against the integral of the same by panels."""
    body = CASES[name][0].xreplace({x: x + mean})
    formula = expect(body, {x: Normal()}, lambda s, t: q)
    run = with_enough_digits(formula, (q,))
    for power in (-6, -3, 0, 3, 6):
        want = GaussianExpectation(body, (x,), (sp.Integer(10) ** power,)).evalf()
        assert float(run(np.array(10.0**power))) == pytest.approx(float(want), rel=2e-10)


def test_high_powers_at_mean_zero() -> None:
    """Central orthants beyond the templates: E[x^12 Phi(3x)^2]."""
    formula = expect(x**12 * Phi(3 * x) ** 2, {x: Normal()}, lambda s, t: q)
    assert not formula.has(GaussianExpectation)
    want = integral(x**12 * Phi(3 * x) ** 2, R(0), R(5, 4), [])
    with mp.workdps(50):
        assert abs(mp.mpf(str(formula.subs(q, R(5, 4)).n(50))) - want) < 1e-25 * want


def test_derivatives() -> None:
    """d/dq and d/dm against differences in many digits."""
    formula = expect(CASES["powers of two Phi"][0].xreplace({x: x + m}), {x: Normal()}, lambda s, t: q)
    place, step = {q: R(7, 5), m: R(-1, 3)}, R(1, 10**12)
    for s in (q, m):
        up, down = ({**place, s: place[s] + k * step} for k in (1, -1))
        slope = (formula.subs(up).n(50) - formula.subs(down).n(50)) / (2 * step)
        assert abs(formula.diff(s).subs(place).n(40) - slope) < 1e-20


def test_a_corner_by_brute_force() -> None:
    """E[x^3; f > 1/5, g > -2/5] of correlated Gaussians, by draws."""
    law = np.array([[1.5, 0.6, -0.4], [0.6, 1.0, 0.3], [-0.4, 0.3, 2.0]])
    mean = np.array([0.3, 0.0, 0.1])
    exact = [[sp.Rational(str(v)) for v in row] for row in law]
    corner = Corner(R(3, 10), exact[0][0], (exact[0][1], exact[0][2]), (R(1, 5), R(-1, 2)),
                    (exact[1][1], exact[2][2]), exact[1][2])
    z = np.random.default_rng(5).multivariate_normal(mean, law, 2_000_000)
    values = np.where((z[:, 1] > 0.2) & (z[:, 2] > -0.4), z[:, 0] ** 3, 0.0)
    assert abs(values.mean() - float(corner_moment(3, corner))) < 5 * values.std() / np.sqrt(len(z))


@pytest.mark.parametrize("text", ["x**2*Phi(2*x)*erf(x)", "erf(x)**3*x", "x*Phi(x)*Phi(x - 1)",
                                  "Piecewise((erf(x), abs(x) > 1), (0, True))", "gelu(x)*erf(x)"])
def test_many_tails_answer_soon(text: str) -> None:
    """Orthants of four Gaussians have no formula: reports and kernels say so within seconds."""
    start = time.process_time()
    gain = vf.gain(text)
    maps = gain.maps()
    assert gain.numeric()["second_moment"] and not gain.closed_form["second_moment"]
    assert maps.kernel is not None and maps.derivative_kernel is not None
    assert time.process_time() - start < 8


@pytest.mark.parametrize("r", [-0.8, -0.5, 0.3, 0.95])
def test_growing_factor_times_a_deep_corner(r: float) -> None:
    """exp(e) Phi2(h, k; r) = 1 where Phi2 is down to 1e-60, far below what a difference of doubles holds."""
    for h, k in ((-1.0, -2.0), (-6.0, 1.0), (-4.0, -3.0), (0.5, -8.0)):
        mp.mp.dps = 400
        log = mp.log(by_mpmath(mp.mpf(h), mp.mpf(k), mp.mpf(r)))
        assert float(exp_phi2_by_numpy(-float(log), h, k, r)) == pytest.approx(1.0, rel=1e-11)
        mp.mp.dps = 15


@pytest.mark.parametrize("text, q, m", [("step(x)*exp(-x)*(1+erf(x))", 30, -2), ("step(-x)*exp(x)*(1+erf(x))", 60, 1),
                                        ("exp(x)*erf(x)", 60, 1), ("exp(-x)*(1+erf(x))", 60, 1)])
def test_growing_exponentials_times_two_tails(text: str, q: float, m: float) -> None:
    """Formulas at any mean, their numbers against quadrature in 25 digits."""
    f: dict[str, Any] = {
        "step(x)*exp(-x)*(1+erf(x))": lambda t: (t > 0) * mp.exp(-t) * (1 + mp.erf(t)),
        "step(-x)*exp(x)*(1+erf(x))": lambda t: (t < 0) * mp.exp(t) * (1 + mp.erf(t)),
        "exp(x)*erf(x)": lambda t: mp.exp(t) * mp.erf(t),
        "exp(-x)*(1+erf(x))": lambda t: mp.exp(-t) * (1 + mp.erf(t))}
    report = vf.gain(text, q=q, mean=m)
    use = "mean" if text.startswith("step") else "second_moment"
    assert not getattr(report, use).has(GaussianExpectation)
    with mp.workdps(25):
        centres = (mp.mpf(m), m + mp.mpf(q), m - mp.mpf(q), m + 2 * mp.mpf(q), m - 2 * mp.mpf(q), mp.mpf(0))
        steps = sorted({m - 40 * mp.sqrt(q), m + 40 * mp.sqrt(q), *centres, *(c + d for c in centres for d in (
            -40, -10, -1, 1, 10, 40))})
        power = 1 if use == "mean" else 2
        stated = mp.quad(lambda t: f[text](t) ** power * mp.npdf(t, m, mp.sqrt(q)), steps)
    assert report.numeric()[use] == pytest.approx(float(stated), rel=1e-10)
