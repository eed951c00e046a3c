"""The operations of the pointwise machine over lanes: ``out[i] = f(x[i], y[i], z[i])`` for ``size`` entries.

Each is a handler, compiled when the first program asks for it.
"""

from __future__ import annotations

import math

import numpy as np

from varflow.simulate import elementary as fn
from varflow.simulate.handlers import Handler, handler, pointer
from varflow.simulate.jit import Number

F = np.float32


@handler
def add(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a, b = pointer(out), pointer(x), pointer(y)
    for i in range(size):
        o[i] = F(a[i] + b[i])


@handler
def sub(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a, b = pointer(out), pointer(x), pointer(y)
    for i in range(size):
        o[i] = F(a[i] - b[i])


@handler
def mul(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a, b = pointer(out), pointer(x), pointer(y)
    for i in range(size):
        o[i] = F(a[i] * b[i])


@handler
def div(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a, b = pointer(out), pointer(x), pointer(y)
    for i in range(size):
        o[i] = F(a[i] / b[i])


@handler
def least(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a, b = pointer(out), pointer(x), pointer(y)
    for i in range(size):
        p, q = a[i], b[i]
        o[i] = p if p < q else q


@handler
def most(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a, b = pointer(out), pointer(x), pointer(y)
    for i in range(size):
        p, q = a[i], b[i]
        o[i] = p if p > q else q


@handler
def power(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a, b = pointer(out), pointer(x), pointer(y)
    for i in range(size):
        o[i] = fn.power(a[i], b[i])


@handler
def less(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a, b = pointer(out), pointer(x), pointer(y)
    for i in range(size):
        o[i] = F(1.0) if a[i] < b[i] else F(0.0)


@handler
def at_most(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a, b = pointer(out), pointer(x), pointer(y)
    for i in range(size):
        o[i] = F(1.0) if a[i] <= b[i] else F(0.0)


@handler
def select(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    """y where x is not zero, z elsewhere."""
    o, condition, a, b = pointer(out), pointer(x), pointer(y), pointer(z)
    for i in range(size):
        p, q, c = a[i], b[i], condition[i]
        o[i] = q if c == F(0.0) else p


@handler
def sqrt(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a = pointer(out), pointer(x)
    for i in range(size):
        o[i] = F(math.sqrt(a[i]))


@handler
def exp(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a = pointer(out), pointer(x)
    for i in range(size):
        o[i] = fn.exp(a[i])


@handler
def log(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a = pointer(out), pointer(x)
    for i in range(size):
        o[i] = fn.log(a[i])


@handler
def log1p(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a = pointer(out), pointer(x)
    for i in range(size):
        o[i] = fn.log1p(a[i])


@handler
def tanh(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a = pointer(out), pointer(x)
    for i in range(size):
        o[i] = fn.tanh(a[i])


@handler
def erf(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a = pointer(out), pointer(x)
    for i in range(size):
        o[i] = fn.erf(a[i])


@handler
def erfc(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a = pointer(out), pointer(x)
    for i in range(size):
        o[i] = fn.erfc(a[i])


@handler
def sin(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a = pointer(out), pointer(x)
    for i in range(size):
        o[i] = fn.cos_sin(a[i])[1]


@handler
def cos(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a = pointer(out), pointer(x)
    for i in range(size):
        o[i] = fn.cos_sin(a[i])[0]


@handler
def atan(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a = pointer(out), pointer(x)
    for i in range(size):
        o[i] = fn.atan(a[i])


@handler
def asinh(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a = pointer(out), pointer(x)
    for i in range(size):
        o[i] = fn.asinh(a[i])


@handler
def absolute(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a = pointer(out), pointer(x)
    for i in range(size):
        o[i] = abs(a[i])


@handler
def sign(out: Number, x: Number, y: Number, z: Number, size: Number) -> None:
    o, a = pointer(out), pointer(x)
    for i in range(size):
        o[i] = F(1.0) if a[i] > F(0.0) else (F(-1.0) if a[i] < F(0.0) else F(a[i]))


BY_NAME: dict[str, Handler] = {
    "add": add, "sub": sub, "mul": mul, "div": div, "min": least, "max": most, "pow": power, "lt": less, "le": at_most,
    "select": select, "sqrt": sqrt, "exp": exp, "log": log, "log1p": log1p, "tanh": tanh, "erf": erf, "erfc": erfc,
    "sin": sin, "cos": cos, "atan": atan, "asinh": asinh, "abs": absolute, "sign": sign,
}  # fmt: skip
"""By the names of `vm.OPCODES`, all but "load", which the machine does itself."""
