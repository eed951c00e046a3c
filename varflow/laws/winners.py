"""Moments of maxima over windows of positions, and of the gradients that go to the entries that win."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sympy as sp

from varflow.calculus import rename, symbols_in
from varflow.laws import moments as mo
from varflow.laws.blocks import carried, coefficient, parts
from varflow.laws.distributions import NoFormula
from varflow.laws.maxima import evenly, overlaps
from varflow.laws.moments import Formula, Quantity
from varflow.laws.positions import Mixing, Overall
from varflow.laws.ranked import Race
from varflow.laws.sampled import sampled
from varflow.laws.scores import (
    mean_of,
    moments_of_entries,
    places_of,
    product_of,
    won_apart,
    won_beside,
    won_twice,
)
from varflow.laws.variables import (
    POSITION,
    SAME,
    Composite,
    Instance,
    Largest,
    Mixed,
    Variable,
    View,
    Win,
)
from varflow.laws.won_knowing import LEVELS, WonKnowing, at_level
from varflow.symbols import arg

if TYPE_CHECKING:
    from varflow.laws.joint import Laws


def of_largest(laws: Laws, f: sp.Expr, v: Largest, given: tuple[Quantity, ...] = ()) -> Formula:
    """E[f(largest)], ``f`` of arg(0) and coefficients."""
    assert v.window is not None
    if laws.profiles or v.ranked:
        free = sorted(symbols_in(f) - {arg(0), *(coefficient(i) for i in range(len(given)))}, key=str)
        f = rename(f, tuple((s, coefficient(len(given) + i)) for i, s in enumerate(free)))
        operator = mean_of(v, f) if laws.profiles else _race(v, f, None, len(given) + len(free))
        return _operated(laws, v, operator, (*moments_of_entries(laws, v), *given, *free))
    table = tuple((coefficient(i), coefficient(i + len(given))) for i in range(len(v.coefficients)))
    return laws.expectation(f * rename(v.weight, table), v.weight_args, given + v.coefficients, SAME)


def _race(v: Largest, f: sp.Expr, g: sp.Expr | None, numbers: int, count: int | None = None) -> Race:
    """E[f(winner)] of a window far from borders, or with ``g`` of two far from each other; of ``count`` entries one of
    which wins."""
    taps = v.window.taps if v.window else 1
    return Race(count or taps, 1 if count else taps, f, g, v.score, numbers)


def _operated(laws: Laws, v: Variable, operator: Any, args: tuple[Quantity, ...]) -> Formula:
    moment = laws.system.operate(operator, args, "c", v.node, v.backward)
    if isinstance(operator, Race):
        moment.tier, moment.exactness = mo.weakest(mo.TIERS, (moment.tier, "quadrature")), mo.weakest(
            mo.EXACTNESS, (moment.exactness, "wide"))
    return mo.named(moment)


def joint(laws: Laws, expr: sp.Expr, args: tuple[Instance, ...], view: View, given: tuple[Quantity, ...]) -> Formula:
    """E[expr] of maxima, or of what entries win and the entries themselves. Raises NoFormula."""
    if any(isinstance(x.variable, Win) for x in args):
        return _won_together(laws, expr, args, view)
    first, second = args if len(args) == 2 else (args[0], args[0])
    u, f, g = first.variable, *_two_factors(expr, len(given))
    apart = first.there != second.there and view == POSITION
    if not isinstance(u, Largest) or (u, first.moves) != (second.variable, second.moves) or not apart:
        raise NoFormula("a maximum beside what it depends on", u.node)
    if u.window is None or not (laws.profiles or u.ranked):
        raise NoFormula("maxima of overlapping windows", u.node)
    if first.there:
        f, g = g, f
    operator = product_of(u, f, g) if laws.profiles else _race(u, f, g, len(given))
    return _operated(laws, u, operator, (*moments_of_entries(laws, u), *given))


def _two_factors(expr: sp.Expr, count: int) -> tuple[sp.Expr, sp.Expr]:
    """f(arg(0)) g(arg(1)), each as a function of arg(0) and of ``count`` coefficients."""
    one, rest = expr.as_independent(arg(1), as_Add=False)
    numbers = {coefficient(i) for i in range(count)}
    if symbols_in(one) - {arg(0), *numbers} or symbols_in(rest) - {arg(1), *numbers}:
        raise NoFormula("a function of two maxima that is no product")
    return one, rename(rest, ((arg(1), arg(0)),))


# -- gradients of winners ------------------------------------------------------------------------------------------


INDEPENDENT = "closure: what arrives at a maximum is independent of it"


def won_second(laws: Laws, v: Win, w: Win | None = None) -> Formula:
    """E[v w] of what an entry gets from the windows it wins; ``w`` is ``v`` unless given."""
    if laws.profiles and _knows(v, w or v):
        with suppress(NoFormula):
            return _won_knowing(laws, v, w or v)
    found = _won_second(laws, v, w or v)
    if v.of is None or v.top is None or not (_holds(v.of, v.top) or laws.dependent(v.of, v.top, SAME)):
        return found
    return replace(found, exactness="closure", assumptions=found.assumptions | {INDEPENDENT})


def _holds(x: Instance, top: Instance) -> bool:
    """Whether a gradient is a function of the largest entry too, as behind a skip connection or the next max pool."""
    v = x.variable
    inner = parts(v) if isinstance(v, Composite | Win | Mixed) and not v.gaussian else ()
    return x == top or any(_holds(a, top) for a in inner)


def _knows(v: Win, w: Win) -> bool:
    """Whether gradients are functions of the largest of Gaussian entries."""
    both = [u.of is not None and u.top is not None and _holds(u.of, u.top) for u in (v, w)]
    return any(both) and type(v.largest) is Largest and v.top == w.top


def _won_knowing(laws: Laws, v: Win, w: Win) -> Formula:
    assert v.of is not None and w.of is not None and v.top is not None
    entries = moments_of_entries(laws, v.largest)
    scale = laws.system.operate(Overall(), (entries[0],), "k", v.node, False)
    own, apart = [], []
    for t in LEVELS:
        level = laws.quantity(mo.combine(t * sp.sqrt(mo.part(0)), [laws.formula(scale)]), "k", v.node)
        d, e = (at_level(x, v.top, level) for x in (v.of, w.of))
        own.append(laws.quantity(sampled(laws, [d, e], SAME, v)))
        apart.append(laws.quantity(sampled(laws, [d, replace(e, there=True)], POSITION, v)))
    square = v.slope * _moved(w.slope, w, len(v.coefficients))
    operator = WonKnowing(v.window, square, v.largest.score)
    return _operated(laws, v, operator, (*entries, scale, *own, *apart, *v.coefficients, *w.coefficients))


def _won_second(laws: Laws, v: Win, w: Win) -> Formula:
    assert v.of is not None and w.of is not None and v.top is not None
    both, given = v.slope * _moved(w.slope, w, len(v.coefficients)), (*v.coefficients, *w.coefficients)
    apart = laws.pair(v.of, replace(w.of, there=True), POSITION)
    if laws.profiles:
        own = laws.pair(v.of, w.of, SAME)
        if own.is_zero and apart.is_zero:
            return mo.ZERO
        gradients = (laws.quantity(own), laws.quantity(apart))
        return _operated(laws, v, won_twice(v, both), (*moments_of_entries(laws, v.largest), *gradients, *given))
    alone = laws.expectation(both * arg(1) * arg(2), (v.top, v.of, w.of), given, SAME)
    alone = mo.combine(sp.Rational(1, v.window.spacing) * mo.part(0), [alone])
    unions = overlaps(v.window)
    if apart.is_zero or not unions:
        return alone
    parts = [mo.combine(share * mo.part(0), [_wins(laws, v, both, given, size)]) for size, share in unions]
    return mo.total([alone, mo.product(apart, mo.total(parts))])


def _moved(f: sp.Expr, v: Win | Largest, by: int) -> sp.Expr:
    """A function of a variable's coefficients with these ``by`` places further."""
    return rename(f, tuple((coefficient(i), coefficient(i + by)) for i in range(len(v.coefficients))))


def _wins(laws: Laws, v: Win, f: sp.Expr, given: tuple[Quantity, ...], size: int) -> Formula:
    """E[f(entry) 1(it wins among ``size``)]."""
    if f == 1:
        return mo.constant(sp.Rational(1, size))
    top = v.largest
    if top.ranked:
        race = _race(top, f, None, len(given), size)
        return _operated(laws, v, race, (*moments_of_entries(laws, top), *given))
    below = _moved(top.below, top, len(given))
    return laws.expectation(f * below ** (size - 1), top.weight_args, (*given, *top.coefficients), SAME)


def won_pair(laws: Laws, x: Instance, y: Instance, view: View) -> Formula:
    """E[x y] of what entries win and another gradient at the same place or another."""
    first = isinstance(x.variable, Win)
    won, other = (x, y) if first else (y, x)
    found = _won_beside(laws, won, replace(other, there=False), view)
    return found if first or not view.position else laws.turned(found)


def _won_beside(laws: Laws, won: Instance, other: Instance, view: View) -> Formula:
    v, w = won.variable, other.variable
    assert isinstance(v, Win) and v.of is not None
    if isinstance(w, Composite) and any(isinstance(a.variable, Win) for a in w.args):
        return _opened(laws, won, other, view)
    of = replace(carried(v.of, won), there=False)
    if isinstance(w, Win):
        return _two_won(laws, v, w, won.moves == other.moves, view)
    fixed = not laws.differs(other, False)
    mix = w.mix if isinstance(w, Mixed) and not fixed else None
    y = replace(carried(w.of, other), there=False) if isinstance(w, Mixed) and mix is not None and w.of else other
    outputs = mix.window.outputs if mix is not None and mix.transpose else None
    if not fixed and v.window.outputs != (outputs or v.window.inputs):
        raise NoFormula("what entries win beside a gradient of another grid", v.node)
    here, there = View(False, view.sample), View(True, view.sample)
    same = laws.pair(of, replace(y, there=not here.same), here)
    apart = same if fixed else laws.pair(of, replace(y, there=True), there)
    if same.is_zero and apart.is_zero:
        return mo.ZERO
    if laws.profiles:
        operator = won_beside(v, mix, view.position, fixed)
        given = (laws.quantity(same), laws.quantity(apart))
        return _operated(laws, v, operator, (*moments_of_entries(laws, v.largest), *given, *v.coefficients))
    slope = _slope(laws, v)
    if fixed:
        return mo.combine(sp.Rational(1, v.window.spacing) * mo.part(0) * mo.part(1), [same, slope])
    alike, beside = Mixing(evenly(v.window), mix, view.position).limit
    return mo.combine((alike * mo.part(0) + beside * mo.part(1)) * mo.part(2), [same, apart, slope])


def _opened(laws: Laws, won: Instance, other: Instance, view: View) -> Formula:
    """E of what entries win times an expression of what entries win."""
    w = other.variable
    assert isinstance(w, Composite)
    args = tuple(replace(carried(a, other), there=not view.same) for a in w.args)
    expr = rename(w.expr, tuple((arg(i), arg(i + 1)) for i in range(len(args)))) * arg(0)
    numbers = tuple(laws.turned_quantity(q) for q in w.coefficients) if view.position else w.coefficients
    return laws.expectation(expr, (won, *args), numbers, view)


def _slope(laws: Laws, v: Win) -> Formula:
    return mo.ONE if v.slope == 1 else of_largest(laws, v.slope, v.largest, v.coefficients)


def _two_won(laws: Laws, v: Win, w: Win, same_channel: bool, view: View) -> Formula:
    """E of the product of what two entries win from the same windows."""
    assert v.of is not None and w.of is not None
    if v.top != w.top or not same_channel or view.sample:
        raise NoFormula("what entries win in two maxima", v.node)
    if view.same:
        return won_second(laws, v, w)
    own, apart = laws.pair(v.of, w.of, SAME), laws.pair(v.of, replace(w.of, there=True), POSITION)
    if laws.profiles:
        if own.is_zero and apart.is_zero:
            return mo.ZERO
        given = (laws.quantity(own), laws.quantity(apart), *v.coefficients, *w.coefficients)
        return _operated(laws, v, won_apart(v, w), (*moments_of_entries(laws, v.largest), *given))
    shape = mo.part(0) * mo.part(1) * mo.part(2) / v.window.spacing**2
    return mo.combine(shape, [apart, _slope(laws, v), _slope(laws, w)])


def _won_together(laws: Laws, expr: sp.Expr, args: tuple[Instance, ...], view: View) -> Formula:
    """E of a product of two gradients, one of them won, and functions of the entry that wins: those are functions of
    the largest where it does."""
    gradients = [i for i, x in enumerate(args) if x.variable.backward]
    factors = sp.Mul.make_args(expr)
    linear = sp.Mul(*(f for f in factors if symbols_in(f) & {arg(i) for i in gradients}))
    rest = sp.Mul(*(f for f in factors if not symbols_in(f) & {arg(i) for i in gradients}))
    if len(gradients) == 1 and linear == arg(gradients[0]) ** 2:
        gradients *= 2
    elif len(gradients) != 2 or linear != arg(gradients[0]) * arg(gradients[1]):
        raise NoFormula("gradients of maxima that are not multiplied in pairs")
    pair = [args[i] for i in gradients]
    if pair[0] == pair[1]:
        return _squared(laws, pair[0], rest, args)
    for k, x in enumerate(pair):
        pair[k], rest = _with_slope(x, rest, args)
    if rest != 1:
        raise NoFormula("what entries win beside what they depend on", pair[0].variable.node)
    first, second = sorted(pair, key=lambda x: x.there)
    return won_pair(laws, first, second, view if pair[0].there != pair[1].there else SAME)


def _squared(laws: Laws, x: Instance, rest: sp.Expr, args: tuple[Instance, ...]) -> Formula:
    moved, left = _with_slope(x, rest, args)
    v, w = x.variable, moved.variable
    assert isinstance(v, Win) and isinstance(w, Win)
    if left != 1:
        raise NoFormula("what entries win beside what they depend on", v.node)
    found = won_second(laws, v, w)
    return laws.turned(found) if x.there else found


def _with_slope(x: Instance, rest: sp.Expr, args: tuple[Instance, ...]) -> tuple[Instance, sp.Expr]:
    """``x`` times the factors of ``rest`` that are functions of its entry at its place, and what is left."""
    v = x.variable
    if not isinstance(v, Win):
        return x, rest
    places = places_of(v, x)
    mine = {arg(i): places[replace(y, there=False)] for i, y in enumerate(args)
            if y.there == x.there and replace(y, there=False) in places}
    factors = sp.Mul.make_args(rest)
    own = [f for f in factors if symbols_in(f) and symbols_in(f) <= set(mine)]
    if not own:
        return x, rest
    slope = v.slope * rename(sp.Mul(*own), tuple(mine.items()))
    made = replace(v, value=None, slope=slope)
    return Instance(made, x.moves, x.there), sp.Mul(*(f for f in factors if f not in own))
