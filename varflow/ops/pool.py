"""Pooling over windows of positions: maxima, averages, averages to a given size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import sympy as sp

from varflow.errors import ShapeError, UnsupportedError
from varflow.ops.axes import check_numbers, position_axes, window
from varflow.ops.base import Axes, Flag, Lemma, Op, Sizes
from varflow.program import Lowering, Mix, Shape
from varflow.symbols import arg
from varflow.window import Window, adaptive


def _pooling_window(layer: MaxPool | AvgPool, shape: Shape, dilation: Axes = (1,)) -> Window:
    """The window of a pooling layer. Raises ShapeError for padding that leaves a window without inputs."""
    w = window(layer.name, shape, layer.kernel, layer.stride or layer.kernel, layer.padding, dilation)
    if any(2 * low > k for (low, _), k in zip(w.padding, w.kernel, strict=True)):
        raise ShapeError(f"{layer.name}: padding {layer.padding} for windows of {layer.kernel}",
                         why="a window may lie outside the input", instead="padding of at most half the kernel")
    if layer.ceil_mode:
        more = [_more(layer.name, *side) for side in zip(w.inputs, w.padding, w.kernel, w.stride, w.dilation,
                                                         strict=True)]
        w = replace(w, padding=tuple((low, high + m) for (low, high), m in zip(w.padding, more, strict=True)))
    return w


def _more(layer: str, n: sp.Expr, padding: tuple[int, int], kernel: int, stride: int, dilation: int) -> int:
    """Positions behind the padding that a last, incomplete window reads: none where it would start there.

    Raises UnsupportedError where the number of windows depends on a symbol.
    """
    reach = dilation * (kernel - 1) + 1
    whole = {s: sp.Dummy(s.name, integer=True, positive=True) for s in n.free_symbols if not s.is_integer}
    left = sp.Mod(n.xreplace(whole) + sum(padding) - reach, stride)
    if not left.is_Integer:
        raise UnsupportedError(f"{layer} with ceil_mode on {n} positions",
                               why="whether a last window is incomplete depends on the size",
                               instead="a number, or ceil_mode false")
    more = int(-left % stride)
    return more if more + padding[1] < reach else 0


@dataclass(frozen=True)
class MaxPool(Op):
    """The largest value in each window of positions, channel by channel; as torch.nn.MaxPool2d.

    ``stride`` is the kernel unless given. What padding adds is never the maximum. With ``ceil_mode`` a last window
    that starts inside may reach beyond the padding.
    """

    name: ClassVar[str] = "max_pool"
    lemma: ClassVar[Lemma] = Lemma(
        "Of w exchangeable Gaussian places (q, c >= 0) the maximum is sqrt(c) z + sqrt(q - c) M with M the largest of "
        "w independent standard Gaussians, of density w phi Phi^(w-1). Backward each place receives the gradients "
        "of the windows it is the maximum of: 1/w of them.",
        "David and Nagaraja 2003, section 2.1; by symmetry between the places of a window")
    examples = ({"kernel": 2}, {"kernel": 3, "stride": 2, "padding": 1},
                {"kernel": 3, "stride": 2, "ceil_mode": True})
    torch: ClassVar[str | None] = "MaxPool2d"

    kernel: Axes
    stride: Axes | None = None
    padding: Axes = (0,)
    dilation: Axes = (1,)
    ceil_mode: Flag = False

    def __post_init__(self) -> None:
        check_numbers(1, kernel=self.kernel, stride=self.stride, dilation=self.dilation)
        check_numbers(0, padding=self.padding)

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (Shape(shapes[0].channels, _pooling_window(self, shapes[0], self.dilation).outputs),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (b.window_max(_pooling_window(self, b.shape(args[0]), self.dilation), args[0]),)


@dataclass(frozen=True)
class AvgPool(Op):
    """The mean over each window of positions, channel by channel; as torch.nn.AvgPool2d.

    ``stride`` is the kernel unless given. With ``count_include_pad`` the zeros of the padding count; without it
    the sum is divided by the number of places inside. With ``ceil_mode`` a last window that starts inside may reach
    beyond the padding; what it lacks there never counts.
    """

    name: ClassVar[str] = "avg_pool"
    lemma: ClassVar[Lemma] = Lemma(
        "Over w exchangeable places of second moment q and covariance c the mean has (q + (w-1) c)/w; windows that "
        "do not overlap keep c between them. Backward each place gets 1/w of the gradients of its windows.",
        "by definition")
    examples = ({"kernel": 2}, {"kernel": 3, "stride": 2, "padding": 1},
                {"kernel": 3, "stride": 1, "padding": 1, "count_include_pad": False},
                {"kernel": 3, "stride": 2, "ceil_mode": True})
    torch: ClassVar[str | None] = "AvgPool2d"

    kernel: Axes
    stride: Axes | None = None
    padding: Axes = (0,)
    count_include_pad: Flag = True
    ceil_mode: Flag = False

    def __post_init__(self) -> None:
        check_numbers(1, kernel=self.kernel, stride=self.stride)
        check_numbers(0, padding=self.padding)

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (Shape(shapes[0].channels, _pooling_window(self, shapes[0]).outputs),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        w = _pooling_window(self, b.shape(args[0]))
        if not self.count_include_pad or w.uniform or all(low == high for low, high in w.padding):
            return (_average(b, args[0], w, not (self.count_include_pad or w.uniform)),)
        inner = tuple((low, low) for low, _ in w.padding)
        around = Window(w.inputs, (1,) * len(inner), (1,) * len(inner), inner, (1,) * len(inner))
        beyond = tuple((0, high - low) for low, high in w.padding)
        x = b.mix(Mix(around, (sp.S.One,)), args[0]) if any(low for low, _ in inner) else args[0]
        return (_average(b, x, replace(w, inputs=around.outputs, padding=beyond), True),)


def _average(b: Lowering, x: int, w: Window, normalized: bool = False) -> int:
    return b.mix(Mix(w, (sp.Rational(1, w.taps),) * w.taps, normalized=normalized), x)


def _output_sizes(layer: AdaptiveAvgPool | AdaptiveMaxPool, shape: Shape) -> tuple[sp.Expr, ...]:
    """One size for every axis. Raises ShapeError where there are too few or too many, or one is no size."""
    axes = position_axes(layer.name, shape)
    if len(layer.output_size) not in (1, axes):
        raise ShapeError(f"output_size has {len(layer.output_size)} numbers for {axes} position axes",
                         instead="one number, or one for every position axis")
    sizes = layer.output_size * (axes if len(layer.output_size) == 1 else 1)
    if any(s.is_number and not (s.is_Integer and s >= 1) for s in sizes):
        raise ShapeError(f"output_size {sizes} cannot be used", instead="whole numbers of at least 1")
    return sizes


def _adaptive_window(layer: AdaptiveAvgPool | AdaptiveMaxPool, shape: Shape) -> Window:
    """The windows of adaptive pooling. Raises UnsupportedError where their sizes depend on a symbol."""
    sizes = _output_sizes(layer, shape)
    ratios = [sp.cancel(n / s) for n, s in zip(shape.positions, sizes, strict=True)]
    if all(r.is_Integer for r in ratios):
        kernel = tuple(int(r) for r in ratios)
        return window(layer.name, shape, kernel, kernel, (0,))
    if not all(n.is_Integer for n in (*shape.positions, *sizes)):
        raise UnsupportedError(f"{layer.name} from positions {shape.positions} to {sizes}",
                               why="which positions a window has depends on the sizes",
                               instead="numbers, output sizes that divide the input's, or pooling with a kernel")
    return adaptive(tuple(map(int, shape.positions)), tuple(map(int, sizes)))


@dataclass(frozen=True)
class AdaptiveAvgPool(Op):
    """The mean over windows that leave ``output_size`` places along each axis; as torch.nn.AdaptiveAvgPool2d: output i
    of s sees places floor(i n/s) to ceil((i+1) n/s) - 1 of n. Where s does not divide n windows differ in size, and
    neighbours may share a place; s may be larger than n."""

    name: ClassVar[str] = "adaptive_avg_pool"
    lemma: ClassVar[Lemma] = Lemma(
        "A mean over windows: (q + (w-1) c)/w, and c between windows without a common place. Where windows differ, w "
        "is that of each, and a formula holds on average over them.", "by definition")
    examples = ({"output_size": 1}, {"output_size": (1, 1)}, {"output_size": 3})
    torch: ClassVar[str | None] = "AdaptiveAvgPool2d"

    output_size: Sizes

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        sizes = _output_sizes(self, shapes[0])
        if sizes != shapes[0].positions and any(s != 1 for s in sizes):
            _adaptive_window(self, shapes[0])
        return (Shape(shapes[0].channels, sizes),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        shape = b.shape(args[0])
        sizes = _output_sizes(self, shape)
        if sizes == shape.positions:
            return (b.pointwise(arg(0), args[0]),)
        if all(s == 1 for s in sizes):
            return (b.position_expand(b.position_mean(args[0]), sizes),)
        w = _adaptive_window(self, shape)
        return (_average(b, args[0], w, not w.uniform),)


@dataclass(frozen=True)
class AdaptiveMaxPool(Op):
    """The largest value in windows that leave ``output_size`` places along each axis, those of ``adaptive_avg_pool``;
    as torch.nn.AdaptiveMaxPool2d."""

    name: ClassVar[str] = "adaptive_max_pool"
    lemma: ClassVar[Lemma] = Lemma(
        "The largest of w places as for max_pool. Where windows differ, w is that of each, and a formula holds on "
        "average over them.", "David and Nagaraja 2003, section 2.1")
    examples = ({"output_size": 2}, {"output_size": 3})
    torch: ClassVar[str | None] = "AdaptiveMaxPool2d"

    output_size: Sizes

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        sizes = _output_sizes(self, shapes[0])
        if sizes != shapes[0].positions:
            _adaptive_window(self, shapes[0])
        return (Shape(shapes[0].channels, sizes),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        shape = b.shape(args[0])
        if _output_sizes(self, shape) == shape.positions:
            return (b.pointwise(arg(0), args[0]),)
        return (b.window_max(_adaptive_window(self, shape), args[0]),)
