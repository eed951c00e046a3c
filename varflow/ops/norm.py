"""Normalization: layer, RMS and batch norm, with affine part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import sympy as sp

from varflow.ops.base import Lemma, Op, Scalar
from varflow.program import Lowering, Shape, Standardize
from varflow.symbols import arg


def _affine(b: Lowering, y: int, gamma: sp.Expr, beta: sp.Expr) -> tuple[int, ...]:
    if (gamma, beta) == (1, 0):
        return (y,)
    return (b.pointwise(gamma * arg(0) + beta, y),)


@dataclass(frozen=True)
class LayerNorm(Op):
    """gamma (x - mean) / sqrt(var + eps) + beta, statistics over the channels of one place."""

    name: ClassVar[str] = "layer_norm"
    lemma: ClassVar[Lemma] = Lemma(
        "Statistics over many channels are constants: the value is centred and divided by its standard "
        "deviation, the gradient divided by it; the projections cost O(1/width).",
        "Ba et al. 2016; Xiong et al. 2020")
    examples = ({}, {"gamma": "3/2", "beta": "1/2"})
    torch: ClassVar[str | None] = "LayerNorm"

    eps: Scalar = sp.S.Zero
    gamma: Scalar = sp.S.One
    beta: Scalar = sp.S.Zero

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        y = b.standardize(Standardize("channel", True, self.eps), args[0])
        return _affine(b, y, self.gamma, self.beta)


@dataclass(frozen=True)
class RMSNorm(Op):
    """gamma x / sqrt(mean x^2 + eps), statistics over the channels of one place."""

    name: ClassVar[str] = "rms_norm"
    lemma: ClassVar[Lemma] = Lemma(
        "The mean square over many channels is a constant: the value and the gradient are divided by its root.",
        "Zhang and Sennrich 2019")
    torch: ClassVar[str | None] = "RMSNorm"

    eps: Scalar = sp.S.Zero
    gamma: Scalar = sp.S.One

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        y = b.standardize(Standardize("channel", False, self.eps), args[0])
        return _affine(b, y, self.gamma, sp.S.Zero)


@dataclass(frozen=True)
class BatchNorm(Op):
    """gamma (x - mean) / sqrt(var + eps) + beta, statistics per channel over ``batch`` samples (biased
    variance, training mode); without ``batch`` the limit of a large batch."""

    name: ClassVar[str] = "batch_norm"
    lemma: ClassVar[Lemma] = Lemma(
        "For a batch of B Gaussian samples the normalized column is uniform on a sphere of dimension B-2: second "
        "moment 1, covariance -1/(B-1) between samples; backward, E[1/var] = B/((B-3)(q-c)).",
        "Yang et al. 2019, arXiv:1902.08129")
    examples = ({"batch": 8},)
    torch: ClassVar[str | None] = "BatchNorm1d"

    batch: Scalar | None = None
    eps: Scalar = sp.S.Zero
    gamma: Scalar = sp.S.One
    beta: Scalar = sp.S.Zero

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        y = b.standardize(Standardize("sample", True, self.eps, batch=self.batch), args[0])
        return _affine(b, y, self.gamma, self.beta)
