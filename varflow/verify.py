"""verify: the formulas of a network against simulation of the network itself, with intervals and verdicts."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sympy as sp

from varflow.derive import Derivation, derive
from varflow.errors import UnsupportedError, named_values
from varflow.laws.domain import Divergent
from varflow.laws.moments import EXACTNESS, Moment, Quantity, weakest
from varflow.lowering import lower
from varflow.network import Network
from varflow.program import Contract, Program, Standardize, StandardizeBackward, has_windows
from varflow.simulate.collapsed import Choices, choose
from varflow.simulate.plan import LARGE_BATCH, samples_of, seconds_per_draw
from varflow.symbols import STEP
from varflow.verify_check import Check, Prediction, limit_draws, overall
from varflow.verify_options import check_options
from varflow.verify_record import Settings, keeping, record, run_hash
from varflow.verify_report import Key, Progress, Verification
from varflow.verify_run import Clock, Level, Run, until_settled
from varflow.verify_widths import LEAST_WIDTH, hidden_widths, ladder, narrowest, order_of

if TYPE_CHECKING:
    from varflow.evaluate import Numbers
    from varflow.solve import Solution

ENTRIES = 256
FEWEST_SAMPLES, MOST_SAMPLES = 8, 64
FEWEST_IN_BATCH = 32
"""Samples of a batch norm without a batch size, where there are many positions."""
DRAWS, FEWEST_DRAWS = 2000, 48
WORK = 140.0
"""Seconds of one core that draws may cost, by estimate, where no number of them is asked for."""
SAMPLE_ERROR = 3e-4
"""Relative standard error of a number from a sample of its sources (`varflow.laws.sampled`)."""
UNLIMITED = 100
"""With ``precision`` and no ``max_draws``: how many times ``draws`` at most."""


# -- predictions -------------------------------------------------------------------------------------


def predictions(d: Derivation, values: Mapping[str, Any], nodes: Collection[str]) -> dict[Key, Prediction]:
    """Both directions of the network's ``nodes`` as numbers; those of a block repeated L times are taken at each
    repetition. A node that has no number is "underived", not an error.

    Raises InputError naming symbols without a value.
    """
    found: dict[Key, Prediction] = {}
    finite: set[Quantity] = set()
    inner = [n for n in d.nodes if "[l]" in n]
    steps = 1 + max((_repetition(n) for n in nodes), default=0) if inner else 1
    for step in range(steps):
        numbers = d.numbers({**values, STEP.name: step} if inner else values)
        for name in d.nodes if step == 0 else inner:
            plain = name.replace("[l]", f"[{step}]")
            if plain in nodes:
                found["forward", plain] = _predicted(numbers, name, plain, "forward", finite)
                found["backward", plain] = _predicted(numbers, name, plain, "backward", finite)
    return found


def _repetition(name: str) -> int:
    return max((int(k) for k in re.findall(r"\[(\d+)\]", name)), default=0)


def _predicted(numbers: Numbers, name: str, plain: str, direction: str, finite: set[Quantity]) -> Prediction:
    law = numbers.derivation[name]
    backward = direction == "backward"
    part, exactness = (law.backward, law.grad_exactness) if backward else (law.forward, law.exactness)
    if part is None:
        return Prediction(0.0)
    if _is_infinite(part.second, finite):
        return Prediction(math.inf, exactness)
    try:
        number = float((numbers.gradient if backward else numbers.second)(name))
    except ZeroDivisionError:
        return Prediction(math.inf, exactness)
    except Divergent as error:
        if _is_divergent(numbers, plain, backward):
            known = exactness if exactness not in ("measured", "underived") else "wide"
            return Prediction(math.inf, known, reason=_reason(error))
        return Prediction(math.nan, "underived", reason=_reason(error))
    except UnsupportedError as error:
        return Prediction(math.nan, "underived", reason=_reason(error))
    measured = part.second is None or (isinstance(part.second, Moment) and part.second.tier == "population")
    if numbers.by_position(name, backward):
        placed = weakest(EXACTNESS, (exactness, numbers.exactness_by_position(name, backward)))
        spread = SAMPLE_ERROR * abs(number) if measured else 0.0
        if numbers.population_by_position(name, backward):
            spread = max(spread, _population_error(numbers, plain, backward))
        return Prediction(number, placed, spread)
    if not (measured or numbers.of_population(name, backward)):
        return Prediction(number, exactness)
    return Prediction(number, exactness, _population_error(numbers, plain, backward))


def _reason(error: UnsupportedError) -> str:
    return ": ".join(filter(None, (error.what, error.why)))


def _is_divergent(numbers: Numbers, name: str, backward: bool) -> bool:
    """Whether the second moment of a value itself, or of what it is a random product of, is seen to diverge: other
    functions of values without one may be bounded."""
    if numbers.derivation.bodies:
        return False
    program = numbers.derivation.program
    value = (program.gradients if backward else program.values)[name]
    while isinstance(program.instructions[value].primitive, Contract):
        value = program.instructions[value].args[0]
    node = program.instructions[value].node
    try:
        numbers.require_number(value, "second_moment")
    except Divergent as error:
        own = f"E[(dL/dx)^2] in front of {node}:" if backward else f"the second moment of {node}:"
        return error.what.startswith(own)
    except UnsupportedError:
        return False
    return False


def _is_infinite(quantity: Quantity | None, finite: set[Quantity]) -> bool:
    """Whether a formula divides by zero at the network's own numbers (three samples in a batch norm); ``finite`` ones
    are known not to, and become more."""
    seen: set[Quantity] = set()
    stack = [quantity]
    while stack:
        one = stack.pop()
        if one is None or one in seen or one in finite:
            continue
        seen.add(one)
        expr = one.template if isinstance(one, Moment) else one
        if expr is not None and expr.has(sp.zoo, sp.oo, sp.nan):
            return True
        stack += one.args if isinstance(one, Moment) else ()
    finite |= seen
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
    least = min(int(program.shape(v).channels) for v in program.values.values())
    wanted = 1 << math.ceil(math.log2(ENTRIES / least)) if least < ENTRIES else 1
    return min(MOST_SAMPLES, max(FEWEST_SAMPLES, wanted))


def in_large_batches(program: Program) -> set[Key]:
    """What depends on a batch norm without a batch size, hence on the number of samples that stand for many."""
    found: set[int] = set()
    for i, step in enumerate(program):
        rule = step.primitive.forward if isinstance(step.primitive, StandardizeBackward) else step.primitive
        large = isinstance(rule, Standardize) and rule.axis == "sample" and rule.batch is None
        if large or any(a in found for a in step.args):
            found.add(i)
    sides = (("forward", program.values), ("backward", program.gradients))
    return {(side, name) for side, table in sides for name, value in table.items() if value in found}


def batch_of(program: Program) -> int:
    """Samples of a draw where a batch norm states no batch size: its statistics are over some LARGE_BATCH places, at
    least FEWEST_IN_BATCH samples."""
    norms = [s for s in program if isinstance(s.primitive, Standardize) and s.primitive.axis == "sample"]
    return max(FEWEST_IN_BATCH, LARGE_BATCH // min((int(s.shape.places) for s in norms), default=1))


# -- verify ------------------------------------------------------------------------------------------


def verify(
    subject: Network | Derivation | Solution, values: Mapping[str, Any] | None = None, draws: int | None = None,
    seed: int = 0,
    *, backend: str = "cpu", method: str = "auto", cluster: str | None = None, delta: float = 0.02,
    confidence: float = 0.99, precision: float | None = None, max_draws: int | None = None,
    max_time: float | None = None, threads: int | None = None, width_scale: Sequence[float] | None = None,
    store: str | os.PathLike[str] | None = None, resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Verification:  # fmt: skip
    """Test every node's second moment, forward and backward, against ``draws`` independent draws of the network (by
    default 2000, fewer where they would cost more than some minutes).

    ``values`` are numbers for the network's symbols; unknown scales are solved for by the network's policy. An
    interval is over the variation between draws, and all of them hold together with probability ``confidence``; it
    must lie within ``delta`` of the prediction to pass, outside to fail. An exact law is tested at the stated
    width, a limit at widths n/4, n/2, n (``width_scale``: other multiples) extrapolated as a + b/n (with attention at
    four factors f of heads and of channels of a head, as a + b/f + c/f^2); narrow networks, which cost less, get up to
    four times the draws. With ``max_draws`` it goes on up to there until every check that more draws can decide is
    decided; with ``precision``, until every half-width is at most that share of its prediction; never longer than
    ``max_time`` seconds. ``progress`` is called about every second. An interrupt (KeyboardInterrupt) ends it with what
    was reached, marked ``interrupted``. With ``store``, a path, draws are kept in a SQLite file while they are made;
    with ``resume`` those that are in the file already are not made again. As a store can always be gone on with, its
    first look spends half of the error probability, and an interrupt, after which no verdict is given, goes on to the
    caller. The same draws give the same ``hash`` in any case.
    Raises InputError for symbols without a value, UnsupportedError for what cannot be simulated here, StoreError for
    a store that is damaged or of something else.
    """
    check_options(
        draws, seed, backend=backend, method=method, cluster=cluster, delta=delta, confidence=confidence,
        precision=precision, max_draws=max_draws, max_time=max_time, threads=threads, width_scale=width_scale,
        store=store, resume=resume,
    )
    values = named_values(values)
    derivation, notes = _resolved(subject, values)
    options = {"seed": seed, "method": method, "threads": threads, "backend": backend}
    run, more = prepared(derivation, values, delta, width_scale, options)
    draws = draws or affordable(run)
    most = max_draws or (draws if precision is None else UNLIMITED * draws)
    clock = Clock(delta, 1 - confidence, precision, draws, most, max_time, progress, kept=store is not None)
    settings = Settings(derivation, values, seed, backend, method, width_scale, confidence)
    with keeping(run, store, settings, resume):
        checks, interrupted = _settled(run, clock)
    found = verification(derivation, run, checks, confidence, seed, [*notes, *more], interrupted, clock.elapsed)
    return replace(found, hash=run_hash(run, settings), record=record(run, settings, clock.spent()))


def _settled(run: Run, clock: Clock) -> tuple[dict[Key, Check], bool]:
    """The checks of the last look, and whether an interrupt ended it."""
    try:
        return until_settled(run, clock), False
    except KeyboardInterrupt:
        if run.keeping is not None:
            raise
        return run.checks(clock.spent()), True


def plan(
    subject: Network | Derivation | Solution, values: Mapping[str, Any] | None = None, method: str = "auto"
) -> Choices:
    """How `verify` simulates each weight at the stated width, with estimated costs; ``.text()`` prints it.

    Raises InputError for symbols without a value, UnsupportedError where ``method`` is "collapsed" and a weight
    cannot be.
    """
    values = named_values(values)
    derivation, _ = _resolved(subject, values)
    program = lower(derivation.network.bind(values))
    return choose(program, samples_of(program) or samples_for(program) or 1, method)


def affordable(run: Run) -> int:
    """Draws where no number is asked for: the same on every machine."""
    each = sum(level.share * seconds_per_draw(level.simulator.plan) for level in run.levels)
    return min(DRAWS, max(FEWEST_DRAWS, int(WORK / each)))


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


def prepared(
    derivation: Derivation, values: Mapping[str, Any], delta: float, width_scale: Sequence[float] | None,
    options: dict[str, Any],
) -> tuple[Run, list[str]]:  # fmt: skip
    """The widths to simulate, with their predictions, and what to say of them."""
    derivation.numbers(values)
    network = derivation.network.bind(values)
    program = lower(network)
    predicted = predictions(derivation, values, program.values)
    for key in in_large_batches(program) & predicted.keys():
        label = weakest(EXACTNESS, (predicted[key].exactness, "wide"))
        predicted[key] = replace(predicted[key], exactness=label)
    nodes = list(dict.fromkeys(name for _, name in predicted))
    scales, note = ladder(network, program, width_scale)
    if all(p.exactness == "exact" for p in predicted.values()):
        scales, note = [s for s in scales if s.factor == 1], ""
    notes = [note[0].upper() + note[1:] + "."] if note else []
    if any(samples_of(s.program, 1) == 1 for s in scales):
        notes.append(f"Batch norms without a batch size are simulated with {batch_of(program)} samples at the widest.")
    levels, samples = [], samples_for(program)
    images = has_windows(program)
    order = order_of(scales)
    most, slope = (8.0, 2.0) if images else (4.0, 1.5)
    shares = limit_draws([float(s.factor) for s in scales], most, slope, order)
    for place, (scale, share) in enumerate(zip(scales, shares, strict=True)):
        batch = max(4, round(batch_of(program) * float(scale.factor / scales[-1].factor)))
        again = predictions(derive(scale.network), {}, nodes) if scale.of_width else scale.of_inputs(predicted)
        batched = options | {"samples": samples, "large_batch": batch, "given": images}
        levels.append(Level(place, scale, share, again, nodes, batched))
    predicted = {key: _over_widths(key, p, levels, order) for key, p in predicted.items()}
    return Run(levels, predicted, delta, len(levels) == 1), notes


def _over_widths(key: Key, p: Prediction, levels: Sequence[Level], order: int) -> Prediction:
    """The prediction with what is known of it at each width."""
    at = [level.predicted[key] for level in levels]
    own = p.error > 0 and all(one.value for one in at) and any(level.scale.of_width for level in levels)
    errors = tuple(one.error / abs(one.value) for one in at) if own else ()
    narrow = order == 1 and narrowest(levels[0].scale.program) < LEAST_WIDTH
    return replace(p, order=order, errors=errors, narrow=narrow)


def verification(
    derivation: Derivation, run: Run, checks: Mapping[Key, Check], confidence: float, seed: int,
    notes: Sequence[str] = (), interrupted: bool = False, seconds: float = 0.0,
) -> Verification:  # fmt: skip
    """What a run and its checks say together."""
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
