"""Coordinate-wise layers: activations, sums, products, scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import sympy as sp

from varflow.calculus import rename
from varflow.errors import InputError
from varflow.ops.base import Function, Lemma, Op, Scalar, Sizes, same
from varflow.program import Lowering, Shape
from varflow.symbols import X, arg


@dataclass(frozen=True)
class ActivationLayer(Op):
    """y = f(x) coordinate by coordinate; ``function`` is a name, or any expression of x."""

    name: ClassVar[str] = "activation"
    lemma: ClassVar[Lemma] = Lemma(
        "Each coordinate is f of a Gaussian coordinate: moments are one-dimensional Gaussian expectations; "
        "the gradient is multiplied by f'.",
        "Poole et al. 2016, eq. 3; Schoenholz et al. 2017, eq. 9",
    )
    examples = ({"function": "relu"}, {"function": "gelu"}, {"function": "tanh"}, {"function": "x*erf(x)"})

    function: Function

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (b.pointwise(rename(self.function, ((X, arg(0)),)), args[0]),)


@dataclass(frozen=True)
class Add(Op):
    """Weighted sum of its inputs; ``weights`` all one unless given."""

    name: ClassVar[str] = "add"
    arity: ClassVar[tuple[int, int | None]] = (1, None)
    lemma: ClassVar[Lemma] = Lemma(
        "The second moment of a sum is the sum of all second moments and twice all cross moments; a cross "
        "moment vanishes only where one term ends in an independent zero-mean weight.",
        "Yang and Schoenholz 2017, theorem 5",
    )
    examples = ({}, {"weights": ("1/2", "2")})

    weights: Sizes = ()

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        if self.weights and len(self.weights) != len(shapes):
            raise InputError(f"{len(self.weights)} weights for {len(shapes)} inputs",
                             instead="one weight per input, or none")
        return (same("add", *shapes),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        weights = self.weights or (sp.S.One,) * len(args)
        return (b.pointwise(sp.Add(*(w * arg(i) for i, w in enumerate(weights))), *args),)


@dataclass(frozen=True)
class Subtract(Op):
    """y = x_0 - x_1."""

    name: ClassVar[str] = "subtract"
    arity: ClassVar[tuple[int, int | None]] = (2, 2)
    lemma: ClassVar[Lemma] = Lemma(
        "As a sum, with the cross moment counted negative.", "Yang and Schoenholz 2017, theorem 5")

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (same("subtract", *shapes),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (b.pointwise(arg(0) - arg(1), *args),)


@dataclass(frozen=True)
class Multiply(Op):
    """Product of its inputs, coordinate by coordinate (a gate)."""

    name: ClassVar[str] = "multiply"
    arity: ClassVar[tuple[int, int | None]] = (1, None)
    lemma: ClassVar[Lemma] = Lemma(
        "The second moment of a product of independent factors is the product of theirs; dependent factors "
        "need their joint moments (x x has 3 q^2).",
        "Isserlis 1918",
    )

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (same("multiply", *shapes),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (b.pointwise(sp.Mul(*(arg(i) for i in range(len(args)))), *args),)


@dataclass(frozen=True)
class Scale(Op):
    """y = c x."""

    name: ClassVar[str] = "scale"
    lemma: ClassVar[Lemma] = Lemma("Second moments are multiplied by the square of the factor.", "by definition")
    examples = ({"factor": "3/2"},)

    factor: Scalar

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (b.pointwise(self.factor * arg(0), args[0]),)


@dataclass(frozen=True)
class Identity(Op):
    """y = x."""

    name: ClassVar[str] = "identity"
    lemma: ClassVar[Lemma] = Lemma("Nothing changes.", "by definition")
    torch: ClassVar[str | None] = "Identity"

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (b.pointwise(arg(0), args[0]),)
