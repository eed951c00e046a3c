"""Coordinate-wise layers: activations, sums, products, scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import sympy as sp

from varflow.activations import ACTIVATIONS
from varflow.calculus import rename
from varflow.errors import InputError, ShapeError
from varflow.ops.base import Function, Lemma, Op, Scalar, Sizes, same
from varflow.program import Lowering, Shape
from varflow.symbols import X, arg

TWO = sp.Integer(2)


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


@dataclass(frozen=True)
class Glu(Op):
    """y = a f(b), a the first half of the channels and b the second; ``function`` the gate f.

    ``function="silu"`` is SwiGLU, "gelu" GEGLU, "relu" ReGLU, "x" the bilinear layer.
    """

    name: ClassVar[str] = "glu"
    lemma: ClassVar[Lemma] = Lemma(
        "The halves are different coordinates: after an independent layer the second moment is that of a times "
        "E f(b)^2; each half's gradient is multiplied by the other factor's derivative.",
        "Dauphin, Fan, Auli and Grangier 2017; Shazeer 2020",
    )
    examples = ({}, {"function": "silu"}, {"function": "x"})
    torch: ClassVar[str | None] = "GLU"

    function: Function = ACTIVATIONS["sigmoid"].expression

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (Shape(_share("glu", shapes[0], TWO), shapes[0].positions),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        half = _share("glu", b.shape(args[0]), TWO)
        gated = (b.slice(args[0], start, half) for start in (sp.S.Zero, half))
        return (b.pointwise(arg(0) * rename(self.function, ((X, arg(1)),)), *gated),)


@dataclass(frozen=True)
class Maxout(Op):
    """y = the largest of ``k`` channel blocks: y_j = max over i < k of x_(j + i n/k)."""

    name: ClassVar[str] = "maxout"
    lemma: ClassVar[Lemma] = Lemma(
        "The blocks are different coordinates: after an independent zero-mean layer the moments are those of the "
        "largest of k Gaussians; the gradient goes to the largest alone, each with probability 1/k.",
        "Goodfellow, Warde-Farley, Mirza, Courville and Bengio 2013",
    )
    examples = ({}, {"k": 3})

    k: Scalar = TWO

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        if not (self.k.is_Integer and self.k.is_positive):
            raise InputError(f"maxout of {self.k} blocks", why="it takes the largest of k",
                             instead="a whole number k, as 2")
        return (Shape(_share("maxout", shapes[0], self.k), shapes[0].positions),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        size = _share("maxout", b.shape(args[0]), self.k)
        blocks = [b.slice(args[0], i * size, size) for i in range(int(self.k))]
        return (b.pointwise(sp.Max(*(arg(i) for i in range(len(blocks)))), *blocks),)


@dataclass(frozen=True)
class Crelu(Op):
    """y = (f(x), f(-x)), twice the channels; ``function`` the activation f, relu unless given."""

    name: ClassVar[str] = "crelu"
    lemma: ClassVar[Lemma] = Lemma(
        "The blocks are f of x and of -x: each has the moments of f where x is symmetric; the gradient is the sum of "
        "both, f'(x) and -f'(-x) times theirs.",
        "Shang, Sohn, Almeida and Lee 2016; Salimans, Karpathy, Chen and Kingma 2017",
    )
    examples = ({}, {"function": "elu"})

    function: Function = ACTIVATIONS["relu"].expression

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (Shape(2 * shapes[0].channels, shapes[0].positions),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        sides = (rename(self.function, ((X, side),)) for side in (arg(0), -arg(0)))
        return (b.concat(*(b.pointwise(f, args[0]) for f in sides)),)


def _share(what: str, shape: Shape, parts: sp.Expr) -> sp.Expr:
    """The width of one of ``parts`` equal channel blocks."""
    size = shape.channels / parts
    if size.is_number and not size.is_integer:
        raise ShapeError(f"{what} cannot cut {shape.channels} channels into {parts} equal blocks",
                         instead=f"a multiple of {parts} channels")
    return size
