"""Steps of a program run draw after draw by one kernel: each a handler, its words and its reals.

A handler takes three addresses: its words (int64), its reals (float64), and the context, int64 entries of which the
names below say what stands where. Buffers belong to one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.simulate.handlers import (
    Handler,
    call_three,
    pointer,
    pointer_to_doubles,
    pointer_to_integers,
)
from varflow.simulate.jit import Array, Number, kernel, over_draws, reduction
from varflow.simulate.rng import CHUNK
from varflow.simulate.vectors import power_sums

INDEX, PART, SEED, DRAW, BASE, DOUBLES, ROW, TARGET, TOTAL, WORDS, SPARE, SMALL, REGISTERS, LOADED = range(14)
"""The context: number of the draw in this run; of its part; seed and number of the draw for the generator; addresses
of values, of doubles that outlast a step, and of the draw's moments; address and entries of the step's own value;
addresses of the generator's two buffers, of a step's scratch, of the pointwise machine's registers; whose constants
these hold."""
CONTEXT = 14
HEAD = 5
"""Words before a step's own: address of the handler, column of its moments or -1, bytes before its value, bytes from
draw to draw, entries."""
LINE = 64
"""Bytes to which buffers and values are aligned."""
RUN = 2048
"""Entries whose powers are summed in float32."""
TINY, LARGE = 1e-26, 1e30
"""Mean fourth powers outside these are summed in float64."""


@reduction
def powers_precise(address: Number, size: Number) -> Any:
    """Sums of x, x^2 and x^4 in float64."""
    x = pointer(address)
    first = second = fourth = 0.0
    for k in range(size):
        value = np.float64(x[k])
        square = value * value
        first += value
        second += square
        fourth += square * square
    return first, second, fourth


@reduction
def write_moments(address: Number, size: Number, out: Number) -> None:
    """Mean, second and fourth moment of ``size`` entries into three doubles."""
    sums = pointer_to_doubles(out)
    sums[0] = sums[1] = sums[2] = 0.0
    for first in range(0, size, RUN):
        power_sums(address + 4 * first, min(RUN, size - first), out)
    if not TINY * size < sums[2] < LARGE * size:
        sums[0], sums[1], sums[2] = powers_precise(address, size)
    for k in range(3):
        sums[k] /= size


@kernel
def _run_steps(
    table: Array, starts: Array, reals: Array, places: Array, context: Array, parts: Number, rows: Number,
    columns: Number, first_draw: Number, start: Number, stop: Number,
) -> None:  # fmt: skip
    c, address, numbers = context.ctypes.data, table.ctypes.data, reals.ctypes.data
    state = pointer_to_integers(c)
    state[LOADED] = -1
    for d in range(start, stop):
        draw = d // parts
        state[INDEX], state[PART], state[DRAW] = d, d - draw * parts, first_draw + draw
        state[ROW] = rows + 24 * columns * d
        for s in range(starts.size):
            step = address + 8 * starts[s]
            head = pointer_to_integers(step)
            state[TARGET], state[TOTAL] = state[BASE] + head[2] + head[3] * d, head[4]
            call_three(head[0], step + 8 * HEAD, numbers + 8 * places[s], c)
            if head[1] >= 0:
                write_moments(state[TARGET], state[TOTAL], state[ROW] + 24 * head[1])


def aligned(size: int) -> NDArray[np.uint8]:
    """Bytes that start at a multiple of LINE."""
    buffer = np.empty(size + LINE, np.uint8)
    first = -buffer.ctypes.data % LINE
    return buffer[first : first + size]


class Buffers:
    """What one thread works with: values, doubles, scratch, and the context that says where they are."""

    def __init__(self, steps: Steps, values: int = 0, doubles: int = 0) -> None:
        sizes = {BASE: values, DOUBLES: 8 * doubles, WORDS: 4 * CHUNK, SPARE: 4 * CHUNK, **steps.scratch}
        self.own = {slot: aligned(size) for slot, size in sizes.items() if size}
        self.context = np.zeros(CONTEXT, np.int64)
        for slot, buffer in self.own.items():
            self.context[slot] = buffer.ctypes.data


@dataclass(eq=False)
class Steps:
    """Steps as they are written, and the bytes of scratch that they ask for."""

    words: list[list[int]] = field(default_factory=list)
    reals: list[Sequence[float]] = field(default_factory=list)
    scratch: dict[int, int] = field(default_factory=lambda: {SMALL: 0, REGISTERS: 0})

    def add(
        self, run: Handler, words: Sequence[int], reals: Sequence[float] = (), column: int | None = None,
        target: int = 0, stride: int = 0, total: int = 0,
    ) -> None:  # fmt: skip
        """A step; see HEAD."""
        self.words.append([run.address, -1 if column is None else column, target, stride, total, *words])
        self.reals.append(reals)

    def needs(self, slot: int, size: int) -> None:
        """Ask for ``size`` bytes of scratch."""
        self.scratch[slot] = max(self.scratch[slot], size)

    @property
    def tables(self) -> tuple[Any, ...]:
        """What the kernel takes: words and reals, and where those of each step start."""
        return *_joined(self.words, np.int64), *_joined(self.reals, np.float64)


def _joined(rows: Sequence[Sequence[Any]], kind: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    starts = list(accumulate((len(row) for row in rows), initial=0))[:-1]
    flat = [x for row in rows for x in row]
    return np.array(flat or [0], kind), np.array(starts, np.int64)


def run_tables(
    tables: tuple[Any, ...], buffers: Buffers, rows: NDArray[np.float64], seed: int, first_draw: int, parts: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    """The draws start..stop; moments go into ``rows``, (draws, columns, 3)."""
    run: Any = _run_steps
    buffers.context[SEED] = np.uint64(seed).astype(np.int64)
    run(*tables, buffers.context, parts, rows.ctypes.data, rows.shape[1], first_draw, start, stop)


def run_alone(steps: Steps, draws: int, seed: int = 0, first_draw: int = 0, parts: int = 1) -> None:
    """Steps that work on arrays of their own, through addresses; ``parts`` consecutive ones are one draw."""
    over_draws(partial(_piece, steps, steps.tables, seed, first_draw, parts), draws)


def _piece(
    steps: Steps, tables: tuple[Any, ...], seed: int, first_draw: int, parts: int, start: int, stop: int
) -> None:
    run_tables(tables, Buffers(steps), np.empty((0, 0, 3)), seed, first_draw, parts, start, stop)
