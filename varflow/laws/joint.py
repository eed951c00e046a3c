"""Means, second moments and covariances of variables: expand a composite only where it matters.

The expectation of a product is split into groups of dependent variables. A group that is one variable is that
variable's own named moment; a group of basic variables is a Gaussian expectation; otherwise the newest
composite of the group is replaced by its definition and the split starts again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import sympy as sp

from varflow.calculus import difference, rename, symbols_in, times
from varflow.laws import moments as mo
from varflow.laws.distributions import Bernoulli, Distribution, NoFormula, Normal, Sphere
from varflow.laws.moments import Formula, Moment, MomentSystem, Quantity
from varflow.laws.split import polynomial_in, Term, split
from varflow.laws.templates import template, variable
from varflow.laws.variables import (
    SAME,
    Block,
    BlockChoice,
    Blocks,
    Composite,
    GaussianSum,
    Instance,
    MaskEntry,
    Noise,
    Opaque,
    PositionAverage,
    Product,
    SampleMean,
    SphereEntry,
    Variable,
    View,
)
from varflow.laws.walk import moments_of_walk
from varflow.symbols import arg

ARGUMENT_LIMIT = 10
ROOT_LIMIT = 3
"""Variables within a nonlinear function beyond which neither closed form nor integral is tried."""
EXPANSION_LIMIT = 400


def coefficient(i: int) -> sp.Symbol:
    """The i-th coefficient (a moment or a parameter) of a composite's expression."""
    return _COEFFICIENTS(i)


@lru_cache(maxsize=None)
def _COEFFICIENTS(i: int) -> sp.Symbol:
    return sp.Symbol(f"k_{i}", real=True)


@lru_cache(maxsize=None)
def _arguments(count: int) -> frozenset[sp.Symbol]:
    return frozenset(arg(i) for i in range(count))


def refine(*values: Blocks) -> list[tuple[sp.Expr, tuple[Instance | None, ...]]]:
    """Common blocks of several values: (size, the law of each there).

    Raises NoFormula where symbolic boundaries cannot be put in order.
    """
    if all(len(v) == 1 for v in values) and all(v[0].size == values[0][0].size for v in values):
        return [(values[0][0].size, tuple(v[0].law for v in values))]
    result = []
    queues = [list(v) for v in values]
    while all(queues):
        heads = [q[0].size for q in queues]
        size = _least(heads)
        result.append((size, tuple(q[0].law for q in queues)))
        for q in queues:
            rest = difference(q[0].size, size)
            if rest == 0:
                q.pop(0)
            else:
                q[0] = Block(rest, q[0].law)
    return result


def _least(sizes: Sequence[sp.Expr]) -> sp.Expr:
    best = sizes[0]
    for s in sizes[1:]:
        gap = difference(best, s)
        if gap.is_positive:
            best = s
        elif gap != 0 and not gap.is_negative:
            raise NoFormula(f"blocks of {best} and {s} channels cannot be put in order")
    return best


@dataclass
class Laws:
    """Named moments of variables, computed once each."""

    system: MomentSystem = field(default_factory=MomentSystem)
    _mean: dict[Variable, Formula] = field(default_factory=dict)
    _second: dict[Variable, Formula] = field(default_factory=dict)
    _pair: dict[Any, Formula] = field(default_factory=dict)
    _function: dict[Any, Formula] = field(default_factory=dict)
    _roots: dict[Variable, tuple[Instance, ...]] = field(default_factory=dict)
    _varies: dict[tuple[Variable, bool], bool] = field(default_factory=dict)
    _bits: dict[object, int] = field(default_factory=dict)
    _family_sets: dict[Variable, int] = field(default_factory=dict)
    _backward_bits: int = 0
    _work: int = 0

    # -- structure -----------------------------------------------------------------------------------

    def roots(self, x: Instance) -> tuple[Instance, ...]:
        """The basic variables an instance depends on."""
        own = self._own_roots(x.variable)
        if not x.moves and not x.there:
            return own
        return tuple(carried(r, x) for r in own)

    def _own_roots(self, v: Variable) -> tuple[Instance, ...]:
        if v not in self._roots:
            self._roots[v] = tuple(self._find_roots(v))
        return self._roots[v]

    def _find_roots(self, v: Variable) -> Iterator[Instance]:
        children: tuple[Instance, ...]
        if isinstance(v, Composite):
            children = v.args
        elif isinstance(v, Opaque):
            children = v.roots
        elif isinstance(v, PositionAverage) and not v.gaussian and v.of is not None:
            children = (v.of,)
        else:
            yield Instance(v)
            return
        yield from dict.fromkeys(r for c in children for r in self.roots(c))

    def varies(self, v: Variable, sample: bool) -> bool:
        """Whether a variable differs between samples (or, if not ``sample``, between positions)."""
        key = (v, sample)
        if key not in self._varies:
            self._varies[key] = self._find_varies(v, sample)
        return self._varies[key]

    def _find_varies(self, v: Variable, sample: bool) -> bool:
        match v:
            case Noise(kind=kind):
                return kind != "bias"
            case MaskEntry(per_sample=per_sample):
                return sample or not per_sample
            case BlockChoice():
                return False
            case SampleMean(of=of) if of is not None:
                return not sample and self.varies(of.variable, sample)
            case PositionAverage(of=of) if of is not None:
                return sample and self.varies(of.variable, sample)
            case SphereEntry(of=of) if of is not None:
                return sample or self.varies(of.variable, sample)
            case Product(operand=operand):
                return any(b.law is not None and self.varies(b.law.variable, sample) for b in operand)
            case GaussianSum(terms=terms):
                return any(self.varies(t.variable, sample) for _, t in terms)
            case Composite(args=args):
                return any(self.varies(a.variable, sample) for a in args)
            case Opaque(roots=roots):
                return any(self.varies(a.variable, sample) for a in roots)
        return True

    def _reduced(self, view: View, x: Variable, y: Variable) -> View:
        """The view as far as both variables vary along it."""
        return View(view.position and self.varies(x, False) and self.varies(y, False),
                    view.sample and self.varies(x, True) and self.varies(y, True))

    def _view_of(self, x: Instance, y: Instance, view: View) -> View:
        return view if x.there != y.there else SAME

    def dependent(self, x: Instance, y: Instance, view: View) -> bool:
        """Whether two instances may depend on each other; ``view`` is where ``there`` is."""
        shared = self._families(x.variable) & self._families(y.variable)
        if not shared or _fresh(x, y) or _fresh(y, x):
            return False
        between = self._view_of(x, y, view)
        mine, others = ([r for r in self.roots(i) if self._families(r.variable) & shared] for i in (x, y))
        return any(self._roots_dependent(a, b, between) for a in mine for b in others)

    def _families(self, v: Variable) -> int:
        """A bit for every source or (weight, orientation, direction) that a variable is made of."""
        if v not in self._family_sets:
            inner = _parts(v)
            bits = 0 if inner else 1 << self._bits.setdefault(_family(v), len(self._bits))
            self._backward_bits |= bits if v.backward else 0
            for x in inner:
                bits |= self._families(x.variable)
            self._family_sets[v] = bits
        return self._family_sets[v]

    def _roots_dependent(self, a: Instance, b: Instance, view: View) -> bool:
        u, v = a.variable, b.variable
        if isinstance(u, BlockChoice) and isinstance(v, BlockChoice):
            return u.group == v.group and a.moves == b.moves
        if a.moves != b.moves:
            return isinstance(u, MaskEntry) and u is v and u.per_sample and self._reduced(view, u, u).same
        if isinstance(u, MaskEntry) or isinstance(v, MaskEntry):
            return u is v and self._reduced(view, u, v).same
        if isinstance(u, SphereEntry) or isinstance(v, SphereEntry):
            return self._sphere_dependent(u, v, view)
        if u.backward != v.backward:
            return False
        return not self.covariance(Instance(u), Instance(v), view).is_zero

    def _sphere_dependent(self, u: Variable, v: Variable, view: View) -> bool:
        base = [x.of.variable if isinstance(x, SphereEntry) and x.of else x for x in (u, v)]
        if not all(b.gaussian for b in base) or base[0].backward != base[1].backward:
            return False
        views = (view, View(view.position, True), View(view.position, False))
        return any(not self.covariance(Instance(base[0]), Instance(base[1]), w).is_zero for w in views)

    # -- covariances of Gaussian variables -----------------------------------------------------------

    def covariance(self, x: Instance, y: Instance, view: View) -> Formula:
        """Covariance of two Gaussian variables; zero by structure where they are independent."""
        u, v = x.variable, y.variable
        if u.backward != v.backward:
            return mo.ZERO
        view = self._reduced(view, u, v)
        if x.moves == y.moves:
            if view.position and x.moves and x.moves[-1][0] == "unflatten":
                return mo.ZERO
            x, y = Instance(u), Instance(v)
        if u.born < v.born:
            x, y, u, v = y, x, v, u
        if _fresh(x, y):
            return mo.ZERO
        key = (u, x.moves, v, y.moves, view)
        if key not in self._pair:
            self._pair[key] = self._find_covariance(x, y, view)
        return self._pair[key]

    def _find_covariance(self, x: Instance, y: Instance, view: View) -> Formula:
        for newer, older in ((x, y), (y, x)):
            match newer.variable:
                case GaussianSum(terms=terms) as v:
                    self._climb(v, older, view)
                    parts = [(c, self.covariance(carried(t, newer), older, view)) for c, t in terms]
                    return mo.total([mo.product(self.formula(c), f) for c, f in parts if not f.is_zero])
                case SampleMean(of=of) if of is not None:
                    return self.covariance(carried(of, newer), older, View(view.position, True))
                case PositionAverage(of=of) as z if of is not None:
                    inner = carried(of, newer)
                    return self._averaged(z, partial(self.covariance, inner, older), view)
        return self._basic_covariance(x.variable, y.variable, view) if x.moves == y.moves else mo.ZERO

    def _climb(self, v: GaussianSum, other: Instance, view: View) -> None:
        """Covariances with the sums inside a sum first, the innermost before all: no deep recursion."""
        ladder: list[Instance] = []
        while v.born > other.variable.born:
            inner = next((t for _, t in v.terms if isinstance(t.variable, GaussianSum)), None)
            if inner is None or inner.moves or other.moves or self._settled_pair(inner, other, view):
                break
            ladder.append(inner)
            v = inner.variable
        for step in reversed(ladder[1:]):
            self.covariance(step, other, view)

    def _settled_pair(self, x: Instance, y: Instance, view: View) -> bool:
        u, v = (x.variable, y.variable) if x.variable.born >= y.variable.born else (y.variable, x.variable)
        return (u, (), v, (), view) in self._pair or _fresh(Instance(u), Instance(v))

    def _averaged(self, z: PositionAverage, at: Any, view: View) -> Formula:
        """(E at the same position + (P-1) E at others) / P."""
        count = mo.constant(z.count)
        here, other = at(View(False, view.sample)), at(View(True, view.sample))
        if here is other:
            return here  # type: ignore[no-any-return]
        p = mo.part
        return mo.combine((p(0) + (p(2) - 1) * p(1)) / p(2), [here, other, count])

    def _basic_covariance(self, u: Variable, v: Variable, view: View) -> Formula:
        if isinstance(u, Noise) and u is v:
            factor = (u.position if view.position and not view.sample else u.sample) if not view.same else sp.S.One
            if factor is sp.nan:
                raise NoFormula("a covariance between places of a repeated block's stream", u.node)
            return mo.constant(u.variance * factor)
        if isinstance(u, Product) and isinstance(v, Product):
            if (u.weight, u.transpose) == (v.weight, v.transpose):
                return self._product_covariance(u, v, view)
        return mo.ZERO

    def _product_covariance(self, u: Product, v: Product, view: View) -> Formula:
        terms = []
        for size, (a, b) in refine(u.operand, v.operand):
            if a is not None and b is not None:
                scale = mo.constant(times(u.factor, size))
                terms.append(mo.product(scale, self.pair(a, replace(b, there=not view.same), view)))
        result = mo.total(terms)
        if u is v and view.same and u.shrink is not None:
            result = mo.combine(mo.part(0) - mo.part(1), [result, mo.named(u.shrink)])
        return replace(result, exactness=mo.weakest(mo.EXACTNESS, (result.exactness, u.exactness, v.exactness)))

    # -- moments of any variable ---------------------------------------------------------------------

    def formula(self, quantity: Quantity) -> Formula:
        """A quantity as a formula."""
        return mo.named(quantity) if isinstance(quantity, Moment) else mo.constant(quantity)

    def quantity(self, f: Formula, kind: str = "c", node: str = "", backward: bool = False) -> Quantity:
        """A formula as one quantity, named if it is not one already."""
        if not f.args and f.template.is_Number:
            return f.template
        if len(f.args) == 1 and f.template == mo.place(0, f.args[0]):
            return f.args[0]
        return self.system.define(kind, node, f, backward=backward)

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
        if v.gaussian or isinstance(v, SphereEntry) or v.backward:
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
            if v.value is None:
                raise
            f = None
        finally:
            self._work = work
        if f is not None and (f.is_zero or f.template.is_Number):
            return f
        moment = self.system.define(kind, v.node, f, backward=v.backward, value=v.value, measure=measure)
        return mo.named(moment)

    def _find_mean(self, v: Variable) -> Formula:
        match v:
            case MaskEntry(keep=keep):
                return mo.constant(keep)
            case BlockChoice(index=index, probabilities=probabilities):
                return mo.constant(probabilities[index])
            case PositionAverage(of=of) if of is not None:
                return self.mean(of)
            case Composite(expr=expr, args=args, coefficients=coefficients):
                walk = moments_of_walk(self, v)
                return walk[0] if walk else self.expectation(expr, args, coefficients, SAME)
            case Opaque(mean=mean):
                return self._given(mean)
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
            case PositionAverage():
                return self._pair_average(v, x, SAME)
            case Composite(expr=expr, args=args, coefficients=coefficients):
                walk = moments_of_walk(self, v)
                return walk[1] if walk else self.expectation(expr**2, args, coefficients, SAME)
            case Opaque(second=second):
                return self._given(second)
        raise NoFormula(f"no second moment is known for {type(v).__name__}", v.node)

    def pair(self, x: Instance, y: Instance, view: View) -> Formula:
        """E[x y], ``there`` instances at the other place of ``view``."""
        u, v = x.variable, y.variable
        view = self._reduced(self._view_of(x, y, view), u, v)
        if u is v and x.moves == y.moves and view.same:
            return self.second(x)
        if view.position and x.moves and x.moves[-1][0] == "unflatten":
            return mo.product(self.mean(x), self.mean(y))
        if u.backward != v.backward:
            return mo.ZERO
        x, y = replace(x, there=False), replace(y, there=not view.same)
        if u.backward and v.backward and not self._families(u) & self._families(v) & self._backward_bits:
            return mo.ZERO
        if not self.dependent(x, y, view):
            return mo.product(self.mean(x), self.mean(y))
        if u.gaussian and v.gaussian:
            return self.covariance(x, y, view)
        key = (u, x.moves, v, y.moves, view) if u.born <= v.born else (v, y.moves, u, x.moves, view)
        if key not in self._pair:
            found = self._find_pair(x, y, view)
            self._pair[key] = self.formula(self.quantity(found, node=max((u, v), key=_born).node,
                                                         backward=u.backward or v.backward))
        return self._pair[key]

    def _find_pair(self, x: Instance, y: Instance, view: View) -> Formula:
        for a, b in ((x, y), (y, x)):
            if isinstance(a.variable, PositionAverage):
                return self._pair_average(a.variable, b, view)
        for a, b in ((x, y), (y, x)):
            if isinstance(a.variable, Opaque):
                return self._pair_opaque(a, b, view)
        return self._joint(arg(0) * arg(1), [0, 1], (x, y), (), view)

    def _pair_average(self, z: PositionAverage, other: Instance, view: View) -> Formula:
        assert z.of is not None
        of = z.of
        return self._averaged(z, lambda w: self.pair(of, replace(other, there=not w.same), w), view)

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
        terms = split(expr, _arguments(len(args)))
        return mo.total([self._term(t, args, coefficients, view) for t in terms])

    def _term(self, term: Term, args: tuple[Instance, ...], coefficients: tuple[Quantity, ...], view: View) -> Formula:
        if self._excluded(term, args) or self._odd(term, args):
            return mo.ZERO
        factors = [_coefficient_formula(term.factor, coefficients)]
        groups = self._groups(term, args, view)
        for indices, expr in sorted(groups, key=lambda g: len(g[0])):
            f = self._group(expr, indices, args, coefficients, view)
            if f.is_zero:
                return mo.ZERO
            factors.append(f)
        return mo.product(*factors)

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
            v = args[_index(symbol)].variable
            if v.backward:
                base, power = f.as_base_exp()
                yield self._families(v) & self._backward_bits, int(power) if base == symbol and power.is_Integer else None
        for atom in term.atoms:
            for s in symbols_in(atom) & _arguments(len(args)):
                if args[_index(s)].variable.backward:
                    yield 0, None

    @staticmethod
    def _excluded(term: Term, args: tuple[Instance, ...]) -> bool:
        """Whether two different blocks are chosen at once for one coordinate."""
        chosen: dict[object, int] = {}
        for symbol, _ in term.functions:
            a = args[_index(symbol)]
            if isinstance(a.variable, BlockChoice):
                key = (a.variable.group, a.moves)
                if chosen.setdefault(key, a.variable.index) != a.variable.index:
                    return True
        return False

    def _groups(self, term: Term, args: tuple[Instance, ...], view: View) -> list[tuple[list[int], sp.Expr]]:
        """Dependent groups of a term's arguments, each with its part of the product."""
        parts: list[tuple[set[int], sp.Expr]] = [({_index(s)}, f) for s, f in term.functions]
        parts += [({_index(s) for s in symbols_in(a) if s in _arguments(len(args))}, a) for a in term.atoms]
        groups: list[tuple[set[int], sp.Expr]] = []
        for indices, expr in parts:
            joined, rest = [(indices, expr)], []
            for group in groups:
                (joined if self._touch(indices, group[0], args, view) else rest).append(group)
            groups = [*rest, (set().union(*(g[0] for g in joined)), sp.Mul(*(g[1] for g in joined)))]
        return [(sorted(indices), expr) for indices, expr in groups]

    def _touch(self, a: set[int], b: set[int], args: tuple[Instance, ...], view: View) -> bool:
        return any(i == j or self.dependent(args[i], args[j], view) for i in a for j in b)

    def _group(self, expr: sp.Expr, indices: list[int], args: tuple[Instance, ...],
               coefficients: tuple[Quantity, ...], view: View) -> Formula:
        if len(indices) == 1:
            return self._one(rename(expr, ((arg(indices[0]), arg(0)),)), args[indices[0]], coefficients)
        if len(indices) == 2 and expr == arg(indices[0]) * arg(indices[1]):
            return self.pair(args[indices[0]], args[indices[1]], view)
        return self._joint(expr, indices, args, coefficients, view)

    def _one(self, f: sp.Expr, x: Instance, coefficients: tuple[Quantity, ...]) -> Formula:
        """E[f(x)] of one variable."""
        if f == arg(0):
            return self.mean(x)
        if f == arg(0) ** 2:
            return self.second(x)
        v = x.variable
        key = (v, f, tuple(id(c) if isinstance(c, Moment) else c for c in coefficients))
        if key not in self._function:
            self._function[key] = self._find_one(f, v, coefficients)
        return self._function[key]

    def _find_one(self, f: sp.Expr, v: Variable, coefficients: tuple[Quantity, ...]) -> Formula:
        if isinstance(v, BlockChoice):
            return mo.product(_coefficient_formula(f.subs(arg(0), 1), coefficients), self.mean(Instance(v)))
        if isinstance(v, Composite):
            return self._substitute(f, 0, (Instance(v),), coefficients, SAME)
        if isinstance(v, Opaque | PositionAverage) and not v.gaussian:
            return self._polynomial(f, v, coefficients)
        return self._basic(f, [0], (Instance(v),), coefficients, SAME)

    def _polynomial(self, f: sp.Expr, v: Variable, coefficients: tuple[Quantity, ...]) -> Formula:
        """E of a polynomial of degree two at most in a variable known by two moments."""
        if not f.is_polynomial(arg(0)) or sp.degree(f, arg(0)) > 2:
            raise NoFormula("a nonlinear function of a value known by two moments", v.node)
        powers = [mo.ONE, self.mean(Instance(v)), self.second(Instance(v))]
        table = sp.Poly(f, arg(0)).as_dict()
        return mo.total([mo.product(_coefficient_formula(c, coefficients), powers[k]) for (k,), c in table.items()])

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
        used = sorted({_index(s) for s in symbols_in(expr) if s in _arguments(len(args))} - {which})
        kept = [args[i] for i in used]
        place: dict[Instance, int] = {a: i for i, a in enumerate(kept)}
        inner: dict[sp.Symbol, sp.Expr] = {}
        for i, a in enumerate(v.args):
            moved = self._settled(carried(a, x), view)
            inner[arg(i)] = arg(place.setdefault(moved, len(place)))
        for i in range(len(v.coefficients)):
            inner[coefficient(i)] = coefficient(len(coefficients) + i)
        outer: dict[sp.Symbol, sp.Expr] = {arg(i): arg(place[args[i]]) for i in used}
        outer[arg(which)] = rename(v.expr, tuple(inner.items()))
        return self.expectation(rename(expr, tuple(outer.items())), tuple(place), coefficients + v.coefficients, view)

    def _settled(self, x: Instance, view: View) -> Instance:
        """``x``, here instead of there where it does not vary along the view."""
        if x.there and self._reduced(view, x.variable, x.variable).same:
            return replace(x, there=False)
        return x

    def _basic(self, expr: sp.Expr, indices: list[int], args: tuple[Instance, ...],
               coefficients: tuple[Quantity, ...], view: View) -> Formula:
        """The Gaussian expectation of basic variables; cached by structure in :mod:`~varflow.laws.templates`."""
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
                table[coefficient(i)] = mo.place(_position(given, c), c)
        found = template(rename(expr, tuple(table.items())), tuple(kinds), matrix)
        return _filled(Formula(found, tuple(given), self._exactness(expr, indices, args)))

    def _kind(self, x: Instance, given: list[Quantity]) -> Distribution:
        v = x.variable
        if v.gaussian:
            return Normal()
        if isinstance(v, MaskEntry):
            return Bernoulli(mo.place(_position(given, v.keep), v.keep) if not v.keep.is_Number else v.keep)
        if isinstance(v, SphereEntry):
            return Sphere(v.batch, group=str(v.born))
        raise NoFormula("a nonlinear function of a value known by two moments", v.node)

    def _entry(self, x: Instance, y: Instance, view: View, given: list[Quantity]) -> sp.Expr:
        if not (x.variable.gaussian and y.variable.gaussian):
            self._refuse_mixed(x, y, view)
            return sp.S.Zero
        f = self.second(x) if x == y else self.covariance(x, y, self._view_of(x, y, view))
        c = self.quantity(f, node=x.variable.node, backward=x.variable.backward)
        return c if isinstance(c, sp.Number) and _plain(c) else mo.place(_position(given, c), c)

    def _refuse_mixed(self, x: Instance, y: Instance, view: View) -> None:
        spheres = [i for i in (x, y) if isinstance(i.variable, SphereEntry)]
        if spheres and x.variable is not y.variable and self.dependent(x, y, view):
            raise NoFormula("a batch-normalized value beside what it depends on", x.variable.node)

    @staticmethod
    def _exactness(expr: sp.Expr, indices: list[int], args: tuple[Instance, ...]) -> str:
        """Non-normal weights give Gaussians only as widths grow; two moments do not notice."""
        symbols = [arg(i) for i in indices]
        if expr.is_polynomial(*symbols) and sp.Poly(expr, *symbols).total_degree() <= 2:
            return "exact"
        products = [args[i].variable for i in indices]
        return "exact" if all(not isinstance(v, Product) or v.normal for v in products) else "wide"


def _fresh(x: Instance, y: Instance) -> bool:
    """Whether x is a source of its own, drawn after y: nothing older depends on it."""
    v = x.variable
    single = isinstance(v, Noise | MaskEntry) or (isinstance(v, Product) and v.alone)
    return single and v.born > y.variable.born


def _parts(v: Variable) -> tuple[Instance, ...]:
    """What a variable is made of; nothing for a basic one."""
    match v:
        case Composite(args=args):
            return args
        case Opaque(roots=roots):
            return roots
        case GaussianSum(terms=terms):
            return tuple(t for _, t in terms)
        case SampleMean(of=of) | PositionAverage(of=of) | SphereEntry(of=of) if of is not None:
            return (of,)
    return ()


def _family(v: Variable) -> object:
    match v:
        case Product(weight=weight, transpose=transpose, backward=backward):
            return (weight, transpose, backward)
        case BlockChoice(group=group):
            return ("choice", group)
    return v.born


def _born(v: Variable) -> int:
    return v.born


def _filled(f: Formula) -> Formula:
    """The number itself where a formula is over numbers only."""
    if not f.args or not all(isinstance(a, sp.Number) for a in f.args) or mo.has_integral(f.template):
        return f
    return replace(f, template=mo.fill(f.template, f.args, lambda m: m.symbol), args=())


def _plain(number: sp.Number) -> bool:
    """Whether a number may stand in a template: one of few, so that equal steps still share theirs."""
    return bool(number == 0 or (isinstance(number, sp.Rational) and max(abs(number.p), number.q) < 100))


def _index(symbol: sp.Symbol) -> int:
    return int(symbol.name[2:])


def _position(given: list[Quantity], quantity: Quantity) -> int:
    for i, g in enumerate(given):
        if g is quantity or (not isinstance(g, Moment) and not isinstance(quantity, Moment) and g == quantity):
            return i
    given.append(quantity)
    return len(given) - 1


def carried(inner: Instance, outer: Instance) -> Instance:
    """``inner``, an argument of a variable, at the coordinate and place of the variable's instance."""
    result = inner
    for move in outer.moves:
        result = result.moved(move)
    return replace(result, there=True) if outer.there else result


def _coefficient_formula(expr: sp.Expr, coefficients: tuple[Quantity, ...]) -> Formula:
    """An expression of coefficients and parameters as a formula."""
    if expr.is_Number:
        return Formula(expr)
    given: list[Quantity] = []
    table = {coefficient(i): mo.place(_position(given, c), c) for i, c in enumerate(coefficients)
             if coefficient(i) in symbols_in(expr)}
    return Formula(expr.xreplace(table), tuple(given))
