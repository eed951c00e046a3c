"""Moments of values resampled over positions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sympy as sp

from varflow.laws import moments as mo
from varflow.laws.blocks import carried
from varflow.laws.distributions import NoFormula
from varflow.laws.moments import Formula
from varflow.laws.positions import Mixing, Spread
from varflow.laws.variables import Composite, Instance, Mixed, Variable, View
from varflow.program import Mix
from varflow.symbols import arg

if TYPE_CHECKING:
    from varflow.laws.covariances import Covariances

NEIGHBOURS = "neighbouring positions covary as distant ones do"


def noted(f: Formula, assumption: str) -> Formula:
    """The formula with an assumption that holds in a limit only."""
    if not assumption or f.is_zero:
        return f
    return replace(f, exactness="wide", assumptions=f.assumptions | {assumption})


def resampled(laws: Covariances, newer: Instance, older: Instance, first: bool, view: View, pair: Any) -> Formula:
    """E[newer older] for a value resampled over positions."""
    v = newer.variable
    assert isinstance(v, Mixed) and v.of is not None
    x = carried(v.of, newer).at(False)
    y, beside = older.at(False), older.variable
    fixed = not laws.differs(older, False)
    if type(beside) is type(v) and not fixed:
        y = carried(beside.of, older).at(False)  # type: ignore[arg-type]
    a, b = (x, y) if first else (y, x)
    here, there = View(False, view.sample), View(True, view.sample)
    same = pair(a, b.at(not here.same), here)
    if fixed:
        return spread_of(laws, v, same)
    other = pair(a, b.at(True), there)
    if same.is_zero and other.is_zero:
        return mo.ZERO
    left, right = (v.mix, getattr(beside, "mix", None)) if first else (getattr(beside, "mix", None), v.mix)
    if left is None or right is None:
        _on_one_grid(v)
    if left is not None and right is not None and (
        _operand_grid(left) != _operand_grid(right) or _grid(left) != _grid(right)
    ):
        raise NoFormula("values resampled from grids, or to grids, of different sizes", v.node)
    mixing = Mixing(left, right, view.position)
    alike, apart = mixing.limit
    limit = mo.combine(alike * mo.part(0) + apart * mo.part(1), [same, other])
    tiles = v.mix is None or (v.mix.window.covers_evenly and not v.mix.transpose)
    return noted(laws.operated(mixing, (same, other), limit), "" if tiles else NEIGHBOURS)


def sum_of_resampled(v: Variable) -> bool:
    """Whether a value is linear in resampled ones (pixel shuffle), which are paired one by one."""
    if not isinstance(v, Composite) or not all(isinstance(a.variable, Mixed) for a in v.args):
        return False
    symbols = [arg(i) for i in range(len(v.args))]
    return bool(v.expr.is_polynomial(*symbols)) and sp.Poly(v.expr, *symbols).total_degree() <= 1


def on_grid(mix: Mix) -> bool:
    """Whether a mixture puts values on one place of every cell of a grid, zero on the others."""
    return mix.transpose and picks(mix)


def gridded(laws: Covariances, x: Instance, y: Instance) -> bool:
    """Whether two values lie on a grid each and have a mean there: dependent or not, the mean of their product is not
    that of their means, as they may overlap nowhere. Profiles have places of their own."""
    mixes = [getattr(z.variable, "mix", None) for z in (x, y)]
    if laws.profiles or not all(m is not None and on_grid(m) for m in mixes):
        return False
    return not (laws.mean(x).is_zero or laws.mean(y).is_zero)


def picks(mix: Mix) -> bool:
    """Whether a mixture (or its transpose) reads one place of every cell of a grid."""
    w = mix.window
    one = [c for c in mix.coefficients if c != 0] == [1]
    return one and w.kernel == w.stride and w.uniform and not mix.normalized


def arranged(v: Variable) -> bool:
    """Whether a value takes every place from one of several coarse ones (pixel shuffle)."""
    if not isinstance(v, Composite) or len(v.args) < 2 or v.expr != sp.Add(*(arg(i) for i in range(len(v.args)))):
        return False
    mixes = [a.variable.mix for a in v.args if isinstance(a.variable, Mixed) and a.variable.mix is not None]
    if len(mixes) < len(v.args) or not all(m.transpose and picks(m) and m.window == mixes[0].window for m in mixes):
        return False
    return len({m.coefficients for m in mixes}) == len(mixes) == mixes[0].window.taps


def holds_arranged(v: Variable) -> bool:
    """Whether a value is arranged, or a function of such and others."""
    return arranged(v) or (isinstance(v, Composite) and any(arranged(a.variable) for a in v.args))


def _on_one_grid(v: Mixed) -> None:
    assert v.mix is not None
    if v.mix.window.outputs != v.mix.window.inputs:
        raise NoFormula("a resampled value beside one that depends on it", v.node)


def _grid(mix: Mix) -> tuple[sp.Expr, ...]:
    return mix.window.inputs if mix.transpose else mix.window.outputs


def _operand_grid(mix: Mix) -> tuple[sp.Expr, ...]:
    return mix.window.outputs if mix.transpose else mix.window.inputs


def spread_of(laws: Covariances, v: Mixed, same: Formula) -> Formula:
    """E[v y] for a ``y`` that is the same at all positions."""
    assert v.mix is not None
    if on_grid(v.mix) and not laws.profiles:
        return mo.combine(mo.part(0) / v.mix.window.taps, [same])
    return spread(laws, v.mix, same)


def spread(laws: Covariances, mix: Mix, same: Formula) -> Formula:
    """A mixture of positions of a moment at one of them."""
    limit = mo.combine(Spread(mix).limit * mo.part(0), [same])
    return laws.operated(Spread(mix), (same,), limit)
