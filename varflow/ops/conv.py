"""Convolutions: plain, depthwise, pointwise, separable, transposed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import sympy as sp

from varflow.errors import ShapeError
from varflow.ops.axes import check_numbers, divided, position_axes, spread, window
from varflow.ops.base import Axes, Channels, Count, Lemma, Op, Padding, Scalar, Text
from varflow.ops.linear import add_bias, check_distribution, first_use, in_fans, random_weight
from varflow.program import Lowering, Shape, Weight
from varflow.window import Window

ONE = (1,)


def _convolve(layer: Conv | DepthwiseConv | PointwiseConv, b: Lowering, x: int, w: Window, rows: sp.Expr,
              groups: sp.Expr) -> int:
    name, columns = layer.weight or b.node, b.shape(x).channels / groups
    bare = Weight(name, rows, columns, sp.S.Zero, transposed_first=first_use(b, name, False),
                  taps=w.taps, spacing=w.spacing, groups=groups)
    weight = random_weight(layer, layer.variance, bare)
    y = b.convolve(b.declare(weight), x, w)
    return y if layer.bias is None else add_bias(b, y, in_fans(layer.bias, weight))


@dataclass(frozen=True)
class Conv(Op):
    """y[p] = sum_t W_t x[stride p + dilation t - padding] + b over 1 to 3 position axes; as torch.nn.Conv2d.

    ``kernel``, ``stride``, ``padding`` and ``dilation`` are one number or one for each axis; ``padding`` "same"
    keeps the positions; ``padding_mode`` is zeros, circular, reflect or replicate. With ``groups`` blocks of
    channels, each output sees the inputs of its block. fan_in = prod(kernel) in_channels / groups, whatever the
    padding. Other fields are those of ``linear``; shared by name, a weight keeps its taps in their order.
    """

    name: ClassVar[str] = "conv"
    lemma: ClassVar[Lemma] = Lemma(
        "A place sums fan_in = k^2 in_channels/groups independent zero-mean terms: its second moment is Var(W_ij) "
        "in_channels/groups times the sum of those in its window, so that zero padding takes from a border what "
        "lies outside; covariances between places follow the same sum over pairs.",
        "He et al. 2015, eq. 10; Xiao et al. 2018, eq. 2.5")
    examples = (
        {"out_channels": 96, "kernel": 3, "padding": 1, "variance": "2/fan_in"},
        {"out_channels": 96, "kernel": 3, "padding": 1, "padding_mode": "circular", "groups": 4, "bias": "1/10",
         "variance": "1/fan_in"},
        {"out_channels": 96, "kernel": 2, "stride": 2, "padding": 1, "variance": "2/fan_in"},
        {"out_channels": 96, "kernel": 3, "dilation": 2, "padding": "same", "variance": "1/fan_in"},
    )
    torch: ClassVar[str | None] = "Conv2d"
    variances = {"": "variance"}

    out_channels: Channels
    kernel: Axes
    stride: Axes = ONE
    padding: Padding = (0,)
    dilation: Axes = ONE
    groups: Count = sp.S.One
    padding_mode: Text = "zeros"
    weight: Text | None = None
    variance: Scalar | None = None
    distribution: Text = "normal"
    bias: Scalar | None = None
    keep: Scalar = sp.S.One
    value: Scalar = sp.S.Zero

    def __post_init__(self) -> None:
        check_distribution(self)
        check_numbers(1, kernel=self.kernel, stride=self.stride, dilation=self.dilation)
        check_numbers(0, padding=self.padding)

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        for channels in (shapes[0].channels, self.out_channels):
            divided("conv", channels, self.groups, "groups")
        return (Shape(self.out_channels, self._window(shapes[0]).outputs),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (_convolve(self, b, args[0], self._window(b.shape(args[0])), self.out_channels, self.groups),)

    def _window(self, shape: Shape) -> Window:
        return window("conv", shape, self.kernel, self.stride, self.padding, self.dilation, self.padding_mode)


@dataclass(frozen=True)
class DepthwiseConv(Op):
    """A convolution of every channel with taps of its own: ``conv`` with as many groups as channels, and
    ``multiplier`` outputs for each; fan_in = prod(kernel)."""

    name: ClassVar[str] = "depthwise_conv"
    lemma: ClassVar[Lemma] = Lemma(
        "fan_in is k^2 whatever the number of channels. The k^2 weights of a channel are shared by its positions: "
        "given them a place is Gaussian, over channels a mixture of Gaussians.",
        "Sifre 2014; Chollet 2017")
    examples = ({"kernel": 3, "padding": 1, "variance": "2/fan_in"},
                {"kernel": 3, "padding": 1, "multiplier": 2, "bias": "1/10", "variance": "1/fan_in"})
    torch: ClassVar[str | None] = "Conv2d(groups=in_channels)"
    variances = {"": "variance"}

    kernel: Axes
    stride: Axes = ONE
    padding: Padding = (0,)
    dilation: Axes = ONE
    multiplier: Count = sp.S.One
    padding_mode: Text = "zeros"
    weight: Text | None = None
    variance: Scalar | None = None
    distribution: Text = "normal"
    bias: Scalar | None = None
    keep: Scalar = sp.S.One
    value: Scalar = sp.S.Zero

    def __post_init__(self) -> None:
        check_distribution(self)
        check_numbers(1, kernel=self.kernel, stride=self.stride, dilation=self.dilation)
        check_numbers(0, padding=self.padding)

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (Shape(shapes[0].channels * self.multiplier, self._window(shapes[0]).outputs),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        shape = b.shape(args[0])
        rows = shape.channels * self.multiplier
        return (_convolve(self, b, args[0], self._window(shape), rows, shape.channels),)

    def _window(self, shape: Shape) -> Window:
        return window("depthwise_conv", shape, self.kernel, self.stride, self.padding, self.dilation,
                      self.padding_mode)


@dataclass(frozen=True)
class PointwiseConv(Op):
    """A 1x1 convolution: ``linear`` at every position, or at every ``stride``-th; fan_in = in_channels / groups."""

    name: ClassVar[str] = "pointwise_conv"
    lemma: ClassVar[Lemma] = Lemma(
        "The same matrix at every place: second moments and covariances between places are multiplied by "
        "fan_in Var(W_ij), fan_in = in_channels/groups.",
        "Lin et al. 2014; He et al. 2015, eq. 10")
    examples = ({"out_channels": 96, "variance": "2/fan_in"},
                {"out_channels": 96, "stride": 2, "groups": 4, "variance": "1/fan_in"})
    torch: ClassVar[str | None] = "Conv2d(kernel_size=1)"
    variances = {"": "variance"}

    out_channels: Channels
    stride: Axes = ONE
    groups: Count = sp.S.One
    weight: Text | None = None
    variance: Scalar | None = None
    distribution: Text = "normal"
    bias: Scalar | None = None
    keep: Scalar = sp.S.One
    value: Scalar = sp.S.Zero

    def __post_init__(self) -> None:
        check_distribution(self)
        check_numbers(1, stride=self.stride)

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        for channels in (shapes[0].channels, self.out_channels):
            divided("pointwise_conv", channels, self.groups, "groups")
        return (Shape(self.out_channels, self._window(shapes[0]).outputs),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (_convolve(self, b, args[0], self._window(b.shape(args[0])), self.out_channels, self.groups),)

    def _window(self, shape: Shape) -> Window:
        return window("pointwise_conv", shape, ONE, self.stride, (0,))


@dataclass(frozen=True)
class SeparableConv(Op):
    """A depthwise convolution and then a pointwise one, with weights NAME.depthwise and NAME.pointwise.

    ``depthwise_variance`` and ``variance`` (of the pointwise part) each count their own fan_in: prod(kernel), and
    in_channels. ``bias`` is the variance of a bias behind the pointwise part.
    """

    name: ClassVar[str] = "separable_conv"
    lemma: ClassVar[Lemma] = Lemma(
        "The gains of both parts multiply: fan_in Var is k^2 Var for the depthwise weights and in_channels Var for "
        "the pointwise ones; k^2 in_channels, counted for the first, loses a factor of in_channels.",
        "Chollet 2017; Howard et al. 2017, arXiv:1704.04861")
    examples = ({"out_channels": 96, "kernel": 3, "padding": 1, "depthwise_variance": "1/fan_in",
                 "variance": "2/fan_in"},)
    variances = {"depthwise": "depthwise_variance", "pointwise": "variance"}

    out_channels: Channels
    kernel: Axes
    stride: Axes = ONE
    padding: Padding = (0,)
    dilation: Axes = ONE
    padding_mode: Text = "zeros"
    depthwise_variance: Scalar | None = None
    variance: Scalar | None = None
    distribution: Text = "normal"
    bias: Scalar | None = None

    def __post_init__(self) -> None:
        self._parts("")

    def _parts(self, node: str) -> tuple[DepthwiseConv, PointwiseConv]:
        depthwise = DepthwiseConv(self.kernel, self.stride, self.padding, self.dilation, sp.S.One, self.padding_mode,
                                  f"{node}.depthwise", self.depthwise_variance, self.distribution)
        pointwise = PointwiseConv(self.out_channels, weight=f"{node}.pointwise", variance=self.variance,
                                  distribution=self.distribution, bias=self.bias)
        return depthwise, pointwise

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        for part in self._parts(""):
            shapes = part.infer(*shapes)
        return shapes

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        for part in self._parts(b.node):
            args = part.lower(b, *args)
        return args


@dataclass(frozen=True)
class ConvTranspose(Op):
    """The transpose of a convolution over 1 to 3 position axes; as torch.nn.ConvTranspose2d.

    Sizes become (n - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1; ``output_padding`` is
    smaller than the stride. fan_in = prod(kernel) in_channels / (groups prod(stride)) on average over positions.
    A ``weight`` shared with a ``conv`` is the same weight, used transposed.
    """

    name: ClassVar[str] = "conv_transpose"
    lemma: ClassVar[Lemma] = Lemma(
        "An output place receives the inputs whose windows cover it: k^2 in_channels/(groups stride^2) terms on "
        "average, more or fewer by its phase unless the stride divides the kernel; neighbours that read the same "
        "input stay uncorrelated through independent taps.",
        "Dumoulin and Visin 2016, arXiv:1603.07285; Odena et al. 2016")
    examples = ({"out_channels": 96, "kernel": 4, "stride": 2, "padding": 1, "variance": "2/fan_in"},
                {"out_channels": 96, "kernel": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 4,
                 "bias": "1/10", "variance": "1/fan_in"})
    torch: ClassVar[str | None] = "ConvTranspose2d"
    variances = {"": "variance"}

    out_channels: Channels
    kernel: Axes
    stride: Axes = ONE
    padding: Axes = (0,)
    output_padding: Axes = (0,)
    dilation: Axes = ONE
    groups: Count = sp.S.One
    weight: Text | None = None
    variance: Scalar | None = None
    distribution: Text = "normal"
    bias: Scalar | None = None
    keep: Scalar = sp.S.One
    value: Scalar = sp.S.Zero

    def __post_init__(self) -> None:
        check_distribution(self)
        check_numbers(1, kernel=self.kernel, stride=self.stride, dilation=self.dilation)
        check_numbers(0, padding=self.padding, output_padding=self.output_padding)

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        for channels in (shapes[0].channels, self.out_channels):
            divided("conv_transpose", channels, self.groups, "groups")
        return (Shape(self.out_channels, self._window(shapes[0]).inputs),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        shape, name = b.shape(args[0]), self.weight or b.node
        w = self._window(shape)
        bare = Weight(name, shape.channels, self.out_channels / self.groups, sp.S.Zero,
                      transposed_first=first_use(b, name, True), taps=w.taps, spacing=w.spacing, groups=self.groups)
        weight = random_weight(self, self.variance, bare)
        y = b.convolve(b.declare(weight), args[0], w, transpose=True)
        return (y if self.bias is None else add_bias(b, y, in_fans(self.bias, weight)),)

    def _window(self, shape: Shape) -> Window:
        axes = position_axes("conv_transpose", shape)
        kernel, stride, padding, more, dilation = (
            spread(f, getattr(self, f), axes)
            for f in ("kernel", "stride", "padding", "output_padding", "dilation"))
        if any(m >= s for m, s in zip(more, stride, strict=True)):
            raise ShapeError(f"output_padding {more} at stride {stride}",
                             why="places that no window reaches would be left", instead="less than the stride")
        fine = tuple(sp.expand((n - 1) * s - 2 * p + d * (k - 1) + m + 1) for n, k, s, p, m, d in
                     zip(shape.positions, kernel, stride, padding, more, dilation, strict=True))
        return Window(fine, kernel, stride, tuple((p, p) for p in padding), dilation)
