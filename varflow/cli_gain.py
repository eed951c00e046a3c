"""What ``varflow gain`` prints and writes. It loads no network: neither layers nor simulation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sympy as sp

from varflow.cli_print import Cell, emit, emit_json, hint, table, text_of
from varflow.cli_sheet import Table
from varflow.errors import InputError
from varflow.fixed_points import FixedPoint
from varflow.gain import FIELDS
from varflow.gain import gain as gain_of
from varflow.gain_report import SATURATED, GainReport, Settled, readable
from varflow.symbols import positive


def run(activation: str, q: str, mean: str, settings: Sequence[str], *, json: bool = False,
        output: Path | None = None, maps: bool = False, latex: bool = False, weight_scale: str | None = None,
        bias_variance: str = "0") -> None:
    """Print the gains of one activation, or write them as a document."""
    if latex and (json or output is not None):
        raise InputError(f"--latex and {'--json' if json else '--output'} exclude each other",
                         instead="--latex alone, or -o FILE.tex for a document")
    scale = None if weight_scale is None else _read(weight_scale, "--weight-scale")
    report = GainReport(gain_of(activation, _read(q, "--q"), _read(mean, "--mean")), scale,
                        _read(bias_variance, "--bias-variance"), _values(settings), activation.strip())
    for name in report.values:
        if name not in report.open_symbols:
            options = {"q": "--q", "mean": "--mean", "s": "--weight-scale", "b": "--bias-variance"}
            raise InputError(f"--set {name}: no symbol of this name is open",
                             instead=f"{options[name]} {report.values[name]:g}" if name in options else "no --set")
    asked = maps or weight_scale is not None or bias_variance != "0"
    if asked and report.maps is None:
        raise InputError(f"{report.gain.title} has no maps", why="it is zero, or takes several arguments",
                         instead="the command without --maps")
    if output is not None:
        _write(report, output, json)
    elif json:
        emit_json(report.document(asked))
    elif latex:
        emit(*_latex(report, asked))
    else:
        _tables(report, asked)


def _read(text: str, where: str) -> sp.Expr:
    """A number or an expression of symbols; plain digits need no grammar."""
    if text.isdecimal() and text.isascii() and len(text) < 10:
        return sp.Integer(text)
    if text.strip("+- ").lower() in ("nan", "inf", "infinity"):
        raise InputError(f"{text} is no finite real number", where, instead=f"{where} 2, or a symbol: {where} q")
    from varflow.expressions import parse

    return parse(text, positive, where=where)


def _values(settings: Sequence[str]) -> Mapping[str, float]:
    if not settings:
        return {}
    from varflow.cli_subject import read_values

    return read_values(settings)


def _write(report: GainReport, output: Path, json: bool) -> None:
    from varflow.export.gain_report import export_gain

    path = export_gain(report, output)
    if json:
        emit_json({"schema": 1, "path": str(path)})
    else:
        emit(str(path))


def _latex(report: GainReport, maps: bool) -> Iterator[str]:
    """One equation a line."""
    from varflow.export.gain_report import equations

    yield from equations(report, maps)


def _tables(report: GainReport, maps: bool) -> None:
    g, numbers = report.gain, report.numbers
    rows: list[list[Cell]] = []
    for name in FIELDS:
        value = getattr(g, name)
        if value is not None or name in FIELDS[:8]:
            shown = value if value is None else readable(value)
            rows.append([name, numbers.get(name), shown, "integral" if value is not None and not g.closed_form[name]
                         else ""])
    if report.saturated is not None:
        rows.append([f"share of |f'| < {SATURATED:g}", report.saturated, None, ""])
    where = f"x ~ N({text_of(g.input_mean)}, {text_of(g.input_variance)})"
    parts: list[Table | str] = [table(["field", "value", "formula", ""], rows, f"{_head(report)}, {where}")]
    if maps:
        parts += _maps_tables(report)
    emit(*parts)
    if report.missing:
        hint("numbers: " + " ".join(f"--set {name}=..." for name in report.missing))
    elif not maps and report.maps is not None:
        hint("fixed points of variance and correlation: --maps; a document: -o FILE.pdf")


def _head(report: GainReport) -> str:
    function = getattr(report.gain, "function", None)
    outputs = (report.gain.activation,) if function is None else function.outputs  # type: ignore[attr-defined]
    text = ", ".join(str(text_of(f)) for f in outputs)
    return f"f(x) = {text}" if function is None else f"{function} = {text}"


def _maps_tables(report: GainReport) -> Iterator[Table | str]:
    maps = report.maps
    assert maps is not None
    names = ("weight_scale", "bias_variance", "q_map", "kernel", "derivative_kernel", "chi")
    yield table(["map", "formula"], [[n, readable(getattr(maps, n))] for n in names if getattr(maps, n) is not None],
                "q' = s E f(x)^2 + b; kernels of u, v ~ N(0, q) of correlation c")
    if report.settled:
        columns = ["", "fixed point", "slope", "", "depth scale", "chi"]
        every = ": every q is kept" if maps.fixed_points.every else ""
        yield table(columns, [row for s in report.settled for row in _rows(s)], f"fixed points{every}")
    elif report.followed:
        yield "The variance map has no fixed point but 0." if maps.fixed_points.points else (
            "The variance map has no fixed point.")


def _rows(settled: Settled) -> Iterator[list[Cell]]:
    yield ["q*", *_cells(settled.variance), settled.chi]
    for p in settled.correlations:
        yield ["  c*", *_cells(p), None]


def _cells(p: FixedPoint) -> list[Any]:
    return [p.value, p.slope, p.stability, p.depth_scale]
