"""What the LaTeX and the Markdown exporter share: templates, and equations broken into lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from varflow.export.document import Equation
from varflow.export.formulas import width
from varflow.export.sums import LINE

if TYPE_CHECKING:
    from jinja2 import Environment


def environment() -> Environment:
    """Templates with <% %> for statements and << >> for values; every value is escaped by a filter of ours."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("varflow.export", "templates"), undefined=StrictUndefined, autoescape=False,
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>", trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True)


def lines(eq: Equation, room: float = LINE) -> Iterator[tuple[str, str]]:
    """(left side, right side with its relation) line by line; sums break before a sign."""
    left = eq.left
    indent = width(eq.left)
    for text in _joined([text for side in eq.sides for text in _broken(side, room - indent - 3)], room - indent):
        yield left, text
        left = ""
    for part in eq.where:
        for k, (a, b) in enumerate(lines(part, room)):
            yield (rf"\text{{with }} {a}" if k == 0 and part is eq.where[0] else a), b


def _joined(parts: list[str], room: float) -> list[str]:
    """Neighbouring sides on one line where they fit."""
    out = parts[:1]
    for part in parts[1:]:
        if part.startswith("=") and not out[-1].startswith(r"\quad") and width(out[-1]) + width(part) < 0.75 * room:
            out[-1] = f"{out[-1]} {part}"
        else:
            out.append(part)
    return out


def _broken(terms: tuple[str, ...], room: float) -> Iterator[str]:
    line, used = "= ", 0.0
    for i, term in enumerate(terms):
        w = width(term)
        if i and used + w > room:
            yield line
            line, used = r"\quad ", 4.0
        line, used = f"{line}{term} ", used + w
    yield line.rstrip()
