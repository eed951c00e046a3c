"""Layers with masks: dropout, drop path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import sympy as sp

from varflow.errors import InputError
from varflow.ops.base import Flag, Lemma, Op, Scalar, Text
from varflow.program import Lowering, Mask, Shape
from varflow.symbols import arg


def _check_rate(p: sp.Expr) -> None:
    if p.is_number and not 0 <= p < 1:
        raise InputError(f"drop rate {p} is outside [0, 1)", instead="a rate of at least 0 and below 1")


def _masked(b: Lowering, x: int, mask: Mask, inverted: bool) -> int:
    factor = 1 / mask.keep if inverted else sp.S.One
    return b.pointwise(factor * arg(0) * arg(1), x, b.source(mask, b.shape(x)))


@dataclass(frozen=True)
class Dropout(Op):
    """Each entry kept with probability 1 - p, and divided by it if ``inverted``; ``mask`` names a mask that
    layers share."""

    name: ClassVar[str] = "dropout"
    lemma: ClassVar[Lemma] = Lemma(
        "An inverted mask of rate p keeps the mean and multiplies second moments by 1/(1-p); covariances between "
        "independently masked places stay. A shared mask multiplies cross moments too.",
        "Srivastava et al. 2014")
    examples = ({"p": "1/4"}, {"p": "1/2", "inverted": False})
    torch: ClassVar[str | None] = "Dropout"

    p: Scalar
    inverted: Flag = True
    mask: Text | None = None

    def __post_init__(self) -> None:
        _check_rate(self.p)

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (_masked(b, args[0], Mask(self.mask or f"{b.node}.mask", 1 - self.p), self.inverted),)


@dataclass(frozen=True)
class DropPath(Op):
    """The whole value of a sample kept with probability 1 - p, and divided by it if ``inverted``."""

    name: ClassVar[str] = "drop_path"
    lemma: ClassVar[Lemma] = Lemma(
        "One mask for a sample: second moments and covariances between positions are multiplied by 1/(1-p).",
        "Huang et al. 2016, arXiv:1603.09382")
    examples = ({"p": "1/4"},)

    p: Scalar
    inverted: Flag = True
    mask: Text | None = None

    def __post_init__(self) -> None:
        _check_rate(self.p)

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        mask = Mask(self.mask or f"{b.node}.mask", 1 - self.p, per_sample=True)
        return (_masked(b, args[0], mask, self.inverted),)
