"""A document as GitHub-flavoured Markdown with formulas between dollar signs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from varflow.export.document import EXACTNESS_TEXT, TIER_TEXT, Document, Equation, NameList
from varflow.export.formulas import FORMULA
from varflow.export.names import markdown_code, markdown_text
from varflow.export.references import Citation
from varflow.export.rendering import environment, lines

_CODE = re.compile(rf"\b(?:fan_in|fan_out|Var\(\w_ij\))|{FORMULA.pattern.replace('(', '(?P<formula>', 1)}")


def prose(text: str) -> str:
    """A sentence of ours; the names of quantities in it as code."""
    parts: list[str] = []
    end = 0
    for match in _CODE.finditer(text):
        shown = inline(match["formula"]) if match["formula"] else f"`{match[0]}`"
        parts += [markdown_text(text[end:match.start()]), shown]
        end = match.end()
    return _spaced(text, parts, end)


def _spaced(text: str, parts: list[str], end: int) -> str:
    """The pieces with the spaces around code that escaping takes away."""
    out = ""
    for part in [*parts, markdown_text(text[end:])]:
        glue = out and part and not out.endswith("(") and part[0] not in ",.;:)"
        out += f" {part}" if glue else part
    return out


def names(nodes: NameList) -> str:
    """A list of names as code."""
    return ", ".join("…" if n == "…" else markdown_code(n) for n in nodes.shown)


def cited(citations: Sequence[Citation]) -> str:
    """Numbers of references behind a sentence."""
    return "".join(f" [{c.number}{', ' + markdown_text(c.detail) if c.detail else ''}]" for c in citations)


def display(equations: Iterable[Equation]) -> str:
    """Equations as one block."""
    rows = [f"{left} &{right}" for eq in equations for left, right in lines(eq)]
    if not rows:
        return ""
    return "$$\n\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}\n$$\n"


def inline(formula: str) -> str:
    """A formula within a line or a table."""
    return f"${formula.replace('|', chr(92) + 'vert ')}$"


def to_markdown(document: Document) -> str:
    """The whole document as Markdown text."""
    env = environment()
    env.filters.update(md=markdown_text, prose=prose, names=names, cited=cited, display=display, inline=inline,
                       code=markdown_code)
    text = env.get_template("derivation.md.j2").render(d=document, exactness=EXACTNESS_TEXT, tier=TIER_TEXT)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
