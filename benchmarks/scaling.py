"""Processor time of simulated draws against width, depth, batch and number of draws, with fitted exponents.

ReLU chains, forward, backward and the second moment of every value, in one process on one thread. Sizes of one sweep
are timed in turns, so that what else the machine does meets all of them; a point is the smallest of its turns. An
exponent is the slope of log time over log size between neighbours, and by least squares over the upper half of a sweep,
where what every draw costs besides (calls, tables) no longer shows.

    python benchmarks/scaling.py [--turns 5] [--out benchmarks/scaling]     # writes .json and .png
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from varflow.lowering import lower
from varflow.network import Network
from varflow.simulate import jit
from varflow.simulate.cpu import Simulator

DRAWS = 8
"""Draws of a run where their number is not what is varied."""


@dataclass(frozen=True)
class Sweep:
    """One size varied, the others fixed. ``law``: the exponent that counting operations gives."""

    name: str
    label: str
    method: str
    sizes: tuple[int, ...]
    law: str
    fixed: str


@dataclass(frozen=True)
class Found:
    """Milliseconds of a run at each size, and the exponents."""

    sweep: Sweep
    milliseconds: tuple[float, ...]
    local: tuple[float, ...]
    fitted: float


SWEEPS = (
    Sweep("width", "units n", "collapsed", (256, 1024, 4096, 16384, 65536), "1", "10 layers, 1 input"),
    Sweep("depth", "layers L", "collapsed", (8, 32, 128, 512, 2048), "1", "1024 units, 1 input"),
    Sweep("batch", "inputs B", "collapsed", (1, 2, 4, 8, 16, 32, 64), "1 to 2", "1024 units, 10 layers"),
    Sweep("draws", "draws", "collapsed", (4, 16, 64, 256, 1024), "1", "1024 units, 10 layers, 1 input"),
    Sweep("width", "units n", "sampled", (128, 256, 512, 1024, 2048, 4096), "2", "4 layers, 1 input"),
    Sweep("batch", "inputs B", "sampled", (1, 2, 4, 8, 16, 32, 64), "0 to 1", "512 units, 4 layers"),
)


def simulator(width: int, layers: int, batch: int, method: str) -> Simulator:
    """A ReLU chain ready to be drawn from."""
    net = Network("chain")
    h = net.input("x", width)
    for k in range(layers):
        h = net.relu(net.linear(h, width, variance="2/fan_in", name=f"fc{k}"))
    return Simulator(lower(net), samples=batch, method=method)


def runs_of(sweep: Sweep) -> list[tuple[Callable[[], object], int]]:
    """What to time at each size, and how many times at a go: some ten milliseconds of work."""
    width, layers = (1024, 10) if sweep.method == "collapsed" else (512, 4)
    found: list[tuple[Callable[[], object], int]] = []
    for size in sweep.sizes:
        n, depth, batch, draws = width, layers, 1, DRAWS
        match sweep.name:
            case "width":
                n = size
            case "depth":
                depth = size
            case "batch":
                batch = size
            case _:
                draws = size
        made = simulator(n, depth, batch, sweep.method)
        work = n * depth * batch * draws * (1 if sweep.method == "collapsed" else n / 8)
        found.append((partial(made.rows, 0, draws), max(1, round(4e6 / work))))
    return found


def measure(sweep: Sweep, turns: int) -> Found:
    """Times in turns, the smallest of each size."""
    runs = runs_of(sweep)
    for run, _ in runs:
        run()
    times = np.full((turns, len(runs)), np.inf)
    for turn in range(turns):
        for k, (run, count) in enumerate(runs):
            start = time.process_time()
            for _ in range(count):
                run()
            times[turn, k] = (time.process_time() - start) / count * 1e3
    best = times.min(axis=0)
    x, y = np.log(np.array(sweep.sizes, float)), np.log(best)
    upper = slice(len(x) // 2, None)
    slope = float(np.polyfit(x[upper], y[upper], 1)[0])
    local = tuple(round(float(s), 2) for s in np.diff(y) / np.diff(x))
    return Found(sweep, tuple(float(f"{b:.4g}") for b in best), local, round(slope, 2))


def picture(found: Sequence[Found], file: Path) -> None:
    """One panel a sweep: points, and the line of the fitted exponent through the largest size."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(10.5, 6.2), constrained_layout=True)
    for axis, one in zip(axes.flat, found, strict=True):
        panel(axis, one)
    figure.suptitle("Processor time of ReLU chains, forward and backward, one core")
    figure.savefig(file, dpi=110)


def panel(axis: Any, found: Found) -> None:
    """Time over one size, both logarithmic."""
    sizes, times = np.array(found.sweep.sizes, float), np.array(found.milliseconds)
    upper = sizes[len(sizes) // 2 :]
    axis.loglog(sizes, times, "o", color="tab:blue")
    axis.loglog(upper, times[-1] * (upper / sizes[-1]) ** found.fitted, "-", color="tab:orange",
                label=f"fitted exponent {found.fitted:.2f}\n(by operations: {found.sweep.law})")  # fmt: skip
    axis.set_title(f"{found.sweep.method}: {found.sweep.fixed}", fontsize=10)
    axis.set_xlabel(found.sweep.label)
    axis.set_ylabel("ms a run" if found.sweep.name == "draws" else f"ms a run of {DRAWS} draws")
    axis.set_xticks(sizes, [f"{s:g}" for s in sizes.astype(int)], fontsize=8)
    if times.max() < 10 * times.min():
        axis.set_yticks(times[::2], [f"{t:.0f}" for t in times[::2]])
    axis.minorticks_off()
    axis.grid(True, which="major", alpha=0.3)
    axis.legend(fontsize=9, loc="upper left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    options = parser.parse_args()
    jit.set_threads(1)
    found = []
    for sweep in SWEEPS:
        found.append(measure(sweep, options.turns))
        print(sweep.method, sweep.name, found[-1].milliseconds, found[-1].local, found[-1].fitted, flush=True)
    options.out.with_suffix(".json").write_text(json.dumps([asdict(f) for f in found], indent=1) + "\n")
    picture(found, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
