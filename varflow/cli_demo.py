"""``varflow demo``: published networks derived, solved, verified, and one of them written as a document."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varflow.cli_print import SCHEMA, Cell, emit, emit_json, hint, shown_formula, table
from varflow.cli_status import DONE, FAILED, INCONCLUSIVE, OF_VERDICT
from varflow.derive import derive
from varflow.errors import MissingExtraError
from varflow.export import export
from varflow.load import load
from varflow.solve import Solution, solve
from varflow.verify import verify
from varflow.verify_check import Check
from varflow.verify_report import Verification

NETWORKS: Mapping[str, Mapping[str, int]] = {
    "mlp_relu": {"n": 256},
    "residual_block": {"n": 256},
    "dense_concat": {"k": 128},
    "two_branch_gate": {"n": 256},
    "gated_ffn": {"d": 256, "m": 512},
    "nerf_mlp": {},
}
"""Shipped graphs and the sizes they are simulated at."""
DOCUMENT = "residual_block"


@dataclass(frozen=True)
class Shown:
    """One network of the demo."""

    name: str
    solution: Solution
    verification: Verification
    seconds: float

    @property
    def checks(self) -> list[Check]:
        """Every check, forward and backward."""
        return list(self.verification.checks.values())

    @property
    def deviation(self) -> float:
        """The largest relative distance of an estimate from its formula."""
        return max(abs(c.estimate / c.predicted - 1) for c in self.checks if c.predicted)


def run(folder: Path, draws: int, json: bool) -> int:
    """Run the demo, print its tables, return the exit status of the worst verdict."""
    folder.mkdir(parents=True, exist_ok=True)
    hint("the first run compiles the simulation's kernels; they are kept for the next")
    shown = [_network(name, values, draws) for name, values in NETWORKS.items()]
    document = _document(next(s for s in shown if s.name == DOCUMENT), folder)
    if json:
        emit_json({"schema": SCHEMA, "networks": [_entry(s) for s in shown], "document": str(document)})
    else:
        _print(shown, document)
    return max((OF_VERDICT[s.verification.verdict] for s in shown), key=[DONE, INCONCLUSIVE, FAILED].index)


def _network(name: str, values: Mapping[str, int], draws: int) -> Shown:
    start = time.perf_counter()
    solution = solve(derive(load(name)))
    result = verify(solution, values=dict(values), draws=draws, seed=0)
    seconds = time.perf_counter() - start
    hint(f"{name}: {result.verdict}, {seconds:.1f} s")
    return Shown(name, solution, result, seconds)


def _document(shown: Shown, folder: Path) -> Path:
    try:
        return export(shown.solution, folder / f"{shown.name}.pdf", verification=shown.verification)
    except MissingExtraError as error:
        hint(str(error))
        return export(shown.solution, folder / f"{shown.name}.tex", verification=shown.verification)


def _entry(s: Shown) -> dict[str, Any]:
    r = s.verification
    return {"network": s.name, "values": NETWORKS[s.name],
            "weights": {n: str(w.variance) for n, w in s.solution.items()},
            "checks": len(s.checks), "deviation": s.deviation, "verdict": r.verdict, "delta": r.delta, "power": r.power,
            "draws": r.draws, "seconds": s.seconds}


def _print(shown: list[Shown], document: Path) -> None:
    weights: list[list[Cell]] = []
    for s in shown:
        groups: dict[str, list[str]] = {}
        for name, w in s.solution.items():
            groups.setdefault(shown_formula(w.variance), []).append(name)
        weights += [[s.name if k == 0 else "", _names(names), variance]
                    for k, (variance, names) in enumerate(groups.items())]
    checks: list[list[Cell]] = [
        [s.name, ", ".join(f"{k} = {v}" for k, v in NETWORKS[s.name].items()), len(s.checks),
         f"{100 * s.deviation:.2f} %", s.verification.verdict, f"{s.seconds:.1f}"] for s in shown]
    first = shown[0].verification
    emit(table(["network", "weights", "Var(W_ij)"], weights, "solved: the second moment preserved forward"),
         table(["network", "sizes", "formulas", "largest deviation", "verdict", "seconds"], checks,
               f"verified: {first.draws} draws, tolerance {100 * first.delta:g} %"),
         f"derivation of {DOCUMENT}: {document}")
    hint("next: varflow list; varflow verify residual_block --set n=512; varflow gain gelu")


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} ... {names[-1]} ({len(names)})"
