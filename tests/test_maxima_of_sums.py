"""Max pooling of functions of several Gaussian values at a place (sums of relus, gated sums): numbers at every node
against PyTorch's own layers, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest

import varflow as vf
from varflow.network import Handle, Network

torch: Any = pytest.importorskip("torch")
F = torch.nn.functional
N = 512
"""Channels."""


class Layers:
    """The layers of one network in PyTorch, with weights drawn anew in every draw; and the same in varflow."""

    def __init__(self, size: int, samples: int, random: Any) -> None:
        self.random = random
        self.values: dict[str, Any] = {}
        self.x = self.name("x", self.normal(samples, N, size, size).requires_grad_())

    def normal(self, *shape: int) -> Any:
        return torch.empty(*shape).normal_(generator=self.random)

    def name(self, name: str, value: Any) -> Any:
        if value.grad_fn is not None:
            value.retain_grad()
        self.values[name] = value
        return value

    def conv(self, x: Any, name: str) -> Any:
        w = self.normal(N, N, 3, 3) * (2 / (9 * N)) ** 0.5
        return self.name(name, F.conv2d(x, w, padding=1))

    def relu(self, x: Any, name: str) -> Any:
        return self.name(name, torch.relu(x))

    def sigmoid(self, x: Any, name: str) -> Any:
        return self.name(name, torch.sigmoid(x))

    def add(self, x: Any, y: Any, name: str) -> Any:
        return self.name(name, x + y)

    def multiply(self, x: Any, y: Any, name: str) -> Any:
        return self.name(name, x * y)

    def norm(self, x: Any, name: str) -> Any:
        axes = (0, 2, 3)
        centred = x - x.mean(axes, keepdim=True)
        return self.name(name, centred / x.var(axes, keepdim=True, unbiased=False).sqrt())

    def behind(self, s: Any) -> Any:
        pool = self.name("pool", F.max_pool2d(s, 3, 2, 1))
        h = self.relu(self.conv(pool, "c"), "rc")
        mean = self.name("mean", h.mean((2, 3)))
        return self.name("fc", mean @ (self.normal(N, N) / N**0.5))


def handle(made: Any) -> Handle:
    """What a network's method returns."""
    result: Handle = made
    return result


class Model:
    """The same layers of varflow."""

    def __init__(self, size: int, channels: Any = N) -> None:
        self.net = Network("sums")
        self.channels = channels
        self.x = self.net.input("x", channels, (size, size))

    def conv(self, x: Handle, name: str) -> Handle:
        return handle(self.net.conv(x, self.channels, name=name, kernel=3, padding=1, variance="2/fan_in"))

    def relu(self, x: Handle, name: str) -> Handle:
        return handle(self.net.relu(x, name=name))

    def sigmoid(self, x: Handle, name: str) -> Handle:
        return self.net.activation(x, "sigmoid", name=name)

    def add(self, x: Handle, y: Handle, name: str) -> Handle:
        return handle(self.net.add(x, y, name=name))

    def multiply(self, x: Handle, y: Handle, name: str) -> Handle:
        return handle(self.net.multiply(x, y, name=name))

    def norm(self, x: Handle, name: str) -> Handle:
        return handle(self.net.batch_norm(x, name=name))

    def behind(self, s: Handle) -> Handle:
        pool = self.net.max_pool(s, kernel=3, stride=2, padding=1, name="pool")
        mean = self.net.mean_pool(self.relu(self.conv(pool, "c"), "rc"), name="mean")
        return self.net.linear(mean, self.channels, name="fc", variance="1/fan_in")


Body: TypeAlias = Callable[[Any, Any], Any]


def branches(m: Any, x: Any) -> Any:
    u, v = m.conv(x, "u"), m.conv(x, "v")
    return m.add(m.relu(u, "ru"), m.relu(v, "rv"), "s")


def skip(m: Any, x: Any) -> Any:
    u = m.conv(x, "u")
    v = m.conv(m.relu(u, "ru"), "v")
    return m.add(u, m.relu(v, "rv"), "s")


def normed_sum(m: Any, x: Any) -> Any:
    return m.norm(branches(m, x), "t")


def normed(m: Any, x: Any) -> Any:
    """A residual block with batch norm, whose sum is an argument of a relu."""
    u = m.relu(m.norm(m.conv(x, "u"), "nu"), "ru")
    v = m.norm(m.conv(u, "v"), "nv")
    return m.relu(m.add(u, v, "s"), "rs")


def gate(m: Any, x: Any) -> Any:
    return m.multiply(m.sigmoid(m.conv(x, "u"), "gu"), m.conv(x, "v"), "s")


def brute(body: Body, size: int, draws: int, samples: int = 2) -> dict[str, Any]:
    """{node: draws x (mean, mean square, mean square of the gradient)}."""
    random = torch.Generator().manual_seed(3)
    rows: dict[str, list[tuple[float, ...]]] = {}
    for _ in range(draws):
        layers = Layers(size, samples, random)
        y = layers.behind(body(layers, layers.x))
        y.backward(layers.normal(*y.shape))
        for name, v in layers.values.items():
            rows.setdefault(name, []).append(tuple(float(q) for q in (
                v.detach().mean(), (v.detach() ** 2).mean(), (v.grad**2).mean())))
    return {name: np.array(r) for name, r in rows.items()}


def check(body: Body, size: int, draws: int, samples: int = 2, bias: float = 0.02) -> None:
    m = Model(size)
    m.behind(body(m, m.x))
    numbers = vf.derive(m.net).numeric({})
    for name, r in brute(body, size, draws, samples).items():
        found, errors = r.mean(axis=0), r.std(axis=0, ddof=1) / draws**0.5
        scale = found[1] ** 0.5, found[1], found[2]
        for k, field in enumerate(("mean", "second_moment", "grad_second_moment")):
            allowed = max(bias * scale[k], 4 * errors[k])
            print(f"{name:6s} {field:20s} {numbers[name][field]:12.5g} {found[k]:12.5g} "
                  f"{(numbers[name][field] - found[k]) / scale[k]:+.4f} +- {errors[k] / scale[k]:.4f}")
            assert abs(numbers[name][field] - found[k]) <= allowed, (name, field, numbers[name][field], found[k])


@pytest.mark.parametrize("body", [branches, skip, normed_sum, normed, gate])
def test_numbers_are_those_of_pytorch(body: Body) -> None:
    check(body, 8, 24, 8 if "normed" in body.__name__ else 2, 0.03)
