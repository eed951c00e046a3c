"""Moments position by position, at given sizes: exact where a formula describes the middle of a large image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import sympy as sp

from varflow.calculus import quotient
from varflow.laws import moments as mo
from varflow.laws.crops import Crops
from varflow.laws.distributions import NoFormula
from varflow.laws.evaluation import Evaluation
from varflow.laws.moments import Formula, Moment, Quantity
from varflow.laws.positions import Array
from varflow.laws.propagate import Propagation
from varflow.laws.uneven import uneven_by_borders
from varflow.laws.variables import Blocks, Instance
from varflow.program import Blend, Program, Scores, Softmax, SoftmaxBackward


class Profile:
    """Arrays over positions for the values of a program whose grids have numbers.

    Behind attention there are none: see `_attended`. ``values`` are numbers for its other symbols, ``measured``
    supplies moments that have no formula, ``reference`` are the laws far from borders.
    """

    def __init__(self, program: Program, values: Mapping[str, Any], measured: Callable[[Moment], Any],
                 reference: Sequence[Blocks] | None = None) -> None:
        self.program = program
        self._propagation = Propagation(program, profiles=True, reference=reference)
        self._crops = Crops(program)
        self._evaluation = Evaluation(values, measured, self._crops)
        self._known: dict[tuple[int, bool], Array | None] = {}

    def second(self, value: int) -> Array | None:
        """E[x^2] at every position of a value, averaged over channels; None where there is no formula."""
        return self._found(value, True)

    def mean(self, value: int) -> Array | None:
        """E[x] at every position of a value, averaged over channels; None where there is no formula."""
        if self.program.instructions[value].backward:
            return np.zeros(1)
        return self._found(value, False)

    def exactness(self, value: int) -> str:
        """exact | wide | closure, of the second moment; underived where there is no formula."""
        quantity = self._second_of(value)
        return "underived" if quantity is None else str(getattr(quantity, "exactness", "exact"))

    def from_population(self, value: int) -> bool:
        """Whether its second moment rests on one that a population gave."""
        return getattr(self._second_of(value), "tier", "") == "population"

    def _second_of(self, value: int) -> Quantity | None:
        return self._asked[value, True] if (value, True) in self._asked else self._quantity(value, True)

    def _found(self, value: int, second: bool) -> Array | None:
        key = (value, second)
        if key not in self._known:
            quantity = self._asked[key] if key in self._asked else self._quantity(value, second)
            self._known[key] = None if quantity is None else self._numbers(value, quantity)
        return self._known[key]

    @cached_property
    def _asked(self) -> dict[tuple[int, bool], Quantity | None]:
        """What is asked for of every node: stated before the first number, so that arrays are kept no longer than
        something reads them."""
        values = dict.fromkeys((*self.program.values.values(), *self.program.gradients.values()))
        forward = [v for v in values if not self.program.instructions[v].backward]
        keys = [(v, True) for v in values] + [(v, False) for v in forward]
        found = {key: self._quantity(*key) for key in keys}
        self._evaluation.plan(q for q in found.values() if q is not None)
        return found

    @cached_property
    def _attended(self) -> set[int]:
        """What comes from attention: its tokens have no profile, but formulas or a population."""
        found: set[int] = set()
        for value, step in enumerate(self.program):
            if isinstance(step.primitive, Scores | Softmax | SoftmaxBackward | Blend) or found & set(step.args):
                found.add(value)
        return found

    def of_population(self, value: int) -> bool:
        """Whether formulas do not see what the population does: borders in front of what comes from attention."""
        return value in self._attended and value in self._uneven

    @cached_property
    def _uneven(self) -> frozenset[int]:
        return uneven_by_borders(self.program)

    def _quantity(self, value: int, second: bool) -> Quantity | None:
        if value in self._attended:
            return None
        laws, blocks = self._propagation.laws, self._propagation.values[value]
        of: Callable[[Instance], Formula] = laws.second if second else laws.mean
        n = sp.Add(*(b.size for b in blocks))
        try:
            parts = [mo.product(mo.constant(quotient(b.size, n)), of(b.law)) for b in blocks if b.law]
            return laws.quantity(mo.total(parts))
        except NoFormula:
            return None

    def _numbers(self, value: int, quantity: Quantity) -> Array:
        found = np.atleast_1d(np.asarray(self._evaluation.of(quantity), dtype=np.float64))
        places = int(self.program.shape(value).places)
        return np.broadcast_to(found.ravel(), (places,)) if found.size == 1 else self._crops.places(found).ravel()
