"""Every closed form against an independent high-precision integral."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath as mp
import pytest
import sympy as sp

from varflow.laws.expectation import (
    GaussianExpectation,
    Normal,
    compile_formula,
    derivative,
    expect,
)

x, u, v = sp.symbols("x u v", real=True)
m, a = sp.symbols("m a", real=True)
q, q1, q2 = sp.symbols("q q1 q2", positive=True)
c = sp.Symbol("c", real=True)
PAIR = {(u, u): q1, (u, v): c, (v, u): c, (v, v): q2}


def one(expr: sp.Expr) -> sp.Expr:
    return expect(expr, {x: Normal()}, lambda s, t: q)


def two(expr: sp.Expr) -> sp.Expr:
    return expect(expr, {u: Normal(), v: Normal()}, lambda s, t: PAIR[s, t])


def relu(z: sp.Expr) -> sp.Expr:
    return sp.Piecewise((z, z > 0), (0, True))


def gelu(z: sp.Expr) -> sp.Expr:
    return z * (1 + sp.erf(z / sp.sqrt(2))) / 2


def elu(z: sp.Expr, k: sp.Expr = sp.S.One) -> sp.Expr:
    return sp.Piecewise((z, z > 0), (k * (sp.exp(z) - 1), True))


SELU = sp.Rational("1.0507009873554805") * elu(x, sp.Rational("1.6732632423543772"))
HARDSWISH = x * sp.Min(sp.Max(x + 3, 0), 6) / 6
ONE = {
    "relu": relu(x),
    "relu_shifted": relu(x + m),
    "leaky": sp.Piecewise((x, x > 0), (a * x, True)),
    "abs": sp.Abs(x),
    "sign": sp.sign(x),
    "step_shifted": sp.Heaviside(x - m),
    "relu6": sp.Min(sp.Max(x, 0), 6),
    "hardtanh": sp.Max(-1, sp.Min(1, x)),
    "hardtanh_shifted": sp.Max(-1, sp.Min(1, x + m)),
    "hardswish": HARDSWISH,
    "relu2": relu(x) ** 2,
    "elu": elu(x),
    "elu_shifted": elu(x + m),
    "celu": sp.Max(0, x) + sp.Min(0, 2 * (sp.exp(x / 2) - 1)),
    "selu": SELU,
    "gelu": gelu(x),
    "erf": sp.erf(x),
    "erf_scaled": sp.erf(a * x),
    "sin": sp.sin(x),
    "sin_shifted": sp.sin(2 * x + m),
    "cos": sp.cos(a * x),
    "exp": sp.exp(x / 3),
    "gaussian": sp.exp(-(x**2)),
    "sinh": sp.sinh(x / 2),
    "polynomial": x**3 + a * x**2 - m,
    "snake": x + sp.sin(x) ** 2,
    "softshrink": sp.Piecewise((x - 1, x > 1), (x + 1, x < -1), (0, True)),
    "tower": relu(x + relu(x - 1)),
}


def mp_function(expr: sp.Expr, names: list[sp.Symbol]) -> Callable[..., mp.mpf]:
    made: Callable[..., mp.mpf] = sp.lambdify(names, expr, "mpmath")
    return made


def mp_expect(expr: sp.Expr, variance: float, kinks: list[float]) -> mp.mpf:
    """E[expr(x)], x ~ N(0, variance), by tanh-sinh panels."""
    with mp.workdps(24):
        f = mp_function(expr, [x])
        s = mp.sqrt(mp.mpf(variance))
        edges = sorted({-14 * s, -5 * s, mp.mpf(0), 5 * s, 14 * s, *[mp.mpf(k) for k in kinks]})
        inside = [e for e in edges if abs(e) <= 14 * s]
        density = 1 / mp.sqrt(2 * mp.pi * variance)
        return density * mp.quad(lambda z: f(z) * mp.exp(-z * z / (2 * variance)), inside)


POINTS = [{q: 0.75, m: 0.375, a: 0.25}, {q: 2.25, m: -0.75, a: -1.75}]


@pytest.mark.parametrize("name", sorted(ONE))
@pytest.mark.parametrize("use", ["mean", "square", "slope"])
def test_one_variable(name: str, use: str) -> None:
    f = ONE[name]
    f = {"mean": f, "square": f**2, "slope": derivative(f, x) ** 2}[use]
    formula = one(f)
    assert not formula.has(GaussianExpectation), formula
    for point in POINTS[:1] if use == "mean" else POINTS[1:]:
        values = {k: sp.Rational(str(w)) for k, w in point.items()}
        kinks = [-3, -1, 0, 0.5, 1, 3, 6]
        if m in f.free_symbols:
            kinks = [point[m], -point[m], -1 - point[m], 1 - point[m]]
        want = mp_expect(f.subs(values), point[q], kinks)
        with mp.workdps(24):
            got = mp.mpf(str(sp.N(formula.subs(values), 24)))
            assert abs(got - want) <= mp.mpf("1e-16") * (1 + abs(want)), (formula, got, want)
        number = compile_formula(formula, [q, m, a])(*[point[k] for k in (q, m, a)])
        assert math.isclose(number, float(want), rel_tol=1e-12, abs_tol=1e-13)


PAIRS = {
    "relu": relu(u) * relu(v),
    "relu_step": relu(u) * sp.Heaviside(v),
    "step": sp.Heaviside(u) * sp.Heaviside(v),
    "leaky": sp.Piecewise((u, u > 0), (u / 5, True)) * sp.Piecewise((v, v > 0), (v / 5, True)),
    "abs": sp.Abs(u) * sp.Abs(v),
    "sign": sp.sign(u) * sp.sign(v),
    "relu_abs": relu(u) * sp.Abs(v),
    "relu_square": relu(u) ** 2 * relu(v) ** 2,
    "relu_cubic": relu(u) ** 3 * v,
    "erf": sp.erf(u) * sp.erf(v),
    "erf_relu": sp.erf(u) * relu(v),
    "gelu": gelu(u) * gelu(v),
    "gelu_slope": sp.diff(gelu(u), u) * sp.diff(gelu(v), v),
    "gelu_relu": gelu(u) * relu(v),
    "sin": sp.sin(u) * sp.sin(v),
    "exp": sp.exp(u) * sp.exp(v / 2),
    "polynomial": u**3 * v**3 + u**2,
    "mixed": u**2 * relu(v),
    "mixed_gelu": u * v * gelu(v),
    "maximum": sp.Max(u, v) ** 2,
    "residual": relu(u + relu(v)) ** 2,
    "gate": u * sp.sin(v),
    "three_kinks": relu(u) * relu(v) * relu(u + v),
    "three_errors": u * sp.erf(v) ** 3,
    "exp_relu": sp.exp(u) * relu(v),
    "exp_gelu": sp.exp(u) * gelu(v),
    "damped_wave": u**2 * sp.exp(u) * sp.cos(v),
    "gated_residual": relu(u + relu(v)) * relu(v),
    "weighted_gelu": gelu(u + 2 * v) ** 2,
    "abs_decay": sp.exp(-sp.Abs(u)) * v**2,
    "bilinear_exp": sp.exp(-(u**2) - u * v / 3 - v**2),
}


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_pair_closed_form_equals_quadrature(name: str) -> None:
    f = PAIRS[name]
    formula = two(f)
    assert not formula.has(GaussianExpectation), formula
    number = compile_formula(formula, [q1, c, q2])
    reference = compile_formula(GaussianExpectation(f, (u, v), (q1, c, q2)), [q1, c, q2])
    for point in ((0.8, 0.3, 1.7), (1.0, -0.6, 0.5), (2.0, 0.0, 0.3)):
        assert math.isclose(number(*point), reference(*point), rel_tol=2e-11, abs_tol=1e-12)


def test_spelling_does_not_matter() -> None:
    spellings = [relu(x), sp.Max(x, 0), (x + sp.Abs(x)) / 2, x * sp.Heaviside(x)]
    spellings += [sp.Piecewise((0, x < 0), (x, True)), x * (1 + sp.sign(x)) / 2]
    assert len({one(f) for f in spellings}) == 1
    assert len({one(sp.tanh(f)) for f in spellings}) == 1


def test_signs_of_what_is_zero_on_an_interval() -> None:
    """softshrink is zero on [-1/2, 1/2]: its sign is 0 there, its step 1/2, and it is neither > 0 nor < 0."""
    half = sp.Rational(1, 2)
    f = sp.Piecewise((x - half, x > half), (x + half, x < -half), (0, True))
    inside = sp.erf(sp.sqrt(2) / (4 * sp.sqrt(q)))
    cases = {
        sp.Heaviside(f): half, sp.sign(f): 0, sp.sign(f) ** 2: 1 - inside,
        sp.Piecewise((1, f >= 0), (0, True)): (1 + inside) / 2, sp.Piecewise((1, f > 0), (0, True)): (1 - inside) / 2,
        sp.Piecewise((1, f <= 0), (0, True)): (1 + inside) / 2,
    }
    for body, want in cases.items():
        assert abs(sp.N((one(body) - want).subs(q, 2))) < 1e-14, body
