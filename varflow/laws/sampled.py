"""Expectations of many Gaussian variables by quasi-Monte Carlo over the sources a value depends on.

Where neither a closed form nor an integral of one or two variables exists, the expectation is over a handful of
jointly Gaussian variables of known covariance: a scrambled Sobol sequence (Owen 1998) with antithetic points gives
it to about three digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.laws import moments as mo
from varflow.laws.blocks import carried, coefficient, with_parameters
from varflow.laws.depthwise import spread_of_scale, vanishes
from varflow.laws.distinct import different_rows
from varflow.laws.distributions import NoFormula
from varflow.laws.field import depthwise_within, field_sampled
from varflow.laws.fitted import fitted
from varflow.laws.maxima import Missing
from varflow.laws.moments import Formula, Quantity
from varflow.laws.numeric import vectorized
from varflow.laws.points import POINTS, drawn, root_of
from varflow.laws.ranked import ITSELF
from varflow.laws.resampling import spread
from varflow.laws.variables import (
    SAME,
    Composite,
    Depthwise,
    Highest,
    Instance,
    Inverse,
    Largest,
    MaskEntry,
    Mixed,
    Standardized,
    Variable,
    View,
)
from varflow.program import Mix
from varflow.symbols import arg

if TYPE_CHECKING:
    from varflow.laws.joint import Laws

Array = npt.NDArray[np.float64]
MOST_SOURCES = 40
MOST_ROWS = 64
"""Different rows of covariances that are evaluated one by one; to more of them a quadratic is fitted."""
MOST_NUMBERS = 2**25
"""Covariances, of all pairs of places together, beyond which their means are taken (256 MiB)."""
LARGEST = sp.Symbol("largest")
"""The step that takes the largest of its arguments, each less a coefficient."""


@dataclass(frozen=True)
class _Step:
    """A function of earlier values (by index) and of coefficients (by their place among the operator's arguments); or
    that of them whose ``score`` is largest."""

    expr: sp.Expr
    args: tuple[int, ...]
    coefficients: tuple[int, ...]
    score: sp.Expr = ITSELF


@dataclass
class _Recipe:
    """How a product of values is computed from Gaussian sources, and what it needs to know."""

    laws: Laws
    view: View
    given: list[Quantity] = field(default_factory=list)
    sources: list[Instance] = field(default_factory=list)
    masks: list[Instance] = field(default_factory=list)
    steps: list[_Step] = field(default_factory=list)
    known: dict[Instance, int] = field(default_factory=dict)
    weights: list[int] = field(default_factory=list)
    maxima: set[Any] = field(default_factory=set)

    def quantity(self, q: Quantity) -> int:
        """Place of a quantity among the operator's arguments."""
        self.given.append(q)
        return len(self.given) - 1

    def value(self, x: Instance) -> int:
        """Index of a value: sources count from 0 down, steps from 0 up."""
        x = self.laws.settled(x, self.view)
        if x not in self.known:
            self.known[x] = self._made(x)
        return self.known[x]

    def _made(self, x: Instance) -> int:
        v = x.variable
        if isinstance(v, MaskEntry):
            self.masks.append(x)
            return self._step(_Step(sp.Symbol(f"mask_{len(self.masks) - 1}"), (), (self.quantity(v.keep),)))
        if isinstance(v, Depthwise) and v.twin is not None:
            self.masks.append(x)
            number = sp.Symbol(f"scale_{len(self.masks) - 1}")
            return self._step(_Step(number, (self.value(carried(v.twin, x)),), (self.quantity(
                spread_of_scale(self.laws, v)),)))
        if v.gaussian:
            self.sources.append(x)
            if len(self.sources) > MOST_SOURCES:
                raise NoFormula("too many sources for a sample of them", v.node)
            return -len(self.sources)
        if isinstance(v, Highest):
            return self._highest(v, x)
        if isinstance(v, Largest) and v.of is not None:
            if self.laws.profiles or v.ranked:
                return self._largest(v, x)
            of = carried(v.of, x)
            beside = tuple(carried(a, x) for a in v.weight_args)
            key = (v.weight, beside, tuple(map(id, v.coefficients)), x.there)
            if key not in self.maxima:
                self.maxima.add(key)
                self.weights.append(self._function(v.weight, beside, v.coefficients, x))
            return self.value(of)
        if isinstance(v, Composite):
            return self._function(v.expr, tuple(carried(a, x) for a in v.args), v.coefficients, x)
        raise NoFormula("a value that is no function of Gaussian ones", v.node)

    def _largest(self, v: Largest, x: Instance) -> int:
        """The largest of the window's entries, each a value of its own; those outside the grid are far below."""
        assert v.window is not None
        args = [self.value(carried(tap, x)) for tap in taps_of(self.laws, v)]
        numbers = [] if v.window.uniform or not self.laws.profiles else [
            self.laws.system.operate(Missing(v.window, t), (sp.S.One,), "k", v.node, False) for t in range(len(args))]
        turned = x.there and self.view.position
        own = [self.laws.turned_quantity(q) if turned else q for q in numbers]
        return self._step(_Step(LARGEST, tuple(args), tuple(self.quantity(q) for q in own), v.score))

    def _highest(self, v: Highest, x: Instance) -> int:
        """The largest of a function of the window's entries, a value for every tap."""
        assert v.window is not None
        picks = taps_of(self.laws, v)
        taps = [[self.value(carried(t, x)) for t in picks[k :: v.window.taps]] for k in range(v.window.taps)]
        turned = x.there and self.view.position
        heights = []
        for k, args in enumerate(taps):
            mix = Mix(v.window, tuple(sp.Integer(t == k) for t in range(v.window.taps)))
            numbers = [self.laws.quantity(spread(self.laws, mix, self.laws.formula(c))) for c in v.coefficients]
            if not v.window.uniform:
                numbers.append(self.laws.system.operate(Missing(v.window, k), (sp.S.One,), "k", v.node, False))
            own: Sequence[Quantity] = [self.laws.turned_quantity(q) if turned else q for q in numbers]
            below = 0 if v.window.uniform else coefficient(len(numbers) - 1)
            expr, own = with_parameters(v.score - below, own)
            heights.append(self._step(_Step(expr, tuple(args), tuple(self.quantity(q) for q in own))))
        return self._step(_Step(LARGEST, tuple(heights), ()))

    def _function(self, expr: sp.Expr, args: tuple[Instance, ...], numbers: tuple[Quantity, ...], x: Instance) -> int:
        expr, numbers = with_parameters(expr, numbers)
        turned = x.there and self.view.position
        own = [self.laws.turned_quantity(q) if turned else q for q in numbers]
        return self._step(_Step(expr, tuple(self.value(a) for a in args), tuple(self.quantity(q) for q in own)))

    def _step(self, step: _Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1


@dataclass(frozen=True)
class SourceSample:
    """E of a product of values (``results``) made by ``steps`` from Gaussian sources and masks.

    Its arguments are the coefficients of the steps, then the sources' covariances, row by row from the diagonal.
    """

    steps: tuple[_Step, ...]
    results: tuple[int, ...]
    sources: int
    coefficients: int

    def apply(self, *given: Array) -> Array:
        """The expectation for every row of the (broadcast) arguments."""
        if not given:
            return np.full((1, 1), self._expected(()))
        shape = np.broadcast_shapes(*(g.shape for g in given))
        if np.prod(shape) * len(given) > MOST_NUMBERS:
            return np.full((1, 1), self._expected(tuple(float(g.mean()) for g in given)))
        rows = _between_places(np.stack([np.broadcast_to(g, shape) for g in given], axis=-1)).reshape(-1, len(given))
        first, place = different_rows(rows)
        counts = np.bincount(place).astype(np.float64)
        values = fitted(rows[first], lambda row: self._expected(tuple(row.tolist())), MOST_ROWS, counts)
        return np.asarray(values[place].reshape(shape))

    def _expected(self, given: tuple[float, ...]) -> float:
        numbers, entries = given[: self.coefficients], given[self.coefficients :]
        masks = sum(_is_drawn(step.expr) for step in self.steps)
        normal, uniform = drawn(self.sources, masks)
        x = normal @ _root(entries, self.sources).T if self.sources else normal
        values: list[Array] = []

        def at(index: int) -> Array:
            return np.asarray(x[:, -1 - index]) if index < 0 else values[index]

        for step in self.steps:
            values.append(self._value(step, numbers, at, uniform))
        product: Any = 1.0
        for r in self.results:
            product = product * at(r)
        return float(np.mean(product))

    @staticmethod
    def _value(step: _Step, numbers: tuple[float, ...], at: Callable[[int], Array], uniform: Array) -> Array:
        if _is_drawn(step.expr):
            kind, which = step.expr.name.split("_")
            column, number = uniform[:, int(which)], numbers[step.coefficients[0]]
            if kind == "mask":
                return np.asarray(column < number, dtype=np.float64)
            return np.asarray(at(step.args[0]) * _gamma_scale(column, number))
        if step.expr == LARGEST:
            below = [numbers[i] for i in step.coefficients] or [0.0] * len(step.args)
            x = np.stack([at(i) for i in step.args], axis=1)
            score = x if step.score == ITSELF else np.asarray(vectorized(step.score, (arg(0),))(x))
            return np.asarray(x[np.arange(len(x)), (score - np.asarray(below)).argmax(axis=1)])
        symbols = (*(arg(i) for i in range(len(step.args))), *(coefficient(i) for i in range(len(step.coefficients))))
        inputs = [*(at(i) for i in step.args), *(numbers[i] for i in step.coefficients)]
        with np.errstate(all="ignore"):
            found = vectorized(step.expr, symbols)(*inputs)
        return np.asarray(np.broadcast_to(found, (2 * POINTS,)), dtype=np.float64)


def _between_places(rows: Array) -> Array:
    """Rows for every two places, those of a place and itself, which are not used, as their neighbours': no fit has to
    go through them."""
    n = rows.shape[0]
    if n > 1 and rows.shape[1] == n:
        rows[np.arange(n), np.arange(n)] = rows[np.arange(n), (np.arange(n) + 1) % n]
    return rows


def taps_of(laws: Laws, v: Largest) -> tuple[Instance, ...]:
    """The entries of a window, each as a value at the window's place; of several, all taps of the first come first."""
    if v not in laws.taps:
        assert v.window is not None
        n, entries = v.window.taps, v.entries if isinstance(v, Highest) else (v.entry,)
        picks = [Mix(v.window, tuple(sp.Integer(t == k) for t in range(n))) for k in range(n)]
        laws.taps[v] = tuple(Instance(Mixed(v.born, v.node, of=x, mix=pick)) for x in entries for pick in picks)
    return laws.taps[v]


def _is_drawn(expr: sp.Expr) -> bool:
    """Whether a step is a mask or a scale, with a number of its own for every point."""
    return isinstance(expr, sp.Symbol) and expr.name.startswith(("mask_", "scale_"))


def _gamma_scale(uniform: Array, shape: float) -> Array:
    """The root of a gamma variable of mean 1."""
    from scipy.special import gammaincinv

    return np.asarray(np.sqrt(gammaincinv(shape, np.clip(uniform, 1e-9, 1 - 1e-9)) / shape))


def _root(entries: tuple[float, ...], n: int) -> Array:
    """A square root of the covariance with the given upper triangle."""
    matrix = np.zeros((n, n))
    matrix[np.triu_indices(n)] = entries
    return root_of(matrix + np.triu(matrix, 1).T)


def _shares(laws: Laws, values: Sequence[Instance]) -> bool:
    """Whether a depthwise convolution stands beside something that depends on what it reads, or on its weights."""
    leaves: dict[Instance, None] = {}
    stack = list(values)
    while stack:
        x = stack.pop()
        if isinstance(x.variable, Composite):
            stack += [carried(a, x) for a in x.variable.args]
        else:
            leaves[x] = None
    if any(isinstance(x.variable, Standardized | Inverse) for x in leaves):
        return True
    mixtures = [x for x in leaves if isinstance(x.variable, Depthwise)]
    if any(vanishes(laws, x.variable.of) for x in mixtures if isinstance(x.variable, Depthwise) and x.variable.of):
        return True
    return any(x.variable.backward or any(laws.dependent(x, y, SAME) for y in leaves if y != x) for x in mixtures)


def sampled(laws: Laws, values: Sequence[Instance], view: View, of: Variable) -> Formula:
    """E of the product of values as a moment that a sample of their sources gives. Raises NoFormula."""
    if depthwise_within(laws, values) and (view.position or _shares(laws, values)):
        return field_sampled(laws, values, view, of)
    recipe = _Recipe(laws, view)
    found = [recipe.value(x) for x in values]
    numbers = len(recipe.given)
    sources = recipe.sources
    entries = [laws.entry_quantity(x, y, view) for i, x in enumerate(sources) for y in sources[i:]]
    operator = SourceSample(tuple(recipe.steps), (*found, *recipe.weights), len(sources), numbers)
    moment = laws.system.operate(operator, (*recipe.given, *entries), "c", of.node, of.backward)
    moment.tier, moment.exactness = "population", "wide"
    return mo.named(moment)
