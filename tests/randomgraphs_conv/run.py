"""Measure the random convolutional graphs and write the results: ``python -m tests.randomgraphs_conv.run``.

Every graph gets draws until all its second moments have a relative standard error of ``TARGET``, or
its seconds of processor time are used up. The number of draws is recorded; the draws themselves
depend on graph and width alone. Graphs that the file holds already are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from tests.randomgraphs.generate import Spec
from tests.randomgraphs.run import write

from .brute import Measurement, sensible
from .generate import RESULTS, generate

GRAPHS, WIDTH = 30, 128
BATCHES = (32, 16, 64, 32)
TARGET = 0.006
HEAVY = ("conv9005",)
"""Graphs whose standard errors no number of draws brings below 1 %."""
WIDE = {"conv7005": 1024, "conv10006": 512, "conv15000": 512}
"""Graphs that are 5 % or more from their limit at n = 128: norms over few channels, or strongly correlated ones."""
LEAST_DRAWS, MOST_DRAWS = 40, 3000


def sought(k: int) -> Spec:
    """The first sensible graph of the k-th thousand seeds; every fifth has batch norm."""
    batch = BATCHES[k // 5 % len(BATCHES)] if k % 5 == 4 else None
    attempts = (generate(1000 * k + attempt, batch) for attempt in range(1000))
    return next(spec for spec in attempts if spec is not None and spec["name"] not in HEAVY and sensible(spec))


def record(spec: Spec, n: int, seconds: float) -> dict[str, Any]:
    """Measure one graph."""
    start = time.process_time()
    measurement = Measurement(spec, n, crc32(f"{spec['name']} at {n}".encode()))
    while (draws := len(measurement.rows)) < MOST_DRAWS and time.process_time() - start < seconds:
        if draws >= LEAST_DRAWS and draws % 10 == 0 and measurement.relative_error() < TARGET:
            break
        measurement.more()
    return {"spec": spec, "n": n, "samples": measurement.samples, "draws": len(measurement.rows),
            "seconds": round(time.process_time() - start, 1), "nodes": measurement.table()}


def main() -> None:
    """Measure the graphs from ``--first`` to ``--graphs`` that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--graphs", type=int, default=GRAPHS)
    parser.add_argument("--seconds", type=float, default=30.0, help="for one graph")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = json.loads(options.results.read_text()) if options.results.exists() else []
    for k in range(options.first, options.graphs):
        spec = sought(k)
        if spec in [r["spec"] for r in records]:
            continue
        records.append(record(spec, WIDE.get(spec["name"], WIDTH), options.seconds))
        records.sort(key=lambda r: int(r["spec"]["name"].removeprefix("conv")))
        print(k, spec["name"], flush=True)
        write(options.results, records)


if __name__ == "__main__":
    main()
