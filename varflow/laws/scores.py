"""Maxima of a function of several Gaussian values, and what is won in them: as variables, and the operators of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import sympy as sp

from varflow.calculus import rename, symbols_in
from varflow.laws.blocks import carried, coefficient
from varflow.laws.heights import Height, Score, TwoHeights
from varflow.laws.maxima import Maximum, TwoMaxima
from varflow.laws.moments import Quantity
from varflow.laws.positions import too_many
from varflow.laws.variables import POSITION, SAME, Composite, Highest, Instance, Largest, Prize, Win
from varflow.laws.won import Won, WonApart, WonBeside
from varflow.laws.won_sums import WonSum, WonSumApart, WonSumBeside
from varflow.program import Mix
from varflow.symbols import arg

if TYPE_CHECKING:
    from varflow.laws.joint import Laws

MOST_ENTRIES = 6
"""Gaussian values at a place of which a maximum has a sample."""


class Scored(NamedTuple):
    """A value as a function of Gaussian ``entries`` arg(0), arg(1), ..., then of maxima, and of coefficients."""

    expr: sp.Expr
    entries: tuple[Instance, ...]
    numbers: tuple[Quantity, ...]


def scored(x: Instance) -> Scored | None:
    """A value as a function of Gaussian ones and of maxima; None where something else is in it."""
    found: dict[Instance, int] = {}
    numbers: list[Quantity] = []
    expr = _written(x, found, numbers)
    if expr is None:
        return None
    entries = sorted(found, key=lambda e: not e.variable.gaussian)
    table = tuple((arg(found[e]), arg(i)) for i, e in enumerate(entries))
    return Scored(rename(expr, table), tuple(entries), tuple(numbers))


def sampled_together(laws: Laws, entries: tuple[Instance, ...]) -> bool:
    """Whether a maximum of a function of these has a sample: Gaussian values, and at most one maximum of such on a grid
    whose places are told apart, independent of them."""
    maxima = [x for x in entries if not x.variable.gaussian]
    if not 0 < len(entries) <= MOST_ENTRIES or len(maxima) > 1:
        return False
    if not maxima:
        return True
    top = maxima[0]
    v = top.variable
    small = isinstance(v, Largest) and v.window is not None and not too_many(v.window)
    plain = not isinstance(v, Highest) or all(x.variable.gaussian for x in v.entries)
    return small and plain and not any(
        laws.dependent(x, replace(top, there=not w.same), w) for x in entries[:-1] for w in (SAME, POSITION))


def _written(x: Instance, entries: dict[Instance, int], numbers: list[Quantity]) -> sp.Expr | None:
    v = x.variable
    if v.gaussian or isinstance(v, Largest):
        return arg(entries.setdefault(x, len(entries)))
    if not isinstance(v, Composite):
        return None
    table: list[tuple[sp.Symbol, sp.Expr]] = []
    for i, c in enumerate(v.coefficients):
        table.append((coefficient(i), c if isinstance(c, sp.Number) else coefficient(_listed(numbers, c))))
    for i, a in enumerate(v.args):
        inner = _written(carried(a, x), entries, numbers)
        if inner is None:
            return None
        table.append((arg(i), inner))
    return rename(v.expr, tuple(table))


def _listed(numbers: list[Quantity], c: Quantity) -> int:
    """Place of a number among all, each there once."""
    found = next((k for k, n in enumerate(numbers) if n is c), None)
    if found is None:
        numbers.append(c)
    return len(numbers) - 1 if found is None else found


def prize_slope(v: Prize, expr: sp.Expr, which: int, xs: tuple[Instance, ...]) -> Prize | None:
    """A product of what is won, arg(which), and functions of what the score is a function of: what is won with this
    slope. None for anything else."""
    if arg(which) not in sp.Mul.make_args(expr):
        return None
    slope, numbers = expr / arg(which), list(v.coefficients)
    table: list[tuple[sp.Symbol, sp.Expr]] = []
    for i, y in enumerate(xs):
        if i != which:
            inner = _of_entries(v, y, numbers)
            if inner is None:
                return None
            table.append((arg(i), inner))
    if arg(which) in symbols_in(slope):
        return None
    return replace(v, born=0, slope=v.slope * rename(slope, tuple(table)), coefficients=tuple(numbers))


def _of_entries(v: Prize, y: Instance, numbers: list[Quantity]) -> sp.Expr | None:
    """A value as a function of the entries where the score is largest, and of coefficients, which ``numbers`` takes
    up; None where something else is in it."""
    found = scored(y)
    if found is None or any(e not in v.entries for e in found.entries):
        return None
    table = [(arg(i), arg(1 + v.entries.index(e))) for i, e in enumerate(found.entries)]
    table += [(coefficient(i), coefficient(_listed(numbers, c))) for i, c in enumerate(found.numbers)]
    return rename(found.expr, tuple(table))


# -- operators -----------------------------------------------------------------------------------------------------


def score_of(v: Largest) -> Score:
    """What is largest."""
    if not isinstance(v, Highest):
        return Score(v.score, 1)
    last = v.entries[-1].variable
    inner, under = (score_of(last), last.window) if isinstance(last, Largest) else (None, None)
    return Score(v.score, len(v.entries), len(v.coefficients), inner, under)


def moments_of_entries(laws: Laws, v: Largest) -> tuple[Quantity, ...]:
    """Moments of the entries at one place and between two, of every pair of them where they are several; and the
    coefficients of what is compared."""
    if not isinstance(v, Highest):
        assert v.entry is not None
        return _two(laws, v.entry, v.entry)
    found: list[Quantity] = []
    gaussian = [x for x in v.entries if x.variable.gaussian]
    for i, x in enumerate(gaussian):
        for y in gaussian[i:]:
            found += _two(laws, x, y)
    last = v.entries[-1].variable
    behind = moments_of_entries(laws, last) if isinstance(last, Largest) else ()
    return (*found, *behind, *v.coefficients)


def _two(laws: Laws, x: Instance, y: Instance) -> tuple[Quantity, Quantity]:
    same = laws.second(x) if x == y else laws.pair(x, y, SAME)
    return laws.quantity(same), laws.quantity(laws.pair(x, replace(y, there=True), POSITION))


def mean_of(v: Largest, f: sp.Expr) -> Any:
    """The operator of E[f(largest)]."""
    assert v.window is not None
    return Height(v.window, f, score_of(v)) if isinstance(v, Highest) else Maximum(v.window, f, v.score)


def product_of(v: Largest, f: sp.Expr, g: sp.Expr) -> Any:
    """The operator of E[f(largest) g(largest of another window)]."""
    assert v.window is not None
    return TwoHeights(v.window, f, g, score_of(v)) if isinstance(v, Highest) else TwoMaxima(v.window, f, g, v.score)


def won_twice(v: Win, square: sp.Expr) -> Any:
    """The operator of the product of what a place wins of two gradients."""
    top = v.largest
    return WonSum(v.window, square, score_of(top)) if isinstance(top, Highest) else Won(v.window, square, top.score)


def won_apart(v: Win, w: Win) -> Any:
    """The operator of the product of what two places win."""
    top, split = v.largest, len(v.coefficients)
    if isinstance(top, Highest):
        return WonSumApart(v.window, v.slope, w.slope, split, score_of(top))
    return WonApart(v.window, v.slope, w.slope, split, top.score)


def won_beside(v: Win, mix: Mix | None, between: bool, fixed: bool) -> Any:
    """The operator of what a place wins beside another gradient."""
    top = v.largest
    if isinstance(top, Highest):
        return WonSumBeside(v.window, v.slope, mix, between, fixed, score_of(top))
    return WonBeside(v.window, v.slope, mix, between, fixed, top.score)


def places_of(v: Win, x: Instance) -> dict[Instance, sp.Symbol]:
    """What a slope is a function of where ``x`` is won, and its arguments there."""
    entries = v.entries if isinstance(v, Prize) else (v.entry,)
    first = 1 if isinstance(v, Prize) else 0
    return {replace(carried(e, x), there=False): arg(first + i) for i, e in enumerate(entries)}
