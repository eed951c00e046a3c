"""How often verifications of right formulas raise an alarm, and wrong ones are caught: against what is promised.

``python -m tests.false_alarm`` simulates 10,000 verifications of the plain kinds, of real networks and of planted
errors, 2,000 and 1,000 of the dearer ones, with the code that judges real ones (statistics, looks, intervals,
verdicts), and writes false_alarm.json; rates that this file has already are kept. Error probabilities are raised so
that alarms happen, the tolerance is made tiny so that every interval that misses the truth is an alarm.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, kstat, skew

from tests.test_verify import deep, residual
from varflow.derive import derive
from varflow.simulate.statistics import Statistics, Summary
from varflow.solve import solve
from varflow.verify import prepared
from varflow.verify_check import FAIL, Check, Judge, Prediction, Reading
from varflow.verify_report import Key
from varflow.verify_run import Clock, Level, Pace, Run, until_settled

Float = NDArray[np.float64]
Law = Callable[[np.random.Generator, tuple[int, int]], Float]
RESULT = Path(__file__).with_name("false_alarm.json")
TINY = 1e-9
SHARE = 10
"""Verifications on a log scale are a tenth of the plain ones."""
SURE = 0.999
"""Confidence of the binomial intervals: twenty of them should all hold."""


def gamma(shape: float) -> Law:
    """Mean one; the second moment of ``2 shape`` independent normal entries."""
    return lambda rng, size: rng.gamma(shape, 1 / shape, size)


def log_normal(variance: float) -> Law:
    """Mean one; as of deep networks."""
    return lambda rng, size: np.exp(rng.normal(-variance / 2, math.sqrt(variance), size))


def shared(variance: float) -> Law:
    """Mean one; all nodes of a draw vary together, as behind a common layer."""
    def draw(rng: np.random.Generator, size: tuple[int, int]) -> Float:
        return np.exp(rng.normal(-variance / 2, math.sqrt(variance), (size[0], 1))) * rng.gamma(50.0, 1 / 50, size)

    return draw


@dataclass(frozen=True)
class Case:
    """Verifications of ``nodes`` nodes whose draws follow ``law``; ``most``: looks are repeated up to there,
    ``precision``: until it is reached. ``widths``: a limit, extrapolated over three widths; ``share``: by how much
    fewer verifications there are than of others."""

    name: str
    law: Law
    nodes: int = 5
    draws: int = 200
    alpha: float = 0.2
    most: int | None = None
    precision: float | None = None
    widths: bool = False
    share: int = 1

    @property
    def exactly(self) -> bool:
        """Whether the promise is met and not just kept: one look at independent nodes."""
        return self.most is None and self.precision is None and self.name.startswith("gamma")


CASES = (
    Case("gamma 20", gamma(20.0)),
    Case("gamma 100, confidence 0.9", gamma(100.0), nodes=10, alpha=0.1),
    Case("gamma 2", gamma(2.0), nodes=2, draws=1500),
    Case("log-normal 0.1", log_normal(0.1), draws=300),
    Case("log-normal 0.8", log_normal(0.8), nodes=2, draws=1500, share=5),
    Case("at the limit of skewness", log_normal(0.3), draws=200, nodes=2, share=5),
    Case("nodes vary together", shared(0.1), nodes=8, share=5),
    Case("looks up to 1600", gamma(10.0), draws=100, most=1600, share=5),
    Case("looks until precise", gamma(10.0), draws=100, precision=0.04, share=5),
    Case("three widths", gamma(30.0), nodes=4, widths=True, share=5),
)


class Synthetic:
    """A simulator whose draws are made up; width 1/f adds the share ``slope / f``."""

    def __init__(self, case: Case, rng: np.random.Generator, mean: float = 1.0) -> None:
        self.case, self.rng, self.mean = case, rng, mean
        self.plan = SimpleNamespace(columns={("forward", str(k)): k for k in range(case.nodes)})

    def run(self, draws: int, first: int = 0) -> Statistics:
        """Statistics of draws."""
        found = Statistics(self.plan.columns)
        rows = np.zeros((draws, self.case.nodes, 3))
        rows[..., 1] = self.mean * self.case.law(self.rng, (draws, self.case.nodes))
        found.add(rows, first)
        return found


class AtOnce(Run):
    """Draws all that a look asks for in one piece, which changes no bit."""

    def recall(self, total: int) -> None:
        """Before the rounds of a look."""
        self.advance(total)


def level(simulator: Any, place: int, factor: float, predicted: dict[Key, Prediction]) -> Level:
    """A width with made-up draws."""
    found = Level.__new__(Level)
    found.place, found.first, found.share = place, place << 40, 1.0
    found.pace = Pace(1 << 20, 1.0, 1 << 20, 1 << 20)
    program: Any = SimpleNamespace(gradients={})
    found.scale, found.predicted = SimpleNamespace(factor=factor, program=program), predicted  # type: ignore[assignment]
    found.simulator, found.statistics = simulator, Statistics(simulator.plan.columns)
    return found


def verification(case: Case, rng: np.random.Generator, planted: float = 1.0, delta: float = TINY) -> dict[Key, Check]:
    """The checks of one verification; the formula of node 0 is ``planted`` times the truth."""
    exactness = "wide" if case.widths else "exact"
    predicted = {("forward", str(k)): Prediction(planted if k == 0 else 1.0, exactness) for k in range(case.nodes)}
    factors = (0.25, 0.5, 1.0) if case.widths else (1.0,)
    levels = [level(Synthetic(case, rng, 1 + 0.05 / f if case.widths else 1.0), place, f, predicted)
              for place, f in enumerate(factors)]
    run = AtOnce(levels, predicted, delta, single_width=False)
    most = case.most or (case.draws if case.precision is None else 100 * case.draws)
    return until_settled(run, Clock(delta, case.alpha, case.precision, case.draws, most, None, None))


def outcome(name: str, count: int, times: int, promised: float, exactly: bool, **more: Any) -> dict[str, Any]:
    """A rate against what is promised of it, with the binomial interval of the promise."""
    low, high = (float(binom.ppf(q, times, promised)) / times for q in ((1 - SURE) / 2, (1 + SURE) / 2))
    rate = count / times
    kept = low <= rate <= high if exactly else rate <= high
    return {"name": name, "times": times, "rate": rate, "promised": promised, "interval": [low, high],
            "promise": "exactly" if exactly else "at most", "kept": bool(kept), **more}


def alarms(case: Case, times: int) -> dict[str, Any]:
    """Verifications of right formulas with an alarm."""
    rng = np.random.default_rng([7, *case.name.encode()])
    wrong = unsupported = 0
    for _ in range(times):
        checks = verification(case, rng).values()
        wrong += any(c.verdict == FAIL for c in checks)
        unsupported += any("too few" in c.note for c in checks)
    promised = 1 - (1 - case.alpha / case.nodes) ** case.nodes if case.exactly else case.alpha
    return outcome(case.name, wrong, times, promised, case.exactly, unsupported=unsupported / times)


# -- real networks -----------------------------------------------------------------------------------


def networks() -> Iterator[tuple[str, Run, int]]:
    """Small networks with exact laws, and draws of one verification."""
    for name, net, values in (("residual block", residual(), {"n": 16}), ("six layers", deep(6, 48), {})):
        derivation = solve(net).derivation if values else derive(net)
        run, _ = prepared(derivation, values, TINY, None, {"seed": 0, "method": "auto", "threads": 1})
        yield name, run, 200


def alarms_of_networks(times: int) -> Iterator[dict[str, Any]]:
    """The same for real networks: every verification has a seed of its own."""
    for name, run, draws in networks():
        wrong = 0
        (only,) = run.levels
        simulator: Any = only.simulator
        for seed in range(times):
            simulator.seed = seed
            only.statistics = simulator.run(draws)
            wrong += any(c.verdict == FAIL for c in run.checks(0.2).values())
        yield outcome(f"network: {name}", wrong, times, 0.2, False)


# -- log scale ---------------------------------------------------------------------------------------


def summary(q: Float) -> Summary:
    """The summary of draws, from other formulas than the streaming ones."""
    logs = np.log(q)
    k1, k2, k3, k4 = (float(kstat(logs, k)) for k in (1, 2, 3, 4))
    return Summary(len(q), 0.0, 0.0, float(q.mean()), float(q.var(ddof=1)), 1.0, 1.0, float(skew(q)), k1, k2, 0.0, 0,
                   k3, k4)


def alarms_on_a_log_scale(times: int, draws: int = 40_000, variance: float = 1.6) -> dict[str, Any]:
    """Products of many independent factors with gamma laws: nearly log-normal, mean one, known exactly."""
    rng, wrong, unsupported = np.random.default_rng(13), 0, 0
    judge = Judge(TINY, 0.01)
    for _ in range(times):
        logs = np.zeros(draws)
        for _ in range(4):
            logs += np.log(rng.gamma(60.0, 1 / 60, draws))
        rest = variance - 4 / 60
        q = np.exp(logs + rng.normal(-rest / 2, math.sqrt(rest), draws))
        check = judge.check(Prediction(1.0), [Reading(1.0, summary(q), 1.0)])
        wrong += check.verdict == FAIL
        unsupported += "too few" in check.note
    return outcome(f"log scale, variance {variance}", wrong, times, 0.01, False, unsupported=unsupported / times)


# -- power -------------------------------------------------------------------------------------------


PLANTED = ((500, 8.0), (1000, 8.0), (1500, 8.0), (800, 60.0))
"""Draws, and the shape of their gamma law."""


def planted_in_networks(times: int, delta: float = 0.05) -> Iterator[dict[str, Any]]:
    """One formula of a real network off by 2 delta, at the check whose power is nearest to one half."""
    for name, made, draws in networks():
        (only,), run = made.levels, Run(made.levels, made.predicted, delta, single_width=False)
        simulator: Any = only.simulator
        only.statistics = simulator.run(4 * draws, 1 << 30)
        key = min(run.predicted, key=lambda k: abs((run.checks(0.01)[k].power or 0.0) - 0.5))
        found, said = {2: 0, -2: 0}, list[float]()
        for seed in range(times):
            simulator.seed = seed
            only.statistics = simulator.run(4 * draws)
            said.append(run.checks(0.01)[key].power or 0.0)
            for off in found:
                wrong = dict(made.predicted) | {key: made.predicted[key].times(1 + off * delta)}
                only.predicted = run.predicted = wrong
                found[off] += run.checks(0.01)[key].verdict == FAIL
            only.predicted = run.predicted = made.predicted
        for off, count in found.items():
            where = f"planted in network: {name}, {key[1]} {key[0]}, {off:+d} delta"
            yield caught(where, count, times, said)


def caught(name: str, count: int, times: int, said: Sequence[float]) -> dict[str, Any]:
    """The share of planted errors that were found against the mean of what was ``said`` of the power."""
    promised, spread = float(np.mean(said)), float(np.std(said)) / len(said) ** 0.5
    low = float(binom.ppf((1 - SURE) / 2, times, promised)) / times - 4 * spread
    found = outcome(name, count, times, promised, False)
    return found | {"promise": "at least", "kept": bool(found["rate"] >= low)}


def powers(times: int, draws: int, shape: float) -> Iterator[dict[str, Any]]:
    """Formulas off by 2 delta, caught as often as the power of the same kind of draws says."""
    delta = 0.02
    case = Case(f"planted, {draws} draws, gamma {shape:g}", gamma(shape), nodes=3, draws=draws, alpha=0.01)
    rng = np.random.default_rng(draws)
    said = [verification(case, rng, 1.0, delta)["forward", "0"].power or 0.0 for _ in range(max(times // 10, 50))]
    for off in (2, -2):
        verdicts = [verification(case, rng, 1 + off * delta, delta)["forward", "0"].verdict for _ in range(times)]
        yield caught(f"{case.name}, {off:+d} delta", verdicts.count(FAIL), times, said)


def study(times: int, known: Mapping[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All rates; those ``known`` by name are not simulated again."""
    def kept(start: str) -> list[dict[str, Any]]:
        return [row for name, row in known.items() if name.startswith(start)]

    yield from (known.get(case.name) or alarms(case, times // case.share) for case in CASES)
    yield from kept("network: ") or alarms_of_networks(times)
    yield from kept("log scale") or [alarms_on_a_log_scale(times // SHARE)]
    for draws, shape in PLANTED:
        yield from kept(f"planted, {draws} draws") or powers(times, draws, shape)


def main() -> None:
    """Simulate and write the result."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    found: list[dict[str, Any]] = []
    known = json.loads(RESULT.read_text(encoding="utf-8"))["rates"] if RESULT.exists() else []
    for row in study(times, {row["name"]: row for row in known}):
        found.append(row)
        result = {"verifications": times, "rates": found}
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{row['name']}: {row['rate']:.4f}, promised {row['promise']} {row['promised']:.4f}, "
              f"{'kept' if row['kept'] else 'NOT KEPT'}", flush=True)


if __name__ == "__main__":
    main()
