"""The CUDA backend on a real GPU: the processor's numbers, and its time beside PyTorch's on the same GPU.

Skipped, with the reason, where there is none.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from tests.simulate.cuda_networks import CASES
from varflow.lowering import lower
from varflow.network import Network
from varflow.simulate.cpu import Simulator

if find_spec("numba_cuda") is None:
    pytest.skip("no GPU test: numba-cuda is not installed", allow_module_level=True)
if not import_module("numba.cuda").is_available() or import_module("numba").config.ENABLE_CUDASIM:
    pytest.skip("no GPU test: CUDA sees no GPU, so nothing of the backend runs on hardware", allow_module_level=True)

from tests.simulate.cuda_tokens import EXTREME, LARGE, SMALL, Sizes, deviations, extremes
from varflow.simulate.cuda import CudaSimulator
from varflow.simulate.cuda_device import empty
from varflow.simulate.cuda_sources import fill
from varflow.simulate.rng import sample

DRAWS, FIRST, SEED = 8, 2**33 + 5, 7


@pytest.mark.parametrize("name", CASES)
def test_same_draws_as_the_processor(name: str) -> None:
    case = CASES[name]
    program = lower(case.build())
    options: dict[str, Any] = {"seed": SEED, "samples": case.samples, "weights": True, "method": case.method}
    device = CudaSimulator(program, **options)
    expected, found = Simulator(program, **options).rows(FIRST, DRAWS), device.rows(FIRST, DRAWS)
    size = np.sqrt(expected[:, :, 1]) + 1e-30
    for k, power in ((0, 1), (1, 2)):
        off = np.abs(found[:, :, k] - expected[:, :, k]) / size**power
        assert off.max() < 1e-5


@pytest.mark.parametrize("sizes", [*SMALL, *LARGE], ids=str)
def test_the_kernels_of_attention_by_themselves(sizes: Sizes) -> None:
    assert {kernel: off for kernel, off in deviations(sizes).items() if not off < 1e-5} == {}


def test_softmax_of_extreme_logits() -> None:
    undefined = [["nan"] * len(EXTREME[0])] * 2
    assert extremes() == [["1.0", "0.0", "0.0", "0.0"], ["0.25"] * 4, *undefined]


@pytest.mark.parametrize("distribution", ["uniform", "rademacher", "bernoulli"])
def test_the_words_of_the_generator(distribution: str) -> None:
    options: dict[str, Any] = {"seed": 2**63 + SEED, "first_draw": FIRST, "tensor": 2**32 - 3, "parameter": 0.3}
    out = empty(3 * 1000)
    fill(out, 3, 1000, distribution=distribution, **options)
    assert np.array_equal(out.copy_to_host().reshape(3, 1000), sample(distribution, (3, 1000), **options))


def test_same_bits_however_draws_are_cut() -> None:
    program = lower(CASES["norms"].build())
    simulator = CudaSimulator(program, seed=SEED, samples=3)
    parts = [simulator.rows(FIRST + k, 1) for k in range(DRAWS)]
    assert np.array_equal(simulator.rows(FIRST, DRAWS), np.concatenate(parts))


def relu_chain(width: int, depth: int) -> Network:
    net = Network("chain")
    h = net.input("x", width)
    for k in range(depth):
        h = net.relu(net.linear(h, width, name=f"fc{k}", variance="2/fan_in"), name=f"h{k}")
    return net


def seconds(run: Callable[[], object], times: int = 5) -> float:
    run()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 8, 32])
def test_faster_than_pytorch_on_the_same_gpu(samples: int, record_property: Callable[[str, object], None]) -> None:
    """Weights drawn, forward and backward, width 1024, 20 layers: PyTorch stores what the kernels only pass through."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no comparison: this PyTorch has no CUDA")
    width, depth, draws = 1024, 20, 64
    simulator = CudaSimulator(lower(relu_chain(width, depth)), samples=samples, method="sampled")

    def theirs() -> None:
        for _ in range(draws):
            weights = [torch.randn(width, width, device="cuda") * (2 / width) ** 0.5 for _ in range(depth)]
            x = torch.randn(samples, width, device="cuda", requires_grad=True)
            h = x
            for w in weights:
                h = torch.relu(h @ w.T)
            h.backward(torch.randn_like(h))
        torch.cuda.synchronize()

    ours, other = seconds(lambda: simulator.run(draws)), seconds(theirs)
    record_property("seconds a draw, ours and PyTorch's", (ours / draws, other / draws))
    print(f"{samples} samples: {1e3 * ours / draws:.3f} ms a draw, PyTorch {1e3 * other / draws:.3f} ms")
    assert ours < other
