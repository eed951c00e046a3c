"""What a variable of an expression may be, and the error of an expectation without a formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import sympy as sp

from varflow.errors import UnsupportedError


class NoFormula(UnsupportedError):
    """An expectation that has neither a closed form nor an integral of at most two dimensions."""


class Inaccurate(UnsupportedError):
    """A formula that floats do not evaluate; a population may know its number."""


@dataclass(frozen=True)
class Normal:
    """Zero mean, jointly Gaussian with every other Normal; its covariances come from the caller."""


@dataclass(frozen=True)
class Bernoulli:
    """Independent, 1 with probability ``keep`` and 0 otherwise."""

    keep: sp.Expr


@dataclass(frozen=True)
class OneHot:
    """Exactly one of ``symbols`` is 1 and the others 0; all of them map to one equal OneHot."""

    symbols: tuple[sp.Symbol, ...]
    probabilities: tuple[sp.Expr, ...]

    def __post_init__(self) -> None:
        if len(self.symbols) != len(self.probabilities):
            raise ValueError("OneHot needs one probability for each symbol")


@dataclass(frozen=True)
class Opaque:
    """Independent, known by its raw moments ``{power: E[x^power]}`` alone."""

    moments: Mapping[int, sp.Expr] = field(hash=False)


@dataclass(frozen=True)
class Sphere:
    """A coordinate of y = sqrt(B) d/|d|, d a Gaussian vector over B samples less its mean.

    Two symbols of one ``group`` are two different samples: their correlation is -1/(B-1).
    """

    samples: sp.Expr
    group: str = ""


Distribution = Normal | Bernoulli | OneHot | Opaque | Sphere
