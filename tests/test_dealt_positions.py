"""Positions made of channels (reshape), and channels made of positions (flatten): every place is another coordinate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy as sp
import torch
import torch.nn.functional as F

import varflow as vf

N = 64
Build = Callable[[vf.Network, Any], Any]
FORWARD: dict[str, tuple[Build, float, float]] = {
    "average": (lambda v, x: v.avg_pool(x, 2), 1 / 4, 1 / 4),
    "mean": (lambda v, x: v.mean_pool(x), 1 / 16, 1 / 16),
    "max": (lambda v, x: v.max_pool(x, 2), 1.5513288954217919, 1.5513288954217919),
    "conv": (
        lambda v, x: v.avg_pool(v.conv(x, N, 3, padding=1, padding_mode="circular", variance="1/fan_in"), 4),
        1 / 16, 1 / 16,
    ),
    "nearest": (lambda v, x: v.avg_pool(v.upsample(x, 2), 2), 1.0, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARD)
def test_places_of_a_reshaped_value_are_uncorrelated(name: str) -> None:
    build, formula, number = FORWARD[name]
    net = vf.Network(name)
    h = net.linear(net.input("z", N), 16 * N, variance="1/fan_in", name="f")
    out = build(net, net.reshape(h, channels=N, positions=(4, 4), name="h")).node
    law = vf.derive(net)[out]
    assert law.second_moment is not None
    assert float(law.second_moment) == pytest.approx(formula, rel=1e-6)
    assert law.numeric({})["second_moment"] == pytest.approx(number, rel=1e-6)


def test_instance_norm_of_a_reshaped_value() -> None:
    """Its statistics are over sixteen independent entries: the gradient grows by 14/13, as in a batch norm of 16."""
    net = vf.Network("norm")
    h = net.linear(net.input("z", N), 16 * N, variance="1/fan_in", name="f")
    net.instance_norm(net.reshape(h, channels=N, positions=(4, 4), name="h"))
    assert vf.derive(net)["h"].numeric({})["grad_second_moment"] == pytest.approx(14 / 13)


LAYERS: dict[str, tuple[Build, Callable[[torch.Tensor], torch.Tensor]]] = {
    "max": (lambda v, x: v.max_pool(x, 3, stride=1), lambda x: F.max_pool2d(x, 3, 1)),
    "average": (lambda v, x: v.avg_pool(x, 3, stride=1), lambda x: F.avg_pool2d(x, 3, 1)),
    "upsample": (lambda v, x: v.upsample(x, 2), lambda x: F.interpolate(x, scale_factor=2)),
    "sum": (lambda v, x: v.add(x, v.avg_pool(x, 3, stride=1, padding=1)), lambda x: x + F.avg_pool2d(x, 3, 1, 1)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_places_that_were_flattened(name: str) -> None:
    """Against PyTorch: each place's gradient comes through columns of the weight of its own."""
    build, layer = LAYERS[name]
    net = vf.Network(name)
    net.linear(net.flatten(build(net, net.input("x", N, (5, 5)))), 16 * N, variance="1/fan_in")
    number = vf.derive(net)["x"].numeric({})["grad_second_moment"]
    torch.manual_seed(1)
    found = []
    for _ in range(12):
        x = torch.randn(6, N, 5, 5, requires_grad=True)
        f = layer(x).flatten(1)
        y = f @ torch.randn(f.shape[1], 16 * N) / f.shape[1] ** 0.5
        y.backward(torch.randn_like(y))
        assert x.grad is not None
        found.append(x.grad.square().mean().item())
    assert number == pytest.approx(sum(found) / len(found), rel=0.04)


@pytest.mark.parametrize("mean", [0, 1])
def test_a_mean_before_a_pixel_shuffle(mean: int) -> None:
    """The same coordinates elsewhere: no moment changes, in formulas and in numbers."""
    net = vf.Network("shuffle")
    x = net.input("x", "9*n", ("s", "s"), mean=mean, second_moment=2)
    y = net.pixel_shuffle(x, 3, name="y")
    net.avg_pool(y, 3, name="z")
    d = vf.derive(net)
    assert (d["y"].second_moment, d["y"].mean) == (2, mean)
    numbers = {k: d[k].numeric({"n": 8, "s": 4})["second_moment"] for k in "yz"}
    assert numbers == pytest.approx({"y": 2.0, "z": mean + (2 - mean) / 9})
    assert d["z"].second_moment == sp.Rational(2 - mean, 9) + mean


@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_tokens_of_an_image_keep_what_attention_gives_them_in_common(layer: str) -> None:
    """Uniform weights alone give nine tokens 1/9 of a value in common, which their mean has whole."""
    net = vf.Network(layer)
    x = net.input("x", 256, (3, 3))
    h = net.linear(x, 256, variance="1/fan_in") if layer == "linear" else net.conv(x, 256, 1, variance="1/fan_in")
    weights = {f"{name}_variance": "1/fan_in" for name in ("query", "key", "value", "output")}
    net.mean_pool(net.self_attention(h, heads=16, **weights), name="p")
    number = vf.derive(net)["p"].numeric({})["second_moment"]
    assert number == pytest.approx(0.12229, rel=1e-3)
    torch.manual_seed(2)
    found = []
    for _ in range(60):
        tokens = torch.randn(16, 9, 256)
        q, k, v, o = (torch.randn(256, 256) / 16 for _ in range(4))
        parts = [(tokens @ w).view(16, 9, 16, 16).transpose(1, 2) for w in (q, k, v)]
        mixed = torch.softmax(parts[0] @ parts[1].transpose(2, 3) / 4, dim=3) @ parts[2]
        found.append((mixed.transpose(1, 2).reshape(16, 9, 256) @ o).mean(dim=1).square().mean().item())
    assert number == pytest.approx(sum(found) / len(found), rel=0.03)
