"""CUDA kernels for small matrices: inner products of columns, Cholesky factors, solves, linear combinations.

What collapsed products (`cuda_collapse`) and orthogonal weights are made of. A block of threads works on one draw;
inner products and factors are float64. The order of operations is that of `kernels_collapse`.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np

from varflow.simulate.cuda_device import SIMULATED, THREADS, column_total, kernel
from varflow.simulate.jit import Array, Number

cuda: Any = import_module("numba.cuda")
types: Any = import_module("numba.cuda.types")

F = np.float32
ABREAST = 2 if SIMULATED else 8
"""Inner products with one column that a block makes together."""


@kernel
def dots_kernel(
    a: Array, b: Array, out: Array, a_rows: Number, b_rows: Number, length: Number, row_step: Number,
    entry_step: Number, size: Number, pitch: Number, row: Number, column: Number,
) -> None:  # fmt: skip
    """out[row + i, column + j] = a_i . b_j for every draw; entry k of a_i lies at i row_step + k entry_step, and so
    in b. ``out`` has ``size`` entries a draw, ``pitch`` from row to row."""
    shared = cuda.shared.array(0, types.float64)
    total = cuda.local.array(ABREAST, types.float64)
    thread, d = cuda.threadIdx.x, cuda.blockIdx.y
    along = (b_rows + ABREAST - 1) // ABREAST
    for item in range(cuda.blockIdx.x, a_rows * along, cuda.gridDim.x):
        i, j = item // along, item % along * ABREAST
        count = min(ABREAST, b_rows - j)
        for m in range(ABREAST):
            total[m] = 0.0
        left, right = d * a_rows * length + i * row_step, d * b_rows * length + j * row_step
        for k in range(thread, length, THREADS):
            entry = np.float64(a[left + k * entry_step])
            for m in range(ABREAST):
                if m < count:
                    total[m] += entry * np.float64(b[right + m * row_step + k * entry_step])
        cuda.syncthreads()
        for m in range(ABREAST):
            shared[m * THREADS + thread] = total[m]
        cuda.syncthreads()
        for m in range(thread, count, THREADS):
            at = d * size + (row + i) * pitch + column + j + m
            out[at] = column_total(shared, m * THREADS, THREADS, 1)


@kernel
def factorize_kernel(factor: Array, size: Number, pitch: Number, start: Number, stop: Number, share: Number) -> None:
    """Rows start..stop of a Cholesky factor in place of the Gram matrix's; rows before are done. A squared pivot below
    ``share`` of the column's square counts as zero."""
    first, thread = cuda.blockIdx.x * size, cuda.threadIdx.x
    for k in range(stop):
        line = first + k * pitch
        if k >= start:
            if thread == 0:
                square = pivot = factor[line + k]
                for j in range(k):
                    pivot -= factor[line + j] * factor[line + j]
                dependent = pivot <= share * square and square < np.inf
                factor[line + k] = 0.0 if dependent else math.sqrt(pivot)
            cuda.syncthreads()
        diagonal = factor[line + k]
        for i in range(max(start, k + 1) + thread, stop, THREADS):
            own = first + i * pitch
            entry = factor[own + k]
            for j in range(k):
                entry -= factor[own + j] * factor[line + j]
            factor[own + k] = entry / diagonal if diagonal != 0.0 else 0.0
        cuda.syncthreads()


@kernel
def solve_own_kernel(
    factor: Array, small: Array, size: Number, pitch: Number, start: Number, columns: Number, width: Number
) -> None:
    """small[i, :start] = L^-T L[start + i, :start] for every new column i, with L of the earlier columns."""
    d = cuda.blockIdx.x
    first = d * size
    for i in range(cuda.threadIdx.x, columns, THREADS):
        own, line = d * columns * width + i * width, first + (start + i) * pitch
        for k in range(start - 1, -1, -1):
            entry, diagonal = factor[line + k], factor[first + k * pitch + k]
            for j in range(k + 1, start):
                entry -= factor[first + j * pitch + k] * small[own + j]
            small[own + k] = entry / diagonal if diagonal != 0.0 else 0.0


@kernel
def solve_across_kernel(
    other: Array, small: Array, known: Array, cross: Array, other_size: Number, other_pitch: Number, cross_size: Number,
    own_step: Number, across_step: Number, start: Number, across: Number, columns: Number, width: Number,
) -> None:  # fmt: skip
    """What earlier uses of the other side say of new columns, beyond what this side's said.

    On entry ``small[i, start + j]`` = y_i . d_j of the fresh columns, ``known[i, j]`` = x_i . e_j; on exit small holds
    the coefficients of the d_j. ``cross[k own_step + j across_step]`` = y_k . d_j gains the new columns.
    """
    d = cuda.blockIdx.x
    first, crossed = d * other_size, d * cross_size
    for i in range(cuda.threadIdx.x, columns, THREADS):
        own, rest = d * columns * width + i * width, d * columns * width + i * width + start
        for j in range(across):
            seen = known[(d * columns + i) * across + j]
            entry = seen - small[rest + j]
            for k in range(start):
                entry -= small[own + k] * cross[crossed + k * own_step + j * across_step]
            small[rest + j] = entry
            cross[crossed + (start + i) * own_step + j * across_step] = seen
        for k in range(across):
            entry, diagonal = small[rest + k], other[first + k * other_pitch + k]
            for j in range(k):
                entry -= other[first + k * other_pitch + j] * small[rest + j]
            small[rest + k] = entry / diagonal if diagonal != 0.0 else 0.0
        for k in range(across - 1, -1, -1):
            entry, diagonal = small[rest + k], other[first + k * other_pitch + k]
            for j in range(k + 1, across):
                entry -= other[first + j * other_pitch + k] * small[rest + j]
            small[rest + k] = entry / diagonal if diagonal != 0.0 else 0.0


@kernel
def combine_kernel(
    y: Array, factors: Array, rows: Array, columns: Number, count: Number, length: Number, size: Number, pitch: Number,
    first: Number, scale: Number, fresh: Number,
) -> None:  # fmt: skip
    """y_i (+)= scale sum_j factors[first + i pitch + j] rows_j over ``count`` rows; ``fresh``: only j <= i, in place of
    what y was."""
    d = cuda.blockIdx.y
    begin = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for q in range(begin, columns * length, cuda.gridDim.x * cuda.blockDim.x):
        i, k = q // length, q % length
        last, at = i + 1 if fresh else count, d * size + first + i * pitch
        total = 0.0 if fresh else np.float64(y[d * columns * length + q])
        for j in range(last):
            total += scale * factors[at + j] * np.float64(rows[(d * count + j) * length + k])
        y[d * columns * length + q] = F(total)


@kernel
def orthogonal_kernel(
    normals: Array, factor: Array, work: Array, out: Array, tall: Number, thin: Number, scale: Number, wide: Number
) -> None:
    """Rows of Q = A L^-T for A (tall, thin) with Gram matrix L L^T, times ``scale``; ``wide``: transposed."""
    d = cuda.blockIdx.y
    begin = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for i in range(begin, tall, cuda.gridDim.x * cuda.blockDim.x):
        own, first = (d * tall + i) * thin, d * thin * thin
        for j in range(thin):
            entry = np.float64(normals[own + j])
            for k in range(j):
                entry -= work[own + k] * factor[first + j * thin + k]
            work[own + j] = entry / factor[first + j * thin + j]
            at = d * tall * thin + (j * tall + i if wide else i * thin + j)
            out[at] = F(work[own + j] * scale)
