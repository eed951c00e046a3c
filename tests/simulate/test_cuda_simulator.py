"""The CUDA backend in numba's simulator: the same draws as the processor's, node by node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.simulate.cuda_networks import CASES

if find_spec("numba_cuda") is None:
    pytest.skip("numba-cuda is not installed: there is no simulator", allow_module_level=True)

ROOT = Path(__file__).parents[2]
QUICK = ("shared-collapsed", "convolutions", "norms")
TOLERANCE = 1e-5


def answers(module: str, arguments: Sequence[str] = ()) -> list[Any]:
    """Lines of JSON that a module prints, in a process where the simulator is on before numba is imported."""
    command = [sys.executable, "-m", f"tests.simulate.{module}", *arguments]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return [json.loads(line) for line in answer.stdout.splitlines()]


def check(found: Sequence[dict[str, Any]]) -> None:
    assert {c["name"]: (c["worst"], c["where"]) for c in found if not c["worst"] < TOLERANCE} == {}


def test_same_draws_as_the_processor() -> None:
    found = answers("cuda_same", QUICK)
    assert [case["name"] for case in found] == list(QUICK)
    check(found)


def test_a_verification_has_the_numbers_of_the_processor() -> None:
    (found,) = answers("cuda_verify")
    assert found["words"] and found["same bits"]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=TOLERANCE)


@pytest.mark.slow
def test_every_primitive_and_every_weight() -> None:
    rest = [name for name in CASES if name not in QUICK]
    found = answers("cuda_same", rest)
    assert [case["name"] for case in found] == rest
    check(found)


@pytest.mark.slow
def test_blocks_and_tiles_of_a_gpu() -> None:
    names = [name for name in CASES if name != "convolutions-collapsed"]  # minutes of threads that wait
    found = answers("cuda_same", ["--full", *names])
    assert [case["name"] for case in found] == names
    check(found)
