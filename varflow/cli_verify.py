"""``varflow verify`` and ``varflow export``: simulation with progress on stderr, documents on disk."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from varflow import cli_interrupt
from varflow.cli_print import SCHEMA, Cell, emit, emit_json, hint, json_text, printable, table
from varflow.cli_sheet import Table
from varflow.cli_status import DONE, INTERRUPTED, OF_VERDICT
from varflow.cli_subject import Subject
from varflow.errors import InputError
from varflow.verify import verify
from varflow.verify_check import Check
from varflow.verify_options import check_options
from varflow.verify_report import Progress, Verification


@dataclass(frozen=True)
class Options:
    """What a verification is asked for; see :func:`varflow.verify.verify`."""

    draws: int | None = None
    max_draws: int | None = None
    seed: int = 0
    delta: float = 0.02
    precision: float | None = None
    threads: int | None = None
    method: str = "auto"
    max_time: float | None = None
    store: Path | None = None
    resume: bool = False
    backend: str = "cpu"
    output: Path | None = None

    def arguments(self) -> dict[str, Any]:
        """Those of `varflow.verify.verify`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "output"}


class Line:
    """A line of progress on stderr: rewritten in place on a terminal, a new one after ever longer times elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.next = 0.0 if self.terminal else 2.0
        self.draws = self.planned = 0

    def __call__(self, p: Progress) -> None:
        self.draws, self.planned = p.draws, p.planned
        if p.elapsed < self.next:
            return
        text = f"{p.draws} of {p.planned} draws, widest interval +-{100 * p.widest:.2g} %, {p.remaining:.0f} s left"
        if self.terminal:
            self.next = p.elapsed + 0.25
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            self.next = min(2 * p.elapsed, p.elapsed + 60)
            hint(text)

    def close(self) -> None:
        """Clear the line."""
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def verified(subject: Subject, o: Options) -> Verification:
    """The verification, with its progress on stderr. Raises InputError where symbols have no value."""
    subject.require_values()
    line = Line()
    try:
        return verify(subject.result, dict(subject.values), **o.arguments(), progress=line)
    except (KeyboardInterrupt, SystemExit):
        line.close()
        kept = f"{line.draws} of {line.planned} draws are kept" if o.store else "interrupted"
        cli_interrupt.say(kept if line.draws else "interrupted before the first draw")
        raise
    finally:
        line.close()


def status(result: Verification) -> int:
    """The exit status of a verification."""
    if result.interrupted:
        cli_interrupt.say("interrupted: the report covers the draws made until then")
        return INTERRUPTED
    return OF_VERDICT[result.verdict]


def check(options: Options, plan: bool) -> None:
    """Raise InputError, before anything is derived, for options that have no meaning or cannot be met."""
    check_options(**options.arguments())
    if plan and (options.output is not None or options.store is not None):
        raise InputError("--plan draws nothing: there is nothing for a report or a store",
                         instead="--plan --json > plan.json, or verify without --plan")
    if options.output is not None:
        _require_writable(options.output)


def run(subject: Subject, options: Options, json: bool) -> int:
    """Verify, print the report (and write it), return the exit status."""
    from varflow.cli_report import document

    result = verified(subject, options)
    if json:
        emit_json(document(subject, result))
    else:
        emit(*report(result))
    if options.output is not None:
        options.output.write_text(json_text(document(subject, result)) + "\n", encoding="utf-8", newline="\n")
        hint(f"the report is in {options.output}")
    return status(result)


def _require_writable(path: Path) -> None:
    """Raise InputError, before hours of drawing, where a report cannot be written."""
    if path.suffix.lower() != ".json":
        raise InputError(f"the suffix {path.suffix!r} is not that of a report", str(path),
                         instead="-o report.json, or varflow export --verify for a document")
    if path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise InputError("the report cannot be written there", str(path), instead="a file in an existing folder")


def plan(subject: Subject, options: Options, json: bool) -> int:
    """Print how the simulation would be made, with its costs; return the exit status."""
    from varflow.verify import plan as planned

    subject.require_values()
    choices = planned(subject.result, dict(subject.values), options.method)
    if json:
        emit_json({"schema": SCHEMA, "network": subject.derivation.network.name, "plan": choices.to_dict()})
    else:
        emit(choices.text())
    return DONE


def report(r: Verification) -> list[Table | str]:
    """A table of all checks, and what they say together."""
    rows = [_row(name, direction, check) for name, pair in r.nodes.items() for direction, check in pair.items()]
    columns = ["node", "", "predicted", "estimate", "interval", "verdict", "exactness", ""]
    widths = ", ".join(map(str, r.widths))
    closing = (f"{r.verdict}: {len(rows)} checks, {r.draws} draws, seed {r.seed}, widths {widths}, tolerance "
               f"{100 * r.delta:g} %, intervals hold together with {100 * r.confidence:g} %, {r.seconds:.1f} s")
    power = (f"a formula off by {200 * r.delta:g} % is rejected by the same data in {100 * r.rejected:.0f} % of the "
             f"checks; power at least {100 * r.power:.1f} %")
    reached = [r.reached_statement] if r.reached_statement else []
    return [table(columns, rows, r.network), closing, power, *reached, *map(printable, r.notes)]


def _row(name: str, direction: str, c: Check) -> list[Cell]:
    needed = f"about {c.draws_needed} draws needed" if c.draws_needed else ""
    interval = f"{c.ci[0]:.6g} to {c.ci[1]:.6g}"
    return [name, direction, c.predicted, c.estimate, interval, c.verdict, c.exactness,
            "; ".join(filter(None, (c.note, needed)))]


def export(subject: Subject, output: Path | None, check: bool, json: bool) -> int:
    """Write the document, print its path, return the exit status (of the verification, if there is one)."""
    from varflow.export import check_target
    from varflow.export import export as write

    target = output or Path(file_name(subject.derivation.network.name) + ".tex")
    check_target(target)
    result = verified(subject, Options()) if check else None
    path = write(subject.result, target, verification=result)
    if json:
        emit_json({"schema": SCHEMA, "network": subject.derivation.network.name, "path": str(path),
                   "verdict": result and result.verdict})
    else:
        emit(str(path))
    return status(result) if result else DONE


def file_name(network: str) -> str:
    """A network's name as that of a file."""
    words: Iterable[str] = re.findall(r"\w+", network)
    return "-".join(words)[:100] or "network"
