"""Positions mixed with fixed numbers, and maxima over windows of positions."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import product

import numpy as np
import sympy as sp

from varflow.calculus import rename
from varflow.laws import moments as mo
from varflow.laws.blocks import carried, coefficient, refine
from varflow.laws.distributions import NoFormula
from varflow.laws.making import Reading, increasing, listed, shifted
from varflow.laws.moments import Quantity
from varflow.laws.positions import (
    Inside,
    Overall,
    Overlapping,
    SharedMaximum,
    Within,
    shared_entries,
    too_many,
)
from varflow.laws.resampling import spread
from varflow.laws.variables import (
    POSITION,
    Block,
    Blocks,
    Composite,
    Instance,
    Largest,
    Member,
    Mixed,
    PositionAverage,
)
from varflow.program import Instruction, Mix, WindowMax, WindowMaxBackward
from varflow.symbols import arg
from varflow.window import Window

EXCHANGEABLE = "the entries of a pooling window are exchangeable"


class Windows(Reading):
    """Laws of resampling and of pooling."""

    def _window(self, step: Instruction, args: list[Blocks]) -> Blocks:
        match step.primitive:
            case Mix() as mix:
                return tuple(Block(b.size, b.law and self._resampling(mix, b.law, len(args[0]) == 1)) for b in args[0])
            case WindowMax(window=window):
                return tuple(Block(b.size, b.law and self._largest(window, b.law, len(args[0]) == 1))
                             for b in args[0])
            case WindowMaxBackward(forward=forward):
                cuts = refine(*args)
                whole = len(cuts) == 1
                return tuple(Block(size, d and self._won(forward.window, x, d, whole)) for size, (x, d) in cuts)
        raise NotImplementedError

    def _resampling(self, mix: Mix, x: Instance, whole: bool) -> Instance:
        w = mix.window
        if w.taps == 1 and mix.coefficients == (1,) and not mix.transpose and not self.laws.profiles and w.uniform:
            return x
        if not self.laws.varies(x.variable, False):
            same = self.laws.quantity(spread(self.laws, mix, mo.ONE), "k", self.step.node)
            found = self._combination([(same, x)], whole=whole)
            assert found is not None
            return found
        base, moved = shifted(x)
        if base is None or moved is None:
            return self._make(Mixed, whole, of=x, mix=mix)
        part = self._make(Mixed, False, of=base, mix=mix)
        found = self._combination([(sp.S.One, part)], spread(self.laws, mix, self.laws.formula(moved)), whole)
        assert found is not None
        return found

    def _largest(self, window: Window, x: Instance, whole: bool) -> Instance:
        """Maxima of an increasing function of exchangeable Gaussians: density n Phi^(n-1) of the winner."""
        found = as_function(x)
        if found is None:
            return self._unknown(x)
        f, g = found
        try:
            entry = self._member(window, g, False)
            power, beside, numbers = self._odds(window, g, entry)
        except NoFormula:
            return self._unknown(x)
        n = self._entries(window, False)
        count = n if isinstance(n, sp.Expr) else listed(numbers, n)
        weight = count * power ** (count - 1)
        args = (entry, *beside)
        of = self._pointwise(f, (entry,), False)
        shared = None if beside else SharedMaximum(window, f)
        return self._make(Largest, whole, of=of, weight=weight, weight_args=args, coefficients=tuple(numbers), entry=g,
                          shared=shared)

    def _won(self, window: Window, x: Instance | None, d: Instance, whole: bool) -> Instance | None:
        """What reaches an entry from the windows it wins: d_A for each, with probability Phi^(n-1) given the entry,
        Phi^(m-1) for two windows of m entries together."""
        found = None if x is None else as_function(x)
        if found is None:
            return self._unknown(x, d)
        g = found[1]
        try:
            power, beside, numbers = self._odds(window, g, g)
            expr = self._shares(window, d, power, numbers)
        except NoFormula:
            return self._unknown(x, d)
        arriving = self._member(window, d, True) if d.variable.gaussian else d
        args = (g, *beside, arriving)
        root = sp.sqrt(expr) * arg(len(args) - 1)
        return self._make(Composite, whole, expr=root, args=args, coefficients=tuple(numbers))

    def _shares(self, window: Window, d: Instance, power: sp.Expr, numbers: list[Quantity]) -> sp.Expr:
        """Probability-weighted number of windows that send their gradient to an entry, pairs counted with the
        correlation of their gradients."""
        windows = self._entries(window, True)
        count = windows if isinstance(windows, sp.Expr) else listed(numbers, windows)
        rivals = self._rivals(window)
        entries = rivals if isinstance(rivals, sp.Expr) else listed(numbers, rivals)
        expr = count * power ** (entries - 1)
        apart = self.laws.pair(d, _there(d), POSITION)
        unions = overlaps(window)
        if apart.is_zero or not unions:
            return expr
        second = self.laws.second(d)
        near = self.laws.operated(Overlapping(window), (apart,), apart)
        levels = [near, self.laws.operated(Overall(), (second,), second)]
        ratio = mo.combine(mo.part(0) / mo.part(1), levels)
        shared = sp.Add(*(share * power ** (size - 1) for size, share in unions))
        return expr + listed(numbers, self.laws.quantity(ratio, "k", self.step.node)) * shared

    def _entries(self, window: Window, transpose: bool) -> Quantity:
        """Entries of a window (windows of an entry); inside the grid, for a profile."""
        limit = sp.Rational(window.taps, window.spacing if transpose else 1)
        even = window.covers_evenly if transpose else window.uniform
        if not self.laws.profiles or even:
            return limit
        return self.laws.system.operate(Inside(window, transpose), (limit,), "k", self.step.node, self.step.backward)

    def _rivals(self, window: Window) -> Quantity:
        """Entries of a window that an entry is in."""
        if not self.laws.profiles or window.uniform:
            return sp.Integer(window.taps)
        operator = Inside(window, True, rivals=True)
        return self.laws.system.operate(operator, (sp.Integer(window.taps),), "k", self.step.node, self.step.backward)

    def _member(self, window: Window, g: Instance, transpose: bool) -> Instance:
        """Any entry of a window (any window of an entry): differs from the value itself in profiles only."""
        if not self.laws.profiles or not self.laws.varies(g.variable, False):
            return g
        return self._make(Member, False, of=g, window=window, transpose=transpose)

    def _odds(self, window: Window, g: Instance, entry: Instance
              ) -> tuple[sp.Expr, tuple[Instance, ...], list[Quantity]]:
        """The probability that another entry is below one of size arg(0), as an expression of arg(0) and, for
        correlated entries, of what all positions have in common arg(1); and its coefficients."""
        laws = self.laws
        q, other = laws.second(entry), laws.pair(g, _there(g), POSITION)
        if other.is_zero:
            return _below(arg(0) / sp.sqrt(coefficient(0))), (), [laws.quantity(q, "q", self.step.node)]
        within = laws.operated(Overall(), (laws.operated(Within(window), (laws.second(g), other), other),), other)
        apart = laws.quantity(mo.combine(mo.part(0) - mo.part(1), [q, within]), "q", self.step.node)
        label = {**self._label(False), "backward": False}
        common = Instance(PositionAverage(**label, of=g, count=sp.oo))  # type: ignore[arg-type]
        return _below((arg(0) - arg(1)) / sp.sqrt(coefficient(0))), (common,), [apart]


def _below(x: sp.Expr) -> sp.Expr:
    return (1 + sp.erf(x / sp.sqrt(2))) / 2


def _there(x: Instance) -> Instance:
    return Instance(x.variable, x.moves, True)


def as_function(x: Instance) -> tuple[sp.Expr, Instance] | None:
    """(f, g) with x = f(g), f an increasing function of arg(0) and g Gaussian; None for anything else."""
    if x.variable.gaussian:
        return arg(0), x
    v = x.variable
    if not isinstance(v, Composite) or len(v.args) != 1 or not all(isinstance(c, sp.Number) for c in v.coefficients):
        return None
    inner = as_function(carried(v.args[0], x))
    if inner is None:
        return None
    numbers = tuple((coefficient(i), c) for i, c in enumerate(v.coefficients))
    f = rename(v.expr, ((arg(0), inner[0]), *numbers))
    return (f, inner[1]) if increasing(f) else None


@lru_cache(maxsize=64)
def overlaps(window: Window) -> tuple[tuple[int, sp.Rational], ...]:
    """(size of the union, how many) of the ordered pairs of different windows that share an entry, on average over
    entries (over those far from the border where the grid is large or has no numbers)."""
    counts = _counted(window) if window.is_numeric and not too_many(window) else _far_from_borders(window)
    return tuple(sorted(counts.items()))


def _counted(window: Window) -> dict[int, sp.Rational]:
    common, places = shared_entries(window)
    size = common.diagonal()
    counts: Counter[int] = Counter()
    rows, columns = np.nonzero(common)
    for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
        if i != j:
            counts[int(size[i] + size[j] - common[i, j])] += int(common[i, j])
    return {union: sp.Rational(n, places) for union, n in counts.items()}


def _far_from_borders(window: Window) -> dict[int, sp.Rational]:
    counts: Counter[int] = Counter()
    for pairs in product(*[list(product(range(k), range(k))) for k in window.kernel]):
        gaps = [(b - a) * d for (a, b), d in zip(pairs, window.dilation, strict=True)]
        if any(gaps) and all(g % s == 0 for g, s in zip(gaps, window.stride, strict=True)):
            shared = int(np.prod([sum(1 for i in range(k) if 0 <= i + (b - a) < k)
                                  for k, (a, b) in zip(window.kernel, pairs, strict=True)]))
            counts[2 * window.taps - shared] += 1
    return {union: sp.Rational(n, window.spacing) for union, n in counts.items()}
