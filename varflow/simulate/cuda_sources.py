"""CUDA kernels for random sources: inputs, cotangents, biases, masks, permutations, stored weights."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from varflow.simulate.cuda_device import blocks_for, four, kernel, launch, limit_of
from varflow.simulate.jit import Array, Number
from varflow.simulate.rng import BERNOULLI, LANES, TILE, check_counter, distribution_code

cuda: Any = import_module("numba.cuda")

F = np.float32


@kernel
def fill_kernel(
    out: Array, rows: Number, length: Number, kind: Number, limit: Number, value: Number, scale: Number, shift: Number,
    seed: Number, first_draw: Number, tensor: Number,
) -> None:  # fmt: skip
    """Entries of a tensor times ``scale`` plus ``shift``; each of ``rows`` rows begins with a tile of its own."""
    d = cuda.blockIdx.y
    draw = first_draw + np.uint64(d)
    each = (length + TILE - 1) // TILE * LANES
    start, step = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.gridDim.x * cuda.blockDim.x
    for b in range(start, rows * each, step):
        row = b // each
        inside = b - row * each
        e = inside // LANES * TILE + inside % LANES
        at = (d * rows + row) * length + e
        w, x, y, z = four(kind, limit, value, np.uint64(b), seed, draw, tensor)
        if e < length:
            out[at] = F(w * scale) + shift
        if e + LANES < length:
            out[at + LANES] = F(x * scale) + shift
        if e + 2 * LANES < length:
            out[at + 2 * LANES] = F(y * scale) + shift
        if e + 3 * LANES < length:
            out[at + 3 * LANES] = F(z * scale) + shift


@kernel
def mask_kernel(
    out: Array, size: Number, limit: Number, seed: Number, first_draw: Number, tensor: Number
) -> None:
    """Stored entries times their mask."""
    d = cuda.blockIdx.y
    draw = first_draw + np.uint64(d)
    start, step = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.gridDim.x * cuda.blockDim.x
    for b in range(start, (size + TILE - 1) // TILE * LANES, step):
        e = b // LANES * TILE + b % LANES
        at = d * size + e
        w, x, y, z = four(BERNOULLI, limit, F(1.0), np.uint64(b), seed, draw, tensor)
        if e < size:
            out[at] *= w
        if e + LANES < size:
            out[at + LANES] *= x
        if e + 2 * LANES < size:
            out[at + 2 * LANES] *= y
        if e + 3 * LANES < size:
            out[at + 3 * LANES] *= z


@kernel
def correlate_kernel(
    z: Array, samples: Number, positions: Number, channels: Number, apart: Number, between: Number, together: Number,
    mean: Number,
) -> None:  # fmt: skip
    """Independent entries made correlated, one thread a channel: the three factors of `cpu` for differences of
    positions, of samples, and the mean; ``mean`` is added."""
    size = samples * positions * channels
    start, step = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.gridDim.x * cuda.blockDim.x
    for c in range(start, channels, step):
        first = cuda.blockIdx.y * size + c
        overall = 0.0
        for p in range(samples * positions):
            overall += np.float64(z[first + p * channels])
        overall /= samples * positions
        for s in range(samples):
            at = first + s * positions * channels
            own = 0.0
            for p in range(positions):
                own += np.float64(z[at + p * channels])
            own /= positions
            for p in range(positions):
                entry = np.float64(z[at + p * channels])
                entry = apart * (entry - own) + between * (own - overall) + together * overall
                z[at + p * channels] = F(entry) + mean


@kernel
def rank_kernel(keys: Array, rank: Array, size: Number) -> None:
    """How many keys of a draw come before each (earlier ones first where equal)."""
    start, step = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.gridDim.x * cuda.blockDim.x
    first = cuda.blockIdx.y * size
    for i in range(start, size, step):
        own, count = keys[first + i], 0
        for j in range(size):
            other = keys[first + j]
            if other < own or (other == own and j < i):
                count += 1
        rank[first + i] = count


def fill(
    out: Any, draws: int, length: int, *, distribution: str = "normal", seed: int, first_draw: int, tensor: int,
    parameter: float = 1.0, scale: float = 1.0, shift: float = 0.0, rows: int = 1,
) -> None:  # fmt: skip
    """Random entries into (draws, rows, length): those of `rng.sample`, and of `kernels_collapse.draw_fresh` where
    there are several rows."""
    each = -(-length // TILE) * TILE
    check_counter(seed, first_draw, draws, tensor, rows * each)
    kind, limit = limit_of(distribution_code(distribution), parameter)
    launch(
        fill_kernel, (blocks_for(rows * each // 4), draws), out, rows, length, kind, np.uint32(limit), F(parameter),
        F(scale), F(shift), np.uint64(seed), np.uint64(first_draw), np.uint64(tensor),
    )  # fmt: skip


def mask(out: Any, draws: int, size: int, keep: float, *, seed: int, first_draw: int, tensor: int) -> None:
    """Entries (draws, size) kept with probability ``keep``, in place."""
    check_counter(seed, first_draw, draws, tensor, size)
    limit = np.uint32(limit_of(BERNOULLI, keep)[1])
    words = (np.uint64(seed), np.uint64(first_draw), np.uint64(tensor))
    launch(mask_kernel, (blocks_for(-(-size // TILE) * LANES), draws), out, size, limit, *words)
