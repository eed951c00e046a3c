"""One point of every closed form in fifty digits; many points: ``python tests/laws/highprecision.py``."""

from __future__ import annotations

import json

import pytest

from tests.laws.highprecision import (
    ONE,
    PAIRS,
    RESULT,
    USES,
    check_limits,
    check_one,
    check_pair,
    check_price,
)

OPEN = {"step_erf square", "two_erf square"}
"""Orthants of three and four variables off centre: no closed form."""


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("use", ["mean", "square", "slope"])
def test_one_variable(name: str, use: str) -> None:
    found = check_one(name, use, seed=101)
    if f"{name} {use}" in OPEN:
        assert found is None
    else:
        assert found is not None and found < 1e-25


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_pairs(first: str, second: str) -> None:
    assert check_pair(first, second, seed=101) < 1e-20
    assert check_limits(first, second, seed=101) < 1e-20
    assert check_price(first, second, seed=101) < 1e-20


def test_committed_results() -> None:
    """What the long run found, and that it covered everything here."""
    found = json.loads(RESULT.read_text())
    assert found["points"] >= 20 and set(found["no_closed_form"]) == OPEN
    assert set(found["one_variable"]) == {f"{n} {u}" for n in ONE for u in USES} - OPEN
    assert max(found["one_variable"].values()) < 1e-25
    assert set(found["pairs"]) == {f"{f} {g}" for f, g in PAIRS}
    assert max(found["pairs"].values()) < 1e-20
