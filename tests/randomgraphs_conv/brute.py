"""Moments of a graph's nodes by brute force: fresh weights, inputs and masks for every draw.

Gradients come from autograd.
The forward pass runs in float32, averages and statistics in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.randomgraphs.generate import Node, Spec, channels

SAMPLES = 2
ACTIVATIONS: Mapping[str, Callable[..., Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}


def number(value: Any) -> float:
    """A field's number: 1/4 for "1/4"."""
    return float(Fraction(value))


@dataclass
class Draw:
    """One draw: the values of all nodes, and what layers share by name."""

    random: torch.Generator
    samples: int
    n: int
    values: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)

    def normal(self, *shape: int) -> Tensor:
        """Independent standard normal entries."""
        return torch.empty(*shape).normal_(generator=self.random)

    def apply(self, node: Node) -> None:
        """Compute a node from the values of its inputs."""
        inputs = [self.values[source] for source, _ in node["inputs"]]
        self.values[node["name"]] = LAYERS[node["op"]](self, node, inputs)

    def weight(self, name: str, shape: Sequence[int], variance: str, fan_in: float, distribution: str) -> Tensor:
        """A weight by name, drawn at its first use."""
        if name not in self.weights:
            amount, _, _ = variance.rpartition("/")
            std = math.sqrt(number(amount) / fan_in)
            self.weights[name] = self._drawn(shape, distribution) * std
        return self.weights[name]

    def _drawn(self, shape: Sequence[int], distribution: str) -> Tensor:
        if distribution == "normal":
            return self.normal(*shape)
        entries = torch.empty(*shape).uniform_(-1, 1, generator=self.random)
        return entries * math.sqrt(3) if distribution == "uniform" else entries.sign()

    def biased(self, y: Tensor, bias: Any) -> Tensor:
        """With a random bias of this variance for every channel."""
        if bias is None:
            return y
        return y + per_channel(self.normal(y.shape[1]) * math.sqrt(number(bias)), y)


def per_channel(b: Tensor, y: Tensor) -> Tensor:
    """One number for each channel, to be added to samples x channels x positions."""
    return b.reshape(-1, *[1] * (y.dim() - 2))


def _input(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    fields = node["fields"]
    mean = number(fields.get("mean", 0))
    std = math.sqrt(number(fields.get("second_moment", 1)) - mean**2)
    rho = number(fields.get("position_correlation", 0))
    width = channels(fields["channels"], draw.n)
    own = draw.normal(draw.samples, width, *fields["positions"])
    common = draw.normal(draw.samples, width, *[1] * len(fields["positions"]))
    x = mean + std * (math.sqrt(1 - rho) * own + math.sqrt(rho) * common)
    return x.requires_grad_()


def _linear(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    fields, x = node["fields"], inputs[0]
    shape = (channels(fields["out_channels"], draw.n), x.shape[1])
    w = draw.weight(node["name"], shape, fields["variance"], x.shape[1], fields.get("distribution", "normal"))
    return draw.biased(x @ w.T, fields.get("bias"))


def _convolution(draw: Draw, node: Node, x: Tensor, out: int, groups: int) -> Tensor:
    fields, kernel = node["fields"], node["fields"]["kernel"]
    size = (out, x.shape[1] // groups, kernel, kernel)
    w = draw.weight(fields.get("weight", node["name"]), size, fields.get("variance", ""), math.prod(size[1:]),
                    fields.get("distribution", "normal"))
    padding, mode = fields.get("padding", 0), fields.get("padding_mode", "zeros")
    if mode != "zeros":
        x, padding = F.pad(x, (padding,) * 4, mode=mode), 0
    y = F.conv2d(x, w, None, fields.get("stride", 1), padding, fields.get("dilation", 1), groups)
    return draw.biased(y, fields.get("bias"))


def _conv(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    fields = node["fields"]
    return _convolution(draw, node, inputs[0], channels(fields["out_channels"], draw.n), fields.get("groups", 1))


def _conv_transpose(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    fields, x = node["fields"], inputs[0]
    groups, stride, kernel = fields.get("groups", 1), fields.get("stride", 1), fields["kernel"]
    size = (x.shape[1], channels(fields["out_channels"], draw.n) // groups, kernel, kernel)
    fan_in = kernel**2 * x.shape[1] / (groups * stride**2)
    w = draw.weight(fields.get("weight", node["name"]), size, fields.get("variance", ""), fan_in,
                    fields.get("distribution", "normal"))
    y = F.conv_transpose2d(x, w, None, stride, fields.get("padding", 0), fields.get("output_padding", 0), groups)
    return draw.biased(y, fields.get("bias"))


def _squeeze_excite(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    fields, x, name = node["fields"], inputs[0], node["name"]
    inner, outer = channels(fields["squeeze_channels"], draw.n), x.shape[1]
    down = draw.weight(f"{name}.squeeze", (inner, outer), fields["squeeze_variance"], outer, "normal")
    up = draw.weight(f"{name}.excite", (outer, inner), fields["excite_variance"], inner, "normal")
    h = draw.biased(x.mean((2, 3)) @ down.T, fields.get("bias"))
    h = draw.biased(ACTIVATIONS[fields["function"]](h) @ up.T, fields.get("bias"))
    return x * ACTIVATIONS[fields["gate"]](h)[:, :, None, None]


def _activation(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    name, _, rest = str(node["fields"]["function"]).partition("(")
    return ACTIVATIONS[name](inputs[0], *([float(rest[:-1])] if rest else []))


def _add(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    weights = [number(w) for w in node["fields"].get("weights", [1] * len(inputs))]
    return torch.stack([w * x for w, x in zip(weights, inputs, strict=True)]).sum(0)


def _dropout(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    fields, x = node["fields"], inputs[0]
    keep = 1 - number(fields["p"])
    name = fields.get("mask") or f"{node['name']}.mask"
    if name not in draw.masks:
        draw.masks[name] = torch.empty(x.shape).bernoulli_(keep, generator=draw.random)
    return x * draw.masks[name] / (keep if fields.get("inverted", True) else 1)


def _max_pool(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    fields = node["fields"]
    return F.max_pool2d(inputs[0], fields["kernel"], fields.get("stride"), fields.get("padding", 0))


def _avg_pool(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    fields = node["fields"]
    return F.avg_pool2d(inputs[0], fields["kernel"], fields.get("stride"), fields.get("padding", 0),
                        count_include_pad=fields.get("count_include_pad", True))


def _upsample(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    mode, scale = node["fields"]["mode"], node["fields"]["scale"]
    align = {} if mode == "nearest" else {"align_corners": False}
    return F.interpolate(inputs[0], scale_factor=scale, mode=mode, **align)


def _standardized(x: Tensor, fields: Mapping[str, Any], axes: tuple[int, ...]) -> Tensor:
    x = x - x.mean(axes, keepdim=True)
    sigma = torch.sqrt((x * x).mean(axes, keepdim=True) + number(fields.get("eps", 0)))
    return x / sigma


def _affine(y: Tensor, fields: Mapping[str, Any]) -> Tensor:
    return number(fields.get("gamma", 1)) * y + number(fields.get("beta", 0))


def _group_norm(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    x, fields = inputs[0], node["fields"]
    groups = x.shape[1] if node["op"] == "instance_norm" else fields["groups"]
    parts = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    return _affine(_standardized(parts, fields, (2, 3, 4)).reshape(x.shape), fields)


def _batch_norm(draw: Draw, node: Node, inputs: list[Tensor]) -> Tensor:
    if node["fields"]["batch"] != draw.samples:
        raise ValueError(f"batch norm over {node['fields']['batch']} of {draw.samples} samples")
    return _affine(_standardized(inputs[0], node["fields"], (0, 2, 3)), node["fields"])


Layer = Callable[[Draw, Node, list[Tensor]], Tensor]
LAYERS: Mapping[str, Layer] = {
    "input": _input,
    "linear": _linear,
    "conv": _conv,
    "depthwise_conv": lambda draw, node, x: _convolution(draw, node, x[0], x[0].shape[1], x[0].shape[1]),
    "conv_transpose": _conv_transpose,
    "squeeze_excite": _squeeze_excite,
    "bias": lambda draw, node, x: draw.biased(x[0], node["fields"]["variance"]),
    "activation": _activation,
    "add": _add,
    "multiply": lambda draw, node, x: x[0] * x[1],
    "concat": lambda draw, node, x: torch.cat(x, 1),
    "dropout": _dropout,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "upsample": _upsample,
    "pixel_shuffle": lambda draw, node, x: F.pixel_shuffle(x[0], node["fields"]["upscale_factor"]),
    "mean_pool": lambda draw, node, x: x[0].mean((2, 3)),
    "layer_norm": lambda draw, node, x: _affine(_standardized(x[0], node["fields"], (1,)), node["fields"]),
    "group_norm": _group_norm,
    "instance_norm": _group_norm,
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
        self.samples = self.spec["batch"] or SAMPLES
        self.read = {read[0] for node in self.spec["nodes"] for read in node["inputs"]}

    def more(self) -> None:
        """One draw, forward and backward."""
        draw = Draw(self.random, self.samples, self.n)
        for node in self.spec["nodes"]:
            draw.apply(node)
        self.keys = list(draw.values)
        gradients = self._gradients(draw)
        self.rows.append(np.array([
            (float(x.detach().mean(dtype=torch.float64)), _second_moment(x), _second_moment(d))
            for x, d in zip(draw.values.values(), gradients, strict=True)]))

    def _gradients(self, draw: Draw) -> Sequence[Tensor]:
        outputs = [x for key, x in draw.values.items() if key not in self.read]
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


def sensible(spec: Spec, n: int = 32, draws: int = 8) -> bool:
    """Whether a pilot keeps second moments within 1e-3 to 1e3, and varies less than its mean."""
    rows = np.array(measure(spec, n, draws).rows)[:, :, 1:]
    mean = rows.mean(0)
    within = np.isfinite(rows).all() and bool(((mean > 1e-3) & (mean < 1e3)).all())
    return bool(within and (rows.std(0) < mean).all())
