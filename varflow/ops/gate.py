"""Layers that scale channels by what they compute from them: squeeze and excitation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import sympy as sp

from varflow.activations import ACTIVATIONS
from varflow.calculus import rename
from varflow.ops.axes import divided, position_axes
from varflow.ops.base import Channels, Count, Function, Lemma, Op, Scalar, Text
from varflow.ops.linear import Linear, add_bias, in_fans, random_weight
from varflow.program import Lowering, Shape, Weight
from varflow.symbols import X, arg

RATIO = sp.Integer(16)


@dataclass(frozen=True)
class SqueezeExcite(Op):
    """y = x gate(W2 f(W1 mean_pool(x))): every channel scaled by a gate made from all channels' means.

    The weights NAME.squeeze and NAME.excite lead to ``squeeze_channels`` (channels / ``ratio`` unless given) and
    back; ``squeeze_variance`` and ``excite_variance`` are Var(W_ij), ``bias`` the variance of both biases.
    ``function`` and ``gate`` are activations ("hardsigmoid" in MobileNetV3, "silu" and "sigmoid" in EfficientNet).
    """

    name: ClassVar[str] = "squeeze_excite"
    lemma: ClassVar[Lemma] = Lemma(
        "The gates of a sample are functions of Gaussian coordinates, made by fresh weights from channel means, "
        "hence independent of any one channel: second moments are multiplied by E gate^2, 1/4 where means vanish "
        "and the gate is a sigmoid.",
        "Hu et al. 2018, arXiv:1709.01507")
    examples = ({"ratio": 4, "squeeze_variance": "1/fan_in", "excite_variance": "1/fan_in"},
                {"squeeze_channels": 8, "function": "silu", "gate": "hardsigmoid", "bias": "1/10",
                 "squeeze_variance": "2/fan_in", "excite_variance": "1/fan_in"})
    variances = {"squeeze": "squeeze_variance", "excite": "excite_variance"}

    ratio: Count = RATIO
    squeeze_channels: Channels | None = None
    function: Function = ACTIVATIONS["relu"].expression
    gate: Function = ACTIVATIONS["sigmoid"].expression
    squeeze_variance: Scalar | None = None
    excite_variance: Scalar | None = None
    distribution: Text = "normal"
    bias: Scalar | None = None

    def __post_init__(self) -> None:
        for variance in (self.squeeze_variance, self.excite_variance):
            Linear(sp.S.One, variance=variance, distribution=self.distribution)

    def _linear(self, b: Lowering, x: int, part: str, out: sp.Expr, variance: sp.Expr | None) -> int:
        name = f"{b.node}.{part}"
        weight = random_weight(Linear(out, distribution=self.distribution), variance,
                               Weight(name, out, b.shape(x).channels, sp.S.Zero))
        y = b.contract(b.declare(weight), x)
        return y if self.bias is None else add_bias(b, y, in_fans(self.bias, weight), f"{name}.bias")

    def _squeezed(self, shape: Shape) -> sp.Expr:
        if self.squeeze_channels is not None:
            return self.squeeze_channels
        return divided("squeeze_excite", shape.channels, self.ratio, "parts (ratio)")

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        position_axes(self.name, shapes[0])
        self._squeezed(shapes[0])
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        x, shape = args[0], b.shape(args[0])
        h = self._linear(b, b.position_mean(x), "squeeze", self._squeezed(shape), self.squeeze_variance)
        h = b.pointwise(rename(self.function, ((X, arg(0)),)), h)
        h = self._linear(b, h, "excite", shape.channels, self.excite_variance)
        gates = b.pointwise(rename(self.gate, ((X, arg(0)),)), h)
        return (b.pointwise(arg(0) * arg(1), x, b.position_expand(gates, shape.positions)),)
