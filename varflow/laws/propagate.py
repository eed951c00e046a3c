"""Reading a program symbolically: the law of every value, block by block, in program order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import sympy as sp

from varflow.errors import UnsupportedError
from varflow.laws import moments as mo
from varflow.laws.blocks import refine
from varflow.laws.contraction import Contraction
from varflow.laws.distributions import NoFormula
from varflow.laws.dropped import Dropped
from varflow.laws.layout import Layout
from varflow.laws.making import there
from varflow.laws.moments import Formula
from varflow.laws.normalization import Normalization
from varflow.laws.repetition import Repetition
from varflow.laws.tokens import Attention
from varflow.laws.uneven import mean_decides
from varflow.laws.variables import (
    POSITION,
    SAMPLE,
    Block,
    Blocks,
    Instance,
    MaskEntry,
    Noise,
    PositionAverage,
    View,
)
from varflow.laws.windows import Windows
from varflow.program import (
    Bias,
    Blend,
    Concat,
    Contract,
    Cotangent,
    Deal,
    Embed,
    Flatten,
    Input,
    Instruction,
    Mask,
    Mix,
    Permute,
    Pointwise,
    PositionExpand,
    PositionMean,
    Program,
    Repeat,
    RepeatBackward,
    Scores,
    Slice,
    Softmax,
    SoftmaxBackward,
    Standardize,
    StandardizeBackward,
    Unflatten,
    WindowMax,
    WindowMaxBackward,
)

DEEP = 150
"""Instructions of a program whose covariances are named as it is read."""


class Propagation(Contraction, Normalization, Layout, Windows, Attention, Repetition):
    """The laws of a program's values. ``values[i]`` are the blocks of instruction i's value."""

    def __init__(self, program: Program, closures: bool = False, profiles: bool = False,
                 reference: Sequence[Blocks] | None = None) -> None:
        super().__init__(program, closures, profiles, reference)
        self._dropped = Dropped()
        wanted = {*program.values.values(), *program.gradients.values(),
                  *(s.args[0] for s in program if isinstance(s.primitive, Contract))}
        for i, step in enumerate(program):
            self.step, self.index = step, i
            self.values.append(self._law(step))
            self._dropped.follow(i, step, self._is_centred)
            if i in wanted:
                self._settle(self.values[-1])

    def _is_centred(self, value: int) -> bool:
        try:
            return all(self.laws.mean(b.law).is_zero for b in self.values[value] if b.law is not None)
        except NoFormula:
            return False

    def _settle(self, blocks: Blocks) -> None:
        """Name moments in program order, so that none needs a deep recursion."""
        laws = self.laws
        for law in (b.law for b in blocks if b.law is not None):
            means: list[Callable[[Instance], Formula]] = [] if self.step.backward else [laws.mean]
            tasks: list[Callable[[Instance], Formula]] = [laws.second, *means]
            tasks += [partial(self._compare, view=v) for v in self._views]
            for task in tasks:
                try:
                    task(law)
                except NoFormula:
                    continue

    def _compare(self, law: Instance, view: View) -> Formula:
        return self.laws.pair(law, there(law), view)

    @cached_property
    def _views(self) -> tuple[View, ...]:
        """Where a deep program compares a value with itself at another place."""
        if len(self.program) < DEEP:
            return ()
        position = any(isinstance(s.primitive, PositionMean) for s in self.program)
        sample = any(isinstance(s.primitive, Standardize) and s.primitive.axis == "sample" for s in self.program)
        image = any(isinstance(s.primitive, Standardize) and s.primitive.axis == "sample" and s.shape.positions
                    for s in self.program)
        return (POSITION,) * position + (SAMPLE,) * sample + (View(True, True),) * image

    # -- rules ---------------------------------------------------------------------------------------

    def _law(self, step: Instruction) -> Blocks:
        args = [self.values[a] for a in step.args]
        if self._rank_one:
            self._refuse_identical(step, args)
        match step.primitive:
            case Input() | Cotangent() | Bias() | Mask() as source:
                return self._one(self._source(source))
            case Contract(weight=weight, transpose=transpose):
                return self._contract(self.program.weights[weight], transpose, args[0])
            case Pointwise(expr=expr):
                slope, masks = self._dropped.slope(step, expr)
                return self._blockwise(slope, [*args, *(self.values[m] for m in masks)])
            case Standardize() | StandardizeBackward():
                return self._normalization(step, args)
            case PositionMean():
                count = self.program.shape(step.args[0]).places
                return tuple(Block(b.size, b.law and self._make(PositionAverage, len(args[0]) == 1, of=b.law,
                                                                count=count)) for b in args[0])
            case PositionExpand():
                return args[0]
            case Mix() | WindowMax() | WindowMaxBackward():
                return self._window(step, args)
            case Concat() | Slice() | Embed() | Permute() | Flatten() | Unflatten() | Deal():
                return self._layout(step, args)
            case Scores() | Softmax() | SoftmaxBackward() | Blend():
                return self._attention(step, args)
            case Repeat() as repeat:
                return self._one(self._repeat(repeat, args[0]))
            case RepeatBackward(forward=repeat):
                return self._one(self._repeat_backward(repeat, args))
            case other:
                raise UnsupportedError(f"no law is known for {type(other).__name__}", step.node)

    def _source(self, source: Input | Cotangent | Bias | Mask) -> Instance | None:
        placed = bool(self.step.shape.positions)
        match source:
            case Mask(keep=keep, per_sample=per_sample, name=name):
                if source not in self._masks:
                    self._masks[source] = MaskEntry(**self._label(), keep=keep, per_sample=per_sample, name=name,  # type: ignore[arg-type]
                                                     placed=placed)
                return Instance(self._masks[source])
            case Bias(variance=variance):
                return None if variance == 0 else self._make(
                    Noise, variance=variance, position=sp.S.One, sample=sp.S.One, kind="bias")
            case Cotangent():
                return self._make(Noise, kind="cotangent", placed=placed)
            case Input(mean=mean, second_moment=second):
                return self._input(source, sp.expand(second - mean**2))

    def _input(self, source: Input, variance: sp.Expr) -> Instance | None:
        noise = None if variance == 0 else self._make(
            Noise, source.mean == 0, variance=variance, position=source.position_correlation,
            sample=source.sample_correlation, kind="input", placed=bool(self.step.shape.positions))
        return self._shift(noise, mo.constant(source.mean), True)

    def _blockwise(self, expr: sp.Expr, args: list[Blocks]) -> Blocks:
        if not args:
            return self._one(self._pointwise(expr, (), True))
        try:
            cuts = refine(*args)
        except NoFormula:
            cuts = []
        if not cuts or not mean_decides(self.step, self.uneven):
            return self._one(self._unknown(*(b.law for a in args for b in a)))
        return tuple(Block(size, self._pointwise(expr, laws, len(cuts) == 1)) for size, laws in cuts)
