"""A verification as rows of a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from varflow.derive import Derivation
from varflow.export.document import CheckRow, Report

MAX_ROWS = 60
VERDICTS = ("pass", "inconclusive", "fail")


@runtime_checkable
class CheckLike(Protocol):
    """What is read of one check; ``ci`` is (low, high)."""

    @property
    def predicted(self) -> float: ...
    @property
    def estimate(self) -> float: ...
    @property
    def ci(self) -> Sequence[float]: ...
    @property
    def verdict(self) -> str: ...


@runtime_checkable
class VerificationLike(Protocol):
    """What is read of a verification: checks by node and direction, and the overall result."""

    @property
    def nodes(self) -> Mapping[str, Mapping[str, Any]]: ...
    @property
    def verdict(self) -> str: ...
    @property
    def delta(self) -> float: ...


def report(verification: VerificationLike, derivation: Derivation) -> Report:
    """The table of a verification; of a long one, the rows that failed or are farthest from the prediction."""
    checks = list(_checks(verification))
    shown = checks if len(checks) <= MAX_ROWS else _worst(checks)
    counts = Counter(check.verdict for _, _, check in checks)
    words = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])
    needed = [n for _, _, c in checks if c.verdict == "inconclusive" and (n := getattr(c, "draws_needed", None))]
    words += f"; about {max(needed)} draws would decide all" if needed else ""
    return Report(tuple(_row(*c, derivation) for c in shown), len(checks) - len(shown), verification.verdict, words,
                  _setting(verification), _power(verification))


def _checks(verification: VerificationLike) -> Iterator[tuple[str, str, CheckLike]]:
    for direction in ("forward", "backward"):
        for node, found in verification.nodes.items():
            if found.get(direction) is not None:
                yield node, direction, found[direction]


def _worst(checks: list[tuple[str, str, CheckLike]]) -> list[tuple[str, str, CheckLike]]:
    def rank(entry: tuple[int, tuple[str, str, CheckLike]]) -> tuple[int, float]:
        check = entry[1][2]
        off = abs(check.estimate - check.predicted) / abs(check.predicted) if check.predicted else math.inf
        return VERDICTS.index(check.verdict) if check.verdict in VERDICTS else 3, off

    kept = sorted(enumerate(checks), key=rank, reverse=True)[:MAX_ROWS]
    return [c for _, c in sorted(kept, key=lambda e: e[0])]


def _row(node: str, direction: str, check: CheckLike, derivation: Derivation) -> CheckRow:
    exactness = getattr(check, "exactness", "")
    if not exactness and node in derivation:
        law = derivation[node]
        exactness = law.exactness if direction == "forward" else law.grad_exactness
    low, high = check.ci
    return CheckRow(node, direction, number(check.predicted), number(check.estimate),
                    f"[{number(low)}, {number(high)}]", check.verdict, exactness, str(getattr(check, "note", "") or ""))


def number(value: float | None) -> str:
    """A float with five digits."""
    return "" if value is None else f"{value:.5g}"


def _setting(v: VerificationLike) -> str:
    parts = [f"tolerance {100 * v.delta:g} %"]
    confidence = getattr(v, "confidence", None)
    if confidence:
        parts.append(f"simultaneous {100 * confidence:g} % intervals over all rows")
    for field, word in (("draws", "draws"), ("seed", "seed")):
        value = getattr(v, field, None)
        if value is not None:
            parts.append(f"{value} {word}" if field == "draws" else f"{word} {value}")
    widths = getattr(v, "widths", None)
    if widths:
        parts.append("widths " + ", ".join(map(str, widths)))
    return "; ".join(parts)


def _power(v: VerificationLike) -> str:
    power = getattr(v, "power", None)
    if power is None:
        return ""
    if isinstance(power, str):
        return power
    return f"The same data reject a formula that is off by {200 * v.delta:g} % with probability {power:.4g}."
