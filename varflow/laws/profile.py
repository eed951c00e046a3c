"""Moments position by position, at given sizes: exact where a formula describes the middle of a large image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import sympy as sp

from varflow.calculus import quotient
from varflow.laws import moments as mo
from varflow.laws.distributions import NoFormula
from varflow.laws.moments import Evaluation, Formula, Moment
from varflow.laws.positions import Array
from varflow.laws.propagate import Propagation
from varflow.laws.variables import Blocks, Instance
from varflow.program import Program


class Profile:
    """Arrays over positions for the values of a program whose grids have numbers.

    ``values`` are numbers for its other symbols, ``measured`` supplies moments that have no formula, ``reference``
    are the laws far from borders.
    """

    def __init__(self, program: Program, values: Mapping[str, Any], measured: Callable[[Moment], Any],
                 reference: Sequence[Blocks] | None = None) -> None:
        self.program = program
        self._propagation = Propagation(program, profiles=True, reference=reference)
        self._evaluation = Evaluation(values, measured, profiles=True)
        self._known: dict[tuple[int, bool], Array | None] = {}

    def second(self, value: int) -> Array | None:
        """E[x^2] at every position of a value, averaged over channels; None where there is no formula."""
        return self._found(value, True)

    def mean(self, value: int) -> Array | None:
        """E[x] at every position of a value, averaged over channels; None where there is no formula."""
        if self.program.instructions[value].backward:
            return np.zeros(1)
        return self._found(value, False)

    def _found(self, value: int, second: bool) -> Array | None:
        key = (value, second)
        if key not in self._known:
            laws = self._propagation.laws
            self._known[key] = self._average(value, laws.second if second else laws.mean)
        return self._known[key]

    def _average(self, value: int, of: Callable[[Instance], Formula]) -> Array | None:
        blocks = self._propagation.values[value]
        n = sp.Add(*(b.size for b in blocks))
        try:
            parts = [mo.product(mo.constant(quotient(b.size, n)), of(b.law)) for b in blocks if b.law]
            quantity = self._propagation.laws.quantity(mo.total(parts))
        except NoFormula:
            return None
        found = np.atleast_1d(np.asarray(self._evaluation.of(quantity), dtype=np.float64))
        places = int(self.program.shape(value).places)
        return np.broadcast_to(found.ravel(), (places,)) if found.size == 1 else found.ravel()
