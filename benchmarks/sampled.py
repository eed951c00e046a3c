"""Sampled simulation against PyTorch: draws per second of a chain, forward and backward.

Each draw of the chain multiplies a batch of B inputs by one fresh n x n Gaussian matrix per layer, with ReLU
between, pulls a random cotangent back through the same matrices, and takes the second moment of every value and
gradient. Ours is `varflow.simulate.cpu.simulate` on the network's program: weights up to 64 MiB a draw are drawn once
and kept, others are generated inside both products. PyTorch draws them (randn), keeps them and multiplies. Both use the
same cores, one after the other in turns; the ratio is the median over the turns of one run.

    python benchmarks/sampled.py [--width 1024] [--layers 8] [--draws 8] [--turns 5]
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable

import torch

from varflow.lowering import lower
from varflow.network import Network
from varflow.program import Program
from varflow.simulate import jit
from varflow.simulate.cpu import simulate


@functools.cache
def chain(width: int, layers: int) -> Program:
    """A ReLU network of one width, forward and backward."""
    net = Network("chain")
    h = net.input("x", width)
    for k in range(layers):
        h = net.relu(net.linear(h, width, variance="2/fan_in", name=f"fc{k}"))
    return lower(net)


def ours(width: int, layers: int, batch: int, draws: int, seed: int) -> float:
    """All draws at once; returns the input gradient's second moment."""
    result = simulate(chain(width, layers), draws, seed=seed, samples=batch, method="sampled")
    return result.backward["x"].second_moment


def theirs(width: int, layers: int, batch: int, draws: int, seed: int) -> float:
    """The same, one draw after another."""
    torch.manual_seed(seed)
    std = (2 / width) ** 0.5
    total = 0.0
    for _ in range(draws):
        x = torch.randn(width, batch)
        matrices, signs, moments = [], [], [x.square().mean()]
        for _ in range(layers):
            matrices.append(torch.randn(width, width).mul_(std))
            x = matrices[-1] @ x
            moments.append(x.square().mean())
            signs.append(x > 0)
            x = x.relu_()
            moments.append(x.square().mean())
        d = torch.randn(width, batch)
        for matrix, sign in zip(reversed(matrices), reversed(signs), strict=True):
            moments.append(d.square().mean())
            d = d.mul_(sign)
            moments.append(d.square().mean())
            d = matrix.T @ d
        total += float(d.square().mean())
    return total / draws


def seconds(run: Callable[..., float], *arguments: int, processor: bool = False) -> float:
    """Time of a call; processor time for one thread, which other work on the machine disturbs less."""
    clock = time.process_time if processor else time.perf_counter
    start = clock()
    run(*arguments)
    return clock() - start


def compare(threads: int, batch: int, options: argparse.Namespace) -> dict[str, float]:
    jit.set_threads(threads)
    torch.set_num_threads(threads)
    size = (options.width, options.layers, batch, options.draws)
    for run in (ours, theirs):
        run(*size[:3], 1, 0)
    single = threads == 1
    turns = [
        (seconds(ours, *size, k, processor=single), seconds(theirs, *size, k, processor=single))
        for k in range(options.turns)
    ]
    mine, other = (statistics.median(t) for t in zip(*turns, strict=True))
    weights = options.width**2 * options.layers * options.draws
    return {
        "threads": threads,
        "batch": batch,
        "draws per second": round(options.draws / mine, 2),
        "torch draws per second": round(options.draws / other, 2),
        "ns per weight": round(mine / weights * 1e9, 2),
        "ratio": round(statistics.median(b / a for a, b in turns), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    for threads in options.threads:
        for batch in options.batches:
            print(json.dumps(compare(threads, batch, options)), flush=True)


if __name__ == "__main__":
    main()
