"""A constant weight makes all units identical: its law against simulation and against an independent brute force."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import sympy as sp

import varflow as vf
from varflow.errors import UnsupportedError
from varflow.lowering import lower
from varflow.network import Network
from varflow.simulate.cpu import simulate
from varflow.verify import verify

N = 64
FUNCTIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0),
    "abs": (np.abs, np.sign),
}
Layer = tuple[str, Any]
UNKNOWN = {"relu before and after": {("backward", "x")}, "two far apart": {("backward", "x")}}
"""What has no formula: a gradient through W^T (relu'(W x) d) with d shared, and one summed over twice."""
CHAINS: dict[str, tuple[float, list[Layer]]] = {
    "an input with a mean": (0.5, [("constant", 2.0)]),
    "random weights after it": (0.0, [("random", 1.0), ("constant", 1.0), ("random", 2.0)]),
    "relu before and after": (0.0, [("random", 2.0), ("relu", 0), ("constant", 1 / N), ("relu", 0), ("random", 2.0)]),
    "functions of one number": (0.0, [("random", 1.0), ("tanh", 0), ("constant", N**-0.5), ("tanh", 0),
                                      ("random", 3.0)]),
    "a scale mixture": (0.0, [("random", 1.0), ("constant", N**-0.5), ("random", 2.0), ("tanh", 0)]),
    "a mixture of a function": (0.0, [("random", 1.0), ("tanh", 0), ("constant", N**-0.5), ("relu", 0), ("random", 2.0),
                                      ("tanh", 0), ("random", 1.0)]),
    "abs of a mixture": (0.0, [("constant", N**-0.5), ("random", 2.0), ("abs", 0), ("random", 1.0)]),
    "two constant weights": (0.0, [("random", 1.0), ("constant", N**-0.5), ("tanh", 0), ("constant", 1 / N),
                                   ("tanh", 0)]),
    "two far apart": (0.0, [("constant", N**-0.5), ("random", 2.0), ("constant", N**-0.5), ("random", 1.0)]),
    "a deep linear chain": (0.0, [("random", 1.0), ("random", 1.0), ("constant", N**-0.5), ("random", 2.0),
                                  ("random", 1.0)]),
}  # fmt: skip


def chain(mean: float, layers: Sequence[Layer]) -> Network:
    """The layers as a network of nodes y0, y1, ..."""
    net = Network("chain")
    h = net.input("x", N, mean=mean, second_moment=1)
    for k, (kind, number) in enumerate(layers):
        if kind == "constant":
            h = net.linear(h, N, name=f"y{k}", distribution="constant", value=number)
        elif kind == "random":
            h = net.linear(h, N, name=f"y{k}", variance=number / N)
        else:
            h = net.activation(h, kind, name=f"y{k}")
    return net


def one_draw(rng: np.random.Generator, mean: float, layers: Sequence[Layer]) -> tuple[list[float], list[float]]:
    """Mean squares of every layer's value and of its gradient, layer by layer, with plain matrices."""
    value = mean + np.sqrt(1 - mean**2) * rng.standard_normal(N)
    before, weights, values = [], [], [value]
    for kind, number in layers:
        before.append(value)
        matrix = np.full((N, N), number) if kind == "constant" else rng.standard_normal((N, N)) * np.sqrt(number / N)
        weights.append(matrix)
        value = FUNCTIONS[kind][0](value) if kind in FUNCTIONS else matrix @ value
        values.append(value)
    gradients = [rng.standard_normal(N)]
    for (kind, _), matrix, x in reversed(list(zip(layers, weights, before, strict=True))):
        d = gradients[-1]
        gradients.append(FUNCTIONS[kind][1](x) * d if kind in FUNCTIONS else matrix.T @ d)
    return [float(np.mean(v**2)) for v in values], [float(np.mean(g**2)) for g in reversed(gradients)]


def brute(mean: float, layers: Sequence[Layer], draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Averages over draws and their standard errors: (direction, node)."""
    rng = np.random.default_rng(0)
    rows = np.array([one_draw(rng, mean, layers) for _ in range(draws)])
    return rows.mean(0), rows.std(0) / np.sqrt(draws)


@pytest.mark.parametrize("name", CHAINS)
def test_against_brute_force_and_simulation(name: str) -> None:
    mean, layers = CHAINS[name]
    net = chain(mean, layers)
    d = vf.derive(net)
    numbers, simulated = d.numbers({}), simulate(lower(net), 4000).summaries()
    nodes = ["x", *(f"y{k}" for k in range(len(layers)))]
    average, error = brute(mean, layers, 4000)
    missing = set()
    for k, node in enumerate(nodes):
        for side, direction in enumerate(("forward", "backward")):
            law = d[node].forward if direction == "forward" else d[node].backward
            if law is None or law.second is None or getattr(law.second, "tier", "") == "population":
                missing.add((direction, node))
                continue
            value = float((numbers.second if direction == "forward" else numbers.gradient)(node))
            s = simulated[direction, node]
            assert abs(value - average[side, k]) < 4 * error[side, k] + 0.03 * average[side, k]
            assert abs(value - s.second_moment) < 4 * s.standard_error + 0.03 * s.second_moment
    assert missing == UNKNOWN.get(name, set())
    last = d["y0" if layers[0][0] == "constant" else f"y{len(layers) - 1}"]
    assert any("are identical" in text and "rank one" in text for text in last.assumptions)


# -- other streams, blocks and positions -------------------------------------------------------------


def beside(net: Network) -> None:
    """A constant weight on a skip connection, of its own sum."""
    h = net.linear(net.input("x", N), N, name="h", variance=1 / N)
    net.add(h, net.linear(h, N, name="c", distribution="constant", value=N**-0.5), name="y")


def independent_stream(net: Network) -> None:
    """A shared number beside an independent stream, behind a random weight and a function."""
    s = net.linear(net.input("x", N), N, name="c", distribution="constant", value=N**-0.5)
    y = net.add(s, net.input("z", N), name="y")
    net.linear(net.tanh(y, name="t"), N, name="w", variance=2 / N)


def gated(net: Network) -> None:
    """A shared number times an independent stream, masked."""
    s = net.linear(net.input("x", N, mean=0.2), N, name="c", distribution="constant", value=N**-0.5)
    g = net.multiply(s, net.input("z", N), name="g")
    net.linear(net.dropout(g, "1/4", name="drop"), N, name="w", variance=2 / N)


def blocks(net: Network) -> None:
    """A sum over two kinds of channels; the output cut in two and multiplied: one number squared."""
    h = net.concat(net.input("x", N // 2, mean=0.5), net.tanh(net.input("z", N), name="t"), name="h")
    c = net.linear(h, N, name="c", distribution="constant", value=0.1)
    left, right = net.split(c, N // 2, N // 2, name="s")
    net.multiply(left, right, name="y")


def positions(net: Network) -> None:
    """Sums at correlated positions, averaged."""
    x = net.input("x", N, positions=(6,), position_correlation="1/2", mean=0.3)
    net.mean_pool(net.linear(x, N, name="c", distribution="constant", value=N**-0.5), name="y")


NO_FORMULA: dict[object, set[tuple[str, str]]] = {
    beside: {("backward", "x")}, blocks: {("backward", node) for node in ("x", "z", "t", "h")}}
"""Gradients that hold a number shared by all channels beside what it is a sum of, and sums over pieces."""


@pytest.mark.parametrize("build", [beside, independent_stream, gated, blocks, positions])
def test_against_simulation(build: Callable[[Network], None]) -> None:
    net = Network(build.__name__)
    build(net)
    d = vf.derive(net)
    numbers, simulated = d.numbers({}), simulate(lower(net), 4000, samples=4).summaries()
    missing = set()
    for (direction, node), s in simulated.items():
        law = d[node].forward if direction == "forward" else d[node].backward
        if law is not None and getattr(law.second, "tier", "") == "population":
            missing.add((direction, node))
            continue
        value = float((numbers.second if direction == "forward" else numbers.gradient)(node))
        assert abs(value - s.second_moment) < 4 * s.standard_error + 0.02 * s.second_moment, (direction, node)
    assert missing == NO_FORMULA.get(build, set())


@pytest.mark.parametrize("build", [
    lambda net, x: net.layer_norm(const(net, x), name="y"),
    lambda net, x: net.rms_norm(const(net, x), name="y"),
    lambda net, x: net.batch_norm(const(net, x), batch=8, name="y"),
    lambda net, x: net.sin(const(net, net.relu(net.linear(x, N, variance=1 / N))), name="y"),
    lambda net, x: net.linear(x, N, distribution="constant", value=1, keep="1/2", name="y"),
])  # fmt: skip
def test_refused(build: Callable[[Network, Any], Any]) -> None:
    net = Network("refused")
    build(net, net.input("x", N))
    with pytest.raises(UnsupportedError, match=r"constant weight|a wave of the sum"):
        vf.derive(net)


@pytest.mark.parametrize("build", [
    lambda net, x: const(net, net.concat(x, x)),
    lambda net, x: const(net, net.subtract(net.abs(x), net.scale(net.abs(net.permute(x, permutation="P")), "1"))),
    lambda net, x: const(net, net.drop_path(net.relu(x), p="1/2")),
    lambda net, x: net.tanh(random(net, net.tanh(random(net, const(net, x)))), name="y"),
])  # fmt: skip
def test_no_number_where_there_is_no_law(build: Callable[[Network, Any], Any]) -> None:
    """Channels that are not independent, and functions of a value known by two moments."""
    net = Network("unknown")
    y = build(net, net.input("x", N))
    d = vf.derive(net)
    assert d[y.key].second_moment is None
    with pytest.raises(UnsupportedError, match="constant weight"):
        d[y.key].numeric({})


def random(net: Network, x: Any) -> Any:
    return net.linear(x, N, variance=1 / N)


def const(net: Network, x: Any, value: float = 0.1) -> Any:
    return net.linear(x, N, name="c", distribution="constant", value=value)


def test_formula() -> None:
    """E y^2 = c^2 (n (q - m^2) + n^2 m^2), at any width."""
    n, c, m, q = sp.symbols("n c m q", positive=True)
    net = Network("formula")
    net.linear(net.input("x", "n", mean="m", second_moment="q"), "n", name="y", distribution="constant", value="c")
    law = vf.derive(net)["y"]
    assert law.second_moment is not None
    names = {s.name: s for s in law.second_moment.free_symbols}
    expected = (c**2 * (n * (q - m**2) + n**2 * m**2)).subs([(s, names[s.name]) for s in (n, c, m, q)])
    assert sp.expand(law.second_moment - expected) == 0
    assert law.exactness == "exact"


def test_symmetry_is_broken_by_noise() -> None:
    """Noise on a constant weight is a second, random weight beside it: units differ again by its share."""
    net = Network("broken")
    x = net.input("x", N)
    net.add(const(net, x, 1 / N), net.linear(x, N, name="noise", variance=0.01 / N), name="y")
    assert vf.derive(net).numeric({})["y"]["second_moment"] == pytest.approx(1 / N + 0.01)


def test_verified() -> None:
    _, layers = CHAINS["a scale mixture"]
    result = verify(chain(0.0, layers), draws=1000, max_draws=24000, delta=0.05)
    assert result.verdict == "pass", result.summary()
