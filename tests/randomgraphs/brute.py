"""Moments of a graph's nodes by brute force: fresh weights, inputs and masks for every draw.

Gradients come from autograd.
The forward pass runs in float32, averages and statistics in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .generate import Node, Spec, channels

SAMPLES = 16
ACTIVATIONS: Mapping[str, Callable[..., Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "erf": torch.erf,
    "sin": torch.sin,
    "abs": torch.abs,
    "elu": torch.nn.functional.elu,
    "selu": torch.nn.functional.selu,
    "hardtanh": torch.nn.functional.hardtanh,
    "square": torch.square,
    "identity": torch.clone,
}


def number(value: Any) -> float:
    """A field's number: 1/4 for "1/4"."""
    return float(Fraction(value))


@dataclass
class Matrix:
    """A weight: rows x columns, the variance of an entry that is kept, the share that is kept."""

    rows: int
    columns: int
    variance: float
    distribution: str
    keep: float
    entries: Tensor

    def fill(self, random: torch.Generator) -> None:
        """Draw all entries anew, in place."""
        std = math.sqrt(self.variance)
        if self.distribution == "normal":
            self.entries.normal_(0, std, generator=random)
        elif self.distribution == "uniform":
            self.entries.uniform_(-math.sqrt(3) * std, math.sqrt(3) * std, generator=random)
        elif self.distribution == "rademacher":
            self.entries.uniform_(-1, 1, generator=random).sign_().mul_(std)
        else:
            raise ValueError(f"unknown distribution {self.distribution!r}")
        if self.keep < 1:
            kept = torch.empty_like(self.entries).bernoulli_(self.keep, generator=random)
            self.entries.mul_(kept)


def matrices(spec: Spec, n: int) -> dict[str, Matrix]:
    """The weights of a graph, each as its first use declares it."""
    widths: dict[str, int] = {}
    found: dict[str, Matrix] = {}
    for node in spec["nodes"]:
        inputs = [widths[":".join(filter(None, read))] for read in node["inputs"]]
        widths |= _widths(node, inputs, n)
        if node["op"] == "linear" and weight_name(node) not in found:
            found[weight_name(node)] = _matrix(node["fields"], inputs[0], widths[node["name"]])
    return found


def weight_name(node: Node) -> str:
    """The name of a linear layer's weight: the layer's own unless it says another."""
    return str(node["fields"].get("weight") or node["name"])


def _widths(node: Node, inputs: list[int], n: int) -> dict[str, int]:
    name, fields = node["name"], node["fields"]
    match node["op"]:
        case "split":
            return {f"{name}:{k}": channels(size, n) for k, size in enumerate(fields["sizes"])}
        case "concat":
            return {name: sum(inputs)}
        case "input":
            return {name: channels(fields["channels"], n)}
        case "linear":
            return {name: channels(fields["out_channels"], n)}
        case _:
            return {name: inputs[0]}


def _matrix(fields: Mapping[str, Any], width: int, out: int) -> Matrix:
    keep = number(fields.get("keep", 1))
    fans = {"fan_in": keep * width, "fan_out": keep * out, "(fan_in+fan_out)": keep * (width + out)}
    amount, _, fan = fields["variance"].partition("/")
    rows, columns = (width, out) if fields.get("transpose") else (out, width)
    return Matrix(rows, columns, number(amount) / fans[fan], fields.get("distribution", "normal"),
                  keep, torch.empty(rows, columns))


@dataclass
class Draw:
    """One draw: the values of all nodes, and what layers share by name."""

    random: torch.Generator
    weights: Mapping[str, Matrix]
    samples: int
    n: int
    values: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    permutations: dict[str, Tensor] = field(default_factory=dict)

    def normal(self, *shape: int) -> Tensor:
        """Independent standard normal entries."""
        return torch.empty(*shape).normal_(generator=self.random)

    def apply(self, node: Node) -> None:
        """Compute a node from the values of its inputs."""
        inputs = [self.values[":".join(filter(None, read))] for read in node["inputs"]]
        result = LAYERS[node["op"]](self, node, inputs)
        if isinstance(result, Tensor):
            self.values[node["name"]] = result
        else:
            self.values |= {f"{node['name']}:{k}": part for k, part in enumerate(result)}


def _input(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    fields = node["fields"]
    mean = number(fields.get("mean", 0))
    std = math.sqrt(number(fields.get("second_moment", 1)) - mean**2)
    x = draw.normal(draw.samples, channels(fields["channels"], draw.n)) * std + mean
    return x.requires_grad_()


def _linear(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    entries = draw.weights[weight_name(node)].entries
    y = inputs[0] @ (entries if node["fields"].get("transpose") else entries.T)
    bias = node["fields"].get("bias")
    return y if bias is None else y + draw.normal(y.shape[1]) * math.sqrt(number(bias))


def _bias(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    return x + draw.normal(x.shape[1]) * math.sqrt(number(node["fields"]["variance"]))


def _activation(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    name, _, rest = str(node["fields"]["function"]).partition("(")
    return ACTIVATIONS[name](inputs[0], *([float(rest[:-1])] if rest else []))


def _add(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    weights = [number(w) for w in node["fields"].get("weights", [1] * len(inputs))]
    return torch.stack([w * x for w, x in zip(weights, inputs, strict=True)]).sum(0)


def _multiply(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    y = inputs[0].clone()
    for x in inputs[1:]:
        y = y * x
    return y


def _split(draw: Draw, node: Node, inputs: list[Tensor]) -> Sequence[Tensor]:
    sizes = [channels(size, draw.n) for size in node["fields"]["sizes"]]
    starts = np.cumsum([0, *sizes])
    return [inputs[0][:, a:b].clone() for a, b in pairwise(starts)]


def _permute(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    name = node["fields"].get("permutation") or node["name"]
    if name not in draw.permutations:
        draw.permutations[name] = torch.randperm(inputs[0].shape[1], generator=draw.random)
    return inputs[0][:, draw.permutations[name]]


def _dropout(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    fields, x = node["fields"], inputs[0]
    keep = 1 - number(fields["p"])
    name = fields.get("mask") or f"{node['name']}.mask"
    if name not in draw.masks:
        draw.masks[name] = torch.empty(x.shape).bernoulli_(keep, generator=draw.random)
    return x * draw.masks[name] / (keep if fields.get("inverted", True) else 1)


def _normalized(x: Tensor, fields: Mapping[str, Any], axis: int, center: bool) -> Tensor:
    x = x - x.mean(axis, keepdim=True) if center else x
    sigma = torch.sqrt((x * x).mean(axis, keepdim=True) + number(fields.get("eps", 0)))
    return number(fields.get("gamma", 1)) * (x / sigma) + number(fields.get("beta", 0))


def _batch_norm(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    if node["fields"]["batch"] != draw.samples:
        raise ValueError(f"batch norm over {node['fields']['batch']} of {draw.samples} samples")
    return _normalized(inputs[0], node["fields"], 0, True)


Layer = Callable[[Draw, Node, list[Tensor]], Tensor | Sequence[Tensor]]
LAYERS: Mapping[str, Layer] = {
    "input": _input,
    "linear": _linear,
    "bias": _bias,
    "activation": _activation,
    "add": _add,
    "subtract": lambda draw, node, x: x[0] - x[1],
    "multiply": _multiply,
    "scale": lambda draw, node, x: x[0] * number(node["fields"]["factor"]),
    "identity": lambda draw, node, x: x[0].clone(),
    "concat": lambda draw, node, x: torch.cat(x, 1),
    "split": _split,
    "permute": _permute,
    "dropout": _dropout,
    "layer_norm": lambda draw, node, x: _normalized(x[0], node["fields"], 1, True),
    "rms_norm": lambda draw, node, x: _normalized(x[0], node["fields"], 1, False),
    "batch_norm": _batch_norm,
}


@dataclass
class Measurement:
    """Draws of one graph at one width, to be continued: ``more`` makes one.

    ``rows`` holds, per draw, an array of shape (nodes, 3): averages over entries of the value, of
    its square and of the square of its gradient.
    """

    spec: Spec
    n: int
    seed: int
    rows: list[np.ndarray[Any, np.dtype[np.float64]]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.seed)
        self.weights = matrices(self.spec, self.n)
        self.samples = self.spec["batch"] or SAMPLES
        self.read = {read[0] for node in self.spec["nodes"] for read in node["inputs"]}

    def more(self) -> None:
        """One draw, forward and backward."""
        for weight in self.weights.values():
            weight.fill(self.random)
        draw = Draw(self.random, self.weights, self.samples, self.n)
        for node in self.spec["nodes"]:
            draw.apply(node)
        self.keys = list(draw.values)
        gradients = self._gradients(draw)
        self.rows.append(np.array([
            (float(x.detach().mean(dtype=torch.float64)), _second_moment(x), _second_moment(d))
            for x, d in zip(draw.values.values(), gradients, strict=True)]))

    def _gradients(self, draw: Draw) -> Sequence[Tensor]:
        outputs = [x for key, x in draw.values.items() if key.split(":")[0] not in self.read]
        cotangents = [draw.normal(*x.shape) for x in outputs]
        return torch.autograd.grad(outputs, list(draw.values.values()), cotangents)

    def table(self) -> dict[str, dict[str, list[float]]]:
        """[value, standard error, spread, peak] of mean, q and gq for every node."""
        draws = np.array(self.rows)
        value, deviation, peak = draws.mean(0), draws.std(0, ddof=1), draws.max(0)
        unit = value.copy()
        unit[:, 0] = np.sqrt(value[:, 1])
        peak[:, 0] = 0
        error = deviation / math.sqrt(len(draws))
        columns = np.stack([value, error, deviation / unit, peak / unit], -1)
        names = ("mean", "q", "gq")
        return {key: {name: _rounded(columns[i, j]) for j, name in enumerate(names)}
                for i, key in enumerate(self.keys)}

    def relative_error(self) -> float:
        """The largest relative standard error of a second moment, forward or backward."""
        draws = np.array(self.rows)[:, :, 1:]
        error = draws.std(0, ddof=1) / draws.mean(0) / math.sqrt(len(draws))
        return float(error.max())


def _second_moment(x: Tensor) -> float:
    return float(x.detach().square().mean(dtype=torch.float64))


def _rounded(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    return [float(f"{values[0]:.6g}"), *(float(f"{v:.3g}") for v in values[1:])]


def measure(spec: Spec, n: int, draws: int, seed: int = 0) -> Measurement:
    """A fixed number of draws."""
    measurement = Measurement(spec, n, seed)
    for _ in range(draws):
        measurement.more()
    return measurement


def sensible(spec: Spec, n: int = 128, draws: int = 12) -> bool:
    """Whether a pilot keeps second moments within 1e-3 to 1e3, and varies less than its mean."""
    rows = np.array(measure(spec, n, draws).rows)[:, :, 1:]
    mean = rows.mean(0)
    within = np.isfinite(rows).all() and bool(((mean > 1e-3) & (mean < 1e3)).all())
    return bool(within and (rows.std(0) < mean).all())
