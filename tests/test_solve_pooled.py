"""Conditions on gradients in front of a max pool, which have numbers only, against networks in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

import varflow as vf
from varflow.errors import SolveError

CHANNELS, SIZE, SAMPLES = 48, 16, 4


def _conv(x: torch.Tensor, variance: float, out: int) -> torch.Tensor:
    """A random 3 x 3 convolution without borders."""
    weight = torch.randn(out, x.shape[1], 3, 3) * variance**0.5
    return functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="circular"), weight)


def _plain(activation: str) -> vf.Network:
    net = vf.Network("pooled")
    h = net.input("x", channels=CHANNELS, positions=(SIZE, SIZE))
    for k in range(2):
        h = net.activation(net.conv(h, CHANNELS, 3, padding=1, name=f"a{k}"), activation, name=f"ha{k}")
        h = net.activation(net.conv(h, CHANNELS, 3, padding=1, name=f"b{k}"), activation, name=f"hb{k}")
        h = net.max_pool(h, 2, name=f"p{k}")
    net.conv(h, CHANNELS, 3, padding=1, name="c")
    return net


def _plain_gradients(variances: dict[str, float], activation: str, draws: int) -> dict[str, float]:
    """Second moment of the gradient in front of every weight over that at the end of its segment."""
    f = {"relu": torch.relu, "gelu": functional.gelu}[activation]
    squares: dict[str, float] = {}
    for _ in range(draws):
        values = {"x": torch.randn(SAMPLES, CHANNELS, SIZE, SIZE, requires_grad=True)}
        h = values["x"]
        for k in range(2):
            for name in "ab":
                h = values[f"h{name}{k}"] = f(_conv(h, variances[f"{name}{k}"], CHANNELS))
            h = values[f"p{k}"] = functional.max_pool2d(h, 2)
        out = _conv(h, variances["c"], CHANNELS)
        grads = torch.autograd.grad(out, list(values.values()), torch.randn_like(out))
        for name, g in zip(values, grads, strict=True):
            squares[name] = squares.get(name, 0.0) + float((g**2).mean())
    ends = {"a0": ("x", "ha0"), "b0": ("ha0", "hb0"), "a1": ("p0", "ha1"), "b1": ("ha1", "hb1")}
    return {w: squares[a] / squares[b] for w, (a, b) in ends.items()}


@pytest.mark.parametrize("activation", ["relu", pytest.param("gelu", marks=pytest.mark.slow)])
def test_gradients_in_front_of_max_pools_are_preserved(activation: str) -> None:
    torch.manual_seed(0)
    solution = vf.solve(_plain(activation), preserve="backward")
    variances = {name: float(w.variance) for name, w in solution.items()}
    assert variances["b0"] < 0.7 * variances["a0"]  # more than half of what the pool sends back passes the activation
    for ratio in _plain_gradients(variances, activation, 120).values():
        assert abs(ratio - 1) < 0.03
    assert any("three digits" in note for note in solution.notes)


def test_where_a_pool_and_a_skip_meet_the_weights_behind_are_solved_first() -> None:
    net = vf.Network("small u-net")
    x = net.input("x", channels=CHANNELS, positions=(SIZE, SIZE))
    skip = net.relu(net.conv(x, CHANNELS, 3, padding=1, name="down"), name="skip")
    deep = net.relu(net.conv(net.max_pool(skip, 2), 2 * CHANNELS, 3, padding=1, name="deep"), name="h")
    net.conv(net.concat(net.upsample(deep, 2), skip), CHANNELS, 3, padding=1, name="up")
    solution = vf.solve(net, preserve="backward")
    assert {str(u): answer for u, _, answer, _ in solution.equations} == {
        "s_down": pytest.approx(32 / 23, rel=1e-9), "s_deep": 1, "s_up": 3}
    variances = {name: float(w.variance) for name, w in solution.items()}
    torch.manual_seed(0)
    before = after = 0.0
    for _ in range(100):
        pixels = torch.randn(SAMPLES, CHANNELS, SIZE, SIZE, requires_grad=True)
        near = torch.relu(_conv(pixels, variances["down"], CHANNELS))
        far = torch.relu(_conv(functional.max_pool2d(near, 2), variances["deep"], 2 * CHANNELS))
        out = _conv(torch.cat([functional.interpolate(far, scale_factor=2), near], 1), variances["up"], CHANNELS)
        first, end = torch.autograd.grad(out, [pixels, near], torch.randn_like(out))
        before, after = before + float((first**2).mean()), after + float((end**2).mean())
    assert abs(before / after - 1) < 0.02


@pytest.mark.parametrize("policy", [
    "backward", *(pytest.param(policy, marks=pytest.mark.slow) for policy in ("harmonic", "geometric"))])
def test_vgg_has_an_answer_for_every_policy(policy: str) -> None:
    solution = vf.solve(vf.load("vgg16"), preserve=policy)
    assert {str(s) for w in solution.values() for s in w.variance.free_symbols} <= {"m"}
    shares = {str(u): answer for u, _, answer, _ in solution.equations}
    if policy == "backward":
        assert shares["s_conv3_2"] == 2
        assert 1 < float(shares["s_conv1_2"]) < 2


def test_a_share_that_differs_with_open_symbols_is_refused() -> None:
    net = vf.Network("mixed")
    x = net.input("x", channels="n", positions=(8, 8))
    net.conv(net.max_pool(net.activation(net.conv(x, "n", 3, padding=1, name="w"), "elu(a)"), 2), "n", 3,
             variance="1/fan_in")
    with pytest.raises(SolveError, match="no condition determines s_w"):
        vf.solve(net, preserve="backward")


def test_numbers_are_recognized_as_simple_fractions_only() -> None:
    solution = vf.solve(_plain("relu"), preserve="backward")
    by_name = {str(u): (answer, closed) for u, _, answer, closed in solution.equations}
    assert by_name["s_a1"] == (2, True)
    assert not by_name["s_b1"][1]
    assert np.isclose(float(by_name["s_b1"][0]), 1.48, rtol=0.02)
