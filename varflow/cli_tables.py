"""Tables of what varflow knows: layers, activations with their gains, shipped graphs.

The Markdown tables of the README and of docs/ops.md are written by this module:
``python -m varflow.cli_tables`` rewrites them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from varflow.activations import ACTIVATIONS, Activation
from varflow.cli_print import SCHEMA, Cell, emit, emit_json, table, text_of
from varflow.errors import InputError
from varflow.gain import ActivationGain, gain
from varflow.ops import OPS, Op

GAIN_COLUMNS = ("mean", "second_moment", "init_gain", "init_gain_centered", "derivative_second_moment", "chi")
SHORT = 40
"""Formulas of init_gain longer than this are left to `varflow gain NAME`."""


def fields_of(op: type[Op]) -> str:
    """A layer's fields in calling order; those with a default as ``name=default``."""
    parts = []
    for f in dataclasses.fields(op):
        parts.append(f.name if f.default is dataclasses.MISSING else f"{f.name}={_default(f.default)}")
    return ", ".join(parts)


def _default(value: object) -> str:
    """A default as one writes it: one number for a field of one number, an activation by its name."""
    named = [repr(name) for name, a in ACTIVATIONS.items() if a.expression == value]
    one = value[0] if isinstance(value, tuple) and len(value) == 1 else value
    return named[0] if named else repr(one) if isinstance(one, str) else str(one)


def layer_rows() -> list[tuple[str, str, str, str]]:
    """(name, fields, lemma, reference) of every layer, in order of registration."""
    return [(name, fields_of(op), op.lemma.sentence, op.lemma.reference) for name, op in OPS.items()]


def usage(activation: Activation) -> str:
    """How an activation is called, with its default parameters."""
    values = ", ".join(str(text_of(default)) for _, default in activation.parameters)
    return f"{activation.name}({values})" if values else activation.name


def gains() -> Iterable[tuple[Activation, ActivationGain]]:
    """Every named activation with its gains at a standard Gaussian."""
    return ((a, gain(a.at())) for a in ACTIVATIONS.values())


def gain_rows() -> list[list[Cell]]:
    """One row for each activation: call, numbers, formula of init_gain, reference."""
    rows: list[list[Cell]] = []
    for a, g in gains():
        numbers = g.numeric()
        rows.append([usage(a), *(_rounded(numbers[c]) for c in GAIN_COLUMNS), _short(g), a.reference])
    return rows


def _rounded(number: float | None) -> float | None:
    return number if number is None else 0.0 if abs(number) < 1e-9 else number


def _short(g: ActivationGain) -> str:
    if not g.closed_form["init_gain"]:
        return "integral"
    text = text_of(g.init_gain) or "-"
    return text if len(text) <= SHORT else "closed form"


# -- Markdown ----------------------------------------------------------------------------------------


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A Markdown table; what looks like a name or a formula stands as code."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_markdown(c) for c in row) + " |" for row in rows]
    return "\n".join(lines)


def _markdown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, (int, float)):
        return f"{cell:.6g}".replace("inf", "infinite")
    return str(cell).replace("|", "\\|")


def layers_markdown(lemmas: bool) -> str:
    """The table of layers; with their lemmas and references, or with fields alone."""
    if lemmas:
        rows = [(f"`{n}`", s, r) for n, _, s, r in layer_rows()]
        return markdown_table(("layer", "what happens to the moments", "reference"), rows)
    return markdown_table(("layer", "fields"), [(f"`{n}`", f"`{f}`" if f else "") for n, f, _, _ in layer_rows()])


def gains_markdown(every_column: bool) -> str:
    """The table of gains; all columns, or the two initialization gains and the slope."""
    names = ["activation", *GAIN_COLUMNS, "formula of init_gain", "reference"]
    keep = range(len(names)) if every_column else [0, 3, 4, 6, 7]
    rows = []
    for row in gain_rows():
        row[0] = f"`{row[0]}`"
        row[-2] = row[-2] if row[-2] in ("integral", "closed form") else f"`{row[-2]}`"
        rows.append([row[k] for k in keep])
    return markdown_table([names[k] for k in keep], rows)


def ops_page() -> str:
    """The text of docs/ops.md."""
    return (
        "# Layers and gains\n\nWritten from the registry by `varflow list --ops --markdown`; not to be edited.\n\n"
        f"## Layers\n\n{layers_markdown(True)}\n\nFields and their defaults:\n\n{layers_markdown(False)}\n\n"
        "## Activations\n\nMoments of f(z) for z ~ N(0, 1); `init_gain` = 1/sqrt(E f^2), "
        "`init_gain_centered` = 1/sqrt(Var f), `derivative_second_moment` = E f'^2, `chi` = E f'^2 / E f^2. "
        "\"closed form\": `varflow gain NAME` prints the formula; \"integral\": a number to 1e-10.\n\n"
        f"{gains_markdown(True)}\n"
    )


def replaced(text: str, name: str, content: str) -> str:
    """A Markdown text with the part between ``<!-- NAME -->`` and ``<!-- end NAME -->`` renewed."""
    pattern = rf"(<!-- {name} -->\n\n).*?(\n\n<!-- end {name} -->)"
    return re.sub(pattern, lambda m: f"{m[1]}{content}{m[2]}", text, flags=re.DOTALL)


def readme(text: str) -> str:
    """The README with its generated tables renewed."""
    return replaced(replaced(text, "layers", layers_markdown(False)), "gains", gains_markdown(False))


def write(root: Path) -> None:
    """Rewrite the generated tables of a source tree."""
    (root / "docs" / "ops.md").write_text(ops_page(), encoding="utf-8")
    path = root / "README.md"
    path.write_text(readme(path.read_text(encoding="utf-8")), encoding="utf-8")


# -- the command -------------------------------------------------------------------------------------


def show(ops: bool, markdown: bool, json: bool) -> None:
    """What ``varflow list`` prints."""
    if json and markdown:
        raise InputError("--json and --markdown exclude each other")
    if json:
        emit_json({"schema": SCHEMA} | (_ops_document() if ops else {"graphs": graph_entries()}))
    elif markdown:
        emit(ops_page() if ops else markdown_table(("graph", "nodes", "source"), _graph_rows()))
    elif ops:
        emit(table(["layer", "fields"], [row[:2] for row in layer_rows()], "layers"),
             table(["activation", *GAIN_COLUMNS, "formula of init_gain"], [r[:-1] for r in gain_rows()],
                   "activations of z ~ N(0, 1)"))
    else:
        emit(table(["graph", "nodes", "source"], _graph_rows(), "shipped graphs"))


def _ops_document() -> dict[str, Any]:
    layers = {n: {"fields": f, "lemma": s, "reference": r} for n, f, s, r in layer_rows()}
    activations = {
        a.name: {c: text_of(getattr(g, c)) for c in GAIN_COLUMNS}
        | {"call": usage(a), "reference": a.reference, "value": g.numeric(), "closed_form": dict(g.closed_form)}
        for a, g in gains()
    }
    return {"layers": layers, "activations": activations}


def graph_entries() -> list[dict[str, Any]]:
    """Name, source and size of every shipped graph."""
    from varflow.load import graph_names, load

    networks = [(name, load(name)) for name in graph_names()]
    return [{"name": n, "source": net.source, "nodes": sum(1 for _ in net.nodes())} for n, net in networks]


def _graph_rows() -> list[list[Cell]]:
    return [[e["name"], e["nodes"], e["source"]] for e in graph_entries()]


if __name__ == "__main__":
    write(Path(__file__).resolve().parent.parent)
