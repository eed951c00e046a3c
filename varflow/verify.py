"""verify: the formulas of a network against simulation of the network itself, with intervals and verdicts."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import sympy as sp

from varflow.derive import Derivation, derive
from varflow.errors import InputError, MissingExtraError, UnsupportedError
from varflow.laws.moments import Moment, Quantity
from varflow.lowering import lower
from varflow.network import Network
from varflow.program import Program
from varflow.simulate.collapsed import Choices, check_method, choose
from varflow.simulate.cpu import Simulator, Statistics
from varflow.simulate.plan import LARGE_BATCH, samples_of
from varflow.symbols import STEP
from varflow.verify_check import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    Check,
    Judge,
    Prediction,
    Reading,
    limit_draws,
    overall,
)
from varflow.verify_report import Key, Progress, Verification
from varflow.verify_widths import Scaled, hidden_widths, ladder

if TYPE_CHECKING:
    from varflow.evaluate import Numbers
    from varflow.solve import Solution

ENTRIES = 256
FEWEST_SAMPLES, MOST_SAMPLES = 8, 64
FIRST_DRAW = 1 << 40
"""Widths draw from disjoint ranges of draw numbers, so that their errors are independent."""
ROUND = 64
MOST_ROUND = 4096
UNLIMITED = 100
"""With ``precision`` and no ``max_draws``: how many times ``draws`` at most."""
MARGIN = 1.25
"""Draws asked for over those that the last look thinks are needed: the next interval must hold over more looks."""


# -- predictions -------------------------------------------------------------------------------------


def predictions(d: Derivation, values: Mapping[str, Any], nodes: Collection[str]) -> dict[Key, Prediction]:
    """Both directions of the network's ``nodes`` as numbers; those of a block repeated L times are taken at each
    repetition. A node that has no number is "underived", not an error.

    Raises InputError naming symbols without a value.
    """
    found: dict[Key, Prediction] = {}
    inner = [n for n in d.nodes if "[l]" in n]
    steps = 1 + max((_repetition(n) for n in nodes), default=0) if inner else 1
    for step in range(steps):
        numbers = d.numbers({**values, STEP.name: step} if inner else values)
        for name in d.nodes if step == 0 else inner:
            plain = name.replace("[l]", f"[{step}]")
            if plain in nodes:
                found["forward", plain] = _predicted(numbers, name, plain, "forward")
                found["backward", plain] = _predicted(numbers, name, plain, "backward")
    return found


def _repetition(name: str) -> int:
    return max((int(k) for k in re.findall(r"\[(\d+)\]", name)), default=0)


def _predicted(numbers: Numbers, name: str, plain: str, direction: str) -> Prediction:
    law = numbers.derivation[name]
    backward = direction == "backward"
    part, exactness = (law.backward, law.grad_exactness) if backward else (law.forward, law.exactness)
    if part is None:
        return Prediction(0.0)
    if _is_infinite(part.second):
        return Prediction(math.inf, exactness)
    try:
        number = float((numbers.gradient if backward else numbers.second)(name))
    except ZeroDivisionError:
        return Prediction(math.inf, exactness)
    except UnsupportedError:
        return Prediction(math.nan, "underived")
    measured = part.second is None or (isinstance(part.second, Moment) and part.second.tier == "population")
    return Prediction(number, exactness, _population_error(numbers, plain, backward) if measured else 0.0)


def _is_infinite(quantity: Quantity | None) -> bool:
    """Whether a formula divides by zero at the network's own numbers (three samples in a batch norm)."""
    seen: set[Quantity] = set()
    stack = [quantity]
    while stack:
        one = stack.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        expr = one.template if isinstance(one, Moment) else one
        if expr is not None and expr.has(sp.zoo, sp.oo, sp.nan):
            return True
        stack += one.args if isinstance(one, Moment) else ()
    return False


def _population_error(numbers: Numbers, name: str, backward: bool) -> float:
    if numbers.derivation.bodies:
        return _population_error(numbers._unrolled, name, backward)
    program = numbers.derivation.program
    value = (program.gradients if backward else program.values)[name]
    return float(numbers._population.standard_error_second_moment[value])


def samples_for(program: Program, batch: int = LARGE_BATCH) -> int | None:
    """Independent inputs that each draw's network sees; None where a batch norm says how many.

    Drawing the weights is what costs, and more inputs narrow the intervals of narrow nodes: the narrowest gets
    some 256 entries a draw.
    """
    if samples_of(program, batch) is not None:
        return None
    narrowest = min(int(program.shape(v).channels) for v in program.values.values())
    wanted = 1 << math.ceil(math.log2(ENTRIES / narrowest)) if narrowest < ENTRIES else 1
    return min(MOST_SAMPLES, max(FEWEST_SAMPLES, wanted))


# -- the simulation ----------------------------------------------------------------------------------


class _Level:
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
class _Run:
    """All widths, and the verdicts over what has been drawn."""

    levels: list[_Level]
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
            Reading(float(level.scale.factor), s[key], level.predicted[key].value)
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


def _without_gradient(p: Prediction, draws: int) -> Check:
    verdict = PASS if p.value == 0 else FAIL
    return Check(p.value, 0.0, (0.0, 0.0), verdict, p.exactness, draws, "no gradient reaches it")


@dataclass
class _Clock:
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

    def tell(self, run: _Run, planned: int, per_draw: float) -> None:
        if self.progress is not None:
            widest = _widest(run.checks(self.alpha))
            left = per_draw * max(planned - run.draws, 0)
            self.progress(Progress(run.draws, planned, widest, self.precision, self.elapsed, left))


def _widest(checks: Mapping[Key, Check]) -> float:
    widths = [c.relative_width for c in checks.values() if c.predicted and math.isfinite(c.predicted)]
    return max(widths, default=0.0)


def _draw(run: _Run, clock: _Clock, planned: int) -> None:
    """Draw in rounds of about a second until ``planned`` draws or the time is up."""
    size = ROUND
    while run.draws < planned and not clock.late:
        before, done = clock.elapsed, run.draws
        run.advance(min(done + size, planned))
        took = clock.elapsed - before
        size = min(MOST_ROUND, size * 2) if took < 0.5 else max(ROUND, size // 2) if took > 2 else size
        clock.tell(run, planned, took / (run.draws - done))


def _until_settled(run: _Run, clock: _Clock) -> dict[Key, Check]:
    """Look, and draw more until nothing more is wanted; the intervals hold over all looks together."""
    planned = min(clock.first, clock.most)
    while True:
        clock.look += 1
        _draw(run, clock, planned)
        checks = run.checks(clock.spent())
        planned = clock.wanted(run.draws, checks)
        if planned <= run.draws:
            return checks


# -- verify ------------------------------------------------------------------------------------------


def verify(
    subject: Network | Derivation | Solution, values: Mapping[str, Any] | None = None, draws: int = 2000, seed: int = 0,
    *, backend: str = "cpu", method: str = "auto", cluster: str | None = None, delta: float = 0.02,
    confidence: float = 0.99, precision: float | None = None, max_draws: int | None = None,
    max_time: float | None = None, threads: int | None = None, width_scale: Sequence[float] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Verification:  # fmt: skip
    """Test every node's second moment, forward and backward, against ``draws`` independent draws of the network.

    ``values`` are numbers for the network's symbols; unknown scales are solved for by the network's policy. An
    interval is over the variation between draws, and all of them hold together with probability ``confidence``; it
    must lie within ``delta`` of the prediction to pass, outside to fail. An exact law is tested at the stated
    width, a limit at widths n/4, n/2, n (``width_scale``: other multiples) extrapolated as a + b/n; narrow networks,
    which cost less, get up to four times the draws. With ``max_draws`` it goes on up to there until every check that
    more draws can decide is decided; with ``precision``, until every half-width is at most that share of its
    prediction; never longer than ``max_time`` seconds. ``progress`` is called about every second. An interrupt
    (KeyboardInterrupt) ends it with what was reached, marked ``interrupted``.
    Raises InputError for symbols without a value, UnsupportedError for what cannot be simulated here.
    """
    _check_options(backend, method, cluster, draws, delta, confidence, precision)
    values = dict(values or {})
    derivation, notes = _resolved(subject, values)
    options = {"seed": seed, "method": method, "threads": threads}
    run, more = _prepared(derivation, values, delta, width_scale, options)
    most = max_draws or (draws if precision is None else UNLIMITED * draws)
    clock = _Clock(delta, 1 - confidence, precision, draws, most, max_time, progress)
    interrupted = False
    try:
        checks = _until_settled(run, clock)
    except KeyboardInterrupt:
        interrupted, checks = True, run.checks(clock.spent())
    return _verification(derivation, run, checks, confidence, seed, [*notes, *more], interrupted, clock.elapsed)


def plan(
    subject: Network | Derivation | Solution, values: Mapping[str, Any] | None = None, method: str = "auto"
) -> Choices:
    """How `verify` simulates each weight at the stated width, with estimated costs; ``.text()`` prints it.

    Raises InputError for symbols without a value, UnsupportedError where ``method`` is "collapsed" and a weight
    cannot be.
    """
    values = dict(values or {})
    derivation, _ = _resolved(subject, values)
    program = lower(derivation.network.bind(values))
    return choose(program, samples_of(program) or samples_for(program) or 1, method)


def _check_options(
    backend: str, method: str, cluster: str | None, draws: int, delta: float, confidence: float,
    precision: float | None,
) -> None:  # fmt: skip
    if backend == "cuda":
        raise MissingExtraError("the CUDA backend is not in this version", instead='backend="cpu"')
    if backend != "cpu":
        raise InputError(f"backend {backend!r} is not known", instead='"cpu"')
    if cluster is not None:
        raise MissingExtraError("clusters are not in this version", instead="cluster=None")
    check_method(method)
    if draws < 2:
        raise InputError(f"{draws} draws give no interval", instead="at least 2")
    if not 0 < delta < 0.5 or not 0 < confidence < 1:
        raise InputError(f"delta {delta} and confidence {confidence} are shares", instead="delta=0.02, confidence=0.99")
    if precision is not None and precision <= 0:
        raise InputError(f"precision {precision} cannot be reached", instead="a positive share, such as 0.01")


def _resolved(subject: Network | Derivation | Solution, values: Mapping[str, Any]) -> tuple[Derivation, list[str]]:
    """The derivation to test, its unknown scales solved for unless ``values`` has them, and what to say of it."""
    from varflow.solve import Solution, solve

    if isinstance(subject, Solution):
        return subject.derivation, [f"Weights solved for: preserve {subject.preserve}.", *subject.notes]
    derivation = subject if isinstance(subject, Derivation) else derive(subject)
    if all(s.name in values for s in derivation.unknowns().values()):
        return derivation, []
    solution = solve(derivation)
    return solution.derivation, [f"Unknown scales solved for: preserve {solution.preserve}.", *solution.notes]


def _prepared(
    derivation: Derivation, values: Mapping[str, Any], delta: float, width_scale: Sequence[float] | None,
    options: dict[str, Any],
) -> tuple[_Run, list[str]]:  # fmt: skip
    derivation.numbers(values)
    network = derivation.network.bind(values)
    program = lower(network)
    predicted = predictions(derivation, values, program.values)
    nodes = list(dict.fromkeys(name for _, name in predicted))
    scales, note = ladder(network, program, width_scale)
    if all(p.exactness == "exact" for p in predicted.values()):
        scales, note = [s for s in scales if s.factor == 1], ""
    notes = [note[0].upper() + note[1:] + "."] if note else []
    if any(samples_of(s.program, 1) == 1 for s in scales):
        notes.append(f"Batch norms without a batch size are simulated with {LARGE_BATCH} samples at the widest.")
    levels, samples = [], samples_for(program)
    shares = limit_draws([float(s.factor) for s in scales])
    for place, (scale, share) in enumerate(zip(scales, shares, strict=True)):
        batch = max(4, round(LARGE_BATCH * float(scale.factor / scales[-1].factor)))
        again = predictions(derive(scale.network), {}, nodes) if scale.of_width else predicted
        batched = options | {"samples": samples, "large_batch": batch}
        levels.append(_Level(place, scale, share, again, nodes, batched))
    return _Run(levels, predicted, delta, len(levels) == 1), notes


def _verification(
    derivation: Derivation, run: _Run, checks: Mapping[Key, Check], confidence: float, seed: int,
    notes: Sequence[str], interrupted: bool, seconds: float,
) -> Verification:  # fmt: skip
    names = dict.fromkeys(name for _, name in checks)
    nodes = {n: {d: checks[d, n] for d in ("forward", "backward") if (d, n) in checks} for n in names}
    powers = [c.power for c in checks.values() if c.power is not None]
    rejected = [bool(c.rejects) for c in checks.values() if c.rejects is not None]
    if interrupted:
        notes = [*notes, "Interrupted: the verdicts are over the draws made until then."]
    return Verification(
        network=derivation.network.name,
        nodes=nodes,
        verdict=overall([c.verdict for c in checks.values()]),
        delta=run.delta,
        confidence=confidence,
        power=min(powers, default=0.0),
        rejected=sum(rejected) / len(rejected) if rejected else 0.0,
        draws=run.draws,
        seed=seed,
        samples=max(level.simulator.plan.samples for level in run.levels),
        widths=tuple(max(hidden_widths(level.scale.program)) for level in run.levels),
        notes=tuple(notes),
        interrupted=interrupted,
        seconds=seconds,
    )
