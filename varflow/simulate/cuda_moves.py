"""CUDA kernels that move coordinates: copies between layouts, permutations, mixing and maxima over windows."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from varflow.simulate.cuda_device import blocks_for, kernel, launch
from varflow.simulate.jit import Array, Number
from varflow.simulate.kernels_pool import wins

cuda: Any = import_module("numba.cuda")

F = np.float32


@kernel
def copy_kernel(
    x: Array, y: Array, n1: Number, n2: Number, n3: Number, size: Number, from_first: Number, from0: Number,
    from1: Number, from2: Number, from3: Number, to_first: Number, to0: Number, to1: Number, to2: Number, to3: Number,
) -> None:  # fmt: skip
    """y[to_first + i . to] = x[from_first + i . from] for all i of four axes, the last of n3 entries."""
    start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for q in range(start, size, cuda.gridDim.x * cuda.blockDim.x):
        rest, k = q // n3, q % n3
        rest, j = rest // n2, rest % n2
        h, i = rest // n1, rest % n1
        source = from_first + h * from0 + i * from1 + j * from2 + k * from3
        y[to_first + h * to0 + i * to1 + j * to2 + k * to3] = x[source]


@kernel
def zero_kernel(y: Array, size: Number) -> None:
    """Zeros."""
    start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for q in range(start, size, cuda.gridDim.x * cuda.blockDim.x):
        y[q] = F(0.0)


@kernel
def permute_kernel(x: Array, y: Array, rank: Array, places: Number, channels: Number, inverse: Number) -> None:
    """Channel ``i`` goes to its rank, or comes back from there."""
    d = cuda.blockIdx.y
    start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for q in range(start, places * channels, cuda.gridDim.x * cuda.blockDim.x):
        place = (d * places + q // channels) * channels
        here, there = place + q % channels, place + rank[d * channels + q % channels]
        if inverse:
            y[here] = x[there]
        else:
            y[there] = x[here]


@kernel
def mix_kernel(
    x: Array, y: Array, starts: Array, columns: Array, values: Array, inputs: Number, samples: Number,
    channels: Number,
) -> None:  # fmt: skip
    """A sparse matrix over the positions of every sample."""
    d, outputs = cuda.blockIdx.y, starts.size - 1
    start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for q in range(start, samples * outputs * channels, cuda.gridDim.x * cuda.blockDim.x):
        place, c = q // channels, q % channels
        s, p = place // outputs, place % outputs
        first, total = (d * samples + s) * inputs * channels + c, 0.0
        for k in range(starts[p], starts[p + 1]):
            total += np.float64(values[k]) * np.float64(x[first + columns[k] * channels])
        y[d * samples * outputs * channels + q] = F(total)


@kernel
def maximum_kernel(
    x: Array, y: Array, where: Array, table: Array, taps: Number, outputs: Number, inputs: Number, samples: Number,
    channels: Number,
) -> None:  # fmt: skip
    """The first largest entry of every window, and the tap where it stands."""
    d = cuda.blockIdx.y
    start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for q in range(start, samples * outputs * channels, cuda.gridDim.x * cuda.blockDim.x):
        place, c = q // channels, q % channels
        s, p = place // outputs, place % outputs
        first = (d * samples + s) * inputs * channels + c
        best, at = F(-np.inf), -1
        for t in range(taps):
            seen = table[p * taps + t]
            if seen >= 0:
                entry = x[first + seen * channels]
                if at < 0 or wins(entry, best):
                    best, at = entry, t
        y[d * samples * outputs * channels + q] = best
        where[d * samples * outputs * channels + q] = at


@kernel
def returned_kernel(
    dy: Array, where: Array, dx: Array, table: Array, taps: Array, outputs: Number, inputs: Number, samples: Number,
    channels: Number,
) -> None:  # fmt: skip
    """Every input gathers the gradients of the windows whose maximum it is; ``table`` holds, by input and slot, the
    output that sees it through the tap ``taps`` of the slot."""
    d, slots = cuda.blockIdx.y, taps.size
    start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for q in range(start, samples * inputs * channels, cuda.gridDim.x * cuda.blockDim.x):
        place, c = q // channels, q % channels
        s, p = place // inputs, place % inputs
        first, total = (d * samples + s) * outputs * channels + c, F(0.0)
        for k in range(slots):
            seen = table[p * slots + k]
            if seen >= 0 and where[first + seen * channels] == taps[k]:
                total += dy[first + seen * channels]
        dx[d * samples * inputs * channels + q] = total


@kernel
def patches_kernel(
    x: Array, y: Array, table: Array, places: Number, taps: Number, inputs: Number, groups: Number, width: Number
) -> None:
    """(draw, input, groups x width) -> (draw, group, place, taps x width): what every place sees, zero outside."""
    d, each = cuda.blockIdx.y, places * taps * width
    start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for q in range(start, groups * each, cuda.gridDim.x * cuda.blockDim.x):
        group, at = q // each, q % each
        seen = table[at // width]
        entry = F(0.0)
        if seen >= 0:
            entry = x[((d * inputs + seen) * groups + group) * width + at % width]
        y[d * groups * each + q] = entry


@kernel
def folded_kernel(
    x: Array, y: Array, table: Array, slots: Array, places: Number, taps: Number, inputs: Number, groups: Number,
    width: Number,
) -> None:  # fmt: skip
    """The transpose of `patches_kernel`: every input adds up what lies at it; ``table`` holds, by input and slot, the
    place that sees it through the tap ``slots`` of the slot."""
    d, count = cuda.blockIdx.y, slots.size
    start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for q in range(start, inputs * groups * width, cuda.gridDim.x * cuda.blockDim.x):
        at, channel = q // (groups * width), q % (groups * width)
        group, c, total = channel // width, channel % width, F(0.0)
        for k in range(count):
            place = table[at * count + k]
            if place >= 0:
                total += x[(((d * groups + group) * places + place) * taps + slots[k]) * width + c]
        y[d * inputs * groups * width + q] = total


def copy(
    x: Any, y: Any, sizes: tuple[int, int, int, int], source: tuple[int, ...], target: tuple[int, ...]
) -> None:
    """Entries of four axes; ``source`` and ``target`` hold the first entry and the four strides."""
    size = int(np.prod(sizes))
    launch(copy_kernel, (blocks_for(size),), x, y, *sizes[1:], size, *source, *target)


def zero(y: Any, size: int) -> None:
    """Zeros into a buffer."""
    launch(zero_kernel, (blocks_for(size),), y, size)
