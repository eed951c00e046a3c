"""Brute force for convolutional networks: PyTorch's own layers with fresh weights and inputs for every draw,
gradients by autograd of a random cotangent; and what tests of their laws share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import pytest
import sympy as sp

import varflow as vf
from varflow.network import Handle, Network

torch: Any = pytest.importorskip("torch")
F = torch.nn.functional
Tensor: TypeAlias = Any
GAIN: dict[str, Any] = {"variance": "1/fan_in"}
HE: dict[str, Any] = {"variance": "2/fan_in"}
RING: dict[str, Any] = {"padding": 1, "padding_mode": "circular"}
N = 32
"""Channels."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than these small layers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Draw:
    """Weights, inputs and named values of one draw."""

    def __init__(self, samples: int, random: Any) -> None:
        self.samples, self.random = samples, random
        self.values: dict[str, Tensor] = {}

    def normal(self, *shape: int) -> Tensor:
        return torch.empty(*shape).normal_(generator=self.random)

    def input(self, *shape: int, correlation: float = 0.0, samples: float = 0.0) -> Tensor:
        """Unit Gaussians with a correlation between the places, or the samples, of a channel."""
        common = self.normal(self.samples, shape[0], *(1 for _ in shape[1:]))
        own = self.normal(self.samples, *shape)
        shared = self.normal(1, *shape)
        x = correlation**0.5 * common + samples**0.5 * shared + (1 - correlation - samples) ** 0.5 * own
        return self.name("x", x.requires_grad_())

    def name(self, name: str, value: Tensor) -> Tensor:
        """A value whose moments are taken."""
        if value.grad_fn is not None:
            value.retain_grad()
        self.values[name] = value
        return value

    def weight(self, out: int, into: int, *kernel: int, scale: float = 1.0) -> Tensor:
        """Weights of variance scale / fan_in."""
        fan = into * int(np.prod(kernel))
        return self.normal(out, into, *kernel) * (scale / fan) ** 0.5

    def conv(self, x: Tensor, out: int, k: int, scale: float, ring: bool = False, **options: Any) -> Tensor:
        w = self.weight(out, x.shape[1], *(k for _ in x.shape[2:]), scale=scale)
        if ring:
            x = F.pad(x, (k // 2, k // 2) * (x.ndim - 2), mode="circular")
        convolve = F.conv1d if x.ndim == 3 else F.conv2d
        return convolve(x, w, **options)

    def transposed(self, x: Tensor, out: int, k: int, s: int, **options: Any) -> Tensor:
        """A transposed convolution with average fan k^d C / s^d."""
        fan = x.shape[1] * (k / s) ** (x.ndim - 2)
        w = self.normal(x.shape[1], out, *(k for _ in x.shape[2:])) * fan**-0.5
        return (F.conv_transpose1d if x.ndim == 3 else F.conv_transpose2d)(x, w, stride=s, **options)


Forward: TypeAlias = Callable[[Draw], Tensor]


def _one(forward: Forward, draw: Draw) -> dict[str, Tensor]:
    """Values of one draw, with their gradients."""
    y = draw.name("y", forward(draw))
    y.backward(draw.normal(*y.shape))
    return draw.values


def brute(forward: Forward, draws: int = 200, samples: int = 4, seed: int = 1) -> dict[str, tuple[Any, Any]]:
    """{name: (mean squares of the value, of its gradient), an entry for every draw}."""
    random = torch.Generator().manual_seed(seed)
    rows: dict[str, list[tuple[float, float]]] = {}
    with one_thread():
        for _ in range(draws):
            for name, v in _one(forward, Draw(samples, random)).items():
                rows.setdefault(name, []).append((float((v.detach() ** 2).mean()), float((v.grad**2).mean())))
    return {name: (np.array(r)[:, 0], np.array(r)[:, 1]) for name, r in rows.items()}


def near(found: float, draws: Any, bias: float, what: str) -> None:
    """A prediction within 4.5 standard errors of the mean over draws and a ``bias`` for finite width, of a mean known
    to 3 %."""
    mean, error = float(np.mean(draws)), float(np.std(draws, ddof=1) / len(draws) ** 0.5)
    assert error < 0.03 * abs(mean) or abs(found) + abs(mean) < 1e-12, (what, "is too noisy", mean, error)
    assert abs(found - mean) <= 4.5 * error + bias * abs(mean), (what, found, mean, error)


def check(net: Network, forward: Forward, values: Mapping[str, Any] | None = None, bias: float = 0.01,
          backward: bool = True, **options: Any) -> dict[str, dict[str, Any]]:
    """The network's numbers, compared with brute force at every value that it names."""
    numbers = vf.derive(net).numeric(values or {})
    for name, (value, gradient) in brute(forward, **options).items():
        near(numbers[name]["second_moment"], value, bias, f"{name} forward")
        if backward:
            near(numbers[name]["grad_second_moment"], gradient, bias, f"{name} backward")
    return numbers


def image(channels: Any, *positions: Any, **options: Any) -> tuple[Network, Handle]:
    net = Network("facts")
    return net, net.input("x", channels, positions, **options)


def profile(net: Network, node: str) -> Any:
    """Second moments at every position."""
    found = vf.derive(net).numbers({}).profile
    assert found is not None
    return found.second(found.program.values[node])


def same(found: sp.Expr | None, stated: Any) -> bool:
    return found is not None and sp.simplify(found - sp.sympify(stated)) == 0


def norm(x: Tensor) -> Tensor:
    """Batch norm over samples and places, without epsilon."""
    axes = (0, *range(2, x.ndim))
    return (x - x.mean(axes, keepdim=True)) / x.var(axes, keepdim=True, unbiased=False).sqrt()
