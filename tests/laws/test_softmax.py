"""Moments of softmax rows: two tokens exactly, the literature's integrals, brute force, limits, printing."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import quad
from scipy.special import expit, roots_hermitenorm

from varflow.errors import UnsupportedError
from varflow.laws import softmax
from varflow.laws.expectation import compile_formula
from varflow.laws.softmax import SoftmaxOverlap, SoftmaxResponse, moments

VARIANCES = (1e-3, 0.3, 1.0, 4.0, 30.0)


@pytest.mark.parametrize("v", [*VARIANCES, 200.0])
def test_two_tokens_are_a_sigmoid(v: float) -> None:
    def over(f: Any) -> float:
        found = quad(lambda z: f(expit(math.sqrt(2 * v) * z)) * math.exp(-z * z / 2), -12, 12, epsabs=1e-14,
                     epsrel=1e-13, limit=800, points=[0])[0]
        return float(found) / math.sqrt(2 * math.pi)

    squares, response = moments(v, 1.0, 2.0)
    assert squares == pytest.approx(over(lambda a: a * a + (1 - a) ** 2), rel=1e-12)
    assert response == pytest.approx(over(lambda a: (2 * a * (1 - a)) ** 2), rel=1e-9)


def test_one_row_by_its_integral() -> None:
    """A2 = T int x M2 M0^(T-1) dx with M_i(x) = E[e^(i l) exp(-x e^l)], by quadrature as it is written."""
    v, tokens = 2.0, 5
    z, w = roots_hermitenorm(120)
    grown, w = np.exp(math.sqrt(v) * z), w / w.sum()

    def integrand(t: float) -> float:
        x = math.exp(t)
        fall = np.exp(-x * grown)
        return float(tokens * x * x * (w @ (grown**2 * fall)) * (w @ fall) ** (tokens - 1))

    assert moments(v, 1.0, tokens)[0] == pytest.approx(quad(integrand, -30, 15, limit=400)[0], rel=1e-7)


@pytest.mark.parametrize(("v", "r", "tokens"), [(1, 0.5, 16), (4, -0.3, 5), (0.3, 0.9, 64), (10, 0.5, 8), (60, 0.7, 12),
                                                (2, -1, 3), (3, 1, 7), (1, 0.01, 3)])
def test_brute_force(v: float, r: float, tokens: int) -> None:
    rng, draws = np.random.default_rng(4), 100_000
    z = rng.standard_normal((2, draws, tokens))
    logits = math.sqrt(v) * np.stack([z[0], r * z[0] + math.sqrt(1 - r * r) * z[1]])
    a, b = np.exp(logits - logits.max(axis=2, keepdims=True))
    a, b = a / a.sum(axis=1, keepdims=True), b / b.sum(axis=1, keepdims=True)
    overlap = (a * b).sum(axis=1)
    traces = overlap - (a * b * (a + b)).sum(axis=1) + overlap**2
    for found, sample in zip(moments(v, r, tokens), (overlap, traces), strict=True):
        error = sample.std() / math.sqrt(draws)
        assert abs(found - sample.mean()) < 5 * error
        assert error < 0.03 * abs(found)


def test_a_finer_rule_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [(v, r, t) for v in VARIANCES for r in (0.3, 1.0, -0.5, 1 - 1e-6) for t in (2.0, 4.0, 128.0)]
    before = [moments(*case) for case in cases]
    moments.cache_clear()
    for name, value in (("STEP", 0.18), ("PER_SIGMA", 0.5), ("FAR", 50.0), ("REACH", 10.5)):
        monkeypatch.setattr(softmax, name, value)
    for case, old in zip(cases, before, strict=True):
        assert moments(*case) == pytest.approx(old, rel=1e-10, abs=1e-13), case
    moments.cache_clear()


def test_limits() -> None:
    v, r, tokens = sp.symbols("v r T", positive=True)
    assert SoftmaxOverlap(0, r, tokens) == 1 / tokens == SoftmaxOverlap(v, 0, tokens)
    assert SoftmaxResponse(0, r, tokens) == (tokens - 1) / tokens**2
    assert (SoftmaxOverlap(v, r, 1), SoftmaxResponse(v, r, 1)) == (1, 0)
    assert moments(0.0, 0.5, 8.0) == (1 / 8, 7 / 64)
    assert moments(1e-9, 1.0, 8.0) == pytest.approx((1 / 8, 7 / 64), rel=1e-6)
    near, at = moments(2.0, 1 - 1e-8, 16.0), moments(2.0, 1.0, 16.0)
    assert near == pytest.approx(at, rel=1e-6)
    squares = moments(3.0, 1.0, 9.0)[0]
    assert moments(3.0, 0.0, 9.0) == pytest.approx((1 / 9, (1 - squares) ** 2 / 8), rel=1e-10)
    assert moments(500.0, 1.0, 4.0)[0] > 0.95
    assert all(map(math.isnan, moments(math.nan, 1.0, 4.0)))
    with pytest.raises(UnsupportedError, match="variance"):
        moments(1e4, 1.0, 4.0)


def test_expressions() -> None:
    v, tokens = sp.symbols("v T", positive=True)
    f = SoftmaxOverlap(v / 2, 1, tokens)
    assert str(f) == "overlap(v/2, T)"
    assert str(SoftmaxResponse(v, sp.Rational(1, 2), 4)) == "response(v, 1/2, 4)"
    assert r"\mathrm{softmax}" in sp.latex(f) and r"\sum_i a_i^2" in sp.latex(f)
    assert r"\sum_i a_i b_i" in sp.latex(SoftmaxOverlap(v, sp.Rational(1, 2), tokens) ** 2)
    assert pickle.loads(pickle.dumps(f)) == f
    assert float(f.subs({v: 2, tokens: 16})) == pytest.approx(moments(1.0, 1.0, 16.0)[0])
    nested = f * SoftmaxOverlap(f, f, tokens) + v
    run = compile_formula(nested, (v, tokens))
    inner = moments(1.0, 1.0, 4.0)[0]
    assert run(2.0, 4.0) == pytest.approx(inner * moments(inner, inner, 4.0)[0] + 2.0, rel=1e-12)
    grid = run(np.array([1.0, 2.0]), 4.0)
    assert grid.shape == (2,) and grid[1] == pytest.approx(run(2.0, 4.0))
