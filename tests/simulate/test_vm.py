"""The pointwise machine against sympy evaluated to 30 digits, far into the tails."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import sympy as sp
from numpy.typing import NDArray

from varflow.errors import ShapeError, UnsupportedError
from varflow.simulate import jit
from varflow.simulate.kernels_pointwise import pointwise
from varflow.simulate.vm import compile_pointwise

x, y, z = sp.symbols("x y z", real=True)
sigmoid = 1 / (1 + sp.exp(-x))
softplus = sp.log(1 + sp.exp(x))
SMOOTH = {
    "polynomial": 3 * x**3 - x**2 / 2 + sp.Rational(1, 3),
    "quotient": (x - 1) / (x**2 + 2),
    "exp": sp.exp(-(x**2) / 2),
    "log": sp.log(x**2 + sp.Rational(1, 10)),
    "log1p": sp.log(1 + x**2),
    "sqrt": sp.sqrt(x**2 + 1),
    "rsqrt": 1 / sp.sqrt(x**2 + 1),
    "power": (x**2 + 1) ** sp.Rational(1, 3),
    "power three halves": (x**2 + 1) ** sp.Rational(-3, 2),
    "tanh": sp.tanh(x),
    "tanh by exp": (sp.exp(x) - sp.exp(-x)) / (sp.exp(x) + sp.exp(-x)),
    "scaled tanh": sp.Rational(17159, 10000) * sp.tanh(2 * x / 3),
    "erf": sp.erf(x),
    "erfc": sp.erfc(x),
    "gelu": x * (1 + sp.erf(x / sp.sqrt(2))) / 2,
    "gelu by tanh": x / 2 * (1 + sp.tanh(sp.sqrt(2 / sp.pi) * (x + 0.044715 * x**3))),
    "quick gelu": x / (1 + sp.exp(-1.702 * x)),
    "sigmoid": sigmoid,
    "sigmoid other way": sp.exp(x) / (1 + sp.exp(x)),
    "silu": x * sigmoid,
    "softplus": softplus,
    "softplus 2": sp.log(1 + sp.exp(2 * x)) / 2,
    "log sigmoid": sp.log(sigmoid),
    "mish": x * sp.tanh(softplus),
    "mish by exp": x * ((1 + sp.exp(x)) ** 2 - 1) / ((1 + sp.exp(x)) ** 2 + 1),
    "log cosh": sp.log(sp.cosh(x)),
    "sech": sp.sech(x) ** 2,
    "gudermann": 2 * sp.atan(sp.tanh(x / 2)),
    "sin": sp.sin(x),
    "snake": x + sp.sin(3 * x) ** 2 / 3,
    "cos": sp.cos(5 * x + 1),
    "atan": sp.atan(x),
    "asinh": sp.asinh(x),
    "softsign": x / (1 + sp.Abs(x)),
    "relu": sp.Max(x, 0),
    "relu6": sp.Min(sp.Max(x, 0), 6),
    "leaky": sp.Piecewise((x, x > 0), (x / 100, True)),
    "elu": sp.Piecewise((x, x > 0), (sp.exp(x) - 1, True)),
    "selu": 1.0507 * sp.Piecewise((x, x > 0), (1.67326 * (sp.exp(x) - 1), True)),
    "celu": sp.Max(0, x) + sp.Min(0, 2 * (sp.exp(x / 2) - 1)),
    "hard swish": x * sp.Min(sp.Max(x + 3, 0), 6) / 6,
    "hard tanh": sp.Piecewise((-1, x < -1), (1, x > 1), (x, True)),
    "abs": sp.Abs(x),
    "sign": sp.sign(x),
    "heaviside": sp.Heaviside(x),
    "conditions": sp.Piecewise(
        (1, sp.And(x > -1, x <= 1)), (2, sp.Or(x < -3, sp.Ne(x, 4))), (3, True)
    ),
    "gumbel": sp.exp(-sp.exp(-x)),
    "constant": sp.pi / 2 + 0 * x,
    "squared relu": sp.Max(x, 0) ** 2,
}
GRID = np.concatenate([np.linspace(-12, 12, 481), [-300, -90, -45.5, -20, 20, 45.5, 90, 300]])


def exact(expr: sp.Expr, points: NDArray[np.float32]) -> NDArray[np.float64]:
    compiled = sp.lambdify(x, expr, "mpmath")
    with mpmath.workdps(150):
        return np.array([float(compiled(mpmath.mpf(float(p)))) for p in points])


def check(expr: sp.Expr) -> None:
    points = GRID[np.abs(GRID) < (20 if expr.has(sp.sin, sp.cos) else 400)].astype(
        np.float32
    ) + np.float32(1e-3)
    expr = expr.replace(sp.DiracDelta, lambda *_: sp.S.Zero)
    want = exact(expr, points)
    seen = np.abs(want) < 3e38
    with np.errstate(all="ignore"):
        got = pointwise(expr, [x], points.reshape(1, 1, -1), shape=(1, 1, points.size))[0, 0]
    assert np.isfinite(got[seen]).all(), points[seen][~np.isfinite(got[seen])]
    np.testing.assert_allclose(got[seen], want[seen], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SMOOTH)
def test_expression(name: str) -> None:
    check(SMOOTH[name])


@pytest.mark.parametrize("name", SMOOTH)
def test_derivative(name: str) -> None:
    check(sp.diff(SMOOTH[name], x))


@pytest.mark.parametrize(
    "name", ["sigmoid", "silu", "softplus", "mish", "gelu", "tanh", "quick gelu"]
)
def test_second_derivative(name: str) -> None:
    check(sp.diff(SMOOTH[name], x, 2))


def test_several_arguments_and_broadcasting() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=s).astype(np.float32) for s in ((3, 5, 70), (3, 1, 70), (3, 5, 1)))
    d = rng.normal(size=(1, 1, 70)).astype(np.float32)
    w = sp.Symbol("w", real=True)
    got = pointwise(x * y + sp.tanh(z) / (1 + sp.exp(-w - x)), [x, y, z, w], a, b, c, d)
    want = a * b.astype(float) + np.tanh(c) / (1 + np.exp(-d - a.astype(float)))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_gates_of_two_variables_stay_finite() -> None:
    size = np.array([-300, -80, -1, 0, 1, 80, 300], np.float32)
    a, b = (m.reshape(1, 1, -1).copy() for m in np.meshgrid(size, size))
    for expr, want in (
        (sp.exp(x) / (sp.exp(x) + sp.exp(y)), lambda p, q: 1 / (1 + np.exp(q - p))),
        (
            x / (1 + sp.exp(-x)) / (1 + sp.exp(-y)),
            lambda p, q: p / (1 + np.exp(-p)) / (1 + np.exp(-q)),
        ),
        (sp.log(sp.exp(x) + sp.exp(y)), np.logaddexp),
    ):
        with np.errstate(over="ignore"):
            answer = want(a.astype(float), b.astype(float))
        np.testing.assert_allclose(pointwise(expr, [x, y], a, b), answer, rtol=1e-5, atol=1e-5)


def test_same_bits_for_any_thread_count() -> None:
    value = np.random.default_rng(1).normal(size=(9, 3, 130)).astype(np.float32)
    threads = jit.get_threads()
    try:
        jit.set_threads(1)
        one = pointwise(SMOOTH["mish"], [x], value)
        jit.set_threads(3)
        three = pointwise(SMOOTH["mish"], [x], value)
    finally:
        jit.set_threads(threads)
    assert np.array_equal(one, three)


def test_common_subexpressions_and_registers_are_shared() -> None:
    program = compile_pointwise(sp.tanh(x) ** 2 + sp.tanh(x) * sp.erf(sp.tanh(x)), [x])
    assert len(program.code) == 6
    chain = x
    for _ in range(40):
        chain = sp.sin(chain + 1)
    assert compile_pointwise(chain, [x]).registers <= 4


def test_errors() -> None:
    with pytest.raises(UnsupportedError, match="loggamma"):
        compile_pointwise(sp.loggamma(x), [x])
    with pytest.raises(UnsupportedError, match="no value for y"):
        compile_pointwise(x + y, [x])
    with pytest.raises(UnsupportedError, match="real"):
        compile_pointwise(x + sp.I, [x])
    with pytest.raises(ShapeError):
        pointwise(x + y, [x, y], np.zeros((1, 1, 3), np.float32), np.zeros((1, 1, 4), np.float32))
