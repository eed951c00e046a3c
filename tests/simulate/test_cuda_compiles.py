"""Every CUDA kernel compiled for sm_80 and sm_90: to PTX, and to machine code without spills where ptxas is found.

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

from varflow.simulate.rng import normal_pair

if find_spec("numba_cuda") is None:
    pytest.skip("numba-cuda is not installed: nothing compiles for CUDA", allow_module_level=True)

from tests.simulate.cuda_signatures import OF_KERNEL, signature

import_module("varflow.simulate.cuda")
device: Any = import_module("varflow.simulate.cuda_device")
cuda: Any = import_module("numba.cuda")

KERNELS = {run.py_func.__name__: run.py_func for run in device.KERNELS}
ARCHITECTURES = ((8, 0), (9, 0))
MOST_REGISTERS = 168
"""Three blocks of 128 threads fit into the 65,536 registers of a multiprocessor."""


def assembler() -> str | None:
    """ptxas, from the wheel that carries one or from the path."""
    wheel = find_spec("nvidia")
    folders = list(wheel.submodule_search_locations or []) if wheel else []
    carried = [str(p) for folder in folders for p in Path(folder).glob("*/bin/ptxas")]
    return next(iter(carried), shutil.which("ptxas"))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: f"sm_{a[0]}{a[1]}")
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_cuda(name: str, architecture: tuple[int, int], tmp_path: Path) -> None:
    options = {"cc": architecture, "device": False, "abi": "numba"}
    ptx, _ = cuda.compile(KERNELS[name], signature(name), **options)
    assert ".visible .entry" in ptx
    tool = assembler()
    if tool is None:
        pytest.skip("compiled to PTX; ptxas is not installed, so registers and spills are not known")
    source = tmp_path / "kernel.ptx"
    source.write_text(ptx)
    target = f"-arch=sm_{architecture[0]}{architecture[1]}"
    command = [tool, "-v", target, str(source), "-o", str(tmp_path / "kernel.cubin")]
    report = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert report.returncode == 0, report.stderr
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", report.stderr)]
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", report.stderr)]
    assert spills and not any(spills)
    assert registers and max(registers) <= MOST_REGISTERS


def test_every_kernel_has_a_signature() -> None:
    assert set(KERNELS) == set(OF_KERNEL)


def test_blocks_fit_the_shared_memory() -> None:
    product: Any = import_module("varflow.simulate.cuda_product")
    sums: Any = import_module("varflow.simulate.cuda_sums")
    attention: Any = import_module("varflow.simulate.cuda_attention")
    assert max(product.SHARED_FORWARD, product.SHARED_TRANSPOSED) <= device.SHARED
    assert attention.SHARED_TILE <= device.SHARED
    assert 8 * sums.DEPTH * (sums.LEFT + sums.RIGHT) <= device.SHARED


def test_the_generator_compiled_for_the_processor_is_the_one_compiled_here() -> None:
    radius = math.sqrt(-2 * math.log(2.0**-32))
    assert math.isclose(normal_pair(np.uint32(1), np.uint32(0))[0], radius, rel_tol=1e-6)
