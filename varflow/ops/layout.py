"""Layers that only move channels and positions: concat, split, permute, flatten, reshape, mean pooling, expand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import sympy as sp

from varflow.errors import ShapeError
from varflow.ops.base import Channels, Lemma, Op, Sizes, Text
from varflow.program import Lowering, Shape
from varflow.symbols import arg


@dataclass(frozen=True)
class ConcatLayer(Op):
    """Channel blocks one after another; widths may differ."""

    name: ClassVar[str] = "concat"
    arity: ClassVar[tuple[int, int | None]] = (1, None)
    lemma: ClassVar[Lemma] = Lemma(
        "Each block keeps its own law; averages over channels weigh blocks by their width.", "by definition")

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        for k, shape in enumerate(shapes[1:], start=1):
            if shape.positions != shapes[0].positions:
                raise ShapeError(f"input {k} has positions {shape.positions}, input 0 has {shapes[0].positions}",
                                 why="concat joins channels at equal positions",
                                 instead="bring the inputs to the same positions")
        return (Shape(sp.Add(*(s.channels for s in shapes)), shapes[0].positions),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (b.concat(*args),)


@dataclass(frozen=True)
class Split(Op):
    """Consecutive channel blocks of the given ``sizes``, one output each; the last may be left out."""

    name: ClassVar[str] = "split"
    lemma: ClassVar[Lemma] = Lemma(
        "The blocks are different coordinates of one value: independent of each other given the layer before.",
        "by definition")
    examples = ({"sizes": (64, 128)},)

    sizes: Sizes

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return tuple(Shape(size, shapes[0].positions) for size in self._all(shapes[0].channels))

    def _all(self, channels: sp.Expr) -> tuple[sp.Expr, ...]:
        rest = sp.expand(channels - sp.Add(*self.sizes))
        if rest == 0:
            return self.sizes
        if rest.is_negative or (len(self.sizes) > 1 and rest.is_positive is None):
            raise ShapeError(f"sizes {self.sizes} do not add up to {channels} channels",
                             instead="sizes whose sum is the number of channels")
        return (*self.sizes, rest)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        sizes = self._all(b.shape(args[0]).channels)
        starts = [sp.Add(*sizes[:k]) for k in range(len(sizes))]
        return tuple(b.slice(args[0], start, size) for start, size in zip(starts, sizes, strict=True))


@dataclass(frozen=True)
class PermuteLayer(Op):
    """A fixed random permutation of the channels; the same name is the same permutation."""

    name: ClassVar[str] = "permute"
    lemma: ClassVar[Lemma] = Lemma(
        "Permuted channels are other coordinates: of the same law, independent of the unpermuted ones.",
        "by definition")

    permutation: Text = ""

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (b.permute(args[0], self.permutation or b.node),)


@dataclass(frozen=True)
class FlattenLayer(Op):
    """Positions become channels (torch.nn.Flatten)."""

    name: ClassVar[str] = "flatten"
    lemma: ClassVar[Lemma] = Lemma("The same coordinates, counted as channels.", "by definition")
    torch: ClassVar[str | None] = "Flatten"

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (Shape(shapes[0].channels * shapes[0].places),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (b.flatten(args[0]),)


@dataclass(frozen=True)
class Reshape(Op):
    """The same coordinates as ``channels`` at ``positions``; the total size stays."""

    name: ClassVar[str] = "reshape"
    lemma: ClassVar[Lemma] = Lemma("The same coordinates, arranged otherwise.", "by definition")
    examples = ({"channels": 48, "positions": (4,)},)

    channels: Channels
    positions: Sizes = ()

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        out, old = Shape(self.channels, self.positions), shapes[0]
        if sp.expand(out.channels * out.places - old.channels * old.places) != 0:
            raise ShapeError(f"shape {out} has {out.channels * out.places} entries, the input {old} has "
                             f"{old.channels * old.places}", instead="a shape of the same size")
        return (out,)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        x = args[0]
        if b.shape(x).positions == self.positions:
            return (b.pointwise(arg(0), x),)
        if b.shape(x).positions:
            x = b.flatten(x)
        return (b.unflatten(x, self.channels, self.positions) if self.positions else x,)


@dataclass(frozen=True)
class MeanPool(Op):
    """Mean over all positions of a sample."""

    name: ClassVar[str] = "mean_pool"
    lemma: ClassVar[Lemma] = Lemma(
        "With P exchangeable positions of second moment q and covariance c the mean has (q + (P-1) c)/P; "
        "backward every position gets 1/P of the same gradient.",
        "by definition")
    torch: ClassVar[str | None] = "AdaptiveAvgPool1d(1)"

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        if not shapes[0].positions:
            raise ShapeError("mean_pool needs positions", why=f"its input has shape {shapes[0]}",
                             instead="an input declared with positions, or leave mean_pool out")
        return (Shape(shapes[0].channels),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (b.position_mean(args[0]),)


@dataclass(frozen=True)
class Expand(Op):
    """A value without positions at every one of ``positions``: a condition, an embedding of time, a gate of channels
    beside an image (in torch ``x[:, :, None, None].expand(-1, -1, h, w)``)."""

    name: ClassVar[str] = "expand"
    lemma: ClassVar[Lemma] = Lemma(
        "The same value everywhere: positions have second moment q and covariance q; backward the gradients of all "
        "positions add up, P g + P (P-1) c for P of second moment g and covariance c.", "by definition")
    examples = ({"positions": (4,)}, {"positions": (2, 3)})

    positions: Sizes

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        if not self.positions:
            raise ShapeError("expand has no positions", instead="positions: [8, 8]")
        if shapes[0].positions:
            raise ShapeError(f"expand takes a value without positions, and has one of shape {shapes[0]}",
                             instead="mean_pool before it, or upsample")
        return (Shape(shapes[0].channels, self.positions),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (b.position_expand(args[0], self.positions),)
