"""The errors a user can meet: each says what is wrong, where, why, and what to write instead."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any


class VarflowError(Exception):
    """Base of every error raised on purpose.

    Parameters are text: ``what`` went wrong, ``where`` (file:line:col, node, port), ``why``, and what to
    write ``instead``. All but ``what`` may be empty.
    """

    def __init__(self, what: str, where: str = "", why: str = "", instead: str = "") -> None:
        self.what, self.where, self.why, self.instead = what, where, why, instead
        super().__init__(self.message())

    def message(self) -> str:
        """The whole text, one line a part."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        lines = [head]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.instead:
            lines.append(f"  instead: {self.instead}")
        return "\n".join(lines)


class InputError(VarflowError):
    """An argument, a graph or a file that cannot be accepted."""


class ShapeError(InputError):
    """Widths or positions that do not fit together."""


class ExpressionError(InputError):
    """A text that is not an expression of the grammar, or exceeds its limits."""


class UnsupportedError(VarflowError):
    """Something outside what the theory or the code covers."""


class SolveError(VarflowError):
    """Conditions that have no solution, or not exactly one."""


class MissingExtraError(VarflowError):
    """An optional dependency or an outside program that is not installed."""


class ErrorList(InputError):
    """Every error of one file or graph at once; ``errors`` holds them in order."""

    def __init__(self, errors: Sequence[VarflowError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(e.message() for e in self.errors))


def kind_of(value: object) -> str:
    """What a value is, for a message: "None", "the class Network", "a str"."""
    if value is None:
        return "None"
    name = value.__name__ if isinstance(value, type) else type(value).__name__
    if isinstance(value, type):
        return f"the class {name}"
    return f"an {name}" if name[:1].lower() in "aeio" else f"a {name}"


def require(value: object, kinds: type | tuple[type, ...], what: str, instead: str) -> None:
    """Raise InputError unless ``value``, which ``what`` names, is of one of these types (no bool for a number)."""
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise InputError(f"{what} is {kind_of(value)}", instead=instead)


def require_path(value: object, what: str, instead: str) -> None:
    """Raise InputError unless ``value`` is a path of the file system as text or as an object."""
    require(value, (str, os.PathLike), what, instead)


def named_values(values: object) -> dict[str, Any]:
    """Values of symbols by name, as a new dict; None has none. Raises InputError for anything else."""
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        given = "have names that are no texts" if isinstance(values, Mapping) else f"are {kind_of(values)}"
        raise InputError(f"the values {given}", why="they give each symbol, by its name, a number",
                         instead='{"n": 512}')
    return dict(values)
