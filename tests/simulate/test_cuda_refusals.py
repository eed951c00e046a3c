"""The CUDA backend without a GPU: one clear error, wherever it is asked for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import varflow as vf
from tests.simulate.cuda_networks import CASES
from varflow.errors import InputError, MissingExtraError, UnsupportedError
from varflow.lowering import lower
from varflow.program import Primitive, Repeat, RepeatBackward
from varflow.simulate import cuda_device
from varflow.simulate.backends import check_backend
from varflow.simulate.plan import make_plan

ROOT = Path(__file__).parents[2]
HAS_EXTRA = find_spec("numba_cuda") is not None
HAS_DEVICE = HAS_EXTRA and not cuda_device.SIMULATED and bool(cuda_device.cuda.is_available())

needs_no_device = pytest.mark.skipif(HAS_DEVICE, reason="there is a GPU")


@needs_no_device
def test_verification_says_what_is_missing_and_what_to_do() -> None:
    net = vf.Network("one layer")
    net.linear(net.input("x", 8), 8, name="fc", variance="1/fan_in")
    with pytest.raises(UnsupportedError if HAS_EXTRA else MissingExtraError) as caught:
        vf.verify(net, backend="cuda")
    assert caught.value.why
    assert 'backend="cpu"' in caught.value.instead


@needs_no_device
def test_command_line_ends_with_two() -> None:
    command = [sys.executable, "-m", "varflow.cli", "verify", "residual_block", "--set", "n=16", "--backend", "cuda"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert 'backend="cpu"' in answer.stderr


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        return None

    monkeypatch.setattr(cuda_device, "find_spec", absent)
    with pytest.raises(MissingExtraError, match=r"varflow\[cuda\]"):
        check_backend("cuda")


@dataclass(frozen=True)
class Unheard(Primitive):
    """A primitive that no backend knows."""


@pytest.mark.skipif(not HAS_EXTRA, reason="numba-cuda is not installed")
def test_a_primitive_without_a_kernel_is_named() -> None:
    from varflow.simulate.cuda import CudaChunk

    net = vf.Network("one layer")
    net.identity(net.input("x", 4))
    plan = make_plan(lower(net), 1)
    step = replace(plan.steps[0], instruction=replace(plan.steps[0].instruction, primitive=Unheard(), node="here"))
    with pytest.raises(UnsupportedError, match="Unheard has no CUDA kernel") as caught:
        CudaChunk(plan, 0, 0, 1)._value(step, [])
    assert (caught.value.where, caught.value.instead) == ("here", 'backend="cpu"')


def test_the_networks_compared_with_the_processor_use_every_primitive() -> None:
    """A repeated block is unrolled before anything is simulated."""
    compared = {type(step.primitive) for case in CASES.values() for step in lower(case.build())}
    known = {p for p in Primitive.__subclasses__() if p.__module__ == "varflow.program"}
    assert compared == known - {Repeat, RepeatBackward}


def test_unknown_backends_are_named() -> None:
    with pytest.raises(InputError, match="cpu"):
        check_backend("tpu")
