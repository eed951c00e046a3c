"""Quantiles of Student's t. Importing scipy.special takes longer than all verdicts of a verification."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

LARGE = 30.0
"""From here on the ratio of neighbouring gamma functions is taken from its series."""
MIDDLE = 8.0
"""t^2 up to which a tail is taken as what is left of the middle."""


@lru_cache(maxsize=4096)
def quantile(alpha: float, freedom: int) -> float:
    """The t with P(|T| > t) = alpha for Student's T of ``freedom`` degrees, to some 1e-13 of it; 0 < alpha < 1."""
    log_t = math.log(-NormalDist().inv_cdf(alpha / 2))
    for _ in range(100):
        t = math.exp(log_t)
        tail, density = _tail(t, freedom)
        step = math.log(tail / alpha) * tail / (2 * density * t)
        log_t += step
        if abs(step) < 1e-15:
            break
    return math.exp(log_t)


def _tail(t: float, freedom: int) -> tuple[float, float]:
    """P(|T| > t), which is I_x(freedom / 2, 1/2) at x = freedom / (freedom + t^2), and the density at t."""
    a, square = freedom / 2, t * t
    x, y = freedom / (freedom + square), square / (freedom + square)
    scale = math.exp(-a * math.log1p(square / freedom)) * _gamma_ratio(a) / math.sqrt(math.pi)
    density = scale / math.sqrt(freedom + square)
    if square > MIDDLE:
        return scale * math.sqrt(y) / a / _fraction(a, 0.5, x), density
    return 1 - scale * math.sqrt(y) * 2 / _fraction(0.5, a, y), density


def _gamma_ratio(a: float) -> float:
    """Gamma(a + 1/2) / Gamma(a)."""
    if a < LARGE:
        return math.gamma(a + 0.5) / math.gamma(a)
    x = 1 / (8 * a)
    coefficients = (869 / 16, -399 / 8, -21 / 8, 5 / 2, 1 / 2, -1, 1)
    series = 39325 / 16
    for c in coefficients:
        series = series * x + c
    return math.sqrt(a) * series


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function I_x(a, b) (DLMF 8.17.22), by the modified Lentz method."""
    found, c, d = 1.0, 1.0, 0.0
    for m in range(100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)) if m else 1.0
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd) if m else (odd,):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            found *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return found
