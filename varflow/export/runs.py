"""Equations of one step that differ in a number only, such as those of the blocks of a concatenation, told once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from varflow.export.formulas import RUNNING, Pattern, pattern
from varflow.export.steps import Argument, Line, Name
from varflow.laws.moments import Quantity

FEWEST = 3
"""Equations from which a run is told once."""
_NUMBER = re.compile(r"\d+")
Form: TypeAlias = "tuple[Pattern | None, tuple[int, int] | None]"
"""The node's form (None: its own name), and (multiple, offset) of the running number (None: the name has its own)."""


@dataclass(frozen=True)
class Run:
    """A line that stands for several, which the running number from ``first`` to ``last`` tells apart; ``indexed`` are
    the names that run."""

    line: Line
    indexed: dict[Name, Form] = field(default_factory=dict)
    first: int = 0
    last: int = 0


def runs(lines: Sequence[Line], told: Callable[[Quantity], Argument], nodes: bool) -> list[Run]:
    """Lines in their order, equal ones whose numbers run together at the place of the first; with ``nodes`` their
    arguments' nodes may run too."""
    classes: dict[object, list[Line]] = {}
    for i, line in enumerate(lines):
        classes.setdefault(_key(line, told) if line.template is not None and not line.main else i, []).append(line)
    found = [run for same in classes.values() for run in _split(same, told, nodes)]
    place = {id(line): i for i, line in enumerate(lines)}
    return sorted(found, key=lambda run: place[id(run.line)])


def _key(line: Line, told: Callable[[Quantity], Argument]) -> tuple[object, ...]:
    args = tuple((a.kind, _NUMBER.sub("", a.node)) if isinstance(a := told(q), Name) else a for q in line.args)
    return (line.name.kind, line.name.node, line.template, line.exactness, line.tier, args)


def _split(same: list[Line], told: Callable[[Quantity], Argument], nodes: bool) -> Iterator[Run]:
    """Runs as long as they go, and the lines that belong to none."""
    rest = sorted(same, key=lambda line: line.name.variant)
    while rest:
        alone: tuple[int, dict[Name, Form]] = (1, {})
        size, forms = next(((n, f) for n in range(len(rest), FEWEST - 1, -1)
                            if (f := _forms(rest[:n], told, nodes)) is not None), alone)
        index = _index(rest[:size])
        yield Run(rest[0], forms, index[0], index[-1])
        rest = rest[size:]


def _forms(same: list[Line], told: Callable[[Quantity], Argument], nodes: bool) -> dict[Name, Form] | None:
    """How the names of the first line run; None if they have no common form."""
    index = _index(same)
    shift = _linear([line.name.variant for line in same], index)
    if shift is None:
        return None
    forms: dict[Name, Form] = {same[0].name: (None, shift)}
    for column in zip(*([a for q in line.args if isinstance(a := told(q), Name)] for line in same), strict=True):
        form = _form(column, index, nodes)
        if form is None or forms.get(column[0], form) != form:
            return None
        forms[column[0]] = form
    return forms


def _index(same: Sequence[Line]) -> list[int]:
    """The running number: that of the lines if they have consecutive ones, else 1, 2, ..."""
    numbers = [line.name.variant for line in same]
    plain = list(range(numbers[0], numbers[0] + len(same)))
    return numbers if numbers == plain else list(range(1, len(same) + 1))


def _linear(numbers: Sequence[int], index: Sequence[int]) -> tuple[int, int] | None:
    """(a, b) with numbers = a index + b; the number one is not written, so that none may be."""
    slope = numbers[1] - numbers[0]
    offset = numbers[0] - slope * index[0]
    found = all(n == slope * k + offset for n, k in zip(numbers, index, strict=True))
    return (slope, offset) if found and slope and min(numbers) > 1 else None


def _form(column: Sequence[Name], index: Sequence[int], nodes: bool) -> Form | None:
    variants, places = [n.variant for n in column], [n.node for n in column]
    shift = _linear(variants, index) if len(set(variants)) > 1 else None
    if shift is None and len(set(variants)) > 1:
        return None
    if len(set(places)) == 1:
        return None, shift
    found = pattern(places, index) if nodes else None
    if not isinstance(found, Pattern):
        return None
    return Pattern(found.before, found.after, found.offset, RUNNING), shift
