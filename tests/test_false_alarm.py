"""A sample of the study of false alarms and power, and what the whole study found."""

from __future__ import annotations

import json

import pytest

from tests.false_alarm import (
    CASES,
    PLANTED,
    RESULT,
    Case,
    alarms,
    alarms_of_networks,
    alarms_on_a_log_scale,
    planted_in_networks,
    powers,
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_right_formulas_raise_few_alarms(case: Case) -> None:
    assert alarms(case, 60)["kept"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_alarms_are_as_rare_as_promised(case: Case) -> None:
    assert alarms(case, 1500)["kept"]


@pytest.mark.slow
def test_networks_raise_few_alarms() -> None:
    for row in alarms_of_networks(60):
        assert row["kept"], row


def test_a_log_scale_raises_few_alarms() -> None:
    row = alarms_on_a_log_scale(20)
    assert row["kept"]
    assert row["unsupported"] < 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("draws", "shape"), PLANTED)
def test_wrong_formulas_are_caught_as_promised(draws: int, shape: float) -> None:
    for row in powers(500, draws, shape):
        assert row["kept"], row


@pytest.mark.slow
def test_errors_planted_in_networks_are_caught_as_promised() -> None:
    for row in planted_in_networks(300):
        assert row["kept"], row


def test_the_whole_study() -> None:
    """The committed result: 10,000 verifications of the plain kinds, every rate what was promised."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    assert found["verifications"] == 10_000
    names = [row["name"] for row in found["rates"]]
    assert names[: len(CASES)] == [case.name for case in CASES]
    assert [row["name"] for row in found["rates"] if not row["kept"]] == []
    assert [row["times"] for row in found["rates"][: len(CASES)]] == [10_000 // case.share for case in CASES]
    dear = [row for row in found["rates"] if row["name"].startswith(("network", "planted"))]
    assert [row["times"] for row in dear] == [10_000] * (2 + 2 * len(PLANTED))
    for row in found["rates"]:
        if row["promise"] == "exactly":
            assert row["interval"][0] <= row["rate"] <= row["interval"][1]
        assert row["promise"] != "at most" or row["rate"] <= row["interval"][1]
