"""The arithmetic of every kernel, unchanged, compiled for CUDA: to PTX, and to machine code where ptxas is found.

No driver and no GPU are needed; nothing runs.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from varflow.simulate.kernels_pointwise import LOAD, SELECT, arithmetic, function
from varflow.simulate.kernels_pool import wins
from varflow.simulate.kernels_standardize import normalized, pulled_back
from varflow.simulate.rng import block_words, normal_pair, sign_of, truncated_of, uniform_of

if find_spec("numba_cuda") is None:
    pytest.skip("numba-cuda is not installed: nothing compiles for CUDA", allow_module_level=True)

cuda: Any = import_module("numba.cuda")
types: Any = import_module("numba.cuda.types")
F = np.float32
FLOATS = types.Array(types.float32, 1, "C")
MATRIX = types.Array(types.float32, 2, "C")
DOUBLES = types.Array(types.float64, 2, "C")
TABLE = types.Array(types.int64, 2, "C")
CODE = types.Array(types.int32, 2, "C")
WORD = types.uint64
LANES, TILE, BLOCK = 16, 64, 128


def fill_kernel(out: Any, kind: Any, seed: Any, draw: Any, tensor: Any) -> None:
    thread = cuda.grid(1)
    at = thread // LANES * TILE + thread % LANES
    if at + 3 * LANES < out.size:
        a, b, c, d = block_words(np.uint64(thread), seed, draw, tensor)
        if kind == 0:
            out[at], out[at + LANES] = normal_pair(a, b)
            out[at + 2 * LANES], out[at + 3 * LANES] = normal_pair(c, d)
        elif kind == 1:
            out[at], out[at + LANES] = uniform_of(a), uniform_of(b)
            out[at + 2 * LANES], out[at + 3 * LANES] = uniform_of(c), uniform_of(d)
        elif kind == 2:
            out[at], out[at + LANES] = truncated_of(a), truncated_of(b)
            out[at + 2 * LANES], out[at + 3 * LANES] = truncated_of(c), truncated_of(d)
        else:
            out[at], out[at + LANES] = sign_of(a), sign_of(b)
            out[at + 2 * LANES], out[at + 3 * LANES] = sign_of(c), sign_of(d)


def contract_kernel(h: Any, y: Any, std: Any, seed: Any, draw: Any, tensor: Any) -> None:
    """One thread an output; columns a multiple of 64."""
    row = cuda.grid(1)
    columns = h.size
    if row < y.size:
        total = F(0.0)
        for tile in range(columns // TILE):
            first = np.uint64(row * (columns // TILE) + tile) * np.uint64(LANES)
            for lane in range(LANES):
                a, b, c, d = block_words(first + np.uint64(lane), seed, draw, tensor)
                w0, w1 = normal_pair(a, b)
                w2, w3 = normal_pair(c, d)
                i = tile * TILE + lane
                total += (
                    w0 * h[i] + w1 * h[i + LANES] + w2 * h[i + 2 * LANES] + w3 * h[i + 3 * LANES]
                )
        y[row] = total * std


def transposed_kernel(v: Any, y: Any, std: Any, seed: Any, draw: Any, tensor: Any) -> None:
    """One thread for four columns; columns a multiple of 64."""
    thread = cuda.grid(1)
    i = thread // LANES * TILE + thread % LANES
    if i < y.size:
        s0 = s1 = s2 = s3 = F(0.0)
        for row in range(v.size):
            block = np.uint64(row * (y.size // TILE) * LANES + thread)
            a, b, c, d = block_words(block, seed, draw, tensor)
            w0, w1 = normal_pair(a, b)
            w2, w3 = normal_pair(c, d)
            s0 += w0 * v[row]
            s1 += w1 * v[row]
            s2 += w2 * v[row]
            s3 += w3 * v[row]
        y[i], y[i + LANES], y[i + 2 * LANES], y[i + 3 * LANES] = (
            s0 * std,
            s1 * std,
            s2 * std,
            s3 * std,
        )


def window_kernel(h: Any, y: Any, table: Any, std: Any, seed: Any, draw: Any, tensor: Any) -> None:
    """One thread an output place and row; columns a multiple of 64."""
    place, row = cuda.grid(2)
    taps, columns = table.shape[1], h.shape[1]
    if place < y.shape[0] and row < y.shape[1]:
        total = F(0.0)
        for tap in range(taps):
            seen = table[place, tap]
            if seen >= 0:
                for tile in range(columns // TILE):
                    block = (row * taps + tap) * (columns // TILE) + tile
                    for lane in range(LANES):
                        a, b, c, d = block_words(np.uint64(block * LANES + lane), seed, draw, tensor)
                        w0, w1 = normal_pair(a, b)
                        w2, w3 = normal_pair(c, d)
                        i = tile * TILE + lane
                        total += w0 * h[seen, i] + w1 * h[seen, i + LANES]
                        total += w2 * h[seen, i + 2 * LANES] + w3 * h[seen, i + 3 * LANES]
        y[place, row] = total * std


def pool_kernel(x: Any, largest: Any, mixed: Any, where: Any, table: Any, factors: Any) -> None:
    """One thread an output place and channel: the first largest entry, where it stands, and a mean."""
    place, channel = cuda.grid(2)
    if place < largest.shape[0] and channel < x.shape[1]:
        best, at, total = F(-math.inf), -1, 0.0
        for tap in range(table.shape[1]):
            seen = table[place, tap]
            if seen >= 0:
                entry = x[seen, channel]
                total += np.float64(factors[tap]) * np.float64(entry)
                if wins(entry, best) or at < 0:
                    best, at = entry, seen
        largest[place, channel], where[place, channel], mixed[place, channel] = best, at, F(total)


def pointwise_kernel(out: Any, inputs: Any, code: Any, constants: Any, result: Any) -> None:
    lane = cuda.grid(1)
    register = cuda.local.array(32, types.float32)
    if lane < out.size:
        for k in range(constants.size):
            register[k] = constants[k]
        for s in range(code.shape[0]):
            op = code[s, 0]
            x = register[code[s, 2]]
            y = register[code[s, 3]]
            if op == LOAD:
                value = inputs[code[s, 2], lane]
            elif op < SELECT:
                value = arithmetic(op, x, y)
            elif op == SELECT:
                value = register[code[s, 4]] if x == F(0.0) else y
            else:
                value = function(op, x)
            register[code[s, 1]] = value
        out[lane] = register[result]


def standardize_kernel(x: Any, dy: Any, y: Any, dx: Any, statistics: Any) -> None:
    """Statistics (mean, 1/sigma, mean dy, mean y dy) of one row each."""
    row, i = cuda.grid(2)
    if row < x.shape[0] and i < x.shape[1]:
        mean, inverse = statistics[row, 0], statistics[row, 1]
        y[row, i] = normalized(x[row, i], mean, inverse)
        a, b = statistics[row, 2], statistics[row, 3]
        dx[row, i] = pulled_back(x[row, i], dy[row, i], mean, inverse, a, b)


def moments_kernel(x: Any, out: Any) -> None:
    """A thread block a draw; sums in shared memory."""
    draw, thread = cuda.blockIdx.x, cuda.threadIdx.x
    shared = cuda.shared.array((3, BLOCK), types.float64)
    a = b = c = 0.0
    for i in range(thread, x.shape[1], BLOCK):
        value = np.float64(x[draw, i])
        a += value
        b += value * value
        c += value * value * value * value
    shared[0, thread], shared[1, thread], shared[2, thread] = a, b, c
    cuda.syncthreads()
    step = BLOCK // 2
    while step > 0:
        if thread < step:
            for k in range(3):
                shared[k, thread] += shared[k, thread + step]
        cuda.syncthreads()
        step //= 2
    if thread < 3:
        out[draw, thread] = shared[thread, 0] / x.shape[1]


KERNELS: dict[Any, tuple[Any, ...]] = {
    fill_kernel: (FLOATS, types.int64, WORD, WORD, WORD),
    contract_kernel: (FLOATS, FLOATS, types.float32, WORD, WORD, WORD),
    transposed_kernel: (FLOATS, FLOATS, types.float32, WORD, WORD, WORD),
    window_kernel: (MATRIX, MATRIX, TABLE, types.float32, WORD, WORD, WORD),
    pool_kernel: (MATRIX, MATRIX, MATRIX, TABLE, TABLE, FLOATS),
    pointwise_kernel: (FLOATS, MATRIX, CODE, FLOATS, types.int64),
    standardize_kernel: (MATRIX, MATRIX, MATRIX, MATRIX, DOUBLES),
    moments_kernel: (MATRIX, DOUBLES),
}


def assembler() -> str | None:
    """ptxas, from the path or from the wheel that carries one."""
    wheel = find_spec("nvidia")
    folders = list(wheel.submodule_search_locations or []) if wheel else []
    carried = [str(p) for folder in folders for p in Path(folder).glob("*/bin/ptxas")]
    return next(iter(carried), shutil.which("ptxas"))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.__name__)
def test_compiles_for_cuda(kernel: Any, tmp_path: Path) -> None:
    ptx, _ = cuda.compile(kernel, KERNELS[kernel], cc=(9, 0), device=False, abi="numba")
    assert ".visible .entry" in ptx
    tool = assembler()
    if tool is None:
        pytest.skip(
            "compiled to PTX; ptxas is not installed, so registers and spills are not known"
        )
    source = tmp_path / "kernel.ptx"
    source.write_text(ptx)
    command = [tool, "-v", "-arch=sm_90", str(source), "-o", str(tmp_path / "kernel.cubin")]
    report = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert report.returncode == 0, report.stderr
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", report.stderr)]
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", report.stderr)]
    assert spills and not any(spills)
    assert registers and max(registers) <= 128


def test_the_generator_compiled_for_the_processor_is_the_one_compiled_here() -> None:
    assert math.isclose(
        normal_pair(np.uint32(1), np.uint32(0))[0], math.sqrt(-2 * math.log(2.0**-32)), rel_tol=1e-6
    )
