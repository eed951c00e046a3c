"""Normalization over channels and over samples, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import sympy as sp

from varflow.calculus import quotient
from varflow.errors import UnsupportedError
from varflow.laws import moments as mo
from varflow.laws.blocks import carried, refine
from varflow.laws.covariances import twin
from varflow.laws.distributions import NoFormula
from varflow.laws.field import field_sampled
from varflow.laws.making import UNKNOWN, shifted, there, wide
from varflow.laws.moments import Formula, Quantity
from varflow.laws.normed import four, shrinkage
from varflow.laws.positions import Overall
from varflow.laws.projected import Projection
from varflow.laws.scatter import MOST_GRADIENT_PLACES, MOST_PLACES
from varflow.laws.standardized import inverse_of, standardized
from varflow.laws.variables import (
    POSITION,
    SAME,
    SAMPLE,
    Block,
    Blocks,
    Composite,
    Depthwise,
    GaussianSum,
    Instance,
    Normed,
    Opaque,
    PositionAverage,
    Product,
    SampleMean,
    SphereEntry,
    Standardized,
    View,
)
from varflow.program import Contract, Instruction, Pointwise, Standardize, StandardizeBackward
from varflow.symbols import arg

OF_GROUPS = "closure: the channels of a group are many: mean and variance of values that are not Gaussian are constants"


class Normalization(Projection):
    """Laws of normalizations."""

    def _normalization(self, step: Instruction, args: list[Blocks]) -> Blocks:
        match step.primitive:
            case Standardize(axis="channel") as rule if step.args[0] in self.uneven:
                return self._unknown_norm(rule, args[0], len(args[0]) == 1 and rule.eps == 0)
            case Standardize(axis="channel") as rule:
                return self._channel_norm(rule, args[0])
            case Standardize(axis="group") as rule if not self._by_entries(rule, args[0]):
                return self._group_norm(rule, args[0])
            case Standardize() as rule:
                self._inverse[step.args[0], rule] = []
                return tuple(Block(b.size, self._sample_norm(rule, b.law, len(args[0]) == 1)) for b in args[0])
            case StandardizeBackward(forward=rule) if rule.axis == "channel" and step.args[0] in self.uneven:
                return self._scaled_gradient([None] * len(args[0]), args)
            case StandardizeBackward(forward=rule) if rule.axis == "channel":
                return self._scaled_gradient(self._inverse_of(step.args[0], rule, args[0]), args)
            case StandardizeBackward(forward=rule) if rule.axis == "group" and not self._by_entries(rule, args[0]):
                inverse = self._inverse.get((step.args[0], rule)) or [None] * len(args[0])
                return self._scaled_gradient(list(inverse), args)
            case StandardizeBackward(forward=rule):
                return self._sample_norm_backward(rule, args)
        raise UnsupportedError("not a normalization", step.node)

    def _by_entries(self, rule: Standardize, x: Blocks) -> bool:
        """Whether the statistics of a group norm are those of single Gaussian channels: one, or a number that does not
        grow with the width."""
        if rule.groups == self.step.shape.channels:
            return True
        law = x[0].law
        gaussian = len(x) == 1 and law is not None and shifted(law)[0] is not None
        return gaussian and bool(quotient(self.step.shape.channels, rule.groups).is_number)

    def _inverse_of(self, value: int, rule: Standardize, x: Blocks) -> list[Quantity | None]:
        """1/sigma of every block (one for all under layer norm); None where it has no formula."""
        key = (value, rule)
        if key not in self._inverse:
            try:
                inverse: Quantity | None = self._channel_statistics(rule, x)[1]
            except NoFormula:
                inverse = None
            self._inverse[key] = [inverse] * len(x)
        return self._inverse[key]

    def _channel_statistics(self, rule: Standardize, x: Blocks) -> tuple[Formula, Quantity]:
        n = sp.Add(*(b.size for b in x))
        laws = [(mo.constant(quotient(b.size, n)), b.law) for b in x if b.law is not None]
        mean = mo.total([mo.product(c, self.laws.mean(x)) for c, x in laws]) if rule.center else mo.ZERO
        second = mo.total([mo.product(c, self.laws.second(x)) for c, x in laws])
        if rule.axis == "group":
            mean, second = self._overall(mean), self._overall(second)
        shape = (mo.part(1) - mo.part(0) ** 2 + mo.part(2)) ** sp.Rational(-1, 2)
        inverse = wide(mo.combine(shape, [mean, second, mo.constant(rule.eps)]))
        if rule.axis == "group" and rule.groups != 1 and quotient(self.step.shape.channels, rule.groups).is_number:
            inverse = replace(inverse, exactness="closure", assumptions=inverse.assumptions | {OF_GROUPS})
        return mean, self.laws.quantity(inverse, "k", self.step.node)

    def _overall(self, f: Formula) -> Formula:
        """Averaged over positions (what profiles tell apart)."""
        return self.laws.operated(Overall(), (f,), f)

    def _group_norm(self, rule: Standardize, x: Blocks) -> Blocks:
        """Statistics over many channels and all positions; groups differ where blocks do."""
        if rule.groups != 1 and len(x) > 1:
            return self._one(self._unknown(*(b.law for b in x), mean=sp.S.Zero if rule.center else UNKNOWN,
                                           second=sp.S.One if rule.eps == 0 else UNKNOWN))
        return self._channel_norm(rule, x)

    def _channel_norm(self, rule: Standardize, x: Blocks) -> Blocks:
        known = len(x) == 1 and rule.eps == 0
        try:
            mean, inverse = self._channel_statistics(rule, x)
        except NoFormula:
            return self._unknown_norm(rule, x, known)
        self._inverse[self.step.args[0], rule] = [inverse] * len(x)
        shift = mo.product(mo.combine(-mo.part(0), [mean]), self.laws.formula(inverse)) if not mean.is_zero else mo.ZERO
        result = []
        for b in x:
            law = self._combination([(inverse, b.law)] if b.law else [], shift, len(x) == 1)
            if known and law is not None and not (rule.axis == "group" and self.laws.profiles):
                self._normalized(law, rule.center)
            result.append(Block(b.size, law))
        return tuple(result)

    def _normalized(self, law: Instance, centred: bool) -> None:
        """Record what normalization guarantees: second moment 1, and mean 0 if centred."""
        self.laws.declare(law.variable, mo.ZERO if centred else None, mo.ONE)

    def _unknown_norm(self, rule: Standardize, x: Blocks, known: bool) -> Blocks:
        mean = sp.S.Zero if known and rule.center else UNKNOWN
        return self._one(self._unknown(*(b.law for b in x), mean=mean, second=sp.S.One if known else UNKNOWN))

    def _scaled_gradient(self, inverse: list[Quantity | None], args: list[Blocks]) -> Blocks:
        x, d = args
        rules = tuple(Block(b.size, Instance(Composite(0, "", expr=sp.Integer(i)))) for i, b in enumerate(x))
        result = []
        cuts = refine(rules, d)
        for size, (which, law) in cuts:
            assert which is not None and isinstance(which.variable, Composite)
            k = inverse[int(which.variable.expr)]
            result.append(Block(size, self._times(k, law, len(cuts) == 1)))
        return tuple(result)

    def _times(self, k: Quantity | None, law: Instance | None, whole: bool) -> Instance | None:
        if law is None:
            return None
        return self._unknown(law) if k is None else self._combination([(k, law)], whole=whole)

    def _sample_norm(self, rule: Standardize, law: Instance | None, whole: bool) -> Instance | None:
        if law is None:
            return None
        if (exact := self._given_weights(rule, law)) is not None:
            return exact
        if isinstance(v := law.variable, Depthwise) and v.twin and isinstance(v.twin.variable, Product):
            self.normalized[v.twin.variable.weight.split("#")[0]] = v.terms
        law = twin(law)
        base, _ = shifted(law)
        if rule.batch is None or rule.axis == "group" or self.step.shape.positions:
            return self._large_batch_norm(rule, base, law, whole)
        if base is not None and rule.eps == 0:
            return self._make(SphereEntry, whole, of=base, batch=rule.batch)
        second = sp.S.One if rule.eps == 0 else UNKNOWN
        roots = self.laws.roots(law)
        return self._make(Opaque, whole, mean=sp.S.Zero, second=second, roots=roots,
                          sample=-second / (rule.batch - 1), position=UNKNOWN)

    def _given_weights(self, rule: Standardize, law: Instance) -> Instance | None:
        """A depthwise convolution over the standard deviation that its weights give it; None where its law is not known
        so far, or what follows needs a Gaussian."""
        plain = rule.batch is None and rule.axis == "sample" and rule.eps.is_number and not law.moves
        if not plain or not isinstance(law.variable, Depthwise) or not self.step.shape.positions or not self._alone():
            return None
        try:
            y = standardized(self.laws, law, rule.eps, **self._label())
            field_sampled(self.laws, [y, y], SAME, y.variable)
        except NoFormula:
            return None
        self._inverse[self.step.args[0], rule].append(sp.S.One)
        return y

    def _alone(self) -> bool:
        """Whether only activations and contractions read this value forward: then no sum is normalized again."""
        readers = [s for s in self.program if self.index in s.args and not s.backward]
        return all(isinstance(s.primitive, Contract) or (isinstance(s.primitive, Pointwise) and len(s.args) == 1)
                   for s in readers)

    def _large_batch_norm(self, rule: Standardize, base: Instance | None, law: Instance, whole: bool) -> Instance:
        if base is None:
            return self._independent_norm(rule, law, whole)
        if rule.eps == 0 and (again := self._again(rule, base)) is not None:
            self._inverse[self.step.args[0], rule].append(again[1])
            return again[0]
        try:
            centred = self._centred(rule, base)
            variance = mo.total([self._overall(self.laws.second(centred)), mo.constant(rule.eps)])
        except NoFormula:
            return self._unknown(law, mean=sp.S.Zero, second=sp.S.One if rule.eps == 0 else UNKNOWN)
        shape = mo.part(0) ** sp.Rational(-1, 2)
        found = self._of_few(rule, base, mo.combine(shape, [variance]))
        inverse = self.laws.quantity(wide(found), "k", self.step.node)
        self._inverse[self.step.args[0], rule].append(inverse)
        if self._stays_random(rule, base, MOST_PLACES):
            result = self._normed(rule, base, whole)
        else:
            scaled = self._combination([(inverse, centred)], whole=whole)
            assert scaled is not None
            result = scaled
            if rule.eps == 0 and not (self.step.shape.positions and self.laws.profiles):
                self._normalized(result, True)
        if rule.eps == 0:
            self._standard[result.variable] = rule
        return result

    def _of_few(self, rule: Standardize, base: Instance, f: Formula) -> Formula:
        """The formula with what it assumes of statistics over a number of entries that does not grow with the width."""
        members, places = self._members(rule), self.step.shape.places
        if members is None or (self.laws.profiles and places != 1):
            return f
        entries = sp.sympify(members * places)
        what = "samples" if rule.axis == "sample" else "positions" if members == 1 else "channels"
        size = f"{entries} entries ({what}{' and positions' if members != 1 and places != 1 else ''})"
        said = f"values normalized over {size} are taken as Gaussian, which costs O(1/entries) beyond two moments"
        apart = places == 1 or self.laws.covariance(base, base, POSITION).is_zero
        more = () if apart else (f"the variance over {size} varies as that of independent ones",)
        return replace(f, assumptions=f.assumptions | {said, *more})

    def _normed(self, rule: Standardize, base: Instance, whole: bool) -> Instance:
        return self._make(Normed, whole, of=base, places=int(self.step.shape.places), members=self._members(rule),
                          channels=rule.axis == "group", eps=rule.eps)

    def _again(self, rule: Standardize, base: Instance) -> tuple[Instance, Quantity] | None:
        """A multiple of a value of the same statistics: its variance is a constant, whatever its law. Then the value
        of unit variance, and 1/sigma."""
        v, c = base.variable, sp.S.One
        if isinstance(v, GaussianSum) and v not in self._standard and len(v.terms) == 1:
            c, inner = v.terms[0]
            base = carried(inner, base)
        first = self._standard.get(base.variable)
        if first is None or not isinstance(c, sp.Expr) or c.is_positive is None:
            return None
        one_channel = first.axis == "group" and first.groups == self.step.shape.channels
        if not one_channel and (first.axis, first.groups, first.batch) != (rule.axis, rule.groups, rule.batch):
            return None
        sign = sp.Integer(1 if c.is_positive else -1)
        found = self._combination([(sign, base)], whole=False)
        assert found is not None
        return found, sign / c

    def _stays_random(self, rule: Standardize, base: Instance, most: int) -> bool:
        """Whether, in a profile, a channel's variance is a random number: over a few entries, or where borders tell
        apart what samples share."""
        places = self.step.shape.places
        if not self.laws.profiles or places == 1 or int(places) > most:
            return False
        views = (SAMPLE, View(True, True))
        return self._members(rule) is not None or not all(self.laws.covariance(base, base, w).is_zero for w in views)

    def _centred(self, rule: Standardize, x: Instance) -> Instance:
        """A Gaussian less its mean over the positions of the batch, or over those of a group's channels."""
        places, members = self.step.shape.places, self._members(rule)
        if rule.axis == "group" and members == 1:
            shared = self._make(PositionAverage, False, of=x, count=places)
        elif rule.axis == "group":
            shared = self._make(SampleMean, False, of=x, count=places, channels=members)
        else:
            shared = self._make(SampleMean, False, of=x, count=places, batch=members)
        result = self._combination([(sp.S.One, x), (sp.S.NegativeOne, shared)], whole=False)
        assert result is not None
        return result

    def _independent_norm(self, rule: Standardize, law: Instance, whole: bool) -> Instance:
        """A value that is independent from sample to sample: its statistics over a large batch are constants."""
        laws = self.laws
        try:
            if rule.axis == "group" or (laws.dependent(law, there(law), SAMPLE) and not self._known_in_limit()):
                raise NoFormula("statistics of a value that samples share", self.step.node)
            mean, second = self._overall(laws.mean(law)), self._overall(laws.second(law))
        except NoFormula:
            return self._unknown(law, mean=sp.S.Zero, second=self._place_by_place(rule, law))
        shape = (mo.part(1) - mo.part(0) ** 2 + mo.part(2)) ** sp.Rational(-1, 2)
        inverse = laws.quantity(wide(mo.combine(shape, [mean, second, mo.constant(rule.eps)])), "k", self.step.node)
        self._inverse[self.step.args[0], rule].append(inverse)
        shift = mo.product(mo.combine(-mo.part(0), [mean]), laws.formula(inverse))
        result = self._combination([(inverse, law)], shift, whole)
        assert result is not None
        if rule.eps == 0 and not laws.profiles:
            self._normalized(result, True)
        return result

    def _place_by_place(self, rule: Standardize, law: Instance) -> Quantity:
        """The second moment of a normalized value that has no law: 1, in a profile on average over its places."""
        if rule.eps != 0:
            return UNKNOWN
        if not self.laws.profiles:
            return sp.S.One
        try:
            left = self.laws.second(self._centred(rule, law))
        except NoFormula:
            return sp.S.One
        return self.laws.quantity(mo.combine(mo.part(0) / mo.part(1), [left, self._overall(left)]), "q", self.step.node)

    def _sample_norm_backward(self, rule: Standardize, args: list[Blocks]) -> Blocks:
        x, d = args
        if rule.batch is None or rule.axis == "group" or self.step.shape.positions:
            return self._large_batch_gradient(rule, x, d)
        cuts = refine(x, self._forward_value(rule), d)
        return tuple(Block(size, self._finite_batch_gradient(rule, laws, len(cuts) == 1)) for size, laws in cuts)

    def _forward_value(self, rule: Standardize) -> Blocks:
        """What the normalization made of the value whose gradient is taken."""
        forward = next(i for i, s in enumerate(self.program) if s.primitive == rule and s.args == self.step.args[:1])
        return self.values[forward]

    def _large_batch_gradient(self, rule: Standardize, x: Blocks, d: Blocks) -> Blocks:
        """(d - mean of d) / sigma, less the projection along y: one degree of freedom of many."""
        y = self._forward_value(rule)[0].law
        if y is not None and isinstance(y.variable, Standardized):
            k = inverse_of(y, **self._label(False))
            return tuple(Block(b.size, b.law and self._make(Composite, len(d) == 1, expr=arg(0) * arg(1),
                                                            args=(b.law, k))) for b in d)
        inverse = self._inverse.get((self.step.args[0], rule), [])
        try:
            if len(inverse) != len(x):
                raise NoFormula("statistics without a formula", self.step.node)
            less = tuple(Block(b.size, b.law and self._gradient_less_mean(rule, b.law)) for b in d)
            gradient = d[0].law if len(d) == 1 else None
            y = self._forward_value(rule)[0].law
            single = len(x) == len(d) == 1
            kept = self._kept(rule, y, gradient, less[0].law) if single else mo.ONE
            scales = [None if k is None else self._gradient_scale(rule, b.law, k, gradient, kept)
                      for b, k in zip(x, inverse, strict=True)]
            result = self._scaled_gradient(scales, [x, less])
            if single:
                self._remember(rule, x[0].law, y, gradient, scales[0], result[0].law)
            return result
        except NoFormula:
            return self._one(self._unknown(*(b.law for b in (*x, *d))))

    def _gradient_scale(self, rule: Standardize, x: Instance | None, k: Quantity, d: Instance | None,
                        kept: Formula) -> Quantity:
        """The root of E[1/var] less what the projection takes; ``kept`` is what it leaves of the square."""
        if x is None:
            return k
        base = shifted(twin(x))[0]
        if base is not None and self._stays_random(rule, base, MOST_GRADIENT_PLACES) and not self._exactly(rule, base):
            v = self._normed(rule, base, False).variable
            assert isinstance(v, Normed)
            known, square = mo.ONE, shrinkage(self.laws, v, self._moments_of_gradient(rule, d))
        else:
            known, square = self.laws.formula(k), self._freedom(rule, base)
        root = mo.combine(sp.sqrt(mo.part(0)), [mo.product(square, self._of_channels(x), kept)])
        return self.laws.quantity(mo.product(known, root), "k", self.step.node)

    def _moments_of_gradient(self, rule: Standardize, d: Instance | None) -> tuple[Formula, ...]:
        """Second moment and covariances of a gradient; those of independent entries where they have no formula."""
        try:
            if d is not None:
                return four(lambda w: self.laws.pair(d, there(d), w) if not w.same else self.laws.second(d), False,
                            rule.axis == "group")
        except NoFormula:
            pass
        return (mo.ONE, mo.ZERO, mo.ZERO, mo.ZERO)

    def _exactly(self, rule: Standardize, base: Instance) -> bool:
        """Whether the variance is a constant however few the entries."""
        return rule.eps == 0 and self._again(rule, base) is not None

    def _freedom(self, rule: Standardize, base: Instance | None) -> Formula:
        """E[1/var] E[var] and what the projection takes: (f-1)/(f-2) for f degrees of freedom of independent entries;
        (f-1)/f where the variance is a constant."""
        members = self._members(rule)
        if members is None:
            return mo.ONE
        entries = members * self.step.shape.places
        if base is not None and self._exactly(rule, base):
            return mo.constant(quotient(entries - 2, entries - 1))
        return mo.constant(quotient(entries - 2, entries - 3)) if entries != 3 else mo.constant(sp.oo)

    def _known_in_limit(self) -> bool:
        """Whether the law far from borders has a formula here: then samples share borders only."""
        if self.reference is None:
            return False
        return not any(b.law is not None and isinstance(b.law.variable, Opaque) for b in self.reference[self.index])

    @staticmethod
    def _of_channels(law: Instance) -> Formula:
        """n/(n-2) for the variances that a depthwise convolution of n terms gives its channels."""
        v = law.variable
        return mo.constant(quotient(v.terms, v.terms - 2)) if isinstance(v, Depthwise) else mo.ONE

    def _gradient_less_mean(self, rule: Standardize, d: Instance) -> Instance:
        laws = self.laws
        large = rule.batch is None and rule.axis == "sample"
        if not rule.center or (large and laws.pair(d, there(d), SAMPLE).is_zero):
            return d
        return self._centred(rule, d)

    def _finite_batch_gradient(self, rule: Standardize, laws: tuple[Instance | None, ...],
                               whole: bool) -> Instance | None:
        """|P d|^2 - (y.d)^2/B over the batch, times E[1/var] = B/((B-3)(q-c)); zero for two samples,
        whose normalized values are +-1 (Yang et al. 2019)."""
        x, y, d = laws
        if x is None or y is None or d is None or (rule.batch == 2 and rule.eps == 0):
            return None
        base, _ = shifted(x)
        if base is None or rule.eps != 0 or rule.batch is None:
            return self._unknown(x, d)
        try:
            second = self._batch_gradient_moment(rule.batch, base, y, d)
        except NoFormula:
            return self._unknown(x, d)
        q = self.laws.quantity(wide(second), "g", self.step.node, backward=True)
        sample = self.laws.quantity(mo.combine(-mo.part(0) / (mo.part(1) - 1),
                                               [self.laws.formula(q), mo.constant(rule.batch)]), "c", self.step.node)
        roots = tuple(dict.fromkeys((*self.laws.roots(y), *self.laws.roots(d))))
        return self._make(Opaque, whole, mean=sp.S.Zero, second=q, sample=sample, position=UNKNOWN, roots=roots)

    def _batch_gradient_moment(self, batch: sp.Expr, base: Instance, y: Instance, d: Instance) -> Formula:
        laws = self.laws
        same = laws.expectation(arg(0) ** 2 * arg(1) ** 2, (y, d), (), SAME)
        other = laws.expectation(arg(0) * arg(1) * arg(2) * arg(3), (y, d, there(y), there(d)), (), SAMPLE)
        g, h = laws.second(d), laws.pair(d, there(d), SAMPLE)
        q, c = laws.second(base), laws.covariance(base, base, SAMPLE)
        p = [mo.part(i) for i in range(7)]
        shape = ((p[6] - 1) * (p[0] - p[1]) - p[2] - (p[6] - 1) * p[3]) / ((p[6] - 3) * (p[4] - p[5]))
        return mo.combine(shape, [g, h, same, other, q, c, mo.constant(batch)])
