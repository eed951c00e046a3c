"""The pointwise register machine: any elementary expression over values, interpreted a chunk of lanes at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import sympy as sp
from numpy.typing import NDArray

from varflow.errors import ShapeError
from varflow.simulate import elementary as fn
from varflow.simulate.handlers import (
    call_five,
    handler,
    pointer,
    pointer_to_doubles,
    pointer_to_integers,
)
from varflow.simulate.jit import Number, device, inline
from varflow.simulate.lanes import BY_NAME
from varflow.simulate.recycle import empty
from varflow.simulate.steps import BASE, INDEX, LOADED, REGISTERS, TARGET, TOTAL, Steps, run_alone
from varflow.simulate.vm import OP, OPCODES, VMProgram, compile_pointwise

Value = NDArray[np.float32]

F = np.float32
LANES = 512
LOAD, ADD, SUB, MUL, DIV, MIN, MAX = (
    OP[n] for n in ("load", "add", "sub", "mul", "div", "min", "max")
)
POW, LT, LE, SELECT, SQRT = (OP[n] for n in ("pow", "lt", "le", "select", "sqrt"))
EXP, LOG, LOG1P, TANH, ERF, ERFC = (OP[n] for n in ("exp", "log", "log1p", "tanh", "erf", "erfc"))
SIN, COS, ATAN, ASINH, ABS, SIGN = (OP[n] for n in ("sin", "cos", "atan", "asinh", "abs", "sign"))


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


CHANNELS, REGISTER_COUNT, RESULT, INPUTS, CONSTANTS, LINES, CODE = range(7)
"""Words of an expression: channels of its value, registers, the result's, inputs, constants, lines of code; from CODE
on five words a line (address of the operation or 0 for a load, target, operands), then for each input INPUT words."""
INPUT = 5
"""Bytes before an input and from draw to draw, strides of place and channel, and whether a draw has the full shape."""


@device
def run_load(
    to: Number, source: Number, place: Number, channel: Number, first: Number, size: Number, channels: Number
) -> None:
    """Lanes first.. of a broadcast input, whose places and channels are ``place`` and ``channel`` entries apart."""
    out, data = pointer(to), pointer(source)
    row = first // channels
    column = first - row * channels
    for i in range(size):
        out[i] = data[row * place + column * channel]
        column += 1
        if column == channels:
            column = 0
            row += 1


@device
def fill_constants(own: Number, constants: Number, count: Number) -> None:
    """Constants into the first registers."""
    values = pointer_to_doubles(constants)
    for k in range(count):
        lanes = pointer(own + 4 * LANES * k)
        for i in range(LANES):
            lanes[i] = F(values[k])


@handler
def expression(words: Number, reals: Number, context: Number) -> None:
    """An expression of values; ``words`` as listed above, the reals are its constants.

    Inputs of the full shape are read in place, the result is written there.
    """
    w, c = pointer_to_integers(words), pointer_to_integers(context)
    count, lines, channels = w[REGISTER_COUNT], w[LINES], w[CHANNELS]
    at, own = pointer_to_integers(c[REGISTERS]), c[REGISTERS] + (8 * count + 63) // 64 * 64
    target, total, base, d = c[TARGET], c[TOTAL], c[BASE], c[INDEX]
    if c[LOADED] != words:
        fill_constants(own, reals, w[CONSTANTS])
        c[LOADED] = words
    for k in range(count):
        at[k] = own + 4 * LANES * k
    for first in range(0, total, LANES):
        size = min(LANES, total - first)
        for s in range(lines):
            line = CODE + 5 * s
            to = w[line + 1]
            if w[line] == 0:
                k = CODE + 5 * lines + INPUT * w[line + 2]
                source = base + w[k] + d * w[k + 1]
                at[to] = source + 4 * first if w[k + 4] else own + 4 * LANES * to
                if not w[k + 4]:
                    run_load(at[to], source, w[k + 2], w[k + 3], first, size, channels)
            else:
                at[to] = own + 4 * LANES * to if s < lines - 1 else target + 4 * first
                call_five(w[line], at[to], at[w[line + 2]], at[w[line + 3]], at[w[line + 4]], size)
        if lines == 0 or w[CODE + 5 * (lines - 1)] == 0:
            out, data = pointer(target + 4 * first), pointer(at[w[RESULT]])
            for i in range(size):
                out[i] = data[i]


def write_expression(
    steps: Steps, program: VMProgram, channels: int, inputs: Sequence[tuple[int, int, int, int, int]], **target: Any
) -> None:  # fmt: skip
    """The step that evaluates a program; ``inputs``: INPUT words each, ``target``: see `Steps.add`."""
    code = [n for line in program.code for n in _line(line)]
    words = [channels, program.registers, program.result, len(inputs), program.constants.size, len(program.code), *code]
    steps.needs(REGISTERS, 8 * program.registers + 64 + 4 * LANES * program.registers)
    words += [n for k in inputs for n in k]
    steps.add(expression, words, [float(x) for x in program.constants], **target)


def _line(line: NDArray[np.int32]) -> list[int]:
    op, *rest = (int(n) for n in line)
    return [0 if op == LOAD else BY_NAME[OPCODES[op]].address, *rest]


def input_words(address: int, given: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int, int, int, int]:
    """How a value (draws, places, channels) at an address is read where one of ``shape`` is made.

    Raises ShapeError where it does not broadcast.
    """
    if len(given) != 3 or any(n not in (1, m) for n, m in zip(given, shape, strict=True)):
        raise ShapeError(f"a value of shape {given} does not broadcast to {shape}")
    d, p, c = given
    strides = (4 * p * c if d > 1 else 0, c if p > 1 else 0, 1 if c > 1 else 0)
    return address, *strides, int((p, c) == tuple(shape[1:]))


def run(program: VMProgram, *values: Value, shape: tuple[int, int, int] | None = None) -> Value:
    """The program over values (draws, places, channels); an axis of length 1 is broadcast.

    ``shape`` is needed only where no value has the full shape. Raises ShapeError where shapes do not fit.
    """
    if len(values) != program.inputs:
        raise ShapeError(f"the program takes {program.inputs} values, not {len(values)}")
    arrays = [np.ascontiguousarray(v, np.float32) for v in values]
    target = shape or tuple(max(sizes) for sizes in zip(*(a.shape for a in arrays), strict=True))
    out = empty(target)
    steps, total = Steps(), target[1] * target[2]
    inputs = [input_words(a.ctypes.data, a.shape, target) for a in arrays]
    write_expression(steps, program, target[2], inputs, target=out.ctypes.data, stride=4 * total, total=total)
    run_alone(steps, target[0])
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
