"""Layers with weights: linear, bias."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import sympy as sp

from varflow.errors import InputError
from varflow.ops.base import Channels, Flag, Lemma, Op, Scalar, Text
from varflow.program import Bias, Lowering, Shape, Weight
from varflow.symbols import FAN_IN, FAN_OUT, arg, scale_of

NORMALIZED = ("standardized", "weight_norm", "spectral")
DISTRIBUTIONS = ("normal", "uniform", "truncated_normal", "orthogonal", "rademacher", "constant", *NORMALIZED)


class Random(Protocol):
    """The fields of a layer that say how its weights are drawn."""

    @property
    def distribution(self) -> str: ...
    @property
    def keep(self) -> sp.Expr: ...
    @property
    def value(self) -> sp.Expr: ...


def weight_group(name: str) -> str:
    """A weight's name without repeat indices: repeated blocks share one unknown."""
    head, *rest = name.split("[")
    return head + "".join(part.split("]", 1)[1] for part in rest if "]" in part)


def unknown_variances(layer: Op, node: str) -> dict[str, str]:
    """The groups of a layer's weights whose variance is not given, and the field that would give it."""
    name = getattr(layer, "weight", None) or node
    full = {f"{name}.{part}" if part else name: field for part, field in layer.variances.items()}
    return {weight_group(n): field for n, field in full.items() if getattr(layer, field) is None}


def check_distribution(layer: Random) -> None:
    """Raise InputError for a distribution that is not known, or fields that it leaves without meaning."""
    if layer.distribution not in DISTRIBUTIONS:
        raise InputError(
            f"distribution {layer.distribution!r} is not known", instead="one of " + ", ".join(DISTRIBUTIONS)
        )
    if layer.keep == 0:
        raise InputError("keep = 0", why="no entry of the weight would be left", instead="a share of entries above 0")
    if layer.distribution in NORMALIZED and layer.keep != 1:
        raise InputError(f"{layer.distribution} weights with keep = {layer.keep}",
                         why="a row with missing entries is normalized otherwise",
                         instead="keep = 1, or distribution: normal")
    if layer.distribution == "spectral" and getattr(layer, "variance", None) is not None:
        raise InputError("spectral weights with a variance", why="their spectral norm fixes it",
                         instead="value: the spectral norm (1 if left out)")


def random_weight(layer: Random, variance: sp.Expr | None, bare: Weight) -> Weight:
    """The weight of a layer: ``bare`` (name, sizes, orientation) with the law that its fields state.

    ``variance`` is Var(W_ij); None makes the scale fan_in Var(W_ij) an unknown.
    """
    w = replace(bare, distribution=layer.distribution, keep=layer.keep)
    if layer.distribution == "constant":
        return replace(w, value=layer.value)
    if layer.distribution == "spectral":
        norm = layer.value or sp.S.One
        return replace(w, value=norm, variance=norm**2 * unit_norm_variance(w))
    if variance is not None:
        return replace(w, variance=in_fans(variance, w))
    unknown = scale_of(weight_group(w.name))
    return replace(w, variance=unknown / w.fan_in, unknown=unknown)


def unit_norm_variance(w: Weight) -> sp.Expr:
    """Var(W_ij) of a wide matrix, its taps side by side, of spectral norm 1 (Bai and Yin 1993)."""
    return (sp.sqrt(w.rows) + sp.sqrt(w.columns * w.taps)) ** -2


def in_fans(expr: sp.Expr, w: Weight) -> sp.Expr:
    """An expression of fan_in and fan_out for one weight."""
    return expr.xreplace({FAN_IN: w.fan_in, FAN_OUT: w.fan_out})


@dataclass(frozen=True)
class Linear(Op):
    """y = W x + b at every position, W of i.i.d. entries (or Haar orthogonal); as torch.nn.Linear.

    ``weight`` names the matrix: the same name twice is the same matrix; ``transpose`` uses W^T. ``variance``
    is Var(W_ij), an expression that may use fan_in and fan_out; without it the scale s = fan_in Var(W_ij) is
    an unknown. ``keep`` is the share of entries that an i.i.d. sparsity mask keeps (fan_in counts those),
    ``value`` the entry of a constant matrix, ``bias`` the variance of a bias vector.

    Normalized ``distribution``: "standardized" (each row of mean 0 and of the stated variance, Brock et al. 2021),
    "weight_norm" (each row g v/|v|, g^2 = fan_in Var(W_ij), Salimans and Kingma 2016), "spectral" (the matrix divided
    by its largest singular value and multiplied by ``value``, 1 unless given, Miyato et al. 2018; its variance is
    that of a wide matrix).
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
    variances = {"": "variance"}

    out_channels: Channels
    weight: Text | None = None
    transpose: Flag = False
    variance: Scalar | None = None
    distribution: Text = "normal"
    bias: Scalar | None = None
    keep: Scalar = sp.S.One
    value: Scalar = sp.S.Zero

    def __post_init__(self) -> None:
        check_distribution(self)

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (Shape(self.out_channels, shapes[0].positions),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        name = self.weight or b.node
        rows, columns = self.out_channels, b.shape(args[0]).channels
        if self.transpose:
            rows, columns = columns, rows
        bare = Weight(name, rows, columns, sp.S.Zero, transposed_first=first_use(b, name, self.transpose))
        weight = random_weight(self, self.variance, bare)
        y = b.contract(b.declare(weight), args[0], self.transpose)
        return (y if self.bias is None else add_bias(b, y, in_fans(self.bias, weight)),)


def first_use(b: Lowering, name: str, transpose: bool) -> bool:
    """Whether the first use of a weight is a transposed one; fan_in counts in that orientation."""
    first = b.program.weights.get(name)
    return transpose if first is None else first.transposed_first


def add_bias(b: Lowering, x: int, variance: sp.Expr, name: str | None = None) -> int:
    """x plus a Gaussian bias vector of the given variance, NODE.bias unless it has a name."""
    bias = b.source(Bias(name or f"{b.node}.bias", variance), b.shape(x))
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
