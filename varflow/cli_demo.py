"""``varflow demo``: published networks derived, solved, verified, and one of them written as a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varflow.cli_print import SCHEMA, Cell, emit, emit_json, hint, shown_formula, table
from varflow.cli_status import DONE, FAILED, INCONCLUSIVE, OF_VERDICT
from varflow.derive import derive
from varflow.errors import InputError, MissingExtraError
from varflow.export import export
from varflow.load import load
from varflow.solve import Solution, solve
from varflow.verify import verify
from varflow.verify_check import Check
from varflow.verify_report import Verification

SOLVED = ("mlp_relu", "nerf_mlp")
"""Shipped graphs that are solved and, being deep, not simulated here."""
VERIFIED: Mapping[str, Mapping[str, int]] = {
    "residual_block": {"n": 256},
    "residual_mlp_scaled": {"n": 128, "L": 4},
    "autoencoder_tied": {"n": 256, "m": 128},
    "gated_ffn": {"d": 256, "m": 512},
    "two_branch_gate": {"n": 256},
}
"""Shipped graphs and the sizes they are simulated at."""
DOCUMENT = "two_branch_gate"
MOST = 24
"""How many times the draws asked for a network may get until its checks are decided."""


@dataclass(frozen=True)
class Shown:
    """One network of the demo."""

    name: str
    solution: Solution
    verification: Verification

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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be a folder", why=error.strerror or "", instead="-o FOLDER") from None
    hint("the first run compiles the simulation's kernels; they are kept for the next")
    solved = {name: solve(derive(load(name))) for name in (*SOLVED, *VERIFIED)}
    shown = [_verified(name, solved[name], draws) for name in VERIFIED]
    document = _document(next(s for s in shown if s.name == DOCUMENT), folder)
    if json:
        weights = {n: {w: str(law.variance) for w, law in s.items()} for n, s in solved.items()}
        emit_json({"schema": SCHEMA, "weights": weights, "networks": [_entry(s) for s in shown],
                   "document": str(document)})
    else:
        _print(solved, shown, document)
    return max((OF_VERDICT[s.verification.verdict] for s in shown), key=[DONE, INCONCLUSIVE, FAILED].index)


def _verified(name: str, solution: Solution, draws: int) -> Shown:
    result = verify(solution, values=dict(VERIFIED[name]), draws=draws, seed=0, max_draws=MOST * draws)
    hint(f"{name}: {result.verdict}, {result.seconds:.1f} s")
    return Shown(name, solution, result)


def _document(shown: Shown, folder: Path) -> Path:
    try:
        return export(shown.solution, folder / f"{shown.name}.pdf", verification=shown.verification)
    except MissingExtraError as error:
        hint(str(error))
        return export(shown.solution, folder / f"{shown.name}.tex", verification=shown.verification)


def _entry(s: Shown) -> dict[str, Any]:
    r = s.verification
    return {"network": s.name, "values": VERIFIED[s.name], "checks": len(s.checks), "deviation": s.deviation,
            "verdict": r.verdict, "delta": r.delta, "power": r.power, "draws": r.draws, "seconds": r.seconds}


def _print(solved: Mapping[str, Solution], shown: list[Shown], document: Path) -> None:
    weights: list[list[Cell]] = []
    for network, solution in solved.items():
        groups: dict[str, list[str]] = {}
        for name, w in solution.items():
            groups.setdefault(shown_formula(w.variance), []).append(name)
        weights += [[network if k == 0 else "", _names(names), variance]
                    for k, (variance, names) in enumerate(groups.items())]
    checks: list[list[Cell]] = [
        [s.name, ", ".join(f"{k} = {v}" for k, v in VERIFIED[s.name].items()), len(s.checks),
         f"{100 * s.deviation:.2f} %", s.verification.verdict, s.verification.draws,
         f"{s.verification.seconds:.1f}"] for s in shown]
    delta = shown[0].verification.delta
    emit(table(["network", "weights", "Var(W_ij)"], weights, "solved: the second moment preserved forward"),
         table(["network", "sizes", "formulas", "largest deviation", "verdict", "draws", "seconds"], checks,
               f"verified: tolerance {100 * delta:g} %, drawn until every formula is decided"),
         f"derivation of {DOCUMENT}: {document}")
    hint("next: varflow list; varflow verify residual_block --set n=512; varflow gain gelu")


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} ... {names[-1]} ({len(names)})"
