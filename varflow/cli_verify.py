"""``varflow verify`` and ``varflow export``: simulation with progress on stderr, documents on disk."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varflow.cli import FAILED, INCONCLUSIVE, INTERRUPTED
from varflow.cli_print import SCHEMA, Cell, emit, emit_json, hint, table
from varflow.cli_report import document
from varflow.cli_subject import Subject

if TYPE_CHECKING:
    from varflow.verify import Verification

STATUS = {"pass": 0, "fail": FAILED, "inconclusive": INCONCLUSIVE}


@dataclass(frozen=True)
class Options:
    """What a verification is asked for; see :func:`varflow.verify.verify`."""

    draws: int = 2000
    max_draws: int | None = None
    seed: int = 0
    delta: float = 0.02
    precision: float | None = None
    threads: int | None = None
    method: str = "auto"


def run(subject: Subject, options: Options, json: bool) -> int:
    """Verify, print the report, return the exit status."""
    result = verified(subject, options)
    if json:
        emit_json(document(subject, result))
    else:
        emit(*report(result))
    return STATUS[result.verdict]
