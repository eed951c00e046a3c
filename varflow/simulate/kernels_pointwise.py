"""The pointwise register machine: any elementary expression over values, interpreted a chunk of lanes at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import sympy as sp
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from varflow.errors import ShapeError
from varflow.simulate import elementary as fn
from varflow.simulate.jit import Array, Number, device, inline, kernel, over_draws
from varflow.simulate.vm import OP, VMProgram, compile_pointwise

Value = NDArray[np.float32]

F = np.float32
LANES = 512
LOAD, ADD, SUB, MUL, DIV, MIN, MAX = (
    OP[n] for n in ("load", "add", "sub", "mul", "div", "min", "max")
)
POW, LT, LE, SELECT, SQRT = (OP[n] for n in ("pow", "lt", "le", "select", "sqrt"))
EXP, LOG, LOG1P, TANH, ERF, ERFC = (OP[n] for n in ("exp", "log", "log1p", "tanh", "erf", "erfc"))
SIN, COS, ATAN, ASINH, ABS, SIGN = (OP[n] for n in ("sin", "cos", "atan", "asinh", "abs", "sign"))


def _pointer_to(kind: Any) -> Any:
    """The pointer of an address, as compiled code sees it."""
    pointers: Any = types.CPointer

    def pointer(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return pointers(kind)(types.int64), generate

    return intrinsic(pointer)


pointer: Any = _pointer_to(types.float32)
pointer_to_integers: Any = _pointer_to(types.int64)
pointer_to_words: Any = _pointer_to(types.uint32)
pointer_to_doubles: Any = _pointer_to(types.float64)


@inline
def sign(x: Number) -> Any:
    """-1, 0 or 1."""
    return F(1.0) if x > F(0.0) else (F(-1.0) if x < F(0.0) else F(x))


@inline
def arithmetic(op: Number, x: Number, y: Number) -> Any:
    """The operations of two operands, one lane (CUDA)."""
    if op == ADD:
        return F(x + y)
    if op == SUB:
        return F(x - y)
    if op == MUL:
        return F(x * y)
    if op == DIV:
        return F(x / y)
    if op == MIN:
        return min(x, y)
    if op == MAX:
        return max(x, y)
    if op == LT:
        return F(1.0) if x < y else F(0.0)
    if op == LE:
        return F(1.0) if x <= y else F(0.0)
    return fn.power(x, y)


@inline
def function(op: Number, x: Number) -> Any:
    """The operations of one operand, one lane (CUDA)."""
    if op == SQRT:
        return F(math.sqrt(x))
    if op == EXP:
        return fn.exp(x)
    if op == LOG:
        return fn.log(x)
    if op == LOG1P:
        return fn.log1p(x)
    if op == TANH:
        return fn.tanh(x)
    if op == ERF:
        return fn.erf(x)
    if op == ERFC:
        return fn.erfc(x)
    if op == SIN:
        return fn.cos_sin(x)[1]
    if op == COS:
        return fn.cos_sin(x)[0]
    if op == ATAN:
        return fn.atan(x)
    if op == ASINH:
        return fn.asinh(x)
    if op == ABS:
        return abs(x)
    return sign(x)


@device
def run_binary(op: Number, out: Array, x: Array, y: Array, size: Number) -> None:
    """One step of two operands over ``size`` lanes."""
    if op == ADD:
        for i in range(size):
            out[i] = F(x[i] + y[i])
    elif op == SUB:
        for i in range(size):
            out[i] = F(x[i] - y[i])
    elif op == MUL:
        for i in range(size):
            out[i] = F(x[i] * y[i])
    elif op == DIV:
        for i in range(size):
            out[i] = F(x[i] / y[i])
    elif op == MIN:
        for i in range(size):
            a, b = x[i], y[i]
            out[i] = a if a < b else b
    elif op == MAX:
        for i in range(size):
            a, b = x[i], y[i]
            out[i] = a if a > b else b
    elif op == LT:
        for i in range(size):
            out[i] = F(1.0) if x[i] < y[i] else F(0.0)
    elif op == LE:
        for i in range(size):
            out[i] = F(1.0) if x[i] <= y[i] else F(0.0)
    else:
        for i in range(size):
            out[i] = fn.power(x[i], y[i])


@device
def run_exponential(op: Number, out: Array, x: Array, size: Number) -> None:
    """Exponentials and logarithms over ``size`` lanes."""
    if op == EXP:
        for i in range(size):
            out[i] = fn.exp(x[i])
    elif op == LOG:
        for i in range(size):
            out[i] = fn.log(x[i])
    elif op == LOG1P:
        for i in range(size):
            out[i] = fn.log1p(x[i])
    elif op == TANH:
        for i in range(size):
            out[i] = fn.tanh(x[i])
    elif op == ERF:
        for i in range(size):
            out[i] = fn.erf(x[i])
    else:
        for i in range(size):
            out[i] = fn.erfc(x[i])


@device
def run_unary(op: Number, out: Array, x: Array, size: Number) -> None:
    """The other steps of one operand over ``size`` lanes."""
    if op == SQRT:
        for i in range(size):
            out[i] = F(math.sqrt(x[i]))
    elif op == ABS:
        for i in range(size):
            out[i] = abs(x[i])
    elif op == SIGN:
        for i in range(size):
            out[i] = sign(x[i])
    elif op == SIN:
        for i in range(size):
            out[i] = fn.cos_sin(x[i])[1]
    elif op == COS:
        for i in range(size):
            out[i] = fn.cos_sin(x[i])[0]
    elif op == ATAN:
        for i in range(size):
            out[i] = fn.atan(x[i])
    else:
        for i in range(size):
            out[i] = fn.asinh(x[i])


@device
def run_select(out: Array, condition: Array, x: Array, y: Array, size: Number) -> None:
    """Lanes of x where the condition is not zero, of y elsewhere."""
    for i in range(size):
        a, b, c = x[i], y[i], condition[i]
        out[i] = b if c == F(0.0) else a


@device
def run_load(
    out: Array, data: Array, layout: Array, first: Number, size: Number, channels: Number
) -> None:
    """Lanes first.. of a broadcast input; ``layout`` is a row of `layout_of`."""
    place = first // channels
    channel = first - place * channels
    for i in range(size):
        out[i] = data[place * layout[1] + channel * layout[2]]
        channel += 1
        if channel == channels:
            channel = 0
            place += 1


@device
def run_step(step: Array, to: Number, at: Array, size: Number) -> None:
    """One step, no load; ``to`` is the address of its target, ``at`` those of the registers."""
    op, out, x, y = step[0], pointer(to), pointer(at[step[2]]), pointer(at[step[3]])
    if op < SELECT:
        run_binary(op, out, x, y, size)
    elif op == SELECT:
        run_select(out, x, y, pointer(at[step[4]]), size)
    elif EXP <= op <= ERFC:
        run_exponential(op, out, x, size)
    else:
        run_unary(op, out, x, size)


@device
def evaluate(
    target: Number, total: Number, channels: Number, code: Array, result: Number, inputs: Array, layouts: Array,
    own: Array, at: Array,
) -> None:  # fmt: skip
    """A program over ``total`` entries of one draw, into the address ``target``.

    ``inputs`` are addresses, ``own`` those of the registers, the first of which hold the constants; ``at`` is
    scratch, where each register's value is. Inputs of the full shape are read in place, the result is written there.
    """
    last = code.shape[0] - 1
    for k in range(own.size):
        at[k] = own[k]
    for first in range(0, total, LANES):
        size = min(LANES, total - first)
        for s in range(last + 1):
            to = code[s, 1]
            if code[s, 0] == LOAD:
                k = code[s, 2]
                if layouts[k, 4]:
                    at[to] = inputs[k] + 4 * first
                else:
                    at[to] = own[to]
                    run_load(pointer(own[to]), pointer(inputs[k]), layouts[k], first, size, channels)
            else:
                at[to] = own[to] if s < last else target + 4 * first
                run_step(code[s], at[to], at, size)
        if last < 0 or code[last, 0] == LOAD:
            source, out = pointer(at[result]), pointer(target + 4 * first)
            for i in range(size):
                out[i] = source[i]


@device
def fill_constants(register: Array, own: Array, constants: Array) -> None:
    """Constants into the first registers, and the addresses of all."""
    for k in range(register.shape[0]):
        own[k] = register.ctypes.data + 4 * LANES * k
    for k in range(constants.size):
        for i in range(LANES):
            register[k, i] = constants[k]


@kernel
def _pointwise(
    out: Array, code: Array, constants: Array, registers: Array, result: Number, addresses: Array, layouts: Array,
    channels: Number, start: Number, stop: Number,
) -> None:  # fmt: skip
    register = np.empty((registers, LANES), np.float32)
    own = np.empty(registers, np.int64)
    at = np.empty(registers, np.int64)
    inputs = np.empty(addresses.size, np.int64)
    fill_constants(register, own, constants)
    for d in range(start, stop):
        for k in range(addresses.size):
            inputs[k] = addresses[k] + 4 * d * layouts[k, 0]
        row = out[d]
        evaluate(row.ctypes.data, row.size, channels, code, result, inputs, layouts, own, at)


def layout_of(given: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int, int, int, int]:
    """How a value (draws, places, channels) is read where one of ``shape`` is made: strides of draw, place and channel
    (0 where broadcast), entries of one draw, and whether one draw has the full shape."""
    if len(given) != 3 or any(n not in (1, m) for n, m in zip(given, shape, strict=True)):
        raise ShapeError(f"a value of shape {given} does not broadcast to {shape}")
    d, p, c = given
    strides = (p * c if d > 1 else 0, c if p > 1 else 0, 1 if c > 1 else 0)
    return *strides, p * c, int((p, c) == tuple(shape[1:]))


def run(program: VMProgram, *values: Value, shape: tuple[int, int, int] | None = None) -> Value:
    """The program over values (draws, places, channels); an axis of length 1 is broadcast.

    ``shape`` is needed only where no value has the full shape. Raises ShapeError where shapes do not fit.
    """
    if len(values) != program.inputs:
        raise ShapeError(f"the program takes {program.inputs} values, not {len(values)}")
    arrays = [np.ascontiguousarray(v, np.float32) for v in values]
    target = shape or tuple(max(sizes) for sizes in zip(*(a.shape for a in arrays), strict=True))
    out = np.empty(target, np.float32)
    addresses = np.array([a.ctypes.data for a in arrays], np.int64)
    flat = out.reshape(target[0], -1)
    over_draws(
        _pointwise, target[0], flat, program.code, program.constants, program.registers, program.result,
        addresses, np.array([layout_of(a.shape, target) for a in arrays], np.int64).reshape(-1, 5), target[2],
    )  # fmt: skip
    return out


@lru_cache(maxsize=4096)
def program_of(expr: sp.Expr, arguments: tuple[sp.Symbol, ...]) -> VMProgram:
    """`compile_pointwise`, remembered."""
    return compile_pointwise(expr, arguments)


def pointwise(
    expr: sp.Expr,
    arguments: Sequence[sp.Symbol],
    *values: Value,
    shape: tuple[int, int, int] | None = None,
) -> Value:
    """``expr`` with ``values[k]`` for ``arguments[k]``: see `run` and `compile_pointwise`."""
    return run(program_of(expr, tuple(arguments)), *values, shape=shape)
