"""Positions mixed with fixed numbers, and maxima over windows of positions."""

from __future__ import annotations

from typing import NamedTuple

import sympy as sp

from varflow.binormal import normal_cdf
from varflow.calculus import rename, symbols_in
from varflow.laws import moments as mo
from varflow.laws.blocks import carried, coefficient, refine
from varflow.laws.composed import composed, is_identity
from varflow.laws.distributions import NoFormula
from varflow.laws.making import Reading, increasing, shifted
from varflow.laws.moments import Quantity
from varflow.laws.positions import MAX_PLACES, Spread, sums_alike
from varflow.laws.resampling import holds_arranged, on_grid, picks, spread
from varflow.laws.variables import (
    POSITION,
    Block,
    Blocks,
    Composite,
    Highest,
    Instance,
    Largest,
    Mixed,
    PositionAverage,
    Prize,
    Win,
)
from varflow.program import Instruction, Mix, WindowMax, WindowMaxBackward
from varflow.symbols import arg
from varflow.window import Uneven, Window


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
        v = x.variable
        if isinstance(v, Composite) and picks(mix) and any(holds_arranged(a.variable) for a in (*v.args, x)):
            picked = tuple(self._picked(mix, carried(a, x)) for a in v.args)
            found = None if v.coefficients else self._pointwise(v.expr, picked, whole)
            if found is not None:
                return found
        if isinstance(v, Mixed) and v.mix and v.of and not self.laws.profiles:
            one = composed(v.mix, mix)
            if one is not None:
                inner = carried(v.of, x)
                return inner if is_identity(one) else self._resampling(one, inner, whole)
        if not self.laws.differs(x, False) and (not self.laws.profiles or sums_alike(mix)):
            found = self._combination([(Spread(mix).limit, x)], whole=whole)
            assert found is not None
            return found
        base, moved = (None, None) if on_grid(mix) and not self.laws.profiles else shifted(x)
        if base is None or moved is None:
            return self._make(Mixed, whole, of=x, mix=mix)
        part = self._make(Mixed, False, of=base, mix=mix)
        found = self._combination([(sp.S.One, part)], spread(self.laws, mix, self.laws.formula(moved)), whole)
        assert found is not None
        return found

    def _picked(self, mix: Mix, x: Instance) -> Instance | None:
        """One place of every cell: of values arranged there those of that place, zero of others."""
        v = x.variable
        back = v.mix if isinstance(v, Mixed) and v.mix is not None and v.mix.transpose and picks(v.mix) else None
        if isinstance(v, Mixed) and v.of is not None and back is not None and back.window == mix.window:
            return carried(v.of, x) if back.coefficients == mix.coefficients else None
        with self._made_of(x):
            return self._resampling(mix, x, False)

    def _largest(self, window: Window, x: Instance, whole: bool) -> Instance:
        """Maxima of an increasing function of Gaussians: the function of the largest of them; of any other, the
        function of the one where it is largest."""
        found = as_function(x)
        top = None if found is None else self._top(window, *found, whole and found[0] == arg(0))
        if found is None or top is None:
            return self._other_top(window, x, whole) or self._unknown(x)
        made = self._pointwise(found[0], (top,), whole)
        assert made is not None
        return made

    def _top(self, window: Window, f: sp.Expr, g: Instance, whole: bool) -> Instance | None:
        """The entry of a window where ``f`` is largest; one variable for all its uses."""
        score = arg(0) if increasing(f) else f
        key = (window, g, score)
        if key not in self._tops:
            try:
                self._tops[key] = self._first(window, g, score, whole)
            except NoFormula:
                return None
        return self._tops[key]

    def _first(self, window: Window, g: Instance, score: sp.Expr, whole: bool) -> Instance:
        made: type[Largest] = Largest
        if isinstance(window, Uneven):
            self._check_uneven(window, score)
            made = LargestOfUneven
        if self.laws.profiles or score != arg(0):
            mean = Mix(window, (sp.Rational(1, window.taps),) * window.taps)
            return self._make(made, whole, of=self._make(Mixed, False, of=g, mix=mean), entry=g, window=window,
                              score=score)
        below, beside, numbers = self._odds(g)
        return self._make(made, whole, of=g, entry=g, window=window, below=below, weight_args=(g, *beside),
                          coefficients=tuple(numbers))

    def _check_uneven(self, window: Uneven, score: sp.Expr) -> None:
        """Raise NoFormula for what only windows of one size have."""
        if score != arg(0) and not self.laws.profiles:
            raise NoFormula("a function that is not increasing, over windows of different sizes", self.step.node)
        if _is_large(window):
            raise NoFormula("maxima over uneven windows of a large grid", self.step.node)

    def _other_top(self, window: Window, x: Instance | None, whole: bool) -> Instance | None:
        """The largest of a function of several Gaussian values; None where it has no formula."""
        return None if isinstance(window, Uneven) and _is_large(window) else self._highest(window, x, whole)

    def _won(self, window: Window, x: Instance | None, d: Instance, whole: bool) -> Instance | None:
        """What reaches an entry from the windows it wins."""
        found = None if x is None else as_function(x)
        top = None if found is None else self._top(window, *found, False)
        top = top or self._other_top(window, x, False)
        if top is None:
            return self._unknown(x, d)
        terms = factored(d, top)
        alone = whole and len(terms) == 1
        kind = Prize if isinstance(top.variable, Highest) else Win
        parts = [self._make(kind, alone, of=t.of, top=top, slope=t.slope, coefficients=t.coefficients) for t in terms]
        return parts[0] if len(parts) == 1 else self._combination([(sp.S.One, p) for p in parts], whole=whole)

    def _odds(self, g: Instance) -> tuple[sp.Expr, tuple[Instance, ...], list[Quantity]]:
        """The probability that another entry is below one of size arg(0), as an expression of arg(0) and, for
        correlated entries, of what all positions have in common arg(1); and its coefficients."""
        laws = self.laws
        q, other = laws.second(g), laws.pair(g, _there(g), POSITION)
        if other.is_zero:
            return normal_cdf(arg(0) / sp.sqrt(coefficient(0))), (), [laws.quantity(q, "q", self.step.node)]
        apart = laws.quantity(mo.combine(mo.part(0) - mo.part(1), [q, other]), "q", self.step.node)
        label = {**self._label(False), "backward": False}
        common = Instance(PositionAverage(**label, of=g, count=sp.oo))  # type: ignore[arg-type]
        return normal_cdf((arg(0) - arg(1)) / sp.sqrt(coefficient(0))), (common,), [apart]


class LargestOfUneven(Largest):
    """The largest over windows of different sizes; its law far from borders is the mean of theirs."""

    @property
    def weight(self) -> sp.Expr:
        """The density of the largest over that of an entry, on average over windows."""
        assert isinstance(self.window, Uneven)
        return sp.Add(*(share * n * self.below ** (n - 1) for n, share in self.window.sizes.items()))


def _is_large(window: Uneven) -> bool:
    return bool(max(sp.Mul(*window.inputs), sp.Mul(*window.outputs)) > MAX_PLACES)


def _there(x: Instance) -> Instance:
    return Instance(x.variable, x.moves, True)


def as_function(x: Instance) -> tuple[sp.Expr, Instance] | None:
    """(f, g) with x = f(g), f a function of arg(0) and g Gaussian; None for anything else."""
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
    return None if f.free_symbols - {arg(0)} else (f, inner[1])


def factored(d: Instance, top: Instance) -> list[Part]:
    """A gradient as a sum of gradients times functions of the largest; itself times 1 where it is no such sum."""
    numbers: list[Quantity] = []
    expr, args = _opened(d, top, numbers)
    gradients = {arg(i): x for i, x in enumerate(args) if x.variable.backward}
    table = tuple((arg(i), arg(0)) for i, x in enumerate(args) if not x.variable.backward)
    slopes = [(x, sp.diff(expr, symbol)) for symbol, x in gradients.items()]
    known = {s for s, _ in table} | {coefficient(i) for i in range(len(numbers))}
    if any(x not in (top, *gradients.values()) for x in args) or any(symbols_in(s) - known for _, s in slopes):
        return [Part(d, sp.S.One, ())]
    return [_with_numbers(x, rename(s, table), numbers) for x, s in slopes]


class Part(NamedTuple):
    """A gradient times a slope: a function of the largest arg(0) and of coefficients."""

    of: Instance
    slope: sp.Expr
    coefficients: tuple[Quantity, ...]


def _with_numbers(x: Instance, slope: sp.Expr, numbers: list[Quantity]) -> Part:
    """The part with those of the numbers that its slope has."""
    used = [i for i in range(len(numbers)) if coefficient(i) in symbols_in(slope)]
    table = tuple((coefficient(i), coefficient(k)) for k, i in enumerate(used))
    return Part(x, rename(slope, table), tuple(numbers[i] for i in used))


def _opened(x: Instance, top: Instance, numbers: list[Quantity]) -> tuple[sp.Expr, tuple[Instance, ...]]:
    """A value as an expression of the largest, of others that are not made of it, and of coefficients, which
    ``numbers`` takes up."""
    v = x.variable
    if not isinstance(v, Composite) or not _made_of(x, top):
        return arg(0), (x,)
    found: dict[Instance, int] = {}
    table = [(coefficient(i), coefficient(len(numbers) + i)) for i in range(len(v.coefficients))]
    numbers += v.coefficients
    for i, a in enumerate(v.args):
        inner, args = _opened(carried(a, x), top, numbers)
        names = tuple((arg(k), arg(found.setdefault(b, len(found)))) for k, b in enumerate(args))
        table.append((arg(i), rename(inner, names)))
    return rename(v.expr, tuple(table)), tuple(found)


def _made_of(x: Instance, top: Instance) -> bool:
    """Whether an expression has the largest in it."""
    return isinstance(x.variable, Composite) and any(
        a == top or _made_of(a, top) for a in (carried(b, x) for b in x.variable.args))
