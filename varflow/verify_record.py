"""What a verification's numbers come from: enough to make them again, to name them, and to refuse others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from varflow.derive import Derivation
from varflow.errors import ErrorList, ExpressionError, InputError
from varflow.fields import exact
from varflow.network import Network
from varflow.printing import to_text
from varflow.simulate.stream import STREAM, arithmetic, digest
from varflow.verify_run import Keeping, Level, Run
from varflow.verify_signals import Worker
from varflow.verify_store import opened
from varflow.verify_widths import hidden_widths


@dataclass(frozen=True)
class Settings:
    """What was asked for, as far as numbers depend on it."""

    derivation: Derivation
    values: Mapping[str, Any]
    seed: int
    backend: str
    method: str
    width_scale: Sequence[float | Fraction | str] | None
    confidence: float


def record(run: Run, settings: Settings, spent: float) -> dict[str, Any]:
    """What it takes to make the numbers again, for JSON: the network as text (None where a graph file cannot say
    it), values, settings, draws of every width, the error probability of the look, versions."""
    text = network_text(settings.derivation.network)
    factors = settings.width_scale
    return {
        "stream": STREAM, "network": text, "network_hash": None if text is None else digest(text),
        "values": {name: value_text(value) for name, value in settings.values.items()}, "seed": settings.seed,
        "backend": settings.backend, "method": settings.method,
        "width_scale": None if factors is None else [str(Fraction(f).limit_denominator(4096)) for f in factors],
        "delta": run.delta, "confidence": settings.confidence, "error_probability": spent,
        "levels": [_level(level) | {"draws": level.statistics.draws} for level in run.levels],
        "versions": arithmetic(),
    }  # fmt: skip


def run_hash(run: Run, settings: Settings) -> str:
    """A hash of all simulated numbers, to the last bit, and of what was simulated."""
    counted = (level.statistics.digest() if level.statistics.draws else "" for level in run.levels)
    return digest(f"stream {STREAM} seed {settings.seed}", *(level.hash for level in run.levels), *counted)


def _level(level: Level) -> dict[str, Any]:
    return {
        "factor": str(level.scale.factor), "width": max(hidden_widths(level.scale.program)),
        "samples": level.simulator.plan.samples, "program": level.hash,
    }  # fmt: skip


def network_text(network: Network) -> str | None:
    """The network as the text of a graph file; None where that has no words for it."""
    from varflow.load import to_text as written

    try:
        return written(network)
    except (InputError, ExpressionError, ErrorList):
        return None


def value_text(value: Any) -> int | str:
    """A number as a report holds it: whole ones as they are, others as text that is read back exactly."""
    number = exact(value)
    if number is None:
        raise InputError(f"{value!r} is not a number")
    return int(number) if number.is_Integer else to_text(number)


@contextmanager
def keeping(run: Run, path: str | os.PathLike[str] | None, settings: Settings, resume: bool) -> Iterator[None]:
    """Keep the run's draws in a store while the block lasts (None: nowhere). Raises StoreError."""
    if path is None:
        yield
        return
    with opened(os.fspath(path), _identity(run, settings), resume) as store:
        worker = Worker()
        run.keeping = Keeping(store, worker)
        try:
            yield
        finally:
            worker.close()


def _identity(run: Run, settings: Settings) -> dict[str, Any]:
    """What has to be the same for draws to be used again."""
    levels = {f"width times {level.scale.factor}": _level(level) for level in run.levels}
    return {
        "network": settings.derivation.network.name,
        "values": {name: value_text(value) for name, value in settings.values.items()},
        "seed": settings.seed, "backend": settings.backend, "stream version": STREAM, "versions": arithmetic(),
        "widths": [level["width"] for level in levels.values()], "program": levels,
    }  # fmt: skip
