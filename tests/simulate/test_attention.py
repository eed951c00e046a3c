"""Attention in the simulator: against the plain interpreter, threads, and collapsed against sampled draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.simulate.collapsed_law import compare, statistics
from tests.simulate.test_cpu import agree
from varflow.errors import ShapeError
from varflow.lowering import lower
from varflow.network import Network
from varflow.simulate import kernels_attention as ka
from varflow.simulate.cpu import simulate
from varflow.simulate.jit import set_threads
from varflow.simulate.plan import make_plan


def block(channels: int = 24, tokens: Any = (7,), heads: int = 3, causal: bool = False, **fields: Any) -> Network:
    """Self-attention behind an embedding, its parts as nodes."""
    net = Network("block")
    x = net.linear(net.input("x", channels, tokens), channels, variance="1/fan_in", name="e")
    q, k, v = (net.linear(x, channels, name=c, variance="2/fan_in") for c in "qkv")
    logits = net.scores(q, k, heads=heads, name="logits", **fields)
    y = net.blend(net.softmax(logits, heads=heads, causal=causal, name="weights"), v, heads=heads, name="y")
    net.add(x, net.linear(y, channels, name="o", variance="1/fan_in"), name="z")
    return net


@pytest.mark.parametrize("tokens", [(1,), (7,), (3, 4), (33,)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_values_are_the_interpreters(tokens: tuple[int, ...], causal: bool) -> None:
    agree(lower(block(tokens=tokens, causal=causal)), 3)


@pytest.mark.parametrize(("channels", "heads"), [(40, 2), (8, 8), (16, 1)])
def test_heads_of_all_widths(channels: int, heads: int) -> None:
    agree(lower(block(channels, (5,), heads, scale="3/d_k")), 2)


def test_cross_attention() -> None:
    net = Network("cross")
    q, k = net.input("q", 12, (5,)), net.input("k", 12, (9,))
    net.attention(q, k, net.linear(k, 21, variance="1/fan_in", name="v"), heads=3, name="y")
    agree(lower(net), 3)


def test_extreme_logits() -> None:
    """A row of huge logits is one hot; equal ones are uniform; what is not a number stays visible."""
    x = np.array([[[1e30, 0.0, -1e30, 5.0], [3e38, 3e38, 3e38, 3e38], [np.nan, 0, 0, 0]]], np.float32)
    with np.errstate(all="ignore"):
        y = ka.softmax(x, 1, 1)
    assert y[0, 0].tolist() == [1, 0, 0, 0]
    assert y[0, 1].tolist() == [0.25] * 4
    assert np.isnan(y[0, 2]).any()


def test_float32_products_against_float64() -> None:
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((2, 3 * 50, 72)).astype(np.float32) for _ in range(2))
    got = ka.scores(q, k, 3, 6).reshape(2, 3, 50, 6, 50)
    parts = [x.astype(np.float64).reshape(2, 3, 50, 6, 12) for x in (q, k)]
    want = np.einsum("dspac,dsrac->dspar", *parts)
    np.testing.assert_allclose(got, want, atol=2e-5)
    weights = ka.softmax(got.reshape(2, 150, 300), 3, 6)
    np.testing.assert_allclose(weights.reshape(2, 3, 50, 6, 50).sum(axis=4, dtype=np.float64), 1, atol=1e-6)
    split = weights.astype(np.float64).reshape(2, 3, 50, 6, 50)
    np.testing.assert_allclose(ka.blend(weights, k, 3, 6).reshape(2, 3, 50, 6, 12),
                               np.einsum("dspar,dsrac->dspac", split, parts[1]), atol=2e-5)
    np.testing.assert_allclose(ka.blend(weights, k, 3, 6, True).reshape(2, 3, 50, 6, 12),
                               np.einsum("dspar,dspac->dsrac", split, parts[1]), atol=2e-5)


def test_shapes_are_checked() -> None:
    x = np.zeros((1, 6, 8), np.float32)
    with pytest.raises(ShapeError):
        ka.scores(x, x, 1, 3)
    with pytest.raises(ShapeError):
        ka.scores(x, x[:, :, :4], 1, 2)
    with pytest.raises(ShapeError):
        ka.blend(x, x, 1, 1)
    with pytest.raises(ShapeError):
        ka.softmax(x, 4, 2)


def test_bits_do_not_depend_on_threads_chunks_or_methods_of_cutting() -> None:
    program = lower(block(causal=True))
    for method in ("sampled", "collapsed"):
        whole = simulate(program, 70, seed=3, threads=1, weights=True, method=method)
        assert whole == simulate(program, 70, seed=3, threads=2, weights=True, method=method)
        assert whole == simulate(program, 70, seed=3, threads=2, weights=True, memory=10**5, method=method)
    set_threads(2)


# -- collapsed against sampled (see collapsed_law for draws of the right law) --------------------------


def test_every_weight_is_collapsed() -> None:
    plan = make_plan(lower(block()), 2, method="collapsed")
    assert set(plan.revealing) == {"e", "q", "k", "v", "o"}


def test_a_wrong_law_is_seen() -> None:
    """The comparison of collapsed with sampled draws refutes logits that are 10 % larger, and another mask."""
    right = statistics(lower(block(16, (4,), 2)), 6000, "sampled", 1)
    for wrong in (block(16, (4,), 2, scale="11/10/sqrt(d_k)"), block(16, (4,), 2, causal=True)):
        found = compare(statistics(lower(wrong), 6000, "collapsed", 0), right)
        assert min(found["weights log norm"], found["q gradient log norm"]) < 1e-6
        assert found["e log norm"] > 1e-4
