"""What a verification found: checks, verdict and power, as text, JSON and HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from varflow.verify_check import PASS, Check

Key = tuple[str, str]
"""(direction, node)."""


@dataclass(frozen=True)
class Progress:
    """How far a verification is: draws made and planned, the widest relative half-width of an interval and what
    is asked of it (None: nothing), seconds since the start and seconds probably left. ``widest`` judges every node
    anew when it is first read."""

    draws: int
    planned: int
    find_widest: Callable[[], float] = field(compare=False, repr=False)
    precision: float | None
    elapsed: float
    remaining: float

    @cached_property
    def widest(self) -> float:
        """The widest relative half-width of an interval over the draws made until then."""
        return self.find_widest()


@dataclass(frozen=True)
class Verification:
    """What was found: ``nodes[name]["forward" | "backward"]`` is a Check.

    ``verdict`` is that of the weakest check; ``power`` the least probability, over checks, that these draws
    refute a formula off by 2 delta, ``rejected`` the share of checks in which they do. ``widths`` are the widest
    hidden channel counts simulated, ``hash`` is one of all simulated numbers, ``record`` what it takes to make
    them again (see `varflow.replay`).
    """

    network: str
    nodes: Mapping[str, Mapping[str, Check]]
    verdict: str
    delta: float
    confidence: float
    power: float
    rejected: float
    draws: int
    seed: int
    samples: int
    widths: tuple[int, ...]
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    seconds: float = field(default=0.0, compare=False)
    hash: str = ""
    record: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def checks(self) -> dict[Key, Check]:
        """All checks by (direction, node)."""
        return {(d, n): c for n, found in self.nodes.items() for d, c in found.items()}

    @property
    def reached(self) -> float:
        """The tolerance with which every check would pass on these draws: all predictions are within it together, at
        the stated confidence. inf where some check has no interval that tells."""
        return max((_distance(c) for c in self.checks.values()), default=math.inf)

    @property
    def reached_statement(self) -> str:
        """The tolerance reached, in a sentence; empty where there is none."""
        if not math.isfinite(self.reached):
            return ""
        return f"Every check would pass with a tolerance of {100 * self.reached:.2g} %."

    @property
    def power_statement(self) -> str:
        """What the data can tell apart, in a sentence."""
        return (
            f"A formula off by {200 * self.delta:g} % is rejected by the same data in "
            f"{100 * self.rejected:.4g} % of the checks; the least probability of that is {self.power:.3g}."
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON document: numbers that are not finite are null."""
        nodes = {
            name: {direction: check_document(check) for direction, check in found.items()}
            for name, found in self.nodes.items()
        }
        return {
            "schema": 1, "network": self.network, "verdict": self.verdict, "delta": self.delta,
            "confidence": self.confidence, "reached": _finite(self.reached), "power": self.power,
            "rejected": self.rejected, "draws": self.draws,
            "seed": self.seed, "samples": self.samples, "widths": list(self.widths), "notes": list(self.notes),
            "interrupted": self.interrupted, "hash": self.hash, "run": dict(self.record), "nodes": nodes,
        }  # fmt: skip

    def summary(self) -> str:
        """Plain text: the setting, one line a check, the verdict and its power."""
        head = (
            f"{self.network}: {self.verdict} (tolerance {100 * self.delta:g} %, simultaneous "
            f"{100 * self.confidence:g} % intervals, {self.draws} draws of {self.samples} samples, "
            f"widths {', '.join(map(str, self.widths))}, seed {self.seed})"
        )
        rows = [f"  {name} {d}: {_line(check)}" for (d, name), check in self.checks.items()]
        reached = [self.reached_statement] if self.reached_statement else []
        return "\n".join([head, *rows, self.power_statement, *reached, *self.notes])

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{d}</td><td>{c.predicted:.5g}</td><td>{c.estimate:.5g}</td>"
            f"<td>{c.ci[0]:.5g} to {c.ci[1]:.5g}</td><td>{c.verdict}</td><td>{escape(c.note)}</td></tr>"
            for (d, name), c in self.checks.items()
        )
        head = "".join(
            f"<th>{h}</th>"
            for h in ("node", "direction", "predicted", "estimate", "interval", "verdict", "note")
        )
        words = f"{escape(self.network)}: {self.verdict}. {escape(self.power_statement)}"
        return f"<table><caption>{words}</caption><tr>{head}</tr>{rows}</table>"


def check_document(check: Check) -> dict[str, Any]:
    """One check for JSON."""
    return {
        "predicted": _finite(check.predicted), "estimate": _finite(check.estimate),
        "ci": [_finite(check.ci[0]), _finite(check.ci[1])], "verdict": check.verdict,
        "exactness": check.exactness, "draws": check.draws, "draws_needed": check.draws_needed,
        "power": check.power, "rejects": check.rejects, "note": check.note,
    }  # fmt: skip


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _distance(check: Check) -> float:
    """How far the farther end of a check's interval is from its prediction, as a share of it."""
    if check.predicted == 0:
        return 0.0 if check.verdict == PASS else math.inf
    if check.verdict != PASS and (check.power or 0.0) == 0.0 and check.rejects is not None and check.note:
        return math.inf
    farthest = max(abs(end - check.predicted) for end in check.ci)
    return farthest / abs(check.predicted) if math.isfinite(farthest) else math.inf


def _line(c: Check) -> str:
    text = f"{c.verdict}, predicted {c.predicted:.5g}, estimate {c.estimate:.5g} [{c.ci[0]:.5g}, {c.ci[1]:.5g}]"
    needed = f" (about {c.draws_needed} draws would tell)" if c.draws_needed else ""
    return text + needed + (f"; {c.note}" if c.note else "")
