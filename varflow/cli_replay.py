"""``varflow replay``: a report's run made again, and what differs."""

from __future__ import annotations

from varflow.cli_print import emit, emit_json, printable
from varflow.cli_status import DONE, FAILED
from varflow.replay import replay


def run(report: str, threads: int | None, json: bool) -> int:
    """Replay, say whether the numbers are the same, return the exit status."""
    found = replay(report, threads)
    if json:
        emit_json(found.to_dict())
    elif found.same:
        emit(f"{printable(found.network)}: the same numbers, hash {found.hash}")
    else:
        head = f"{printable(found.network)}: not the same numbers"
        emit(head, *(printable(f"  {line}") for line in (*found.differences, *found.notes)))
    return DONE if found.same else FAILED
