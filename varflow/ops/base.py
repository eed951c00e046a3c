"""What a layer is: a frozen dataclass with fields, a shape rule, a lowering and a lemma.

Registering is defining: every final subclass of :class:`Op` is in :data:`OPS` under its ``name``.
Field annotations say how a value given as text or number is read: ``Scalar`` (an expression of the network's
symbols), ``PerHead`` (one that may use d_k, the channels of an attention head), ``Channels`` (a width), ``Count`` (a
whole number that stays when widths are scaled), ``Sizes`` (several widths), ``Axes`` (whole numbers, one or one per
position axis), ``Padding`` (the same, or "same"), ``Function`` (an expression of x), ``Text``, ``Flag`` and their
optional forms.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

import sympy as sp

from varflow.errors import ShapeError
from varflow.program import Lowering, Shape

Scalar: TypeAlias = sp.Expr
PerHead: TypeAlias = sp.Expr
Channels: TypeAlias = sp.Expr
Count: TypeAlias = sp.Expr
Sizes: TypeAlias = tuple[sp.Expr, ...]
Axes: TypeAlias = tuple[int, ...]
Padding: TypeAlias = tuple[int, ...] | str
Function: TypeAlias = sp.Expr
Text: TypeAlias = str
Flag: TypeAlias = bool

OPS: dict[str, type[Op]] = {}


@dataclass(frozen=True)
class Lemma:
    """The sentence that justifies a layer's step in a derivation, and its source."""

    sentence: str
    reference: str


@dataclass(frozen=True)
class Op(ABC):
    """A layer. Subclasses are final frozen dataclasses.

    ``arity`` is the least and the largest number of inputs (None: any), ``outputs`` the port names of a layer
    with several outputs, ``examples`` field values that the generic tests run, ``torch`` the name of the
    same layer in PyTorch (None: it has none), ``variances`` the field that holds Var(W_ij) for each weight of
    the layer, by what follows the layer's name in the weight's ("" for a layer with one weight).
    """

    name: ClassVar[str]
    arity: ClassVar[tuple[int, int | None]] = (1, 1)
    lemma: ClassVar[Lemma]
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    torch: ClassVar[str | None] = None
    variances: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init_subclass__(cls) -> None:
        if "name" in cls.__dict__:
            OPS[cls.name] = cls

    @abstractmethod
    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        """Output shapes for input shapes; raises ShapeError."""

    @abstractmethod
    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        """Write the layer's primitive program; returns one value per output."""

    def ports(self, outputs: int) -> tuple[str, ...]:
        """Names of the outputs; one output has none."""
        return ("",) if outputs == 1 else tuple(str(i) for i in range(outputs))

    def fields(self) -> dict[str, Any]:
        """Field values by name, those at their default left out."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }


def same(what: str, *shapes: Shape) -> Shape:
    """The common shape of the inputs of a coordinate-wise layer."""
    for k, shape in enumerate(shapes[1:], start=1):
        if shape != shapes[0]:
            alone = shape.channels == shapes[0].channels and () in (shape.positions, shapes[0].positions)
            raise ShapeError(
                f"input {k} has shape {shape}, input 0 has {shapes[0]}",
                why=f"{what} works coordinate by coordinate",
                instead="expand (the layer) for the input without positions" if alone else
                "bring the inputs to one shape, with a linear layer or concat",
            )
    return shapes[0]
