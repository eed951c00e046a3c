"""W h and W^T h: new Gaussians, with what earlier uses of the same weight leave in them (Yang 2020)."""

from __future__ import annotations

import sympy as sp

from varflow.calculus import derivative, quotient, times
from varflow.laws import moments as mo
from varflow.laws.blocks import carried, refine
from varflow.laws.depthwise import returned
from varflow.laws.distributions import NoFormula
from varflow.laws.moments import Formula, Moment, Quantity
from varflow.laws.positions import Kernel
from varflow.laws.shared import holds_sum
from varflow.laws.slopes import has_jump
from varflow.laws.summation import Summation
from varflow.laws.variables import (
    Block,
    BlockChoice,
    Blocks,
    Composite,
    Depthwise,
    GaussianSum,
    Instance,
    Largest,
    MaskEntry,
    Mixed,
    Noise,
    Normed,
    PositionAverage,
    Product,
    SampleMean,
    Variable,
)
from varflow.program import Contract, Weight
from varflow.symbols import arg

MAX_GROUPS = 64
TIED = "gradients know the depthwise weights they return by to first order in the correlation of places"
UNTIED = "gradients are taken as independent of the depthwise weights they return by"
DEPTHWISE = "the output of a depthwise convolution, a scale mixture of Gaussians, is taken as Gaussian"


class Contraction(Summation):
    """Laws of contractions."""

    def _contract(self, w: Weight, transpose: bool, x: Blocks) -> Blocks:
        if w.distribution == "constant":
            return self._constant(w, x)
        if all(b.law is None for b in x) or w.entry_variance == 0:
            return self._one(None)
        if self._rank_one and any(holds_sum(b.law) for b in x):
            return self._behind_sum(w, transpose, x)
        if w.groups != 1 and (len(x) > 1 or w.columns == 1):
            return self._grouped(w, transpose, x)
        return self._random(w, transpose, x, self.step.backward)

    def _random(self, w: Weight, transpose: bool, x: Blocks, backward: bool) -> Blocks:
        mine = self._uses.setdefault((w.name, transpose, backward), [])
        fresh = next((p for blocks, p in mine if blocks == x), None) or self._product(w, transpose, x, mine)
        opposite = self._uses.get((w.name, not transpose, backward), [])
        if not opposite:
            return self._one(Instance(fresh))
        try:
            return self._corrected(w, fresh, opposite, x, len(mine))
        except NoFormula:
            return self._one(self._unknown(Instance(fresh), *(b.law for earlier, _ in opposite for b in earlier)))

    def _product(self, w: Weight, transpose: bool, x: Blocks, mine: list[tuple[Blocks, Product]]) -> Product:
        primitive = self.step.primitive
        assert isinstance(primitive, Contract)
        forward = self._counts[w.name, False, False] + self._counts[w.name, True, False]
        earlier = bool(mine or self._uses.get((w.name, not transpose, False)))
        reused = forward > 1 if self.step.backward else earlier
        result = Product(
            **self._label(), weight=w.name, transpose=transpose, operand=x,  # type: ignore[arg-type]
            factor=quotient(w.entry_variance, w.groups), window=primitive.window,
            centred=w.distribution == "standardized" and not transpose,
            normal=w.distribution == "normal" and w.keep == 1, exactness="wide" if reused or self._slopes else "exact",
            alone=self._counts[primitive.weight, transpose, self.step.backward] == 1 and not self._slopes)
        mine.append((x, result))
        return result

    def _grouped(self, w: Weight, transpose: bool, x: Blocks) -> Blocks:
        """A block-diagonal matrix on several blocks, or one entry per channel: a law for each part."""
        count = self._counts[w.name, transpose, self.step.backward] + self._counts[
            w.name, not transpose, self.step.backward]
        if count > 1:
            return self._one(self._unknown(*(b.law for b in x)))
        out, into = (w.columns, quotient(w.rows, w.groups)) if transpose else (quotient(w.rows, w.groups), w.columns)
        if w.columns == 1:
            return tuple(Block(times(b.size, quotient(out, into)), b.law and self._depthwise(
                w, transpose, k, Block(into, b.law), len(x) == 1)) for k, b in enumerate(x))
        if not w.groups.is_number or w.groups > MAX_GROUPS:
            return self._one(self._unknown(*(b.law for b in x)))
        groups = int(w.groups)
        marks = tuple(Block(into, Instance(Composite(0, "", expr=sp.Integer(k)))) for k in range(groups))
        parts: list[list[Block]] = [[] for _ in range(groups)]
        for size, (mark, law) in refine(marks, x):
            assert mark is not None and isinstance(mark.variable, Composite)
            parts[int(mark.variable.expr)].append(Block(size, law))
        return tuple(Block(out, self._part(w, transpose, k, tuple(part))) for k, part in enumerate(parts))

    def _depthwise(self, w: Weight, transpose: bool, k: int, x: Block, whole: bool) -> Instance:
        tie, said = self._tie(w, transpose, x)
        same, moments = (self._part(w, transpose, k, (x,), note) for note in (DEPTHWISE, said))
        for v in (same.variable, moments.variable):
            assert isinstance(v, Product)
            v.factor, v.tie = self._returned(w), tie
        if self.laws.closures or x.law is None:
            return same
        of = x.law if w.rows == w.groups else x.law.moved(("copied", quotient(w.rows, w.groups)))
        result = self._make(Depthwise, whole, twin=same, moments=moments, of=of, terms=x.size * w.taps,
                            variance=w.entry_variance, distribution=w.distribution if w.keep == 1 else "")
        if not self.step.backward:
            self._forward_depthwise[f"{w.name}#{k}"] = result
        return result

    def _returned(self, w: Weight) -> sp.Expr:
        """The second moment of an entry; of a gradient's that comes from behind a batch norm, over n/(n-2), the mean of
        1/|w|^2 that is in the gradient."""
        if not self.step.backward or w.name not in self.normalized:
            return w.entry_variance
        n = self.normalized[w.name]
        return times(w.entry_variance, quotient(n - 2, n))

    def _tie(self, w: Weight, transpose: bool, x: Block) -> tuple[Moment | None, str]:
        """What a gradient's second moment gains as it knows the weights it returns by, and what is assumed of it."""
        window = getattr(self.step.primitive, "window", None)
        v = x.law.variable if x.law is not None and not x.law.moves else None
        if v not in self.returning or window is None or w.rows != w.groups:
            return None, ""
        apart = self.returning[v]
        if apart is None:
            return None, UNTIED
        tie = returned(self.laws, apart, window, transpose, w.distribution if w.keep == 1 else "")
        tie = mo.product(mo.constant(self._returned(w)), tie)
        return self.laws.system.define("r", self.step.node, tie, backward=True), TIED

    def _part(self, w: Weight, transpose: bool, k: int, x: Blocks, note: str = "") -> Instance:
        """The product of one diagonal block of a weight."""
        primitive = self.step.primitive
        assert isinstance(primitive, Contract)
        return self._make(
            Product, False, weight=f"{w.name}#{k}", transpose=transpose, operand=x, factor=w.entry_variance,
            window=primitive.window, centred=w.distribution == "standardized" and not transpose,
            normal=w.distribution == "normal" and w.keep == 1, exactness="closure" if note else "exact", note=note)

    def _corrected(self, w: Weight, fresh: Product, opposite: list[tuple[Blocks, Product]], h: Blocks,
                   uses: int) -> Blocks:
        """W^T h with W used as W x before: a part along x, with coefficient Var m E[dh/dg] (Yang 2020)."""
        corrections = []
        for x, g in opposite:
            scale = quotient(w.entry_variance, w.groups)
            c = mo.total([mo.product(mo.constant(times(scale, b.size)), self._response(b.law, g))
                          for b in h if b.law is not None])
            if not c.is_zero:
                c = self._over_taps(c, fresh, g)
                corrections.append((self.laws.quantity(c, "k", self.step.node), x))
        if w.distribution == "orthogonal" and corrections:
            self._shrink(w, fresh, corrections, opposite, uses)
        return self._with_corrections(fresh, corrections)

    def _over_taps(self, c: Formula, fresh: Product, g: Product) -> Formula:
        """A correction summed over the taps of a window."""
        if g.window != fresh.window:
            raise NoFormula("one weight used with different windows", self.step.node)
        if fresh.window is None:
            return c
        kernel = Kernel(fresh.window, fresh.transpose, False)
        return self.laws.operated(kernel, (c,), mo.combine(kernel.limit * mo.part(0), [c]))

    def _with_corrections(self, fresh: Product, corrections: list[tuple[Quantity, Blocks]]) -> Blocks:
        if not corrections:
            return self._one(Instance(fresh))
        fresh.value = None
        cuts = refine((Block(self.step.shape.channels, Instance(fresh)),), *(x for _, x in corrections))
        result = []
        for size, (first, *laws) in cuts:
            terms = [(sp.S.One, first), *((c, x) for (c, _), x in zip(corrections, laws, strict=True))]
            result.append(Block(size, self._combination([(c, x) for c, x in terms if x is not None],
                                                        whole=len(cuts) == 1)))
        return tuple(result)

    def _shrink(self, w: Weight, fresh: Product, corrections: list[tuple[Quantity, Blocks]],
                opposite: list[tuple[Blocks, Product]], uses: int) -> None:
        """A Haar matrix maps the part of h along g back onto x and keeps its length there."""
        if w.rows != w.columns or len(opposite) > 1 or uses > 1:
            raise NoFormula("an orthogonal weight used more than once in both orientations", self.step.node)
        c, x = corrections[0]
        q = mo.total([mo.product(mo.constant(quotient(b.size, w.columns)), self.laws.second(b.law))
                      for b in x if b.law])
        lost = mo.product(self.laws.formula(c), self.laws.formula(c), q)
        moment = self.laws.quantity(lost, "r", self.step.node)
        fresh.shrink = moment if isinstance(moment, Moment) else self.laws.system.define("r", self.step.node, lost)

    def _response(self, law: Instance | None, g: Product) -> Formula:
        """E[d law / d g] at one coordinate."""
        if law is None:
            return mo.ZERO
        before, self._slopes = self._slopes, True
        try:
            slope = self._slope(law, g)
        finally:
            self._slopes = before
        return mo.ZERO if slope is None else self.laws.mean(slope)

    def _slope(self, x: Instance, g: Product) -> Instance | None:
        """d x / d g as a variable; None where x does not depend on g."""
        v = x.variable
        if v is g:
            return self._make(Composite, False, expr=sp.S.One) if not x.moves else None
        match v:
            case Mixed() | Largest() if any(_is_made_of(r.variable, g) for r in self.laws.roots(x)):
                raise NoFormula("a reused weight's output at several positions", v.node)
            case GaussianSum(terms=terms):
                return self._chain([(c, self._slope(carried(t, x), g)) for c, t in terms])
            case Composite():
                return self._composite_slope(v, tuple(carried(a, x) for a in v.args), g)
            case Product() | Noise() | MaskEntry() | BlockChoice():
                return None
        if any(r.variable is g or self._slope_of_root(r, g) for r in self.laws.roots(x)):
            raise NoFormula("a statistic of a reused weight's output", self.step.node)
        return None

    def _slope_of_root(self, r: Instance, g: Product) -> bool:
        inner = getattr(r.variable, "of", None) or (r if isinstance(r.variable, GaussianSum) else None)
        return inner is not None and any(
            b is g for b in _basics(inner.variable))

    def _chain(self, terms: list[tuple[Quantity, Instance | None]]) -> Instance | None:
        kept = [(c, s) for c, s in terms if s is not None]
        return self._general_combination(kept, mo.ZERO, False) if kept else None

    def _composite_slope(self, v: Composite, inputs: tuple[Instance, ...], g: Product) -> Instance | None:
        args, expr = list(inputs), sp.S.Zero
        for i, a in enumerate(inputs):
            inner = self._slope(a, g)
            if inner is None:
                continue
            if has_jump(v.expr, arg(i)):
                raise NoFormula("a discontinuous function of a reused weight's output", v.node)
            expr += derivative(v.expr, arg(i)) * arg(len(args))
            args.append(inner)
        if expr == 0:
            return None
        return self._make(Composite, False, expr=expr, args=tuple(args), coefficients=v.coefficients)


def _is_made_of(v: Variable, g: Product) -> bool:
    return any(b is g for b in _basics(v))


def _basics(v: Variable) -> set[Variable]:
    """Basic Gaussian variables within a Gaussian one."""
    match v:
        case GaussianSum(terms=terms):
            return set().union(*(_basics(t.variable) for _, t in terms))
        case (SampleMean(of=of) | PositionAverage(of=of) | Mixed(of=of)
              | Normed(of=of)) if of is not None:
            return _basics(of.variable)
    return {v}
