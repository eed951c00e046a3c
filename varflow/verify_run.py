"""The draws behind a verification: every width, when to look at what was drawn, when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from varflow.program import Program
from varflow.simulate.backends import simulator
from varflow.simulate.statistics import Statistics
from varflow.simulate.stream import digest, plan_hash, program_hash
from varflow.verify_check import FAIL, INCONCLUSIVE, PASS, Check, Judge, Prediction, Reading
from varflow.verify_report import Key, Progress
from varflow.verify_signals import Worker, unbroken
from varflow.verify_store import Store
from varflow.verify_widths import Scaled

FIRST_DRAW = 1 << 40
"""Widths draw from disjoint ranges of draw numbers, so that their errors are independent."""
ROUND, FIRST_ROUND, MOST_ROUND = 64, 16, 4096
LEAST_PIECE, PIECE_TIME, ROUND_TIME = 4, 0.25, 1.0
"""Draws of the first piece that is drawn without a break; about how many seconds later ones take, and rounds of all
widths."""
CHEAP = 1.5
"""How many times as long twice the draws may take to be worth it, where a piece takes its time already."""
MARGIN = 1.25
"""Draws asked for over those that the last look thinks are needed: the next interval must hold over more looks."""


@dataclass
class Pace:
    """How many draws to make in one go: as many as take about ``seconds``, or more where most of the time goes into
    beginning (programs of many small steps)."""

    count: int
    seconds: float
    least: int
    most: int
    took: dict[int, float] = field(default_factory=dict)

    def after(self, took: float) -> None:
        """Go on from ``count`` draws that took so many seconds."""
        self.took[self.count] = took
        half, double = self.took.get(self.count // 2), self.took.get(2 * self.count)
        longer = double < CHEAP * took if double else half is None or took < CHEAP * half
        if took < self.seconds / 2 or longer:
            self.count = min(self.most, 2 * self.count)
        elif took > 2 * self.seconds and (half is None or took >= CHEAP * half):
            self.count = max(self.least, self.count // 2)


class Level:
    """One width: its predictions, its simulator, and the statistics so far; ``share`` draws for each one of the
    verification."""

    def __init__(
        self, place: int, scale: Scaled, share: float, predicted: Mapping[Key, Prediction], nodes: Sequence[str],
        options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.place, self.scale, self.share, self.predicted = place, scale, share, predicted
        self.first = place * FIRST_DRAW
        self.pace = Pace(LEAST_PIECE, PIECE_TIME, LEAST_PIECE, MOST_ROUND)
        self.simulator = simulator(scale.program, nodes=nodes, **options)
        self.statistics = Statistics(self.simulator.plan.columns)

    @cached_property
    def hash(self) -> str:
        """A hash of what is simulated: the program, the samples of a draw, what is collapsed."""
        return digest(program_hash(self.scale.program), plan_hash(self.simulator.plan))

    @property
    def next(self) -> int:
        """The number of the next draw: always those from ``first`` on, without a gap."""
        return self.first + self.statistics.draws

    def stop(self, total: int) -> int:
        """The number behind the last draw that ``total`` draws of the verification ask of this width."""
        return self.first + math.ceil(total * self.share)

    def recall(self, total: int, store: Store) -> None:
        """Take in what a store has of ``total`` draws."""
        while (piece := store.find(self.place, self.next, self.stop(total))) is not None:
            with unbroken():
                self.statistics.add_piece(*piece)

    def advance(self, total: int, late: Callable[[], bool], keeping: Keeping | None = None) -> None:
        """Draw what ``total`` draws of the verification ask of this width, piece by piece, until it is late."""
        stop = self.stop(total)
        while self.next < stop and not (self.statistics.draws and late()):
            if keeping is not None:
                self.recall(total, keeping.store)
            if self.next < stop:
                self._draw(stop, keeping)

    def _draw(self, stop: int, keeping: Keeping | None) -> None:
        first, count, start = self.next, min(self.pace.count, stop - self.next), time.monotonic()
        if keeping is None:
            drawn = self.simulator.run(count, first)
        else:
            count = min(count, keeping.store.gap(self.place, first, stop))
            drawn = keeping.worker.call(self.simulator.run, count, first)
        with unbroken():
            self.statistics.merge(drawn)
            if keeping is not None:
                keeping.store.keep(self.place, drawn)
        if count == self.pace.count:
            self.pace.after(time.monotonic() - start)


class Keeping(NamedTuple):
    """Where draws are kept, and the thread that makes them."""

    store: Store
    worker: Worker


@dataclass
class Run:
    """All widths, and the verdicts over what has been drawn."""

    levels: list[Level]
    predicted: Mapping[Key, Prediction]
    delta: float
    single_width: bool
    keeping: Keeping | None = None

    @property
    def draws(self) -> int:
        return min(level.statistics.draws for level in self.levels)

    @property
    def counts(self) -> list[int]:
        """Draws of every width."""
        return [level.statistics.draws for level in self.levels]

    def complete(self, total: int) -> bool:
        """Whether every width has what ``total`` draws ask of it: after damage to a store, one may lag behind."""
        return all(level.next >= level.stop(total) for level in self.levels)

    def recall(self, total: int) -> None:
        """Take in what the store, if there is one, has of ``total`` draws."""
        for level in self.levels:
            if self.keeping is not None:
                level.recall(total, self.keeping.store)

    def advance(self, total: int, late: Callable[[], bool] = lambda: False) -> None:
        """Draw until there are ``total`` draws, or it is late; one piece of every width at least."""
        for level in self.levels:
            level.advance(total, late, self.keeping)

    def checks(self, alpha: float) -> dict[Key, Check]:
        """Every check at simultaneous error probability ``alpha``."""
        return self.looked()(alpha)

    def looked(self) -> Callable[[float], dict[Key, Check]]:
        """The checks of what has been drawn until now, for the error probability that it is called with, later too."""
        now = [level.statistics.copy() for level in self.levels]
        some = bool(self.draws)
        return lambda alpha: self._judged(alpha, [s.summaries() if some else {} for s in now])

    def _judged(self, alpha: float, summaries: Sequence[Mapping[Key, Any]]) -> dict[Key, Check]:
        judge = Judge(self.delta, alpha / max(1, len(self.predicted)))
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
        known = p.value == 0 or all(r.predicted and math.isfinite(r.predicted) for r in readings)
        if not limit or not known:
            readings = [r for r in readings if r.factor == 1]
        if p.value == 0 and summaries[-1]:
            zeros = {k for k, other in self.predicted.items() if other.value == 0}
            sizes = [summaries[-1][k].second_moment for k in entering(self.levels[-1].scale.program, key, zeros)
                     if k in summaries[-1]]
            p = replace(p, scale=max(sizes, default=1.0))
        check = judge.check(p, readings)
        if limit and self.single_width and check.verdict == FAIL:
            note = "outside the tolerance at this one width, which a limit does not exclude"
            return replace(check, verdict=INCONCLUSIVE, note=note)
        return check


def entering(program: Program, key: Key, zeros: Collection[Key] = ()) -> list[Key]:
    """The nearest nodes that a value, or a gradient, is made of, but those that are ``zeros`` themselves."""
    tables = {"forward": program.values, "backward": program.gradients}
    nodes = {value: (direction, name) for direction, table in tables.items() for name, value in table.items()}
    start = tables[key[0]][key[1]]
    backward, found = program.instructions[start].backward, dict[Key, None]()
    stack, seen = list(program.instructions[start].args), set[int]()
    while stack:
        value = stack.pop()
        step = program.instructions[value]
        if value in seen or step.backward != backward:
            continue
        seen.add(value)
        if value in nodes and nodes[value] not in zeros:
            found[nodes[value]] = None
        else:
            stack += step.args
    return list(found)


def _given(summaries: Mapping[Key, Any], key: Key) -> Any:
    """The summary of a product averaged over its weight, where there is one."""
    direction, name = key
    return summaries.get(("given", name)) if direction == "forward" else None


def _without_gradient(p: Prediction, draws: int) -> Check:
    verdict = PASS if p.value == 0 else FAIL
    return Check(p.value, 0.0, (0.0, 0.0), verdict, p.exactness, draws, "no gradient reaches it")


@dataclass
class Clock:
    """When to stop, and what the caller hears of it. ``kept``: draws are kept in a store, to which more may be added
    at any later time, so that there is no last look."""

    delta: float
    alpha: float
    precision: float | None
    first: int
    most: int
    max_time: float | None
    progress: Callable[[Progress], None] | None
    start: float = field(default_factory=time.monotonic)
    look: int = 0
    kept: bool = False

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    @property
    def late(self) -> bool:
        return self.max_time is not None and self.elapsed > self.max_time

    def spent(self) -> float:
        """The error probability of the current look: alpha, or with repeated looks a share of a convergent sum."""
        once = self.precision is None and self.most <= self.first and not self.kept
        return self.alpha if once else self.alpha / (self.look * (self.look + 1))

    def wanted(self, draws: int, checks: Mapping[Key, Check]) -> int:
        """How many draws the next look should be at; no more than ``draws``, which there are, to stop."""
        if self.precision is None:
            undecided = [c.draws_needed or 0 for c in checks.values() if c.verdict == INCONCLUSIVE]
            growth = max(undecided, default=0) / draws
        else:
            widest = _widest(checks)
            growth = 0.0 if widest <= self.precision else (widest / self.precision) ** 2
            growth = growth if all(c.supported for c in checks.values()) else max(growth, MARGIN)
        if not growth or draws >= self.most or self.late:
            return draws
        planned = math.ceil(draws * min(max(growth * MARGIN, MARGIN), 4.0) / ROUND) * ROUND
        return min(self.most, planned)

    def tell(self, run: Run, planned: int, per_draw: float) -> None:
        if self.progress is not None:
            look, alpha = run.looked(), self.alpha
            left = per_draw * max(planned - run.draws, 0)
            self.progress(
                Progress(run.draws, planned, lambda: _widest(look(alpha)), self.precision, self.elapsed, left)
            )


def _widest(checks: Mapping[Key, Check]) -> float:
    widths = [c.relative_width for c in checks.values() if c.predicted and math.isfinite(c.predicted)]
    return max(widths, default=0.0)


def _draw(run: Run, clock: Clock, planned: int) -> None:
    """Draw in rounds of about a second until ``planned`` draws or the time is up."""
    run.recall(planned)
    size = Pace(FIRST_ROUND, ROUND_TIME, FIRST_ROUND, MOST_ROUND)
    while not run.complete(planned) and not (run.draws and clock.late):
        before, done = clock.elapsed, run.draws
        run.advance(min(done + size.count, planned), lambda: clock.late)
        took = clock.elapsed - before
        if run.draws - done == size.count:
            size.after(took)
        clock.tell(run, planned, took / max(run.draws - done, 1))


def until_settled(run: Run, clock: Clock) -> dict[Key, Check]:
    """Look, and draw more until nothing more is wanted; the intervals hold over all looks together."""
    planned = min(clock.first, clock.most)
    while True:
        clock.look += 1
        _draw(run, clock, planned)
        if run.keeping is not None:
            clock.look = run.keeping.store.look(run.counts)
        checks = run.checks(clock.spent())
        planned = clock.wanted(run.draws, checks)
        if planned <= run.draws:
            return checks
