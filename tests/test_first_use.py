"""What a first verification does without: scipy.special, numba, rich in a pipe; and what stands in for them."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console
from scipy.special import stdtrit

from varflow import collector
from varflow.cli_print import table
from varflow.verify_report import Progress
from varflow.verify_student import quantile

ABSENT = ("numba", "scipy.special", "rich", "jinja2", "torch", "matplotlib")


def test_quantiles_are_those_of_scipy() -> None:
    for freedom in (1, 2, 7, 24, 59, 60, 255, 1999, 10**5):
        for alpha in (0.9, 0.3, 0.1, 0.01, 0.0047, 1e-4, 1e-7, 1e-12):
            assert quantile(alpha, freedom) == pytest.approx(-float(stdtrit(freedom, alpha / 2)), rel=1e-12)


@pytest.mark.parametrize("title", ["", "a title"])
def test_plain_tables_are_those_of_rich(title: str) -> None:
    rows: list[list[Any]] = [["x", 1.5, None], ["long name", "two\nlines", "last"],
                             ["日本 é", "e\u0301", ""], ["a\tb", "c", "d"]]
    made, text = table(["node", "", "two\nlines of a head"], rows, title), io.StringIO()
    Console(file=text, width=10_000, markup=False, emoji=False, color_system=None).print(made.rich())
    assert list(made.lines()) == [line.rstrip() for line in text.getvalue().splitlines()]


def test_a_verification_in_a_pipe_loads_little() -> None:
    code = f"""
import sys
from varflow.cli import app
try:
    app(["verify", "residual_block", "--set", "n=32", "--draws", "64"])
except SystemExit:
    pass
print([m for m in {ABSENT!r} if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stderr.splitlines()[-1]
    assert loaded == "[]" or loaded == "['numba']", "numba only where a kernel had to be compiled"


def test_progress_judges_when_it_is_asked() -> None:
    asked: list[int] = []

    def widest() -> float:
        asked.append(1)
        return 0.5

    told = Progress(64, 128, widest, None, 1.0, 1.0)
    assert not asked
    assert told.widest == told.widest == 0.5
    assert asked == [1]


def test_the_collector_is_as_before_after_a_derivation() -> None:
    import gc

    before = gc.get_threshold()
    with collector.rare_collections():
        assert gc.get_threshold()[0] >= collector.OF_A_DERIVATION
    assert gc.get_threshold() == before
