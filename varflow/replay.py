"""replay: the run behind a report, made again, and whether its numbers are the same."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import sympy as sp
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from varflow.derive import derive
from varflow.errors import InputError, VarflowError, require_path
from varflow.expressions import parse
from varflow.simulate.backends import check_backend
from varflow.simulate.stream import STREAM, arithmetic, digest
from varflow.verify import prepared, verification
from varflow.verify_record import Settings, run_hash
from varflow.verify_report import check_document
from varflow.verify_run import Level, Run

CLOSE = 1e-9
"""Relative difference up to which numbers of formulas, which are rounded in other orders elsewhere, are the same."""


OPTIONAL = {"confidence", "reached", "rejected", "samples", "draws_needed", "power", "rejects", "note"}
"""Fields that not every kind of report has."""
WHOLE = (
    "network", "verdict", "delta", "confidence", "reached", "power", "rejected", "draws", "seed", "samples", "widths",
)  # fmt: skip
"""Fields of a report beside its nodes that follow from the run."""


class ReplayError(VarflowError):
    """A report that cannot be replayed here."""


class _LevelRecord(BaseModel):
    model_config = ConfigDict(strict=True)
    factor: str
    width: int
    samples: int
    program: str
    draws: int = Field(ge=0)


class _Record(BaseModel):
    """The "run" of a report; see `varflow.verify_record.record`."""

    model_config = ConfigDict(strict=True)
    stream: int
    network: str | None
    network_hash: str | None
    values: dict[str, int | str]
    seed: int
    backend: str
    method: str
    width_scale: list[str] | None
    delta: float = Field(gt=0, lt=0.5)
    confidence: float = Field(gt=0, lt=1)
    error_probability: float = Field(gt=0, lt=1)
    levels: list[_LevelRecord]
    versions: dict[str, str]


@dataclass(frozen=True)
class Replay:
    """``same``: the hash of the simulated numbers, and every number of the report, is what it was. ``differences``
    are those that are not, ``notes`` what may explain them."""

    same: bool
    network: str
    hash: str
    expected: str
    differences: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": 1, "network": self.network, "same": self.same, "hash": self.hash, "expected": self.expected,
            "differences": list(self.differences), "notes": list(self.notes),
        }  # fmt: skip


def replay(report: Mapping[str, Any] | str | os.PathLike[str], threads: int | None = None) -> Replay:
    """Make the run of a report again: of ``Verification.to_dict()``, ``varflow verify --json``, or a file of either.

    Raises InputError for what is no report, ReplayError where the random numbers of this version, or its reading of
    the network, are others than the report's.
    """
    document = report if isinstance(report, Mapping) else read_report(report)
    found = _record(document)
    _require_same_stream(found)
    run, settings = _made_again(found, threads)
    for level, recorded in zip(run.levels, found.levels, strict=True):
        if recorded.draws:
            level.statistics.merge(level.simulator.run(recorded.draws, level.first))
    here, expected = run_hash(run, settings), str(document.get("hash", ""))
    differences = tuple(_differences(document, run, found, settings))
    if here != expected:
        differences = (f"hash of the simulated numbers: {expected or 'none'} there, {here} here", *differences)
    return Replay(not differences, str(document.get("network", "")), here, expected, differences,
                  tuple(_other_versions(found)) if differences else ())


def read_report(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The document of a file. Raises InputError."""
    require_path(path, "the report", "the path of what `varflow verify --json` printed")
    where = os.fspath(path)
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("the report cannot be read", where, error.strerror or "") from None
    except (ValueError, RecursionError):
        raise InputError("the report is not JSON", where, instead="what `varflow verify --json` prints") from None
    if not isinstance(document, dict):
        raise InputError("the report is not a JSON object", where, instead="what `varflow verify --json` prints")
    return document


def _record(document: Mapping[str, Any]) -> _Record:
    try:
        return _Record.model_validate(document.get("run"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("run", *first["loc"])))
        raise InputError("the report does not say how to make its numbers again", place, first["msg"],
                         "what `varflow verify --json`, or Verification.to_dict(), gives") from None


def _require_same_stream(found: _Record) -> None:
    if found.stream != STREAM:
        made_by = found.versions.get("varflow", "another version")
        raise ReplayError(
            f"the report's stream version is {found.stream}, and this version of varflow draws stream {STREAM}",
            why="the same seed gives other random numbers", instead=f"varflow {made_by}, which made the report",
        )


def _made_again(found: _Record, threads: int | None) -> tuple[Run, Settings]:
    """The run without its draws. Raises ReplayError where it is not the recorded one."""
    from varflow.load import from_text

    if found.network is None:
        raise ReplayError("the report has no network", why="a graph file could not say it")
    if digest(found.network) != found.network_hash:
        raise ReplayError("the network in the report is not the one that was verified", "run.network",
                          "its hash is another")
    values = {name: _number(name, value) for name, value in found.values.items()}
    derivation = derive(from_text(found.network, "run.network"))
    check_backend(found.backend)
    options = {"seed": found.seed, "method": found.method, "threads": threads, "backend": found.backend}
    scales = None if found.width_scale is None else [_multiple(f) for f in found.width_scale]
    run, _ = prepared(derivation, values, found.delta, scales, options)
    _require_same_programs(run.levels, found.levels)
    return run, Settings(derivation, values, found.seed, found.backend, found.method, scales, found.confidence)


def _require_same_programs(levels: list[Level], recorded: list[_LevelRecord]) -> None:
    here = [(str(level.scale.factor), level.simulator.plan.samples, level.hash) for level in levels]
    if here != [(r.factor, r.samples, r.program) for r in recorded]:
        raise ReplayError("the network of the report becomes another program here", "run.levels",
                          "this version of varflow lowers or plans it in another way", "the version that made it")


def _number(name: str, value: int | str) -> sp.Expr:
    expr = sp.Integer(value) if isinstance(value, int) else parse(value, lambda _: None, where=f"run.values.{name}")
    if not expr.is_number or not expr.is_real:
        raise InputError(f"{value!r} is not a number", f"run.values.{name}")
    return expr


def _multiple(text: str) -> float:
    try:
        found = float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        found = 0.0
    if not 0 < found < math.inf:
        raise InputError(f"{text!r} is no multiple of a width", "run.width_scale")
    return found


def _differences(document: Mapping[str, Any], run: Run, found: _Record, settings: Settings) -> Iterator[str]:
    """Numbers and verdicts of the report that are others now."""
    nodes, checks = document.get("nodes"), run.checks(found.error_probability)
    nodes = nodes if isinstance(nodes, Mapping) else {}
    again = verification(settings.derivation, run, checks, found.confidence, found.seed).to_dict()
    for field in WHOLE:
        if _differs(document, field, again[field]):
            yield f"{field}: {document.get(field)} there, {again[field]} here"
    for name in nodes:
        if name not in again["nodes"]:
            yield f"{name}: not in the network"
    for (direction, name), check in checks.items():
        there = nodes.get(name, {}).get(direction) if isinstance(nodes.get(name, {}), Mapping) else None
        if not isinstance(there, Mapping):
            yield f"{name} {direction}: not in the report"
            continue
        for field, value in check_document(check).items():
            if _differs(there, field, value):
                yield f"{name} {direction} {field}: {there.get(field)} there, {value} here"


def _differs(there: Mapping[str, Any], field: str, value: Any) -> bool:
    return (field not in there and field not in OPTIONAL) or (field in there and not _same(there[field], value))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) or isinstance(b, float):
        numbers = all(isinstance(x, (int, float)) for x in (a, b))
        return numbers and math.isclose(a, b, rel_tol=CLOSE, abs_tol=1e-300)
    return bool(a == b)


def _other_versions(found: _Record) -> Iterator[str]:
    here = arithmetic()
    for name, version in found.versions.items():
        if here.get(name) != version:
            what = "the simulation's code is not the same" if name == "code" else (
                f"{name}: {version} there, {here.get(name)} here")
            yield f"{what}; numbers may be rounded in another way"
