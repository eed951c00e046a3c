"""Channels moved: concat, slices, permutations, flattening."""

from __future__ import annotations

import sympy as sp

from varflow.calculus import quotient
from varflow.laws.blocks import refine
from varflow.laws.making import Reading, moved_by
from varflow.laws.variables import (
    ANYWHERE,
    Block,
    BlockChoice,
    Blocks,
    Composite,
    Instance,
)
from varflow.program import Concat, Deal, Embed, Flatten, Instruction, Permute, Slice
from varflow.symbols import arg


class Layout(Reading):
    """Laws of moved channels."""

    def _layout(self, step: Instruction, args: list[Blocks]) -> Blocks:
        match step.primitive:
            case Concat():
                return self._concat(args)
            case Slice(start=start, size=size):
                return _cut(args[0], start, size)
            case Embed(start=start, total=total):
                shifted = tuple(Block(b.size, moved_by(b.law, ("shift", -start))) for b in args[0])
                rest = sp.expand(total - start - sp.Add(*(b.size for b in args[0])))
                return tuple(b for b in (Block(start, None), *shifted, Block(rest, None)) if b.size != 0)
            case Permute(name=name, inverse=inverse):
                return self._permute(args[0], name, inverse)
            case Deal(count=count, inverse=inverse):
                return self._deal(args[0], count, inverse)
            case Flatten():
                places = self.program.shape(step.args[0]).places
                return tuple(Block(b.size * places, moved_by(b.law, ("flatten", 0))) for b in args[0])
            case _:
                places = step.shape.places
                return tuple(Block(quotient(b.size, places), moved_by(b.law, ("unflatten", 0))) for b in args[0])

    @staticmethod
    def _concat(args: list[Blocks]) -> Blocks:
        start: sp.Expr = sp.S.Zero
        result: list[Block] = []
        for blocks in args:
            result += [Block(b.size, moved_by(b.law, ("shift", -start))) for b in blocks]
            start = sp.expand(start + sp.Add(*(b.size for b in blocks)))
        return tuple(result)

    def _deal(self, x: Blocks, count: int, inverse: bool) -> Blocks:
        """A fixed order of channels: other coordinates of the same law where there is one law; blocks dealt into one
        another are a mixture of them, undone where they are told apart again."""
        law = x[0].law
        if len(x) > 1:
            return self._one(self._gather(x, count) if inverse else self._anywhere(x))
        dealt, blocks = self._gathered.get(law.variable, (0, x)) if law and not law.moves else (0, x)
        if dealt == count and not inverse:
            return blocks
        return (Block(x[0].size, moved_by(law, ("gather" if inverse else "deal", count))),)

    def _gather(self, x: Blocks, count: int) -> Instance:
        mixture = self._mixture(x, ("gather", count))
        self._gathered[mixture.variable] = count, x
        return mixture

    def _anywhere(self, x: Blocks) -> Instance:
        """A value of unknown law whose coordinates come from any of several blocks."""
        return self._unknown(*(b.law for b in x)).moved(ANYWHERE)

    def _permute(self, x: Blocks, name: str, inverse: bool) -> Blocks:
        move = "unpermute" if inverse else "permute"
        sizes = (inverse, *(b.size for b in x))
        if len(x) == 1:
            if self._mixed.get(name, sizes)[0] != inverse:
                return self._one(self._anywhere(x))
            return (Block(x[0].size, moved_by(x[0].law, (move, name))),)
        if self._mixed.setdefault(name, sizes) != sizes:
            return self._one(self._anywhere(x))
        return self._one(self._mixture(x, (move, name)))

    def _mixture(self, x: Blocks, move: tuple[str, object]) -> Instance:
        """A coordinate of a permuted value of several blocks: from one of them, in proportion to its size."""
        n = sp.Add(*(b.size for b in x))
        shares = tuple(quotient(b.size, n) for b in x)
        group = (move, tuple(b.size for b in x))
        expr: sp.Expr = sp.S.Zero
        args: list[Instance] = []
        for k, b in enumerate(x):
            if b.law is not None:
                self._born += 1
                choice = self._choices.get((group, k)) or Instance(BlockChoice(
                    self._born, self.step.node, group=group, index=k, probabilities=shares))
                self._choices[group, k] = choice
                expr += arg(len(args)) * arg(len(args) + 1)
                args += [choice, b.law.moved(move)]
        return self._make(Composite, expr=expr, args=tuple(args))


def _cut(blocks: Blocks, start: sp.Expr, size: sp.Expr) -> Blocks:
    """Channels start to start + size."""
    total = sp.Add(*(b.size for b in blocks))
    marker = Instance(Composite(0, ""))
    parts = (Block(start, None), Block(size, marker), Block(sp.expand(total - start - size), None))
    cuts = refine(blocks, tuple(b for b in parts if b.size != 0))
    return tuple(Block(n, moved_by(law, ("shift", start))) for n, (law, inside) in cuts if inside is marker)
