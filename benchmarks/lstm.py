"""An LSTM of 100 steps: seconds until the second moments of all values and gradients are known to 1 %, against PyTorch.

The network is graphs/lstm.yaml with more steps: weights shared by all steps, an output and a fresh cotangent at every
step. A draw has fresh weights, inputs and cotangents for B samples, and measures gates, cells, states and what
gradient reaches them; ours measures every other node and the gradient of the weights besides. Ours is `simulate`, which
collapses the weights or draws them once, as is cheaper; PyTorch draws the weights, multiplies all inputs at once, and
measures gradients in hooks. The draws that a method needs follow from the variation between its own draws: the largest
relative standard error of all nodes is to be 1 %. One core, processor time, in turns; medians of turns.

    python benchmarks/lstm.py [--width 512] [--steps 100] [--batches 1 4] [--turns 5] [--draws 64]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from varflow.load import from_text
from varflow.lowering import lower
from varflow.simulate import jit
from varflow.simulate.cpu import Simulator

GRAPH = Path(__file__).parent.parent / "graphs" / "lstm.yaml"
PRECISION, NODES = 0.01, ("z", "i", "f", "g", "o", "c", "h")


def simulator(width: int, steps: int, batch: int) -> Simulator:
    """Ours."""
    text = GRAPH.read_text(encoding="utf-8").replace("repeat: 20", f"repeat: {steps}")
    network = from_text(text.replace("21*n", f"{steps + 1}*n"))
    return Simulator(lower(network.bind({"n": width})), samples=batch, method="auto")


def brute_force(width: int, steps: int, batch: int) -> NDArray[np.float64]:
    """One draw in PyTorch: second moments of gates, cells and states of all steps, then of gradients."""
    w, u = (torch.empty(4 * width, width).normal_(0, width**-0.5) for _ in range(2))
    inputs = torch.randn(steps * batch, width).requires_grad_()
    found: list[torch.Tensor] = []
    state = cell = torch.zeros(batch, width)
    states = []
    for z in (inputs @ w.T).reshape(steps, batch, 4 * width):
        z = z + state @ u.T
        i, f, g, o = z.chunk(4, dim=1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f + 1), torch.tanh(g), torch.sigmoid(o)
        cell = f * cell + i * g
        state = o * torch.tanh(cell)
        states.append(state)
        for value in (z, i, f, g, o, cell, state):
            found.append(value.detach().square().mean())
            value.register_hook(lambda d: found.append(d.square().mean()))
    out = torch.cat(states, dim=1)
    torch.autograd.backward(out, torch.randn_like(out))
    return torch.stack(found).double().numpy()


def needed(rows: NDArray[np.float64]) -> float:
    """Draws until the mean of every column has a relative standard error of PRECISION."""
    rows = rows[:, rows.any(axis=0)]
    mean, variance = rows.mean(axis=0), rows.var(axis=0, ddof=1)
    return float((variance / mean**2).max() / PRECISION**2)


def milliseconds(run: Callable[[], object], draws: int) -> float:
    """Processor time of a draw."""
    start = time.process_time()
    run()
    return (time.process_time() - start) / draws * 1e3


def compare(width: int, steps: int, batch: int, turns: int, draws: int) -> dict[str, float]:
    """One batch size."""
    ours, few = simulator(width, steps, batch), max(4, draws // 8)
    ours.rows(0, 1)
    brute_force(width, steps, batch)
    mine, theirs = zip(*(
        (milliseconds(lambda: ours.rows(0, few), few), milliseconds(lambda: brute_force(width, steps, batch), 1))
        for _ in range(turns)), strict=True)  # fmt: skip
    names = {c for (_, name), c in ours.plan.columns.items() if name.rpartition(".")[2] in NODES}
    measured = ours.rows(0, draws)[:, sorted(names), 1]
    sampled = np.stack([brute_force(width, steps, batch) for _ in range(draws)])
    counts = needed(measured), needed(sampled)
    seconds = [statistics.median(t) * n / 1e3 for t, n in zip((mine, theirs), counts, strict=True)]
    return {
        "batch": batch, "ms": round(statistics.median(mine), 2), "torch ms": round(statistics.median(theirs), 1),
        "draws": round(counts[0]), "torch draws": round(counts[1]), "seconds": round(seconds[0], 2),
        "torch seconds": round(seconds[1], 1),
        "ratio of a draw": round(statistics.median(b / a for a, b in zip(mine, theirs, strict=True)), 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--draws", type=int, default=64)
    options = parser.parse_args()
    jit.set_threads(1)
    torch.set_num_threads(1)
    for batch in options.batches:
        found = compare(options.width, options.steps, batch, options.turns, options.draws)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
