"""Channels moved: concat, slices, permutations, flattening."""

from __future__ import annotations

import sympy as sp

from varflow.calculus import quotient, rename, times
from varflow.laws.blocks import carried, parts, refine
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
        """A fixed order of channels: other coordinates of the same law where there is one law. Several blocks are dealt
        one after another: each heap has its share of every block, in their order. Other blocks gathered are a mixture
        of them, undone where they are told apart again."""
        law = x[0].law
        if len(x) > 1:
            heaps = self._heaps(x, count) if inverse else None
            if heaps is not None:
                return tuple(Block(times(part[0].size, sp.Integer(count)), self._gather(part, count, False))
                             for part in heaps)
            if inverse or not all(_divides(count, b.size) for b in x):
                return self._one(self._gather(x, count) if inverse else self._anywhere(x))
            return tuple(Block(quotient(b.size, sp.Integer(count)), self._share(b, count, k))
                         for k in range(count) for b in x)
        dealt, blocks = self._gathered.get(law.variable, (0, x)) if law and not law.moves else (0, x)
        if dealt == count and not inverse:
            return blocks
        return (Block(x[0].size, moved_by(law, ("gather" if inverse else "deal", count))),)

    @staticmethod
    def _heaps(x: Blocks, count: int) -> list[Blocks] | None:
        """Heaps that have the same blocks, turned: each block's shares of all heaps; None where they differ."""
        period, rest = divmod(len(x), count)
        if rest or period < 2 or any(b.size != x[i % period].size for i, b in enumerate(x)):
            return None
        return [x[i::period] for i in range(period)]

    def _share(self, b: Block, count: int, heap: int) -> Instance | None:
        """What a heap gets of a block."""
        if b.law is None:
            return None
        dealt, parts = self._gathered.get(b.law.variable, (0, ())) if not b.law.moves else (0, ())
        if dealt == count:
            return parts[heap].law
        return moved_by(b.law, ("deal", count))

    def _gather(self, x: Blocks, count: int, whole: bool = True) -> Instance:
        mixture = self._mixture(x, ("gather", count), whole)
        self._gathered[mixture.variable] = count, x
        return mixture

    def _anywhere(self, x: Blocks) -> Instance:
        """A value of unknown law whose coordinates come from any of several blocks."""
        return self._unknown(*(b.law for b in x)).moved(ANYWHERE)

    def _permute(self, x: Blocks, name: str, inverse: bool) -> Blocks:
        move = "unpermute" if inverse else "permute"
        sizes = (inverse, *(b.size for b in x))
        mixed = self._mixed.get(name)
        if mixed is not None and mixed[0] != inverse:
            return self._told_apart(x, (move, name), mixed[1:])
        if len(x) == 1:
            return (Block(x[0].size, moved_by(x[0].law, (move, name))),)
        if self._mixed.setdefault(name, sizes) != sizes:
            return self._one(self._anywhere(x))
        return self._one(self._mixture(x, (move, name)))

    def _told_apart(self, x: Blocks, move: tuple[str, str], sizes: tuple[sp.Expr, ...]) -> Blocks:
        """Back in the order in which there were blocks of these sizes: what each gets is what is known at a permuted
        coordinate that came from it."""
        origin = ("permute" if move[0] == "unpermute" else "unpermute", move[1])
        found = []
        for k, size in enumerate(sizes):
            given = [Block(b.size, None if b.law is None else self._given(b.law, origin, k)) for b in x]
            if any(_chosen(b.law, origin) for b in given if b.law is not None):
                return self._one(self._anywhere(x))
            alone = len(given) == 1 or all(b.law is None for b in given)
            found.append(Block(size, moved_by(given[0].law, move) if alone else self._mixture(tuple(given), move)))
        return tuple(found)

    def _given(self, x: Instance, origin: tuple[str, str], block: int) -> Instance | None:
        """A value at permuted coordinates that came from this block; None: zero."""
        v = x.variable
        if not isinstance(v, Composite) or not _chosen(x, origin):
            return x
        args: list[Instance] = []
        table: list[tuple[sp.Expr, sp.Expr]] = []
        for i, a in enumerate(v.args):
            inner = carried(a, x)
            choice = inner.variable
            if isinstance(choice, BlockChoice) and _is_of(inner, origin):
                table.append((arg(i), sp.Integer(choice.index == block)))
            elif (known := self._given(inner, origin, block)) is None:
                table.append((arg(i), sp.S.Zero))
            else:
                table.append((arg(i), arg(len(args))))
                args.append(known)
        expr = rename(v.expr, tuple(table))
        if expr == 0:
            return None
        for i, a in enumerate(args):
            if expr == arg(i):
                return a
        return self._make(Composite, expr=expr, args=tuple(args), coefficients=v.coefficients)

    def _mixture(self, x: Blocks, move: tuple[str, object], whole: bool = True) -> Instance:
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
        return self._make(Composite, whole, expr=expr, args=tuple(args))


def _divides(count: int, size: sp.Expr) -> bool:
    share = quotient(size, sp.Integer(count))
    return not share.is_number or bool(share.is_Integer)


def _cut(blocks: Blocks, start: sp.Expr, size: sp.Expr) -> Blocks:
    """Channels start to start + size."""
    total = sp.Add(*(b.size for b in blocks))
    marker = Instance(Composite(0, ""))
    parts = (Block(start, None), Block(size, marker), Block(sp.expand(total - start - size), None))
    cuts = refine(blocks, tuple(b for b in parts if b.size != 0))
    return tuple(Block(n, moved_by(law, ("shift", start))) for n, (law, inside) in cuts if inside is marker)


def _is_of(x: Instance, origin: tuple[str, str]) -> bool:
    """Whether this tells which block a coordinate had before a permutation, at the permuted coordinate."""
    return isinstance(x.variable, BlockChoice) and x.variable.group[0] == origin and not x.moves  # type: ignore[index]


def _chosen(x: Instance, origin: tuple[str, str]) -> bool:
    """Whether a value depends on which block a permuted coordinate came from."""
    return _is_of(x, origin) or any(_chosen(carried(inner, x), origin) for inner in parts(x.variable))
