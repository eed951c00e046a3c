"""Memory of a simulation against width: ours stores no more than 64 MiB of weights.

A ReLU network of 8 layers is simulated, forward and backward, at each width in a process of its own; its peak
resident memory is compared with that before the first draw, and with the bytes of the weights of one draw.

    python benchmarks/memory.py [--widths 256 1024 4096] [--draws 8]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from varflow.lowering import lower
from varflow.network import Network
from varflow.simulate.cpu import simulate


def measure(width: int, layers: int, samples: int, draws: int) -> dict[str, float]:
    """Peak memory in MiB and seconds of one simulation."""
    net = Network("chain")
    h = net.input("x", width)
    for _ in range(layers):
        h = net.relu(net.linear(h, width, variance="2/fan_in"))
    program = lower(net)
    simulate(program, 1, seed=1, samples=1, values=["x"], method="sampled")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    simulate(program, draws, samples=samples, method="sampled")
    took = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "width": width,
        "draws": draws,
        "seconds": round(took, 2),
        "MiB before": round(before, 1),
        "MiB added": round(after - before, 1),
        "MiB of one draw's weights": round(layers * width**2 * 4 / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--draws", type=int, default=8)
    options = parser.parse_args()
    if len(options.widths) == 1:
        size = (options.widths[0], options.layers, options.samples, options.draws)
        print(json.dumps(measure(*size)), flush=True)
        return
    for width in options.widths:
        own = ["--layers", options.layers, "--samples", options.samples, "--draws", options.draws]
        command = [sys.executable, __file__, "--widths", width, *own]
        subprocess.run(list(map(str, command)), check=True)


if __name__ == "__main__":
    main()
