"""Moments over depthwise convolutions by a sample of whole images: how values are made of weights and sources.

The weights of a channel are one for all its places, forward and backward: its values at two places, or a value
and a gradient, are tied by them, at any width. Where no formula knows the tie, a sample does: weights from a scrambled
Sobol sequence (Owen 1998), sources at every place of their grid (:mod:`~varflow.laws.images`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import sympy as sp

from varflow.laws import moments as mo
from varflow.laws.blocks import carried, with_parameters
from varflow.laws.distributions import NoFormula
from varflow.laws.draws import Shape, Source, Weights
from varflow.laws.images import (
    MEMBERS,
    FieldSample,
    Function,
    Masked,
    Reciprocal,
    Standard,
    Step,
    Taps,
)
from varflow.laws.moments import Formula, Quantity
from varflow.laws.positions import MAX_PLACES
from varflow.laws.variables import (
    APART,
    POSITION,
    SAME,
    SAMPLE,
    Composite,
    Depthwise,
    Instance,
    Inverse,
    MaskEntry,
    Standardized,
    Variable,
    View,
)
from varflow.window import Window

if TYPE_CHECKING:
    from varflow.laws.joint import Laws

MOST_SOURCES = 8


@dataclass
class _Recipe:
    """How fields are made of sources. ``torus``: a torus, of a side along each axis, stands for the grid."""

    laws: Laws
    torus: bool
    given: list[Quantity] = field(default_factory=list)
    sources: list[tuple[Instance, Shape]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)
    names: list[object] = field(default_factory=list)
    known: dict[tuple[Instance, Shape], int] = field(default_factory=dict)

    def quantity(self, q: Quantity) -> int:
        """Place of a quantity among the operator's arguments."""
        self.given.append(q)
        return len(self.given) - 1

    def field(self, x: Instance, grid: Shape) -> int:
        """The step that makes a variable on a grid."""
        x = replace(x, there=False)
        if (x, grid) not in self.known:
            self.known[x, grid] = self._made(x, grid)
        return self.known[x, grid]

    def _step(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def _made(self, x: Instance, grid: Shape) -> int:
        v = x.variable
        if isinstance(v, Depthwise) and v.of is not None:
            if v.terms != v.window.taps:
                raise NoFormula("several depthwise convolutions of a channel", v.node)
            window = self._window(v, grid)
            inner = tuple(int(n) for n in (window.outputs if v.transpose else window.inputs))
            of = self.field(carried(v.of, x), inner)
            return self._step(Taps(of, self._weight(v, x), window, v.transpose))
        if isinstance(v, Standardized | Inverse) and v.of is not None:
            return self._normalized(v, self.field(carried(v.of, x), grid))
        if v.gaussian:
            self.sources.append((x, grid))
            if len(self.sources) > MOST_SOURCES:
                raise NoFormula("too many sources for a sample of images", v.node)
            return self._step(Source(grid, v.backward))
        if isinstance(v, MaskEntry) and not v.per_sample:
            return self._step(Masked(grid, self.quantity(v.keep)))
        if isinstance(v, Composite):
            args = tuple(self.field(carried(a, x), grid) for a in v.args)
            expr, coefficients = with_parameters(v.expr, v.coefficients)
            return self._step(Function(expr, args, tuple(self.quantity(q) for q in coefficients)))
        raise NoFormula("a value that is no function of Gaussian images", v.node)

    def _normalized(self, v: Standardized | Inverse, of: int) -> int:
        kind = Reciprocal if isinstance(v, Inverse) else Standard
        return self._step(kind(of, self.quantity(v.scale), self.quantity(v.mean), float(v.eps)))

    def _weight(self, v: Depthwise, x: Instance) -> int:
        name = (v.weight, x.moves)
        if name not in self.names:
            if v.distribution not in ("normal", "uniform", "rademacher"):
                raise NoFormula("weights of another distribution", v.node)
            self.names.append(name)
            self.weights.append(Weights(v.window.taps, v.distribution, self.quantity(v.variance)))
        return self.names.index(name)

    def _window(self, v: Depthwise, grid: Shape) -> Window:
        w = v.window
        if not self.torus:
            if tuple(int(n) for n in (w.inputs if v.transpose else w.outputs)) != grid:
                raise NoFormula("values on grids of different sizes", v.node)
            return w
        inputs = grid if v.transpose else tuple(n * s for n, s in zip(grid, w.stride, strict=True))
        if any(n % s for n, s in zip(inputs, w.stride, strict=True)):
            raise NoFormula("a grid that strides do not divide", v.node)
        return _wrapped(w, inputs)


def _wrapped(w: Window, inputs: Shape) -> Window:
    """The window on a torus; the tap that reads the place itself stays where it is."""
    padding = []
    for (low, _), k, s, d in zip(w.padding, w.kernel, w.stride, w.dilation, strict=True):
        reach = d * (k - 1) + 1
        before = min(low, reach - 1)
        padding.append((before, max(reach - s - before, 0)))
    return Window(tuple(sp.Integer(n) for n in inputs), w.kernel, w.stride, tuple(padding), w.dilation, "circular")


def depthwise_within(laws: Laws, values: Sequence[Instance]) -> list[Depthwise]:
    """Depthwise convolutions that values depend on."""
    found = dict.fromkeys(r.variable for x in values for r in laws.roots(x) if isinstance(r.variable, Depthwise))
    return [v for v in found if isinstance(v, Depthwise)]


def _top(first: Depthwise, torus: bool, far: bool, nested: bool) -> Shape:
    """The grid that results stand on: the first depthwise convolution's, or a torus of some windows."""
    w = first.window
    if not torus:
        return tuple(int(n) for n in (w.inputs if first.transpose else w.outputs))
    sides = []
    for k, s, d in zip(w.kernel, w.stride, w.dilation, strict=True):
        reach = (d * (k - 1) + 1) * (1 + nested)
        windows = -(-reach // s) * (1 + far)
        sides.append(windows * s if first.transpose else windows)
    return tuple(sides)


def field_sampled(laws: Laws, values: Sequence[Instance], view: View, of: Variable) -> Formula:
    """E of the product of values as a moment that a sample of images gives. Raises NoFormula."""
    within = sorted(depthwise_within(laws, values), key=lambda v: v.born)
    outer = _outermost(values)
    if outer is None:
        raise NoFormula("a depthwise convolution behind a mixture of positions", of.node)
    torus = not laws.profiles or any(not v.window.is_numeric or _places(v.window) > MAX_PLACES for v in within)
    recipe = _Recipe(laws, torus)
    grid = _top(outer, torus, view.position, len(within) > 1)
    steps = [(x.there and not view.same, recipe.field(x, grid)) for x in values]
    here, there = (tuple(k for far, k in steps if far is side) for side in (False, True))
    members = _members(recipe, any(v.backward for v in within))
    if view.sample and (members == 1 or any(v.backward for v in within)):
        raise NoFormula("a depthwise convolution of two samples", of.node)
    numbers = len(recipe.given)
    entries = [q for i, a in enumerate(recipe.sources) for b in recipe.sources[i:]
               for q in _covariances(laws, a, b, members > 1)]
    operator = FieldSample(tuple(recipe.steps), tuple(recipe.weights), here, there, numbers, torus, view.position,
                           view.sample, members, _untied(recipe, values, within))
    moment = laws.system.operate(operator, (*recipe.given, *entries), "c", of.node, of.backward)
    moment.tier, moment.exactness = "population", "wide"
    return mo.named(moment)


def _members(recipe: _Recipe, backward: bool) -> int:
    """Samples of a batch that share their weights: what a norm takes off them has a part of its own."""
    if not any(isinstance(s, Standard | Reciprocal) for s in recipe.steps):
        return 1
    return 2 if backward else MEMBERS


def _untied(recipe: _Recipe, values: Sequence[Instance], within: Sequence[Depthwise]) -> bool:
    """Whether the size of the weights is a factor of the result: 1/s^2, and no gradient that returns by them."""
    inverses = [s for s in recipe.steps if isinstance(s, Reciprocal)]
    returned = any(v.backward for v in within)
    return len(inverses) == 1 and not returned and all(x.variable.backward or isinstance(x.variable, Inverse)
                                                       for x in values)


def _places(w: Window) -> int:
    return int(np.prod([int(n) for n in w.inputs]))


def _outermost(values: Sequence[Instance]) -> Depthwise | None:
    """The first depthwise convolution on the grid of the values themselves."""
    stack = [x.variable for x in values]
    while stack:
        v = stack.pop()
        if isinstance(v, Depthwise):
            return v
        if isinstance(v, Standardized | Inverse) and v.of is not None:
            return v.of.variable if isinstance(v.of.variable, Depthwise) else None
        if isinstance(v, Composite):
            stack += [a.variable for a in v.args]
    return None


def _covariances(laws: Laws, a: tuple[Instance, Shape], b: tuple[Instance, Shape],
                 samples: bool) -> tuple[Quantity, ...]:
    """Of two sources at one place and between two; then the same between ``samples``."""
    x, y = a[0], b[0]
    there = replace(y, there=True)
    views = (SAME, POSITION, SAMPLE, APART) if samples else (SAME, POSITION)
    if a[1] != b[1]:
        if any(laws.dependent(x, y if w.same else there, w) for w in views):
            raise NoFormula("sources on grids of different sizes", x.variable.node)
        return (sp.S.Zero,) * len(views)
    return tuple(laws.entry_quantity(x, y if w.same else there, w) for w in views)
