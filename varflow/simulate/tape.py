"""Writing a plan as a tape: every value at its place in one buffer, every step as integers for its handler.

Programs of random sources, pointwise steps, splits, concats and products with collapsed or kept weights become tapes;
others are run step by step (`cpu`, `keeping`).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import sympy as sp

from varflow.program import (
    Bias,
    Concat,
    Contract,
    Embed,
    Input,
    Mask,
    Pointwise,
    Slice,
)
from varflow.simulate.handlers import Handler
from varflow.simulate.jit import over_draws
from varflow.simulate.keeping import is_tape
from varflow.simulate.kernels import RandomMatrix
from varflow.simulate.kernels_collapse import layout, write_product
from varflow.simulate.kernels_kept import thin, write_kept
from varflow.simulate.kernels_pointwise import input_words, program_of, write_expression
from varflow.simulate.kernels_tape import gradient, move, normal_source, other_source
from varflow.simulate.plan import Plan, Step
from varflow.simulate.rng import check_counter, distribution_code
from varflow.simulate.sizes import number
from varflow.simulate.statistics import Rows
from varflow.simulate.steps import Buffers, Steps, run_tables
from varflow.symbols import arg

ALIGNMENT = 16
"""Values start at multiples of this many entries, 64 bytes."""


def fits(plan: Plan) -> bool:
    """Whether all of the plan's program can be written as a tape."""
    return not plan.given and is_tape(plan.program, plan.samples, plan.choices.by_weight)


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
    """Every step so far; places and shapes of values, doubles that products keep."""

    plan: Plan
    steps: Steps = field(default_factory=Steps)
    arena: _Arena = field(default_factory=_Arena)
    places: dict[int, int] = field(default_factory=dict)
    shapes: dict[int, tuple[int, int]] = field(default_factory=dict)
    matrices: dict[str, int] = field(default_factory=dict)
    doubles: int = 0
    drawn: dict[str, int] = field(default_factory=dict)
    used: dict[str, list[tuple[bool, int, int]]] = field(default_factory=dict)

    def write(self) -> None:
        """All steps of the plan."""
        for step in self.plan.steps:
            shape = self.shapes[step.value] = self._shape(step)
            place = self.places[step.value] = self.arena.take(shape[0] * shape[1])
            self._step(step, {"column": step.column, "target": 4 * place, "total": shape[0] * shape[1]})
            for name in step.gradients:
                self._gradient(name)
            for dead in step.free:
                self.arena.give(self.places[dead], self.shapes[dead][0] * self.shapes[dead][1])

    def _shape(self, step: Step) -> tuple[int, int]:
        places = self.plan.samples * step.positions
        match step.instruction.primitive:
            case Bias():
                return 1, step.channels
            case Mask(per_sample=True):
                return places, 1
        return places, step.channels

    def _step(self, step: Step, target: dict[str, Any]) -> None:
        match step.instruction.primitive:
            case Pointwise(expr=expr):
                self._pointwise(expr, step, target)
            case Contract(weight=name, transpose=transpose):
                self._product(name, transpose, step, target)
            case Concat() | Slice() | Embed() as primitive:
                self._move(primitive, step, target)
            case source:
                run, words, reals = self._source(source)
                self.steps.add(run, words, reals, **target)

    def _source(self, source: Any) -> tuple[Handler, list[int], tuple[float, ...]]:
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
        run = normal_source if distribution == "normal" else other_source
        return run, [tensor, distribution_code(distribution)], (scale, mean, parameter)

    def _pointwise(self, expr: sp.Expr, step: Step, target: dict[str, Any]) -> None:
        args = step.instruction.args
        program, shape = program_of(expr, tuple(arg(i) for i in range(len(args)))), (1, *self.shapes[step.value])
        inputs = [input_words(4 * self.places[a], (1, *self.shapes[a]), shape) for a in args]
        write_expression(self.steps, program, step.channels, inputs, **target)

    def _move(self, primitive: Concat | Slice | Embed, step: Step, target: dict[str, Any]) -> None:
        rows, channels = self.shapes[step.value]
        args, widths = step.instruction.args, [self.shapes[a][1] for a in step.instruction.args]
        first = 0 if isinstance(primitive, Concat) else int(primitive.start)
        starts = (first, 0) if isinstance(primitive, Slice) else (0, first)
        pieces, at = list[int](), starts[1]
        for a, width in zip(args, widths, strict=True):
            size = channels if isinstance(primitive, Slice) else width
            pieces += [4 * self.places[a], width, starts[0], at, size]
            at += size
        self.steps.add(move, [len(args), rows, channels, int(isinstance(primitive, Embed)), *pieces], **target)

    def _product(self, name: str, transpose: bool, step: Step, target: dict[str, Any]) -> None:
        if name not in self.plan.revealing:
            self._kept(name, transpose, step, target)
            return
        revealing, x = self.plan.revealing[name], step.instruction.args[0]
        matrix, (right, left) = self.plan.matrices[name], revealing.columns
        assert isinstance(matrix, RandomMatrix)
        if name not in self.matrices:
            self.matrices[name] = self.doubles
            self.doubles += right * right + left * left + right * left
        words = layout(right, left, transpose)
        words[3:] = [self.matrices[name] + n for n in words[3:]]
        uses = self.used.setdefault(name, [])
        own, across = ([self._use(u) for u in uses if (u[0] is transpose) is side] for side in (True, False))
        uses.append((transpose, x, step.value))
        place = [*self.shapes[x], step.channels, *words, 0, 4 * self.places[x], 0]
        tensor = revealing.tensors[step.value]
        write_product(self.steps, tensor, matrix.std, place, [*own, *across], len(own), **target)

    def _kept(self, name: str, transpose: bool, step: Step, target: dict[str, Any]) -> None:
        x = step.instruction.args[0]
        if name not in self.drawn:
            self.drawn[name] = self._matrix(name)
        place = [*self.shapes[x], step.channels, int(transpose), 4 * self.drawn[name], 0, 4 * self.places[x], 0]
        write_kept(self.steps, place, **target)

    def _matrix(self, name: str) -> int:
        """Draws a weight's entries where they stay; returns the place."""
        m = self.plan.matrices[name]
        assert isinstance(m, RandomMatrix)
        size = m.rows * m.columns
        place, mask = self.arena.take(size), self.arena.take(size if m.keep < 1 else 0)
        run, code = normal_source if m.distribution == "normal" else other_source, distribution_code(m.distribution)
        target: dict[str, Any] = {"target": 4 * place, "total": size}
        self.steps.add(run, [m.tensor, code], (float(m.std), 0.0, 1.0), **target)
        if m.keep < 1:
            code = distribution_code("bernoulli")
            self.steps.add(other_source, [m.mask_tensor, code], (1.0, 0.0, float(m.keep)), target=4 * mask, total=size)
            self.steps.add(thin, [4 * mask], **target)
            self.arena.give(mask, size)
        return place

    def _use(self, use: tuple[bool, int, int]) -> list[int]:
        _, x, y = use
        return [4 * self.places[x], 0, 4 * self.places[y], 0, self.shapes[x][0]]

    def _gradient(self, name: str) -> None:
        pairs = self.plan.program.weight_gradients[name]
        sizes = [self.shapes[v][1] for v in pairs[0]]
        uses = [n for row, column in pairs for n in self._pair(row, column)]
        self.steps.add(gradient, [self.plan.columns["weight", name], len(pairs), *sizes, *uses])

    def _pair(self, row: int, column: int) -> list[int]:
        return [4 * self.places[row], 4 * self.places[column], self.shapes[row][0]]


class Tape:
    """A plan that one kernel carries out; see `fits`. Buffers belong to threads and serve draw after draw."""

    def __init__(self, plan: Plan) -> None:
        writer = _Writer(plan)
        writer.write()
        self.columns = plan.column_count
        self.steps, self.tables = writer.steps, writer.steps.tables
        self.largest = max((words[4] for words in self.steps.words), default=0)
        self.sizes = (4 * writer.arena.size, writer.doubles)
        self._own = threading.local()

    @property
    def bytes_per_draw(self) -> int:
        """Bytes that one more draw of a chunk takes: its moments, and for the sake of interrupts a share of its values,
        which lie in buffers that all draws of a thread use."""
        return 24 * self.columns + self.sizes[0] // 32

    def rows(self, seed: int, first_draw: int, draws: int) -> Rows:
        """Moments of every measured value, draw by draw."""
        check_counter(seed, first_draw, draws, 0, 2 * self.largest)
        rows = np.zeros((draws, self.columns, 3))
        over_draws(partial(self._piece, rows, seed, first_draw), draws)
        return rows

    def _piece(self, rows: Rows, seed: int, first_draw: int, start: int, stop: int) -> None:
        if not hasattr(self._own, "buffers"):
            self._own.buffers = Buffers(self.steps, *self.sizes)
        run_tables(self.tables, self._own.buffers, rows, seed, first_draw, 1, start, stop)
