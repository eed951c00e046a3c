"""CPU time of closed-form moments (mean, E f^2, E f'^2) of every activation: ``python benchmarks/gain.py``.

``first``: the first call in a process that has imported varflow (q = 1; q symbolic; q and mean symbolic).
``again``: the same request once more. ``command``: wall seconds of ``varflow gain relu``, start included.
``python benchmarks/gain.py --kernels``: CPU seconds of E f(u) f(v) without a closed form on a 100 x 100 grid of
(q, c), at 10,000 pairs of distinct q and c, and at 10,000 distinct triples of both variances and the correlation.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import sympy as sp

from varflow.activations import ACTIVATIONS
from varflow.gain import gain
from varflow.laws.grids import gaussian_kernel

q, m = sp.Symbol("q", positive=True), sp.Symbol("m", real=True)
REQUESTS: dict[str, dict[str, sp.Expr]] = {"q = 1": {}, "q": {"q": q}, "q, m": {"q": q, "mean": m}}

NUMERIC = ("tanh", "silu", "mish", "softplus", "sigmoid", "softsign", "hardtanh", "hardshrink")


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


def kernels() -> None:
    """Numeric kernels at ten thousand points."""
    rng = np.random.default_rng(0)
    q1, q2 = 10 ** rng.uniform(-2, 2, (2, 10_000))
    r = rng.uniform(-1, 1, 10_000)
    grid = np.geomspace(0.01, 100, 100)[:, None]
    print("CPU s: 100 x 100 (q, c); 10,000 (q, c); 10,000 (q1, q2, r)")
    for name in NUMERIC:
        f = ACTIVATIONS[name].at()
        gaussian_kernel(f, f, 1.0, 1.0, 0.5)
        points = ((grid, grid, np.linspace(-1, 1, 100)), (q1, q1, r), (q1, q2, r))
        row = [cpu(partial(gaussian_kernel, f, f, *p)) / 1e3 for p in points]
        print(f"{name:12s}", " ".join(f"{t:8.2f}" for t in row))


def main() -> None:
    if "--kernels" in sys.argv:
        return kernels()
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
