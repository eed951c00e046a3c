"""Reading a program symbolically: the law of every value, block by block, in program order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any

import sympy as sp

from varflow.calculus import derivative, quotient, rename, times
from varflow.errors import UnsupportedError
from varflow.laws import moments as mo
from varflow.laws.distributions import NoFormula
from varflow.laws.joint import Laws, carried, coefficient, refine
from varflow.laws.moments import Formula, Moment, Quantity
from varflow.laws.slopes import has_jump
from varflow.laws.variables import (
    POSITION,
    SAME,
    SAMPLE,
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
from varflow.program import (
    Bias,
    Concat,
    Contract,
    Cotangent,
    Embed,
    Flatten,
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
    Unflatten,
    Weight,
)
from varflow.symbols import arg

UNKNOWN = sp.nan
DEEP = 150
"""Instructions of a program whose covariances are named as it is read."""


@lru_cache(maxsize=16384)
def _linear_form(expr: sp.Expr, count: int) -> tuple[sp.Expr, ...] | None:
    """(constant, slope of arg(0), slope of arg(1), ...) of an expression linear in its arguments, else None."""
    symbols = [arg(i) for i in range(count)]
    if not expr.is_polynomial(*symbols):
        return None
    poly = sp.Poly(expr, *symbols)
    if poly.total_degree() > 1:
        return None
    return (poly.coeff_monomial(1), *(poly.coeff_monomial(s) for s in symbols))


class Propagation:
    """The laws of a program's values. ``values[i]`` are the blocks of instruction i's value."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.laws = Laws()
        self.values: list[Blocks] = []
        self._born = 0
        self._uses: dict[tuple[str, bool, bool], list[tuple[Blocks, Product]]] = {}
        self._inverse: dict[tuple[int, Standardize], list[Quantity | None]] = {}
        self._mixed: dict[str, tuple[object, ...]] = {}
        self._slopes = False
        self._counts = Counter((s.primitive, s.backward) for s in program if isinstance(s.primitive, Contract))
        self._masks: dict[Mask, MaskEntry] = {}
        self.bodies: list[Any] = []
        self.maps: dict[str, Any] = {}
        self._choices: dict[object, Instance] = {}
        wanted = {*program.values.values(), *program.gradients.values(),
                  *(s.args[0] for s in program if isinstance(s.primitive, Contract))}
        for i, step in enumerate(program):
            self.step, self.index = step, i
            self.values.append(self._law(step))
            if i in wanted:
                self._settle(self.values[-1])

    def _settle(self, blocks: Blocks) -> None:
        """Name moments in program order, so that none needs a deep recursion."""
        laws = self.laws
        for law in (b.law for b in blocks if b.law is not None):
            tasks = [laws.second] if self.step.backward else [laws.second, laws.mean]
            for task in (*tasks, *(partial(self._compare, view=v) for v in self._views)):
                try:
                    task(law)
                except NoFormula:
                    continue

    def _compare(self, law: Instance, view: View) -> Formula:
        return self.laws.pair(law, _there(law), view)

    @cached_property
    def _views(self) -> tuple[View, ...]:
        """Where a deep program compares a value with itself at another place."""
        if len(self.program) < DEEP:
            return ()
        position = any(isinstance(s.primitive, PositionMean) for s in self.program)
        sample = any(isinstance(s.primitive, Standardize) and s.primitive.axis == "sample" for s in self.program)
        return (POSITION,) * position + (SAMPLE,) * sample

    # -- making variables ----------------------------------------------------------------------------

    def _label(self, whole: bool = True) -> dict[str, object]:
        self._born += 1
        return {"born": self._born, "node": self.step.node, "backward": self.step.backward and not self._slopes,
                "value": self.index if whole else None}

    def _make(self, make: Callable[..., Variable], whole: bool = True, **fields: object) -> Instance:
        return Instance(make(**self._label(whole), **fields))

    def _unknown(self, *of: Instance | None, mean: Quantity = UNKNOWN, second: Quantity = UNKNOWN) -> Instance:
        """A value whose law has no formula; a population may know its moments."""
        roots = tuple(r for x in of if x is not None for r in self.laws.roots(x))
        return self._make(Opaque, mean=mean, second=second, sample=UNKNOWN, position=UNKNOWN, roots=roots)

    def _combination(self, terms: Sequence[tuple[Quantity, Instance]], shift: Formula = mo.ZERO,
                     whole: bool = True) -> Instance | None:
        """sum of coefficient * instance + shift: Gaussian where all parts are."""
        parts = [(c, *_shifted(x)) for c, x in terms]
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
            expr += arg(i) * (c if isinstance(c, sp.Expr) else _listed(coefficients, c))
        if not shift.is_zero:
            expr += _listed(coefficients, self.laws.quantity(shift, "k"))
        args = tuple(x for _, x in terms)
        return self._make(Composite, whole, expr=expr, args=args, coefficients=tuple(coefficients))

    # -- rules ---------------------------------------------------------------------------------------

    def _law(self, step: Instruction) -> Blocks:
        args = [self.values[a] for a in step.args]
        match step.primitive:
            case Input() | Cotangent() | Bias() | Mask() as source:
                return self._one(self._source(source))
            case Contract(weight=weight, transpose=transpose):
                return self._contract(self.program.weights[weight], transpose, args[0])
            case Pointwise(expr=expr):
                return self._blockwise(expr, args)
            case Standardize() | StandardizeBackward():
                return self._normalization(step, args)
            case PositionMean():
                count = self.program.shape(step.args[0]).places
                return tuple(Block(b.size, b.law and self._make(PositionAverage, len(args[0]) == 1, of=b.law,
                                                                count=count)) for b in args[0])
            case PositionExpand():
                return args[0]
            case Concat() | Slice() | Embed() | Permute() | Flatten() | Unflatten():
                return self._layout(step, args)
            case Repeat() as repeat:
                return self._one(self._repeat(repeat, args[0]))
            case RepeatBackward(forward=repeat):
                return self._one(self._repeat_backward(repeat, args))
            case other:
                raise UnsupportedError(f"no law is known for {type(other).__name__}", step.node)

    # -- repeated blocks -----------------------------------------------------------------------------

    def block_map(self, repeat: Repeat) -> Any:
        """The map of one repetition of a block on its stream."""
        from varflow.laws.depth import BlockMap
        from varflow.laws.part import Part

        if repeat.name not in self.maps:
            self.maps[repeat.name] = BlockMap(repeat, Part(repeat.body))
            self.bodies.append(self.maps[repeat.name].part)
        return self.maps[repeat.name]

    def _repeat(self, repeat: Repeat, x: Blocks) -> Instance | None:
        """The stream behind all repetitions: a new source of the right second moment."""
        block = self.block_map(repeat)
        try:
            second = self._stream(repeat, x)
        except NoFormula:
            return self._unknown(*(b.law for b in x))
        if not block.stays_gaussian:
            mean = sp.S.Zero if self._mean_free(block) else UNKNOWN
            roots = tuple(r for b in x if b.law for r in self.laws.roots(b.law))
            return self._make(Opaque, mean=mean, second=self.laws.quantity(second, "q", self.step.node),
                              sample=UNKNOWN, position=UNKNOWN, roots=roots)
        noise = self._make(Noise, False, position=UNKNOWN, sample=UNKNOWN, kind="stream")
        scale = self.laws.quantity(mo.combine(sp.sqrt(mo.part(0)), [second]), "k", self.step.node)
        result = self._combination([(scale, noise)])
        assert result is not None
        self.laws.declare(result.variable, mo.ZERO, self.laws.formula(self.laws.quantity(second, "q", self.step.node)))
        return result

    def _stream(self, repeat: Repeat, x: Blocks) -> Formula:
        block = self.block_map(repeat)
        law = x[0].law
        once = sum(self.step.args[0] in s.args and not s.backward for s in self.program) == 1
        if law is None or len(x) > 1 or not once:
            raise NoFormula("a stream of several blocks, or one that is read beside the repeated block", repeat.name)
        if not (block.weights_only or (law.variable.gaussian and block.stays_gaussian)):
            raise NoFormula("the block's map depends on more than a second moment", repeat.name)
        return block.lifted(block.stream(repeat.count), self.laws.second(law), None)  # type: ignore[no-any-return]

    @staticmethod
    def _mean_free(block: Any) -> bool:
        return block.part.mean(block.part.program.outputs[0]) == 0  # type: ignore[no-any-return]

    def _repeat_backward(self, repeat: Repeat, args: list[Blocks]) -> Instance | None:
        x, d = args
        if not d or d[0].law is None:
            return None
        block = self.block_map(repeat)
        try:
            self._stream(repeat, x)
            factor = block.lifted(block.gradient(sp.S.Zero, repeat.count), self.laws.second(x[0].law), None)
            second = mo.product(factor, self.laws.second(d[0].law))
        except NoFormula:
            return self._unknown(*(b.law for b in (*x, *d)))
        return self._make(Opaque, mean=sp.S.Zero, second=self.laws.quantity(second, "g", self.step.node, True),
                          sample=UNKNOWN, position=UNKNOWN, roots=self.laws.roots(d[0].law))

    def _one(self, law: Instance | None) -> Blocks:
        return (Block(self.step.shape.channels, law),)

    def _source(self, source: Input | Cotangent | Bias | Mask) -> Instance | None:
        match source:
            case Mask(keep=keep, per_sample=per_sample, name=name):
                if source not in self._masks:
                    self._masks[source] = MaskEntry(**self._label(), keep=keep, per_sample=per_sample, name=name)  # type: ignore[arg-type]
                return Instance(self._masks[source])
            case Bias(variance=variance):
                return None if variance == 0 else self._make(
                    Noise, variance=variance, position=sp.S.One, sample=sp.S.One, kind="bias")
            case Cotangent():
                return self._make(Noise, kind="cotangent")
            case Input(mean=mean, second_moment=second):
                return self._input(source, sp.expand(second - mean**2))

    def _input(self, source: Input, variance: sp.Expr) -> Instance | None:
        noise = None if variance == 0 else self._make(
            Noise, source.mean == 0, variance=variance, position=source.position_correlation,
            sample=source.sample_correlation, kind="input")
        return self._shift(noise, mo.constant(source.mean), True)

    def _blockwise(self, expr: sp.Expr, args: list[Blocks]) -> Blocks:
        if not args:
            return self._one(self._pointwise(expr, (), True))
        try:
            cuts = refine(*args)
        except NoFormula:
            laws = [b.law for a in args for b in a]
            return self._one(self._unknown(*laws))
        return tuple(Block(size, self._pointwise(expr, laws, len(cuts) == 1)) for size, laws in cuts)

    def _pointwise(self, expr: sp.Expr, laws: tuple[Instance | None, ...], whole: bool) -> Instance | None:
        distinct: dict[Instance, int] = {}
        table: dict[sp.Symbol, sp.Expr] = {}
        for i, x in enumerate(laws):
            table[arg(i)] = sp.S.Zero if x is None else arg(distinct.setdefault(x, len(distinct)))
        expr = rename(expr, tuple(table.items()))
        if expr == 0:
            return None
        xs = tuple(distinct)
        linear = _linear_form(expr, len(xs))
        if linear is None:
            return self._make(Composite, whole, expr=expr, args=xs)
        terms = [(c, x) for c, x in zip(linear[1:], xs, strict=True) if c != 0]
        return self._combination(terms, mo.constant(linear[0]), whole)

    # -- contraction ---------------------------------------------------------------------------------

    def _contract(self, w: Weight, transpose: bool, x: Blocks) -> Blocks:
        if w.distribution == "constant":
            if w.value == 0:
                return self._one(None)
            raise UnsupportedError(
                f"weight {w.name!r} is constant and not zero", self.step.node,
                "all units are identical: the signal has rank one and no wide limit", "random entries")
        if all(b.law is None for b in x) or w.entry_variance == 0:
            return self._one(None)
        backward = self.step.backward
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
        reused = not self.step.backward and bool(mine or self._uses.get((w.name, not transpose, False)))
        result = Product(
            **self._label(), weight=w.name, transpose=transpose, operand=x, factor=w.entry_variance,  # type: ignore[arg-type]
            normal=w.distribution == "normal" and w.keep == 1, exactness="wide" if reused else "exact",
            alone=self._counts[(primitive, self.step.backward)] == 1)
        mine.append((x, result))
        return result

    def _corrected(self, w: Weight, fresh: Product, opposite: list[tuple[Blocks, Product]], h: Blocks,
                   uses: int) -> Blocks:
        """W^T h with W used as W x before: a part along x, with coefficient Var m E[dh/dg] (Yang 2020)."""
        corrections = []
        for x, g in opposite:
            c = mo.total([mo.product(mo.constant(times(w.entry_variance, b.size)), self._response(b.law, g))
                          for b in h if b.law is not None])
            if not c.is_zero:
                corrections.append((self.laws.quantity(c, "k", self.step.node), x))
        if w.distribution == "orthogonal" and corrections:
            self._shrink(w, fresh, corrections, opposite, uses)
        return self._with_corrections(fresh, corrections)

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
        q = mo.total([mo.product(mo.constant(quotient(b.size, w.columns)), self.laws.second(b.law)) for b in x if b.law])
        lost = mo.product(self.laws.formula(c), self.laws.formula(c), q)
        moment = self.laws.quantity(lost, "r", self.step.node)
        fresh.shrink = moment if isinstance(moment, Moment) else self.laws.system.define("r", self.step.node, lost)

    def _response(self, law: Instance | None, g: Product) -> Formula:
        """E[d law / d g] at one coordinate."""
        if law is None:
            return mo.ZERO
        self._slopes = True
        try:
            slope = self._slope(law, g)
        finally:
            self._slopes = False
        return mo.ZERO if slope is None else self.laws.mean(slope)

    def _slope(self, x: Instance, g: Product) -> Instance | None:
        """d x / d g as a variable; None where x does not depend on g."""
        v = x.variable
        if v is g:
            return self._make(Composite, False, expr=sp.S.One) if not x.moves else None
        match v:
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

    # -- normalization -------------------------------------------------------------------------------

    def _normalization(self, step: Instruction, args: list[Blocks]) -> Blocks:
        match step.primitive:
            case Standardize(axis="channel") as rule:
                return self._channel_norm(rule, args[0])
            case Standardize() as rule:
                self._refuse_positions(rule)
                self._inverse[step.args[0], rule] = []
                return tuple(Block(b.size, self._sample_norm(rule, b.law, len(args[0]) == 1)) for b in args[0])
            case StandardizeBackward(forward=rule) if rule.axis == "channel":
                return self._scaled_gradient(self._inverse_of(step.args[0], rule, args[0]), args)
            case StandardizeBackward(forward=rule):
                return self._sample_norm_backward(rule, args)
        raise UnsupportedError("not a normalization", step.node)

    def _refuse_positions(self, rule: Standardize) -> None:
        if self.step.shape.positions and rule.batch is not None:
            raise UnsupportedError("batch norm of a finite batch over positions", self.step.node,
                                   "its law over samples and positions is not derived",
                                   "batch_norm without batch (a large batch), or layer_norm")

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
        shape = (mo.part(1) - mo.part(0) ** 2 + mo.part(2)) ** sp.Rational(-1, 2)
        inverse = mo.combine(shape, [mean, second, mo.constant(rule.eps)])
        return mean, self.laws.quantity(_wide(inverse), "k", self.step.node)

    def _channel_norm(self, rule: Standardize, x: Blocks) -> Blocks:
        known = len(x) == 1 and rule.eps == 0
        try:
            mean, inverse = self._channel_statistics(rule, x)
        except NoFormula:
            return self._unknown_norm(rule, x, known)
        self._inverse[self.step.args[0], rule] = [inverse] * len(x)
        shift = mo.combine(-mo.part(0) * mo.part(1), [mean, self.laws.formula(inverse)]) if not mean.is_zero else mo.ZERO
        result = []
        for b in x:
            law = self._combination([(inverse, b.law)] if b.law else [], shift, len(x) == 1)
            if known and law is not None:
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
        base, _ = _shifted(law) if law is not None else (None, None)
        if law is None:
            return None
        if rule.batch is None:
            return self._large_batch_norm(rule, base, law, whole)
        if base is not None and rule.eps == 0:
            return self._make(SphereEntry, whole, of=base, batch=rule.batch)
        second = sp.S.One if rule.eps == 0 else UNKNOWN
        roots = self.laws.roots(law)
        return self._make(Opaque, whole, mean=sp.S.Zero, second=second, roots=roots,
                          sample=-second / (rule.batch - 1), position=UNKNOWN)

    def _large_batch_norm(self, rule: Standardize, base: Instance | None, law: Instance, whole: bool) -> Instance:
        if base is None:
            return self._unknown(law, mean=sp.S.Zero, second=sp.S.One if rule.eps == 0 else UNKNOWN)
        shared = self._make(SampleMean, False, of=base)
        centred = self._combination([(sp.S.One, base), (sp.S.NegativeOne, shared)], whole=False)
        assert centred is not None
        variance = mo.total([self.laws.second(centred), mo.constant(rule.eps)])
        inverse = self.laws.quantity(_wide(mo.combine(mo.part(0) ** sp.Rational(-1, 2), [variance])), "k", self.step.node)
        self._inverse[self.step.args[0], rule].append(inverse)
        result = self._combination([(inverse, centred)], whole=whole)
        assert result is not None
        if rule.eps == 0:
            self._normalized(result, True)
        return result

    def _sample_norm_backward(self, rule: Standardize, args: list[Blocks]) -> Blocks:
        x, d = args
        if rule.batch is None:
            quiet = all(b.law is None or self.laws.pair(b.law, _there(b.law), SAMPLE).is_zero for b in d)
            inverse = self._inverse.get((self.step.args[0], rule), [])
            if quiet and len(inverse) == len(x):
                return self._scaled_gradient(list(inverse), args)
            return self._one(self._unknown(*(b.law for b in (*x, *d))))
        forward = next(i for i, s in enumerate(self.program) if s.primitive == rule and s.args == self.step.args[:1])
        cuts = refine(x, self.values[forward], d)
        return tuple(Block(size, self._finite_batch_gradient(rule, *laws, len(cuts) == 1)) for size, laws in cuts)

    def _finite_batch_gradient(self, rule: Standardize, x: Instance | None, y: Instance | None, d: Instance | None,
                               whole: bool) -> Instance | None:
        """|P d|^2 - (y.d)^2/B over the batch, times E[1/var] = B/((B-3)(q-c)): THEORY, normalization."""
        if x is None or y is None or d is None:
            return None
        base, _ = _shifted(x)
        if base is None or rule.eps != 0:
            return self._unknown(x, d)
        try:
            second = self._batch_gradient_moment(sp.sympify(rule.batch), base, y, d)
        except NoFormula:
            return self._unknown(x, d)
        q = self.laws.quantity(_wide(second), "g", self.step.node, backward=True)
        sample = self.laws.quantity(mo.combine(-mo.part(0) / (mo.part(1) - 1),
                                               [self.laws.formula(q), mo.constant(rule.batch)]), "c", self.step.node)
        roots = tuple(dict.fromkeys((*self.laws.roots(y), *self.laws.roots(d))))
        return self._make(Opaque, whole, mean=sp.S.Zero, second=q, sample=sample, position=UNKNOWN, roots=roots)

    def _batch_gradient_moment(self, batch: sp.Expr, base: Instance, y: Instance, d: Instance) -> Formula:
        laws = self.laws
        same = laws.expectation(arg(0) ** 2 * arg(1) ** 2, (y, d), (), SAME)
        other = laws.expectation(arg(0) * arg(1) * arg(2) * arg(3), (y, d, _there(y), _there(d)), (), SAMPLE)
        g, h = laws.second(d), laws.pair(d, _there(d), SAMPLE)
        q, c = laws.second(base), laws.covariance(base, base, SAMPLE)
        p = [mo.part(i) for i in range(7)]
        shape = ((p[6] - 1) * (p[0] - p[1]) - p[2] - (p[6] - 1) * p[3]) / ((p[6] - 3) * (p[4] - p[5]))
        return mo.combine(shape, [g, h, same, other, q, c, mo.constant(batch)])

    # -- layout --------------------------------------------------------------------------------------

    def _layout(self, step: Instruction, args: list[Blocks]) -> Blocks:
        match step.primitive:
            case Concat():
                return self._concat(args)
            case Slice(start=start, size=size):
                return _cut(args[0], start, size)
            case Embed(start=start, total=total):
                shifted = tuple(Block(b.size, _moved(b.law, ("shift", -start))) for b in args[0])
                rest = sp.expand(total - start - sp.Add(*(b.size for b in args[0])))
                return tuple(b for b in (Block(start, None), *shifted, Block(rest, None)) if b.size != 0)
            case Permute(name=name, inverse=inverse):
                return self._permute(args[0], name, inverse)
            case Flatten():
                places = self.program.shape(step.args[0]).places
                return tuple(Block(b.size * places, _moved(b.law, ("flatten", 0))) for b in args[0])
            case _:
                places = step.shape.places
                return tuple(Block(quotient(b.size, places), _moved(b.law, ("unflatten", 0))) for b in args[0])

    @staticmethod
    def _concat(args: list[Blocks]) -> Blocks:
        start: sp.Expr = sp.S.Zero
        result: list[Block] = []
        for blocks in args:
            result += [Block(b.size, _moved(b.law, ("shift", -start))) for b in blocks]
            start = sp.expand(start + sp.Add(*(b.size for b in blocks)))
        return tuple(result)

    def _permute(self, x: Blocks, name: str, inverse: bool) -> Blocks:
        move = "unpermute" if inverse else "permute"
        sizes = (inverse, *(b.size for b in x))
        if len(x) == 1:
            known = self._mixed.get(name, sizes)[0] == inverse
            return (Block(x[0].size, _moved(x[0].law, (move, name))),) if known else self._one(self._unknown(x[0].law))
        if self._mixed.setdefault(name, sizes) != sizes:
            return self._one(self._unknown(*(b.law for b in x)))
        return self._one(self._mixture(x, (move, name)))

    def _mixture(self, x: Blocks, move: tuple[str, str]) -> Instance:
        """A coordinate of a permuted value of several blocks: from one of them, in proportion to its size."""
        n = sp.Add(*(b.size for b in x))
        shares = tuple(quotient(b.size, n) for b in x)
        group = (move, tuple(b.size for b in x))
        expr: sp.Expr = sp.S.Zero
        args: list[Instance] = []
        for k, b in enumerate(x):
            if b.law is not None:
                choice = self._choices.get((group, k)) or self._make(
                    BlockChoice, False, group=group, index=k, probabilities=shares)
                self._choices[group, k] = choice
                expr += arg(len(args)) * arg(len(args) + 1)
                args += [choice, b.law.moved(move)]
        return self._make(Composite, expr=expr, args=tuple(args))


def _listed(coefficients: list[Quantity], quantity: Quantity) -> sp.Symbol:
    coefficients.append(quantity)
    return coefficient(len(coefficients) - 1)


def _wide(f: Formula) -> Formula:
    return Formula(f.template, f.args, "wide", f.tier, f.assumptions)


def _there(x: Instance) -> Instance:
    return Instance(x.variable, x.moves, True)


def _moved(x: Instance | None, move: tuple[str, object]) -> Instance | None:
    return None if x is None else x.moved(move)


def _cut(blocks: Blocks, start: sp.Expr, size: sp.Expr) -> Blocks:
    """Channels start to start + size."""
    total = sp.Add(*(b.size for b in blocks))
    marker = Instance(Composite(0, ""))
    parts = (Block(start, None), Block(size, marker), Block(sp.expand(total - start - size), None))
    cuts = refine(blocks, tuple(b for b in parts if b.size != 0))
    return tuple(Block(n, _moved(law, ("shift", start))) for n, (law, inside) in cuts if inside is marker)


def _shifted(x: Instance) -> tuple[Instance | None, Quantity | None]:
    """(Gaussian part, constant part) of a Gaussian plus a constant; (None, None) for anything else."""
    v = x.variable
    if v.gaussian:
        return x, None
    if isinstance(v, Composite) and v.expr == arg(0) + coefficient(0) and v.args[0].variable.gaussian:
        base = v.args[0]
        for move in x.moves:
            base = base.moved(move)
        return base, v.coefficients[0]
    return None, None


def _basics(v: Variable) -> set[Variable]:
    """Basic Gaussian variables within a Gaussian one."""
    match v:
        case GaussianSum(terms=terms):
            return set().union(*(_basics(t.variable) for _, t in terms))
        case SampleMean(of=of) | PositionAverage(of=of) if of is not None:
            return _basics(of.variable)
    return {v}
