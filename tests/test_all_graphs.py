"""Every shipped graph: laws of all nodes, their labels, and numbers where they cost little."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import varflow as vf
from varflow.derive import Derivation
from varflow.laws.moments import EXACTNESS, TIERS
from varflow.laws.sampled import SourceSample
from varflow.lowering import lower
from varflow.program import Contract, has_windows

GRAPHS = sorted(Path(__file__).parent.parent.joinpath("graphs").glob("*.yaml"))
SIZES = {"n": 32, "L": 4, "B": 8, "p": 0.1, "p_in": 0.1, "m": 2, "s": 8, "size": 32, "a": 0.2, "c": 8}


def _values(d: Derivation) -> dict[str, float]:
    scales = {str(s) for s in d.unknowns().values()}
    return {name: 1.5 if name in scales else SIZES.get(name, 8) for name in d.free_symbols()}


def _of_one_pixel(d: Derivation) -> set[str]:
    """Depthwise convolutions of one pixel: E[1/w^2], which the norm behind brings to their gradient, is infinite."""
    program = lower(d.network.bind(_values(d)))
    steps = (program.instructions[v] for v in program.values.values())
    return {s.node for s in steps if isinstance(s.primitive, Contract) and s.primitive.window
            and program.weights[s.primitive.weight].groups > 1 and program.shape(s.args[0]).places == 1}


def _check(d: Derivation) -> None:
    one_pixel = _of_one_pixel(d)
    for name, fields in d.numeric(_values(d)).items():
        q, g = fields["second_moment"], fields["grad_second_moment"]
        assert math.isfinite(fields["mean"]), name
        assert math.isfinite(q), name
        assert q > 0 or d[name].second_moment == 0, name
        assert math.isfinite(g) or (g == math.inf and name in one_pixel), name
        assert g >= 0, name
        assert fields["variance"] >= -1e-9 * q, name
        assert g > 0 or d[name].backward is None or d[name].grad_second_moment == 0, name


@pytest.fixture(scope="module", params=GRAPHS, ids=lambda f: f.stem)
def derived(request: pytest.FixtureRequest) -> Derivation:
    return vf.derive(vf.load(request.param))


def test_every_node_says_how_true_it_is(derived: Derivation) -> None:
    for law in derived.values():
        assert law.exactness in EXACTNESS[:3]
        assert law.grad_exactness in EXACTNESS[:3]
        assert law.tier in TIERS[:3]
        assert "wide" not in (law.exactness, law.grad_exactness) or law.assumptions


def test_numbers(derived: Derivation) -> None:
    if has_windows(derived.program):
        pytest.skip("position by position, in the slow tests")
    _check(derived)


@pytest.mark.slow
def test_numbers_of_images(derived: Derivation) -> None:
    if not has_windows(derived.program):
        pytest.skip("in the quick tests")
    _check(derived)


def test_moments_of_deep_networks_are_formulas_not_samples() -> None:
    """The work of one moment does not count against those after it."""
    for name in ("preact_resnet", "densenet121"):
        system = vf.derive(vf.load(name)).system
        assert sum(isinstance(m.operator, SourceSample) for m in system.moments) <= 2
