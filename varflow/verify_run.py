"""The draws behind a verification: every width, when to look at what was drawn, when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from varflow.simulate.cpu import Simulator, Statistics
from varflow.verify_check import FAIL, INCONCLUSIVE, PASS, Check, Judge, Prediction, Reading
from varflow.verify_report import Key, Progress
from varflow.verify_widths import Scaled

FIRST_DRAW = 1 << 40
"""Widths draw from disjoint ranges of draw numbers, so that their errors are independent."""
ROUND = 64
MOST_ROUND = 4096
MARGIN = 1.25
"""Draws asked for over those that the last look thinks are needed: the next interval must hold over more looks."""


class Level:
    """One width: its predictions, its simulator, and the statistics so far; ``share`` draws for each one of the
    verification."""

    def __init__(
        self, place: int, scale: Scaled, share: float, predicted: Mapping[Key, Prediction], nodes: Sequence[str],
        options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.scale, self.share, self.predicted = scale, share, predicted
        self.first = place * FIRST_DRAW
        self.simulator = Simulator(scale.program, nodes=nodes, **options)
        self.statistics = Statistics(self.simulator.plan.columns)

    def advance(self, total: int) -> None:
        """Draw what ``total`` draws of the verification ask of this width."""
        done, wanted = self.statistics.draws, math.ceil(total * self.share)
        if wanted > done:
            self.statistics.merge(self.simulator.run(wanted - done, self.first + done))


@dataclass
class Run:
    """All widths, and the verdicts over what has been drawn."""

    levels: list[Level]
    predicted: Mapping[Key, Prediction]
    delta: float
    single_width: bool

    @property
    def draws(self) -> int:
        return min(level.statistics.draws for level in self.levels)

    def advance(self, total: int) -> None:
        for level in self.levels:
            level.advance(total)

    def checks(self, alpha: float) -> dict[Key, Check]:
        """Every check at simultaneous error probability ``alpha``."""
        judge = Judge(self.delta, alpha / max(1, len(self.predicted)))
        summaries = [level.statistics.summaries() if level.statistics.draws else {} for level in self.levels]
        return {key: self._check(judge, key, p, summaries) for key, p in self.predicted.items()}

    def _check(self, judge: Judge, key: Key, p: Prediction, summaries: Sequence[Mapping[Key, Any]]) -> Check:
        direction, name = key
        if direction == "backward" and name not in self.levels[0].scale.program.gradients:
            return _without_gradient(p, self.draws)
        limit = p.exactness != "exact"
        readings = [
            Reading(float(level.scale.factor), s[key], level.predicted[key].value, _given(s, key))
            for level, s in zip(self.levels, summaries, strict=True)
            if key in s
        ]
        if not limit or not all(r.predicted and math.isfinite(r.predicted) for r in readings):
            readings = [r for r in readings if r.factor == 1]
        check = judge.check(p, readings)
        if limit and self.single_width and check.verdict == FAIL:
            note = "outside the tolerance at this one width, which a limit does not exclude"
            return replace(check, verdict=INCONCLUSIVE, note=note)
        return check


def _given(summaries: Mapping[Key, Any], key: Key) -> Any:
    """The summary of a product averaged over its weight, where there is one."""
    direction, name = key
    return summaries.get(("given", name)) if direction == "forward" else None


def _without_gradient(p: Prediction, draws: int) -> Check:
    verdict = PASS if p.value == 0 else FAIL
    return Check(p.value, 0.0, (0.0, 0.0), verdict, p.exactness, draws, "no gradient reaches it")


@dataclass
class Clock:
    """When to stop, and what the caller hears of it."""

    delta: float
    alpha: float
    precision: float | None
    first: int
    most: int
    max_time: float | None
    progress: Callable[[Progress], None] | None
    start: float = field(default_factory=time.monotonic)
    look: int = 0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    @property
    def late(self) -> bool:
        return self.max_time is not None and self.elapsed > self.max_time

    def spent(self) -> float:
        """The error probability of the current look: alpha, or with repeated looks a share of a convergent sum."""
        once = self.precision is None and self.most <= self.first
        return self.alpha if once else self.alpha / (self.look * (self.look + 1))

    def wanted(self, draws: int, checks: Mapping[Key, Check]) -> int:
        """How many draws the next look should be at; no more than ``draws``, which there are, to stop."""
        if self.precision is None:
            undecided = [c.draws_needed or 0 for c in checks.values() if c.verdict == INCONCLUSIVE]
            growth = max(undecided, default=0) / draws
        else:
            widest = _widest(checks)
            growth = 0.0 if widest <= self.precision else (widest / self.precision) ** 2
        if not growth or draws >= self.most or self.late:
            return draws
        planned = math.ceil(draws * min(max(growth * MARGIN, MARGIN), 4.0) / ROUND) * ROUND
        return min(self.most, planned)

    def tell(self, run: Run, planned: int, per_draw: float) -> None:
        if self.progress is not None:
            widest = _widest(run.checks(self.alpha))
            left = per_draw * max(planned - run.draws, 0)
            self.progress(Progress(run.draws, planned, widest, self.precision, self.elapsed, left))


def _widest(checks: Mapping[Key, Check]) -> float:
    widths = [c.relative_width for c in checks.values() if c.predicted and math.isfinite(c.predicted)]
    return max(widths, default=0.0)


def _draw(run: Run, clock: Clock, planned: int) -> None:
    """Draw in rounds of about a second until ``planned`` draws or the time is up."""
    size = ROUND
    while run.draws < planned and not clock.late:
        before, done = clock.elapsed, run.draws
        run.advance(min(done + size, planned))
        took = clock.elapsed - before
        size = min(MOST_ROUND, size * 2) if took < 0.5 else max(ROUND, size // 2) if took > 2 else size
        clock.tell(run, planned, took / (run.draws - done))


def until_settled(run: Run, clock: Clock) -> dict[Key, Check]:
    """Look, and draw more until nothing more is wanted; the intervals hold over all looks together."""
    planned = min(clock.first, clock.most)
    while True:
        clock.look += 1
        _draw(run, clock, planned)
        checks = run.checks(clock.spent())
        planned = clock.wanted(run.draws, checks)
        if planned <= run.draws:
            return checks
