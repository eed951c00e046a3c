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

from varflow.calculus import rename, symbols_in
from varflow.errors import InputError, ShapeError
from varflow.symbols import arg
from varflow.window import Window


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

    A convolution has one matrix for each of ``taps`` window positions, at most every ``spacing``-th input
    position under one tap. With ``groups`` blocks of channels, each row sees the ``columns`` of its block.
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
    taps: int = 1
    spacing: int = 1
    groups: sp.Expr = sp.S.One

    @property
    def fan_in(self) -> sp.Expr:
        """Inputs truly connected to one output, in the orientation of the first use (on average over positions
        for a transposed convolution with a stride)."""
        return self._into_columns if self.transposed_first else self._into_rows

    @property
    def fan_out(self) -> sp.Expr:
        """Outputs truly connected to one input, in that orientation (on average, for a convolution with a stride)."""
        return self._into_rows if self.transposed_first else self._into_columns

    @property
    def _into_rows(self) -> sp.Expr:
        return self.keep * self.columns * self.taps

    @property
    def _into_columns(self) -> sp.Expr:
        return self.keep * self.rows / self.groups * self.taps / self.spacing

    @property
    def size(self) -> tuple[sp.Expr | int, ...]:
        """Rows and columns; taps and groups where there are several."""
        more = [n for n in (self.taps, self.groups) if n != 1]
        return (self.rows, self.columns, *more)

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
    """y = W h, or W^T h, at every place; with a ``window``, y[p] = sum_t W_t h[tap t of p], or its transpose."""

    weight: str
    transpose: bool = False
    window: Window | None = None


@dataclass(frozen=True)
class Mix(Primitive):
    """y[p] = sum_t a_t x[tap t of p] with the same numbers ``coefficients`` for every channel, or its transpose:
    average pooling, resampling. ``normalized``: divided by the sum of the a_t that fall inside the grid."""

    window: Window
    coefficients: tuple[sp.Rational, ...]
    transpose: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class WindowMax(Primitive):
    """y[p] = max over the window's taps inside the grid (the first one where several are largest)."""

    window: Window


@dataclass(frozen=True)
class WindowMaxBackward(Primitive):
    """Transpose of ``forward`` at (x, dy): each dy goes to the position of its maximum."""

    forward: WindowMax


@dataclass(frozen=True)
class Deal(Primitive):
    """Channel ``i`` goes to ``(i mod count) channels/count + i // count``: a fixed order, undone by ``inverse``."""

    count: int
    inverse: bool = False


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
    """(x - mean) / sqrt(variance + eps) with statistics over ``axis``: "channel" (all channels of one place),
    "group" (``groups`` blocks of channels, with all positions of a sample) or "sample" (positions of ``batch``
    samples, channel by channel; None: many samples). Without ``center`` the mean is kept (RMS)."""

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
class Scores(Primitive):
    """y[p, (a, r)] = sum over the channels c of head a of q[p, c] k[r, c]: inner products of places."""

    heads: sp.Expr


@dataclass(frozen=True)
class Softmax(Primitive):
    """exp(x) over its sum, in each of ``heads`` blocks; ``causal``: entries r > p of place p are zero."""

    heads: sp.Expr
    causal: bool = False


@dataclass(frozen=True)
class SoftmaxBackward(Primitive):
    """Transpose of ``forward`` at (its value y, dy): y (dy - sum of y dy)."""

    forward: Softmax


@dataclass(frozen=True)
class Blend(Primitive):
    """y[p, c] = sum_r a[p, (head of c, r)] v[r, c], or its transpose, y[r, c] = sum_p a[p, (head of c, r)] v[p, c]."""

    heads: sp.Expr
    transpose: bool = False


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
    maps a weight to the pairs (row side, column side) whose outer products sum to dL/dW, ``weight_windows`` to
    the window of each pair (with one, the row side at p meets the column side at every tap of p), ``pulled_back``
    a forward value to its gradient, ``names`` what a shared mask or permutation stands for.
    """

    instructions: list[Instruction] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    gradients: dict[str, int] = field(default_factory=dict)
    weight_gradients: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    weight_windows: dict[str, list[Window | None]] = field(default_factory=dict)
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
        """Append an instruction, or return the value of an equal earlier one of the same node (those of different
        nodes stay apart, since each has a gradient of its own)."""
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

    def emit(self, primitive: Primitive, args: tuple[int, ...], shape: Shape) -> int:
        """One instruction of the layer being lowered."""
        return self.program.emit(primitive, args, shape, self.node, self.backward)

    def shape(self, value: int) -> Shape:
        """Shape of a value."""
        return self.program.shape(value)

    def declare(self, weight: Weight) -> str:
        """Register a weight; a second use under the same name must agree with the first."""
        first = self.program.weights.setdefault(weight.name, weight)
        if first.size != weight.size:
            raise ShapeError(
                f"weight {weight.name!r} is {' x '.join(map(str, first.size))} in its first use and "
                f"{' x '.join(map(str, weight.size))} here", self.node,
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
        return self.emit(primitive, (), shape)

    def contract(self, weight: str, x: int, transpose: bool = False) -> int:
        """W x (W^T x) for a weight declared in ``program.weights``."""
        return self.convolve(weight, x, None, transpose)

    def convolve(self, weight: str, x: int, window: Window | None, transpose: bool = False) -> int:
        """The sum over the taps of a window (or its transpose) for a weight declared in ``program.weights``."""
        w, positions = self.program.weights[weight], self.shape(x).positions
        if window is not None:
            positions = window.inputs if transpose else window.outputs
        out = w.columns * w.groups if transpose else w.rows
        return self.emit(Contract(weight, transpose, window), (x,), Shape(out, positions))

    def mix(self, primitive: Mix, x: int) -> int:
        """Positions mixed with fixed numbers."""
        positions = primitive.window.inputs if primitive.transpose else primitive.window.outputs
        return self.emit(primitive, (x,), Shape(self.shape(x).channels, positions))

    def window_max(self, window: Window, x: int) -> int:
        """Maxima over a window of positions."""
        return self.emit(WindowMax(window), (x,), Shape(self.shape(x).channels, window.outputs))

    def deal(self, x: int, count: int, inverse: bool = False) -> int:
        """Channels dealt into ``count`` heaps (or gathered from them)."""
        return self.emit(Deal(count, inverse), (x,), self.shape(x))

    def pointwise(self, expr: sp.Expr, *args: int) -> int:
        """``expr`` of ``arg(0), arg(1), ...`` standing for ``args``; values it does not use are dropped."""
        used = symbols_in(expr)
        distinct = sorted({a for i, a in enumerate(args) if arg(i) in used})
        place = {a: i for i, a in enumerate(distinct)}
        expr = rename(expr, tuple((arg(i), arg(place[a])) for i, a in enumerate(args) if a in place))
        if self.backward and expr == arg(0):
            return distinct[0]
        return self.emit(Pointwise(expr), tuple(distinct), self.shape(args[0]))

    def position_mean(self, x: int) -> int:
        """Mean over positions."""
        return self.emit(PositionMean(), (x,), Shape(self.shape(x).channels))

    def position_expand(self, x: int, positions: tuple[sp.Expr, ...]) -> int:
        """The same value at every position."""
        return self.emit(PositionExpand(positions), (x,), Shape(self.shape(x).channels, positions))

    def standardize(self, primitive: Standardize, x: int) -> int:
        """Normalization without its affine part."""
        return self.emit(primitive, (x,), self.shape(x))

    def concat(self, *xs: int) -> int:
        """Channel blocks one after another."""
        shapes = [self.shape(x) for x in xs]
        return self.emit(Concat(), xs, Shape(sp.Add(*(s.channels for s in shapes)), shapes[0].positions))

    def slice(self, x: int, start: sp.Expr, size: sp.Expr) -> int:
        """A channel block."""
        return self.emit(Slice(start, size), (x,), Shape(size, self.shape(x).positions))

    def embed(self, x: int, start: sp.Expr, total: sp.Expr) -> int:
        """A channel block within zeros."""
        return self.emit(Embed(start, total), (x,), Shape(total, self.shape(x).positions))

    def permute(self, x: int, name: str, inverse: bool = False) -> int:
        """Channels permuted by the fixed random permutation ``name``."""
        self._agree(name, "number of permuted channels", self.shape(x).channels)
        return self.emit(Permute(name, inverse), (x,), self.shape(x))

    def flatten(self, x: int) -> int:
        """Positions become channels."""
        shape = self.shape(x)
        return self.emit(Flatten(), (x,), Shape(shape.channels * shape.places))

    def unflatten(self, x: int, channels: sp.Expr, positions: tuple[sp.Expr, ...]) -> int:
        """Channels become positions."""
        return self.emit(Unflatten(channels, positions), (x,), Shape(channels, positions))


def live_ranges(program: Program, keep: Mapping[str, int] | None = None) -> list[int]:
    """For each value the index of the last instruction that reads it (its own where none does)."""
    last = list(range(len(program)))
    for i, step in enumerate(program):
        for value in step.args:
            last[value] = i
    for value in (keep or {}).values():
        last[value] = len(program)
    return last


def has_windows(program: Program) -> bool:
    """Whether anything in a program reads several positions through a window."""
    return any(isinstance(p, Mix | WindowMax) or (isinstance(p, Contract) and p.window is not None)
               for p in (step.primitive for step in program))
