"""Constant weights: y_i = c sum_j h_j for every i, one random number shared by all units (rank one).

With E h = m, E h^2 = q over n independent channels E y^2 = c^2 (n (q - m^2) + n^2 m^2), and y is Gaussian as n grows.
It does not average out over channels: random weights after it give a scale mixture, W (y u) = y (W u).
Backward the sum over channels of a gradient W^T d is taken as sum_i (W 1)_i d_i: the forward weights have a say in it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count

import sympy as sp

from varflow.calculus import rename, symbols_in, times
from varflow.errors import UnsupportedError
from varflow.laws import moments as mo
from varflow.laws.blocks import carried, coefficient, index_of, refine
from varflow.laws.distributions import NoFormula
from varflow.laws.making import Reading
from varflow.laws.moments import Quantity
from varflow.laws.shared import (
    ChannelSum,
    basics,
    entangled,
    holds_sum,
    identical,
    is_shared,
    parity,
)
from varflow.laws.variables import (
    SAME,
    Block,
    Blocks,
    Composite,
    GaussianSum,
    Instance,
    MaskEntry,
    Noise,
    Product,
)
from varflow.program import (
    Bias,
    Concat,
    Contract,
    Cotangent,
    Embed,
    Input,
    Instruction,
    Mask,
    Permute,
    Pointwise,
    PositionExpand,
    PositionMean,
    Program,
    Repeat,
    RepeatBackward,
    Slice,
    Standardize,
    StandardizeBackward,
    Weight,
)
from varflow.symbols import arg

COVERED = (Bias, Concat, Contract, Cotangent, Embed, Input, Mask, Permute, Pointwise, PositionExpand, PositionMean,
           Slice)
"""Primitives whose law holds for a number that all channels share."""
MOVES = {"shift", "permute", "unpermute", "deal", "gather"}


@dataclass
class Terms:
    """An expression of instances, taken apart and put together."""

    expr: sp.Expr
    args: list[Instance] = field(default_factory=list)
    coefficients: list[Quantity] = field(default_factory=list)


@dataclass
class Ends:
    """A sum over channels of a gradient, as sums over the outputs' cotangents: each with its factors and size."""

    sizes: dict[Instance, sp.Expr] = field(default_factory=dict)
    factors: dict[Instance, list[Instance | None]] = field(default_factory=dict)

    def add(self, cotangent: Instance, size: sp.Expr, factor: Instance | None) -> None:
        self.sizes[cotangent] = size
        self.factors.setdefault(cotangent, []).append(factor)


class Summation(Reading):
    """Laws of constant weights and of what their outputs meet."""

    @cached_property
    def _rank_one(self) -> bool:
        """Whether a weight makes all units identical."""
        return any(w.distribution == "constant" and w.value != 0 for w in self.program.weights.values())

    @cached_property
    def _unit(self) -> Instance:
        """The number one in every channel."""
        return self._expression(Terms(sp.S.One))

    @abstractmethod
    def _random(self, w: Weight, transpose: bool, x: Blocks, backward: bool) -> Blocks:
        """W x or W^T x of a random weight."""

    # -- the constant weight -------------------------------------------------------------------------

    def _constant(self, w: Weight, x: Blocks) -> Blocks:
        """All units: ``value`` times the sum of all channels."""
        if w.value == 0:
            return self._one(None)
        if w.keep != 1 or len(w.size) > 2:
            raise UnsupportedError(f"the constant weight {w.name!r} is sparse or a window", self.step.node,
                                   "its units are not identical", "a dense one")
        try:
            return self._one(self._summed(w, x))
        except NoFormula:
            return self._one(self._unknown(*(b.law for b in x)))

    def _summed(self, w: Weight, x: Blocks) -> Instance | None:
        shared = [(sp.expand(w.value * b.size), b.law) for b in x if b.law is not None and is_shared(b.law)]
        rest = tuple(Block(b.size, None if is_shared(b.law) else b.law) for b in x)
        terms: list[tuple[Quantity, Instance]] = list(shared)
        shift = mo.ZERO
        if any(b.law is not None for b in rest):
            if self.step.backward:
                operand, exactness = self._pulled_back(rest), "exact"
            else:
                self._refuse_projected(self.step.args[0])
                operand, exactness = rest, self._channels_apart(rest)
                means = [mo.product(mo.constant(times(w.value, b.size)), self.laws.mean(b.law))
                         for b in rest if b.law is not None]
                shift = identical(mo.total(means), self.step.node, w.name)
            total = self._make(ChannelSum, False, weight=w.name, factor=w.value, operand=operand, exactness=exactness)
            terms.append((sp.S.One, total))
        return self._combination(terms, shift)

    def _refuse_projected(self, value: int) -> None:
        """A normalized value has channels tied together: their sum is fixed."""
        seen, stack = set(), [value]
        while stack:
            at = stack.pop()
            step = self.program.instructions[at]
            if at in seen or _draws_anew(step, self.program):
                continue
            seen.add(at)
            if isinstance(step.primitive, Standardize):
                raise NoFormula("the sum over channels of a normalized value", step.node)
            stack += step.args

    def _channels_apart(self, x: Blocks) -> str:
        """How exactly the channels of an operand count as independent. Raises NoFormula where they do not."""
        laws = [b.law for b in x if b.law is not None]
        sources = [b for law in laws for b in basics(law)]
        self._refuse_moved(sources)
        odd = all(parity(law.variable) == -1 for law in laws)
        if odd or all(isinstance(s.variable, Noise | MaskEntry) and not getattr(s.variable, "per_sample", False)
                      for s in sources):
            return "exact"
        mean = mo.total([mo.product(mo.constant(b.size), self.laws.mean(b.law)) for b in x if b.law is not None])
        known = all(isinstance(s.variable, Noise | MaskEntry | Product | GaussianSum) for s in sources)
        if mean.is_zero or not known or any(getattr(s.variable, "per_sample", False) for s in sources):
            raise NoFormula("a sum over channels that depend on each other", self.step.node)
        return "wide"

    def _refuse_moved(self, sources: list[Instance]) -> None:
        if any(kind not in MOVES for s in sources for kind, _ in s.moves):
            raise NoFormula("a sum over channels that were positions", self.step.node)
        for i, s in enumerate(sources):
            for other in sources[:i]:
                bare = [Instance(v.variable) for v in (s, other)]
                if s.moves != other.moves and self.laws.dependent(bare[0], bare[1], SAME):
                    raise NoFormula("a sum over channels that appear twice", self.step.node)

    def _refuse_identical(self, step: Instruction, args: list[Blocks]) -> None:
        """Refuse what is not derived of units that share a random number."""
        what = "" if isinstance(step.primitive, COVERED) else _named(step)
        if what and any(holds_sum(b.law) or entangled(b.law) for a in args for b in a):
            raise UnsupportedError(f"{what} of a value behind a constant weight, or of its gradient", step.node,
                                   "all its units share one random number, which does not average out: within a sample "
                                   "identical units have no spread to normalize", "random entries")

    # -- a gradient's sum over channels --------------------------------------------------------------

    def _pulled_back(self, x: Blocks) -> Blocks:
        """The operand over the outputs' cotangents whose sum over channels is that of ``x``."""
        ends = Ends()
        if sum(b.law is not None for b in x) > 1:
            raise NoFormula("a sum over channels of a gradient in several blocks", self.step.node)
        for b in x:
            if b.law is not None:
                self._pull(None, b.law, b.size, ends)
        return tuple(Block(ends.sizes[e], self._weighted(e, ends.factors[e])) for e in ends.sizes)

    def _weighted(self, cotangent: Instance, factors: list[Instance | None]) -> Instance:
        args = [f for f in factors if f is not None]
        expr = sp.Add(*(arg(i) for i in range(len(args)))) + len(factors) - len(args)
        return self._expression(Terms(expr * arg(len(args)), [*args, cotangent]))

    def _pull(self, v: Instance | None, law: Instance, size: sp.Expr, ends: Ends) -> None:
        """sum_j v_j law_j over ``size`` channels, law a gradient."""
        at = law.variable
        if law.moves:
            raise NoFormula("a sum over moved channels of a gradient", self.step.node)
        match at:
            case Noise():
                ends.add(law, size, v)
            case Product():
                self._pull_product(v, at, size, ends)
            case Composite() | GaussianSum():
                t = _terms_of(law)
                backward = [arg(i) for i, a in enumerate(t.args) if a.variable.backward]
                for factor, rest in _separable(t.expr, backward, lambda rest: rest in backward):
                    inner = t.args[index_of(rest)]
                    self._pull(self._scaled(v, factor, t), inner, size, ends)
            case _:
                raise NoFormula("a sum over channels of a gradient known by its moments", self.step.node)

    def _scaled(self, v: Instance | None, factor: sp.Expr, t: Terms) -> Instance | None:
        if factor == 1:
            return v
        args = t.args if v is None else [*t.args, v]
        return self._expression(Terms(factor if v is None else factor * arg(len(t.args)), args, t.coefficients))

    def _pull_product(self, v: Instance | None, p: Product, size: sp.Expr, ends: Ends) -> None:
        w = self.program.weights[p.weight]
        whole = w.columns if p.transpose else w.rows
        if len(p.operand) > 1 or p.operand[0].law is None or size != whole or w.distribution == "orthogonal":
            raise NoFormula("a sum over some channels of a gradient", self.step.node)
        (behind,) = p.operand
        assert behind.law is not None
        one = self._unit if v is None else v
        plain = isinstance(behind.law.variable, Noise)
        u = self._forward(w, not p.transpose, (Block(size, one),), plain)
        self._pull(u, behind.law, behind.size, ends)

    def _forward(self, w: Weight, transpose: bool, x: Blocks, plain: bool) -> Instance | None:
        """W x in the forward pass, while the backward one is read; ``plain``: two moments are all that is asked."""
        before, self._slopes = self._slopes, True
        try:
            mixed = holds_sum(x[0].law)
            if plain and mixed and not is_shared(x[0].law):
                return self._make(Product, False, weight=w.name, transpose=transpose, operand=x, alone=False,
                                  factor=w.entry_variance, normal=w.distribution == "normal")
            result = self._behind_sum(w, transpose, x) if mixed else self._random(w, transpose, x, False)
        finally:
            self._slopes = before
        if len(result) > 1:
            raise NoFormula("a sum over channels in several blocks", self.step.node)
        return result[0].law

    # -- random weights behind a shared number -------------------------------------------------------

    def _behind_sum(self, w: Weight, transpose: bool, x: Blocks) -> Blocks:
        """W (a u) = a (W u): shared factors are taken out of what a random weight reads."""
        if w.taps != 1 or w.groups != 1 or w.distribution == "standardized":
            raise UnsupportedError(f"the weight {w.name!r}, which is not a plain random matrix, behind a constant one",
                                   self.step.node, "its outputs share one random number", "a linear layer")
        backward = self.step.backward and not self._slopes
        if backward and not any(_shared_gradient(b.law) for b in x):
            return self._random(w, transpose, x, True)
        try:
            separated = self._separated(x)
            reused = sum(k for (name, *_), k in self._counts.items() if name == w.name) > 2
            self._refuse_correlated(separated, backward and reused)
            parts = [(a, self._by_direction(w, transpose, u)) for a, u in separated]
        except NoFormula:
            return self._one(self._two_moments(w, transpose, x, backward))
        cuts = refine(*(p for _, p in parts))
        return tuple(Block(size, self._mixture_of([a for a, _ in parts], laws)) for size, laws in cuts)

    def _by_direction(self, w: Weight, transpose: bool, x: Blocks) -> Blocks:
        """A random weight times a gradient, or times a forward value that a gradient has been taken off."""
        if any(b.law is not None and b.law.variable.backward for b in x):
            return self._random(w, transpose, x, True)
        before, self._slopes = self._slopes, self.step.backward
        try:
            return self._random(w, transpose, x, False)
        finally:
            self._slopes = before

    def _refuse_correlated(self, terms: list[tuple[Instance | None, Blocks]], reused: bool) -> None:
        """A shared number and a value that is part of its sum: their correlation is O(1/sqrt(n)), which is seen."""
        laws = [b.law for _, x in terms for b in x if b.law is not None]
        shared = [a for a, _ in terms if a is not None]
        gradients = any(a.variable.backward for a in shared)
        if gradients and (reused or any(x.variable.backward for x in laws)):
            raise NoFormula("a gradient that all channels share beside another one", self.step.node)
        if any(self.laws.dependent(a, x, SAME) for a in shared for x in laws):
            raise NoFormula("a sum over channels beside one of them", self.step.node)

    def _two_moments(self, w: Weight, transpose: bool, x: Blocks, backward: bool) -> Instance:
        """A fresh weight times what has no law of its own: E = 0 and E^2 = Var(W_ij) n E h^2 all the same."""
        laws = [b.law for b in x]
        used = any(self._uses.get((w.name, side, False)) for side in (True, False))
        if backward or self._slopes or used:
            return self._unknown(*laws)
        try:
            terms = [mo.product(mo.constant(times(w.entry_variance, b.size)), self.laws.second(b.law))
                     for b in x if b.law is not None]
            return self._unknown(*laws, mean=sp.S.Zero, second=self.laws.quantity(mo.total(terms), "q", self.step.node))
        except NoFormula:
            return self._unknown(*laws)

    def _mixture_of(self, factors: list[Instance | None], laws: tuple[Instance | None, ...]) -> Instance | None:
        kept = [(a, p) for a, p in zip(factors, laws, strict=True) if p is not None]
        if not kept:
            return None
        t, place = Terms(sp.S.Zero), count()
        for a, p in kept:
            term: sp.Expr = sp.S.One
            for x in (a, p):
                if x is not None:
                    term *= arg(next(place))
                    t.args.append(x)
            t.expr += term
        return self._expression(t)

    def _separated(self, x: Blocks) -> list[tuple[Instance | None, Blocks]]:
        """A value as a sum of (shared factor, value without one)."""
        found = []
        for k, b in enumerate(x):
            for a, u in self._factors(b.law) if b.law is not None else ():
                found.append((a, tuple(Block(c.size, u if i == k else None) for i, c in enumerate(x))))
        return found

    def _factors(self, law: Instance) -> list[tuple[Instance | None, Instance]]:
        if not holds_sum(law):
            return [(None, law)]
        if is_shared(law):
            return [(law, self._unit)]
        t = _terms_of(law)
        single = [arg(i) for i, a in enumerate(t.args) if not is_shared(a)]
        shared = {arg(i) for i, a in enumerate(t.args) if is_shared(a)}
        result: list[tuple[Instance | None, Instance]] = []
        for outer, inner in _separable(t.expr, single, lambda inner: not symbols_in(inner) & shared):
            if symbols_in(outer) & shared:
                result.append((self._expression(replace(t, expr=outer)), self._expression(replace(t, expr=inner))))
            else:
                result.append((None, self._expression(replace(t, expr=outer * inner))))
        return result

    def _expression(self, t: Terms) -> Instance:
        """The value of an expression; an argument itself where it is one."""
        used = [i for i in range(len(t.args)) if arg(i) in symbols_in(t.expr)]
        if len(used) == 1 and t.expr == arg(used[0]):
            return t.args[used[0]]
        args = tuple(dict.fromkeys(t.args[i] for i in used))
        expr = rename(t.expr, tuple((arg(i), arg(args.index(t.args[i]))) for i in used))
        before, self._slopes = self._slopes, not any(a.variable.backward for a in args)
        try:
            return self._make(Composite, False, expr=expr, args=args, coefficients=tuple(t.coefficients))
        finally:
            self._slopes = before

    # -- functions -----------------------------------------------------------------------------------

    def _pointwise(self, expr: sp.Expr, laws: tuple[Instance | None, ...], whole: bool) -> Instance | None:
        if self._rank_one:
            tangled = [i for i, x in enumerate(laws) if arg(i) in symbols_in(expr) and entangled(x)]
            used = symbols_in(expr)
            others = [x for i, x in enumerate(laws) if i not in tangled and x is not None and arg(i) in used]
            if tangled and any(holds_sum(x) and not x.variable.backward for x in others):
                return self._absorbed(expr, laws, tangled)
            self._refuse_waves(expr, laws)
        return super()._pointwise(expr, laws, whole)

    def _refuse_waves(self, expr: sp.Expr, laws: tuple[Instance | None, ...]) -> None:
        """A wave of a sum far from zero depends on digits that its law does not give."""
        if expr.has(sp.sin, sp.cos):
            for b in (b.variable for x in laws if x is not None for b in basics(x)):
                if isinstance(b, ChannelSum) and b.exactness != "exact":
                    raise UnsupportedError("a wave of the sum of a value with a mean", self.step.node,
                                           "the sum grows with the width", "an activation that is not periodic")

    def _absorbed(self, expr: sp.Expr, laws: tuple[Instance | None, ...], tangled: list[int]) -> Instance:
        """A shared factor times W^T d is W^T (factor d), where the variance of d depends on that number."""
        x = laws[tangled[0]]
        factor, rest = expr.as_independent(arg(tangled[0]), as_Add=False)
        others = [a for i, a in enumerate(laws) if i != tangled[0] and arg(i) in symbols_in(factor)]
        if (len(tangled) > 1 or rest != arg(tangled[0]) or x is None or x.moves
                or not isinstance(x.variable, Product | ChannelSum) or not all(is_shared(a) for a in others)):
            return self._unknown(*laws)
        size = len(laws)
        operand = tuple(Block(b.size, b.law and self._pointwise(factor * arg(size), (*laws, b.law), False))
                        for b in x.variable.operand)
        self._born += 1
        return Instance(replace(x.variable, born=self._born, node=self.step.node, value=None, operand=operand))


def _named(step: Instruction) -> str:
    match step.primitive:
        case Standardize() | StandardizeBackward():
            return "a normalization"
        case Repeat() | RepeatBackward():
            return "a repeated block"
    return f"the operation {type(step.primitive).__name__}"


def _draws_anew(step: Instruction, program: Program) -> bool:
    """Whether a value's channels are independent whatever it is made of: a random weight's output."""
    return isinstance(step.primitive, Contract) and program.weights[step.primitive.weight].distribution != "constant"


def _separable(
    expr: sp.Expr, names: list[sp.Symbol], apart: Callable[[sp.Expr], bool]
) -> list[tuple[sp.Expr, sp.Expr]]:
    """A sum of products (factor without ``names``, rest that is ``apart``), expanded no further than it takes."""
    found = []
    for term in sp.Add.make_args(expr):
        factor, rest = term.as_independent(*names, as_Add=False)
        if apart(rest):
            found.append((factor, rest))
            continue
        expanded = sp.expand_mul(term)
        if not isinstance(expanded, sp.Add):
            raise NoFormula("a function of a shared number and of something else")
        found += _separable(expanded, names, apart)
    return found


def _shared_gradient(x: Instance | None) -> bool:
    return x is not None and any(isinstance(b.variable, ChannelSum) and b.variable.backward for b in basics(x))


def _terms_of(law: Instance) -> Terms:
    """A variable as an expression, what is neither shared nor free of shared numbers taken apart in turn."""
    t = Terms(arg(0), [law])
    while True:
        mixed = [i for i, a in enumerate(t.args) if arg(i) in symbols_in(t.expr) and (
            a is law or (holds_sum(a) and not is_shared(a)))]
        if not mixed:
            return t
        _inline(t, mixed[0])


def _inline(t: Terms, which: int) -> None:
    x = t.args[which]
    start, given = len(t.args), len(t.coefficients)
    match x.variable:
        case Composite(expr=expr, args=args, coefficients=coefficients):
            table = [(arg(i), arg(start + i)) for i in range(len(args))]
            table += [(coefficient(i), coefficient(given + i)) for i in range(len(coefficients))]
            inner = rename(expr, tuple(table))
            t.args += [carried(a, x) for a in args]
            t.coefficients += coefficients
        case GaussianSum(terms=terms):
            inner = sp.Add(*(coefficient(given + i) * arg(start + i) for i in range(len(terms))))
            t.args += [carried(a, x) for _, a in terms]
            t.coefficients += [c for c, _ in terms]
        case _:
            raise NoFormula("a shared number within a value known by its moments", x.variable.node)
    t.expr = rename(t.expr, ((arg(which), inner),))
