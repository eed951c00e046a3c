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
QUICK = ("mlp", "shared-collapsed", "convolutions", "norms")
TOLERANCE = 1e-5


def compared(names: Sequence[str]) -> list[dict[str, Any]]:
    """What `cuda_same` says of some networks, in a process where the simulator is on before numba is imported."""
    command = [sys.executable, "-m", "tests.simulate.cuda_same", *names]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return [json.loads(line) for line in answer.stdout.splitlines()]


def check(found: Sequence[dict[str, Any]]) -> None:
    assert {c["name"]: (c["worst"], c["where"]) for c in found if not c["worst"] < TOLERANCE} == {}


def test_same_draws_as_the_processor() -> None:
    found = compared(QUICK)
    assert [case["name"] for case in found] == list(QUICK)
    check(found)


@pytest.mark.slow
def test_every_primitive_and_every_weight() -> None:
    rest = [name for name in CASES if name not in QUICK]
    found = compared(rest)
    assert [case["name"] for case in found] == rest
    check(found)
