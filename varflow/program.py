"""The primitive program: what every layer becomes, and its transpose, the backward pass.

A program is a straight list of instructions over values with axes sample, position and channel. The law
engine, the population and the simulator all read this list; none of them knows a layer. The backward pass
is the same kind of list (Yang 2020, arXiv:2006.14548): contract <-> its transpose, pointwise -> times the
derivative, copy <-> sum, slice <-> embed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import sympy as sp

from varflow.calculus import pulled_back, rename, symbols_in
from varflow.errors import InputError, ShapeError, UnsupportedError
from varflow.symbols import arg


@dataclass(frozen=True)
class Shape:
    """Channels and position axes of a value (the sample axis is implicit)."""

    channels: sp.Expr
    positions: tuple[sp.Expr, ...] = ()

    @property
    def places(self) -> sp.Expr:
        """Number of positions of one sample."""
        return sp.Mul(*self.positions)

    def __str__(self) -> str:
        return f"({', '.join(str(s) for s in (*self.positions, self.channels))})"


@dataclass(frozen=True)
class Weight:
    """A random matrix of ``rows x columns`` i.i.d. entries (Haar: a scaled orthogonal one).

    ``variance`` is Var(W_ij) of the entries that are kept; ``keep`` the probability that an entry is kept
    (i.i.d. sparsity mask, drawn with the weight); ``value`` the entry of a constant matrix.
    """

    name: str
    rows: sp.Expr
    columns: sp.Expr
    variance: sp.Expr
    distribution: str = "normal"
    keep: sp.Expr = sp.S.One
    value: sp.Expr = sp.S.Zero
    unknown: sp.Symbol | None = None
    transposed_first: bool = False

    @property
    def fan_in(self) -> sp.Expr:
        """Inputs truly connected to one output, in the orientation of the first use."""
        return self.keep * (self.rows if self.transposed_first else self.columns)

    @property
    def fan_out(self) -> sp.Expr:
        """Outputs truly connected to one input, in the orientation of the first use."""
        return self.keep * (self.columns if self.transposed_first else self.rows)

    @property
    def entry_variance(self) -> sp.Expr:
        """Second moment of an entry, its mask included."""
        return self.keep * self.variance


class Primitive:
    """What an instruction does; every subclass is final and frozen."""


@dataclass(frozen=True)
class Input(Primitive):
    """A network input: i.i.d. channels of given moments; correlations (Pearson) between the positions of a
    sample and between samples."""

    name: str
    mean: sp.Expr
    second_moment: sp.Expr
    position_correlation: sp.Expr = sp.S.Zero
    sample_correlation: sp.Expr = sp.S.Zero


@dataclass(frozen=True)
class Cotangent(Primitive):
    """The random cotangent at an output: zero mean, unit second moment, independent of everything."""

    name: str


@dataclass(frozen=True)
class Bias(Primitive):
    """A random vector over channels, shared by all positions and samples; zero mean."""

    name: str
    variance: sp.Expr
    distribution: str = "normal"


@dataclass(frozen=True)
class Mask(Primitive):
    """Zeros and ones, one with probability ``keep``; independent per entry, or one for a whole sample."""

    name: str
    keep: sp.Expr
    per_sample: bool = False


@dataclass(frozen=True)
class Contract(Primitive):
    """y = W h, or W^T h, at every place."""

    weight: str
    transpose: bool = False


@dataclass(frozen=True)
class Pointwise(Primitive):
    """An expression of ``arg(0), arg(1), ...``, the arguments' values at one coordinate."""

    expr: sp.Expr


@dataclass(frozen=True)
class PositionMean(Primitive):
    """Mean over all positions of a sample."""


@dataclass(frozen=True)
class PositionExpand(Primitive):
    """The same value at every position of ``positions``."""

    positions: tuple[sp.Expr, ...]


@dataclass(frozen=True)
class Standardize(Primitive):
    """(x - mean) / sqrt(variance + eps) with statistics over ``axis``: "channel" (in ``groups`` blocks) or
    "sample" (of ``batch`` samples; None: many). Without ``center`` the mean is kept (RMS)."""

    axis: str
    center: bool = True
    eps: sp.Expr = sp.S.Zero
    groups: sp.Expr = sp.S.One
    batch: sp.Expr | None = None


@dataclass(frozen=True)
class StandardizeBackward(Primitive):
    """Transpose of ``forward`` at (x, dy): (dy - mean(dy) - y mean(y dy)) / sigma."""

    forward: Standardize


@dataclass(frozen=True)
class Concat(Primitive):
    """Channel blocks, one after another."""


@dataclass(frozen=True)
class Slice(Primitive):
    """Channels ``start`` to ``start + size``."""

    start: sp.Expr
    size: sp.Expr


@dataclass(frozen=True)
class Embed(Primitive):
    """Transpose of a slice: the value at channels from ``start`` of ``total``, zero elsewhere."""

    start: sp.Expr
    total: sp.Expr


@dataclass(frozen=True)
class Permute(Primitive):
    """A fixed random permutation of the channels, known by its name."""

    name: str
    inverse: bool = False


@dataclass(frozen=True)
class Flatten(Primitive):
    """Positions become channels."""


@dataclass(frozen=True)
class Unflatten(Primitive):
    """Channels become ``channels`` at ``positions``: the transpose of a flatten."""

    channels: sp.Expr
    positions: tuple[sp.Expr, ...]


@dataclass(frozen=True)
class Repeat(Primitive):
    """A block applied ``count`` times, each time with weights of its own; ``count`` is a symbol."""

    name: str
    count: sp.Expr
    body: Program


@dataclass(frozen=True)
class RepeatBackward(Primitive):
    """Transpose of ``forward`` at (x, dy)."""

    forward: Repeat


@dataclass(frozen=True)
class Instruction:
    """One step: ``primitive`` applied to the values ``args``, giving a value of ``shape``.

    ``node`` is the network node it came from, ``backward`` whether it belongs to the backward pass.
    """

    primitive: Primitive
    args: tuple[int, ...]
    shape: Shape
    node: str = ""
    backward: bool = False


@dataclass(eq=False)
class Program:
    """Instructions in order; a value is the index of its instruction.

    ``values`` and ``gradients`` map node names (``NAME`` or ``NAME:port``) to values; ``weight_gradients``
    maps a weight to the pairs (row side, column side) whose outer products sum to dL/dW, ``pulled_back`` a
    forward value to its gradient, ``names`` what a shared mask or permutation stands for.
    """

    instructions: list[Instruction] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    gradients: dict[str, int] = field(default_factory=dict)
    weight_gradients: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    pulled_back: dict[int, int] = field(default_factory=dict)
    names: dict[tuple[str, str], object] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    _known: dict[tuple[object, ...], int] = field(default_factory=dict, repr=False)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions)

    def __len__(self) -> int:
        return len(self.instructions)

    def shape(self, value: int) -> Shape:
        """Shape of a value."""
        return self.instructions[value].shape

    def emit(
        self, primitive: Primitive, args: tuple[int, ...], shape: Shape, node: str = "", backward: bool = False
    ) -> int:
        """Append an instruction, or return the value of an equal earlier one of the same node.

        Equal steps of different nodes stay apart, since each node has a gradient of its own.
        """
        key = (primitive, args, shape, "" if backward else node)
        if key not in self._known:
            self.instructions.append(Instruction(primitive, args, shape, node, backward))
            self._known[key] = len(self.instructions) - 1
        return self._known[key]


@dataclass
class Lowering:
    """What a layer writes its program with; ``node`` is the name of the layer being lowered."""

    program: Program
    node: str = ""
    backward: bool = False

    def _emit(self, primitive: Primitive, args: tuple[int, ...], shape: Shape) -> int:
        return self.program.emit(primitive, args, shape, self.node, self.backward)

    def shape(self, value: int) -> Shape:
        """Shape of a value."""
        return self.program.shape(value)

    def declare(self, weight: Weight) -> str:
        """Register a weight; a second use under the same name must agree with the first."""
        first = self.program.weights.setdefault(weight.name, weight)
        if (first.rows, first.columns) != (weight.rows, weight.columns):
            raise ShapeError(
                f"weight {weight.name!r} is {first.rows} x {first.columns} in its first use and "
                f"{weight.rows} x {weight.columns} here", self.node,
                "one name is one matrix", "give the second layer another weight name, or widths that agree",
            )
        if weight.unknown is None and weight.variance != first.variance:
            raise self._disagreement(weight.name, "variance", first.variance, weight.variance)
        plain = (weight.distribution, weight.keep, weight.value) == ("normal", 1, 0)
        for field_name in () if plain else ("distribution", "keep", "value"):
            one, other = getattr(first, field_name), getattr(weight, field_name)
            if one != other:
                raise self._disagreement(weight.name, field_name, one, other)
        return weight.name

    def _disagreement(self, name: str, what: str, first: object, here: object) -> InputError:
        return InputError(f"{name!r} has {what} {first} in its first use and {here} here", self.node,
                          "one name is one random object", f"state its {what} once, at the first use")

    def _agree(self, name: str, what: str, value: object) -> None:
        """Refuse a name that stood for something else before."""
        first = self.program.names.setdefault((what, name), value)
        if first != value:
            raise self._disagreement(name, what, first, value)

    def source(self, primitive: Input | Cotangent | Bias | Mask, shape: Shape) -> int:
        """A random value: an input, a bias, a mask."""
        if isinstance(primitive, Mask):
            self._agree(primitive.name, "keep probability", primitive.keep)
        return self._emit(primitive, (), shape)

    def contract(self, weight: str, x: int, transpose: bool = False) -> int:
        """W x (W^T x) for a weight declared in ``program.weights``."""
        w, shape = self.program.weights[weight], self.shape(x)
        out = w.columns if transpose else w.rows
        return self._emit(Contract(weight, transpose), (x,), Shape(out, shape.positions))

    def pointwise(self, expr: sp.Expr, *args: int) -> int:
        """``expr`` of ``arg(0), arg(1), ...`` standing for ``args``; values it does not use are dropped."""
        used = symbols_in(expr)
        distinct = sorted({a for i, a in enumerate(args) if arg(i) in used})
        place = {a: i for i, a in enumerate(distinct)}
        expr = rename(expr, tuple((arg(i), arg(place[a])) for i, a in enumerate(args) if a in place))
        if self.backward and expr == arg(0):
            return distinct[0]
        return self._emit(Pointwise(expr), tuple(distinct), self.shape(args[0]))

    def position_mean(self, x: int) -> int:
        """Mean over positions."""
        return self._emit(PositionMean(), (x,), Shape(self.shape(x).channels))

    def position_expand(self, x: int, positions: tuple[sp.Expr, ...]) -> int:
        """The same value at every position."""
        return self._emit(PositionExpand(positions), (x,), Shape(self.shape(x).channels, positions))

    def standardize(self, primitive: Standardize, x: int) -> int:
        """Normalization without its affine part."""
        return self._emit(primitive, (x,), self.shape(x))

    def concat(self, *xs: int) -> int:
        """Channel blocks one after another."""
        shapes = [self.shape(x) for x in xs]
        return self._emit(Concat(), xs, Shape(sp.Add(*(s.channels for s in shapes)), shapes[0].positions))

    def slice(self, x: int, start: sp.Expr, size: sp.Expr) -> int:
        """A channel block."""
        return self._emit(Slice(start, size), (x,), Shape(size, self.shape(x).positions))

    def embed(self, x: int, start: sp.Expr, total: sp.Expr) -> int:
        """A channel block within zeros."""
        return self._emit(Embed(start, total), (x,), Shape(total, self.shape(x).positions))

    def permute(self, x: int, name: str, inverse: bool = False) -> int:
        """Channels permuted by the fixed random permutation ``name``."""
        self._agree(name, "number of permuted channels", self.shape(x).channels)
        return self._emit(Permute(name, inverse), (x,), self.shape(x))

    def flatten(self, x: int) -> int:
        """Positions become channels."""
        shape = self.shape(x)
        return self._emit(Flatten(), (x,), Shape(shape.channels * shape.places))

    def unflatten(self, x: int, channels: sp.Expr, positions: tuple[sp.Expr, ...]) -> int:
        """Channels become positions."""
        return self._emit(Unflatten(channels, positions), (x,), Shape(channels, positions))


def transpose(program: Program, backward_from: list[int] | None = None) -> None:
    """Append the backward pass: a cotangent at every output, then each instruction's transpose.

    Fills ``program.gradients`` for every node a gradient reaches, and ``weight_gradients``.
    """
    build = Lowering(program, backward=True)
    pending: dict[int, list[int]] = {}
    forward = len(program)
    for k, value in enumerate(program.outputs if backward_from is None else backward_from):
        build.node = program.instructions[value].node
        source = build.source(Cotangent(f"output {k}"), program.shape(value))
        pending.setdefault(value, []).append(source)
    gradients = program.pulled_back
    for value in reversed(range(forward)):
        if value not in pending:
            continue
        build.node = program.instructions[value].node
        terms = pending.pop(value)
        total = build.pointwise(sp.Add(*(arg(i) for i in range(len(terms)))), *terms)
        gradients[value] = total
        for source_value, term in _pull_back(build, value, total):
            pending.setdefault(source_value, []).append(term)
    for name, value in program.values.items():
        if value in gradients:
            program.gradients[name] = gradients[value]


def _pull_back(build: Lowering, value: int, d: int) -> list[tuple[int, int]]:
    """(argument, its share of the gradient) for the instruction that made ``value``."""
    step = build.program.instructions[value]
    match step.primitive:
        case Input() | Bias() | Mask() | Cotangent():
            return []
        case Pointwise(expr=expr):
            return list(_pull_back_pointwise(build, expr, step.args, d))
        case Contract(weight=weight, transpose=flipped):
            pair = (step.args[0], d) if flipped else (d, step.args[0])
            build.program.weight_gradients.setdefault(weight, []).append(pair)
            return [(step.args[0], build.contract(weight, d, not flipped))]
        case Concat():
            return list(_pull_back_concat(build, step.args, d))
        case _:
            return [(step.args[0], _pull_back_linear(build, step, d))]


def _pull_back_pointwise(
    build: Lowering, expr: sp.Expr, args: tuple[int, ...], d: int
) -> Iterator[tuple[int, int]]:
    for i, value in enumerate(args):
        if isinstance(build.program.instructions[value].primitive, Bias | Mask):
            continue
        share = pulled_back(expr, arg(i), arg(len(args)))
        if share != 0:
            yield value, build.pointwise(share, *args, d)


def _pull_back_concat(build: Lowering, args: tuple[int, ...], d: int) -> Iterator[tuple[int, int]]:
    start: sp.Expr = sp.S.Zero
    for value in args:
        size = build.shape(value).channels
        yield value, build.slice(d, start, size)
        start += size


def _pull_back_linear(build: Lowering, step: Instruction, d: int) -> int:
    """Transposes of one-argument primitives."""
    x = step.args[0]
    shape = build.shape(x)
    match step.primitive:
        case PositionMean():
            return build.position_expand(build.pointwise(arg(0) / shape.places, d), shape.positions)
        case PositionExpand(positions=positions):
            return build.pointwise(arg(0) * sp.Mul(*positions), build.position_mean(d))
        case Standardize() as forward:
            return build._emit(StandardizeBackward(forward), (x, d), shape)
        case Slice(start=start):
            return build.embed(d, start, shape.channels)
        case Embed(start=start):
            return build.slice(d, start, shape.channels)
        case Permute(name=name, inverse=inverse):
            return build.permute(d, name, not inverse)
        case Flatten():
            return build.unflatten(d, shape.channels, shape.positions)
        case Unflatten():
            return build.flatten(d)
        case Repeat() as forward:
            return build._emit(RepeatBackward(forward), (x, d), shape)
        case other:
            raise UnsupportedError(f"no transpose is known for {type(other).__name__}", step.node)


def live_ranges(program: Program, keep: Mapping[str, int] | None = None) -> list[int]:
    """For each value the index of the last instruction that reads it (its own where none does)."""
    last = list(range(len(program)))
    for i, step in enumerate(program):
        for value in step.args:
            last[value] = i
    for value in (keep or {}).values():
        last[value] = len(program)
    return last
