"""Numbers of moments: arrays between places are kept no longer than something reads them."""

from __future__ import annotations

import numpy as np
import sympy as sp

import varflow as vf
from varflow.laws.crops import Crops
from varflow.laws.evaluation import LARGE, Evaluation
from varflow.laws.moments import Formula, Moment, MomentSystem, place
from varflow.lowering import lower

SIDE = 80


class Pairs:
    """An array over pairs of places; counts how often it was made."""

    def __init__(self) -> None:
        self.made = 0

    def apply(self, *given: np.ndarray) -> np.ndarray:
        self.made += 1
        return np.full((SIDE, SIDE), 2.0) * (given[0] if given else 1.0)


class Mean:
    """The mean of an array."""

    def apply(self, given: np.ndarray) -> np.ndarray:
        return np.full((1, 1), given.mean())


def no_crops() -> Crops:
    """Of a program without large grids."""
    net = vf.Network("small")
    net.relu(net.input("x", channels=2))
    return Crops(lower(net))


def _chain(system: MomentSystem, length: int) -> tuple[list[Pairs], list[Moment], list[Moment]]:
    """Arrays each made of the one before it and of the first, and their means."""
    operators = [Pairs() for _ in range(length)]
    arrays: list[Moment] = []
    for o in operators:
        arrays.append(system.operate(o, tuple(arrays[-1:]) + tuple(arrays[:1]), "c", "", False))
    return operators, arrays, [system.operate(Mean(), (a,), "q", "", False) for a in arrays]


def test_arrays_are_forgotten_when_they_were_read() -> None:
    assert SIDE**2 >= LARGE
    operators, arrays, means = _chain(MomentSystem(), 12)
    evaluation = Evaluation({}, lambda m: None, no_crops())
    evaluation.plan(means)
    for k, m in enumerate(means):
        assert evaluation.of(m) == 2.0 ** (k + 1)
        assert sum(a in evaluation.known for a in arrays) <= 2
    assert not any(a in evaluation.known for a in arrays)
    assert [o.made for o in operators] == [1] * 12


def test_what_was_not_planned_is_found_anew() -> None:
    operators, arrays, means = _chain(MomentSystem(), 12)
    evaluation = Evaluation({}, lambda m: None, no_crops())
    evaluation.plan(means[:1])
    assert evaluation.of(means[0]) == 2.0
    assert evaluation.of(means[-1]) == 2.0**12
    assert [o.made for o in operators] == [2] + [1] * 11
    assert evaluation.of(arrays[5]).shape == (SIDE, SIDE)


def test_numbers_that_are_no_large_arrays_stay() -> None:
    system = MomentSystem()
    first = system.define("q", "", Formula(sp.Integer(2)))
    second = system.define("q", "", Formula(place(0, first) ** 2, (first,)))
    evaluation = Evaluation({}, lambda m: None)
    evaluation.plan([second])
    assert evaluation.of(second) == 4
    assert first in evaluation.known
