"""Pooling over windows of positions: maxima, averages, averages to a given size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import sympy as sp

from varflow.errors import ShapeError, UnsupportedError
from varflow.ops.axes import check_numbers, position_axes, window
from varflow.ops.base import Axes, Flag, Lemma, Op, Sizes
from varflow.program import Lowering, Mix, Shape
from varflow.symbols import arg
from varflow.window import Window


def _pooling_window(layer: MaxPool | AvgPool, shape: Shape, dilation: Axes = (1,)) -> Window:
    """The window of a pooling layer. Raises ShapeError for padding that leaves a window without inputs."""
    w = window(layer.name, shape, layer.kernel, layer.stride or layer.kernel, layer.padding, dilation)
    if any(2 * low > k for (low, _), k in zip(w.padding, w.kernel, strict=True)):
        raise ShapeError(f"{layer.name}: padding {layer.padding} for windows of {layer.kernel}",
                         why="a window may lie outside the input", instead="padding of at most half the kernel")
    return w


@dataclass(frozen=True)
class MaxPool(Op):
    """The largest value in each window of positions, channel by channel; as torch.nn.MaxPool2d.

    ``stride`` is the kernel unless given. What padding adds is never the maximum.
    """

    name: ClassVar[str] = "max_pool"
    lemma: ClassVar[Lemma] = Lemma(
        "Of w exchangeable Gaussian places (q, c >= 0) the maximum is sqrt(c) z + sqrt(q - c) M with M the largest of "
        "w independent standard Gaussians, of density w phi Phi^(w-1). Backward each place receives the gradients "
        "of the windows it is the maximum of: 1/w of them.",
        "David and Nagaraja 2003, section 2.1; by symmetry between the places of a window")
    examples = ({"kernel": 2}, {"kernel": 3, "stride": 2, "padding": 1})
    torch: ClassVar[str | None] = "MaxPool2d"

    kernel: Axes
    stride: Axes | None = None
    padding: Axes = (0,)
    dilation: Axes = (1,)

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
    the sum is divided by the number of places inside.
    """

    name: ClassVar[str] = "avg_pool"
    lemma: ClassVar[Lemma] = Lemma(
        "Over w exchangeable places of second moment q and covariance c the mean has (q + (w-1) c)/w; windows that "
        "do not overlap keep c between them. Backward each place gets 1/w of the gradients of its windows.",
        "by definition")
    examples = ({"kernel": 2}, {"kernel": 3, "stride": 2, "padding": 1},
                {"kernel": 3, "stride": 1, "padding": 1, "count_include_pad": False})
    torch: ClassVar[str | None] = "AvgPool2d"

    kernel: Axes
    stride: Axes | None = None
    padding: Axes = (0,)
    count_include_pad: Flag = True

    def __post_init__(self) -> None:
        check_numbers(1, kernel=self.kernel, stride=self.stride)
        check_numbers(0, padding=self.padding)

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (Shape(shapes[0].channels, _pooling_window(self, shapes[0]).outputs),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        w = _pooling_window(self, b.shape(args[0]))
        return (_average(b, args[0], w, not (self.count_include_pad or w.uniform)),)


def _average(b: Lowering, x: int, w: Window, normalized: bool = False) -> int:
    return b.mix(Mix(w, (sp.Rational(1, w.taps),) * w.taps, normalized=normalized), x)


@dataclass(frozen=True)
class AdaptiveAvgPool(Op):
    """The mean over equal windows that leave ``output_size`` places along each axis; as
    torch.nn.AdaptiveAvgPool2d where the sizes divide the input's."""

    name: ClassVar[str] = "adaptive_avg_pool"
    lemma: ClassVar[Lemma] = Lemma(
        "A mean over windows that tile the input: (q + (w-1) c)/w, and c between windows.", "by definition")
    examples = ({"output_size": 1}, {"output_size": (1, 1)})
    torch: ClassVar[str | None] = "AdaptiveAvgPool2d"

    output_size: Sizes

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (Shape(shapes[0].channels, self._sizes(shapes[0])),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        shape = b.shape(args[0])
        sizes = self._sizes(shape)
        if sizes == shape.positions:
            return (b.pointwise(arg(0), args[0]),)
        if all(s == 1 for s in sizes):
            return (b.position_expand(b.position_mean(args[0]), sizes),)
        kernel = self._kernel(shape, sizes)
        return (_average(b, args[0], window(self.name, shape, kernel, kernel, (0,))),)

    def _sizes(self, shape: Shape) -> tuple[sp.Expr, ...]:
        """Sizes of the output. Raises UnsupportedError where the windows would differ."""
        axes = position_axes(self.name, shape)
        if len(self.output_size) not in (1, axes):
            raise ShapeError(f"output_size has {len(self.output_size)} numbers for {axes} position axes",
                             instead="one number, or one for every position axis")
        sizes = self.output_size * (axes if len(self.output_size) == 1 else 1)
        if sizes != shape.positions and any(s != 1 for s in sizes):
            self._kernel(shape, sizes)
        return sizes

    def _kernel(self, shape: Shape, sizes: tuple[sp.Expr, ...]) -> tuple[int, ...]:
        ratios = [n / s for n, s in zip(shape.positions, sizes, strict=True)]
        if not all(r.is_Integer for r in ratios):
            raise UnsupportedError(f"adaptive_avg_pool from positions {shape.positions} to {sizes}",
                                   why="windows of different sizes would be averaged",
                                   instead="output sizes that divide the input's, or avg_pool with a kernel")
        return tuple(int(r) for r in ratios)
