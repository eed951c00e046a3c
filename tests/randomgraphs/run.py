"""Measure the random graphs and write the results: ``python -m tests.randomgraphs.run``.

Every graph gets draws until all its second moments have a relative standard error of ``TARGET``, or
its seconds of processor time are used up. The number of draws is recorded; the draws themselves
depend on graph and width alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from .brute import Measurement, sensible
from .generate import RESULTS, Spec, generate

GRAPHS = 60
BATCHES = (8, 6, 16, 5, 12, 8, 7, 10, 16, 4, 8, 6)
TARGET = 0.005
LEAST_DRAWS, MOST_DRAWS = 40, 4000


def catalogue(graphs: int = GRAPHS) -> list[Spec]:
    """The first sensible graph of each one's seeds; every fifth has batch norm."""
    found = []
    for k in range(graphs):
        batch = BATCHES[k // 5 % len(BATCHES)] if k % 5 == 4 else None
        attempts = (generate(1000 * k + attempt, batch) for attempt in range(1000))
        found.append(next(spec for spec in attempts if spec is not None and sensible(spec)))
    return found


def record(spec: Spec, n: int, seconds: float) -> dict[str, Any]:
    """Measure one graph at one width."""
    start = time.process_time()
    measurement = Measurement(spec, n, crc32(f"{spec['name']} at {n}".encode()))
    while (draws := len(measurement.rows)) < MOST_DRAWS and time.process_time() - start < seconds:
        if draws >= LEAST_DRAWS and draws % 10 == 0 and measurement.relative_error() < TARGET:
            break
        measurement.more()
    return {"spec": spec, "n": n, "samples": measurement.samples, "draws": len(measurement.rows),
            "seconds": round(time.process_time() - start, 1), "nodes": measurement.table()}


def write(path: Path, records: list[dict[str, Any]]) -> None:
    """Write the records as JSON, a node to a line."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("[" + ",\n".join(_text(r) for r in records) + "]\n")


def _text(record: dict[str, Any]) -> str:
    short = (",", ":")
    nodes = ",\n".join(f"{json.dumps(k)}:{json.dumps(v, separators=short)}"
                       for k, v in record["nodes"].items())
    head = json.dumps({k: v for k, v in record.items() if k != "nodes"}, separators=short)
    return f'{head[:-1]},"nodes":{{\n{nodes}}}}}'


def main() -> None:
    """Run both widths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=GRAPHS)
    parser.add_argument("--seconds", type=float, default=16.0, help="for one graph at n = 1024")
    parser.add_argument("--small-seconds", type=float, default=4.0, help="for one graph at n = 256")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    specs = catalogue(options.graphs)
    plan = ((256, specs[::3], options.small_seconds), (1024, specs, options.seconds))
    for n, chosen, seconds in plan:
        records = []
        for spec in chosen:
            records.append(record(spec, n, seconds))
            print(n, spec["name"], records[-1]["draws"], records[-1]["seconds"], flush=True)
            write(options.results / f"n{n}.json", records)


if __name__ == "__main__":
    main()
