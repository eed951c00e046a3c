"""Means, second moments and covariances of variables: expand a composite only where it matters.

The expectation of a product is split into groups of dependent variables. A group that is one variable is that
variable's own named moment; a group of basic variables is a Gaussian expectation; otherwise the newest
composite of the group is replaced by its definition and the split starts again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any

import sympy as sp

from varflow.calculus import rename, symbols_in
from varflow.laws import labels
from varflow.laws import moments as mo
from varflow.laws.attention import OF_TOKENS, mean_in_attention, pair_in_attention
from varflow.laws.blocks import arguments, carried, coefficient, index_of
from varflow.laws.cells import KINKED
from varflow.laws.closure import closed
from varflow.laws.covariances import Covariances, moments_of
from varflow.laws.depthwise import known_by_moments, of_symmetric, tied
from varflow.laws.distributions import Bernoulli, Distribution, NoFormula, Normal, Sphere
from varflow.laws.given import coefficient_formula, filled, plain, position
from varflow.laws.moments import Formula, Moment, Quantity
from varflow.laws.positions import Overall
from varflow.laws.resampling import gridded, resampled, spread_of, sum_of_resampled
from varflow.laws.sampled import sampled
from varflow.laws.split import Term, polynomial_in, split
from varflow.laws.standardized import MIXTURES, beside
from varflow.laws.templates import squared, template, variable
from varflow.laws.variables import (
    SAME,
    BlockChoice,
    Composite,
    Depthwise,
    Instance,
    Largest,
    MaskEntry,
    Mixed,
    Opaque,
    PositionAverage,
    SampleMean,
    SphereEntry,
    Standardized,
    Variable,
    View,
    Win,
)
from varflow.laws.walk import moments_of_walk
from varflow.laws.winners import joint, of_largest, won_pair, won_second
from varflow.symbols import arg

ARGUMENT_LIMIT = 10
ROOT_LIMIT = 3
"""Variables within a nonlinear function beyond which neither closed form nor integral is tried."""
EXPANSION_LIMIT = 400
SQUARE = arg(0) ** 2
SAMPLED = 2
"""Variables of a kinked function beyond which a sample is taken where one can be."""


@dataclass
class Laws(Covariances):
    """Named moments of variables, computed once each; with ``closures`` a Gaussian closure stands in where there
    is no formula, with ``sampling`` a sample of its sources. ``samples_apart``: no statistic of a finite batch ties
    gradients of different samples, whose cotangents are independent."""

    closures: bool = False
    sampling: bool = False
    samples_apart: bool = False
    taps: dict[Variable, tuple[Instance, ...]] = field(default_factory=dict)
    _mean: dict[Variable, Formula] = field(default_factory=dict)
    _function: dict[Any, Formula] = field(default_factory=dict)
    _failed: dict[Any, NoFormula] = field(default_factory=dict)
    _work: int = 0

    # -- moments of any variable ---------------------------------------------------------------------

    def declare(self, v: Variable, mean: Formula | None, second: Formula) -> None:
        """State moments that hold by construction (a normalized value's)."""
        if mean is not None:
            self._mean[v] = mean
        self._second[v] = second
        self._pair[(v, (), v, (), SAME)] = second

    def mean(self, x: Instance) -> Formula:
        """E[x]; a value of the backward pass is odd in the cotangent: 0. Raises NoFormula where there is no
        formula and no population can supply it."""
        v = x.variable
        if v.gaussian or isinstance(v, SphereEntry | Depthwise | Standardized) or v.backward:
            return mo.ZERO
        if v not in self._mean:
            self._mean[v] = self._named("m", v, "mean", self._find_mean)
        return self._mean[v]

    def second(self, x: Instance) -> Formula:
        """E[x^2], named; see :meth:`mean`."""
        v = x.variable
        if v not in self._second:
            self._second[v] = self._named("g" if v.backward else "q", v, "second_moment", self._find_second)
        return self._second[v]

    def _named(self, kind: str, v: Variable, measure: str, find: Any) -> Formula:
        work, self._work = self._work, 0
        try:
            f: Formula | None = find(v)
        except NoFormula:
            f = closed(self, v, measure) if self.closures else self._sampled(v, measure)
            if f is None and v.value is None:
                raise
        finally:
            self._work = work
        if f is not None and (f.is_zero or f.template.is_Number):
            return f
        moment = self.system.define(kind, v.node, f, backward=v.backward, value=v.value, measure=measure)
        return mo.named(moment)

    def _sampled(self, v: Variable, measure: str) -> Formula | None:
        """A moment by a sample of the sources; None where it is not a function of Gaussian ones."""
        x = Instance(v)
        try:
            known = not self.sampling or v.gaussian
            return None if known else sampled(self, [x] if measure == "mean" else [x, x], SAME, v)
        except NoFormula:
            return None

    def _find_mean(self, v: Variable) -> Formula:
        match v:
            case MaskEntry(keep=keep):
                return mo.constant(keep)
            case BlockChoice(index=index, probabilities=probabilities):
                return mo.constant(probabilities[index])
            case PositionAverage(of=of) if of is not None:
                return self.operated(Overall(), (self.mean(of),), self.mean(of))
            case Mixed(of=of) if of is not None:
                return spread_of(self, v, self.mean(of))
            case Largest():
                return of_largest(self, arg(0), v)
            case Composite(expr=expr, args=args, coefficients=coefficients):
                walk = moments_of_walk(self, v)
                return walk[0] if walk else self.expectation(expr, args, coefficients, SAME)
            case Opaque(mean=mean):
                return self._given(mean)
            case _ if isinstance(v, OF_TOKENS):
                return mean_in_attention(self, v)
        raise NoFormula(f"no mean is known for {type(v).__name__}", v.node)

    def _given(self, quantity: Quantity) -> Formula:
        if quantity is sp.nan:
            raise NoFormula("its law has no formula")
        return self.formula(quantity)

    def _find_second(self, v: Variable) -> Formula:
        x = Instance(v)
        if v.gaussian:
            return self.covariance(x, x, SAME)
        match v:
            case MaskEntry() | BlockChoice():
                return self.mean(x)
            case SphereEntry():
                return mo.ONE
            case PositionAverage() | SampleMean():
                return self._pair_average(v, x, SAME)
            case Mixed():
                return resampled(self, x, x, True, SAME, self.pair)
            case Depthwise():
                return sampled(self, [x, x], SAME, v) if tied(self, v) else self.second(moments_of(x))
            case Largest():
                return of_largest(self, arg(0) ** 2, v)
            case Win():
                return won_second(self, v)
            case Composite(expr=expr, args=args, coefficients=coefficients):
                walk = moments_of_walk(self, v)
                return walk[1] if walk else self.expectation(squared(expr, args), args, coefficients, SAME)
            case Opaque(second=second):
                return self._given(second)
            case _ if isinstance(v, OF_TOKENS):
                return pair_in_attention(self, x, x, SAME)
        raise NoFormula(f"no second moment is known for {type(v).__name__}", v.node)

    def pair(self, x: Instance, y: Instance, view: View) -> Formula:
        """E[x y], ``there`` instances at the other place of ``view``."""
        if x.there and y.there and view.position:
            return self.turned(self.pair(x.at(False), y.at(False), SAME))
        if x.there and not y.there:
            x, y = y, x
        asked = self._view_of(x, y, view)
        first, second = x.variable, y.variable
        view = self._reduced(asked, x, y)
        if first is second and x.moves == y.moves and view.same:
            return self.second(x)
        apart = asked.position and self.differs(y, False)
        if first.backward != second.backward:
            return mo.ZERO
        unrelated = view.position and x.dealt and x.moves == y.moves
        x, y = x.at(False), y.at(not view.same)
        both_backward = first.backward and second.backward
        if both_backward and view.sample and self.samples_apart:
            return mo.ZERO
        if both_backward and not self._families(first) & self._families(second) & self._backward_bits:
            return mo.ZERO
        if unrelated or not (self.dependent(x, y, view) or gridded(self, x, y)):
            return mo.product(self.mean(x), self.turned(self.mean(y)) if apart else self.mean(y))
        if known_by_moments(self, first, second):
            return self.covariance(moments_of(x), moments_of(y), asked)
        return self._named_pair(x, y, asked, view)

    def _named_pair(self, x: Instance, y: Instance, asked: View, view: View) -> Formula:
        """E[x y], named once."""
        given = (x, y)
        if x.variable.born > y.variable.born:
            x, y = y.at(False), x.at(not view.same)
        u, v = x.variable, y.variable
        key = (u, x.moves, v, y.moves, view)
        if key in self._failed:
            raise self._failed[key].with_traceback(None)
        if key not in self._pair:
            try:
                found = self._pair_or_sample(x, y, view)
            except NoFormula as error:
                self._failed[key] = error
                raise
            self._pair[key] = self.formula(self.quantity(found, node=max((u, v), key=attrgetter("born")).node,
                                                         backward=u.backward or v.backward))
        return self._oriented(self._pair[key], asked, view, given, u)

    def _pair_or_sample(self, x: Instance, y: Instance, view: View) -> Formula:
        work, self._work = self._work, 0
        try:
            return self._find_pair(x, y, view)
        except NoFormula:
            if not self.sampling or self.closures:
                raise
            return sampled(self, [x, y], view, max(x.variable, y.variable, key=attrgetter("born")))
        finally:
            self._work = work

    def _find_pair(self, x: Instance, y: Instance, view: View) -> Formula:
        for a, b in ((y, x), (x, y)):
            if isinstance(a.variable, PositionAverage | SampleMean):
                return self._pair_average(a.variable, b, view)
            if isinstance(a.variable, Mixed) and not sum_of_resampled(b.variable):
                return resampled(self, a, b, a is x, view, self.pair)
            if isinstance(a.variable, OF_TOKENS) and not isinstance(b.variable, Composite):
                return pair_in_attention(self, a, b, view)
        if isinstance(x.variable, Win) or isinstance(y.variable, Win):
            return won_pair(self, x, y, view)
        for a, b in ((x, y), (y, x)):
            if isinstance(a.variable, Opaque):
                return self._pair_opaque(a, b, view)
        return self._joint(_both(0, 1), [0, 1], (x, y), (), view)

    def _pair_average(self, z: PositionAverage | SampleMean, other: Instance, view: View) -> Formula:
        assert z.of is not None
        of, other = z.of, other.at(False)

        def at(w: View) -> Formula:
            return self.pair(other, of.at(not w.same), w)

        return self.over_batch(z, other, at, view) if isinstance(z, SampleMean) else self._averaged(
            z.count, other, at, view)

    def _pair_opaque(self, a: Instance, b: Instance, view: View) -> Formula:
        v = a.variable
        assert isinstance(v, Opaque)
        if b.variable is v and a.moves == b.moves:
            return self._given(v.sample if view.sample else v.position)
        if v.backward and b.variable.backward and self._odd_apart(a, b, view):
            return mo.ZERO
        raise NoFormula("a normalized gradient and what it depends on", v.node)

    def _odd_apart(self, a: Instance, b: Instance, view: View) -> bool:
        """Whether a and b are odd in independent cotangent parts: then E[a b] = 0."""
        pairs = ((p, q) for p in self.roots(a) for q in self.roots(b)
                 if p.variable.backward and q.variable.backward)
        return not any(self._roots_dependent(p, q, view) for p, q in pairs)

    # -- expectations of expressions -----------------------------------------------------------------

    def expectation(self, expr: sp.Expr, args: tuple[Instance, ...], coefficients: tuple[Quantity, ...],
                    view: View) -> Formula:
        """E[expr] of instances and coefficients; raises NoFormula where there is neither closed form nor
        integral."""
        self._work += 1
        if len(args) > ARGUMENT_LIMIT or self._work > EXPANSION_LIMIT:
            raise NoFormula("too many variables in one expectation")
        terms = split(expr, arguments(len(args)))
        return mo.total([self._term(t, args, coefficients, view) for t in terms])

    def _term(self, term: Term, args: tuple[Instance, ...], coefficients: tuple[Quantity, ...], view: View) -> Formula:
        if labels.excluded(term, args) or self._odd(term, args):
            return mo.ZERO
        factors = [coefficient_formula(term.factor, coefficients)]
        groups = self._groups(term, args, view)
        for indices, expr in sorted(groups, key=lambda g: len(g[0])):
            f = self._group(expr, indices, args, coefficients, view)
            if f.is_zero:
                return mo.ZERO
            factors.append(f)
        result = mo.product(*factors)
        entangled = result.degree and labels.beside_an_input([i for indices, _ in groups for i in indices], args)
        return replace(result, exactness=mo.weakest(mo.EXACTNESS, (result.exactness, "wide"))) if entangled else result

    def _odd(self, term: Term, args: tuple[Instance, ...]) -> bool:
        """Whether a term is odd in parts of the cotangents that nothing else in it contains.

        Backward variables are linear in the cotangents; slopes are forward ones.
        """
        powers = list(self._backward_powers(term, args))
        if any(k is None for _, k in powers):
            return False
        if sum(k for _, k in powers if k) % 2:
            return True
        return any(k is not None and k % 2 and not any(a & b for j, (b, _) in enumerate(powers) if j != i)
                   for i, (a, k) in enumerate(powers))

    def _backward_powers(self, term: Term, args: tuple[Instance, ...]) -> Iterator[tuple[int, int | None]]:
        """(cotangent parts, power) of every backward variable in a term; None for what is no power."""
        for symbol, f in term.functions:
            v = args[index_of(symbol)].variable
            if v.backward:
                base, power = f.as_base_exp()
                known = base == symbol and power.is_Integer
                yield self._families(v) & self._backward_bits, int(power) if known else None
        for atom in term.atoms:
            for s in symbols_in(atom) & arguments(len(args)):
                if args[index_of(s)].variable.backward:
                    yield 0, None

    def _groups(self, term: Term, args: tuple[Instance, ...], view: View) -> list[tuple[list[int], sp.Expr]]:
        """Dependent groups of a term's arguments, each with its part of the product."""
        parts: list[tuple[set[int], sp.Expr]] = [({index_of(s)}, f) for s, f in term.functions]
        parts += [({index_of(s) for s in symbols_in(a) if s in arguments(len(args))}, a) for a in term.atoms]
        groups: list[tuple[set[int], sp.Expr]] = []
        for indices, expr in parts:
            joined = [(indices, expr)]
            rest: list[tuple[set[int], sp.Expr]] = []
            for group in groups:
                (joined if self._touch(indices, group[0], args, view) else rest).append(group)
            groups = [*rest, (set().union(*(g[0] for g in joined)), sp.Mul(*(g[1] for g in joined)))]
        return [(sorted(indices), expr) for indices, expr in groups]

    def _touch(self, a: set[int], b: set[int], args: tuple[Instance, ...], view: View) -> bool:
        pairs = [(args[i], args[j]) for i in a for j in b]
        return bool(a & b) or any(self.dependent(x, y, view) or gridded(self, x, y) for x, y in pairs)

    def _group(self, expr: sp.Expr, indices: list[int], args: tuple[Instance, ...],
               coefficients: tuple[Quantity, ...], view: View) -> Formula:
        if len(indices) == 1:
            x = args[indices[0]]
            f = self._one(rename(expr, ((arg(indices[0]), arg(0)),)), x, coefficients)
            return self.turned(f) if x.there and view.position else f
        if len(indices) == 2 and expr == _both(*indices):
            return self.pair(args[indices[0]], args[indices[1]], view)
        return self._joint(expr, indices, args, coefficients, view)

    def _one(self, f: sp.Expr, x: Instance, coefficients: tuple[Quantity, ...]) -> Formula:
        """E[f(x)] of one variable."""
        if f == arg(0):
            return self.mean(x)
        if f == SQUARE:
            return self.second(x)
        v = x.variable
        key = (v, f, tuple(id(c) if isinstance(c, Moment) else c for c in coefficients))
        if key not in self._function:
            self._function[key] = self._find_one(f, v, coefficients)
        return self._function[key]

    def _find_one(self, f: sp.Expr, v: Variable, coefficients: tuple[Quantity, ...]) -> Formula:
        if isinstance(v, BlockChoice):
            return mo.product(coefficient_formula(f.subs(arg(0), 1), coefficients), self.mean(Instance(v)))
        if isinstance(v, Composite):
            return self._substitute(f, 0, (Instance(v),), coefficients, SAME)
        if isinstance(v, Largest):
            return of_largest(self, f, v, coefficients)
        if isinstance(v, Depthwise | Standardized):
            return of_symmetric(self, f, v, coefficients)
        if isinstance(v, (Opaque, PositionAverage, SampleMean, Mixed, Win, *OF_TOKENS)) and not v.gaussian:
            return self._polynomial(f, v, coefficients)
        return self._basic(f, [0], (Instance(v),), coefficients, SAME)

    def _polynomial(self, f: sp.Expr, v: Variable, coefficients: tuple[Quantity, ...]) -> Formula:
        """E of a polynomial of degree two at most in a variable known by two moments."""
        if not f.is_polynomial(arg(0)) or sp.degree(f, arg(0)) > 2:
            raise NoFormula("a nonlinear function of a value known by two moments", v.node)
        powers = [mo.ONE, self.mean(Instance(v)), self.second(Instance(v))]
        table = sp.Poly(f, arg(0)).as_dict()
        return mo.total([mo.product(coefficient_formula(c, coefficients), powers[k]) for (k,), c in table.items()])

    def _joint(self, expr: sp.Expr, indices: list[int], args: tuple[Instance, ...],
               coefficients: tuple[Quantity, ...], view: View) -> Formula:
        composites = [i for i in indices if isinstance(args[i].variable, Composite)]
        if composites:
            newest = max(composites, key=lambda i: args[i].variable.born)
            return self._substitute(expr, newest, args, coefficients, view)
        return self._basic(expr, indices, args, coefficients, view)

    def _substitute(self, expr: sp.Expr, which: int, args: tuple[Instance, ...],
                    coefficients: tuple[Quantity, ...], view: View) -> Formula:
        """Replace one composite by its definition and go on."""
        x = args[which]
        v = x.variable
        assert isinstance(v, Composite)
        if len(self.roots(x)) > ROOT_LIMIT and not polynomial_in(expr, arg(which)):
            raise NoFormula("a nonlinear function of many variables", v.node)
        used = sorted({index_of(s) for s in symbols_in(expr) if s in arguments(len(args))} - {which})
        kept = [args[i] for i in used]
        place: dict[Instance, int] = {a: i for i, a in enumerate(kept)}
        inner: dict[sp.Symbol, sp.Expr] = {}
        for i, a in enumerate(v.args):
            moved = self.settled(carried(a, x), view)
            inner[arg(i)] = arg(place.setdefault(moved, len(place)))
        for i in range(len(v.coefficients)):
            inner[coefficient(i)] = coefficient(len(coefficients) + i)
        outer: dict[sp.Symbol, sp.Expr] = {arg(i): arg(place[args[i]]) for i in used}
        outer[arg(which)] = rename(v.expr, tuple(inner.items()))
        turned = x.there and view.position
        own = tuple(self.turned_quantity(c) for c in v.coefficients) if turned else v.coefficients
        return self.expectation(rename(expr, tuple(outer.items())), tuple(place), coefficients + own, view)

    def settled(self, x: Instance, view: View) -> Instance:
        """``x``, here instead of there where it does not vary along the view."""
        if x.there and self._reduced(view, x, x).same:
            return x.at(False)
        return x

    def _basic(self, expr: sp.Expr, indices: list[int], args: tuple[Instance, ...],
               coefficients: tuple[Quantity, ...], view: View) -> Formula:
        """The Gaussian expectation of basic variables; cached by structure in :mod:`~varflow.laws.templates`."""
        if any(isinstance(args[i].variable, Largest | Win) for i in indices):
            placed = tuple((arg(i), arg(k)) for k, i in enumerate(indices))
            return joint(self, rename(expr, placed), tuple(args[i] for i in indices), view, coefficients)
        if any(isinstance(args[i].variable, MIXTURES) for i in indices):
            return beside(self, expr, indices, args, coefficients, view)
        given: list[Quantity] = []
        table: dict[sp.Symbol, sp.Expr] = {}
        kinds = []
        for new, i in enumerate(indices):
            table[arg(i)] = variable(new)
            kinds.append(self._kind(args[i], given))
        matrix = tuple(
            tuple(self._entry(args[i], args[j], view, given) for j in indices) for i in indices
        )
        used = symbols_in(expr)
        for i, c in enumerate(coefficients):
            if coefficient(i) in used:
                table[coefficient(i)] = mo.place(position(given, c), c)
        renamed = rename(expr, tuple(table.items()))
        if self.sampling and len(indices) > SAMPLED and renamed.has(*KINKED):
            raise NoFormula("a kinked function of several variables")
        found = template(renamed, tuple(kinds), matrix)
        degree = labels.degree_of(found, renamed, tuple(kinds), matrix, [args[i] for i in indices], given)
        scale = "wide" if degree > 1 else "exact"
        exactness = mo.weakest(mo.EXACTNESS, (labels.exactness_of(expr, indices, args), scale))
        assumptions = labels.assumptions_of(expr, indices, args)
        return filled(Formula(found, tuple(given), exactness, assumptions=assumptions, degree=degree))

    def _kind(self, x: Instance, given: list[Quantity]) -> Distribution:
        v = x.variable
        if v.gaussian:
            return Normal()
        if isinstance(v, MaskEntry):
            return Bernoulli(mo.place(position(given, v.keep), v.keep) if not v.keep.is_Number else v.keep)
        if isinstance(v, SphereEntry):
            return Sphere(v.batch, group=str(v.born))
        raise NoFormula("a nonlinear function of a value known by two moments", v.node)

    def _entry(self, x: Instance, y: Instance, view: View, given: list[Quantity]) -> sp.Expr:
        if not (x.variable.gaussian and y.variable.gaussian):
            self._refuse_mixed(x, y, view)
            return sp.S.Zero
        f = self._entry_formula(x, y, view)
        c = self.quantity(f, node=x.variable.node, backward=x.variable.backward)
        return c if isinstance(c, sp.Number) and plain(c) else mo.place(position(given, c), c)

    def entry_quantity(self, x: Instance, y: Instance, view: View) -> Quantity:
        """Covariance of two Gaussian instances as one quantity."""
        return self.quantity(self._entry_formula(x, y, view), node=x.variable.node, backward=x.variable.backward)

    def _entry_formula(self, x: Instance, y: Instance, view: View) -> Formula:
        if x.there and not y.there:
            x, y = y, x
        f = self.second(x) if x == y else self.covariance(x, y, self._view_of(x, y, view))
        return self.turned(f) if x.there and y.there and view.position else f

    def _refuse_mixed(self, x: Instance, y: Instance, view: View) -> None:
        spheres = [i for i in (x, y) if isinstance(i.variable, SphereEntry)]
        if spheres and x.variable is not y.variable and self.dependent(x, y, view):
            raise NoFormula("a batch-normalized value beside what it depends on", x.variable.node)


@lru_cache(maxsize=1024)
def _both(i: int, j: int) -> sp.Expr:
    """The product of two arguments."""
    return arg(i) * arg(j)
