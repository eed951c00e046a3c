"""Normalized values whose statistics stay random: their covariances with other values, in profiles."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sympy as sp

from varflow.laws import moments as mo
from varflow.laws.blocks import carried
from varflow.laws.moments import Formula
from varflow.laws.scatter import Normalized, Shrinkage
from varflow.laws.variables import Instance, Normed, View

if TYPE_CHECKING:
    from varflow.laws.covariances import Covariances

_PLACES = (False, True)


def four(at: Any, sample: bool, channels: bool) -> tuple[Formula, ...]:
    """What ``at`` gives within a member at one position and between two, then between members: samples, or channels of
    a group (independent; then ``sample`` says whether two samples are compared)."""
    if channels:
        return (*(at(View(p, sample)) for p in _PLACES), mo.ZERO, mo.ZERO)
    return tuple(at(View(p, s)) for s in (False, True) for p in _PLACES)


def of_entries(laws: Covariances, x: Instance, channels: bool) -> tuple[Formula, ...]:
    """Covariances of the entries of a Gaussian value that is normalized."""
    return four(lambda w: laws.covariance(x, x, w), False, channels)


def normalized(laws: Covariances, newer: Instance, older: Instance, first: bool, view: View) -> Formula:
    """Covariance of a normalized value with another."""
    v = newer.variable
    assert isinstance(v, Normed) and v.of is not None
    itself = older.variable is v and older.moves == newer.moves and not (v.channels and view.sample)
    still = not itself and not laws.differs(older, False)
    x, y = replace(carried(v.of, newer), there=False), replace(older, there=False)
    beside = () if itself else four(lambda w: laws.covariance(x, y, w), view.sample, v.channels)
    if beside and all(f.is_zero for f in beside):
        return mo.ZERO
    operator = Normalized(v.places, v.members is None, view.position, view.sample and not v.channels, itself, still)
    entries = of_entries(laws, replace(v.of, there=False), v.channels)
    found = laws.operated(operator, (*numbers_of(v.members, v.eps), *entries, *beside), mo.ZERO)
    return found if first or not view.position else laws.turned(found)


def numbers_of(members: sp.Expr | None, eps: sp.Expr) -> tuple[Formula, Formula]:
    """The number of members and epsilon as formulas."""
    return mo.constant(sp.S.Zero if members is None else members), mo.constant(eps)


def shrinkage(laws: Covariances, v: Normed, gradient: tuple[Formula, ...]) -> Formula:
    """What the square of a gradient less its mean is multiplied by on its way through a normalization."""
    assert v.of is not None
    operator = Shrinkage(v.places, v.members is None)
    entries = of_entries(laws, replace(v.of, there=False), v.channels)
    return laws.operated(operator, (*numbers_of(v.members, v.eps), *entries, *gradient), mo.ONE)
