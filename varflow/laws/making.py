"""Making variables while a program is read: linear combinations, shifts, unknown laws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import sympy as sp

from varflow.calculus import derivative, rename, symbols_in
from varflow.laws import moments as mo
from varflow.laws.blocks import carried, coefficient
from varflow.laws.joint import Laws
from varflow.laws.moments import Formula, Quantity
from varflow.laws.numeric import vectorized
from varflow.laws.resampling import arranged
from varflow.laws.scores import prize_slope, sampled_together, scored
from varflow.laws.shared import ChannelSum
from varflow.laws.uneven import uneven_values
from varflow.laws.variables import (
    Block,
    Blocks,
    Composite,
    GaussianSum,
    Highest,
    Instance,
    MaskEntry,
    Mixed,
    Opaque,
    Prize,
    Product,
    Variable,
    Win,
)
from varflow.program import (
    Contract,
    Instruction,
    Mask,
    Mix,
    Program,
    Standardize,
    has_windows,
)
from varflow.symbols import arg
from varflow.window import Window

UNKNOWN = sp.nan
_GRID = np.linspace(-8.0, 8.0, 1601)


@lru_cache(maxsize=16384)
def linear_form(expr: sp.Expr, count: int) -> tuple[sp.Expr, ...] | None:
    """(constant, slope of arg(0), slope of arg(1), ...) of an expression linear in its arguments, else None."""
    symbols = [arg(i) for i in range(count)]
    if not expr.is_polynomial(*symbols):
        return None
    poly = sp.Poly(expr, *symbols)
    if poly.total_degree() > 1:
        return None
    return (poly.coeff_monomial(1), *(poly.coeff_monomial(s) for s in symbols))


def _ties_samples(p: object) -> bool:
    return isinstance(p, Standardize) and p.axis == "sample" and p.batch is not None


class Reading:
    """The laws of a program's values so far; ``values[i]`` are the blocks of instruction i's value.

    ``uneven`` are the values whose second moment differs between tokens. ``reference`` are the values far from borders,
    for profiles; ``normalized`` the depthwise weights, by number of terms, whose output a batch norm reads.
    ``returning``: of gradients that return to a depthwise convolution from behind its batch norm, E of them times the
    normalized value at two places (None: not known).
    """

    step: Instruction
    index: int

    def __init__(self, program: Program, closures: bool = False, profiles: bool = False,
                 reference: Sequence[Blocks] | None = None) -> None:
        self.program, self.reference = program, reference
        self.normalized: dict[str, sp.Expr] = {}
        self.laws = Laws(profiles=profiles, closures=closures, sampling=has_windows(program),
                         samples_apart=not any(_ties_samples(s.primitive) for s in program))
        self.values: list[Blocks] = []
        self.uneven = uneven_values(program)
        self._born = 0
        self._uses: dict[tuple[str, bool, bool], list[tuple[Blocks, Product]]] = {}
        self._standard: dict[Variable, Standardize] = {}
        self._inverse: dict[tuple[int, Standardize], list[Quantity | None]] = {}
        self._mixed: dict[str, tuple[Any, ...]] = {}
        self._slopes = False
        self._counts = Counter((s.primitive.weight, s.primitive.transpose, s.backward)
                               for s in program if isinstance(s.primitive, Contract))
        self._masks: dict[Mask, MaskEntry] = {}
        self.bodies: list[Any] = []
        self.maps: dict[str, Any] = {}
        self._choices: dict[object, Instance] = {}
        self._tops: dict[tuple[Window, Instance, sp.Expr], Instance] = {}
        self._heights: dict[Hashable, Instance] = {}
        self.returning: dict[Variable, Formula | None] = {}
        self._forward_depthwise: dict[str, Instance] = {}
        self._gathered: dict[Variable, tuple[int, Blocks]] = {}

    def _label(self, whole: bool = True) -> dict[str, object]:
        self._born += 1
        return {"born": self._born, "node": self.step.node, "backward": self.step.backward and not self._slopes,
                "value": self.index if whole else None}

    @contextmanager
    def _made_of(self, x: Instance) -> Iterator[None]:
        """What is made of forward values alone is one, in a slope too: it has a mean, which gradients have not."""
        before, self._slopes = self._slopes, self._slopes or not x.variable.backward
        try:
            yield
        finally:
            self._slopes = before

    def _make(self, make: Callable[..., Variable], whole: bool = True, **fields: object) -> Instance:
        return Instance(make(**self._label(whole), **fields))

    def _unknown(self, *of: Instance | None, mean: Quantity = UNKNOWN, second: Quantity = UNKNOWN,
                 mixed: bool = False) -> Instance:
        """A value whose law has no formula; a population may know its moments."""
        roots = tuple(r for x in of if x is not None for r in self.laws.roots(x))
        return self._make(Opaque, mean=mean, second=second, sample=UNKNOWN, position=UNKNOWN, roots=roots,
                          mixed=mixed)

    def _combination(self, terms: Sequence[tuple[Quantity, Instance]], shift: Formula = mo.ZERO,
                     whole: bool = True) -> Instance | None:
        """sum of coefficient * instance + shift: Gaussian where all parts are."""
        parts = [(c, *shifted(x)) for c, x in terms]
        if any(base is None for _, base, _ in parts):
            return self._general_combination(terms, shift, whole)
        gaussian: dict[Instance, Formula] = {}
        for c, base, moved in parts:
            assert base is not None
            gaussian[base] = mo.total([gaussian.get(base, mo.ZERO), self.laws.formula(c)])
            if moved is not None:
                shift = mo.total([shift, mo.product(self.laws.formula(c), self.laws.formula(moved))])
        kept = [(self.laws.quantity(f, "k"), x) for x, f in gaussian.items() if not f.is_zero]
        return self._shift(self._gaussian_sum(kept, whole and shift.is_zero), shift, whole)

    def _gaussian_sum(self, terms: list[tuple[Quantity, Instance]], whole: bool) -> Instance | None:
        if not terms:
            return None
        if len(terms) == 1 and terms[0][0] == 1:
            return terms[0][1]
        return self._make(GaussianSum, whole, terms=tuple(terms))

    def _shift(self, x: Instance | None, shift: Formula, whole: bool) -> Instance | None:
        if shift.is_zero:
            return x
        offset = self.laws.quantity(shift, "k")
        expr = coefficient(0) if x is None else arg(0) + coefficient(0)
        return self._make(Composite, whole, expr=expr, args=() if x is None else (x,), coefficients=(offset,))

    def _general_combination(self, terms: Sequence[tuple[Quantity, Instance]], shift: Formula,
                             whole: bool) -> Instance:
        coefficients: list[Quantity] = []
        expr: sp.Expr = sp.S.Zero
        for i, (c, _) in enumerate(terms):
            expr += arg(i) * (c if isinstance(c, sp.Expr) else listed(coefficients, c))
        if not shift.is_zero:
            expr += listed(coefficients, self.laws.quantity(shift, "k"))
        args = tuple(x for _, x in terms)
        return self._make(Composite, whole, expr=expr, args=args, coefficients=tuple(coefficients))

    def _one(self, law: Instance | None) -> Blocks:
        return (Block(self.step.shape.channels, law),)

    def _pointwise(self, expr: sp.Expr, laws: tuple[Instance | None, ...], whole: bool) -> Instance | None:
        distinct: dict[Instance, int] = {}
        table: dict[sp.Symbol, sp.Expr] = {}
        for i, x in enumerate(laws):
            table[arg(i)] = sp.S.Zero if x is None else arg(distinct.setdefault(x, len(distinct)))
        expr = rename(expr, tuple(table.items()))
        if expr == 0:
            return None
        xs = tuple(distinct)
        won = _won_slope(expr, xs)
        if won is not None:
            return self._make(type(won), whole, of=won.of, top=won.top, slope=won.slope, coefficients=won.coefficients)
        linear = linear_form(expr, len(xs))
        if linear is None:
            return self._of_arranged(expr, xs) or self._make(Composite, whole, expr=expr, args=xs)
        terms = [(c, x) for c, x in zip(linear[1:], xs, strict=True) if c != 0]
        return self._combination(terms, mo.constant(linear[0]), whole)

    def _highest(self, window: Window, x: Instance | None, whole: bool) -> Instance | None:
        """The largest of a function of several Gaussian values, and of a maximum, over a window, in profiles; None of
        anything else. One variable for all its uses."""
        found = scored(x) if x is not None and self.laws.profiles else None
        if found is None or not sampled_together(self.laws, found.entries):
            return None
        key = (window, found.expr, found.entries, tuple(map(id, found.numbers)))
        if key not in self._heights:
            mean = Mix(window, (sp.Rational(1, window.taps),) * window.taps)
            parts = tuple(self._make(Mixed, False, of=g, mix=mean) for g in found.entries)
            of = self._make(Composite, False, expr=sp.Add(*(arg(i) for i in range(len(parts)))), args=parts)
            self._heights[key] = self._make(Highest, whole, of=of, entries=found.entries, window=window,
                                            score=found.expr, coefficients=found.numbers)
        return self._heights[key]

    def _of_arranged(self, expr: sp.Expr, xs: tuple[Instance, ...]) -> Instance | None:
        """A function of values arranged at the places of a finer grid (pixel shuffle): those of the function; of other
        values too, where it is a product."""
        which = next((i for i, x in enumerate(xs) if arranged(x.variable)), None)
        if which is None:
            return None
        own, rest = expr.as_independent(arg(which), as_Add=False)[::-1]
        if symbols_in(own) != {arg(which)} or (own == arg(which) and len(xs) > 1):
            return None
        with self._made_of(xs[which]):
            found = self._arranged(rename(own, ((arg(which), arg(0)),)), xs[which])
        others = tuple(found if i == which else x for i, x in enumerate(xs))
        return found if rest == 1 else self._pointwise(arg(which) * rest, others, False)

    def _arranged(self, f: sp.Expr, x: Instance) -> Instance:
        """A function of every value that x arranges."""
        parts = []
        for part in x.variable.args:  # type: ignore[attr-defined]
            mixed = part.variable
            assert isinstance(mixed, Mixed) and mixed.of is not None
            inner = self._pointwise(f, (carried(carried(mixed.of, part), x),), False)
            parts += [self._make(Mixed, False, of=inner, mix=mixed.mix)] if inner is not None else []
        return self._make(Composite, False, expr=sp.Add(*(arg(k) for k in range(len(parts)))), args=tuple(parts))


def _won_slope(expr: sp.Expr, xs: tuple[Instance, ...]) -> Win | None:
    """What entries win, times a function of the entry: that function of the largest where it wins."""
    for i, x in enumerate(xs):
        v = x.variable
        if isinstance(v, Prize):
            found = None if x.moves else prize_slope(v, expr, i, xs)
            if found is not None:
                return found
        elif isinstance(v, Win) and not x.moves and len(xs) <= 2 and all(y == v.entry for y in xs if y is not x):
            slope = expr / arg(i) if arg(i) in sp.Mul.make_args(expr) else arg(i)
            if not symbols_in(slope) - {arg(1 - i)}:
                slope = v.slope * rename(slope, ((arg(1 - i), arg(0)),))
                return Win(0, v.node, True, of=v.of, top=v.top, slope=slope, coefficients=v.coefficients)
    return None


@lru_cache(maxsize=256)
def increasing(f: sp.Expr) -> bool:
    """Whether a function of arg(0) never falls, as its derivative at 1,601 points from -8 to 8 shows."""
    slope = derivative(f, arg(0))
    if slope.free_symbols - {arg(0)}:
        return False
    values = np.asarray(vectorized(slope, (arg(0),))(_GRID), dtype=np.float64)
    return bool(np.all(values >= -1e-12))


def listed(coefficients: list[Quantity], quantity: Quantity) -> sp.Symbol:
    coefficients.append(quantity)
    return coefficient(len(coefficients) - 1)


def wide(f: Formula) -> Formula:
    return Formula(f.template, f.args, "wide", f.tier, f.assumptions)


def there(x: Instance) -> Instance:
    return Instance(x.variable, x.moves, True)


def moved_by(x: Instance | None, move: tuple[str, object]) -> Instance | None:
    return x if x is None or isinstance(x.variable, ChannelSum) else x.moved(move)


def shifted(x: Instance) -> tuple[Instance | None, Quantity | None]:
    """(Gaussian part, constant part) of a Gaussian plus a constant; (None, None) for anything else."""
    v = x.variable
    if v.gaussian:
        return x, None
    if isinstance(v, Composite) and v.expr == arg(0) + coefficient(0) and v.args[0].variable.gaussian:
        return replace(carried(v.args[0], x), there=v.args[0].there), v.coefficients[0]
    return None, None
