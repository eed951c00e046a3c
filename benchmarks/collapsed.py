"""Collapsed sampling against PyTorch: milliseconds a draw of a ReLU chain, forward and backward.

A draw multiplies B inputs by a fresh n x n Gaussian matrix per layer, with ReLU between, pulls a random cotangent back
through the same matrices, and takes the second moment of every value and gradient. Ours is
`simulate(method="collapsed")`; PyTorch draws the matrices, in the faster of two arrangements (columns or rows). The
limit is the time of the normal numbers that ours draws, two per unit, layer and input. One core, one after the other
in turns; ratios are medians over the turns of one run.

    python benchmarks/collapsed.py [--width 1024] [--layers 50] [--batches 1 4 16] [--turns 5]
    python benchmarks/collapsed.py --wide        # 65,536 units, 100 layers, 100 draws: seconds and memory
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from varflow.lowering import lower
from varflow.network import Network
from varflow.program import Program
from varflow.simulate import jit
from varflow.simulate.cpu import Simulator
from varflow.simulate.rng import NORMAL, _sample


def chain(width: int, layers: int) -> Program:
    """A ReLU network of one width, forward and backward."""
    net = Network("chain")
    h = net.input("x", width)
    for k in range(layers):
        h = net.relu(net.linear(h, width, variance="2/fan_in", name=f"fc{k}"))
    return lower(net)


def columns(width: int, layers: int, batch: int) -> float:
    """PyTorch with inputs as columns: W x and W^T d."""
    std = (2 / width) ** 0.5
    x = torch.randn(width, batch)
    matrices, signs, moments = [], [], [x.square().mean()]
    for _ in range(layers):
        matrices.append(torch.empty(width, width).normal_(0, std))
        x = matrices[-1] @ x
        signs.append(x > 0)
        moments += [x.square().mean(), x.relu_().square().mean()]
    d = torch.randn(width, batch)
    for matrix, sign in zip(reversed(matrices), reversed(signs), strict=True):
        moments += [d.square().mean(), d.mul_(sign).square().mean()]
        d = matrix.T @ d
    return float(torch.stack([*moments, d.square().mean()]).sum())


def rows(width: int, layers: int, batch: int) -> float:
    """PyTorch with inputs as rows: x W and d W^T."""
    std = (2 / width) ** 0.5
    x = torch.randn(batch, width)
    matrices, signs, moments = [], [], [x.square().mean()]
    for _ in range(layers):
        matrices.append(torch.empty(width, width).normal_(0, std))
        x = x @ matrices[-1]
        signs.append(x > 0)
        moments += [x.square().mean(), x.relu_().square().mean()]
    d = torch.randn(batch, width)
    for matrix, sign in zip(reversed(matrices), reversed(signs), strict=True):
        moments += [d.square().mean(), d.mul_(sign).square().mean()]
        d = d @ matrix.T
    return float(torch.stack([*moments, d.square().mean()]).sum())


def normals(buffer: NDArray[np.float32], count: int) -> None:
    """About ``count`` normal numbers, over and over into one buffer, as fast as the generator goes."""
    zero, one = np.uint64(0), np.float32(1)
    fill = _sample.on(buffer, NORMAL, 1.0, one, zero, zero, zero, 0)
    for _ in range(count // buffer.size):
        fill(0, len(buffer))


def milliseconds(run: Callable[[], object], draws: int) -> float:
    """Processor time of a draw."""
    start = time.process_time()
    run()
    return (time.process_time() - start) / draws * 1e3


def compare(width: int, layers: int, batch: int, turns: int) -> dict[str, float]:
    """One batch size."""
    simulator = Simulator(chain(width, layers), samples=batch, method="collapsed")
    draws = max(8, 1024 // batch**2)
    buffer, count = np.empty((64, width), np.float32), draws * 2 * width * layers * batch
    runs: tuple[tuple[Callable[[], object], int], ...] = (
        (lambda: simulator.rows(0, draws), draws),
        (lambda: normals(buffer, count), draws),
        (lambda: columns(width, layers, batch), 1),
        (lambda: rows(width, layers, batch), 1),
    )
    for run, _ in runs:
        run()
    times = [[milliseconds(run, count) for run, count in runs] for _ in range(turns)]
    ours, limit, *torches = (statistics.median(t) for t in zip(*times, strict=True))
    return {
        "batch": batch, "ms": round(ours, 4), "torch ms": round(min(torches), 1), "limit ms": round(limit, 4),
        "ratio": round(statistics.median(min(t[2:]) / t[0] for t in times)),
        "times the limit": round(statistics.median(t[0] / t[1] for t in times), 2),
    }  # fmt: skip


def wide(width: int = 65_536, layers: int = 100, draws: int = 100) -> dict[str, float]:
    """Time and peak memory of a network whose weights would fill 1.7 TB."""
    Simulator(chain(64, 1), method="collapsed").run(1)
    simulator = Simulator(chain(width, layers), method="collapsed")
    start = time.perf_counter()
    simulator.run(draws)
    took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"width": width, "layers": layers, "draws": draws, "seconds": round(took, 1), "peak MiB": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=50)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--wide", action="store_true")
    options = parser.parse_args()
    if options.wide:
        print(json.dumps(wide()), flush=True)
        return
    jit.set_threads(1)
    torch.set_num_threads(1)
    for batch in options.batches:
        print(json.dumps(compare(options.width, options.layers, batch, options.turns)), flush=True)


if __name__ == "__main__":
    main()
