"""Blocks repeated a symbolic number of times: a stream and its gradient."""

from __future__ import annotations

from typing import Any

import sympy as sp

from varflow.laws import moments as mo
from varflow.laws.distributions import NoFormula
from varflow.laws.making import UNKNOWN, Reading
from varflow.laws.moments import Formula
from varflow.laws.variables import Blocks, Instance, Noise, Opaque
from varflow.program import Repeat


class Repetition(Reading):
    """Laws of repeated blocks."""

    def block_map(self, repeat: Repeat) -> Any:
        """The map of one repetition of a block on its stream."""
        from varflow.laws.depth import BlockMap
        from varflow.laws.part import Part

        if repeat.name not in self.maps:
            self.maps[repeat.name] = BlockMap(repeat, Part(repeat.body, self.laws.closures))
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
        if not d or d[0].law is None or x[0].law is None:
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
