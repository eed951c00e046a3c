"""Layers that rearrange or resample positions: up-sampling, pixel shuffle, padding, cropping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import sympy as sp

from varflow.errors import InputError, ShapeError
from varflow.ops.axes import check_numbers, divided, position_axes, spread
from varflow.ops.base import Axes, Lemma, Op, Text
from varflow.program import Lowering, Mix, Shape
from varflow.symbols import arg
from varflow.window import MODES, Window

INTERPOLATIONS = ("nearest", "bilinear")


def _times(shape: Shape, factors: tuple[int, ...]) -> tuple[sp.Expr, ...]:
    return tuple(sp.expand(n * r) for n, r in zip(shape.positions, factors, strict=True))


def _tiles(fine: tuple[sp.Expr, ...], factors: tuple[int, ...]) -> Window:
    """Windows that tile a fine grid, one for each place of the coarse one."""
    axes = len(factors)
    return Window(fine, factors, factors, ((0, 0),) * axes, (1,) * axes)


def _shift(inner: tuple[sp.Expr, ...], sides: tuple[tuple[int, int], ...], mode: str) -> Window:
    """The window of one tap that reads a grid with borders around it."""
    axes = len(sides)
    return Window(inner, (1,) * axes, (1,) * axes, sides, (1,) * axes, mode)


@dataclass(frozen=True)
class Upsample(Op):
    """``scale`` times as many places along each axis, by ``mode`` "nearest" (each value repeated) or "bilinear"
    (linear between the centres of places, the outermost values continued: align_corners is false); as
    torch.nn.Upsample. One axis is interpolated linearly, three trilinearly."""

    name: ClassVar[str] = "upsample"
    lemma: ClassVar[Lemma] = Lemma(
        "Repeated values keep their moments and are equal within a cell of scale^2 places; interpolated ones are "
        "means of neighbours with triangular weights: between q and c, by their phase. Backward a place collects "
        "the gradients of all places it was written to.",
        "by definition")
    examples = ({"scale": 2}, {"scale": 2, "mode": "bilinear"}, {"scale": 3, "mode": "bilinear"})
    torch: ClassVar[str | None] = "Upsample"

    scale: Axes
    mode: Text = "nearest"

    def __post_init__(self) -> None:
        check_numbers(1, scale=self.scale)
        if self.mode not in INTERPOLATIONS:
            raise InputError(f"upsample mode {self.mode!r} is not known", instead="one of " + ", ".join(INTERPOLATIONS))

    def _scales(self, shape: Shape) -> tuple[int, ...]:
        return spread("scale", self.scale, position_axes(self.name, shape))

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (Shape(shapes[0].channels, _times(shapes[0], self._scales(shapes[0]))),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        shape = b.shape(args[0])
        scales = self._scales(shape)
        fine = _times(shape, scales)
        if self.mode == "nearest":
            w = _tiles(fine, scales)
            return (b.mix(Mix(w, (sp.S.One,) * w.taps, transpose=True), args[0]),)
        around = _shift(shape.positions, ((1, 1),) * len(scales), "replicate")
        x = b.mix(Mix(around, (sp.S.One,)), args[0])
        return (b.mix(_interpolation(fine, scales), x),)


def _interpolation(fine: tuple[sp.Expr, ...], scales: tuple[int, ...]) -> Mix:
    """Each place of a coarse grid with one more place around it spread as a triangle over the fine grid."""
    rows = [_triangle(s) for s in scales]
    kernel = tuple(len(row) for row in rows)
    sides = tuple((s + s // 2, s + s // 2) for s in scales)
    w = Window(fine, kernel, scales, sides, (1,) * len(scales))
    return Mix(w, tuple(sp.Mul(*taps) for taps in product(*rows)), transpose=True)


def _triangle(s: int) -> tuple[sp.Rational, ...]:
    """1 - |distance|/s at the 2 s (odd s: 2 s - 1) fine places around the centre of a coarse one."""
    taps = 2 * s - s % 2
    return tuple(1 - abs(sp.Rational(2 * t - taps + 1, 2 * s)) for t in range(taps))


def _phases(factors: tuple[int, ...]) -> Iterator[tuple[sp.Rational, ...]]:
    """Coefficients of the tiling window that pick its taps one by one."""
    count = int(sp.Mul(*factors))
    for k in range(count):
        yield tuple(sp.S.One if t == k else sp.S.Zero for t in range(count))


@dataclass(frozen=True)
class PixelShuffle(Op):
    """Blocks of r^2 channels become r x r places of one channel; as torch.nn.PixelShuffle (``upscale_factor`` r,
    r^axes channels over 1 to 3 axes)."""

    name: ClassVar[str] = "pixel_shuffle"
    lemma: ClassVar[Lemma] = Lemma(
        "The same coordinates arranged otherwise: places of one cell come from different channels, so they are as "
        "independent as channels are.",
        "Shi et al. 2016, arXiv:1609.05158")
    examples = ({"upscale_factor": 2},)
    torch: ClassVar[str | None] = "PixelShuffle"

    upscale_factor: Axes

    def __post_init__(self) -> None:
        check_numbers(1, upscale_factor=self.upscale_factor)

    def _factors(self, shape: Shape) -> tuple[int, ...]:
        return spread("upscale_factor", self.upscale_factor, position_axes(self.name, shape))

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        factors = self._factors(shapes[0])
        channels = divided(self.name, shapes[0].channels, sp.Mul(*factors), "places of a cell")
        return (Shape(channels, _times(shapes[0], factors)),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        shape = b.shape(args[0])
        factors = self._factors(shape)
        w = _tiles(_times(shape, factors), factors)
        size = shape.channels / w.taps
        dealt = b.deal(args[0], w.taps)
        parts = [b.mix(Mix(w, pick, transpose=True), b.slice(dealt, k * size, size))
                 for k, pick in enumerate(_phases(factors))]
        return (b.pointwise(sp.Add(*(arg(k) for k in range(len(parts)))), *parts),)


@dataclass(frozen=True)
class PixelUnshuffle(Op):
    """Cells of r x r places become r^2 channels: undoes ``pixel_shuffle``; as torch.nn.PixelUnshuffle."""

    name: ClassVar[str] = "pixel_unshuffle"
    lemma: ClassVar[Lemma] = Lemma("The same coordinates, places of a cell counted as channels.",
                                   "Shi et al. 2016, arXiv:1609.05158")
    examples = ({"downscale_factor": 2},)
    torch: ClassVar[str | None] = "PixelUnshuffle"

    downscale_factor: Axes

    def __post_init__(self) -> None:
        check_numbers(1, downscale_factor=self.downscale_factor)

    def _factors(self, shape: Shape) -> tuple[int, ...]:
        factors = spread("downscale_factor", self.downscale_factor, position_axes(self.name, shape))
        for n, r in zip(shape.positions, factors, strict=True):
            if (n / r).is_integer is False:
                raise ShapeError(f"{n} positions do not divide into cells of {r}",
                                 instead="a downscale_factor that divides the positions")
        return factors

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        factors = self._factors(shapes[0])
        w = _tiles(shapes[0].positions, factors)
        return (Shape(shapes[0].channels * w.taps, w.outputs),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        factors = self._factors(b.shape(args[0]))
        w = _tiles(b.shape(args[0]).positions, factors)
        parts = [b.mix(Mix(w, pick), args[0]) for pick in _phases(factors)]
        return (b.deal(b.concat(*parts), w.taps, inverse=True),)


@dataclass(frozen=True)
class Pad(Op):
    """``before`` and ``after`` more places along each axis (``after`` as ``before`` unless given): zeros, or the
    input itself by ``padding_mode`` circular, reflect or replicate; as torch.nn.functional.pad."""

    name: ClassVar[str] = "pad"
    lemma: ClassVar[Lemma] = Lemma("Places keep their law; those added are zero, or copies.", "by definition")
    examples = ({"before": 1}, {"before": 1, "after": 0, "padding_mode": "replicate"})
    torch: ClassVar[str | None] = "ZeroPad2d"

    before: Axes
    after: Axes | None = None
    padding_mode: Text = "zeros"

    def __post_init__(self) -> None:
        check_numbers(0, before=self.before, after=self.after)
        if self.padding_mode not in MODES:
            raise InputError(f"padding mode {self.padding_mode!r} is not known", instead="one of " + ", ".join(MODES))

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (Shape(shapes[0].channels, self._window(shapes[0]).outputs),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (b.mix(Mix(self._window(b.shape(args[0])), (sp.S.One,)), args[0]),)

    def _window(self, shape: Shape) -> Window:
        return _shift(shape.positions, _sides(self, shape), self.padding_mode)


def _sides(layer: Pad | Crop, shape: Shape) -> tuple[tuple[int, int], ...]:
    axes = position_axes(layer.name, shape)
    after = layer.before if layer.after is None else layer.after
    return tuple(zip(spread("before", layer.before, axes), spread("after", after, axes), strict=True))


@dataclass(frozen=True)
class Crop(Op):
    """Without the first ``before`` and the last ``after`` places along each axis (``after`` as ``before`` unless
    given)."""

    name: ClassVar[str] = "crop"
    lemma: ClassVar[Lemma] = Lemma("Places that are left keep their law; the others get no gradient.",
                                   "by definition")
    examples = ({"before": 1, "after": 0},)

    before: Axes
    after: Axes | None = None

    def __post_init__(self) -> None:
        check_numbers(0, before=self.before, after=self.after)

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (Shape(shapes[0].channels, self._window(shapes[0]).inputs),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (b.mix(Mix(self._window(b.shape(args[0])), (sp.S.One,), transpose=True), args[0]),)

    def _window(self, shape: Shape) -> Window:
        sides = _sides(self, shape)
        inner = tuple(n - low - high for n, (low, high) in zip(shape.positions, sides, strict=True))
        if any((n - 1).is_negative for n in inner):
            raise ShapeError(f"crop leaves nothing of {shape.positions}", instead="fewer places cut away")
        return _shift(inner, sides, "zeros")
