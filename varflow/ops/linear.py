"""Layers with weights: linear, bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import sympy as sp

from varflow.errors import InputError
from varflow.ops.base import Channels, Flag, Lemma, Op, Scalar, Text
from varflow.program import Bias, Lowering, Shape, Weight
from varflow.symbols import FAN_IN, FAN_OUT, arg, scale_of

DISTRIBUTIONS = ("normal", "uniform", "truncated_normal", "orthogonal", "rademacher", "constant")


def weight_group(name: str) -> str:
    """A weight's name without repeat indices: repeated blocks share one unknown."""
    head, *rest = name.split("[")
    return head + "".join(part.split("]", 1)[1] for part in rest if "]" in part)


@dataclass(frozen=True)
class Linear(Op):
    """y = W x + b at every position, W of i.i.d. entries (or Haar orthogonal); as torch.nn.Linear.

    ``weight`` names the matrix: the same name twice is the same matrix; ``transpose`` uses W^T. ``variance``
    is Var(W_ij), an expression that may use fan_in and fan_out; without it the scale s = fan_in Var(W_ij) is
    an unknown. ``keep`` is the share of entries that an i.i.d. sparsity mask keeps (fan_in counts those),
    ``value`` the entry of a constant matrix, ``bias`` the variance of a bias vector.
    """

    name: ClassVar[str] = "linear"
    lemma: ClassVar[Lemma] = Lemma(
        "A sum of fan_in independent zero-mean terms: second moments and covariances are multiplied by "
        "fan_in Var(W_ij), and the sum is Gaussian as fan_in grows.",
        "He et al. 2015, eq. 10; Yang 2020, arXiv:2006.14548",
    )
    examples = ({"out_channels": 192}, {"out_channels": 96, "variance": "2/fan_in", "bias": "1/10"},
                {"out_channels": 160, "variance": "2/fan_in", "keep": "1/4"},
                {"out_channels": 128, "variance": "1/fan_in", "distribution": "uniform"})
    torch: ClassVar[str | None] = "Linear"

    out_channels: Channels
    weight: Text | None = None
    transpose: Flag = False
    variance: Scalar | None = None
    distribution: Text = "normal"
    bias: Scalar | None = None
    keep: Scalar = sp.S.One
    value: Scalar = sp.S.Zero

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise InputError(
                f"distribution {self.distribution!r} is not known", instead="one of " + ", ".join(DISTRIBUTIONS)
            )

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (Shape(self.out_channels, shapes[0].positions),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        first = b.program.weights.get(self.weight or b.node)
        weight = self.matrix(b.shape(args[0]).channels, b.node, first.transposed_first if first else None)
        y = b.contract(b.declare(weight), args[0], self.transpose)
        return (y if self.bias is None else add_bias(b, y, self._in_fans(self.bias, weight)),)

    def matrix(self, in_channels: sp.Expr, node: str, transposed_first: bool | None = None) -> Weight:
        """The matrix this layer uses; fan_in counts in the orientation of its first use."""
        name = self.weight or node
        rows, columns = self.out_channels, in_channels
        if self.transpose:
            rows, columns = columns, rows
        unknown = scale_of(weight_group(name)) if self.variance is None else None
        bare = Weight(name, rows, columns, sp.S.Zero, self.distribution, self.keep, self.value, unknown,
                      self.transpose if transposed_first is None else transposed_first)
        return self._with_variance(bare)

    def _with_variance(self, w: Weight) -> Weight:
        if w.distribution == "constant":
            return Weight(w.name, w.rows, w.columns, sp.S.Zero, "constant", w.keep, self.value,
                          transposed_first=w.transposed_first)
        variance = w.unknown / w.fan_in if self.variance is None else self._in_fans(self.variance, w)
        return Weight(w.name, w.rows, w.columns, variance, w.distribution, w.keep, unknown=w.unknown,
                      transposed_first=w.transposed_first)

    @staticmethod
    def _in_fans(expr: sp.Expr, w: Weight) -> sp.Expr:
        return expr.xreplace({FAN_IN: w.fan_in, FAN_OUT: w.fan_out})


def add_bias(b: Lowering, x: int, variance: sp.Expr) -> int:
    """x plus a Gaussian bias vector of the given variance."""
    bias = b.source(Bias(f"{b.node}.bias", variance), b.shape(x))
    return b.pointwise(arg(0) + arg(1), x, bias)


@dataclass(frozen=True)
class BiasLayer(Op):
    """y = x + b, b a Gaussian vector over channels, shared by positions and samples."""

    name: ClassVar[str] = "bias"
    lemma: ClassVar[Lemma] = Lemma(
        "An independent zero-mean bias adds its variance to every second moment and every covariance.",
        "Poole et al. 2016, eq. 3",
    )
    examples = ({"variance": "1/5"},)

    variance: Scalar

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (add_bias(b, args[0], self.variance),)
