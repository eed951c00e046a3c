"""Writing a plan as a tape: every value at its place in one buffer, every step as integers for `kernels_tape`.

Programs of random sources, pointwise steps and collapsed products become tapes; others are run step by step
(`cpu`). Which of the two depends on the program and the samples alone, not on what is measured.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import sympy as sp
from numpy.typing import NDArray

from varflow.program import Bias, Contract, Cotangent, Input, Instruction, Mask, Pointwise
from varflow.simulate.jit import over_draws
from varflow.simulate.kernels import RandomMatrix
from varflow.simulate.kernels_pointwise import layout_of, program_of
from varflow.simulate.kernels_tape import GRADIENT, POINTWISE, PRODUCT, SOURCE, run_tape
from varflow.simulate.plan import Plan, Step
from varflow.simulate.rng import check_counter, distribution_code
from varflow.simulate.sizes import number
from varflow.simulate.statistics import Rows
from varflow.simulate.vm import VMProgram
from varflow.symbols import arg

Integers = NDArray[np.int64]

ALIGNMENT = 16
"""Values start at multiples of this many entries, 64 bytes."""


def fits(plan: Plan) -> bool:
    """Whether all of the plan's program can be written as a tape."""
    return all(_fits(plan, step) for step in plan.program)


def _fits(plan: Plan, step: Instruction) -> bool:
    match step.primitive:
        case Cotangent() | Bias() | Pointwise():
            return True
        case Input(position_correlation=within, sample_correlation=across):
            alone = (step.shape.places == 1 or within == 0) and (plan.samples == 1 or across == 0)
            return alone or (plan.samples == 1 and step.shape.places == 1)
        case Mask(per_sample=per_sample):
            return not per_sample or bool(step.shape.places == 1)
        case Contract(weight=name):
            source = plan.program.instructions[step.args[0]].primitive
            return plan.choices.collapsed(name) and not isinstance(source, Bias | Mask)
    return False


class _Arena:
    """Places in one buffer, given and taken back."""

    def __init__(self) -> None:
        self.size = 0
        self.gaps: list[tuple[int, int]] = []

    def take(self, size: int) -> int:
        """The first gap that is large enough, or new space."""
        size = _padded(size)
        for k, (start, length) in enumerate(self.gaps):
            if length >= size:
                self.gaps[k : k + 1] = [(start + size, length - size)] if length > size else []
                return start
        self.size += size
        return self.size - size

    def give(self, start: int, size: int) -> None:
        """A place that is free again; neighbouring gaps join."""
        joined: list[tuple[int, int]] = []
        for at, length in sorted([*self.gaps, (start, _padded(size))]):
            if joined and joined[-1][0] + joined[-1][1] == at:
                at, length = joined[-1][0], joined.pop()[1] + length
            joined.append((at, length))
        self.gaps = joined


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(eq=False)
class _Writer:
    """Words and numbers of every step so far; sizes of what the kernel works with."""

    plan: Plan
    arena: _Arena = field(default_factory=_Arena)
    places: dict[int, int] = field(default_factory=dict)
    shapes: dict[int, tuple[int, int]] = field(default_factory=dict)
    words: list[list[int]] = field(default_factory=list)
    numbers: list[tuple[float, float, float]] = field(default_factory=list)
    programs: dict[sp.Expr, tuple[int, int]] = field(default_factory=dict)
    code: list[VMProgram] = field(default_factory=list)
    matrices: dict[str, int] = field(default_factory=dict)
    doubles: int = 0
    used: dict[str, list[tuple[bool, int, int]]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=lambda: [1, 1, 1, 1, 1])

    def write(self) -> None:
        """All steps of the plan."""
        for step in self.plan.steps:
            shape = self.shapes[step.value] = self._shape(step)
            place = self.places[step.value] = self.arena.take(shape[0] * shape[1])
            column = -1 if step.column is None else step.column
            kind, words, numbers = self._step(step)
            self._emit([kind, column, 4 * place, shape[0] * shape[1], *words], numbers)
            for name in step.gradients:
                self._gradient(name)
            for dead in step.free:
                self.arena.give(self.places[dead], self.shapes[dead][0] * self.shapes[dead][1])

    def _emit(self, words: list[int], numbers: Sequence[float] = ()) -> None:
        self.words.append(words)
        a, b, c = (*numbers, 0.0, 0.0, 0.0)[:3]
        self.numbers.append((a, b, c))

    def _grow(self, *sizes: int) -> None:
        self.sizes = [max(a, b) for a, b in zip(self.sizes, sizes, strict=True)]

    def _shape(self, step: Step) -> tuple[int, int]:
        places = self.plan.samples * step.positions
        match step.instruction.primitive:
            case Bias():
                return 1, step.channels
            case Mask(per_sample=True):
                return places, 1
        return places, step.channels

    def _step(self, step: Step) -> tuple[int, list[int], Sequence[float]]:
        match step.instruction.primitive:
            case Pointwise(expr=expr):
                return POINTWISE, self._pointwise(expr, step), ()
            case Contract(weight=name, transpose=transpose):
                matrix = self.plan.matrices[name]
                assert isinstance(matrix, RandomMatrix)
                return PRODUCT, self._product(name, transpose, step), (matrix.std,)
            case source:
                return SOURCE, *self._source(source)

    def _source(self, source: Any) -> tuple[list[int], tuple[float, float, float]]:
        tensor = self.plan.tensors.of(type(source).__name__, source.name)
        distribution, parameter, scale, mean = "normal", 1.0, 1.0, 0.0
        match source:
            case Input():
                mean = number(source.mean, f"the mean of {source.name!r}")
                variance = source.second_moment - source.mean**2
                scale = number(variance, f"the variance of {source.name!r}") ** 0.5
            case Bias():
                distribution = source.distribution
                scale = number(source.variance, f"the variance of {source.name!r}") ** 0.5
            case Mask():
                distribution = "bernoulli"
                parameter = number(source.keep, f"the share that {source.name!r} keeps")
        return [distribution_code(distribution), tensor], (parameter, scale, mean)

    def _pointwise(self, expr: sp.Expr, step: Step) -> list[int]:
        args = step.instruction.args
        if expr not in self.programs:
            self.programs[expr] = (len(self.code), sum(len(p.code) for p in self.code))
            self.code.append(program_of(expr, tuple(arg(i) for i in range(len(args)))))
        k, first = self.programs[expr]
        program, target = self.code[k], (1, *self.shapes[step.value])
        layouts = [n for a in args for n in layout_of((1, *self.shapes[a]), target)]
        self._grow(program.registers, max(len(args), 1), 1, 1, 1)
        return [
            k, step.channels, program.result, first, first + len(program.code), program.registers, len(args),
            *(4 * self.places[a] for a in args), *layouts,
        ]  # fmt: skip

    def _product(self, name: str, transpose: bool, step: Step) -> list[int]:
        revealing, x = self.plan.revealing[name], step.instruction.args[0]
        right, left = revealing.columns
        if name not in self.matrices:
            self.matrices[name] = self.doubles
            self.doubles += right * right + left * left + right * left
        start = self.matrices[name]
        factors = [start, start + right * right]
        uses = self.used.setdefault(name, [])
        own = [u for u in uses if u[0] is transpose]
        across = [u for u in uses if u[0] is not transpose]
        before, opposite = (sum(self.shapes[a][0] for _, a, _ in side) for side in (own, across))
        blocks = [n for u in [*own, *across] for n in self._block(u)]
        uses.append((transpose, x, step.value))
        columns = self.shapes[x][0]
        self._grow(1, 1, columns, max(before + opposite, columns, 1), 1)
        return [
            revealing.tensors[step.value], 4 * self.places[x], columns, self.shapes[x][1], step.channels, len(own),
            before, opposite, right, left, int(transpose), factors[transpose], factors[not transpose],
            start + right * right + left * left, *blocks,
        ]  # fmt: skip

    def _block(self, use: tuple[bool, int, int]) -> list[int]:
        _, x, y = use
        return [4 * self.places[x], 0, 4 * self.places[y], 0, self.shapes[x][0]]

    def _gradient(self, name: str) -> None:
        pairs = self.plan.program.weight_gradients[name]
        sizes = [self.shapes[v][1] for v in pairs[0]]
        uses = [n for row, column in pairs for n in self._pair(row, column)]
        self._grow(1, 1, 1, 1, max(self.shapes[row][0] for row, _ in pairs))
        self._emit([GRADIENT, self.plan.columns["weight", name], 0, 0, *sizes, *uses])

    def _pair(self, row: int, column: int) -> list[int]:
        return [4 * self.places[row], 4 * self.places[column], self.shapes[row][0]]


class Tape:
    """A plan that one kernel carries out; see `fits`. Buffers belong to threads and serve draw after draw."""

    def __init__(self, plan: Plan) -> None:
        writer = _Writer(plan)
        writer.write()
        self.columns = plan.column_count
        self.largest = max((w[3] for w in writer.words), default=0)
        self.tables: tuple[Any, ...] = tuple(_tables(writer))
        self.sizes = (writer.arena.size, writer.doubles)
        self._own = threading.local()

    @property
    def bytes_per_draw(self) -> int:
        """Bytes that one more draw of a chunk takes: its moments, and for the sake of interrupts a share of its values,
        which lie in buffers that all draws of a thread use."""
        return 24 * self.columns + self.sizes[0] // 8

    def rows(self, seed: int, first_draw: int, draws: int) -> Rows:
        """Moments of every measured value, draw by draw."""
        check_counter(seed, first_draw, draws, 0, 2 * self.largest)
        rows = np.zeros((draws, self.columns, 3))
        over_draws(partial(self._piece, rows, np.uint64(seed), np.uint64(first_draw)), draws)
        return rows

    def _piece(
        self, rows: Rows, seed: np.uint64, first_draw: np.uint64, start: int, stop: int
    ) -> None:
        if not hasattr(self._own, "buffers"):
            self._own.buffers = np.empty(self.sizes[0], np.float32), np.empty(self.sizes[1])
        run: Any = run_tape
        run(*self.tables, *self._own.buffers, rows, seed, first_draw, start, stop)


def _tables(writer: _Writer) -> Iterator[NDArray[Any]]:
    """What the kernel takes: words, where each step's start, numbers, code, constants, sizes."""
    yield np.array([n for words in writer.words for n in words], np.int64)
    yield np.cumsum([0, *(len(words) for words in writer.words)], dtype=np.int64)
    yield np.array(writer.numbers, np.float64).reshape(-1, 3)
    yield np.concatenate([np.empty((0, 5), np.int32), *(p.code for p in writer.code)]).astype(
        np.int32
    )
    constants = np.zeros((max(len(writer.code), 1), writer.sizes[0]), np.float32)
    for k, program in enumerate(writer.code):
        constants[k, : program.constants.size] = program.constants
    yield constants
    yield np.array(writer.sizes, np.int64)
