"""Expectations over depthwise convolutions by a sample of whole images: weights, and Gaussian sources at all places.

The weights of a channel are one for all its places, forward and backward: its values at two places, or a value
and a gradient, are tied by them, at any width. Where no formula knows the tie, a sample does: weights from a scrambled
Sobol sequence (Owen 1998), sources at every place of their grid, each point beside its mirror image. Where a grid is
large or has no numbers, a torus of some windows stands for it: places far from borders, alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp

from varflow.laws import moments as mo
from varflow.laws.blocks import carried, coefficient
from varflow.laws.distributions import NoFormula
from varflow.laws.moments import Formula, Quantity
from varflow.laws.numeric import vectorized
from varflow.laws.positions import MAX_PLACES, Array, completed, window_matrices
from varflow.laws.variables import (
    POSITION,
    SAME,
    Composite,
    Depthwise,
    Instance,
    MaskEntry,
    Variable,
    View,
)
from varflow.symbols import arg
from varflow.window import Window

if TYPE_CHECKING:
    from varflow.laws.joint import Laws

ENTRIES = 2**20
MOST_POINTS, LEAST_POINTS = 2**14, 2**10
MOST_SOURCES = 8
MOST_COLUMNS = 2**10
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """A Gaussian field on a grid. ``signs``: only its covariances matter, as those of gradients do, two of which stand
    in a product: then it is made of signs, whose squares do not fluctuate."""

    grid: Shape
    signs: bool = False


@dataclass(frozen=True)
class Masked:
    """A field of zeros and ones; ``keep`` is the place of their probability among the operator's arguments."""

    grid: Shape
    keep: int


@dataclass(frozen=True)
class Function:
    """An expression of earlier fields and of coefficients (by their place among the operator's arguments)."""

    expr: sp.Expr
    args: tuple[int, ...]
    coefficients: tuple[int, ...]


@dataclass(frozen=True)
class Taps:
    """sum_t w_t h[p + t] (its transpose), w the ``weight``-th list of weights."""

    of: int
    weight: int
    window: Window
    transpose: bool


@dataclass(frozen=True)
class Weights:
    """Weights of a channel: their number, distribution, and the place of their variance among the arguments."""

    count: int
    distribution: str
    variance: int


Step = Source | Masked | Function | Taps


@dataclass(frozen=True)
class FieldSample:
    """E of a product of fields at one place (``there`` empty), or of one at a place and one at another.

    Its arguments are the numbers of the steps, then for every two sources (row by row from the diagonal) their
    covariances at one place and between two. ``torus``: places far from borders stand for all.
    """

    steps: tuple[Step, ...]
    weights: tuple[Weights, ...]
    here: tuple[int, ...]
    there: tuple[int, ...]
    numbers: int
    torus: bool

    def apply(self, *given: Array) -> Array:
        """(P, 1), or (P, P') between two places; numbers, one for each of the parameters' values, on a torus."""
        if not self.torus:
            return self._expected(given)
        given = tuple(np.full((1, 1), g.mean()) if g.shape[0] > 1 else g for g in given)
        shape = np.broadcast_shapes(*(g.shape for g in given))
        columns = [np.broadcast_to(g, shape).ravel() for g in given]
        return np.array([float(self._expected(tuple(np.full((1, 1), x) for x in row))[0, 0])
                         for row in zip(*columns, strict=True)]).reshape(shape)

    def _expected(self, given: tuple[Array, ...]) -> Array:
        fields = _fields(self.steps, self.weights, self.numbers, self.torus, _Arrays(given))
        left = np.asarray(np.prod([fields[i] for i in self.here], axis=0)) if self.here else np.ones((1, 1))
        if not self.there:
            found = left.mean(axis=0)[:, None]
            return np.full((1, 1), found.mean()) if self.torus else found
        right = np.asarray(np.prod([fields[i] for i in self.there], axis=0))
        if self.torus:
            grid = _grid_of(self.steps)
            image = right.reshape(-1, *grid)
            far = np.roll(image, [n // 2 for n in grid], axis=tuple(range(1, image.ndim))).reshape(right.shape)
            return np.full((1, 1), (left * far).mean())
        return np.asarray(left.T @ right / len(right))


def _grid_of(steps: Sequence[Step]) -> Shape:
    """The grid of the last step that has one: results stand on it."""
    for step in reversed(steps):
        if isinstance(step, Taps):
            w = step.window
            return tuple(int(n) for n in (w.inputs if step.transpose else w.outputs))
    raise AssertionError("a recipe without a depthwise convolution")


class _Arrays:
    """Arrays that are equal by content."""

    def __init__(self, arrays: tuple[Array, ...]) -> None:
        self.arrays = arrays
        self._key = tuple((a.shape, a.tobytes()) for a in arrays)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Arrays) and self._key == other._key


@lru_cache(maxsize=4)
def _fields(steps: tuple[Step, ...], weights: tuple[Weights, ...], numbers: int, torus: bool,
            given: _Arrays) -> list[Array]:
    """Every step's field, points x places (few of them kept: moments of one value are asked for together)."""
    arrays = given.arrays
    sources = [s for s in steps if isinstance(s, Source)]
    places = max([int(np.prod(s.grid)) for s in steps if isinstance(s, Source | Masked)], default=1)
    points = int(2 ** np.floor(np.log2(np.clip(ENTRIES // places, LEAST_POINTS, MOST_POINTS))))
    rng = np.random.default_rng(places)
    drawn = iter(_sources(sources, arrays[numbers:], points, rng))
    lists = [_weights(w, float(np.asarray(arrays[w.variance]).mean()), points, k) for k, w in enumerate(weights)]
    fields: list[Array] = []
    for step in steps:
        match step:
            case Source():
                fields.append(next(drawn))
            case Masked(grid=grid, keep=keep):
                level = np.broadcast_to(arrays[keep], (int(np.prod(grid)), 1)).T
                half = rng.random((points // 2, level.shape[1])) < level
                fields.append(np.concatenate([half, half]).astype(np.float64))
            case Taps(of=of, weight=k, window=window, transpose=transpose):
                fields.append(_tapped(fields[of], lists[k], window, transpose))
            case Function():
                fields.append(_evaluated(step, fields, arrays))
    return fields


def _weights(w: Weights, variance: float, points: int, seed: int) -> Array:
    """Taps x points, each list twice."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    u = qmc.Sobol(w.count, scramble=True, rng=np.random.default_rng((w.count, seed))).random(points // 2)
    if w.distribution == "normal":
        z = ndtri(np.clip(u, 1e-12, 1 - 1e-12))
    else:
        z = np.sqrt(12) * (u - 0.5) if w.distribution == "uniform" else np.sign(u - 0.5)
    z = z * np.sqrt(variance / (z**2).mean())
    return np.concatenate([z, z]).T


def _tapped(h: Array, w: Array, window: Window, transpose: bool) -> Array:
    matrices = window_matrices(window, transpose)
    h = np.broadcast_to(h, (len(h), matrices[0].shape[1])).T
    return np.asarray(sum(numbers * (m @ h) for numbers, m in zip(w, matrices, strict=True))).T


def _evaluated(step: Function, fields: list[Array], arrays: tuple[Array, ...]) -> Array:
    symbols = (*(arg(i) for i in range(len(step.args))), *(coefficient(i) for i in range(len(step.coefficients))))
    inputs = [*(fields[i] for i in step.args), *(arrays[i].reshape(1, -1) for i in step.coefficients)]
    with np.errstate(all="ignore"):
        found = vectorized(step.expr, symbols)(*inputs)
    shape = np.broadcast_shapes(np.shape(found), *(np.shape(x) for x in inputs))
    return np.asarray(np.broadcast_to(found, shape), dtype=np.float64)


def _sources(sources: list[Source], entries: tuple[Array, ...], points: int, rng: Any) -> list[Array]:
    """Fields of the given covariances, each point beside its negative; grids are independent of each other, and so are
    gradients and values."""
    found: list[Array | None] = [None] * len(sources)
    index = {pair: k for k, pair in enumerate((i, j) for i in range(len(sources)) for j in range(i, len(sources)))}
    for source in dict.fromkeys(sources):
        mine = [i for i, s in enumerate(sources) if s == source]
        pairs = {(i, j): (entries[2 * index[i, j]], entries[2 * index[i, j] + 1]) for i in mine for j in mine if i <= j}
        noise = partial(_signs if source.signs else _normal, rng, points // 2)
        for i, drawn in zip(mine, _joint(mine, pairs, int(np.prod(source.grid)), noise), strict=True):
            found[i] = np.concatenate([drawn, -drawn])
    return [f for f in found if f is not None]


def _normal(rng: Any, *shape: int) -> Array:
    return np.asarray(rng.standard_normal(shape))


def _signs(rng: Any, *shape: int) -> Array:
    return np.asarray(2.0 * rng.integers(0, 2, shape) - 1)


def _joint(mine: list[int], pairs: dict[tuple[int, int], tuple[Array, Array]], places: int,
           noise: Callable[..., Array]) -> list[Array]:
    if all(a.size == 1 for pair in pairs.values() for a in pair):
        same, other = (np.array([[pairs[min(i, j), max(i, j)][k].item() for j in mine] for i in mine]) for k in (0, 1))
        return _exchangeable(same, other, places, noise)
    if len(mine) * places > MOST_COLUMNS:
        raise NoFormula("too many places for a sample of images")
    blocks = [[completed(pairs[i, j][1], pairs[i, j][0], places) if i <= j
               else completed(pairs[j, i][1], pairs[j, i][0], places).T for j in mine] for i in mine]
    drawn = noise(len(mine) * places) @ _root(np.block(blocks)).T
    return list(np.moveaxis(drawn.reshape(-1, len(mine), places), 1, 0))


def _exchangeable(same: Array, other: Array, places: int, noise: Callable[..., Array]) -> list[Array]:
    """Fields of one covariance at every place and one between any two: deviations from the mean, and the mean."""
    own = np.einsum("ij,njp->nip", _root(same - other), noise(len(same), places))
    common = noise(len(same)) @ _root(same + (places - 1) * other).T / np.sqrt(places)
    return list(np.moveaxis(own - own.mean(axis=2, keepdims=True) + common[:, :, None], 1, 0))


def _root(matrix: Array) -> Array:
    """A square root of a covariance, rounding cut off."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


# -- recipes -----------------------------------------------------------------------------------------


@dataclass
class _Recipe:
    """How fields are made of sources. ``torus``: the side of a torus, along each axis, that stands for the grid."""

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
        if v.gaussian:
            self.sources.append((x, grid))
            if len(self.sources) > MOST_SOURCES:
                raise NoFormula("too many sources for a sample of images", v.node)
            return self._step(Source(grid, v.backward))
        if isinstance(v, MaskEntry) and not v.per_sample:
            return self._step(Masked(grid, self.quantity(v.keep)))
        if isinstance(v, Composite):
            args = tuple(self.field(carried(a, x), grid) for a in v.args)
            return self._step(Function(v.expr, args, tuple(self.quantity(q) for q in v.coefficients)))
        raise NoFormula("a value that is no function of Gaussian images", v.node)

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
    if view.sample:
        raise NoFormula("a depthwise convolution of two samples", of.node)
    within = sorted(depthwise_within(laws, values), key=lambda v: v.born)
    outer = _outermost(values)
    if outer is None:
        raise NoFormula("a depthwise convolution behind a mixture of positions", of.node)
    torus = not laws.profiles or any(not v.window.is_numeric or _places(v.window) > MAX_PLACES for v in within)
    recipe = _Recipe(laws, torus)
    grid = _top(outer, torus, view.position, len(within) > 1)
    steps = [(x.there and view.position, recipe.field(x, grid)) for x in values]
    here, there = (tuple(k for far, k in steps if far is side) for side in (False, True))
    numbers = len(recipe.given)
    entries = [q for i, a in enumerate(recipe.sources) for b in recipe.sources[i:] for q in _covariances(laws, a, b)]
    operator = FieldSample(tuple(recipe.steps), tuple(recipe.weights), here, there, numbers, torus)
    moment = laws.system.operate(operator, (*recipe.given, *entries), "c", of.node, of.backward)
    moment.tier, moment.exactness = "population", "wide"
    return mo.named(moment)


def _places(w: Window) -> int:
    return int(np.prod([int(n) for n in w.inputs]))


def _outermost(values: Sequence[Instance]) -> Depthwise | None:
    """The first depthwise convolution on the grid of the values themselves."""
    stack = [x.variable for x in values]
    while stack:
        v = stack.pop()
        if isinstance(v, Depthwise):
            return v
        if isinstance(v, Composite):
            stack += [a.variable for a in v.args]
    return None


def _covariances(laws: Laws, a: tuple[Instance, Shape], b: tuple[Instance, Shape]) -> tuple[Quantity, Quantity]:
    x, y = a[0], b[0]
    there = replace(y, there=True)
    if a[1] != b[1] and any(laws.dependent(x, z, w) for z, w in ((y, SAME), (there, POSITION))):
        raise NoFormula("sources on grids of different sizes", x.variable.node)
    return laws.entry_quantity(x, y, SAME), laws.entry_quantity(x, there, POSITION)
