"""The distribution function of two correlated normals, and kernels with kinks away from zero."""

from __future__ import annotations

import pickle
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import varflow as vf
from varflow.binormal import Phi2, by_mpmath, by_numpy
from varflow.laws.expectation import GaussianExpectation
from varflow.laws.numeric import vectorized, with_enough_digits
from varflow.symbols import X

q, c = sp.symbols("q c", positive=True)
h, k, r = sp.symbols("h k r", real=True)
finite = st.floats(-6, 6)


def conditional(a: float, b: float, rho: float) -> Any:
    """int_-oo^a density(x) P(Y <= b | x) dx in thirty digits."""
    with mp.workdps(30):
        spread = mp.sqrt((1 - mp.mpf(rho)) * (1 + mp.mpf(rho)))
        edge = mp.mpf(b) / rho if abs(rho) > 0.1 else mp.mpf(0)
        near = [edge + n * spread for n in (-8, -4, -2, -1, 0, 1, 2, 4, 8)]
        steps = sorted({-mp.mpf(14), *(mp.mpf(n) for n in range(-12, 12, 2)), *near, mp.mpf(a)})
        inside = [s for s in steps if -14 <= s <= a]
        return mp.quad(lambda x: mp.npdf(x) * mp.ncdf((b - rho * x) / spread), inside)


@given(finite, finite, st.floats(-0.999, 0.999))
@settings(max_examples=15, deadline=None)
def test_numbers(a: float, b: float, rho: float) -> None:
    want = conditional(a, b, rho)
    with mp.workdps(30):
        assert abs(by_mpmath(mp.mpf(a), mp.mpf(b), mp.mpf(rho)) - want) < 1e-22
    assert abs(float(by_numpy(a, b, rho)) - float(want)) < 2e-15


@pytest.mark.parametrize("place", [(0, 1, 0.5), (0, -1, 0.5), (1, 0, -0.3), (-0.0, 2, 0.9), (1e-9, -1e-9, 0.4)])
def test_numbers_beside_zero(place: tuple[float, float, float]) -> None:
    assert float(by_numpy(*place)) == pytest.approx(float(conditional(*place)), abs=2e-15)


def test_borders_of_the_correlation() -> None:
    """P(X <= min(h, k)) and P(-k <= X <= h)."""
    one, two = 0.8413447460685429, 0.9772498680518208
    assert np.allclose(by_numpy([1, 1, -1, 2], [1, 2, 1, -1], [1, 1, -1, -1]), [one, one, 0, two - one])
    assert Phi2(h, sp.oo, r) == (1 + sp.erf(h / sp.sqrt(2))) / 2 and Phi2(-sp.oo, k, r) == 0
    assert Phi2(0, 0, r) == sp.Rational(1, 4) + sp.asin(r) / (2 * sp.pi)


def test_one_shape() -> None:
    """Order and signs do not make different objects; numbers, text and pickles agree."""
    a, b = sp.symbols("a b", positive=True)
    assert Phi2(a, b, c) == Phi2(b, a, c)
    assert sp.expand(Phi2(-a, b, c) + Phi2(a, b, -c) - (1 + sp.erf(b / sp.sqrt(2))) / 2) == 0
    assert pickle.loads(pickle.dumps(Phi2(a, b, c))) == Phi2(a, b, c)
    assert "Phi_2" in sp.latex(Phi2(a, b, c) ** 2)
    assert Phi2(1, 2, sp.Rational(1, 3)).n(30) == pytest.approx(conditional(1, 2, 1 / 3), abs=1e-16)


@pytest.mark.parametrize("argument", [h, k, r])
def test_derivatives(argument: sp.Symbol) -> None:
    """Against differences in thirty digits."""
    place = {h: sp.Rational(3, 10), k: sp.Rational(-7, 5), r: sp.Rational(2, 5)}
    step = sp.Rational(1, 10**10)
    up, down = ({**place, argument: place[argument] + s * step} for s in (1, -1))
    difference = (Phi2(h, k, r).subs(up).n(40) - Phi2(h, k, r).subs(down).n(40)) / (2 * step)
    assert abs(Phi2(h, k, r).diff(argument).subs(place).n(30) - difference) < 1e-18


def test_tails_have_their_digits() -> None:
    """P(u > 9, v > 9) as a difference of numbers near one: 2e-24, not 0."""
    formula = 1 - sp.erf(9 / sp.sqrt(2) / sp.sqrt(q)) - 1 + Phi2(9 / sp.sqrt(q), 9 / sp.sqrt(q), c)
    got = with_enough_digits(formula, (q, c))(np.array(1.0), np.array(0.5))
    assert float(got) == pytest.approx(float(conditional(-9, -9, 0.5)), rel=1e-9)


@pytest.mark.parametrize("name", ["hardtanh", "relu6", "hardswish", "hardsigmoid", "softshrink", "hardshrink"])
def test_kernels_are_closed(name: str) -> None:
    """E f(u) f(v) and E f'(u) f'(v) have formulas; at every correlation, +-1 too, they are the integrals."""
    maps = vf.gain(name).maps()
    place = np.array([-1.0, -0.4, 0.0, 0.7, 1.0])
    for kernel in (maps.kernel, maps.derivative_kernel)[: 1 if name == "hardshrink" else 2]:
        assert kernel is not None and not kernel.has(GaussianExpectation) and kernel.has(Phi2)
    assert maps.kernel is not None
    run = vectorized(maps.kernel, tuple(sorted(maps.kernel.free_symbols, key=str)))
    found = run(place, np.full(5, 1.7))
    assert np.all(np.isfinite(found))
    z = np.linspace(-9, 9, 200001)
    act = sp.lambdify(X, vf.gain(name).activation, "numpy")
    weights = np.exp(-z * z / 2) / np.sqrt(2 * np.pi) * (z[1] - z[0])
    for at, sign in ((4, 1), (0, -1)):
        direct = np.sum(act(np.sqrt(1.7) * z) * act(sign * np.sqrt(1.7) * z) * weights)
        assert found[at] == pytest.approx(direct, abs=2e-5)
