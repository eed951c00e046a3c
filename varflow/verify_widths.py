"""The same network at other widths: every channel count scaled, the scale fan_in Var(W_ij) of each weight kept."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import sympy as sp

from varflow.errors import InputError
from varflow.lowering import lower
from varflow.network import BlockNode, InputNode, Network
from varflow.ops.base import Op
from varflow.ops.linear import weight_group
from varflow.program import Bias, Contract, Program, Scores, Standardize, Weight
from varflow.symbols import FAN_IN
from varflow.verify_check import Prediction
from varflow.verify_report import Key

LEAST_WIDTH = 12
"""The narrowest width at which an error of O(1/n) is taken for b/n."""
LEAST_HEADS, LEAST_HEAD, WIDEST = 4, 8, 8192
"""Of attention: heads, and channels of a head, of the narrowest network, and channels of the widest one."""
SQUARED = ("heads, and channels of a head, are scaled alike by f = {}, other widths by the square: limits are "
           "extrapolated as a + b/f + c/f^2")
LADDERS = tuple(tuple(Fraction(f) for f in text.split()) for text in ("1/4 1/2 1", "1/2 1 2", "1 2 4"))
OF_ATTENTION = tuple(tuple(Fraction(f) for f in text.split()) for text in (
    "1/2 1 2 4", "1 2 4 8", "1/4 1/2 1 2", "1/8 1/4 1/2 1"))
ORDER_OF_ATTENTION = 2
"""Errors of O(1/heads) and O(1/d_k), and of O(1/n), n = heads d_k: both powers of one factor."""


@dataclass(frozen=True, eq=False)
class Scaled:
    """A network with all channel counts times ``factor`` (its square where the heads of attention are multiplied by
    ``factor`` too); ``rounded`` where a count was not divisible. ``inputs``: by what else the channels of an input were
    multiplied, where all of them go into products with weights."""

    factor: Fraction
    network: Network
    program: Program
    rounded: bool
    inputs: Mapping[str, Fraction] = field(default_factory=dict)

    def of_inputs(self, predicted: Mapping[Key, Prediction]) -> dict[Key, Prediction]:
        """Predictions of the original, with the gradients at ``inputs`` of this one."""
        other = {("backward", name): 1 / float(factor) for name, factor in self.inputs.items()}
        return {key: p.times(other.get(key, 1.0)) for key, p in predicted.items()}

    @cached_property
    def of_width(self) -> bool:
        """Whether its moments are others than the original's: rounded counts, sums that grow with the width, or groups
        of channels that do."""
        constant = any(w.distribution == "constant" and w.value != 0 for w in self.program.weights.values())
        grouped = any(isinstance(s.primitive, Standardize) and s.primitive.groups not in (1, s.shape.channels)
                      for s in self.program)
        return self.rounded or grouped or ((constant or _attends(self.program)) and self.factor != 1)


def _attends(program: Program) -> bool:
    return any(isinstance(s.primitive, Scores) and not s.backward for s in program)


@dataclass
class _Scaling:
    """Copies a network with numbers for all symbols; ``weights`` and ``biases`` (by group) are the original's."""

    factor: Fraction
    weights: Mapping[str, Weight]
    biases: Mapping[str, sp.Expr]
    multiplied: Collection[str] = ()
    heads: Fraction = Fraction(1)
    rounded: bool = False
    inputs: dict[str, Fraction] = field(default_factory=dict)

    def input_size(self, name: str, channels: sp.Expr) -> sp.Integer:
        """Of an input that is ``multiplied`` by weights only, whose number of channels has no say in what follows."""
        if name not in self.multiplied:
            return self.size(channels)
        exact = Fraction(int(channels)) * self.factor
        whole = max(1, int(exact + Fraction(1, 2)))
        if exact != whole:
            self.inputs[name] = whole / exact
        return sp.Integer(whole)

    def size(self, channels: sp.Expr) -> sp.Integer:
        exact = Fraction(int(channels)) * self.factor
        whole = max(1, int(exact + Fraction(1, 2)))
        self.rounded |= exact != whole
        return sp.Integer(whole)

    def of_heads(self, count: sp.Expr) -> sp.Integer:
        """Raises InputError where heads are no whole number any more, or one is left."""
        found = Fraction(int(count)) * self.heads
        if found.denominator != 1 or (found < 2 and self.heads < 1):
            raise InputError(f"{count} heads times {self.heads}", instead="an even number of heads, four at least")
        return sp.Integer(found.numerator)

    def copy(self, network: Network, prefix: str = "") -> Network:
        result = Network(network.name, preserve=network.preserve, source=network.source)
        for name, layer in network.nodes():
            inputs = network.inputs_of(name)
            if isinstance(layer, InputNode):
                result.input(name, **(vars(layer) | {"channels": self.input_size(prefix + name, layer.channels)}))
            elif isinstance(layer, BlockNode):
                result.block(self.copy(layer.body, f"{prefix}{name}."), *inputs, repeat=layer.repeat, name=name)
            else:
                result._place(name, layer.name, *self._layer(layer, prefix + name), tuple(inputs))
        result.declared_outputs = list(network.declared_outputs)
        return result

    def _layer(self, layer: Op, path: str) -> tuple[Op, dict[str, Any]]:
        fields = layer.fields()
        for f in dataclasses.fields(layer):
            value = fields.get(f.name, getattr(layer, f.name) if f.name == "heads" else None)
            if value is None:
                continue
            of_groups = (layer.name, f.name) == ("group_norm", "groups") and value != 1
            if str(f.type).startswith("Channels") or of_groups:
                fields[f.name] = self.size(value)
            elif f.name == "heads":
                fields[f.name] = self.of_heads(value)
            elif (layer.name, f.name) == ("split", "sizes"):
                fields[f.name] = tuple(self.size(v) for v in value)
        for part, field_name in layer.variances.items():
            weight = self.weights.get(weight_group(".".join((fields.get("weight") or path, *part.split()))))
            if weight is not None and weight.distribution not in ("constant", "spectral"):
                fields[field_name] = weight.variance * weight.fan_in / FAN_IN
        bias = self.biases.get(weight_group(f"{path}.bias"))
        if "bias" in fields and bias is not None:
            fields["bias"] = bias
        return type(layer)(**fields), fields


def scaled(network: Network, program: Program, factor: Fraction, squared: bool = False) -> Scaled:
    """The network, which has numbers for all symbols and lowers to ``program``, at ``factor`` times its widths, and its
    heads; ``squared``: the square times its widths.

    Raises InputError where rounded widths, or heads, no longer fit together.
    """
    if factor == 1:
        return Scaled(factor, network, program, False)
    weights = {weight_group(n): w for n, w in program.weights.items()}
    biases = {weight_group(s.primitive.name): s.primitive.variance
              for s in program if isinstance(s.primitive, Bias)}  # fmt: skip
    widths = factor**2 if squared else factor
    scaling = _Scaling(widths, weights, biases, _multiplied(program), factor)
    copy = scaling.copy(network)
    return Scaled(factor, copy, lower(copy), scaling.rounded, scaling.inputs)


def _multiplied(program: Program) -> set[str]:
    """Inputs that are only read by products with whole random weights of their own."""
    uses = Counter(s.primitive.weight for s in program if isinstance(s.primitive, Contract) and not s.backward)
    own = {name for name, w in program.weights.items()
           if uses[name] == 1 and w.groups == 1 and w.distribution not in ("constant", "spectral")}
    elsewhere = {a for s in program for a in s.args
                 if not isinstance(s.primitive, Contract) or s.primitive.weight not in own} | {*program.outputs}
    return {name for name, i in program.values.items() if i in program.inputs and i not in elsewhere}


def hidden_widths(program: Program) -> list[int]:
    """Channel counts of the values between inputs and outputs; of all values where there is nothing between."""
    ends = {*program.inputs, *program.outputs}
    forward = [s.shape.channels for i, s in enumerate(program) if not s.backward and i not in ends and s.args]
    return [int(c) for c in forward or [s.shape.channels for s in program]]


def narrowest(program: Program) -> float:
    """The least hidden width, or number of terms of a product with a sparse weight."""
    kept = [float(w.keep * w.columns * w.taps) for w in program.weights.values() if w.keep != 1]
    return min([*hidden_widths(program), *kept])


def ladder(
    network: Network, program: Program, factors: Sequence[float | Fraction | str] | None = None
) -> tuple[list[Scaled], str]:
    """The network at widths n/4, n/2, n (n/2, n, 2n or n, 2n, 4n where it is too narrow for that), and a note:
    empty, or why widths are others. With attention, heads and channels of a head are multiplied, by four factors.
    Raises InputError where widths times the given ``factors`` do not fit together."""
    attends = _attends(program)
    if factors is not None:
        chosen = sorted({Fraction(1), *(Fraction(f).limit_denominator(4096) for f in factors)})
        note = SQUARED.format(_listed(chosen)) if attends else ""
        return [scaled(network, program, f, squared=attends) for f in chosen], note
    found = _of_attention(network, program) if attends else _of_widths(network, program)
    note = "the widths cannot be scaled together: limits are tested at the stated widths only"
    return found or ([scaled(network, program, Fraction(1))], note)


def order_of(scales: Sequence[Scaled]) -> int:
    """The power of 1/f to which errors of limits are extrapolated over ``scales``."""
    return min(ORDER_OF_ATTENTION, max(1, len(scales) - 2)) if _attends(scales[-1].program) else 1


def _of_widths(network: Network, program: Program) -> tuple[list[Scaled], str] | None:
    least = narrowest(program)
    for steps in LADDERS:
        if steps[0] < 1 and least * steps[0] < LEAST_WIDTH:
            continue
        try:
            found = [scaled(network, program, f) for f in steps]
        except InputError:
            continue
        used = ", ".join(f"{f} n" if f != 1 else "n" for f in steps)
        why = f"narrower ones do not fit together, or are below {LEAST_WIDTH}"
        return found, "" if steps is LADDERS[0] else f"limits are extrapolated from widths {used}, since {why}"
    return None


def _of_attention(network: Network, program: Program) -> tuple[list[Scaled], str] | None:
    """Enough heads of enough channels where that is not too wide; else as many as there are."""
    heads, channels = _heads(program)
    widest = max(hidden_widths(program))

    def missing(steps: Sequence[Fraction]) -> int:
        few = heads * steps[0] < LEAST_HEADS or channels * steps[0] < LEAST_HEAD
        return few + 2 * (widest * steps[-1] ** 2 > WIDEST)

    possible = [steps for steps in OF_ATTENTION if widest * steps[-1] ** 2 <= 4 * WIDEST]
    for steps in sorted(possible, key=missing):
        try:
            return [scaled(network, program, f, squared=True) for f in steps], SQUARED.format(_listed(steps))
        except InputError:
            continue
    return None


def _heads(program: Program) -> tuple[int, int]:
    """The least heads of an attention, and the least channels of a head."""
    found = [(int(s.primitive.heads), int(program.shape(s.args[0]).channels))
             for s in program if isinstance(s.primitive, Scores) and not s.backward]
    return min(h for h, _ in found), min(n // h for h, n in found)


def _listed(factors: Sequence[Fraction]) -> str:
    return ", ".join(str(f) for f in factors)
