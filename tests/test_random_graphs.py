"""Derived laws of random graphs against brute force: autograd on sampled weights, which shares nothing with us."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import pytest

import varflow as vf
from varflow.derive import Derivation, NodeLaw

from .randomgraphs.deviations import DEVIATIONS
from .randomgraphs.generate import Spec, load_results, to_networkx

MOMENTS = {"mean": "mean", "q": "second_moment", "gq": "grad_second_moment"}
LEAST, ERRORS, ROUNDING = 0.03, 4, 1e-5


@dataclass(frozen=True)
class Comparison:
    """One moment of one node, predicted and measured; ``scale`` is what its error is relative to."""

    graph: str
    node: str
    moment: str
    tier: str
    predicted: float
    measured: float
    error: float
    scale: float

    def within(self, least: float = LEAST) -> bool:
        """Whether the difference is within a share of the value or a few standard errors."""
        allowed = max(least * self.scale, ERRORS * self.error + ROUNDING * self.scale)
        return abs(self.predicted - self.measured) <= allowed


def compare(spec: Spec, n: int, nodes: Mapping[str, Any]) -> Iterator[Comparison]:
    """Every moment of every node of one graph."""
    d = vf.derive(vf.Network.from_networkx(to_networkx(spec, n)))
    numbers = d.numeric({})
    for key, node in nodes.items():
        for moment, field in MOMENTS.items():
            value, error = node[moment][:2]
            scale = node["q"][0] ** 0.5 if moment == "mean" else abs(value)
            yield Comparison(spec["name"], key, moment, _tier(d[key], moment), float(numbers[key][field]),
                             value, error, scale)


def _tier(law: NodeLaw, moment: str) -> str:
    """How one moment's number is had."""
    side = law.backward if moment == "gq" else law.forward
    quantity = 0 if side is None else side.mean if moment == "mean" else side.second
    return "population" if quantity is None else str(getattr(quantity, "tier", "closed"))


def unexplained(found: list[Comparison]) -> list[Comparison]:
    """What is neither within the tolerance nor listed with its evidence."""
    return [c for c in found if not c.within() and (c.graph, c.node, c.moment) not in DEVIATIONS]


@pytest.mark.slow
def test_all_recorded_graphs() -> None:
    found = [c for r in load_results(1024) for c in compare(r["spec"], 1024, r["nodes"])]
    print(Counter(c.tier for c in found))
    assert len({c.graph for c in found}) == 60 and len(found) > 3000
    assert not unexplained(found)
    assert sum(not c.within() for c in found) <= 0.01 * len(found)
    assert sum(c.tier == "population" for c in found) <= 0.08 * len(found)


@pytest.mark.parametrize("k", [1, 8, 18, 27, 36, 38])
def test_recorded_graph(k: int) -> None:
    """Graphs that once were wrong: shifts, permuted reuse of a weight, shared matrices; without a population."""
    record = load_results(1024)[k]
    found = list(compare(record["spec"], 1024, record["nodes"]))
    assert not unexplained(found)
    assert all(c.tier != "population" for c in found)


def at_the_limit(spec: Spec) -> dict[str, dict[str, tuple[float, float]]]:
    """Fresh brute force: every moment and its standard error, a + b/n through n = 128 and 256 taken to the limit."""
    from .randomgraphs.brute import measure

    narrow, wide = (measure(spec, n, draws, seed=n).table() for n, draws in ((128, 600), (256, 300)))
    return {
        key: {m: (2 * wide[key][m][0] - narrow[key][m][0], math.hypot(2 * wide[key][m][1], narrow[key][m][1]))
              for m in MOMENTS}
        for key in wide
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("k", [3, 12, 20, 33, 38, 42])
def test_recomputed_graph(k: int) -> None:
    """The same tolerance as for the record, none excused, and precise enough to see an error of a tenth anywhere."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    spec = load_results(1024)[k]["spec"]
    found = list(compare(spec, 256, at_the_limit(spec)))
    assert not [c for c in found if not c.within()]
    errors = [c.error / c.scale for c in found if c.scale]
    assert max(errors) < 0.02 and median(errors) < LEAST / ERRORS
    planted = [replace(c, predicted=c.predicted + sign * 0.1 * c.scale) for c in found for sign in (-1, 1) if c.scale]
    assert not [c for c in planted if c.within()]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_planted_error_is_found(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong number of one node fails the comparison with the record."""
    record = load_results(1024)[8]
    right = Derivation.numeric

    def wrong(d: Derivation, values: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        numbers = right(d, values)
        node = numbers[next(reversed(numbers))]
        node[MOMENTS[moment]] += 0.1 * (node["second_moment"] ** 0.5 if moment == "mean" else node[MOMENTS[moment]])
        return numbers

    assert not unexplained(list(compare(record["spec"], 1024, record["nodes"])))
    monkeypatch.setattr(Derivation, "numeric", wrong)
    assert len(unexplained(list(compare(record["spec"], 1024, record["nodes"])))) == 1
