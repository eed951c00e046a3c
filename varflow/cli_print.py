"""Printing: tables for a person, JSON for programs, on stdout; hints on stderr."""

from __future__ import annotations

import json as json_module
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import sympy as sp

from varflow.cli_sheet import Table
from varflow.errors import ExpressionError
from varflow.expressions import to_text

SCHEMA = 1
Cell: TypeAlias = str | float | sp.Basic | None


def printable(text: str) -> str:
    """The text without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def folded(expr: sp.Basic) -> sp.Basic:
    """Constants like pi as numbers, where the formula has numbers without a closed form anyway."""
    if not expr.has(sp.Float):
        return expr
    return expr.xreplace({c: c.evalf(15) for c in expr.atoms(sp.NumberSymbol)})


def text_of(expr: sp.Basic | None) -> str | None:
    """A formula in the expression grammar, or as sympy writes it where the grammar has no words."""
    if expr is None:
        return None
    try:
        return to_text(folded(expr))
    except ExpressionError:
        return str(expr)


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, (float, int)):
        return f"{cell:.6g}"
    return printable(cell if isinstance(cell, str) else shown_formula(cell))


def shown_formula(expr: sp.Basic) -> str:
    """A formula for the eye: numbers without a closed form to ten digits."""
    expr = folded(expr)
    return text_of(expr.xreplace({f: sp.Float(f"{float(f):.10g}") for f in expr.atoms(sp.Float)})) or "-"


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], title: str = "") -> Table:
    """A table without wrapping surprises; numbers to six digits, absent formulas as a dash."""
    shown = tuple(tuple(_shown(cell).expandtabs(8) for cell in row) for row in rows)
    return Table(printable(title), tuple(columns), shown)


def emit(*parts: Table | str) -> None:
    """Print on stdout: within the terminal's width, or, in a pipe, unwrapped and without styles."""
    try:
        if sys.stdout.isatty():
            _styled(parts)
        else:
            sys.stdout.writelines(line.rstrip() + "\n" for part in parts for line in _lines(part))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lines(part: Table | str) -> Iterable[str]:
    return (part.splitlines() or [""]) if isinstance(part, str) else part.lines()


def _styled(parts: Iterable[Table | str]) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part if isinstance(part, str) else part.rich(), soft_wrap=isinstance(part, str))


def emit_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout; what is not finite becomes null."""
    emit(json_text(document))


def json_text(document: Mapping[str, Any]) -> str:
    """A JSON document as text; what is not finite becomes null."""
    return json_module.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value


def hint(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)
