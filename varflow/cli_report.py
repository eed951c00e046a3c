"""What commands print: tables for a person, JSON documents for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sympy as sp

from varflow.cli_print import (
    Cell,
    emit,
    emit_json,
    hint,
    printable,
    shown_formula,
    table,
)
from varflow.cli_sheet import Table
from varflow.cli_subject import Subject
from varflow.derive import Derivation, WeightLaw
from varflow.errors import UnsupportedError
from varflow.export import to_json
from varflow.export.bounded import Bounded, TooLong
from varflow.ops.linear import weight_group
from varflow.program import has_windows

OPERATIONS, LONGEST = 60, 72
"""Formulas of more operations, or longer as text, are shown as the local step in tables."""
MOST_NAMED = 4


# -- derive ------------------------------------------------------------------------------------------


def document(subject: Subject, verification: Any = None) -> dict[str, Any]:
    """The JSON document; with numbers where every symbol has a value."""
    return to_json(subject.result, None if subject.missing else dict(subject.values), verification)


def derivation(subject: Subject, json: bool) -> None:
    """The laws of all nodes."""
    if json:
        emit_json(document(subject))
        return
    d = subject.derivation
    columns = ["node", "op", "E[x^2]", "E[(dL/dx)^2]", "exactness", "tier"]
    refusals, used = list[str](), dict[str, None]()
    rows = _law_rows(d, d, used)
    if not subject.missing:
        numbers = d.numbers(subject.values)
        columns[3:3], columns[5:5] = ["="], ["="]
        for row, name in zip(rows, d, strict=True):
            row.insert(3, _number(numbers.second, name, refusals))
            row.insert(5, _number(numbers.gradient, name, refusals))
    emit(table(columns, rows, d.network.name))
    for reason in dict.fromkeys(refusals):
        hint(f"no number (-) for {refusals.count(reason)} of the moments: {reason}")
    own = {f"{kind}_{name}" for name in d for kind in ("q", "m", "g")} | d.free_symbols()
    if others := [name for name in used if name not in own]:
        some = ", ".join(others[:MOST_NAMED]) + (", ..." if len(others) > MOST_NAMED else "")
        hint(f"{some}: moments between nodes and scales of norms; documents (varflow export) have their equations")
    if d.unknowns():
        hint("unknown scales: --preserve forward (or backward, harmonic, geometric) solves for them")
    elif subject.missing:
        hint("numbers: " + " ".join(f"--set {name}=..." for name in subject.missing))


def _number(find: Callable[[str], Any], name: str, refusals: list[str]) -> Cell:
    """A moment of a node as a number; None, and why, where it has none."""
    try:
        return float(find(name))
    except UnsupportedError as error:
        refusals.append(str(error).replace("\n", ";"))
        return None


def _law_rows(d: Derivation, names: Iterable[str], used: dict[str, None]) -> list[list[Cell]]:
    """A row for each node; names in its equations are added to ``used``."""
    bounded = Bounded(OPERATIONS)
    rows: list[list[Cell]] = []
    for name, law in [(n, d[n]) for n in names]:
        backward = sp.S.Zero if law.backward is None else law.backward.second
        rows.append([name, op_of(d, name), _formula(bounded.state(law.forward.second), law.equation, used),
                     _formula(bounded.state(backward), law.grad_equation, used),
                     _both(law.exactness, law.grad_exactness), law.tier])
    return rows


def _both(forward: str, backward: str) -> str:
    return forward if forward == backward else f"{forward}, {backward}"


def _formula(found: sp.Expr | TooLong | None, step: sp.Eq | None, used: dict[str, None]) -> Cell:
    text = None if found is None or isinstance(found, TooLong) else shown_formula(found)
    if step is None or (text is not None and len(text) <= LONGEST) or found is None:
        return text
    used |= dict.fromkeys(sorted(map(str, step.rhs.free_symbols)))
    return f"{step.lhs} = {shown_formula(step.rhs)}"


def op_of(d: Derivation, name: str) -> str:
    """The layer's name of a node, in blocks too; empty where it cannot be told."""
    network, path = d.network, name.split(":")[0]
    while True:
        head, _, rest = path.partition(".")
        base = head.split("[")[0]
        if base not in network.graph:
            return ""
        op = str(network.graph.nodes[base]["op"])
        if op != "block" or not rest:
            return op
        network, path = network.graph.nodes[base]["body"], rest


# -- solve -------------------------------------------------------------------------------------------


def solution(subject: Subject, json: bool) -> None:
    """The initialization of every weight, and how it was determined."""
    s = subject.solution
    assert s is not None
    if json:
        emit_json(document(subject))
        return
    rows = _weight_rows(s.weights, subject.values)
    columns = ["weight", "Var(W_ij)", "std sqrt(fan_in)", "draw", *(["std ="] if subject.values else [])]
    parts: list[Table | str] = [table(columns, rows, f"{s.derivation.network.name}: preserve {s.preserve}")]
    if s.equations:
        conditions = [[str(u), f"{shown_formula(c.lhs)} = {shown_formula(c.rhs)}", a,
                       "formula" if closed else "number"] for u, c, a, closed in s.equations]
        parts.append(table(["unknown", "condition", "answer", ""], conditions))
    emit(*parts, _ends(subject), *map(printable, s.notes))


def _ends(subject: Subject) -> Table:
    """What the solved network makes of its inputs, and of a unit gradient at its outputs; numbers too where every
    symbol has one, but none that take long (of positions, by a population) unless values were set."""
    s = subject.solution
    assert s is not None
    d, refusals = s.derivation, list[str]()
    names = dict.fromkeys([*d.inputs, *(h.key for h in d.network.outputs())])
    columns, rows = ["node", "E[x^2]", "E[(dL/dx)^2]"], [[r[0], r[2], r[3]] for r in _law_rows(d, names, {})]
    quick = not has_windows(d.program) and all(d[name].tier != "population" for name in names)
    if not subject.missing and (subject.values or quick):
        numbers = d.numbers(subject.values)
        columns = ["node", "E[x^2]", "=", "E[(dL/dx)^2]", "="]
        rows = [[name, q, _number(numbers.second, name, refusals), g, _number(numbers.gradient, name, refusals)]
                for name, (_, q, g) in zip(names, rows, strict=True)]
    elif any(cell is None or " = " in str(cell) for row in rows for cell in row):
        hint("numbers: " + (" ".join(f"--set {name}=..." for name in subject.missing) or
                            f"varflow derive with --preserve {s.preserve}"))
    return table(columns, rows, "what becomes of the signal, and of a unit gradient")


def _weight_rows(weights: Mapping[str, WeightLaw], values: Mapping[str, float]) -> list[list[Cell]]:
    """One row for each weight; equal weights of a repeated block share one."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, w in weights.items():
        groups.setdefault((weight_group(name), w.draw), []).append(name)
    rows: list[list[Cell]] = []
    for names in groups.values():
        w = weights[names[0]]
        shown = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
        row: list[Cell] = [shown, w.variance, w.init_gain, w.draw]
        rows.append([*row, _value(w.std, values)] if values else row)
    return rows


def _value(expr: sp.Expr, values: Mapping[str, float]) -> float | None:
    number = expr.xreplace({s: sp.Float(values[s.name]) for s in expr.free_symbols if s.name in values})
    return None if number.free_symbols else float(number)

