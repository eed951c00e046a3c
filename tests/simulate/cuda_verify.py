"""Run in a process of its own, in numba's CUDA simulator: the generator, chunks, measured nodes, a verification.

Prints JSON: whether the random words are the processor's, whether cutting draws into chunks or measuring fewer nodes
changes a bit, and the estimates of a verification on both backends.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

import varflow as vf
from varflow.lowering import lower
from varflow.simulate.cuda import CudaSimulator
from varflow.simulate.cuda_device import empty
from varflow.simulate.cuda_sources import fill
from varflow.simulate.rng import sample


def network() -> vf.Network:
    net = vf.Network("small")
    x = net.input("x", 6)
    net.add(x, net.linear(x, 6, name="fc", variance="1/fan_in"), name="y")
    return net


def same_bits() -> bool:
    """Draws one by one and together, all nodes and one."""
    program = lower(network())
    simulator = CudaSimulator(program, seed=3, samples=2)
    one = CudaSimulator(program, seed=3, samples=2, nodes=["fc"])
    whole, parts = simulator.rows(5, 3), [simulator.rows(5 + k, 1) for k in range(3)]
    column, alone = simulator.plan.columns["forward", "fc"], one.plan.columns["forward", "fc"]
    same = np.array_equal(whole[:, column], one.rows(5, 3)[:, alone])
    return same and np.array_equal(whole, np.concatenate(parts))


def same_words() -> bool:
    """Entries that are made of a word each without rounding, far out in the counter."""
    options: dict[str, Any] = {"seed": 2**63 + 7, "first_draw": 2**40 + 5, "tensor": 2**32 - 3, "parameter": 0.3}
    same = True
    for distribution in ("uniform", "rademacher", "bernoulli"):
        out = empty(2 * 100)
        fill(out, 2, 100, distribution=distribution, **options)
        same &= np.array_equal(out.copy_to_host().reshape(2, 100), sample(distribution, (2, 100), **options))
    return same


def estimates(backend: str) -> list[float]:
    """Every node's estimate, both directions."""
    found: Any = vf.verify(network(), draws=8, seed=1, backend=backend, width_scale=(1,))
    return [check.estimate for pair in found.nodes.values() for check in pair.values()]


if __name__ == "__main__":
    sys.setswitchinterval(5e-4)
    found = {"words": same_words(), "same bits": same_bits(), "cpu": estimates("cpu"), "cuda": estimates("cuda")}
    print(json.dumps(found))
