"""The distribution function of two correlated standard normals, as a sympy function and as numbers.

Sources: Owen (1956), Tables for computing bivariate normal probabilities, eq. 2.1 (doubles);
Plackett (1954), d Phi2 / dr = density, integrated over the arc sine of r (any number of digits).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import sympy as sp


def normal_cdf(x: sp.Expr) -> sp.Expr:
    """P(X <= x) of a standard normal."""
    return (1 + sp.erf(x / sp.sqrt(2))) / 2


def normal_density(x: sp.Expr) -> sp.Expr:
    """The density of a standard normal."""
    return sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi)


class Phi2(sp.Function):  # type: ignore[misc]
    """Phi2(h, k, r) = P(X <= h, Y <= k), X and Y standard normal with correlation r in [-1, 1].

    Brought to one shape: h and k in order and without a leading minus sign; at r = 0 and +-1, at h = k = 0 and
    at infinite h or k it is elementary.
    """

    nargs = 3

    @classmethod
    def eval(cls, h: sp.Expr, k: sp.Expr, r: sp.Expr) -> sp.Expr | None:
        """The elementary cases, and the normal shape of the others."""
        if sp.S.NegativeInfinity in (h, k):
            return sp.S.Zero
        if sp.oo in (h, k):
            return normal_cdf(k if h == sp.oo else h)
        if r == 0:
            return normal_cdf(h) * normal_cdf(k)
        if r == 1:
            return normal_cdf(sp.Min(h, k))
        if r == -1:
            return sp.Max(0, normal_cdf(h) - normal_cdf(-k))
        if h == 0 and k == 0:
            return sp.Rational(1, 4) + sp.asin(r) / (2 * sp.pi)
        if h.could_extract_minus_sign():
            return normal_cdf(k) - cls(-h, k, -r)
        if k.could_extract_minus_sign():
            return normal_cdf(h) - cls(h, -k, -r)
        if sp.default_sort_key(k) < sp.default_sort_key(h):
            return cls(k, h, r)
        if 0 in (h, k) and r.could_extract_minus_sign():
            return normal_cdf(k if h == 0 else h) - cls(h, k, -r)
        return None

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """The density in one argument times the conditional probability; in r the density of both."""
        h, k, r = self.args
        rest = sp.sqrt(1 - r**2)
        if argindex == 3:
            gap = h**2 + k**2 - 2 * h * k * r
            return sp.exp(-gap / (2 * (1 - r**2))) / (2 * sp.pi * rest)
        a, b = (h, k) if argindex == 1 else (k, h)
        return normal_density(a) * normal_cdf((b - r * a) / rest)

    def _eval_is_extended_real(self) -> bool:
        return True

    def _eval_is_finite(self) -> bool:
        return True

    def _eval_is_nonnegative(self) -> bool:
        return True

    def _eval_evalf(self, prec: int) -> sp.Expr | None:
        if not all(a.is_number for a in self.args):
            return None
        return sp.Float._new(_at(self, prec), prec)

    def _latex(self, printer: Any, exp: Any = None) -> str:
        h, k, r = (printer._print(a) for a in self.args)
        text = rf"\Phi_2\left({h}, {k}; {r}\right)"
        return text if exp is None else rf"{text}^{{{exp}}}"


MOST_DOUBLINGS = 6


@lru_cache(maxsize=4096)
def _at(value: Phi2, prec: int) -> Any:
    """Phi2 of numbers with so many bits that count: a small one is a difference of large ones. Sympy asks for signs of
    sums of them again and again."""
    import mpmath as mp

    bits = prec + 20
    for _ in range(MOST_DOUBLINGS):
        with mp.workprec(bits):
            found = by_mpmath(*(mp.mpf(a._to_mpmath(bits)) for a in value.args))
        if found > 0 and bits + mp.mag(found) >= prec + 20:
            break
        bits = 2 * bits if found <= 0 else prec + 30 - mp.mag(found)
    return max(found, mp.mpf(0))._mpf_


def by_numpy(h: Any, k: Any, r: Any) -> Any:
    """Phi2 of arrays in doubles, to about 1e-15 (absolute), by Owen's T function."""
    import numpy as np
    from scipy.special import ndtr, owens_t

    h, k, r = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in (h, k, r)))
    r = np.clip(r, -1.0, 1.0)
    with np.errstate(all="ignore"):
        spread = np.sqrt((1 - r) * (1 + r))
        tails = [_owen(a, b - r * a, spread, owens_t) for a, b in ((h, k), (k, h))]
        sides = np.sign(h) * np.sign(k)
        apart = (sides < 0) | ((sides == 0) & (h + k < 0))
        inside = (ndtr(h) + ndtr(k) - apart) / 2 - tails[0] - tails[1]
        central = 0.25 + np.arcsin(r) / (2 * np.pi)
        same, opposite = ndtr(np.minimum(h, k)), np.maximum(0.0, ndtr(h) - ndtr(-k))
    found = np.where((h == 0) & (k == 0), central, inside)
    return np.where(r >= 1, same, np.where(r <= -1, opposite, found))


def _owen(a: Any, gap: Any, spread: Any, owens_t: Any) -> Any:
    """T(a, gap / (a spread)); at a = 0 the limit a -> +0."""
    import numpy as np

    slope = np.where(a == 0, np.copysign(np.inf, gap), gap / (np.where(a == 0, 1.0, a) * spread))
    return owens_t(a, slope)


def by_mpmath(h: Any, k: Any, r: Any) -> Any:
    """Phi2 to the working precision, relative to the larger of it and Phi(-|h|) Phi(-|k|)."""
    import mpmath as mp

    if r < 0:
        return mp.ncdf(h) - _positive(h, -k, -r)
    return _positive(h, k, r)


def _positive(h: Any, k: Any, r: Any) -> Any:
    """Phi2 at r >= 0: what the correlation adds to independence, or takes from equality."""
    import mpmath as mp

    def density(angle: Any) -> Any:
        """exp(-(h^2 + k^2 - 2 h k cos a) / (2 sin^2 a)), r = cos a, without a difference of equal numbers."""
        apart = (h - k) ** 2 / (2 * mp.sin(angle) ** 2) if h != k and angle else mp.mpf(0)
        return mp.exp(-apart - h * k / (2 * mp.cos(angle / 2) ** 2)) if angle or h == k else mp.mpf(0)

    if r >= 1:
        return mp.ncdf(min(h, k))
    angle, right = mp.acos(r), mp.pi / 2
    if r < 0.8:
        steps = [angle, (angle + right) / 2, right]
        return mp.ncdf(h) * mp.ncdf(k) + mp.quad(density, steps) / (2 * mp.pi)
    steps = [mp.mpf(0), *(angle / 4**n for n in reversed(range(7)))]
    return mp.ncdf(min(h, k)) - mp.quad(density, steps) / (2 * mp.pi)


class exp_phi2(sp.Function):  # type: ignore[misc]
    """exp(e) Phi2(h, k; r), given e, h, k, r: a growing factor times the tail that holds it."""

    nargs = 4


DEEP = 45.0
"""What is smaller than the largest value by so many powers of e adds nothing in doubles."""


def exp_phi2_by_numpy(e: Any, h: Any, k: Any, r: Any) -> Any:
    """exp(e) Phi2(h, k; r) of arrays in doubles, relative to itself: exp(e) by Owen's T where Phi2 is no tail, else
    the integral of exp(e - x^2/2) Phi((k - r x)/sqrt(1 - r^2)) over x < h, whose logarithm is concave."""
    import numpy as np

    e, h, k, r = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in (e, h, k, r)))
    plain = np.asarray(by_numpy(h, k, r))
    deep = (plain < 1e-2) & (np.abs(r) < 1) & np.isfinite(e + h + k)
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.asarray(np.exp(e) * plain)
    if deep.any():
        low, high = np.minimum(h, k)[deep], np.maximum(h, k)[deep]
        found[deep] = _tail_integral(e[deep], low, high, r[deep])
    return found


def _tail_integral(e: Any, h: Any, k: Any, r: Any) -> Any:
    """The integral over x = h - t, t > 0, in Gauss-Legendre panels between the mode, the ends and where Phi turns."""
    import numpy as np
    from scipy.special import log_ndtr

    width = np.sqrt((1 - r) * (1 + r))

    def height(t: Any) -> Any:
        x = h - t.T
        return (e - x * x / 2 + log_ndtr((k - r * x) / width)).T

    far = np.abs(h) + np.abs(k) + 60.0
    top = _highest(height, np.zeros_like(far), far)
    level = height(top) - DEEP
    first = np.where(height(0 * top) >= level, 0.0, _crossing(height, level, top, np.zeros_like(top)))
    last = _crossing(height, level, top, top + far)
    with np.errstate(divide="ignore", invalid="ignore"):
        turn, scale = h - k / r, width / np.abs(r)
        turns = [np.nan_to_num(turn + c * scale, posinf=0.0, neginf=0.0) for c in (-8, -2, 0, 2, 8)]
    ends = np.sort([first, top, last, *(np.clip(t, first, last) for t in turns)], axis=0)
    nodes, weights = np.polynomial.legendre.leggauss(32)
    total = np.zeros_like(h)
    for a, b in pairwise(ends):
        t = (a + b)[:, None] / 2 + (b - a)[:, None] / 2 * nodes
        with np.errstate(over="ignore"):
            total += (b - a) / 2 * (np.exp(height(t)) @ weights)
    return total / np.sqrt(2 * np.pi)


def _highest(height: Any, low: Any, high: Any) -> Any:
    """Where a concave function of t is largest, by golden sections."""
    import numpy as np

    golden = (np.sqrt(5) - 1) / 2
    for _ in range(60):
        a, b = high - golden * (high - low), low + golden * (high - low)
        left = height(a) > height(b)
        low, high = np.where(left, low, a), np.where(left, b, high)
    return (low + high) / 2


def _crossing(height: Any, level: Any, inside: Any, outside: Any) -> Any:
    """Where a concave function falls below a level, by bisection; ``outside`` where it does not."""
    import numpy as np

    for _ in range(50):
        middle = (inside + outside) / 2
        above = height(middle) >= level
        inside, outside = np.where(above, middle, inside), np.where(above, outside, middle)
    return outside
