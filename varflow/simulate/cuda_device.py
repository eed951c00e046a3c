"""What every CUDA kernel is made with: decorators, launches, buffers, the entries of a weight.

The only file beside the kernels that talks to numba-cuda. Kernels use shared memory handed over at the launch and
no warp shuffles, so that numba's simulator (NUMBA_ENABLE_CUDASIM=1) runs the same text; in it a block has few
threads. Functions named `device` never use ``cuda`` themselves: the simulator hands that to kernels alone.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.errors import MissingExtraError, UnsupportedError
from varflow.simulate.jit import Array, Number, prepare
from varflow.simulate.rng import (
    BERNOULLI,
    CONSTANT,
    NORMAL,
    TRUNCATED,
    UNIFORM,
    block_words,
    normal_pair,
    sign_of,
    truncated_of,
    uniform_of,
)

cuda: Any = import_module("numba.cuda")
numba: Any = import_module("numba")
prepare()

numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # sums over small networks have few blocks, and no user can help it

SIMULATED = bool(numba.config.ENABLE_CUDASIM)
"""Whether kernels run in numba's simulator."""
THREADS = 4 if SIMULATED else 128
MOST_BLOCKS = 2 if SIMULATED else 4096
"""Blocks along the first axis of the grid; each goes on to the next piece of work."""
SHARED = 48 * 1024
"""Bytes of shared memory that every device gives a block."""

F = np.float32
U = np.uint32
ALL = 0xFFFFFFFF

KERNELS: list[Any] = []
"""Every kernel that has been defined, for the tests that compile them."""


def kernel(function: Callable[..., None]) -> Any:
    """A function that runs on the device, launched by `launch`."""
    made = cuda.jit(function)
    KERNELS.append(made)
    return made


def device(function: Callable[..., Any]) -> Any:
    """Arithmetic pasted into kernels."""
    return function if SIMULATED else cuda.jit(function, device=True, inline="always")


def launch(run: Any, grid: tuple[int, ...], *arguments: Any, shared: int = 0) -> None:
    """Run a kernel on a grid of blocks of THREADS threads, with ``shared`` bytes of shared memory a block."""
    if all(grid):
        run[grid, THREADS, 0, shared](*arguments)


def blocks_for(items: int) -> int:
    """Blocks for ``items`` pieces of work, one for each thread (several where there are very many)."""
    return min(-(-items // THREADS), MOST_BLOCKS)


def refuse_without_device() -> None:
    """Raise MissingExtraError without numba-cuda, UnsupportedError without a GPU (and outside the simulator)."""
    if find_spec("numba_cuda") is None:
        raise MissingExtraError(
            "the CUDA backend needs numba-cuda", why="the extra 'cuda' is not installed",
            instead='pip install "varflow[cuda]", or backend="cpu"',
        )  # fmt: skip
    if not SIMULATED and not cuda.is_available():
        raise UnsupportedError(
            "no GPU that CUDA can use", why="the driver is missing, too old for the toolkit, or shows no device",
            instead='backend="cpu", or NUMBA_ENABLE_CUDASIM=1 to run small networks in the simulator',
        )  # fmt: skip


def empty(size: int, kind: Any = np.float32) -> Any:
    """An uninitialized buffer on the device."""
    return cuda.device_array(max(size, 1), kind)


def sent(values: NDArray[Any]) -> Any:
    """A copy on the device, flat, with at least one entry."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return cuda.to_device(flat if flat.size else np.zeros(1, flat.dtype))


def limit_of(kind: int, parameter: float) -> tuple[int, int]:
    """Distribution and largest word that gives a one: what `four` takes for a probability ``parameter``."""
    if kind == BERNOULLI and (parameter <= 0.0 or parameter >= 1.0):
        return CONSTANT, ALL
    return kind, int(min(max(parameter * 4294967296.0 - 0.5, 0.0), 4294967295.0))


@device
def one_or_zero(word: Number, limit: Number) -> Any:
    """An entry of a mask."""
    return F(1.0) if word <= limit else F(0.0)


@device
def four(
    kind: Number, limit: Number, value: Number, block: Number, seed: Number, draw: Number, tensor: Number
) -> Any:
    """Entries i, i + 16, i + 32 and i + 48 of the tile of 64 that counter block 16 tile + i makes; see `rng`.

    ``limit`` belongs to a mask, ``value`` to a constant.
    """
    a, b, c, d = block_words(block, seed, draw, tensor)
    w = x = y = z = F(value)
    if kind == NORMAL:
        w, x = normal_pair(a, b)
        y, z = normal_pair(c, d)
    elif kind == UNIFORM:
        w, x, y, z = uniform_of(a), uniform_of(b), uniform_of(c), uniform_of(d)
    elif kind == TRUNCATED:
        w, x, y, z = truncated_of(a), truncated_of(b), truncated_of(c), truncated_of(d)
    elif kind == BERNOULLI:
        w, x, y, z = one_or_zero(a, limit), one_or_zero(b, limit), one_or_zero(c, limit), one_or_zero(d, limit)
    elif kind != CONSTANT:
        w, x, y, z = sign_of(a), sign_of(b), sign_of(c), sign_of(d)
    return w, x, y, z


@device
def column_total(shared: Array, first: Number, count: Number, stride: Number) -> Any:
    """The sum of ``count`` entries of shared memory in a fixed order."""
    total = 0.0
    for k in range(count):
        total += shared[first + k * stride]
    return total
