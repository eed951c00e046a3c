"""The shipped transformer: its stream grows linearly, logits do not; formulas against simulation at reduced size."""

from __future__ import annotations

from itertools import pairwise

import pytest
import sympy as sp

import varflow as vf
from varflow.derive import Derivation
from varflow.export import to_json
from varflow.laws.softmax import SoftmaxOverlap
from varflow.load import from_text, load
from varflow.load.shipped import graph_folder
from varflow.lowering import lower
from varflow.simulate.cpu import simulate

BLOCKS = 12


@pytest.fixture(scope="module")
def law() -> Derivation:
    return vf.derive(load("transformer"))


def test_parameters() -> None:
    """4 d^2 and 8 d^2 weights a block (no biases), and two affine norms of 2 d each; one norm more at the end."""
    net = load("transformer").bind({"h": 12, "k": 64, "T": 128})
    assert net.parameters() == BLOCKS * (12 * 768**2 + 4 * 768) + 2 * 768


def test_first_block(law: Derivation) -> None:
    """x + attention at 1/fan_in: the sum of squared weights of T independent unit logits."""
    overlap = SoftmaxOverlap(1, 1, law.network.symbols["T"])
    mixed, middle = (law[f"blocks[0].{name}"].second_moment for name in ("mixed", "middle"))
    assert mixed is not None and middle is not None
    assert law["blocks[0].logits"].second_moment == 1
    assert sp.expand(mixed - overlap) == 0
    assert sp.expand(middle - 1 - overlap) == 0


def test_the_stream_grows_linearly_and_logits_do_not(law: Derivation) -> None:
    numbers = law.numeric({"h": 12, "k": 64, "T": 128})
    stream = [numbers[f"blocks[{k}].stream"]["second_moment"] for k in range(BLOCKS)]
    steps = [b - a for a, b in pairwise([1.0, *stream])]
    act = numbers["blocks[0].act"]["second_moment"]
    assert all(act < step < act + 1 for step in steps)
    assert all(b > a for a, b in pairwise(steps))
    for k in range(BLOCKS):
        assert numbers[f"blocks[{k}].logits"]["second_moment"] == pytest.approx(1)
        assert law[f"blocks[{k}].stream"].tier == law[f"blocks[{k}].query"].tier == "quadrature"
    gradients = [numbers[f"blocks[{k}].stream"]["grad_second_moment"] for k in range(BLOCKS)]
    assert all(a > b for a, b in pairwise(gradients))


def test_two_blocks_against_simulation() -> None:
    """At 32 heads of 32 channels every node, forward and backward, within 4 % and four standard errors."""
    text = (graph_folder() / "transformer.yaml").read_text(encoding="utf-8").replace("repeat: 12", "repeat: 2")
    net = from_text(text).bind({"h": 32, "k": 32, "T": 5})
    numbers, seen = vf.derive(net).numeric({}), simulate(lower(net), 96, seed=4)
    for name, fields in numbers.items():
        for field, s in (("second_moment", seen.forward[name]), ("grad_second_moment", seen.backward[name])):
            assert abs(fields[field] / s.second_moment - 1) < 0.04 + 4 * s.standard_error / s.second_moment, name
            assert s.standard_error < 0.03 * s.second_moment, name


def test_equations_of_late_blocks_are_as_short_as_those_of_early_ones(law: Derivation) -> None:
    """What the tokens of a stream share is named from block to block; JSON tells ratios over names too."""
    nodes = to_json(law)["nodes"]
    for name in ("query", "value", "fc1"):
        early, late = (max(len(nodes[f"blocks[{k}].{name}"]["grad_equation"]) for k in part)
                       for part in (range(4), range(8, BLOCKS)))
        assert late < 1.5 * early
    assert nodes["norm"]["local_gain"] == "1/q_blocks"
