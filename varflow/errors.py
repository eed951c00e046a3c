"""The errors a user can meet: each says what is wrong, where, why, and what to write instead."""

from __future__ import annotations

from collections.abc import Sequence


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
