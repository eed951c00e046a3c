"""A table as plain lines, as `rich` writes it where it has room: a pipe needs neither its styles nor its import."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

GAP, LINE = 3, "─"


@dataclass(frozen=True)
class Table:
    """Cells of text under the names of their columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def lines(self) -> Iterator[str]:
        """Left-aligned columns, as wide as they need to be."""
        cells = [[cell.split("\n") for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(width(line) for row in cells for line in row[k]) for k in range(len(self.columns))]
        if self.title:
            yield self.title
        yield ""
        for k, row in enumerate(cells):
            yield from _row(row, widths, bottom=not k)
            if not k:
                yield f" {LINE * (sum(widths) + GAP * (len(widths) - 1))}"
        yield ""

    def rich(self) -> Any:
        """The table that fits itself to a terminal."""
        from rich import box
        from rich.table import Table as Styled
        from rich.text import Text

        made = Styled(title=self.title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for name in self.columns:
            made.add_column(name, overflow="fold")
        for row in self.rows:
            made.add_row(*map(Text, row))
        return made


def _row(row: list[list[str]], widths: list[int], bottom: bool) -> Iterator[str]:
    """The lines of one row; columns of fewer lines are empty below, or above where they stand at the ``bottom``."""
    height = max(map(len, row))
    for k in range(height):
        at = [k - (height - len(lines)) * bottom for lines in row]
        texts = [lines[i] if 0 <= i < len(lines) else "" for lines, i in zip(row, at, strict=True)]
        parts = [text + " " * (w - width(text)) for text, w in zip(texts, widths, strict=True)]
        yield f" {(' ' * GAP).join(parts)}".rstrip()


def width(text: str) -> int:
    """Cells of a terminal that a text without control characters takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
