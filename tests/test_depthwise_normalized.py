"""Depthwise convolutions behind which a batch norm stands: numbers, each against brute force."""

from __future__ import annotations

import math

import varflow as vf
from tests.convolutional import HE


def test_more_places_than_are_told_apart() -> None:
    """Covariances between samples are averages too where those between places are: no variance is below them."""
    net = vf.Network("large")
    h = net.input("x", "c", positions=(52, 52))
    h = net.activation(net.batch_norm(net.conv(h, "c", 3, padding=1, **HE)), "silu")
    h = net.activation(net.batch_norm(net.depthwise_conv(h, 3, padding=1, **HE)), "silu")
    for _ in range(2):
        h = net.activation(net.batch_norm(net.pointwise_conv(h, "c", **HE)), "silu")
    net.batch_norm(net.depthwise_conv(h, 3, stride=2, padding=1, **HE), name="y")
    numbers = vf.derive(net).numeric({"c": 64})
    assert abs(numbers["y"]["second_moment"] - 1) < 1e-9
    assert all(math.isfinite(n["grad_second_moment"]) for n in numbers.values())
