"""The program on a GPU: each draw's weights, inputs and masks, forward and backward, with the kernels of ``cuda_*``.

The same plan, the same random words and the same statistics as on the processor (`cpu`); sums run in another order,
so that results agree to rounding. Importing this module needs numba-cuda; `refuse_without_device` says what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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
from varflow.simulate import (
    cuda_attention,
    cuda_moves,
    cuda_paths,
    cuda_pointwise,
    cuda_sources,
    cuda_sums,
)
from varflow.simulate.correlations import eigenvalue_roots
from varflow.simulate.cuda_device import blocks_for, empty, launch, refuse_without_device, sent
from varflow.simulate.cuda_weights import Weights
from varflow.simulate.kernels_window import RandomTaps
from varflow.simulate.plan import LARGE_BATCH, Orthogonal, Plan, Step, make_plan, samples_of
from varflow.simulate.sizes import number
from varflow.simulate.statistics import Rows, Statistics
from varflow.symbols import arg

MEMORY = 2 * 2**30
"""Bytes that the values of one chunk of draws may occupy on the device."""
MOST_DRAWS = 1024
MOST_ROWS = 65535
"""The grid's second axis, along which draws go."""

F = np.float32


@dataclass(frozen=True, eq=False)
class Held:
    """A value of all draws of a chunk on the device: (draws, places, channels); an axis of 1 may be broadcast."""

    data: Any
    places: int
    channels: int

    @property
    def size(self) -> int:
        """Entries of one draw."""
        return self.places * self.channels


class CudaChunk:
    """Consecutive draws carried through the program together, on the device."""

    def __init__(self, plan: Plan, seed: int, first_draw: int, draws: int) -> None:
        self.plan, self.draws = plan, draws
        self.place: dict[str, Any] = {"seed": seed, "first_draw": first_draw}
        self.values: dict[int, Held] = {}
        self.weights = Weights(plan, draws, self.place)
        self.columns = plan.column_count

    def rows(self) -> Rows:
        """Moments of every measured value, draw by draw."""
        plan, size = self.plan, self.draws * self.columns * 3
        rows = sent(np.zeros(size))
        for step in plan.steps:
            value = self._value(step, [self.values[a] for a in step.instruction.args])
            self.values[step.value] = value
            if step.column is not None:
                cuda_sums.moments(value.data, value.size, self.draws, rows, self.columns, step.column)
            if step.value in plan.given:
                self._given(step, rows)
            for name in step.gradients:
                self._weight_gradient(name, rows)
            for dead in step.free:
                del self.values[dead]
        found: Rows = rows.copy_to_host()[:size].reshape(self.draws, self.columns, 3)
        return found

    # -- buffers -------------------------------------------------------------------------------------

    def _shape(self, step: Step) -> tuple[int, int]:
        return self.plan.samples * step.positions, step.channels

    def _new(self, places: int, channels: int) -> Held:
        return Held(empty(self.draws * places * channels), places, channels)

    def _full(self, x: Held, places: int, channels: int) -> Held:
        """A value written out where it was broadcast."""
        if (x.places, x.channels) == (places, channels):
            return x
        y = self._new(places, channels)
        strides = (x.size, x.channels if x.places > 1 else 0, 1 if x.channels > 1 else 0)
        self._copy(x, y, (places, channels), (0, *strides), (0, y.size, channels, 1))
        return y

    def _argument(self, step: Step, k: int) -> Held:
        """An argument of a step, written out."""
        x = self.values[step.instruction.args[k]]
        shape = self.plan.program.shape(step.instruction.args[k])
        return self._full(x, self.plan.samples * int(shape.places), int(shape.channels))

    def _copy(
        self, x: Held, y: Held, sizes: tuple[int, int], source: tuple[int, ...], target: tuple[int, ...]
    ) -> None:
        """Two axes of every draw; ``source`` and ``target`` hold the first entry, then the strides, draws' first."""
        spread = [(first, draw, 0, *rest) for first, draw, *rest in (source, target)]
        cuda_moves.copy(x.data, y.data, (self.draws, 1, *sizes), spread[0], spread[1])

    # -- steps ---------------------------------------------------------------------------------------

    def _value(self, step: Step, args: list[Held]) -> Held:
        match step.instruction.primitive:
            case Input() | Cotangent() | Bias() | Mask() as source:
                return self._source(source, step)
            case Contract():
                x = self._argument(step, 0)
                y = self._new(*self._shape(step))
                self.weights.contract(step, x.data, x.places, y.data)
                return y
            case Pointwise(expr=expr):
                return self._pointwise(expr, step, args)
            case Standardize() as norm:
                return self._standardize(norm, step)
            case StandardizeBackward(forward=norm):
                return self._standardize_backward(norm, step)
            case PositionMean():
                return self._position_mean(step)
            case Scores() | Blend() | Softmax() | SoftmaxBackward() as primitive:
                return self._attended(primitive, step)
            case WindowMax() | WindowMaxBackward() as primitive:
                return self._maximum(primitive, step)
            case Mix() as mix:
                return self._mix(mix, step)
            case Permute(name=name, inverse=inverse):
                return self._permute(name, inverse, step)
            case _:
                return self._moved(step)

    def _pointwise(self, expr: Any, step: Step, args: list[Held]) -> Held:
        y = self._new(*self._shape(step))
        program = cuda_pointwise.sent_program(expr, tuple(arg(i) for i in range(len(args))))
        given = [(x.data, 0, x.places, x.channels) for x in args]
        if len({id(x.data) for x in args}) > cuda_pointwise.SLOTS:
            given = self._side_by_side(args, y)
        cuda_pointwise.run(program, y.data, (self.draws, y.places, y.channels), given)
        return y

    def _side_by_side(self, args: list[Held], y: Held) -> list[tuple[Any, int, int, int]]:
        """Many values written out into one buffer, one after another."""
        total = self.draws * y.size
        together = empty(len(args) * total)
        for k, x in enumerate(args):
            full = self._full(x, y.places, y.channels)
            cuda_moves.copy(full.data, together, (1, 1, 1, total), (0, 0, 0, 0, 1), (k * total, 0, 0, 0, 1))
        return [(together, k * total, y.places, y.channels) for k in range(len(args))]

    def _cells(self, norm: Standardize, step: Step) -> cuda_sums.Cells:
        places, channels = self._shape(step)
        if norm.axis == "sample":
            return cuda_sums.by_channel(self.draws, places, channels)
        alone = norm.axis == "channel"
        samples = places if alone else self.plan.samples
        return cuda_sums.by_group(self.draws, samples, places // samples, channels, int(norm.groups))

    def _standardize(self, norm: Standardize, step: Step) -> Held:
        x, y = self._argument(step, 0), self._new(*self._shape(step))
        options = (int(norm.center), number(norm.eps, "eps"))
        cuda_sums.over_cells(cuda_sums.standardize_kernel, self._cells(norm, step), x.data, y.data, *options)
        return y

    def _standardize_backward(self, norm: Standardize, step: Step) -> Held:
        x, dy, dx = self._argument(step, 0), self._argument(step, 1), self._new(*self._shape(step))
        options = (int(norm.center), number(norm.eps, "eps"))
        run, cells = cuda_sums.standardize_backward_kernel, self._cells(norm, step)
        cuda_sums.over_cells(run, cells, x.data, dy.data, dx.data, *options)
        return dx

    def _position_mean(self, step: Step) -> Held:
        x, y = self._argument(step, 0), self._new(*self._shape(step))
        cells = cuda_sums.by_channel(self.draws * self.plan.samples, x.places // self.plan.samples, x.channels)
        cuda_sums.over_cells(cuda_sums.mean_kernel, cells, x.data, y.data)
        return y

    def _attended(self, primitive: cuda_attention.Attention, step: Step) -> Held:
        y, samples = self._new(*self._shape(step)), self.plan.samples
        args = [self._argument(step, k) for k in range(len(step.instruction.args))]
        tokens = [cuda_attention.Tokens(x.data, x.places // samples, x.channels) for x in args]
        cuda_attention.attended(primitive, y.data, tokens, self.draws, samples)
        return y

    # -- sources -------------------------------------------------------------------------------------

    def _fill(self, kind: str, source: Any, y: Held, distribution: str = "normal", **options: Any) -> None:
        tensor = self.plan.tensors.of(kind, source.name)
        cuda_sources.fill(
            y.data, self.draws, y.size, distribution=distribution, tensor=tensor, **self.place, **options
        )

    def _source(self, source: Input | Cotangent | Bias | Mask, step: Step) -> Held:
        places, channels = self._shape(step)
        match source:
            case Input():
                return self._input(source, step)
            case Bias(variance=variance, distribution=distribution):
                y = self._new(1, channels)
                std = math.sqrt(number(variance, f"the variance of {source.name!r}"))
                self._fill("Bias", source, y, distribution, scale=std)
                return y
            case Mask(keep=keep, per_sample=per_sample):
                y = self._new(self.plan.samples, 1) if per_sample else self._new(places, channels)
                p = number(keep, f"the share that {source.name!r} keeps")
                self._fill("Mask", source, y, "bernoulli", parameter=p)
                return self._expanded(y, step.positions) if per_sample else y
        y = self._new(places, channels)
        self._fill("Cotangent", source, y)
        return y

    def _input(self, law: Input, step: Step) -> Held:
        y = self._new(*self._shape(step))
        mean = number(law.mean, f"the mean of {law.name!r}")
        variance = number(law.second_moment - law.mean**2, f"the variance of {law.name!r}")
        roots = eigenvalue_roots(law, self.plan.samples, step.positions)
        self._fill("Input", law, y, scale=math.sqrt(variance), shift=0.0 if roots else mean)
        if roots:
            run, grid = cuda_sources.correlate_kernel, (blocks_for(y.channels), self.draws)
            launch(run, grid, y.data, self.plan.samples, step.positions, y.channels, *roots, F(mean))
        return y

    # -- moving coordinates --------------------------------------------------------------------------

    def _expanded(self, x: Held, positions: int) -> Held:
        """Each place repeated ``positions`` times."""
        y = self._new(x.places * positions, x.channels)
        sizes = (self.draws * x.places, 1, positions, x.channels)
        cuda_moves.copy(x.data, y.data, sizes, (0, x.channels, 0, 0, 1), (0, positions * x.channels, 0, x.channels, 1))
        return y

    def _moved(self, step: Step) -> Held:
        places, channels = self._shape(step)
        match step.instruction.primitive:
            case Concat():
                return self._concat(step)
            case PositionExpand():
                return self._expanded(self._argument(step, 0), step.positions)
            case Slice(start=start):
                x, y = self._argument(step, 0), self._new(places, channels)
                source = (int(start), x.size, x.channels, 1)
                self._copy(x, y, (places, channels), source, (0, y.size, channels, 1))
                return y
            case Embed(start=start):
                x, y = self._argument(step, 0), self._new(places, channels)
                cuda_moves.zero(y.data, self.draws * y.size)
                self._copy(x, y, (places, x.channels), (0, x.size, x.channels, 1), (int(start), y.size, channels, 1))
                return y
            case Flatten():
                x = self._argument(step, 0)
                return self._turned(step, self.plan.samples, x.places // self.plan.samples, x.channels)
            case Unflatten():
                return self._turned(step, self.plan.samples, channels, step.positions)
            case Deal(count=count, inverse=inverse):
                first = count if inverse else channels // count
                return self._turned(step, places, first, channels // first)
            case other:
                raise UnsupportedError(
                    f"{type(other).__name__} has no CUDA kernel", step.instruction.node, instead='backend="cpu"'
                )

    def _concat(self, step: Step) -> Held:
        y, at = self._new(*self._shape(step)), 0
        for k in range(len(step.instruction.args)):
            x = self._argument(step, k)
            self._copy(x, y, (x.places, x.channels), (0, x.size, x.channels, 1), (at, y.size, y.channels, 1))
            at += x.channels
        return y

    def _turned(self, step: Step, parts: int, rows: int, columns: int) -> Held:
        """In each of the parts of a draw, a matrix of rows and columns transposed."""
        x, y = self._argument(step, 0), self._new(*self._shape(step))
        sizes, size = (self.draws, parts, rows, columns), rows * columns
        cuda_moves.copy(x.data, y.data, sizes, (0, x.size, size, columns, 1), (0, y.size, size, 1, rows))
        return y

    def _permute(self, name: str, inverse: bool, step: Step) -> Held:
        x, y = self._argument(step, 0), self._new(*self._shape(step))
        keys, rank = empty(self.draws * y.channels), empty(self.draws * y.channels, np.int32)
        tensor = self.plan.tensors.of("Permute", name)
        cuda_sources.fill(keys, self.draws, y.channels, distribution="uniform", tensor=tensor, **self.place)
        launch(cuda_sources.rank_kernel, (blocks_for(y.channels), self.draws), keys, rank, y.channels)
        grid = (blocks_for(y.size), self.draws)
        launch(cuda_moves.permute_kernel, grid, x.data, y.data, rank, y.places, y.channels, int(inverse))
        return y

    def _mix(self, mix: Mix, step: Step) -> Held:
        x, y = self._argument(step, 0), self._new(*self._shape(step))
        starts, columns, values, inputs = cuda_paths.mixing_sent(mix)
        grid = (blocks_for(y.size), self.draws)
        arguments = (x.data, y.data, starts, columns, values, inputs, self.plan.samples, y.channels)
        launch(cuda_moves.mix_kernel, grid, *arguments)
        return y

    def _maximum(self, primitive: WindowMax | WindowMaxBackward, step: Step) -> Held:
        window = primitive.window if isinstance(primitive, WindowMax) else primitive.forward.window
        x, samples = self._argument(step, 0), self.plan.samples
        outputs, inputs = window.table().shape[0], x.places // samples
        y = self._new(samples * outputs, x.channels)
        where = empty(self.draws * y.size, np.int32)
        table, back, taps = cuda_paths.windows_sent(window)
        numbers = (outputs, inputs, samples, x.channels)
        grid = (blocks_for(y.size), self.draws)
        launch(cuda_moves.maximum_kernel, grid, x.data, y.data, where, table, window.taps, *numbers)
        if isinstance(primitive, WindowMax):
            return y
        dy, dx = self._argument(step, 1), self._new(x.places, x.channels)
        grid = (blocks_for(dx.size), self.draws)
        launch(cuda_moves.returned_kernel, grid, dy.data, where, dx.data, back, taps, *numbers)
        return dx

    # -- gradients of weights ------------------------------------------------------------------------

    def _weight_gradient(self, name: str, rows: Any) -> None:
        program, samples = self.plan.program, self.plan.samples
        pairs = list(zip(program.weight_gradients[name], program.weight_windows[name], strict=True))
        lefts = [self._written(row) for (row, _), _ in pairs]
        rights = [self._written(column) for (_, column), _ in pairs]
        left, right = self._one_after_another(lefts), self._one_after_another(rights)
        tables = [cuda_paths.met(w, samples, x.places // samples) for (_, w), x in zip(pairs, lefts, strict=True)]
        offsets = np.cumsum([0, *(h.places for h in rights[:-1])])
        seen = np.concatenate([np.where(t < 0, -1, t + o) for t, o in zip(tables, offsets, strict=True)])
        cuda_sums.gradient_moment(
            left.data, right.data, sent(seen.astype(np.int32)), self.weights.sizes(name), left.places, right.places,
            self.draws, rows, self.columns, self.plan.columns["weight", name],
        )  # fmt: skip

    def _given(self, step: Step, rows: Any) -> None:
        """The second moment of a product averaged over its weight, given the value that it multiplies."""
        product, x, samples = step.instruction.primitive, self._argument(step, 0), self.plan.samples
        assert isinstance(product, Contract)
        positions, matrix = x.places // samples, self.plan.matrices[product.weight]
        assert not isinstance(matrix, Orthogonal)
        readers, places = cuda_paths.readers(product.window, positions, product.transpose)
        scale = matrix.std**2 * matrix.keep
        divisor = samples * places * self.weights.sizes(product.weight)[3] / scale if scale else math.inf
        column = self.plan.given[step.value]
        numbers = (x.size, x.channels, positions, divisor, self.draws)
        cuda_sums.energy(x.data, readers, *numbers, rows, self.columns, column)

    def _written(self, value: int) -> Held:
        shape = self.plan.program.shape(value)
        return self._full(self.values[value], self.plan.samples * int(shape.places), int(shape.channels))

    def _one_after_another(self, values: list[Held]) -> Held:
        """The places of several values, draw by draw."""
        if len(values) == 1:
            return values[0]
        y, at = self._new(sum(x.places for x in values), values[0].channels), 0
        for x in values:
            sizes = (self.draws, 1, x.places, x.channels)
            cuda_moves.copy(x.data, y.data, sizes, (0, x.size, 0, x.channels, 1), (at, y.size, 0, x.channels, 1))
            at += x.size
        return y


def _draw_orthogonal(plan: Plan, method: str) -> None:
    """Orthogonal weights are drawn, as their collapsed products have no kernel; refused where ``method`` is
    "collapsed"."""
    for name in [n for n in plan.revealing if isinstance(plan.matrices[n], Orthogonal)]:
        if method == "collapsed":
            raise UnsupportedError(
                f"collapsed products with the orthogonal weight {name!r} have no CUDA kernel", name,
                instead='method="auto" or backend="cpu"',
            )  # fmt: skip
        del plan.revealing[name]
        plan.choices.by_weight[name] = replace(plan.choices.by_weight[name], collapse=False)


class CudaSimulator:
    """A program ready to be drawn from on the GPU: `cpu.Simulator` with other kernels.

    Raises MissingExtraError without numba-cuda, UnsupportedError without a GPU or for what has no kernel.
    """

    def __init__(
        self, program: Program, *, seed: int = 0, samples: int | None = None, nodes: Collection[str] | None = None,
        weights: bool = False, method: str = "auto", threads: int | None = None, large_batch: int = LARGE_BATCH,
        given: bool = False, memory: int = MEMORY,
    ) -> None:  # fmt: skip
        refuse_without_device()
        batch = samples_of(program, large_batch)
        if batch is not None and samples not in (None, batch):
            raise InputError(f"{samples} samples for batch norms of {batch}", instead="no number of samples")
        self.seed = seed
        self.plan = make_plan(program, batch or samples or 1, nodes, weights, method, given)
        _draw_orthogonal(self.plan, method)
        self.chunk = max(1, min(MOST_DRAWS, MOST_ROWS // self._groups, memory // max(self.plan.bytes_per_draw, 1)))

    @property
    def _groups(self) -> int:
        """The most groups of a weight, which collapsed products treat as draws."""
        return max((m.groups for m in self.plan.matrices.values() if isinstance(m, RandomTaps)), default=1)

    def rows(self, first_draw: int, draws: int) -> Rows:
        """Moments of every measured value in consecutive draws, carried through the program together."""
        return CudaChunk(self.plan, self.seed, first_draw, draws).rows()

    def run(
        self, draws: int, first_draw: int = 0, after_chunk: Callable[[Statistics], None] | None = None
    ) -> Statistics:
        """Draws ``first_draw`` to ``first_draw + draws``."""
        result = Statistics(self.plan.columns)
        for start in range(first_draw, first_draw + draws, self.chunk):
            count = min(self.chunk, first_draw + draws - start)
            with np.errstate(all="ignore"):
                result.add(self.rows(start, count), start)
            if after_chunk is not None:
                after_chunk(result)
        return result
