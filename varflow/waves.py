"""Means of cosine and sine over a tail of the standard normal, as sympy functions and as numbers.

With T(a, b) the integral of density(x) exp(i b x) over x > a, CosTail is its real and SinTail its imaginary part;
completing the square gives T(a, b) = exp(-b^2/2) erfc((a - i b)/sqrt 2)/2, and Faddeeva's w(z) = exp(-z^2) erfc(-i z)
(Abramowitz and Stegun 1964, 7.1.3) the form exp(-a^2/2 + i a b) w((b + i a)/sqrt 2)/2, where nothing overflows.
Dawson(x) = exp(-x^2) int_0^x exp(t^2) dt is SinTail(0, sqrt(2) x) sqrt(pi) (ibid. 7.1.17).
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from varflow.binormal import normal_density


class _Real(sp.Function):  # type: ignore[misc]
    """A real, bounded function of real numbers."""

    symbol = ""

    def _eval_is_extended_real(self) -> bool:
        return True

    def _eval_is_finite(self) -> bool:
        return True

    def _eval_evalf(self, prec: int) -> sp.Expr | None:
        """Through ``number``, with so many more bits that those lost by cancellation are there."""
        import mpmath as mp

        if not all(a.is_number for a in self.args):
            return None
        lost = 0
        for _ in range(3):
            with mp.workprec(prec + 20 + lost):
                values = [mp.mpf(a._to_mpmath(prec + 20 + lost)) for a in self.args]
                found, whole = self.number(*values)
                missing = mp.mag(whole) - mp.mag(found) if found else lost + prec
            if missing <= lost:
                break
            lost = int(missing)
        return sp.Float._new(found._mpf_, prec)

    @staticmethod
    def number(*values: Any) -> tuple[Any, Any]:
        """The value by mpmath, and the number that it is a part of."""
        raise NotImplementedError

    def _latex(self, printer: Any, exp: Any = None) -> str:
        inside = "; ".join(printer._print(a) for a in self.args)
        text = rf"{self.symbol}\left({inside}\right)"
        return text if exp is None else rf"{text}^{{{exp}}}"


class Dawson(_Real):
    """Dawson's integral exp(-x^2) int_0^x exp(t^2) dt; odd, and at most 0.5411."""

    nargs = 1
    symbol = "D_{+}"

    @classmethod
    def eval(cls, x: sp.Expr) -> sp.Expr | None:
        """Zero at 0 and at infinity; the sign taken out."""
        if x == 0 or x.is_infinite:
            return sp.S.Zero
        return -cls(-x) if x.could_extract_minus_sign() else None

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """1 - 2 x D(x)."""
        return 1 - 2 * self.args[0] * self

    @staticmethod
    def number(*values: Any) -> tuple[Any, Any]:
        found = dawson_by_mpmath(*values)
        return found, found


class CosTail(_Real):
    """CosTail(a, b) = E[cos(b X) 1(X > a)], X standard normal; even in b.

    A number or a product with a minus sign for a is turned round: CosTail(-a, b) = exp(-b^2/2) - CosTail(a, b).
    """

    nargs = 2
    symbol = r"Q_{\cos}"

    @classmethod
    def eval(cls, a: sp.Expr, b: sp.Expr) -> sp.Expr | None:
        """The elementary cases: a whole or a half line, no wave."""
        if a == sp.oo:
            return sp.S.Zero
        if b == 0:
            return sp.erfc(a / sp.sqrt(2)) / 2
        if a in (0, sp.S.NegativeInfinity):
            return sp.exp(-(b**2) / 2) / (2 if a == 0 else 1)
        if b.could_extract_minus_sign():
            return cls(a, -b)
        if a.as_coeff_Mul()[0].is_negative:
            return sp.exp(-(b**2) / 2) - cls(-a, b)
        return None

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """Minus the density in a; by parts in b."""
        a, b = self.args
        if argindex == 1:
            return -normal_density(a) * sp.cos(a * b)
        return -normal_density(a) * sp.sin(a * b) - b * self

    @staticmethod
    def number(*values: Any) -> tuple[Any, Any]:
        whole = tail_by_mpmath(*values)
        return whole.real, whole


class SinTail(_Real):
    """SinTail(a, b) = E[sin(b X) 1(X > a)], X standard normal; even in a, odd in b."""

    nargs = 2
    symbol = r"Q_{\sin}"

    @classmethod
    def eval(cls, a: sp.Expr, b: sp.Expr) -> sp.Expr | None:
        """The elementary cases and Dawson's integral; signs taken out."""
        if b == 0 or a.is_infinite:
            return sp.S.Zero
        if a == 0:
            return Dawson(b / sp.sqrt(2)) / sp.sqrt(sp.pi)
        if b.could_extract_minus_sign():
            return -cls(a, -b)
        return cls(-a, b) if a.could_extract_minus_sign() else None

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        """Minus the density in a; by parts in b."""
        a, b = self.args
        if argindex == 1:
            return -normal_density(a) * sp.sin(a * b)
        return normal_density(a) * sp.cos(a * b) - b * self

    @staticmethod
    def number(*values: Any) -> tuple[Any, Any]:
        whole = tail_by_mpmath(*values)
        return whole.imag, whole


WAVES = (CosTail, SinTail, Dawson)


def tail_by_mpmath(a: Any, b: Any) -> Any:
    """T(a, b) to the working precision, relative to its size."""
    import mpmath as mp

    more = 2 * max(0, mp.mag(a) if a else 0, mp.mag(b) if b else 0) + 10
    with mp.workprec(mp.mp.prec + more):
        upper = mp.exp(-b * b / 2) * mp.erfc(mp.mpc(abs(a), -b) / mp.sqrt(2)) / 2
        whole = upper if a >= 0 else mp.exp(-b * b / 2) - mp.conj(upper)
    return +whole


def dawson_by_mpmath(x: Any) -> Any:
    """Dawson's integral to the working precision."""
    import mpmath as mp

    more = 2 * max(0, mp.mag(x) if x else 0) + 10
    with mp.workprec(mp.mp.prec + more):
        found = mp.sqrt(mp.pi) / 2 * mp.exp(-x * x) * mp.erfi(x)
    return +found


def cos_by_mpmath(a: Any, b: Any) -> Any:
    """CosTail to the working precision, relative to |T|."""
    return tail_by_mpmath(a, b).real


def sin_by_mpmath(a: Any, b: Any) -> Any:
    """SinTail to the working precision, relative to |T|."""
    return tail_by_mpmath(a, b).imag


BY_MPMATH = {"CosTail": cos_by_mpmath, "SinTail": sin_by_mpmath, "Dawson": dawson_by_mpmath}


def _scaled(a: Any, b: Any) -> Any:
    """exp(a^2/2) T(a, b), a >= 0."""
    import numpy as np
    from scipy.special import wofz

    return np.exp(1j * a * b) * wofz((b + 1j * a) / np.sqrt(2)) / 2


def _tail(log_scale: Any, a: Any, b: Any, gap: Any, whole: Any) -> Any:
    """exp(log_scale) T(a, b) of arrays in doubles, given also log_scale - a^2/2 and log_scale - b^2/2."""
    import numpy as np

    arrays = (np.asarray(v, dtype=float) for v in (log_scale, a, b, gap, whole))
    _, a, b, gap, whole = np.broadcast_arrays(*arrays)
    size = np.abs(a)
    with np.errstate(all="ignore"):
        upper = np.where(np.isinf(size), 0.0, np.exp(gap) * _scaled(np.where(np.isinf(size), 0.0, size), b))
        return np.where(a >= 0, upper, np.exp(whole) - np.conj(upper))


def _plain(a: Any, b: Any) -> Any:
    """T(a, b) of arrays in doubles."""
    import numpy as np

    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return _tail(0.0, a, b, -a * a / 2, -b * b / 2)


def exp_cos_by_numpy(log_scale: Any, a: Any, b: Any, gap: Any, whole: Any) -> Any:
    """exp(log_scale) CosTail(a, b); ``gap`` = log_scale - a^2/2, ``whole`` = log_scale - b^2/2."""
    return _tail(log_scale, a, b, gap, whole).real


def exp_sin_by_numpy(log_scale: Any, a: Any, b: Any, gap: Any, whole: Any) -> Any:
    """exp(log_scale) SinTail(a, b); ``gap`` = log_scale - a^2/2, ``whole`` = log_scale - b^2/2."""
    return _tail(log_scale, a, b, gap, whole).imag


def cos_by_numpy(a: Any, b: Any) -> Any:
    """CosTail of arrays in doubles, to about 1e-15 (1 + |a b|) of |T|."""
    return _plain(a, b).real


def sin_by_numpy(a: Any, b: Any) -> Any:
    """SinTail of arrays in doubles, to about 1e-15 (1 + |a b|) of |T|."""
    return _plain(a, b).imag


def dawson_by_numpy(x: Any) -> Any:
    """Dawson's integral of arrays in doubles."""
    from scipy.special import dawsn

    return dawsn(x)


BY_NUMPY: dict[str, Any] = {"CosTail": cos_by_numpy, "SinTail": sin_by_numpy, "Dawson": dawson_by_numpy,
            "exp_cos_tail": exp_cos_by_numpy, "exp_sin_tail": exp_sin_by_numpy}
