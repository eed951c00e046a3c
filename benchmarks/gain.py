"""CPU time of closed-form moments (mean, E f^2, E f'^2) of every activation: ``python benchmarks/gain.py``.

``first``: the first call in a process that has imported varflow (q = 1; q symbolic; q and mean symbolic).
``again``: the same request once more. ``command``: wall seconds of ``varflow gain relu``, start included.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import sympy as sp

from varflow.activations import ACTIVATIONS
from varflow.gain import gain

q, m = sp.Symbol("q", positive=True), sp.Symbol("m", real=True)
REQUESTS: dict[str, dict[str, sp.Expr]] = {"q = 1": {}, "q": {"q": q}, "q, m": {"q": q, "mean": m}}


def cpu(work: Callable[[], object]) -> float:
    """CPU milliseconds."""
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def moments(name: str, request: dict[str, sp.Expr]) -> None:
    found = gain(name, **request)
    _ = found.mean, found.second_moment, found.derivative_second_moment


def command() -> float:
    """Wall seconds of the command line."""
    start = time.perf_counter()
    code = "from varflow.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, "gain", "relu"], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    gain("identity").numeric()
    totals = {key: [0.0, 0.0] for key in REQUESTS}
    for name in ACTIVATIONS:
        row = []
        for key, request in REQUESTS.items():
            first, again = (cpu(partial(moments, name, request)) for _ in range(2))
            totals[key][0] += first
            totals[key][1] = max(totals[key][1], again)
            row.append(f"{first:7.1f} {again:6.2f}")
        print(f"{name:16s}", " | ".join(row))
    for key, (first, again) in totals.items():
        print(
            f"{key:6s} first, mean {first / len(ACTIVATIONS):.1f} ms; again, slowest {again:.2f} ms"
        )
    print(f"command {command():.2f} s")


if __name__ == "__main__":
    main()
