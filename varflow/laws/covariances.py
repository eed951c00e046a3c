"""Covariances of Gaussian variables: cached inner products over sources."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import sympy as sp

from varflow.calculus import quotient, times
from varflow.laws import moments as mo
from varflow.laws.attention import logit_covariance
from varflow.laws.blocks import carried, drawn_after, fresh, refine
from varflow.laws.dependence import Dependence
from varflow.laws.distributions import NoFormula
from varflow.laws.moments import Formula, Moment, MomentSystem, Quantity
from varflow.laws.normed import normalized
from varflow.laws.positions import Average, Kernel, Overall, Turn
from varflow.laws.resampling import NEIGHBOURS, noted, resampled
from varflow.laws.shared import ChannelSum, identical
from varflow.laws.variables import (
    Depthwise,
    GaussianSum,
    Instance,
    Mixed,
    Noise,
    Normed,
    PositionAverage,
    Product,
    SampleMean,
    Variable,
    View,
)

MEAN_OVER = (mo.part(0) + (mo.part(2) - 1) * mo.part(1)) / mo.part(2)
"""The mean over ``part(2)`` places of ``part(0)`` at one of them and ``part(1)`` at all others."""
LONG = 6
"""Quantities in the covariance of a sum with itself at another place from which it has a name: a stream's formula would
grow from block to block."""
BORDERS = "the image is large: what zero padding takes off at its borders is left out"


def _is_stream(v: Variable) -> bool:
    """Whether a sum is added to another."""
    return isinstance(v, GaussianSum) and any(isinstance(t.variable, GaussianSum) for _, t in v.terms)


def twin(x: Instance) -> Instance:
    """The Gaussian that stands in for the law of a depthwise convolution; anything else is itself."""
    v = x.variable
    return carried(v.twin, x) if isinstance(v, Depthwise) and v.twin is not None else x


def moments_of(x: Instance) -> Instance:
    """The Gaussian of the same second moments for a depthwise convolution; anything else is itself."""
    v = x.variable
    return carried(v.moments, x) if isinstance(v, Depthwise) and v.moments is not None else x


@dataclass
class Covariances(Dependence):
    """Covariances of Gaussian variables, computed once each.

    With ``profiles`` moments are arrays over positions (see :mod:`~varflow.laws.positions`): of a moment between two
    places the first argument's place is the first axis; ``there`` moments at one place lie along the second.
    """

    system: MomentSystem = field(default_factory=MomentSystem)
    _second: dict[Variable, Formula] = field(default_factory=dict)
    _pair: dict[Any, Formula] = field(default_factory=dict)
    _turns: dict[Moment, Moment] = field(default_factory=dict)

    @abstractmethod
    def mean(self, x: Instance) -> Formula:
        """E[x] of any variable."""

    @abstractmethod
    def pair(self, x: Instance, y: Instance, view: View) -> Formula:
        """E[x y] of any two variables."""

    # -- covariances of Gaussian variables -----------------------------------------------------------

    def covariance(self, x: Instance, y: Instance, view: View) -> Formula:
        """Covariance of two Gaussian variables, ``y`` at the other place of the view; zero by structure where they are
        independent."""
        u, v = x.variable, y.variable
        if u.backward != v.backward:
            return mo.ZERO
        asked, view = view, self._reduced(view, x, y)
        moves, others = x.moves, y.moves
        if moves == others:
            if view.position and x.dealt:
                return mo.ZERO
            moves = others = ()
        if u.born < v.born:
            u, v, moves, others = v, u, others, moves
        if drawn_after(u, v):
            return mo.ZERO
        if u is v and not moves and not others and view.same and u in self._second:  # it has a name already
            return self._second[u]
        key = (u, moves, v, others, view)
        if (found := self._pair.get(key)) is None:
            found = self._find_covariance(Instance(u, moves), Instance(v, others), view)
            if u is v and moves == others == () and _is_stream(u) and len(found.args) > LONG:
                found = self.formula(self.quantity(found, node=u.node, backward=u.backward))
            self._pair[key] = found
        return self._oriented(found, asked, view, (x, y), u)

    def _oriented(self, f: Formula, asked: View, view: View, pair: tuple[Instance, Instance], u: Variable) -> Formula:
        """A covariance of a pair, found at ``view`` with ``u`` first, with the place of the first one as the first
        axis."""
        if not self.profiles or not asked.position or f.is_zero:
            return f
        if view.position:
            return f if pair[0].variable is u else self.turned(f)
        return self.turned(f) if self.differs(pair[1], False) and not self.differs(pair[0], False) else f

    def turned(self, f: Formula) -> Formula:
        """The formula with its two places exchanged (profiles only)."""
        if not self.profiles or not any(isinstance(a, Moment) for a in f.args):
            return f
        return replace(f, args=tuple(self.turned_quantity(a) for a in f.args))

    def turned_quantity(self, q: Quantity) -> Quantity:
        """The quantity with its two places exchanged (profiles only)."""
        if not self.profiles or not isinstance(q, Moment):
            return q
        if q not in self._turns:
            self._turns[q] = self.system.operate(Turn(), (q,), q.kind, q.node, q.backward)
            self._turns[self._turns[q]] = q
        return self._turns[q]

    def _find_covariance(self, x: Instance, y: Instance, view: View) -> Formula:
        for newer, older in ((x, y), (y, x)):
            at = partial(self._in_order, newer is x, older)
            match newer.variable:
                case GaussianSum(terms=terms) as v:
                    self._climb(v, older, view)
                    turned = view.position and newer is y
                    parts = [(self.turned_quantity(c) if turned else c, at(carried(t, newer), view)) for c, t in terms]
                    return mo.total([mo.product(self.formula(c), f) for c, f in parts if not f.is_zero])
                case SampleMean(of=of) as mean if of is not None:
                    if mean.channels is not None and isinstance(older.variable, GaussianSum):
                        continue
                    return self.over_batch(mean, older, partial(self.covariance, older, carried(of, newer)), view)
                case PositionAverage(of=of, count=count) if of is not None:
                    inner = carried(of, newer)
                    return self._averaged(count, older, partial(self.covariance, older, inner), view)
                case Mixed(of=of) if of is not None:
                    return resampled(self, newer, older, newer is x, view, self.covariance)
                case Normed():
                    return normalized(self, newer, older, newer is x, view)
        return self._basic_covariance(x.variable, y.variable, view) if x.moves == y.moves else mo.ZERO

    def _climb(self, v: GaussianSum, other: Instance, view: View) -> None:
        """Covariances with the sums inside a sum first, the innermost before all: no deep recursion."""
        ladder: list[Instance] = []
        top: Variable = v
        while isinstance(top, GaussianSum) and top.born > other.variable.born:
            inner = next((t for _, t in top.terms if isinstance(t.variable, GaussianSum)), None)
            if inner is None or inner.moves or other.moves or self._settled_pair(inner, other, view):
                break
            ladder.append(inner)
            top = inner.variable
        for step in reversed(ladder[1:]):
            self.covariance(step, other, view)

    def _settled_pair(self, x: Instance, y: Instance, view: View) -> bool:
        u, v = (x.variable, y.variable) if x.variable.born >= y.variable.born else (y.variable, x.variable)
        return (u, (), v, (), view) in self._pair or fresh(Instance(u), Instance(v))

    def over_batch(self, mean: SampleMean, older: Instance, at: Any, view: View) -> Formula:
        """E of a mean over a batch beside another value, ``at`` that of an entry: (E in the same sample + (B-1) E in
        others) / B, averaged over positions."""
        if mean.channels is not None:
            found = self._averaged(mean.count, older, at, view)
            both = isinstance(older.variable, SampleMean) and older.variable.channels is not None
            return found if both else mo.combine(mo.part(0) / mo.part(1), [found, mo.constant(mean.channels)])
        if mean.count == 1:
            return at(View(view.position, True))  # type: ignore[no-any-return]
        others = self._averaged(mean.count, older, at, View(False, True))
        if mean.batch is None:
            return others
        own = self._averaged(mean.count, older, at, View())
        return mo.combine(MEAN_OVER, [own, others, mo.constant(mean.batch)])

    def _in_order(self, first: bool, older: Instance, newer: Instance, view: View) -> Formula:
        return self.covariance(newer, older, view) if first else self.covariance(older, newer, view)

    def _averaged(self, count: sp.Expr, older: Instance, at: Any, view: View) -> Formula:
        """(E at the same position + (P-1) E at others) / P, the mean over the second place of ``at``."""
        here = at(View(False, view.sample))
        if self.profiles and not self.differs(older, False):
            return self.operated(Overall(), (here,), here)
        other = at(View(True, view.sample))
        if here.is_zero and other.is_zero:
            return mo.ZERO
        if count is sp.oo:
            return self.operated(Overall(), (other,), other)
        if not self.profiles and (here.template, here.args) == (other.template, other.args):
            return here  # type: ignore[no-any-return]
        limit = mo.combine(MEAN_OVER, [here, other, mo.constant(count)])
        return self.operated(Average(), (here, other, mo.constant(count)), limit)

    def operated(self, operator: Any, parts: tuple[Formula, ...], limit: Formula) -> Formula:
        """What ``operator`` makes of the arrays of ``parts`` (profiles), or its limit far from borders."""
        if not self.profiles or all(f.is_zero for f in parts):
            return limit
        args = tuple(self.quantity(f) for f in parts)
        moments = [a for a in args if isinstance(a, Moment)]
        node, backward = (moments[0].node, moments[0].backward) if moments else ("", False)
        return mo.named(self.system.operate(operator, args, "c", node, backward))

    def _basic_covariance(self, u: Variable, v: Variable, view: View) -> Formula:
        if isinstance(u, Noise) and u is v:
            factor = (u.position if view.position and not view.sample else u.sample) if not view.same else sp.S.One
            if factor is sp.nan:
                raise NoFormula("a covariance between places of a repeated block's stream", u.node)
            return mo.constant(u.variance * factor)
        if isinstance(u, Product) and isinstance(v, Product) and (
                u.weight, u.transpose) == (v.weight, v.transpose):
            return self._product_covariance(u, v, view)
        if isinstance(u, ChannelSum) or isinstance(v, ChannelSum):
            return self._sum_covariance(u, v, view)
        return logit_covariance(self, u, v, view)

    def _sum_covariance(self, u: Variable, v: Variable, view: View) -> Formula:
        """Of two sums over channels: n (E[a b] - E[a] E[b]) for every block, where channels are independent; of a
        sum over a Gaussian value and one channel of a Gaussian value: that channel's share."""
        if not self._sums_dependent(Instance(u), Instance(v), view):
            return mo.ZERO
        if not isinstance(v, ChannelSum):
            u, v = v, u
        assert isinstance(v, ChannelSum)
        if not isinstance(u, ChannelSum):
            (only,) = v.operand if len(v.operand) == 1 else (None,)
            if only is None or only.law is None or only.law.moves or not only.law.variable.gaussian:
                raise NoFormula("a sum over channels beside one of them", v.node)
            return mo.product(mo.constant(v.factor), self.covariance(only.law, Instance(u).at(True), view))
        return self._sums_covariance(u, v, view)

    def _sums_covariance(self, u: ChannelSum, v: ChannelSum, view: View) -> Formula:
        laws = [b.law for b in (*u.operand, *v.operand) if b.law is not None]
        if u.operand != v.operand and (len(u.operand) != len(v.operand) or any(x.moves for x in laws)):
            raise NoFormula("two sums over channels of the same sources", v.node)
        terms = []
        for size, (a, b) in refine(u.operand, v.operand):
            if a is not None and b is not None:
                apart = mo.product(self.mean(a), self.mean(b))
                both = self.pair(a, b.at(not view.same), view)
                scale = mo.constant(times(u.factor * v.factor, size))
                terms.append(mo.product(scale, mo.combine(mo.part(0) - mo.part(1), [both, apart])))
        result = mo.total(terms)
        exactness = mo.weakest(mo.EXACTNESS, (result.exactness, u.exactness, v.exactness))
        result = replace(result, exactness=exactness, degree=max(result.degree, 1))
        return identical(result, v.node, v.weight)

    def _product_covariance(self, u: Product, v: Product, view: View) -> Formula:
        if u.window != v.window:
            raise NoFormula("one weight used with different windows", u.node)
        result = self._summed(u, v, view)
        if u.window is not None:
            kernel = Kernel(u.window, u.transpose, view.position)
            parts: tuple[Formula, ...] = (result,)
            if self.profiles and kernel.between == view.position and u.window.mode not in ("zeros", "circular"):
                parts += (self._summed(u, v, View(not view.position, view.sample)),)
            result = self.operated(kernel, parts, mo.combine(kernel.limit * mo.part(0), [result]))
            result = noted(result, BORDERS if not u.window.uniform else "")
            result = noted(result, NEIGHBOURS if u.transpose and view.position and u.window.spacing > 1 else "")
        if u.centred:
            result = self._less_mean(result, u, v, view)
        if u.note and not result.is_zero:
            result = replace(result, assumptions=result.assumptions | {u.note})
        if u is v and view.same and u.shrink is not None:
            result = mo.combine(mo.part(0) - mo.part(1), [result, mo.named(u.shrink)])
        if u is v and view.same and u.tie is not None:
            result = mo.total([result, mo.named(u.tie)])
        exactness = mo.weakest(mo.EXACTNESS, (result.exactness, u.exactness, v.exactness))
        return replace(result, exactness=exactness, degree=max(result.degree, 1))

    def _summed(self, u: Product, v: Product, view: View) -> Formula:
        """Var(W_ij) times the sum over the operand's channels of E[h h']."""
        terms = []
        for size, (a, b) in refine(u.operand, v.operand):
            if a is not None and b is not None:
                scale = mo.constant(times(u.factor, size))
                terms.append(mo.product(scale, self.pair(a, b.at(not view.same), view)))
        return mo.total(terms)

    def _less_mean(self, f: Formula, u: Product, v: Product, view: View) -> Formula:
        """Rows that sum to zero: entries of a row have covariance -Var(W_ij)/fan_in, so that f loses Var(W_ij)
        times the channels and M M' over the taps, M the sum of the operand's mean over the taps inside."""
        here, there = (self._mean_inside(w) for w in (u, v))
        if here.is_zero or there.is_zero:
            return f
        taps = 1 if u.window is None else u.window.taps
        factor = mo.constant(quotient(times(u.factor, sp.Add(*(b.size for b in u.operand))), taps))
        lost = mo.product(factor, here, self.turned(there) if view.position else there)
        return mo.combine(mo.part(0) - mo.part(1), [f, lost])

    def _mean_inside(self, u: Product) -> Formula:
        """The mean over the operand's channels, summed over the taps of the window that are inside the grid."""
        total = sp.Add(*(b.size for b in u.operand))
        mean = mo.total([mo.product(mo.constant(quotient(b.size, total)), self.mean(b.law))
                         for b in u.operand if b.law is not None])
        if u.window is None or mean.is_zero:
            return mean
        kernel = Kernel(u.window, u.transpose, False)
        return self.operated(kernel, (mean,), mo.combine(kernel.limit * mo.part(0), [mean]))

    def formula(self, quantity: Quantity) -> Formula:
        """A quantity as a formula."""
        return mo.named(quantity) if isinstance(quantity, Moment) else mo.constant(quantity)

    def quantity(self, f: Formula, kind: str = "c", node: str = "", backward: bool = False) -> Quantity:
        """A formula as one quantity, named if it is not one already."""
        if not f.args and f.template.is_Number and f.exactness == "exact" and not f.assumptions:
            return f.template
        if len(f.args) == 1 and f.template == mo.place(0, f.args[0]):
            return f.args[0]
        return self.system.define(kind, node, f, backward=backward)
