"""Run in a process of its own: the same draws on the processor and in numba's CUDA simulator, compared.

``python -m tests.simulate.cuda_same [--full] NAME ...`` prints one line of JSON for each network: the largest
deviation of a mean, second or fourth moment of a draw, in units of the root mean square (its powers). With --full the
blocks have the threads and tiles that they have on a GPU.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from varflow.simulate import cuda_device

if "--full" in sys.argv:
    cuda_device.SIMULATED, cuda_device.THREADS, cuda_device.MOST_BLOCKS = False, 128, 4096

from tests.simulate.cuda_networks import CASES
from varflow.lowering import lower
from varflow.simulate.cpu import Simulator
from varflow.simulate.cuda import CudaSimulator

SEED, FIRST, DRAWS = 7, 2**33 + 5, 2


def deviation(name: str) -> dict[str, Any]:
    """The comparison of one network."""
    case = CASES[name]
    program = lower(case.build())
    options: dict[str, Any] = {"seed": SEED, "samples": case.samples, "weights": True, "method": case.method}
    options["given"] = True
    plain, device = Simulator(program, **options), CudaSimulator(program, **options)
    expected, start = plain.rows(FIRST, DRAWS), time.process_time()
    found, stop = device.rows(FIRST, DRAWS), time.process_time()
    worst, where = 0.0, ""
    for key, column in device.plan.columns.items():
        size = np.sqrt(expected[:, column, 1]) + 1e-30
        for k, power in ((1, 2),) if key[0] in ("weight", "given") else ((0, 1), (1, 2), (2, 4)):
            scale = size**power if k < 2 else expected[:, column, 2] + 1e-30
            off = float(np.max(np.abs(found[:, column, k] - expected[:, column, k]) / scale))
            if not off <= worst:
                worst, where = off, f"{' '.join(key)} moment {power if k else 1}"
    columns = device.plan.column_count
    return {"name": name, "worst": worst, "where": where, "columns": columns, "seconds": stop - start}


def main() -> None:
    """Every network named, or all."""
    sys.setswitchinterval(5e-4)
    for name in [a for a in sys.argv[1:] if a != "--full"] or CASES:
        print(json.dumps(deviation(name)), flush=True)


if __name__ == "__main__":
    main()
