"""The gain report as a document: .tex, .pdf, .md, .json, or its maps as .png or .svg."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sympy as sp

from varflow.errors import InputError
from varflow.export.document import Equation
from varflow.export.formulas import meanings, printed
from varflow.export.latex import display, prose, set_pdf
from varflow.export.names import latex_text, markdown_code, markdown_text
from varflow.export.rendering import environment
from varflow.export.sums import equation
from varflow.fixed_points import FixedPoint
from varflow.gain_fields import FIELDS, LATEX
from varflow.gain_report import SATURATED, GainReport, readable
from varflow.gain_single import ActivationGain
from varflow.symbols import X, arg

SUFFIXES = (".tex", ".pdf", ".md", ".json", ".png", ".svg")
FIGURE = "maps.pdf"
NAMES: Mapping[sp.Symbol, str] = {X: "x", **{arg(i): f"x_{{{i + 1}}}" for i in range(64)}}


@dataclass(frozen=True)
class Page:
    """What the templates of a gain report read: texts, LaTeX formulas and rows of numbers."""

    title: str
    law: str
    function: tuple[Equation, ...]
    fields: tuple[tuple[str, str, str, str], ...]
    formulas: tuple[Equation, ...]
    maps: tuple[Equation, ...]
    setting: str
    notes: tuple[str, ...]
    points: tuple[tuple[str, ...], ...]
    figure: str = ""
    meanings: tuple[tuple[str, str], ...] = ()


def export_gain(report: GainReport, path: str | Path) -> Path:
    """Write a gain report; the suffix of ``path`` chooses the format. Returns the path.

    Raises InputError for another suffix, MissingExtraError where LaTeX or matplotlib is missing.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"the suffix {suffix!r} names no format of a gain report", str(target),
                         instead="one of " + ", ".join(SUFFIXES))
    if not target.absolute().parent.is_dir():
        raise InputError(f"there is no folder {target.parent}", str(target), instead="a path in an existing folder")
    if suffix in (".png", ".svg"):
        from varflow.export.gain_plot import image

        target.write_bytes(image(report, suffix[1:]))
    elif suffix == ".pdf":
        _pdf(report, target)
    else:
        target.write_text(_text(report, suffix), encoding="utf-8", newline="\n")
    return target


def _text(report: GainReport, suffix: str) -> str:
    if suffix == ".json":
        return json.dumps(finite(report.document()), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return to_latex(page(report)) if suffix == ".tex" else to_markdown(page(report))


def _pdf(report: GainReport, target: Path) -> None:
    """With the figure of the maps where matplotlib is installed."""
    figures = {}
    if report.settled and find_spec("matplotlib") is not None:
        from varflow.export.gain_plot import image

        figures = {FIGURE: image(report, "pdf")}
    set_pdf(to_latex(page(report, next(iter(figures), ""))), target, figures)


def finite(value: Any) -> Any:
    """A JSON document with null for what is not finite."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- what the document says ----------------------------------------------------------------------------------


def page(report: GainReport, figure: str = "") -> Page:
    """The report's texts, formulas and rows."""
    g = report.gain
    law = rf"x \sim \mathcal{{N}}({printed(g.input_mean, {})}, {printed(g.input_variance, {})})"
    known = [(n, v) for n in FIELDS if (v := getattr(g, n)) is not None]
    fields = tuple((n, LATEX[n], number(report.numbers.get(n)),
                    "formula" if g.closed_form[n] else "integral") for n, _ in known)
    formulas = tuple(equation(LATEX[n], readable(v), NAMES) for n, v in known if _worth(v))
    return Page(_title(report), law, _function(report), fields, formulas, _maps(report), _setting(report),
                _notes(report), tuple(_rows(report)), figure, _meanings(report))


def _worth(value: sp.Expr) -> bool:
    """Whether a formula says more than its number in the table."""
    return bool(value.free_symbols) or not (value.is_Rational or readable(value).has(sp.Float))


def _title(report: GainReport) -> str:
    function = getattr(report.gain, "function", None)
    return report.name or ("an activation" if function is None else str(function))


def _function(report: GainReport) -> tuple[Equation, ...]:
    if isinstance(report.gain, ActivationGain):
        return (equation("f(x)", readable(report.gain.activation), NAMES),)
    outputs = report.gain.function.outputs  # type: ignore[attr-defined]
    return tuple(equation("f" if len(outputs) == 1 else rf"f_{{{i + 1}}}", f, NAMES) for i, f in enumerate(outputs))


def _maps(report: GainReport) -> tuple[Equation, ...]:
    maps = report.maps
    if maps is None:
        return ()
    found = [("q'", maps.q_map), (r"\mathbb{E}[f(u) f(v)]", maps.kernel),
             (r"\mathbb{E}[f'(u) f'(v)]", maps.derivative_kernel), (r"\chi(q)", maps.chi)]
    return tuple(equation(left, readable(expr), NAMES) for left, expr in found if expr is not None)


def _meanings(report: GainReport) -> tuple[tuple[str, str], ...]:
    """Functions that not everybody knows by their symbol."""
    maps = report.maps
    told = [getattr(report.gain, n) for n in FIELDS] + ([maps.kernel, maps.derivative_kernel] if maps else [])
    return meanings(told)


def _setting(report: GainReport) -> str:
    maps = report.maps
    if maps is None:
        return ""
    default = report.weight_scale is None
    s, b = printed(readable(maps.weight_scale), NAMES), printed(maps.bias_variance, NAMES)
    return rf"s = {s},\quad b = {b}" + (r"\quad (s = 1/\mathbb{E} f(z)^2)" if default else "")


def _notes(report: GainReport) -> tuple[str, ...]:
    notes = []
    if report.saturated is not None:
        notes.append(f"The derivative is below {SATURATED:g} in size for a share of {number(report.saturated)} "
                     "of the inputs.")
    if report.gain.has_jump:
        notes.append("The function jumps: derivatives leave the jumps out, and the slope of the correlation map "
                     "at 1 is infinite.")
    if report.settled and report.maps is not None and report.maps.fixed_points.every:
        notes.append("The variance map keeps every variance.")
    return tuple(notes)


def _rows(report: GainReport) -> Any:
    for s in report.settled:
        yield ("q", *point_row(s.variance), number(s.chi))
        yield from (("c", *point_row(p), "") for p in s.correlations)


def point_row(p: FixedPoint) -> tuple[str, str, str, str]:
    """Value, slope, stability and depth scale as text."""
    return number(p.value), number(p.slope), p.stability, number(p.depth_scale)


def number(value: float | None) -> str:
    """A float with seven digits."""
    if value is None:
        return ""
    if math.isinf(value):
        return "infinite"
    return f"{0.0 if abs(value) < 1e-12 else value:.7g}"


def equations(report: GainReport, maps: bool) -> list[str]:
    """The formulas as LaTeX, one a line."""
    p = page(report)
    return [_plain(eq) for eq in (*p.function, *p.formulas, *(p.maps if maps else ()))]


# -- rendering -----------------------------------------------------------------------------------------------


def to_latex(p: Page) -> str:
    """The page as a LaTeX document."""
    env = environment()
    env.filters.update(tex=latex_text, prose=prose, display=display)
    return env.get_template("gain.tex.j2").render(p=p)


def to_markdown(p: Page) -> str:
    """The page as Markdown with formulas between dollar signs."""
    env = environment()
    env.filters.update(md=markdown_text, code=markdown_code, plain=_plain)
    return env.get_template("gain.md.j2").render(p=p)


def _plain(eq: Equation) -> str:
    """An equation on one line, its abbreviations behind it."""
    sides = "".join(f" = {' '.join(side)}" for side in eq.sides)
    parts = "".join(rf",\quad {_plain(part)}" for part in eq.where)
    return f"{eq.left}{sides}{parts}"
