"""The law of collapsed draws against that of sampled ones: two-sample Kolmogorov-Smirnov tests, node by node.

Networks are narrow, where what a reused weight remembers matters most. Of every value and gradient the tests look at
the logarithm of the first column's norm, at the inner product of the first two columns (samples or positions), at that
of value and gradient, and at the sum of the latter over all values, which knows how they depend on each other. Run as
a script it compares a million draws of each network and writes what it finds:

    python -m tests.simulate.collapsed_law [--draws 1000000] [--networks NAME ...]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from varflow.lowering import lower
from varflow.network import Network
from varflow.program import Program
from varflow.simulate.cpu import Chunk
from varflow.simulate.plan import make_plan

RESULT = Path(__file__).with_name("collapsed_law.json")
SAMPLES = 2
PIECE = 20_000
Float = NDArray[np.float64]
Statistics = dict[str, Float]


def mlp() -> Network:
    """A bias, two activations, three widths."""
    net = Network("mlp")
    h = net.gelu(net.linear(net.input("x", 7), 6, variance="2/fan_in", bias="1/10"), name="h")
    y = net.relu(net.linear(h, 9, variance="2/fan_in"), name="y")
    net.linear(y, 5, variance="1/fan_in", name="z")
    return net


def residual() -> Network:
    """Two blocks on a stream."""
    net = Network("residual")
    x = net.input("x", 6)
    for k in range(2):
        h = net.relu(net.linear(x, 8, variance="2/fan_in"))
        x = net.add(x, net.linear(h, 6, variance="1/fan_in"), name=f"y{k}")
    return net


def recurrent() -> Network:
    """One matrix, three times."""
    net = Network("recurrent")
    x = net.input("x", 6)
    for k in range(3):
        x = net.tanh(net.linear(x, 6, weight="W", variance="2/fan_in"), name=f"h{k}")
    return net


def tied() -> Network:
    """W^T relu(W x)."""
    net = Network("tied")
    h = net.relu(net.linear(net.input("x", 6), 9, weight="W", variance="1/fan_in"), name="h")
    net.linear(h, 6, weight="W", transpose=True, variance="1/6", name="y")
    return net


def tied_twice() -> Network:
    """W relu(W^T relu(W x)), and once more back: uses from both sides, in turns."""
    net = Network("tied twice")
    x = net.input("x", 5)
    for k in range(2):
        h = net.relu(net.linear(x, 7, weight="W", variance="2/5"), name=f"h{k}")
        x = net.relu(net.linear(h, 5, weight="W", transpose=True, variance="2/5"), name=f"x{k}")
    return net


def mixture() -> Network:
    """W x + W relu(x)."""
    net = Network("mixture")
    x = net.input("x", 6)
    a = net.linear(x, 7, weight="W", variance="1/fan_in")
    net.add(a, net.linear(net.relu(x), 7, weight="W", variance="1/fan_in"), name="y")
    return net


def positions() -> Network:
    """Three correlated positions of each sample, mixed by a mean."""
    net = Network("positions")
    x = net.input("x", 6, (3,), position_correlation="1/2")
    h = net.relu(net.linear(x, 8, variance="2/fan_in"), name="h")
    net.linear(net.mean_pool(h), 5, variance="1/fan_in", name="y")
    return net


def blocks() -> Network:
    """A contraction over two concatenated blocks, a mask and a normalization."""
    net = Network("blocks")
    x = net.input("x", 6)
    h = net.linear(x, 5, variance="1/fan_in", name="h")
    both = net.concat(net.relu(h), net.dropout(x, "1/3"))
    net.layer_norm(net.linear(both, 7, variance="2/fan_in"), eps="1/100", name="y")
    return net


def gated() -> Network:
    """Three branches of one input, two of which multiply, and one of which uses the first one's weight again."""
    net = Network("gated")
    x = net.input("x", 6)
    a = net.linear(x, 6, weight="W", variance="1/fan_in")
    gate = net.sigmoid(net.linear(x, 6, variance="2/fan_in"), name="gate")
    b = net.linear(net.tanh(a), 6, weight="W", variance="1/fan_in")
    net.linear(net.add(net.multiply(a, gate), b, name="sum"), 4, variance="1/fan_in", name="y")
    return net


def rotated() -> Network:
    """Haar matrices: one used three times, one of them as the transpose, and one that is not square.

    Six columns and six gradients leave some of 16 directions free: a matrix of 6 rows would be known whole. No ReLU:
    inner products of columns that share no unit are zero, and an isometry keeps them so but for the rounding of
    float32, of which either method has its own; the test sees that (p 1e-5 over a million draws, and 0.6 with numbers
    below 1e-5 taken as zero).
    """
    net = Network("rotated")
    x = net.input("x", 16)
    h = net.gelu(net.linear(x, 16, weight="W", variance="2/fan_in", distribution="orthogonal"), name="h")
    g = net.tanh(net.linear(h, 16, weight="W", variance="2/fan_in", distribution="orthogonal"), name="g")
    z = net.linear(g, 16, weight="W", variance="2/fan_in", distribution="orthogonal", transpose=True, name="z")
    net.linear(net.gelu(z), 10, variance="1/fan_in", distribution="orthogonal", name="y")
    return net


def convolved() -> Network:
    """Two groups behind zero padding, a stride, a projection beside it."""
    net = Network("convolved")
    x = net.input("x", 4, (4,))
    h = net.relu(net.conv(x, 6, kernel=3, padding=1, groups=2, variance="2/fan_in"), name="h")
    a = net.conv(h, 5, kernel=3, stride=2, padding=1, variance="1/fan_in", bias="1/10")
    net.relu(net.add(a, net.conv(x, 5, kernel=1, stride=2, variance="1/fan_in")), name="y")
    return net


def convolved_again() -> Network:
    """One weight: forward in a plane, dilated, and once as the transpose."""
    net = Network("convolved again")
    x = net.input("x", 3, (3, 2))
    h = net.relu(net.conv(x, 3, kernel=2, padding=1, weight="W", variance="1/6"), name="h")
    g = net.tanh(net.conv(h, 3, kernel=2, dilation=2, weight="W", variance="1/6"), name="g")
    net.conv_transpose(g, 3, kernel=2, weight="W", variance="1/6", name="y")
    return net


def attention() -> Network:
    """Two heads over three correlated tokens, on a stream; queries of the second layer are causal."""
    net = Network("attention")
    x = net.input("x", 6, (3,), position_correlation="1/4")
    for k, causal in enumerate((False, True)):
        parts = [net.linear(x, 6, variance="2/fan_in", name=f"{part}{k}") for part in ("query", "key", "value")]
        y = net.attention(*parts, heads=2, causal=causal, name=f"blend{k}")
        x = net.add(x, net.linear(y, 6, variance="1/fan_in", name=f"output{k}"), name=f"y{k}")
    return net


NETWORKS: dict[str, Callable[[], Network]] = {
    f.__name__: f
    for f in (
        mlp, residual, recurrent, tied, tied_twice, mixture, positions, blocks, gated, convolved, convolved_again,
        rotated, attention,
    )
}


def statistics(program: Program, draws: int, method: str, seed: int) -> Statistics:
    """Every statistic of every value and gradient, one entry a draw."""
    plan = make_plan(program, SAMPLES, method=method)
    plan.steps = [replace(s, free=()) for s in plan.steps]
    pieces = []
    for first in range(0, draws, PIECE):
        chunk = Chunk(plan, seed, first, min(PIECE, draws - first))
        chunk.rows()
        pieces.append(dict(_of_chunk(chunk, program)))
    return {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}


def _of_chunk(chunk: Chunk, program: Program) -> Iterator[tuple[str, Float]]:
    products = np.zeros(chunk.draws)
    for name, value in program.values.items():
        x = chunk.values[value].astype(np.float64)
        yield from _of_value(name, x)
        if value in program.pulled_back:
            g = chunk.values[program.pulled_back[value]].astype(np.float64)
            yield from _of_value(f"{name} gradient", g)
            product = np.einsum("dpi,dpi->d", x, g)
            products += product
            yield f"{name} with gradient", product
    yield "all with gradients", products


def _of_value(name: str, x: Float) -> Iterator[tuple[str, Float]]:
    with np.errstate(divide="ignore"):
        yield f"{name} log norm", np.log(np.square(x[:, 0]).sum(axis=1))
    if x.shape[1] > 1:
        yield f"{name} across", np.einsum("di,di->d", x[:, 0], x[:, 1])


def compare(one: Statistics, other: Statistics) -> dict[str, float]:
    """P-values, statistic by statistic; zero where one is not a number."""
    found = {name: float(ks_2samp(one[name], other[name], method="asymp").pvalue) for name in one}
    return {name: p if p >= 0 else 0.0 for name, p in found.items()}


def agreement(name: str, draws: int, methods: tuple[str, str] = ("collapsed", "sampled")) -> dict[str, float]:
    """P-values for one of `NETWORKS`."""
    program = lower(NETWORKS[name]())
    one, other = (statistics(program, draws, m, seed) for seed, m in enumerate(methods))
    return compare(one, other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    options = parser.parse_args()
    found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for name in options.networks:
        start = time.perf_counter()
        p = agreement(name, options.draws)
        least = min(p, key=lambda k: p[k])
        print(f"{name}: {len(p)} tests, least p {p[least]:.3g} ({least}), {time.perf_counter() - start:.0f} s")
        found[name] = {"draws": options.draws, "p": {k: round(v, 6) for k, v in p.items()}}
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
