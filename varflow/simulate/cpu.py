"""The program on the processor: each draw's weights, inputs and masks, forward and backward, with kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.errors import InputError, UnsupportedError
from varflow.program import (
    Bias,
    Blend,
    Concat,
    Contract,
    Cotangent,
    Deal,
    Embed,
    Flatten,
    Input,
    Mask,
    Mix,
    Permute,
    Pointwise,
    PositionExpand,
    PositionMean,
    Program,
    Scores,
    Slice,
    Softmax,
    SoftmaxBackward,
    Standardize,
    StandardizeBackward,
    Unflatten,
    WindowMax,
    WindowMaxBackward,
)
from varflow.simulate import kernels, kernels_attention, patches, windows
from varflow.simulate.correlations import eigenvalue_roots
from varflow.simulate.crew import breathe, cut, in_turn, physical_memory
from varflow.simulate.jit import get_threads, set_threads
from varflow.simulate.kernels import RandomMatrix
from varflow.simulate.kernels_kept import drawn, multiplied
from varflow.simulate.kernels_pointwise import pointwise
from varflow.simulate.kernels_pool import group_standardize, group_standardize_backward
from varflow.simulate.kernels_standardize import standardize, standardize_backward
from varflow.simulate.kernels_window import RandomTaps
from varflow.simulate.plan import LARGE_BATCH, Orthogonal, Plan, Step, make_plan, samples_of
from varflow.simulate.recycle import recycling
from varflow.simulate.rng import sample
from varflow.simulate.sizes import number
from varflow.simulate.statistics import BLOCK, Rows, Statistics
from varflow.simulate.tape import Tape, fits
from varflow.symbols import arg
from varflow.window import Window

Value = NDArray[np.float32]

MEMORY = 256 * 2**20
"""Bytes that the values of one chunk of draws may occupy."""
MOST_DRAWS = 1024
SHARE = 1 / 8
"""Share of the machine's memory that chunks on several threads may occupy together, where one draw needs more."""


class Chunk:
    """Consecutive draws carried through the program together; values are (draws, samples x positions, channels)."""

    def __init__(self, plan: Plan, seed: int, first_draw: int, draws: int) -> None:
        self.plan, self.draws = plan, draws
        self.place: dict[str, Any] = {"seed": seed, "first_draw": first_draw}
        self.values: dict[int, Value] = {}
        self.stored: dict[str, Value] = {}
        self.revealed: dict[str, patches.Known] = {}

    def rows(self) -> Rows:
        """Moments of every measured value, draw by draw."""
        plan = self.plan
        rows = np.zeros((self.draws, plan.column_count, 3))
        for step in plan.steps:
            breathe()
            value = self._value(step, [self.values[a] for a in step.instruction.args])
            self.values[step.value] = value
            if step.column is not None:
                rows[:, step.column] = kernels.moments(value)
            if step.value in plan.given:
                rows[:, plan.given[step.value], 1] = self._given(step)
            for name in step.gradients:
                rows[:, plan.columns["weight", name], 1] = self._weight_gradient(name)
            for dead in step.free:
                del self.values[dead]
        return rows

    def _shape(self, step: Step) -> tuple[int, int, int]:
        return self.draws, self.plan.samples * step.positions, step.channels

    def _full(self, value: Value, channels: int, places: int) -> Value:
        return np.ascontiguousarray(np.broadcast_to(value, (self.draws, places, channels)))

    def _weight_gradient(self, name: str) -> NDArray[np.float64]:
        program, matrix = self.plan.program, self.plan.matrices[name]
        if isinstance(matrix, RandomTaps) or any(program.weight_windows[name]):
            sizes = matrix.sizes if isinstance(matrix, RandomTaps) else (matrix.rows, matrix.columns, 1, 1)
            return windows.gradient_moment(program, name, sizes, self.values, self.plan.samples)
        pairs = program.weight_gradients[name]
        return kernels.weight_gradient_moment([(self.values[row], self.values[column]) for row, column in pairs])

    def _given(self, step: Step) -> NDArray[np.float64]:
        """The second moment of a product averaged over its weight, given the value that it multiplies."""
        product = step.instruction.primitive
        assert isinstance(product, Contract)
        matrix, x = self.plan.matrices[product.weight], self.values[step.instruction.args[0]]
        assert not isinstance(matrix, Orthogonal)
        return windows.expected_moment(x, matrix, product.window, self.plan.samples, product.transpose)

    def _value(self, step: Step, args: list[Value]) -> Value:
        match step.instruction.primitive:
            case Input() | Cotangent() | Bias() | Mask() as source:
                return self._source(source, step)
            case Contract(weight=name, transpose=transpose, window=window):
                if name in self.plan.revealing:
                    return self._collapse(name, transpose, args[0], window, step)
                return self._contract(name, transpose, args[0], window)
            case Pointwise(expr=expr):
                symbols = [arg(i) for i in range(len(args))]
                return pointwise(expr, symbols, *args, shape=self._shape(step))
            case Standardize() as norm:
                run = group_standardize if norm.axis == "group" else standardize
                return run(args[0], **self._norm(norm))
            case StandardizeBackward(forward=norm):
                back = group_standardize_backward if norm.axis == "group" else standardize_backward
                return back(args[0], args[1], **self._norm(norm))
            case Concat():
                return np.concatenate(args, axis=2)
            case Scores() | Blend() | Softmax() | SoftmaxBackward() as primitive:
                return self._attended(primitive, step, args)
            case Mix() | WindowMax() | WindowMaxBackward() | Deal() as primitive:
                return windows.moved(primitive, args)
            case _:
                return self._moved(step, args[0])

    def _attended(self, primitive: Scores | Blend | Softmax | SoftmaxBackward, step: Step, args: list[Value]) -> Value:
        samples, shapes = self.plan.samples, [self.plan.program.shape(a) for a in step.instruction.args]
        full = [self._full(x, int(s.channels), samples * int(s.places)) for x, s in zip(args, shapes, strict=True)]
        return kernels_attention.attended(primitive, full, samples)

    def _norm(self, norm: Standardize) -> dict[str, Any]:
        options = {"center": norm.center, "eps": number(norm.eps, "eps")}
        if norm.axis == "group":
            return options | {"samples": self.plan.samples, "groups": int(norm.groups)}
        if norm.axis == "channel":
            return options | {"axis": "channel", "groups": int(norm.groups)}
        return options | {"axis": "batch"}

    # -- sources -------------------------------------------------------------------------------------

    def _sample(self, kind: str, source: Any, size: int, distribution: str = "normal", **options: Any) -> Value:
        tensor = self.plan.tensors.of(kind, source.name)
        return sample(distribution, (self.draws, size), tensor=tensor, **self.place, **options)

    def _source(self, source: Input | Cotangent | Bias | Mask, step: Step) -> Value:
        draws, places, channels = shape = self._shape(step)
        match source:
            case Input():
                return self._input(source, step)
            case Bias(variance=variance, distribution=distribution):
                std = math.sqrt(number(variance, f"the variance of {source.name!r}"))
                return self._sample("Bias", source, channels, distribution, scale=std).reshape(draws, 1, channels)
            case Mask(keep=keep, per_sample=per_sample):
                p = number(keep, f"the share that {source.name!r} keeps")
                size = self.plan.samples if per_sample else places * channels
                mask = self._sample("Mask", source, size, "bernoulli", parameter=p)
                if per_sample:
                    return np.repeat(mask.reshape(draws, size, 1), step.positions, axis=1)
                return mask.reshape(shape)
        return self._sample("Cotangent", source, places * channels).reshape(shape)

    def _input(self, law: Input, step: Step) -> Value:
        mean = number(law.mean, f"the mean of {law.name!r}")
        variance = number(law.second_moment - law.mean**2, f"the variance of {law.name!r}")
        shape = self._shape(step)
        z = self._sample("Input", law, shape[1] * shape[2], scale=math.sqrt(variance)).reshape(shape)
        z = _correlated(z, law, self.plan.samples, step.positions)
        if mean:
            z += np.float32(mean)
        return z

    # -- weights -------------------------------------------------------------------------------------

    def _contract(self, name: str, transpose: bool, x: Value, window: Window | None) -> Value:
        matrix, samples = self.plan.matrices[name], self.plan.samples
        if isinstance(matrix, Orthogonal):
            if name not in self.stored:
                self.stored[name] = self._haar(matrix)
            x = x if window is None else windows.seen(x, window, samples, transpose)
            return kernels.multiply(x, self.stored[name], transpose=transpose)
        if self.plan.choices.by_weight[name].kept:
            assert isinstance(matrix, RandomMatrix)
            if name not in self.stored:
                self.stored[name] = drawn(matrix, self.draws, **self.place)
            return multiplied(x, self.stored[name], transpose=transpose)
        if isinstance(matrix, RandomTaps) or window is not None or x.shape[1] >= windows.MANY:
            return windows.contract(x, matrix, window, samples, transpose, self.stored, name, self.place)
        return kernels.contract(x, matrix, transpose=transpose, **self.place)

    def _collapse(self, name: str, transpose: bool, x: Value, window: Window | None, step: Step) -> Value:
        """The product in its law given all earlier uses; they are forgotten after the last."""
        uses, matrix = self.plan.revealing[name], self.plan.matrices[name]
        if name not in self.revealed:
            self.revealed[name] = patches.nothing_revealed(matrix, self.draws, uses)
        tensor, samples = uses.tensors[step.value], self.plan.samples
        shape = self.plan.program.shape(step.instruction.args[0])
        x = self._full(x, int(shape.channels), samples * int(shape.places))
        known = self.revealed[name]
        result = patches.collapsed(x, matrix, window, samples, known, tensor, transpose, self.place)
        if step.value == uses.last:
            del self.revealed[name]
        return result

    def _haar(self, m: Orthogonal) -> Value:
        q = kernels.haar(m.rows, m.columns, tensor=m.tensor, draws=self.draws, scale=m.scale, **self.place)
        if m.keep < 1:
            size = (self.draws, m.rows * m.columns)
            mask = sample("bernoulli", size, tensor=m.mask_tensor, parameter=m.keep, **self.place)
            q *= mask.reshape(q.shape)
        return q

    # -- moving coordinates --------------------------------------------------------------------------

    def _moved(self, step: Step, x: Value) -> Value:
        draws, places, channels = self._shape(step)
        match step.instruction.primitive:
            case PositionMean():
                return kernels.position_mean(x, x.shape[1] // self.plan.samples)
            case PositionExpand():
                return kernels.position_expand(x, step.positions)
            case Slice(start=start):
                return np.ascontiguousarray(x[:, :, int(start) : int(start) + channels])
            case Embed(start=start):
                out = np.zeros((draws, places, channels), np.float32)
                out[:, :, int(start) : int(start) + x.shape[2]] = x
                return out
            case Permute(name=name, inverse=inverse):
                order = self._order(name, channels)
                order = np.argsort(order, axis=1) if inverse else order
                return np.take_along_axis(x, order[:, None, :], axis=2)
            case Flatten():
                parts = x.reshape(draws, self.plan.samples, -1, x.shape[2])
                return np.ascontiguousarray(parts.swapaxes(2, 3)).reshape(draws, places, channels)
            case Unflatten():
                parts = x.reshape(draws, self.plan.samples, channels, step.positions)
                return np.ascontiguousarray(parts.swapaxes(2, 3)).reshape(draws, places, channels)
            case other:
                raise UnsupportedError(f"the simulator knows no {type(other).__name__}")

    def _order(self, name: str, channels: int) -> NDArray[np.int64]:
        """The permutation of this name, one for each draw."""
        tensor = self.plan.tensors.of("Permute", name)
        keys = sample("uniform", (self.draws, channels), tensor=tensor, **self.place)
        return np.argsort(keys, axis=1, kind="stable")


def _correlated(z: Value, law: Input, samples: int, positions: int) -> Value:
    """Independent entries made correlated between positions and between samples.

    Raises InputError for correlations that are no covariance.
    """
    roots = eigenvalue_roots(law, samples, positions)
    if roots is None:
        return z
    parts = z.reshape(z.shape[0], samples, positions, -1).astype(np.float64)
    by_sample = parts.mean(axis=2, keepdims=True)
    overall = by_sample.mean(axis=1, keepdims=True)
    mixed = roots[0] * (parts - by_sample) + roots[1] * (by_sample - overall) + roots[2] * overall
    return np.ascontiguousarray(mixed.reshape(z.shape), np.float32)


class Simulator:
    """A program ready to be drawn from; see `simulate`."""

    def __init__(
        self,
        program: Program,
        *,
        seed: int = 0,
        samples: int | None = None,
        nodes: Collection[str] | None = None,
        weights: bool = False,
        method: str = "auto",
        threads: int | None = None,
        large_batch: int = LARGE_BATCH,
        given: bool = False,
        memory: int = MEMORY,
    ) -> None:
        self.seed, self.threads = seed, threads
        batch = samples_of(program, large_batch)
        if batch is not None and samples not in (None, batch):
            raise InputError(f"{samples} samples for batch norms of {batch}", instead="no number of samples")
        self.plan = make_plan(program, batch or samples or 1, nodes, weights, method, given)
        self.tape = Tape(self.plan) if fits(self.plan) else None
        self.memory = memory

    def rows(self, first_draw: int, draws: int) -> Rows:
        """Moments of every measured value in consecutive draws, carried through the program together."""
        if self.tape is not None:
            return self.tape.rows(self.seed, first_draw, draws)
        with recycling(), np.errstate(all="ignore"):
            return Chunk(self.plan, self.seed, first_draw, draws).rows()

    def run(
        self, draws: int, first_draw: int = 0, after_chunk: Callable[[Statistics], None] | None = None
    ) -> Statistics:
        """Draws ``first_draw`` to ``first_draw + draws``."""
        result, before = Statistics(self.plan.columns), get_threads()

        def use(start: int, rows: Rows) -> None:
            result.add(rows, start)
            if after_chunk is not None:
                after_chunk(result)

        set_threads(self.threads or before)
        try:
            most, workers = self._cut(draws, get_threads())
            in_turn(self.rows, cut(first_draw, draws, most, workers), workers, use)
        finally:
            set_threads(before)
        return result

    def _cut(self, draws: int, threads: int) -> tuple[int, int]:
        """Most draws of a chunk, and how many chunks at a time: one on each thread, as far as there is memory."""
        if self.tape is not None:
            return max(1, min(MOST_DRAWS, self.memory // max(self.tape.bytes_per_draw, 1))), 1
        size, room = max(self.plan.bytes_per_draw, 1), max(self.memory, int(SHARE * physical_memory()))
        workers = max(1, min(threads, draws, room // size))
        return max(1, min(MOST_DRAWS, self.memory // (workers * size))), workers


def simulate(
    program: Program, draws: int, *, seed: int = 0, first_draw: int = 0, threads: int | None = None,
    method: str = "auto", samples: int | None = None, values: Collection[str] | None = None, weights: bool = False,
    large_batch: int = LARGE_BATCH, memory: int = MEMORY,
) -> Statistics:  # fmt: skip
    """Moments of nodes' values and gradients over independent draws of weights, inputs, masks and cotangents.

    A draw carries ``samples`` inputs (1 unless said; the batch size where there is a batch norm, ``large_batch``
    where that states none) through one network. ``values`` names the nodes to measure (None: all); ``weights``
    adds the gradients of weights. ``method``: "sampled" draws every weight; "collapsed" draws what Gaussian weights
    do to the columns they meet, in the same law; "auto" does for each weight what is cheaper. Random numbers depend
    on (seed, draw, name of the tensor, element) alone: ``threads`` and ``memory`` (bytes for the values of a chunk of
    draws) change no bit, and statistics of disjoint ranges of draws merge to those of the whole.
    Raises InputError for symbols without numbers, UnsupportedError for what cannot be drawn, or not collapsed.
    """
    simulator = Simulator(
        program, seed=seed, samples=samples, nodes=values, weights=weights, method=method, threads=threads,
        large_batch=large_batch, memory=memory,
    )  # fmt: skip
    return simulator.run(draws, first_draw)


__all__ = ["BLOCK", "Simulator", "Statistics", "simulate"]
