"""Where a program is simulated: the one door to the processor's and the GPU's simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from varflow.errors import InputError
from varflow.program import Program
from varflow.simulate.cpu import Simulator
from varflow.simulate.plan import Plan
from varflow.simulate.statistics import Statistics

BACKENDS = ("cpu", "cuda")


class Backend(Protocol):
    """A program ready to be drawn from."""

    plan: Plan

    def run(
        self, draws: int, first_draw: int = 0, after_chunk: Callable[[Statistics], None] | None = None
    ) -> Statistics:
        """Draws ``first_draw`` to ``first_draw + draws``."""


def check_backend(backend: str) -> None:
    """Raise InputError for a backend that does not exist, MissingExtraError or UnsupportedError for one that cannot
    run here."""
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is not known", instead=" or ".join(f'"{b}"' for b in BACKENDS))
    if backend == "cuda":
        from varflow.simulate.cuda_device import refuse_without_device

        refuse_without_device()


def simulator(program: Program, backend: str = "cpu", **options: Any) -> Backend:
    """The simulator of a backend, with the options of `cpu.Simulator`."""
    check_backend(backend)
    if backend == "cuda":
        from varflow.simulate.cuda import CudaSimulator

        return CudaSimulator(program, **options)
    return Simulator(program, **options)
