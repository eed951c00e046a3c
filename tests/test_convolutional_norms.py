"""Normalized convolutional networks and normalized weights: what is known, each against brute force too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import sympy as sp

import varflow as vf
from tests.convolutional import (
    GAIN,
    HE,
    RING,
    Draw,
    F,
    N,
    Tensor,
    brute,
    check,
    image,
    near,
    norm,
    one_thread,
    profile,
    same,
    torch,
)
from varflow.network import Network

PI = sp.pi


# -- batch norm in residual and dense networks -----------------------------------------------------


def residual(gamma: Any) -> Network:
    net, x = image("n", "s", "s")
    h = net.batch_norm(net.conv(x, "n", 3, **RING, name="c1", **HE), name="b1")
    h = net.conv(net.relu(h, name="r1"), "n", 3, **RING, name="c2", **HE)
    net.add(x, net.batch_norm(h, gamma=gamma, name="b2"), name="y")
    return net


def test_zero_gamma() -> None:
    """The identity at the start, forward and backward, while the layers within keep their second moments."""
    d = vf.derive(residual(0))
    assert [d[k].second_moment for k in ("x", "y", "b1", "r1", "c2")] == [1, 1, 1, sp.Rational(1, 2), 1]
    assert [d[k].grad_second_moment for k in ("x", "b2", "b1", "c1")] == [1, 1, 0, 0]
    d = vf.derive(residual("g"))
    g = d.network.symbols["g"]
    assert same(d["y"].second_moment, 1 + g**2)
    assert same(d["x"].grad_second_moment, 1 + g**2 * PI / (PI - 1))
    d = vf.derive(vf.load("resnet_zero_gamma").bind({"g": 0}))
    assert {d[f"stream[{k}].relu2"].second_moment for k in range(8)} == {d["relu0"].second_moment}
    assert {d[f"stream[{k}].sum"].grad_second_moment for k in range(8)} == {d["relu0"].grad_second_moment}


def test_growth_with_gamma() -> None:
    """gamma = 1/2, a batch of 16 images of 6 x 6, zero padding."""
    net, x = image(N, 6, 6)
    h = net.batch_norm(net.conv(x, N, 3, padding=1, name="c1", **HE), name="b1")
    h = net.batch_norm(net.conv(net.relu(h), N, 3, padding=1, name="c2", **HE), gamma="1/2", name="b2")
    net.add(x, h, name="y")

    def forward(draw: Draw) -> Tensor:
        x = draw.input(N, 6, 6)
        h = draw.name("b1", norm(draw.name("c1", draw.conv(x, N, 3, 2, padding=1))))
        h = norm(draw.name("c2", draw.conv(F.relu(h), N, 3, 2, padding=1)))
        return x + draw.name("b2", h / 2)

    check(net, forward, bias=0.02, draws=100, samples=16)


def test_densenet() -> None:
    """Each new map has second moment 1, however many there are."""
    net, x = image("n", "s", "s")
    for k in range(5):
        h = net.relu(net.batch_norm(x))
        x = net.concat(x, net.conv(h, "k", 3, name=f"c{k}", **RING, **HE), name=f"x{k}")
    d = vf.derive(net)
    assert all(same(d[f"c{k}"].second_moment, 1) and same(d[f"x{k}"].second_moment, 1) for k in range(5))


def test_densenet_by_brute_force() -> None:
    net, x = image(24, 5, 5)
    for k in range(3):
        h = net.relu(net.batch_norm(x))
        x = net.concat(x, net.conv(h, 12, 3, name=f"c{k}", **RING, **HE), name=f"x{k}" if k < 2 else "y")

    def forward(draw: Draw) -> Tensor:
        x = draw.input(24, 5, 5)
        for k in range(3):
            new = draw.name(f"c{k}", draw.conv(F.relu(norm(x)), 12, 3, 2, ring=True))
            x = torch.cat([x, new], 1)
            x = draw.name(f"x{k}", x) if k < 2 else x
        return x

    check(net, forward, bias=0.02, draws=100, samples=16)


def test_densenet_reads_as_one() -> None:
    net, x = image("n", "s", "s")
    x = net.concat(x, net.conv(net.relu(net.batch_norm(x)), "k", 3, **RING, **HE))
    net.conv(net.relu(net.batch_norm(x)), "k", 3, name="y", **RING, **HE)
    assert vf.derive(net)["y"].second_moment == 1


@pytest.mark.parametrize("pool", [False, True])
def test_instance_norm_before_a_global_mean(pool: bool) -> None:
    """The gradient of a global mean has one sign at all places of an image: y d does not average out there. Behind relu
    1/2 - 1/4 - 1/(2 pi) of it is left, its mean square less those of its mean and of its part along y."""
    net, x = image(N, 8, 8)
    h = net.relu(net.instance_norm(net.conv(x, N, 3, name="c", **RING, **GAIN), name="n"), name="r")
    h = net.max_pool(h, 2, name="m") if pool else h
    net.linear(net.mean_pool(h, name="gap"), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        c = draw.name("c", draw.conv(draw.input(N, 8, 8), N, 3, 1, ring=True))
        n = (c - c.mean((2, 3), keepdim=True)) / c.var((2, 3), keepdim=True, unbiased=False).sqrt()
        h = draw.name("r", F.relu(draw.name("n", n)))
        h = draw.name("m", F.max_pool2d(h, 2)) if pool else h
        return F.linear(draw.name("gap", h.mean((2, 3))), draw.weight(N, N))

    numbers = check(net, forward, draws=250, bias=0.02)
    if not pool:
        left = numbers["c"]["grad_second_moment"] / numbers["n"]["grad_second_moment"]
        assert left == pytest.approx(1 - 2 * (0.25 + 0.5 / np.pi), rel=0.05)


@pytest.mark.parametrize(("gamma", "gelu"), [("1", False), ("5/4", True)])
def test_batch_norm_of_four_images_before_a_global_mean(gamma: str, gelu: bool) -> None:
    """A fourth of what an instance norm takes off; behind a gain of the norm's own, and two activations, too."""
    net, x = image(N, 8, 8)
    h = net.batch_norm(net.conv(x, N, 3, name="c", **RING, **GAIN), batch=4, name="n", gamma=gamma)
    h = net.gelu(net.relu(h)) if gelu else net.relu(h)
    net.linear(net.mean_pool(h, name="gap"), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = norm(draw.name("c", draw.conv(draw.input(N, 8, 8), N, 3, 1, ring=True)))
        h = F.relu(draw.name("n", (1.25 if gelu else 1) * h))
        return F.linear(draw.name("gap", (F.gelu(h) if gelu else h).mean((2, 3))), draw.weight(N, N))

    numbers = check(net, forward, draws=250, bias=0.02)
    if not gelu:
        left = numbers["c"]["grad_second_moment"] / numbers["n"]["grad_second_moment"]
        assert left == pytest.approx(1 - (0.25 + 0.5 / np.pi) / 2, rel=0.02)


def test_batch_norm_of_a_sum_that_samples_share() -> None:
    """relu(c1) and a convolution of it, not Gaussian and with a part common to all samples: 1 on average over places,
    less at the border, so that the convolution behind it loses less there than it does of one that is even."""
    net, x = image(N, 5, 5)
    r = net.relu(net.conv(x, N, 3, padding=1, name="c1", **HE), name="r")
    h = net.batch_norm(net.add(net.conv(r, N, 3, padding=1, name="c2", **HE), r), batch=16, name="b")
    net.conv(h, N, 3, padding=1, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        r = draw.name("r", F.relu(draw.name("c1", draw.conv(draw.input(N, 5, 5), N, 3, 2, padding=1))))
        h = draw.name("b", norm(draw.name("c2", draw.conv(r, N, 3, 2, padding=1)) + r))
        return draw.conv(h, N, 3, 1, padding=1)

    numbers = check(net, forward, backward=False, draws=100, samples=16, bias=0.01)
    assert numbers["y"]["second_moment"] > 1.05 * (13 / 15) ** 2


# -- statistics over few and many entries ----------------------------------------------------------


@pytest.mark.parametrize("images", [False, True])
def test_batch_norm_and_relu(images: bool) -> None:
    """At a large batch the gradient grows by pi/(pi - 1) in each layer."""
    net, x = image("n", *(("s", "s") if images else ()))
    for k in range(4):
        h = net.conv(x, "n", 3, name=f"c{k}", **RING, **GAIN) if images else net.linear(x, "n", name=f"c{k}", **GAIN)
        x = net.relu(net.batch_norm(h), name=f"r{k}")
    d = vf.derive(net)
    for k in range(3):
        before, after = d[f"c{k}"].grad_second_moment, d[f"c{k + 1}"].grad_second_moment
        assert before is not None and after is not None
        if k:
            assert sp.simplify(before / after - PI / (PI - 1)) == 0
    assert {d[f"r{k}"].second_moment for k in range(4)} == {sp.Rational(1, 2)}


def normed(batch: int | None, function: str | None, **options: Any) -> Network:
    net, x = image(128, **options)
    h = net.batch_norm(net.linear(x, 128, name="c", **GAIN), name="b", **({} if batch is None else {"batch": batch}))
    h = net.activation(h, function, name="r") if function else h
    net.linear(h, 128, name="y", **GAIN)
    return net


@pytest.mark.parametrize("batch", [2, 4, 8, 32])
@pytest.mark.parametrize("function", [None, "relu"])
def test_batch_norm_of_few_samples(batch: int, function: str | None) -> None:
    """(B-2)/(B-3) backward; zero at B = 2. Normalized values are spherical: E relu at B = 8 is 0.4134."""
    net = normed(batch, function)
    numbers = vf.derive(net).numeric({})
    stated = 0 if batch == 2 else (batch - 2) / (batch - 3) / (2 if function else 1)
    assert numbers["b"]["second_moment"] == pytest.approx(1)
    assert numbers["c"]["grad_second_moment"] == pytest.approx(stated)
    if function and batch == 8:
        assert numbers["r"]["mean"] == pytest.approx(0.4134, abs=5e-5)
        assert numbers["r"]["second_moment"] == pytest.approx(0.5)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("b", norm(draw.name("c", F.linear(draw.input(128), draw.weight(128, 128)))))
        return F.linear(draw.name("r", F.relu(h)) if function else h, draw.weight(128, 128))

    found = brute(forward, draws=1500 if batch == 4 else 300, samples=batch)
    near(numbers["b"]["grad_second_moment"], found["b"][1], 0.01, "b backward")
    near(numbers["y"]["second_moment"], found["y"][0], 0.01, "y forward")
    if batch == 2:
        assert np.median(found["c"][1]) < 1e-9
    elif batch > 4:
        near(numbers["c"]["grad_second_moment"], found["c"][1], 0.03, "c backward")
    else:  # the fourth moment of the gradient is infinite
        assert np.mean(found["c"][1]) == pytest.approx(numbers["c"]["grad_second_moment"], rel=0.3)


def test_batch_norm_of_three_samples() -> None:
    """An infinite second moment: said, not an error, in formula, number and verification."""
    d = vf.derive(normed(3, None))
    assert d["c"].grad_second_moment == sp.oo
    numbers = d.numeric({})
    assert numbers["c"]["grad_second_moment"] == numbers["x"]["grad_second_moment"] == np.inf
    assert numbers["y"]["second_moment"] == 1
    net, x = image("n")
    net.linear(net.batch_norm(net.linear(x, "n", name="c", **GAIN), batch="B"), "n", name="y", **GAIN)
    B = net.symbols["B"]
    assert same(vf.derive(net)["c"].grad_second_moment, (B - 2) / (B - 3))


def test_batch_norm_of_correlated_samples() -> None:
    """Samples correlated by 1/3: (B-2)/((B-3)(1 - 1/3)), and sample covariance -1/(B-1) behind it."""
    net = normed(8, None, sample_correlation="1/3")
    assert vf.derive(net)["c"].grad_second_moment == sp.Rational(9, 5)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("c", F.linear(draw.input(128, samples=1 / 3), draw.weight(128, 128)))
        return F.linear(draw.name("b", norm(h)), draw.weight(128, 128))

    check(net, forward, draws=300, samples=8, bias=0.03)


def test_batch_norm_of_few_samples_and_places() -> None:
    """Four samples of four places, correlated by 1/4: E[1/var] of THEORY, 10 % over the limit."""
    net, x = image(N, 4, position_correlation="1/4")
    h = net.batch_norm(net.pointwise_conv(x, N, name="c", **GAIN), batch=4, name="b")
    net.pointwise_conv(h, N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("c", draw.conv(draw.input(N, 4, correlation=0.25), N, 1, 1))
        return draw.conv(draw.name("b", norm(h)), N, 1, 1)

    check(net, forward, draws=600, samples=4, bias=0.05)


def test_batch_norm_behind_a_border() -> None:
    """What all channels have in common enters each by nine weights, which borders tell apart: the variance of a
    channel stays random however wide the network is, and E[1/var] is not 1/E[var]."""
    net, x = image(64, 6, 6, mean=2, second_moment="17/4")
    h = net.batch_norm(net.conv(x, 64, 3, padding=1, name="c", **GAIN), name="b")
    net.conv(h, 64, 3, name="y", **RING, **GAIN)

    def forward(draw: Draw) -> Tensor:
        x = draw.name("x", (draw.normal(64, 64, 6, 6) / 2 + 2).requires_grad_())
        h = draw.name("c", draw.conv(x, 64, 3, 1, padding=1))
        return draw.conv(draw.name("b", norm(h)), 64, 3, 1, ring=True)

    numbers, found = vf.derive(net).numeric({}), brute(forward, draws=100, samples=64)
    near(numbers["c"]["grad_second_moment"], found["c"][1], 0.01, "c backward")
    near(numbers["x"]["grad_second_moment"], found["x"][1], 0.01, "x backward")


def test_stream_behind_borders() -> None:
    """Post-activation blocks: the stream's mean grows, and with it what a border does to the variance of a channel;
    without it the gradient is 2 % low in each block, 15 % after eight."""
    net, x = image(128, 6, 6)
    z = net.relu(net.batch_norm(net.conv(x, 128, 3, padding=1, name="c0", **HE)), name="r0")
    for k in (1, 2):
        h = net.relu(net.batch_norm(net.conv(z, 128, 3, padding=1, name=f"c{k}", **HE)))
        h = net.batch_norm(net.conv(h, 128, 3, padding=1, name=f"d{k}", **HE), gamma="1/2")
        z = net.relu(net.add(z, h), name=f"r{k}" if k < 2 else "y")

    def forward(draw: Draw) -> Tensor:
        def layer(x: Tensor, name: str) -> Tensor:
            return norm(draw.name(name, draw.conv(x, 128, 3, 2, padding=1)))

        z = draw.name("r0", F.relu(layer(draw.input(128, 6, 6), "c0")))
        for k in (1, 2):
            z = F.relu(z + layer(F.relu(layer(z, f"c{k}")), f"d{k}") / 2)
            z = draw.name(f"r{k}", z) if k < 2 else z
        return z

    check(net, forward, draws=40, samples=64, bias=0.01)


def test_profile_behind_a_border() -> None:
    """What a batch norm leaves at every place, and between places and samples, where its variance is random."""
    net, x = image(32, 4, 4, mean=2, second_moment="17/4")
    h = net.batch_norm(net.conv(x, 32, 3, padding=1, name="c", **GAIN), batch=6, name="b")
    net.mean_pool(h, name="p")
    random, rows = torch.Generator().manual_seed(3), []
    draw = Draw(6, random)
    with one_thread():
        for _ in range(1500):
            rows.append(norm(draw.conv(draw.normal(6, 32, 4, 4) / 2 + 2, 32, 3, 1, padding=1)))
    z = torch.stack(rows)
    assert profile(net, "b") == pytest.approx((z**2).mean((0, 1, 2)).numpy().ravel(), rel=0.02)
    pooled = (z.mean((3, 4)) ** 2).mean((1, 2)).numpy()
    near(vf.derive(net).numeric({})["p"]["second_moment"], pooled, 0.01, "p forward")


def test_instance_and_group_norm() -> None:
    """Second moment 1, the gradient divided by the variance; 64 and more entries each."""
    for op, groups, fields in (("instance_norm", N, {}), ("group_norm", 4, {"groups": 4}), ("group_norm", 1,
                                                                                            {"groups": 1})):
        net, x = image(N, 8, 8)
        h = net.apply(op, net.conv(x, N, 3, name="c", variance="3/fan_in", **RING), name="b", **fields)
        net.conv(net.relu(h, name="r"), N, 3, name="y", **RING, **HE)

        def forward(draw: Draw, groups: int = groups) -> Tensor:
            h = draw.name("c", draw.conv(draw.input(N, 8, 8), N, 3, 3, ring=True))
            h = draw.name("b", F.group_norm(h, groups, eps=0))
            return draw.conv(draw.name("r", F.relu(h)), N, 3, 2, ring=True)

        numbers = check(net, forward, draws=100, bias=0.04)
        assert numbers["b"]["second_moment"] == pytest.approx(1) and numbers["r"]["second_moment"] == pytest.approx(.5)
        assert numbers["c"]["grad_second_moment"] == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize("op", ["instance_norm", "group_norm"])
def test_norm_of_few_entries(op: str) -> None:
    """m = 8 independent Gaussian entries: (m-2)/(m-3) over the variance, however wide the network."""
    net, x = image("n", *((8,) if op == "instance_norm" else ()))
    h = net.linear(x, "n", name="c", **GAIN)
    h = net.group_norm(h, "n/8") if op == "group_norm" else net.instance_norm(h)
    net.linear(h, "n", name="y", **GAIN)
    d = vf.derive(net)
    assert d["c"].grad_second_moment == sp.Rational(6, 5)
    entries = "8 entries (positions)" if op == "instance_norm" else "8 entries (channels)"
    assert any(entries in a for a in d["c"].assumptions)
    assert d.numeric({"n": 128})["c"]["grad_second_moment"] == pytest.approx(6 / 5)


def test_group_norm_of_few_entries_by_brute_force() -> None:
    """The number that the test above states."""
    def forward(draw: Draw) -> Tensor:
        h = draw.name("c", F.linear(draw.input(128), draw.weight(128, 128)))
        return F.linear(F.group_norm(h, 16, eps=0), draw.weight(128, 128))

    near(6 / 5, brute(forward, draws=600)["c"][1], 0.03, "c backward")


def test_group_norm_of_few_channels_and_places() -> None:
    """Two channels of nine places behind zero padding, where places differ and share what they read."""
    net, x = image(N, 3, 3)
    h = net.group_norm(net.conv(net.relu(x), N, 3, padding=1, name="c", **HE), N // 2, name="b")
    net.conv(net.relu(h), N, 3, padding=1, name="y", **HE)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("c", draw.conv(F.relu(draw.input(N, 3, 3)), N, 3, 2, padding=1))
        return draw.conv(F.relu(draw.name("b", F.group_norm(h, N // 2, eps=0))), N, 3, 2, padding=1)

    check(net, forward, draws=400, bias=0.03)


@pytest.mark.parametrize("scale", ["3", "-1/2"])
def test_instance_norm_twice(scale: str) -> None:
    """The second finds a variance that is a constant: the value it is given, the gradient less its part along it."""
    net, x = image(N, 4)
    h = net.scale(net.instance_norm(net.pointwise_conv(x, N, name="c", **GAIN), name="a"), scale, name="s")
    net.pointwise_conv(net.instance_norm(h, name="b"), N, name="y", **GAIN)
    assert vf.derive(net)["s"].grad_second_moment == sp.Rational(3, 4) * sp.Rational(2, 3) / sp.Rational(scale) ** 2

    def forward(draw: Draw) -> Tensor:
        h = draw.name("a", F.instance_norm(draw.name("c", draw.conv(draw.input(N, 4), N, 1, 1)), eps=0))
        h = draw.name("s", float(sp.Rational(scale)) * h)
        return draw.conv(draw.name("b", F.instance_norm(h, eps=0)), N, 1, 1)

    found, numbers = brute(forward, draws=300), vf.derive(net).numeric({})
    for name in ("a", "s", "b", "y"):
        near(numbers[name]["second_moment"], found[name][0], 0.01, f"{name} forward")
    for name in ("s", "b"):
        near(numbers[name]["grad_second_moment"], found[name][1], 0.01, f"{name} backward")


def weight_normed(w: Tensor) -> Tensor:
    return w / w.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def standardized(w: Tensor) -> Tensor:
    """Rows of mean 0 and of variance 1/fan_in."""
    rows = w.flatten(1)
    rows = (rows - rows.mean(1, keepdim=True)) / rows.std(1, unbiased=False, keepdim=True)
    return (rows / rows.shape[1] ** 0.5).reshape(w.shape)


def test_weight_norm() -> None:
    """g = sqrt(2) with ReLU: fan_in Var(W_ij) = g^2."""
    net, x = image("n", "s", "s")
    for k in range(3):
        x = net.relu(net.conv(x, "n", 3, name=f"c{k}", distribution="weight_norm", **RING, **HE), name=f"r{k}")
    d = vf.derive(net)
    assert [d[f"r{k}"].second_moment for k in range(3)] == [1, 1, 1]
    assert d["x"].grad_second_moment == 1
    net, x = image(N, 5, 5)
    h = net.relu(net.conv(x, N, 3, name="c", distribution="weight_norm", **RING, **HE))
    net.conv(h, N, 3, name="y", distribution="weight_norm", **RING, **HE)

    def forward(draw: Draw) -> Tensor:
        def layer(x: Tensor) -> Tensor:
            w = 2**0.5 * weight_normed(draw.normal(N, N, 3, 3))
            return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), w)

        return layer(F.relu(draw.name("c", layer(draw.input(N, 5, 5)))))

    check(net, forward)


NFNET = "sqrt(2/(1 - 1/pi))"


def nfnet(padding: Mapping[str, Any], channels: Any = N, size: Any = 5) -> Network:
    net, x = image(channels, size, size)
    for k in range(3):
        h = net.scale(net.relu(x), NFNET, name=f"h{k}")
        x = net.conv(h, channels, 3, name=f"c{k}" if k < 2 else "y", distribution="standardized", **padding, **GAIN)
    return net


def nfnet_by_torch(draw: Draw, mode: str) -> Tensor:
    x, gain = draw.input(N, 5, 5), (2 / (1 - 1 / np.pi)) ** 0.5
    for k in range(3):
        h = F.pad(gain * F.relu(x), (1, 1, 1, 1), mode=mode)
        x = F.conv2d(h, standardized(draw.normal(N, N, 3, 3)))
        x = draw.name(f"c{k}", x) if k < 2 else x
    return x


def test_standardized_weights() -> None:
    """The mean does not pass: fan_in Var = 1 and a gain of 1/sqrt(Var relu) keep the second moment at 1."""
    d = vf.derive(nfnet(RING, "n", "s"))
    assert all(same(d[k].second_moment, 1) for k in ("c0", "c1", "y"))
    assert same(d["x"].grad_second_moment, (1 - 1 / PI) ** -3)
    check(nfnet(RING), lambda draw: nfnet_by_torch(draw, "circular"), bias=0.03, draws=400)


def test_standardized_weights_at_borders() -> None:
    """Weights of the taps inside do not sum to zero: a part of the mean comes through."""
    check(nfnet({"padding": 1}), lambda draw: nfnet_by_torch(draw, "constant"), bias=0.03, draws=400)


def test_standardized_weights_between_places() -> None:
    """Of places with m and m' of nine taps inside, l of them in both: l/9 - m m'/81 of the squared mean; here of an
    image that is mean alone but for a tenth, averaged."""
    net, x = image(N, 5, 5, mean=1, second_moment="11/10")
    h = net.conv(x, N, 3, name="c", padding=1, stride=2, distribution="standardized", **GAIN)
    net.linear(net.mean_pool(h, name="p"), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        x = draw.name("x", (1 + 0.1**0.5 * draw.normal(draw.samples, N, 5, 5)).requires_grad_())
        h = draw.name("c", F.conv2d(x, standardized(draw.normal(N, N, 3, 3)), padding=1, stride=2))
        return F.linear(draw.name("p", h.mean((2, 3))), draw.weight(N, N))

    numbers = check(net, forward, bias=0.03, draws=600)
    axis = np.array([[2, 2, 1], [2, 3, 2], [1, 2, 2]])
    both = np.kron(axis, axis) / 9
    inside = np.diag(both)
    covariance = both - np.outer(inside, inside) + np.diag(inside) / 10
    assert profile(net, "c") == pytest.approx(np.diag(covariance))
    assert numbers["p"]["second_moment"] == pytest.approx(covariance.mean())


def test_standardized_weights_read_as_one() -> None:
    assert vf.derive(nfnet(RING, "n", "s"))["y"].second_moment == 1


def test_the_mean_of_an_instance_norm_is_zero_by_position() -> None:
    """It was what rounding left, below zero even, and verification took it for a number."""
    net = Network("zero")
    h = net.conv(net.input("x", 32, (8, 8), mean="1/2", position_correlation="1/2"), 32, 3, padding=1, name="c",
                 variance="2/fan_in")
    net.linear(net.mean_pool(net.instance_norm(h), name="p"), 32, name="y", variance="1/fan_in")
    d = vf.derive(net)
    assert d.numeric({})["p"]["second_moment"] == d.numeric({})["y"]["second_moment"] == 0
    assert vf.verify(d, {}, 64).nodes["y"]["forward"].verdict == "pass"
