"""Gains of activations: definitions, published values, spellings."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import sympy as sp

from varflow.errors import ExpressionError, InputError
from varflow.gain import gain
from varflow.gain_gated import GatedGain
from varflow.laws.expectation import Divergent, Normal, compile_formula, expect
from varflow.maps import C, Q
from varflow.symbols import X

q = sp.Symbol("q", positive=True)
r = sp.Symbol("r", real=True)
a = sp.Symbol("a", real=True)
M = sp.Symbol("m", real=True)

# NFNet gammas 1/sqrt(Var f): (text, published Monte Carlo value, value recomputed by quadrature);
# Brock et al. 2021, timm/models/nfnet.py.
NFNET = [
    ("gelu", 1.7015043497085571, 1.700926243363332),
    ("leaky_relu(0.01)", 1.70590341091156, 1.7048316271773365),
    ("logsigmoid", 1.9193484783172607, 1.919125980107654),
    ("relu", 1.7139588594436646, 1.7128585504496625),
    ("relu6", 1.7131484746932983, 1.712858554972395),
    ("selu", 1.0008515119552612, 0.9999999999999999),
    ("sigmoid", 4.803835391998291, 4.801313372039954),
    ("softsign", 2.338853120803833, 2.3375333631085398),
    ("tanh", 1.5939117670059204, 1.592537419722832),
]
# (text, field, q, value, tolerance)
MOMENTS = [
    ("relu", "variance", 1, 0.5 - 1 / (2 * math.pi), 1e-12),
    ("relu", "second_moment", 1, 0.5, 1e-12),
    ("relu", "mean", 1, 1 / math.sqrt(2 * math.pi), 1e-12),
    ("relu", "init_gain_centered", 1, math.sqrt(2 / (1 - 1 / math.pi)), 1e-10),
    ("leaky_relu(0.3)", "second_moment", 1, (1 + 0.3**2) / 2, 1e-12),
    ("gelu", "variance", 1, 0.3456440110243514, 1e-10),
    ("gelu", "derivative_second_moment", 1, 0.4558508656492868, 1e-10),
    ("gelu", "derivative_second_moment", 4, 0.506044764053799, 1e-10),
    ("silu", "second_moment", 1, 0.3557755198173524, 1e-9),
    ("silu", "derivative_second_moment", 1, 0.3794823516, 1e-9),
    ("silu", "second_moment", 2, 0.799153152, 1e-8),
    ("softplus", "second_moment", 1, 0.9212459089, 1e-9),
    ("elu", "derivative_second_moment", 1, 0.6681020012231698, 1e-9),
    ("hardtanh", "derivative_second_moment", 1, math.erf(1 / math.sqrt(2)), 1e-10),
    ("erf(x)", "derivative_second_moment", 1, 4 / (math.pi * math.sqrt(5)), 1e-10),
    ("max(x, 0)^2", "second_moment", 1, 1.5, 1e-10),
    ("tanh", "second_moment", 1, 0.3942944903978409, 1e-9),
    ("tanh", "second_moment", 2, 0.5199757457, 1e-8),
    ("mish", "second_moment", 1, 0.4523421924, 1e-9),
    ("mish", "derivative_second_moment", 1, 0.4790837584, 1e-9),
    ("hardswish", "second_moment", 1, 0.3315673751, 1e-8),
    ("1.7159*tanh(2*x/3)", "second_moment", 1, 0.7504302763, 1e-8),
]


@pytest.mark.parametrize(("text", "published", "exact"), NFNET)
def test_published_gammas(text: str, published: float, exact: float) -> None:
    number = gain(text).numeric()["init_gain_centered"]
    assert number == pytest.approx(published, rel=2e-3)
    assert number == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("text", "field", "variance", "value", "tolerance"), MOMENTS)
def test_published_moments(
    text: str, field: str, variance: int, value: float, tolerance: float
) -> None:
    assert gain(text, q=variance).numeric()[field] == pytest.approx(value, abs=tolerance)


def test_gelu_formulas_in_q() -> None:
    """Kedia et al. (2024)."""
    g = gain("gelu", q=q)
    assert all(g.closed_form.values())
    mean = q / sp.sqrt(2 * sp.pi * (1 + q))
    second = q * (
        sp.Rational(1, 4)
        + (q / ((1 + q) * sp.sqrt(1 + 2 * q)) + sp.atan(q / sp.sqrt(1 + 2 * q)) / 2) / sp.pi
    )
    for value in (0.01, 0.7, 1.0, 13.0):
        assert g.numeric({"q": value})["mean"] == pytest.approx(
            float(mean.subs(q, value)), abs=1e-10
        )
        wanted = float(second.subs(q, value))
        assert g.numeric({"q": value})["second_moment"] == pytest.approx(wanted, abs=1e-10)


def test_heuristics_are_not_reproduced() -> None:
    """unit-scaling's fitted gelu gradient scale and StyleGAN's swish gain sqrt(2) are no such moments."""
    swish = gain("silu").numeric()["init_gain"]
    assert swish == pytest.approx(1.6765324703310907, rel=1e-9)
    assert swish != pytest.approx(math.sqrt(2), rel=1e-2)
    slope = gain("gelu").numeric()["derivative_second_moment"]
    assert slope is not None
    assert 1 / math.sqrt(slope) == pytest.approx(1.4811144127083486, rel=1e-9)
    assert 1 / math.sqrt(slope) != pytest.approx(2**0.6, rel=1e-2)
    fitted = 2**0.2 * (2 / (1 - 1 / math.pi)) ** 0.4
    assert gain("gelu").numeric()["init_gain_centered"] != pytest.approx(fitted, rel=1e-3)


STEP = sp.Heaviside(X)
KERNELS = [
    (sp.Max(X, 0), sp.sqrt(1 - r**2) / (2 * sp.pi) + (sp.pi - sp.acos(r)) * r / (2 * sp.pi)),
    (STEP, sp.Rational(1, 2) - sp.acos(r) / (2 * sp.pi)),
    (
        sp.Max(X, 0) ** 2,
        (3 * sp.sin(sp.acos(r)) * r + (sp.pi - sp.acos(r)) * (1 + 2 * r**2)) / (2 * sp.pi),
    ),
    (
        sp.Max(X, X / 5),
        sp.Rational(16, 25) / (2 * sp.pi) * sp.sqrt(1 - r**2)
        + (sp.Rational(13, 25) - sp.Rational(16, 25) / (2 * sp.pi) * sp.acos(r)) * r,
    ),
    (sp.sign(X), 2 / sp.pi * sp.asin(r)),
    (sp.sin(X), sp.exp(-1) * sp.sinh(r)),
    (sp.cos(X), sp.exp(-1) * sp.cosh(r)),
    (sp.exp(X), sp.exp(1 + r)),
]


@pytest.mark.parametrize(("f", "kernel"), KERNELS)
def test_published_dual_kernels(f: sp.Expr, kernel: sp.Expr) -> None:
    """Cho and Saul (2009); Daniely et al. (2016)."""
    u, v = sp.symbols("u v", real=True)
    value = expect(
        f.subs(X, u) * f.subs(X, v),
        {u: Normal(), v: Normal()},
        lambda s, t: sp.S.One if s == t else r,
    )
    for point in (-0.9, -0.2, 0.0, 0.5, 0.99):
        wanted = float(kernel.subs(r, sp.Float(point)))
        assert compile_formula(value, [r])(point) == pytest.approx(wanted, abs=1e-13)


def test_chi_is_the_slope_of_the_correlation_map() -> None:
    u, v = sp.symbols("u v", real=True)
    for f in (sp.Max(X, X / 5), sp.erf(X), sp.tanh(X)):
        value = expect(
            f.subs(X, u) * f.subs(X, v),
            {u: Normal(), v: Normal()},
            lambda s, t: sp.Integer(2) if s == t else 2 * r,
        )
        kernel = compile_formula(value, [r])
        step = 1e-4
        slope = (kernel(1.0) - kernel(1 - step)) / step / kernel(1.0)
        assert gain(f, q=2).numeric()["chi"] == pytest.approx(slope, rel=1e-2)


def test_jumps_make_chi_infinite() -> None:
    assert gain(sp.sign(X)).chi == sp.oo and gain(STEP).numeric()["chi"] == math.inf
    assert gain(sp.Max(X, 0), q=q).chi == 1


def test_mean_and_parameters() -> None:
    m = sp.Symbol("m", real=True)
    g = gain(sp.Max(X, 0), q=q, mean=m)
    rng = np.random.default_rng(0)
    z = 0.4 + np.sqrt(1.3) * rng.standard_normal(400_000)
    number = g.numeric({"q": 1.3, "m": 0.4})["mean"]
    sample = np.maximum(z, 0)
    assert number is not None and abs(sample.mean() - number) < 5 * sample.std() / 632
    with pytest.raises(InputError, match="no value for"):
        g.numeric()


def test_degenerate_activations() -> None:
    zero = gain(sp.S.Zero)
    assert zero.init_gain is None and zero.chi is None and not zero.closed_form["chi"]
    constant = gain(sp.Integer(3))
    assert constant.init_gain == sp.Rational(1, 3) and constant.init_gain_centered is None


def test_argument_of_an_expression() -> None:
    y = sp.Symbol("y", real=True)
    assert gain(sp.Max(y, 0)).second_moment == sp.Rational(1, 2)
    with pytest.raises(InputError, match="which of"):
        gain(sp.Max(y, 0) * a)


def test_latex() -> None:
    text = gain("tanh", q=q)._repr_latex_()
    assert text.startswith("$") and r"\mathbb{E}" in text and r"\chi" in text


def test_variance_and_mean_as_text() -> None:
    assert gain("erf", q="1/3", mean="sqrt(2)").mean == gain("erf", q=sp.Rational(1, 3), mean=sp.sqrt(2)).mean
    with pytest.raises(ExpressionError, match="unknown name 'm'"):
        gain("erf", mean="m")


def test_off_centre_squares_of_error_functions() -> None:
    """E gelu(m + z)^2 by twelve digits of quadrature, at three means."""
    formula = gain("gelu", mean=M).second_moment
    for m in (-2.5, 0.3, 1.7):
        want = mp.quad(lambda z, m=m: ((z + m) * mp.ncdf(z + m)) ** 2 * mp.npdf(z), [-12, -4, 0, 4, 12])
        assert float(formula.subs(M, m).evalf(20)) == pytest.approx(float(want), rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_kernel_of_the_largest(count: int) -> None:
    """E[M N] of the largest of k normals, drawn in pairs; at c = 0 the square of the mean, at c = 1 E M^2."""
    found = gain(f"maxout({count})")
    assert isinstance(found, GatedGain) and found.kernel is not None and found.c_map is not None
    run = compile_formula(found.kernel.xreplace({Q: sp.S.One}), (C,))
    rng = np.random.default_rng(5)
    for c in (-0.6, 0.3, 0.9):
        u = rng.standard_normal((count, 400_000))
        v = c * u + math.sqrt(1 - c * c) * rng.standard_normal(u.shape)
        product = u.max(axis=0) * v.max(axis=0)
        assert abs(float(run(c)) - product.mean()) < 4 * product.std() / math.sqrt(product.size)
    numbers = found.numeric()
    assert float(run(0)) == pytest.approx(float(found.mean) ** 2, rel=1e-9)
    assert float(run(1 - 1e-10)) == pytest.approx(numbers["second_moment"], rel=1e-4)


@pytest.mark.parametrize("value", [-1, -0.5, "-1/3", math.nan, math.inf, 1j, np.array([1.0, 2.0]), -q])
@pytest.mark.parametrize("function", ["relu", "swiglu", sp.tanh(X), np.tanh])
def test_variances_are_finite_and_not_negative(function: object, value: object) -> None:
    with pytest.raises(InputError, match=r"is negative|no finite real number"):
        gain(function, q=value)


CALLABLES = {
    "x*tanh(x)": lambda x: x * np.tanh(x),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "x + sin(x)^2": lambda x: x + np.sin(x) ** 2,
    "x*sin(3*x)": lambda x: x * np.sin(3 * x),
    "log(1 + exp(x))": lambda x: np.log(1 + np.exp(x)),
    "x^2 + 1000": lambda x: x * x + 1000,
}


@pytest.mark.parametrize("text", CALLABLES)
@pytest.mark.parametrize("law", [(1.0, 0.0), (2.5, 0.3), (0.01, 1.0)], ids=str)
def test_functions_have_the_numbers_of_their_formulas(text: str, law: tuple[float, float]) -> None:
    """The rounding of their differences is not taken for kinks, which had no end."""
    start = time.process_time()
    found = gain(CALLABLES[text], *law).numeric()
    assert time.process_time() - start < 2
    formula = gain(text, *map(sp.nsimplify, law)).numeric()
    for name, within in (("mean", 1e-10), ("second_moment", 1e-10), ("derivative_second_moment", 1e-8)):
        assert found[name] == pytest.approx(formula[name], rel=within)


KINKED = {
    "relu": lambda x: np.maximum(x, 0),
    "hardtanh": lambda x: np.clip(x, -1, 1),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hardsigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "softshrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
    "relu(x)*sin(x)": lambda x: np.maximum(x, 0) * np.sin(x),
    "abs(x - 1/3) + abs(x + 1/7)*x": lambda x: np.abs(x - 1 / 3) + np.abs(x + 1 / 7) * x,
}


@pytest.mark.parametrize("text", KINKED)
@pytest.mark.parametrize("law", [(1.0, 0.0), (2.5, 0.3), (5.0, -1.0)], ids=str)
def test_differences_do_not_cross_kinks(text: str, law: tuple[float, float]) -> None:
    found = gain(KINKED[text], *law).numeric()
    formula = gain(text, *map(sp.nsimplify, law)).numeric()
    assert found["second_moment"] == pytest.approx(formula["second_moment"], rel=1e-10)
    assert found["derivative_second_moment"] == pytest.approx(formula["derivative_second_moment"], rel=1e-8)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
def test_noise_is_refused(size: float) -> None:
    rng = np.random.default_rng(1)
    with pytest.raises(InputError, match="is noisy"):
        gain(lambda x: np.tanh(x) + size * rng.standard_normal(np.shape(x)))
    with pytest.raises(InputError, match="is noisy"):
        gain(lambda x: np.tanh(np.float32(x)))


SINGULAR = {
    "1/x": lambda x: 1 / x,
    "abs(x)^(-1/2)": lambda x: np.abs(x) ** -0.5,
    "exp(x^2)": lambda x: np.exp(x * x),
    "exp(x^2/4)": lambda x: np.exp(x * x / 4),
    "exp(exp(x))": lambda x: math.exp(math.exp(x)),
    "max(1/x, 0)": lambda x: max(1 / x, 0),
}


@pytest.mark.parametrize("text", SINGULAR)
@pytest.mark.filterwarnings("error")
def test_moments_that_do_not_exist_are_refused(text: str) -> None:
    """1/x had nan, exp(x^2) an init gain of 0."""
    for function in (text, SINGULAR[text]):
        with pytest.raises(Divergent, match=r"does not exist|infinite"):
            gain(function).numeric()


STEEP = {
    "sign": np.sign,
    "step": lambda x: x > 0,
    "hardshrink(1/2)": lambda x: np.where(np.abs(x) > 0.5, x, 0),
    "floor(x)": np.floor,
    "sqrt(abs(x))": lambda x: np.sqrt(np.abs(x)),
    "log(abs(x))": lambda x: np.log(np.abs(x)),
    "abs(x)^(-1/4)": lambda x: np.abs(x) ** -0.25,
}


@pytest.mark.parametrize("text", STEEP)
@pytest.mark.filterwarnings("error")
def test_slopes_that_are_infinite(text: str) -> None:
    """That of sign was 0, that of sqrt(abs(x)) 2.4."""
    found = gain(STEEP[text]).numeric()
    assert found["derivative_second_moment"] == found["chi"] == np.inf
    if text != "floor(x)":
        formula = gain(text).numeric()
        assert formula["chi"] == np.inf
        assert found["second_moment"] == pytest.approx(formula["second_moment"], rel=1e-8)


@pytest.mark.parametrize("function", [lambda x: np.abs(x) ** 0.75, lambda x: x * np.log(np.abs(x)),
                                      lambda x: np.tanh(1e4 * x)])
def test_steep_slopes_that_are_finite(function: Callable[[Any], Any]) -> None:
    assert np.isfinite(gain(function).derivative_second_moment)


@pytest.mark.parametrize("function", [np.log, lambda x: np.sqrt(x + 0j), lambda x: math.log(x), lambda x: "a",
                                      lambda: 1])
@pytest.mark.filterwarnings("error")
def test_functions_that_are_not_real_are_refused(function: Callable[[Any], Any]) -> None:
    with pytest.raises(InputError, match=r"no real value|no array of reals"):
        gain(function)


def test_slope_at_a_crossing_without_a_formula() -> None:
    """max(tanh(x), x/2) has no jump: chi is finite."""
    g = gain("max(tanh(x), x/2)")
    root = mp.findroot(lambda x: mp.tanh(x) - x / 2, 1.9)
    cuts = [-14, -root, 0, root, 14]

    def slope(x: mp.mpf) -> mp.mpf:
        return mp.sech(x) ** 2 if mp.tanh(x) > x / 2 else mp.mpf(1) / 2

    top = mp.quad(lambda x: slope(x) ** 2 * mp.npdf(x), cuts)
    below = mp.quad(lambda x: max(mp.tanh(x), x / 2) ** 2 * mp.npdf(x), cuts)
    assert not g.has_jump and g.numeric()["chi"] == pytest.approx(float(top / below), rel=1e-10)


@pytest.mark.parametrize(("name", "mean", "q"), [
    ("tanh", 7, 1), ("tanh", 10, 1), ("sigmoid", 0, 1e-8), ("softplus(1)", 0, 1e-10),
])
def test_variances_far_below_the_squared_mean(name: str, mean: int, q: float) -> None:
    """E f^2 - (E f)^2 cancels: 0.5 % were lost of Var tanh(x) at a mean of 10."""
    f = {"tanh": mp.tanh, "sigmoid": lambda x: 1 / (1 + mp.exp(-x)), "softplus(1)": lambda x: mp.log1p(mp.exp(x))}[name]
    with mp.workdps(40):
        middle, cuts = f(mp.mpf(mean)), [-14, -mean, -6, 0, 6, 14]

        def off(z: mp.mpf) -> mp.mpf:
            return f(mean + mp.sqrt(q) * z) - middle

        first = mp.quad(lambda z: off(z) * mp.npdf(z), sorted(set(cuts)))
        second = mp.quad(lambda z: off(z) ** 2 * mp.npdf(z), sorted(set(cuts)))
        wanted = float(second - first**2)
    found = gain(name, q, mean).numeric()
    assert found["variance"] == pytest.approx(wanted, rel=1e-8)
    assert found["init_gain_centered"] == pytest.approx(1 / math.sqrt(wanted), rel=1e-8)
    open_mean, open_q = sp.symbols("m q", positive=True)
    if mean:
        values = {"m": mean, "q": q}
        assert gain(name, open_q, open_mean).numeric(values)["variance"] == pytest.approx(wanted, rel=1e-8)


def test_gains_belong_to_the_numbers_of_their_moments() -> None:
    """1/sqrt(Var f) was infinite beside a variance of 1."""
    found = gain("relu", mean=10**10).numeric()
    assert found["variance"] == found["init_gain_centered"] == 1


@pytest.mark.parametrize("text", ["swiglu", "maxout(3)", "crelu", "rrelu_training(1/8, 1/3)"])
def test_pickles_of_gates(text: str) -> None:
    found = gain(text, 2)
    again = pickle.loads(pickle.dumps(found))
    assert again == found and again.second_moment == found.second_moment


def test_numbers_are_no_activations() -> None:
    wrong: Any
    for wrong, name in ((5, "an int"), (None, "None")):
        with pytest.raises(InputError, match=f"{name} is not an activation"):
            gain(wrong)
