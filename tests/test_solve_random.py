"""What solve promises, on random graphs: behind every solved weight signal or gradient are what they were before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

import varflow as vf
from varflow.errors import SolveError, UnsupportedError
from varflow.laws.evaluation import Evaluation
from varflow.laws.moments import Moment
from varflow.laws.part import Part
from varflow.policy import Segment, segments

from .randomgraphs.generate import generate, to_networkx

WIDTH = 64.0
APPROXIMATE = ("small signals", "unit second moment", "unit input")
"""In notes: the condition was another one."""


def _open_network(seed: int) -> vf.Network | None:
    """A random graph whose weights all wait for their scale."""
    spec = generate(seed)
    if spec is None:
        return None
    graph = to_networkx(spec, None)
    for _, fields in graph.nodes(data=True):
        if fields["op"] == "linear":
            fields.pop("variance", None)
    return vf.Network.from_networkx(graph)


def _measured(moment: Moment) -> float:
    raise UnsupportedError("a moment that only a population gives", moment.node)


def _growth(part: Part, s: Segment, policy: str, values: dict[str, float]) -> float | None:
    """Second moment at the end of a segment over that at its start; of gradients, the other way round."""
    ends = part.gradient_ends(s) if policy == "backward" else (part.second(s.start), part.second(s.end))
    if ends is None or ends[0] is None or ends[1] is None:
        return None
    numbers = Evaluation(values, _measured)
    try:
        return float(numbers.of(ends[1])) / float(numbers.of(ends[0]))
    except UnsupportedError:
        return None


def _growths(solution: vf.Solution) -> Iterator[tuple[str, float]]:
    """Every solved weight whose condition is the policy's own and has numbers; forward, those that are used once."""
    values = dict.fromkeys(solution.derivation.network.symbols, WIDTH)
    rough = {str(a.unknown) for a in solution.answers if any(text in a.note for text in APPROXIMATE)}
    parts = zip(solution.derivation.parts(), solution.unsolved.parts(), strict=True)
    for part, before in parts:
        uses = Counter(s.weight for s in segments(before.program))
        done: set[str] = set()
        for s, old in zip(segments(part.program), segments(before.program), strict=True):
            unknown = str(before.program.weights[old.weight].unknown)
            shared = solution.preserve == "forward" and uses[old.weight] > 1
            growth = None if unknown in rough | done or shared else _growth(part, s, solution.preserve, values)
            done.add(unknown)
            if growth is not None:
                yield unknown, growth


@pytest.mark.parametrize("policy", ["forward", "backward"])
@pytest.mark.parametrize("seed", [
    2, 9, 11, 27, 30, 34, 49, 65, 67, 89, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (43, 55, 72, 96))])
def test_solved_weights_preserve_what_they_should(seed: int, policy: str) -> None:
    net = _open_network(seed)
    assert net is not None
    for unknown, growth in _growths(vf.solve(net, preserve=policy)):
        assert growth == pytest.approx(1, rel=2e-3), unknown


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["forward", "backward"])
def test_most_random_graphs_have_answers(policy: str) -> None:
    answers = refused = 0
    for seed in range(100, 130):
        net = _open_network(seed)
        if net is None:
            continue
        try:
            grown = dict(_growths(vf.solve(net, preserve=policy)))
        except SolveError:
            refused += 1
            continue
        assert all(g == pytest.approx(1, rel=2e-3) for g in grown.values()), (seed, grown)
        answers += 1
    assert answers > 10 > 5 * refused
