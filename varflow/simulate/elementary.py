"""Elementary functions in float32, free of branches, so that loops over them vectorize.

Polynomials are minimax fits; the errors stated are the largest over the whole range, and include rounding.
The same text compiles for the processor and for CUDA.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from varflow.simulate.jit import Number, inline, intrinsic, numbas

types = numbas("numba.types")

F = np.float32
U = np.uint32
J = np.int32

HUGE = F(3.4028235e38)
SMALLEST_NORMAL = F(1.17549435e-38)
LN2 = F(0.6931471805599453)
LN2_HIGH = F(0.693359375)
LN2_LOW = F(-2.12194440e-4)
LOG2_E = F(1.4426950408889634)
ROUNDING = F(12582912.0)
ROUNDING64 = 6755399441055744.0
SQRT_HALF_BITS = U(0x3F3504F3)


def _bits_of(typing: Any, value: Any) -> Any:
    """The 32 bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


def _float_of(typing: Any, bits: Any) -> Any:
    """The float32 of 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


bits_of: Any = intrinsic(_bits_of)
float_of: Any = intrinsic(_float_of)


@inline
def log_normal_range(x: Number) -> Any:
    """log(x) for normal positive x; relative error 1e-7."""
    shifted = U(bits_of(x) - SQRT_HALF_BITS)
    exponent = F(J(J(shifted) >> J(23)))
    y = F(float_of(U(U(shifted & U(0x7FFFFF)) + SQRT_HALF_BITS)) - F(1.0))
    p = F(7.0376836292e-2)
    p = p * y + F(-1.1514610310e-1)
    p = p * y + F(1.1676998740e-1)
    p = p * y + F(-1.2420140846e-1)
    p = p * y + F(1.4249322787e-1)
    p = p * y + F(-1.6668057665e-1)
    p = p * y + F(2.0000714765e-1)
    p = p * y + F(-2.4999993993e-1)
    p = p * y + F(3.3333331174e-1)
    z = y * y
    return F(exponent * LN2_HIGH + (y + (exponent * LN2_LOW + (z * y * p - F(0.5) * z))))


@inline
def log(x: Number) -> Any:
    """log(x), -inf at zero, nan below."""
    small = x < SMALLEST_NORMAL
    scaled = F(x * F(16777216.0)) if small else F(x)
    value = F(log_normal_range(scaled) - (F(16.635532333438686) if small else F(0.0)))
    value = F(x) if x > HUGE else value
    value = F(-np.inf) if x == F(0.0) else value
    return F(np.nan) if not x >= F(0.0) else value


@inline
def exp(x: Number) -> Any:
    """exp(x), relative error 2e-7; saturates at the largest float32 and at zero."""
    bounded = max(min(F(x), F(88.7228)), F(-87.0))
    n = F(F(bounded * LOG2_E + ROUNDING) - ROUNDING)
    y = F(F(bounded - n * LN2_HIGH) - n * LN2_LOW)
    p = F(0.0013956054507688728)
    p = p * y + F(0.008375130372287903)
    p = p * y + F(0.04166608362195616)
    p = p * y + F(0.16666415460366513)
    p = p * y + F(0.5000000168399982)
    p = p * y + F(1.0)
    p = p * y + F(1.0)
    power = float_of(U(U(J(n) + J(126)) << U(23)))
    value = F(F(p * power) * F(2.0))
    value = F(0.0) if x < F(-87.0) else min(value, HUGE)
    return F(x) if math.isnan(x) else value


@inline
def log1p(x: Number) -> Any:
    """log(1 + x) without cancellation near zero (Kahan's correction)."""
    u = F(F(1.0) + x)
    step = F(u - F(1.0))
    value = log(u)
    corrected = F(value * F(F(x) / (F(1.0) if step == F(0.0) else step)))
    return F(x) if step == F(0.0) else (value if u > F(1e7) else corrected)


@inline
def tanh(x: Number) -> Any:
    """tanh(x), relative error 3e-7."""
    size = abs(F(x))
    z = F(x * x)
    p = F(-0.005615599421640141)
    p = p * z + F(0.020552816927567382)
    p = p * z + F(-0.053709837020961965)
    p = p * z + F(0.13330996859828748)
    p = p * z + F(-0.3333325545114423)
    p = p * z + F(1.0)
    outer = F(F(1.0) - F(2.0) / F(exp(F(2.0) * min(size, F(20.0))) + F(1.0)))
    return F(x * p) if size < F(0.625) else (outer if x > F(0.0) else F(-outer))


@inline
def erfc_positive(x: Number) -> Any:
    """erfc(x) for x >= 0; relative error 1e-6 up to 4, 6e-6 at 9, zero above 9.3."""
    y = min(F(x), F(10.0))
    t = F(F(1.0) / F(F(1.0) + F(0.4) * y))
    p = F(0.029024405885281965)
    p = p * t + F(-0.07650050338801812)
    p = p * t + F(-0.05965060217494011)
    p = p * t + F(0.2705227325072964)
    p = p * t + F(-0.06428859196151718)
    p = p * t + F(0.2663974976272324)
    p = p * t + F(0.1781708352866811)
    p = p * t + F(0.23119777395118335)
    p = p * t + F(0.22510099963378016)
    p = p * t + F(2.5483470972297718e-05)
    return F(p * exp(F(-F(y * y))))


@inline
def erfc(x: Number) -> Any:
    """erfc(x), relative error as `erfc_positive`."""
    tail = erfc_positive(abs(F(x)))
    value = tail if x >= F(0.0) else F(F(2.0) - tail)
    return F(x) if math.isnan(x) else value


@inline
def erf(x: Number) -> Any:
    """erf(x), relative error 2e-7."""
    size = abs(F(x))
    z = F(x * x)
    p = F(7.889119685919445e-05)
    p = p * z + F(-0.000802084157174558)
    p = p * z + F(0.005189535405968032)
    p = p * z + F(-0.02685444464987384)
    p = p * z + F(0.11283600178469154)
    p = p * z + F(-0.376126271363069)
    p = p * z + F(1.1283791659138946)
    outer = F(F(1.0) - erfc_positive(size))
    outer = outer if x > F(0.0) else F(-outer)
    value = F(x * p) if size < F(1.0) else outer
    return F(x) if math.isnan(x) else value


@inline
def turn(angle: Number, quadrant: Number) -> Any:
    """(cos, sin) of angle + quadrant pi/2, for abs(angle) <= pi/4; error 6e-8."""
    z = F(angle * angle)
    p = F(-1.9515295891e-4) * z + F(8.3321608736e-3)
    p = p * z + F(-1.6666654611e-1)
    sine = bits_of(F(angle + angle * z * p))
    p = F(2.443315711809948e-5) * z + F(-1.388731625493765e-3)
    p = p * z + F(4.166664568298827e-2)
    cosine = bits_of(F(F(F(1.0) - F(0.5) * z) + z * z * p))
    odd = U(U(0) - U(quadrant & U(1)))
    swap = U(U(sine ^ cosine) & odd)
    sign_sine = U(U(quadrant & U(2)) << U(30))
    sign_cosine = U(U(U(quadrant + U(1)) & U(2)) << U(30))
    return (
        float_of(U(U(cosine ^ swap) ^ sign_cosine)),
        float_of(U(U(sine ^ swap) ^ sign_sine)),
    )


@inline
def cos_sin(x: Number) -> Any:
    """(cos, sin) of x; the range is reduced in float64, error 1e-7 up to 1e6."""
    wide = np.float64(x)
    n = (wide * (2.0 / math.pi) + ROUNDING64) - ROUNDING64
    rest = F(wide - n * (math.pi / 2.0))
    rest = max(min(rest, F(0.8)), F(-0.8))
    return turn(rest, U(np.int64(n)))


@inline
def atan(x: Number) -> Any:
    """atan(x), error 1e-7."""
    size = abs(F(x))
    y = F(F(1.0) / size) if size > F(1.0) else size
    z = F(y * y)
    p = F(0.002903519304770757)
    p = p * z + F(-0.016282880969691032)
    p = p * z + F(0.04303917237364688)
    p = p * z + F(-0.07533660624178037)
    p = p * z + F(0.10654670810151172)
    p = p * z + F(-0.14207132205803702)
    p = p * z + F(0.19993053969868413)
    p = p * z + F(-0.3333309395500187)
    p = p * z + F(1.0)
    angle = F(y * p)
    angle = F(F(math.pi / 2.0) - angle) if size > F(1.0) else angle
    return angle if x > F(0.0) else F(-angle)


@inline
def asinh(x: Number) -> Any:
    """asinh(x), relative error 3e-7."""
    size = abs(F(x))
    z = F(x * x)
    p = F(-0.013125454975837045)
    p = p * z + F(0.028092174107475602)
    p = p * z + F(-0.04436533747906457)
    p = p * z + F(0.07498443809304102)
    p = p * z + F(-0.16666634436571806)
    p = p * z + F(1.0)
    near = size < F(1e4)
    argument = F(size + F(math.sqrt(F(z + F(1.0))))) if near else size
    outer = F(log(argument) + (F(0.0) if near else LN2))
    outer = outer if x > F(0.0) else F(-outer)
    return F(x * p) if size < F(0.5) else outer


@inline
def power(base: Number, exponent: Number) -> Any:
    """base ** exponent for base >= 0 (nan below): relative error 6e-8 abs(exponent log base)."""
    value = exp(F(exponent * log(base)))
    at_zero = F(0.0) if exponent > F(0.0) else (F(1.0) if exponent == F(0.0) else F(np.inf))
    value = at_zero if base == F(0.0) else value
    return F(np.nan) if base < F(0.0) else value
