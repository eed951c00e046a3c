"""The CUDA backend without a GPU: one clear error, wherever it is asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import varflow as vf
from varflow.errors import InputError, MissingExtraError, UnsupportedError
from varflow.simulate import cuda_device
from varflow.simulate.backends import check_backend

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


def test_unknown_backends_are_named() -> None:
    with pytest.raises(InputError, match="cpu"):
        check_backend("tpu")
