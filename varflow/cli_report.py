"""What commands print: tables for a person, JSON documents for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy as sp
from rich.table import Table

from varflow.cli_print import SCHEMA, Cell, emit, emit_json, hint, printable, shown_formula, table, text_of
from varflow.cli_subject import Subject, read_values
from varflow.derive import Derivation, NodeLaw, WeightLaw

LONGEST = 72
"""Formulas longer than this are shown as the local step in tables; JSON always has the whole."""


# -- derive ------------------------------------------------------------------------------------------


def derivation(subject: Subject, json: bool) -> None:
    """The laws of all nodes."""
    if json:
        emit_json(document(subject))
        return
    d, numbers = subject.derivation, _numbers(subject)
    columns = ["node", "op", "E[x^2]", "E[(dL/dx)^2]", "exactness", "tier"]
    rows = [_law_row(d, name, d[name]) for name in d]
    if numbers:
        columns[3:3], columns[5:5] = ["="], ["="]
        for row, name in zip(rows, d, strict=True):
            row.insert(3, numbers[name]["second_moment"])
            row.insert(5, numbers[name]["grad_second_moment"])
    emit(table(columns, rows, d.network.name))
    if d.unknowns():
        hint("unknown scales: --preserve forward (or backward, harmonic, geometric) solves for them")
    elif subject.missing:
        hint("numbers: " + " ".join(f"--set {name}=..." for name in subject.missing))


def _law_row(d: Derivation, name: str, law: NodeLaw) -> list[Cell]:
    return [name, op_of(d, name), _formula(law.second_moment, law.equation),
            _formula(law.grad_second_moment, law.grad_equation), _both(law.exactness, law.grad_exactness), law.tier]


def _both(forward: str, backward: str) -> str:
    return forward if forward == backward else f"{forward}, {backward}"


def _formula(expr: sp.Expr | None, step: sp.Eq | None) -> Cell:
    text = None if expr is None else shown_formula(expr)
    if text is None or len(text) <= LONGEST or step is None:
        return text
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


def _numbers(subject: Subject) -> dict[str, dict[str, Any]]:
    return {} if subject.missing else subject.derivation.numeric(subject.values)


# -- solve -------------------------------------------------------------------------------------------


def solution(subject: Subject, json: bool) -> None:
    """The initialization of every weight, and how it was determined."""
    s = subject.solution
    assert s is not None
    if json:
        emit_json(document(subject))
        return
    rows = [_weight_row(name, w, subject.values) for name, w in s.weights.items()]
    columns = ["weight", "Var(W_ij)", "std sqrt(fan_in)", "draw", *(["std ="] if subject.values else [])]
    parts: list[Table | str] = [table(columns, rows, f"{s.derivation.network.name}: preserve {s.preserve}")]
    if s.equations:
        conditions = [[str(u), f"{shown_formula(c.lhs)} = {shown_formula(c.rhs)}", a,
                       "formula" if closed else "number"] for u, c, a, closed in s.equations]
        parts.append(table(["unknown", "condition", "answer", ""], conditions))
    emit(*parts, *map(printable, s.notes))


def _equation(condition: sp.Eq) -> str:
    return f"{text_of(condition.lhs)} = {text_of(condition.rhs)}"


def _weight_row(name: str, w: WeightLaw, values: Mapping[str, float]) -> list[Cell]:
    row: list[Cell] = [name, w.variance, w.init_gain, w.draw]
    return [*row, _value(w.std, values)] if values else row


def _value(expr: sp.Expr, values: Mapping[str, float]) -> float | None:
    number = expr.xreplace({s: sp.Float(values[s.name]) for s in expr.free_symbols if s.name in values})
    return None if number.free_symbols else float(number)


# -- documents ---------------------------------------------------------------------------------------

NODE_FIELDS = ("mean", "second_moment", "variance", "gain", "local_gain", "grad_second_moment", "grad_gain",
               "grad_local_gain")
WEIGHT_FIELDS = ("variance", "std", "init_gain", "fan_in", "fan_out")


def document(subject: Subject) -> dict[str, Any]:
    """The JSON document of a derivation or a solution."""
    d, numbers = subject.derivation, _numbers(subject)
    result: dict[str, Any] = {"schema": SCHEMA, "network": d.network.name, "symbols": dict(subject.values)}
    result["nodes"] = {name: node_document(d, name) | {"value": numbers.get(name, {})} for name in d}
    result["weights"] = {n: weight_document(w, subject.values) for n, w in d.weights.items()}
    if subject.solution is not None:
        s = subject.solution
        result["preserve"], result["notes"] = s.preserve, list(s.notes)
        result["equations"] = [
            {"unknown": str(u), "condition": _equation(c), "answer": text_of(a), "closed_form": closed}
            for u, c, a, closed in s.equations]
    return result


def node_document(d: Derivation, name: str) -> dict[str, Any]:
    """One node: its formulas as text, and how true they are."""
    law = d[name]
    fields: dict[str, Any] = {field: text_of(getattr(law, field)) for field in NODE_FIELDS}
    return fields | {
        "op": op_of(d, name), "exactness": law.exactness, "grad_exactness": law.grad_exactness, "tier": law.tier,
        "assumptions": list(law.assumptions), "equation": _step(law.equation),
        "grad_equation": _step(law.grad_equation),
    }


def _step(equation: sp.Eq | None) -> str | None:
    return None if equation is None else _equation(equation)


def weight_document(w: WeightLaw, values: Mapping[str, float]) -> dict[str, Any]:
    """One weight: its formulas as text, and numbers where every symbol is set."""
    numbers = {f: _value(getattr(w, f), values) for f in WEIGHT_FIELDS}
    return {f: text_of(getattr(w, f)) for f in WEIGHT_FIELDS} | {
        "distribution": w.distribution, "draw": w.draw, "value": {k: v for k, v in numbers.items() if v is not None}}


# -- gain --------------------------------------------------------------------------------------------


def gain(activation: str, q: str, mean: str, settings: Sequence[str], json: bool) -> None:
    """The gains of one activation."""
    from varflow.expressions import parse
    from varflow.gain import FIELDS
    from varflow.gain import gain as gain_of
    from varflow.symbols import positive

    result = gain_of(activation, parse(q, positive), parse(mean, positive))
    values = read_values(settings)
    formulas = {name: getattr(result, name) for name in FIELDS}
    missing = {str(s) for f in formulas.values() if f is not None for s in f.free_symbols} - set(values)
    numbers = {} if missing else result.numeric(values)
    if json:
        emit_json({"schema": SCHEMA, "activation": text_of(result.activation)}
                  | {name: text_of(f) for name, f in formulas.items()}
                  | {"value": numbers, "closed_form": dict(result.closed_form)})
        return
    rows = [[name, numbers.get(name), f, "" if result.closed_form[name] or f is None else "integral"]
            for name, f in formulas.items()]
    emit(table(["field", "value", "formula", ""], rows, f"f(x) = {text_of(result.activation)}, "
               f"x ~ N({text_of(result.input_mean)}, {text_of(result.input_variance)})"))
    if missing:
        hint("numbers: " + " ".join(f"--set {name}=..." for name in sorted(missing)))
