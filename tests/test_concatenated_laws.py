"""Channels moved by a concatenation before a sum or an average, beside the same channels where they came from."""

from __future__ import annotations

import numpy as np
import pytest

import varflow as vf
from tests.convolutional import GAIN, HE, Draw, F, N, Tensor, check, image, torch


def test_a_sum_of_concatenations_taken_apart() -> None:
    """E[relu(b)^2 relu(b + e)^2] of independent unit Gaussians b, e, the sum made behind concatenations."""
    net = vf.Network("sums")
    x = net.input("x", channels=N)
    a, b, d, e = (net.linear(x, N, name=name, **GAIN) for name in "abde")
    _, q = net.split(net.add(net.concat(a, b), net.concat(d, e)), N, N)
    net.linear(net.multiply(net.relu(b), net.relu(q), name="s"), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        x = draw.input(N)
        b, e = (x @ draw.weight(N, N).T for _ in range(2))
        return draw.name("s", F.relu(draw.name("b", b)) * F.relu(b + e)) @ draw.weight(N, N).T

    numbers = check(net, forward, bias=0.06, draws=400)
    angle = np.pi / 4
    stated = 2 * (3 * np.sin(angle) * np.cos(angle) + (np.pi - angle) * (1 + 2 * np.cos(angle) ** 2)) / (2 * np.pi)
    assert numbers["s"]["second_moment"] == pytest.approx(stated)


def test_an_average_of_neighbours_behind_a_concatenation() -> None:
    net, x = image(N, 6)
    a, b = (net.conv(x, N, 1, name=name, **GAIN) for name in "ab")
    _, q = net.split(net.avg_pool(net.concat(a, b), 3, 1, padding=1, name="p"), N, N)
    net.conv(net.multiply(net.relu(b), net.relu(q), name="s"), N, 1, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        b = draw.name("b", draw.conv(draw.input(N, 6), N, 1, 1))
        return draw.conv(draw.name("s", F.relu(b) * F.relu(F.avg_pool1d(b, 3, 1, 1))), N, 1, 1)

    check(net, forward, bias=0.05, draws=400)


def test_maxima_of_sums_of_concatenations() -> None:
    """The gradient of both blocks goes where their relu is positive, as winners are."""
    net, x = image(N, 4)
    parts = [net.relu(net.conv(x, N, 1, name=name, **HE)) for name in "abde"]
    h = net.add(net.concat(*parts[:2]), net.concat(*parts[2:]))
    net.conv(net.max_pool(h, 2, name="m"), N, 1, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        x = draw.input(N, 4)
        parts = [F.relu(draw.name(name, draw.conv(x, N, 1, 2))) for name in "abde"]
        m = F.max_pool1d(torch.cat(parts[:2], 1) + torch.cat(parts[2:], 1), 2)
        return draw.conv(draw.name("m", m), N, 1, 1)

    check(net, forward, bias=0.02, draws=200)


def test_a_shuffle_of_unlike_blocks() -> None:
    """Behind a permutation of two blocks a function's slope is that of the block that a coordinate came from: the
    gradient of 3 relu(u) is not that of tanh(v), taken apart again with or without a split between (ShuffleNet)."""
    net = vf.Network("shuffle")
    x = net.input("x", channels=N)
    u, v = (net.linear(x, N, name=name, **GAIN) for name in "uv")
    p, q = net.scale(net.relu(u), 3, name="p"), net.activation(v, "tanh", name="q")
    h = net.permute(net.concat(p, q), permutation="P")
    left, right = net.split(h, N, N)
    right = net.scale(net.activation(right, "silu"), 2, name="r")
    h = net.permute(net.concat(left, right), permutation="Q", name="h")
    net.linear(net.activation(h, "cos"), N, name="y", **GAIN)
    orders = [torch.randperm(2 * N, generator=torch.Generator().manual_seed(k)) for k in (1, 2)]

    def forward(draw: Draw) -> Tensor:
        x = draw.input(N)
        u, v = (draw.name(name, x @ draw.weight(N, N).T) for name in "uv")
        p, q = draw.name("p", 3 * F.relu(u)), draw.name("q", torch.tanh(v))
        h = torch.cat((p, q), -1)[..., orders[0]]
        right = draw.name("r", 2 * F.silu(h[..., N:]))
        h = draw.name("h", torch.cat((h[..., :N], right), -1)[..., orders[1]])
        return torch.cos(h) @ draw.weight(N, 2 * N).T

    numbers = check(net, forward, bias=0.02, draws=200)
    assert not np.isclose(numbers["p"]["grad_second_moment"], numbers["q"]["grad_second_moment"], rtol=0.2)
    law = vf.derive(net)
    assert all(law[name].tier != "population" for name in "pquv")
