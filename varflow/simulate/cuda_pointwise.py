"""The CUDA kernel for pointwise programs: the register machine of `kernels_pointwise`, registers in shared memory.

Every thread keeps its registers in a column of shared memory of its own, where an index known only at run time costs
no more than another one; all threads of a block carry out the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import sympy as sp

from varflow.errors import UnsupportedError
from varflow.simulate.cuda_device import MOST_BLOCKS, SHARED, THREADS, device, kernel, sent
from varflow.simulate.jit import Array, Number
from varflow.simulate.kernels_pointwise import LOAD, SELECT, arithmetic, function, program_of
from varflow.simulate.vm import VMProgram

cuda: Any = import_module("numba.cuda")
types: Any = import_module("numba.cuda.types")

F = np.float32
SLOTS = 6
"""Values that a launch can name; more are read from the last one, where they lie one after another."""


@device
def entry_of(slot: Number, at: Number, a: Array, b: Array, c: Array, d: Array, e: Array, f: Array) -> Any:
    """An entry of the value in a slot."""
    if slot == 0:
        return a[at]
    if slot == 1:
        return b[at]
    if slot == 2:
        return c[at]
    if slot == 3:
        return d[at]
    if slot == 4:
        return e[at]
    return f[at]


@kernel
def pointwise_kernel(
    out: Array, size: Number, channels: Number, code: Array, constants: Array, constant_count: Number,
    result: Number, layouts: Array, a: Array, b: Array, c: Array, d: Array, e: Array, f: Array,
) -> None:  # fmt: skip
    """``layouts`` holds slot, first entry, strides of draw, place and channel, and whether read in place, by input."""
    register = cuda.shared.array(0, types.float32)
    own, width, draw = cuda.threadIdx.x, cuda.blockDim.x, cuda.blockIdx.y
    for k in range(constant_count):
        register[k * width + own] = constants[k]
    for q in range(cuda.blockIdx.x * width + own, size, cuda.gridDim.x * width):
        for s in range(0, code.size - 4, 5):
            op, left, right = code[s], code[s + 2], code[s + 3]
            if op == LOAD:
                k = 6 * left
                at = layouts[k + 1] + draw * layouts[k + 2]
                if layouts[k + 5]:
                    at += q
                else:
                    place = q // channels
                    at += place * layouts[k + 3] + (q - place * channels) * layouts[k + 4]
                value = entry_of(layouts[k], at, a, b, c, d, e, f)
            else:
                x, y = register[left * width + own], register[right * width + own]
                if op < SELECT:
                    value = arithmetic(op, x, y)
                elif op == SELECT:
                    value = register[code[s + 4] * width + own] if x == F(0.0) else y
                else:
                    value = function(op, x)
            register[code[s + 1] * width + own] = value
        out[draw * size + q] = register[result * width + own]


def threads_for(registers: int) -> int:
    """Threads of a block whose registers fit in shared memory.

    Raises UnsupportedError for a program with more registers than a block of 32 threads can hold.
    """
    threads = THREADS
    while threads > 1 and 4 * threads * registers > SHARED:
        threads //= 2
    if threads < min(32, THREADS):
        raise UnsupportedError(
            f"a pointwise expression needs {registers} registers", why=f"CUDA kernels have {SHARED // 128}",
            instead='backend="cpu"',
        )  # fmt: skip
    return threads


@dataclass(frozen=True, eq=False)
class SentProgram:
    """A program, its code and constants on the device."""

    program: VMProgram
    code: Any
    constants: Any


@lru_cache(maxsize=4096)
def sent_program(expr: sp.Expr, arguments: tuple[sp.Symbol, ...]) -> SentProgram:
    """The program of an expression, compiled and sent once."""
    program = program_of(expr, arguments)
    return SentProgram(program, sent(program.code), sent(program.constants))


def run(
    given: SentProgram, out: Any, shape: tuple[int, int, int], values: Sequence[tuple[Any, int, int, int]]
) -> None:
    """The program into (draws, places, channels); a value is (buffer, first entry, places, channels), the last two 1
    where broadcast. Beyond SLOTS distinct buffers it takes the values from the last buffer's beginning."""
    program, (draws, places, channels) = given.program, shape
    buffers: list[Any] = []
    layouts = []
    for data, first, p, c in values:
        slot = next((k for k, b in enumerate(buffers) if b is data), len(buffers))
        if slot == len(buffers):
            buffers.append(data)
        strides = (p * c, c if p > 1 else 0, 1 if c > 1 else 0)
        layouts.append([slot, first, *strides, int((p, c) == (places, channels))])
    if len(buffers) > SLOTS:
        raise UnsupportedError(f"{len(buffers)} values in one CUDA kernel", instead=f"at most {SLOTS}")
    padded = [*buffers, *[out] * (SLOTS - len(buffers))]
    threads, size = threads_for(program.registers), places * channels
    grid = (min(-(-size // threads), MOST_BLOCKS), draws)
    pointwise_kernel[grid, threads, 0, 4 * threads * program.registers](
        out, size, channels, given.code, given.constants, program.constants.size, program.result,
        sent(np.array(layouts, np.int64).reshape(-1, 6)), *padded,
    )  # fmt: skip
