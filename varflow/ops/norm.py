"""Normalization: layer, RMS, group, instance and batch norm, with affine part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import sympy as sp

from varflow.errors import InputError
from varflow.ops.axes import divided
from varflow.ops.base import Count, Lemma, Op, Scalar
from varflow.program import Lowering, Shape, Standardize
from varflow.symbols import arg


def _affine(b: Lowering, y: int, gamma: sp.Expr, beta: sp.Expr) -> tuple[int, ...]:
    if (gamma, beta) == (1, 0):
        return (y,)
    return (b.pointwise(gamma * arg(0) + beta, y),)


@dataclass(frozen=True)
class LayerNorm(Op):
    """gamma (x - mean) / sqrt(var + eps) + beta, statistics over the channels of one place (in networks of images
    too, as ConvNeXt's; over channels and positions it is ``group_norm`` with one group)."""

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
class GroupNorm(Op):
    """gamma (x - mean) / sqrt(var + eps) + beta, statistics per sample over each of ``groups`` blocks of channels
    with all their positions; as torch.nn.GroupNorm."""

    name: ClassVar[str] = "group_norm"
    lemma: ClassVar[Lemma] = Lemma(
        "Over m = channels/groups places Gaussian entries the value has second moment 1 exactly; backward the gradient "
        "is divided by the variance, (m-2)/(m-3)/q at m independent entries, 1/q at many.",
        "Wu and He 2018")
    examples = ({"groups": 4}, {"groups": 8, "gamma": "3/2", "beta": "1/2"})
    torch: ClassVar[str | None] = "GroupNorm"

    groups: Count
    eps: Scalar = sp.S.Zero
    gamma: Scalar = sp.S.One
    beta: Scalar = sp.S.Zero

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        share = divided("group_norm", shapes[0].channels, self.groups, "groups")
        _check_entries("group_norm", share * shapes[0].places)
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        y = b.standardize(Standardize("group", True, self.eps, groups=self.groups), args[0])
        return _affine(b, y, self.gamma, self.beta)


def _check_entries(layer: str, entries: sp.Expr) -> None:
    if entries == 1:
        raise InputError(f"{layer} over one entry", why="it has no variance",
                         instead="positions, or more channels for each group")


@dataclass(frozen=True)
class InstanceNorm(Op):
    """gamma (x - mean) / sqrt(var + eps) + beta, statistics per sample and channel over all positions:
    ``group_norm`` with one channel for each group; as torch.nn.InstanceNorm2d."""

    name: ClassVar[str] = "instance_norm"
    lemma: ClassVar[Lemma] = Lemma(
        "A group norm over the P positions of one channel: the value has second moment 1 exactly and is bounded by "
        "sqrt(P - 1); what positions have in common is taken away.",
        "Ulyanov et al. 2016, arXiv:1607.08022")
    torch: ClassVar[str | None] = "InstanceNorm2d"

    eps: Scalar = sp.S.Zero
    gamma: Scalar = sp.S.One
    beta: Scalar = sp.S.Zero

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        _check_entries("instance_norm", shapes[0].places)
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        groups = b.shape(args[0]).channels
        y = b.standardize(Standardize("group", True, self.eps, groups=groups), args[0])
        return _affine(b, y, self.gamma, self.beta)


@dataclass(frozen=True)
class BatchNorm(Op):
    """gamma (x - mean) / sqrt(var + eps) + beta, statistics per channel over ``batch`` samples and all positions
    (biased variance, training mode); without ``batch`` the limit of a large batch."""

    name: ClassVar[str] = "batch_norm"
    lemma: ClassVar[Lemma] = Lemma(
        "For a batch of B Gaussian samples the normalized column is uniform on a sphere of dimension B-2: second "
        "moment 1, covariance -1/(B-1) between samples; backward, E[1/var] = B/((B-3)(q-c)).",
        "Yang et al. 2019, arXiv:1902.08129")
    examples = ({"batch": 8},)
    torch: ClassVar[str | None] = "BatchNorm2d"

    batch: Scalar | None = None
    eps: Scalar = sp.S.Zero
    gamma: Scalar = sp.S.One
    beta: Scalar = sp.S.Zero

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        y = b.standardize(Standardize("sample", True, self.eps, batch=self.batch), args[0])
        return _affine(b, y, self.gamma, self.beta)
