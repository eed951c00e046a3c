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
QUICK = ("shared-collapsed", "convolutions", "norms", "self-attention")
WAITING = ("convolutions-collapsed",)
"""Minutes of threads that wait for each other, with the blocks of a GPU."""
TOLERANCE = 1e-5


def answers(module: str, arguments: Sequence[str] = ()) -> list[Any]:
    """Lines of JSON that a module prints, in a process where the simulator is on before numba is imported."""
    command = [sys.executable, "-m", f"tests.simulate.{module}", *arguments]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return [json.loads(line) for line in answer.stdout.splitlines()]


def check(found: Sequence[dict[str, Any]]) -> None:
    assert found
    assert {c["name"]: (c["worst"], c["where"]) for c in found if not c["worst"] < TOLERANCE} == {}


def test_same_draws_as_the_processor() -> None:
    found = answers("cuda_same", QUICK)
    assert [case["name"] for case in found] == list(QUICK)
    check(found)


def test_a_verification_has_the_numbers_of_the_processor() -> None:
    (found,) = answers("cuda_verify")
    assert found["words"] and found["same bits"]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=TOLERANCE)


def test_the_kernels_of_attention_by_themselves() -> None:
    (found,) = answers("cuda_tokens")
    assert {s: d for s, d in found["worst"].items() if not max(d.values()) < 1e-6} == {}
    hot, even, *undefined = found["extremes"]
    assert hot == ["1.0", "0.0", "0.0", "0.0"]
    assert even == ["0.25"] * 4
    assert undefined == [["nan"] * 4] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_every_primitive_and_every_weight(name: str) -> None:
    check(answers("cuda_same", [name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in WAITING])
def test_blocks_and_tiles_of_a_gpu(name: str) -> None:
    check(answers("cuda_same", ["--full", name]))
