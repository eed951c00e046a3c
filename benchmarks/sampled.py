"""Sampled simulation against PyTorch: draws per second of a chain, forward and backward.

Each draw of the chain multiplies a batch of B inputs by one fresh n x n Gaussian matrix per layer, with ReLU
between, and pulls a random cotangent back through the same matrices. Ours generates every weight inside both
products; PyTorch draws it (randn), keeps it and multiplies. Both use the same cores, one after the other in turns;
the ratio is the median over the turns of one run.

    python benchmarks/sampled.py [--width 1024] [--layers 8] [--draws 8] [--turns 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from varflow.simulate import jit
from varflow.simulate.kernels import RandomMatrix, contract


def ours(width: int, layers: int, batch: int, draws: int, seed: int) -> float:
    """Forward and backward of all draws at once; returns a gradient norm."""
    generator = np.random.default_rng(seed)
    std = (2 / width) ** 0.5
    x = generator.standard_normal((draws, batch, width), np.float32)
    matrices = [RandomMatrix(width, width, tensor=k, std=std) for k in range(layers)]
    signs = []
    for matrix in matrices:
        x = contract(x, matrix, seed=seed)
        signs.append(x > 0)
        np.maximum(x, 0, out=x)
    d = generator.standard_normal((draws, batch, width), np.float32)
    for matrix, sign in zip(reversed(matrices), reversed(signs), strict=True):
        d *= sign
        d = contract(d, matrix, seed=seed, transpose=True)
    return float(np.square(d).mean())


def theirs(width: int, layers: int, batch: int, draws: int, seed: int) -> float:
    """The same, one draw after another."""
    torch.manual_seed(seed)
    std = (2 / width) ** 0.5
    total = 0.0
    for _ in range(draws):
        x = torch.randn(width, batch)
        matrices, signs = [], []
        for _ in range(layers):
            matrices.append(torch.randn(width, width).mul_(std))
            x = matrices[-1] @ x
            signs.append(x > 0)
            x = x.relu_()
        d = torch.randn(width, batch)
        for matrix, sign in zip(reversed(matrices), reversed(signs), strict=True):
            d = matrix.T @ d.mul_(sign)
        total += float(d.square().mean())
    return total / draws


def seconds(run: Callable[..., float], *arguments: int) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def compare(threads: int, batch: int, options: argparse.Namespace) -> dict[str, float]:
    jit.set_threads(threads)
    torch.set_num_threads(threads)
    size = (options.width, options.layers, batch, options.draws)
    for run in (ours, theirs):
        run(*size[:3], 1, 0)
    turns = [(seconds(ours, *size, k), seconds(theirs, *size, k)) for k in range(options.turns)]
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
