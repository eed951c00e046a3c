"""The population: the infinite-width limit of any program, evaluated on coordinates (DESIGN, section 1).

Every value is a set of i.i.d. coordinates; every contraction draws new Gaussian ones with the right covariance
to earlier uses of its weight. Forward and backward uses of a weight are kept apart: the backward pass is odd
in the cotangent, so every moment that crosses between them is zero and is not estimated.

Masks of whole samples are given, and moments averaged over them; beside a batch norm such a mask is drawn for each
coordinate instead, shared by positions: moments averaged over draws are right, the fluctuation of a draw's own average
is not shown. A flattened value counts its channels position by position. A coordinate without variance over a batch is
normalized to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import lru_cache
from itertools import islice
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.errors import InputError, UnsupportedError
from varflow.laws import population_cells as cells
from varflow.laws import population_windows as windows
from varflow.laws.population_attention import attended
from varflow.laws.population_cells import (
    Array,
    Value,
    array_gram,
    array_mix,
    blockwise,
    whole,
)
from varflow.laws.population_masks import kinds, masks_of
from varflow.laws.population_norms import standardized, standardized_backward
from varflow.laws.population_weights import TINY, HaarMatrix, Matrix, Noise, paired, solve, turned
from varflow.program import (
    Bias,
    Blend,
    Concat,
    Contract,
    Cotangent,
    Deal,
    Embed,
    Flatten,
    Input,
    Instruction,
    Mask,
    Mix,
    Permute,
    Pointwise,
    PositionExpand,
    PositionMean,
    Primitive,
    Program,
    Repeat,
    RepeatBackward,
    Scores,
    Slice,
    Softmax,
    SoftmaxBackward,
    Standardize,
    StandardizeBackward,
    Unflatten,
    Weight,
    WindowMax,
    WindowMaxBackward,
    has_windows,
    live_ranges,
)
from varflow.symbols import arg

MAX_ENTRIES = 2**23
LARGE_BATCH = 256
FEW_SAMPLES = 16
"""Samples that stand for a large batch where statistics are over many positions too."""
LEAST = 2**13
"""Coordinates given some masks of whole samples, at least."""
MAX_AGAINST = 4
"""Noise is made orthogonal to live values at this many places at most."""


@dataclass(frozen=True)
class Population:
    """Moments by value of the program, averaged over channels, samples and positions, with the standard errors
    of their means over repeats; ``places`` holds the mean and the second moment at every position."""

    mean: dict[int, float]
    second_moment: dict[int, float]
    standard_error_mean: dict[int, float]
    standard_error_second_moment: dict[int, float]
    places: dict[str, list[Array]]


def run_population(program: Program, size: int = 2**16, repeats: int = 4, seed: int = 0) -> Population:
    """Moments of every value, forward and backward, as widths go to infinity.

    ``size`` is the number of coordinates of a value (down to a sixteenth where places are many), ``repeats``
    (at least 2) that of independent evaluations. Raises UnsupportedError for free symbols and for what has no
    such limit.
    """
    if repeats < 2 or size < 64:
        raise InputError(f"{repeats} repeats of size {size}", instead="at least 2 repeats of at least 64")
    _check_numeric(program)
    samples = _samples(program)
    masks = masks_of(program)
    half = _half(program, max(size // len(kinds(masks, ())), LEAST), samples)
    runs = [_over_masks(program, half, samples, (seed, r), masks) for r in range(repeats)]
    moments = np.array([[[m.mean() for m in value] for value in run] for run in runs])
    mean, error = moments.mean(axis=0), moments.std(axis=0, ddof=1) / np.sqrt(repeats)
    places = {measure: [np.mean([run[i][k] for run in runs], axis=0) for i in range(len(runs[0]))]
              for k, measure in enumerate(("mean", "second_moment"))}
    means, seconds, *errors = (dict(enumerate(a.tolist())) for a in (mean[:, 0], mean[:, 1], error[:, 0], error[:, 1]))
    return Population(means, seconds, errors[0], errors[1], places)


def _over_masks(program: Program, half: int, samples: int, seed: tuple[int, int],
                masks: list[Mask]) -> list[tuple[Array, Array]]:
    """Mean and second moment of every value, position by position, averaged over masks of whole samples."""
    if not masks:
        return _Run(program, half, samples, seed).moments()
    found = [(_Run(program, half, samples, (*seed, i), given).moments(), chance)
             for i, (given, chance) in enumerate(kinds(masks, seed))]
    return [tuple(np.sum([c * run[v][k] for run, c in found], axis=0) for k in (0, 1))
            for v in range(len(program.instructions))]


# -- what a program needs ------------------------------------------------------------------------------------


def _check_numeric(program: Program) -> None:
    for step in program:
        if isinstance(step.primitive, Repeat | RepeatBackward):
            raise UnsupportedError("a block repeated a symbolic number of times has no population", step.node,
                                   instead="bind the count first: net.bind({...})")
        used = [program.weights[step.primitive.weight]] if isinstance(step.primitive, Contract) else []
        free = _free([step.primitive, step.shape, *used]) - {arg(i) for i in range(len(step.args))}
        if free:
            names = ", ".join(sorted(str(s) for s in free))
            raise UnsupportedError(f"no number is given for {names}", step.node, "a population is numeric",
                                   "net.bind({...}) or a solution before it")


def _ends(program: Program) -> list[list[int]]:
    """By instruction, the values that nothing behind it reads."""
    ending: list[list[int]] = [[] for _ in program]
    for value, last in enumerate(live_ranges(program)):
        ending[last].append(value)
    return ending


def _free(objects: Sequence[object]) -> set[sp.Basic]:
    found: set[sp.Basic] = set()
    for o in objects:
        if isinstance(o, sp.Basic):
            found |= o.free_symbols
        elif isinstance(o, tuple):
            found |= _free(o)
        elif is_dataclass(o):
            found |= _free([v for k, v in vars(o).items() if k != "unknown"])
    return found


def _samples(program: Program) -> int:
    """Samples of the batch: one unless something normalizes over samples."""
    batches = {p.batch for step in program if isinstance(p := step.primitive, Standardize) and p.axis == "sample"}
    if len(batches) > 1:
        raise UnsupportedError(f"batches of different sizes in one network: {batches}",
                               instead="one size for all batch norms")
    batch = next(iter(batches), sp.S.One)
    if batch is not None:
        return int(batch)
    places = int(max(step.shape.places for step in program))
    return max(64, LARGE_BATCH // places) if not has_windows(program) else max(FEW_SAMPLES, LARGE_BATCH // places)


def _half(program: Program, size: int, samples: int) -> int:
    """Half the number of coordinates: a prime, so that no roll maps a block to itself."""
    positions = max(int(step.shape.places) for step in program)
    places = samples * positions
    if has_windows(program):
        size = max(size // 4, 96 * positions)
    wanted = min(size, max(4 * size // places, size // 16), MAX_ENTRIES // places)
    half = int(sp.prevprime(max(8, wanted // 2)))
    if half < 2 * positions:
        raise UnsupportedError(f"{samples} samples at {positions} positions are too many for a population",
                               instead="a smaller batch, or fewer positions")
    return half


# -- one evaluation ------------------------------------------------------------------------------------------


@dataclass
class _Run:
    program: Program
    half: int
    samples: int
    seed: tuple[int, ...]
    given: Mapping[Mask, float] = field(default_factory=dict)
    values: dict[int, Value] = field(default_factory=dict)
    matrices: dict[tuple[str, bool], Matrix | HaarMatrix] = field(default_factory=dict)
    sources: dict[tuple[Primitive, object], Array] = field(default_factory=dict)
    uses: dict[tuple[str, bool], list[bool]] = field(default_factory=dict)
    channel_weights: dict[str, list[list[Array]]] = field(default_factory=dict)
    in_order: dict[tuple[int, int], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        for step in self.program:
            if isinstance(step.primitive, Contract):
                key = (step.primitive.weight, step.backward)
                self.uses.setdefault(key, []).append(step.primitive.transpose)
        self.behind = {key: (set[int](), set[int]()) for key, uses in self.uses.items() if len(set(uses)) > 1}

    def moments(self) -> list[tuple[Array, Array]]:
        """Mean and second moment of every value, position by position."""
        ending, found = _ends(self.program), []
        for i, step in enumerate(self.program):
            self.places = int(step.shape.places)
            value = self.values[i] = self._value(step, [self.values[a] for a in step.args])
            self._follow(i, step)
            mean, second = value.moments()
            found.append((mean.mean(axis=0), second.mean(axis=0)))
            for dead in ending[i]:
                del self.values[dead]
        self.matrices.clear()
        return found

    def _follow(self, i: int, step: Instruction) -> None:
        """Note which values depend on what came out of a weight that is used in both orientations, of each of them."""
        use = step.primitive
        for key, sides in self.behind.items():
            own = use.transpose if isinstance(use, Contract) and key == (use.weight, step.backward) else None
            for transpose, side in enumerate(sides):
                if own == bool(transpose) or any(a in side for a in step.args):
                    side.add(i)

    def _value(self, step: Instruction, args: list[Value]) -> Value:
        channels = int(step.shape.channels)
        match step.primitive:
            case Input() | Cotangent() | Bias() | Mask() as source:
                return whole(channels, self._source(source, channels))
            case Contract() as use:
                return self._contract(use, args[0], step)
            case Pointwise(expr=expr):
                return self._pointwise(expr, args, channels, step.node)
            case PositionMean():
                return blockwise(lambda x: x.mean(axis=2, keepdims=True), args)
            case PositionExpand():
                return blockwise(lambda x: np.broadcast_to(x, (*x.shape[:2], self.places)), args)
            case Standardize() as norm:
                return standardized(norm, args[0], step.node)
            case StandardizeBackward(forward=norm):
                return standardized_backward(norm, args[0], args[1], step.node)
            case Mix() as mix:
                return windows.resampled(args[0], mix)
            case WindowMax(window=window):
                return windows.largest(args[0], window)
            case WindowMaxBackward(forward=forward):
                return windows.winners(args[0], args[1], forward.window)
            case Scores() | Softmax() | SoftmaxBackward() | Blend():
                return attended(step, args)
            case primitive:
                return self._moved(primitive, args, channels)

    def _moved(self, primitive: Primitive, args: list[Value], channels: int) -> Value:
        match primitive:
            case Concat():
                return cells.concatenated(args)
            case Slice(start=start):
                return cells.take(args[0], int(start), channels)
            case Embed(start=start):
                return cells.embedded(args[0], int(start), channels)
            case Permute(name=name, inverse=inverse):
                return cells.permuted(args[0], name, inverse, self._order(name, inverse, channels))
            case Deal() as deal:
                return self._dealt(deal, args[0], channels)
            case Flatten():
                return cells.flattened(args[0])
            case Unflatten():
                return cells.unflattened(args[0], channels, self.places)
            case other:
                raise UnsupportedError(f"the population knows no {type(other).__name__}")

    def _dealt(self, deal: Deal, x: Value, channels: int) -> Value:
        """Several kinds of channels in order; one kind, and what goes back the way it came, as a permutation."""
        key = (deal.count, channels)
        in_order = self.in_order.setdefault(key, not deal.inverse and len(x.cells) > 1)
        found = cells.dealt(x, deal.count, deal.inverse) if in_order else None
        if found is None:
            self.in_order[key] = False
            name = f"deal {deal.count}"
            found = cells.permuted(x, name, deal.inverse, self._order(name, deal.inverse, channels))
        return found

    # -- random sources

    def noise(self, channels: int, against: Sequence[Value], basis: Array | None = None) -> Array:
        """Unit Gaussian noise for coordinates in antithetic pairs (i, i + half), given at i: of exactly unit covariance
        between places, orthogonal to a ``basis``, to ``against`` and to live values of as many channels."""
        fresh = self.rng.standard_normal((self.half, self.samples, self.places))
        known = 0 if basis is None else basis.shape[2]
        odd = self._odd_parts(channels, against, known)
        if odd is not None:
            fresh = _orthogonal(fresh, odd, basis)
        spread = np.linalg.cholesky(array_gram(fresh, fresh))
        return array_mix(fresh, turned(np.linalg.inv(spread)))

    def _odd_parts(self, channels: int, against: Sequence[Value], known: int) -> Array | None:
        """Half of what (i, i + half) differ by, for the values that noise is made orthogonal to; None where there are
        too many of them and of ``known`` others."""
        cells = [c for v in against for c in v]
        live = (v for v in reversed(self.values.values()) if v.channels == channels)
        cells += islice((c for v in live for c in v), MAX_AGAINST // self.places)
        distinct = list({(id(c.base), c.shift): c for c in cells if not c.base.constant}.values())
        if known + sum(c.base.array.shape[2] for c in distinct) > self.half // 4:
            return None
        arrays = (c.array for c in distinct)
        return np.concatenate([np.zeros((self.half, self.samples, 0)),
                               *((a[: self.half] - a[self.half :]) / 2 for a in arrays)], axis=2)

    def _source(self, source: Primitive, channels: int) -> Array:
        key = (source, (channels, self.places))
        if key not in self.sources:
            self.sources[key] = self._draw(source, channels)
        return self.sources[key]

    def _draw(self, source: Primitive, channels: int) -> Array:
        match source:
            case Input() as law:
                spread = float(sp.sqrt(law.second_moment - law.mean**2))
                return float(law.mean) + spread * _correlated(paired(self.noise(channels, [])), law)
            case Bias(variance=variance):
                one = paired(self.noise(channels, [])[:, :1, :1]) * float(sp.sqrt(variance))
                return np.broadcast_to(one, (2 * self.half, self.samples, self.places))
            case Mask() as mask if mask in self.given:
                return np.broadcast_to(self.given[mask], (2 * self.half, self.samples, self.places))
            case Mask(keep=keep, per_sample=per_sample):
                return self._mask(float(keep), 1 if per_sample else self.places)
            case _:
                return paired(self.noise(channels, []))

    def _mask(self, keep: float, positions: int) -> Array:
        """Zeros and ones with the exact share of ones among the coordinates of each place."""
        ones = int(np.floor(keep * 2 * self.half + self.rng.random()))
        column = (np.arange(2 * self.half) < ones).astype(np.float64)
        mask = self.rng.permuted(np.tile(column[:, None], (1, self.samples * positions)), axis=0)
        shape = (2 * self.half, self.samples, self.places)
        return np.broadcast_to(mask.reshape(-1, self.samples, positions), shape)

    def _order(self, name: str, inverse: bool, channels: int) -> npt.NDArray[np.int64]:
        """The permutation of coordinates that stands for a named permutation of channels; keeps pairs."""
        rng = np.random.default_rng((*self.seed, crc32(name.encode()), channels))
        order = rng.permutation(self.half)
        order = np.argsort(order) if inverse else order
        return np.concatenate([order, order + self.half])

    # -- contractions and expressions

    def _contract(self, use: Contract, x: Value, step: Instruction) -> Value:
        key, w = (use.weight, step.backward), self.program.weights[use.weight]
        if w.groups != 1 and w.columns == 1 and use.window is not None:
            return windows.depthwise(x, use.window, use.transpose, self._channel_weights(w))
        if key not in self.matrices:
            self.matrices[key] = _matrix(w, self.noise)
        matrix, uses = self.matrices[key], self.uses[key]
        remember, both = len(uses) > 1, len(set(uses)) > 1
        told = both and step.args[0] in self.behind[key][not use.transpose]
        if use.window is not None and use.transpose:
            places, self.places = self.places, int(self.program.shape(step.args[0]).places)
            y = windows.folded(matrix.apply(x, True, remember, both, told), use.window)
            self.places = places
            return y
        x = x if use.window is None else windows.unfolded(x, use.window)
        if w.distribution == "standardized" and not use.transpose:
            x = windows.centred(x)
        return matrix.apply(x, use.transpose, remember, both, told)

    def _channel_weights(self, w: Weight) -> list[list[Array]]:
        """For every output of a channel, one number per tap and coordinate: a depthwise convolution's weights."""
        if w.name not in self.channel_weights:
            spread, copies = float(sp.sqrt(w.entry_variance)), int(w.rows / w.groups)
            shape = (copies, w.taps, 2 * self.half, 1, 1)
            self.channel_weights[w.name] = [list(one) for one in spread * _entries(w.distribution, shape, self.rng)]
        return self.channel_weights[w.name]

    def _pointwise(self, expr: sp.Expr, args: list[Value], channels: int, node: str) -> Value:
        if not args:
            shape = (2 * self.half, self.samples, self.places)
            return whole(channels, np.broadcast_to(np.float64(expr), shape))
        if expr == sp.Add(*(arg(i) for i in range(len(args)))):
            return cells.added(args)
        return blockwise(lambda *arrays: evaluate(expr, arrays, node), args)


def _orthogonal(fresh: Array, odd: Array, basis: Array | None) -> Array:
    """Noise less its part along ``odd`` values and along an orthonormal ``basis``."""
    columns = np.concatenate([fresh, odd], axis=2)
    if basis is not None:
        before = np.einsum("isp,isp->p", columns, columns)
        columns = columns - array_mix(basis, array_gram(basis, columns))
        columns = columns[:, :, np.einsum("isp,isp->p", columns, columns) > TINY * before]
    fresh, odd = np.split(columns, [fresh.shape[2]], axis=2)
    return fresh - array_mix(odd, solve(array_gram(odd, odd), array_gram(odd, fresh))) if odd.shape[2] else fresh


def _entries(distribution: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Unit entries of a weight with few of them in a sum."""
    match distribution:
        case "uniform":
            return np.asarray(np.sqrt(12) * (rng.random(shape) - 0.5))
        case "rademacher":
            return np.asarray(2.0 * rng.integers(0, 2, shape) - 1)
    return rng.standard_normal(shape)


def _matrix(w: Weight, noise: Noise) -> Matrix | HaarMatrix:
    if w.distribution == "constant" and w.value != 0:
        raise UnsupportedError(
            f"a value without a formula in a network with the constant weight {w.name!r}",
            why="all units behind it are identical, one random number that does not average out over channels",
            instead="random entries, or value 0")
    rows, columns_, variance = int(w.rows), int(w.columns) * w.taps, float(w.entry_variance)
    if w.groups != 1:
        columns_, variance = columns_ * int(w.groups), variance / float(w.groups)
    orthogonal = w.distribution == "orthogonal"
    if orthogonal and rows == columns_ and w.keep == 1:
        return HaarMatrix(rows, rows * variance, noise)
    return Matrix(rows, columns_, variance, noise, w.name, orthogonal)


def _correlated(z: Array, law: Input) -> Array:
    """Unit Gaussians with the input's correlations between positions and samples, from independent ones."""
    _, samples, positions = z.shape
    within, across = float(law.position_correlation), float(law.sample_correlation)
    shared = 1 - within + positions * (within - across)
    scales = [1 - within if positions > 1 else 0.0, shared if samples > 1 else 0.0,
              (1 - within + positions * within) + positions * (samples - 1) * across]
    if min(scales) < -1e-12:
        raise InputError(f"input {law.name!r}: correlations {within} between positions and {across} between samples "
                         "are no covariance", instead="larger correlations")
    a, b, c = np.sqrt(np.maximum(scales, 0.0))
    by_sample = z.mean(axis=2, keepdims=True)
    overall = by_sample.mean(axis=1, keepdims=True)
    return np.asarray(a * (z - by_sample) + b * (by_sample - overall) + c * overall)


# -- pointwise expressions -----------------------------------------------------------------------------------


def _erf(x: Any) -> Any:
    from scipy.special import erf

    return erf(np.asarray(x, dtype=np.float64))


def _erfc(x: Any) -> Any:
    from scipy.special import erfc

    return erfc(np.asarray(x, dtype=np.float64))


def _softplus(expr: sp.Expr) -> sp.Expr:
    """log(1 + exp(u)) as one function that does not overflow."""
    rest = expr.args[0] - 1
    return sp.Function("softplus")(rest.args[0]) if isinstance(rest, sp.exp) else expr


@lru_cache(maxsize=1024)
def _compiled(expr: sp.Expr, count: int) -> Callable[..., Any]:
    safe = expr.replace(lambda e: isinstance(e, sp.log), _softplus)
    table = {"erf": _erf, "erfc": _erfc, "softplus": lambda u: np.logaddexp(0.0, u)}
    compiled: Callable[..., Any] = sp.lambdify([arg(i) for i in range(count)], safe, modules=[table, "numpy"])
    return compiled


def evaluate(expr: sp.Expr, arrays: Sequence[Array], node: str = "") -> Array:
    """An expression of ``arg(0), ...`` on arrays of one shape; where doubles overflow on the way, in extended
    precision. Raises UnsupportedError where it is still not a number."""
    function = _compiled(expr, len(arrays))
    with np.errstate(all="ignore"):
        result = np.array(np.broadcast_to(function(*arrays), arrays[0].shape), dtype=np.float64)
        bad = ~np.isfinite(result)
        if bad.any():
            result[bad] = function(*(a[bad].astype(np.longdouble) for a in arrays))
    if np.isnan(result).any():
        raise UnsupportedError(f"{expr} is not a number at some coordinates", node,
                               instead="an expression defined on the whole line")
    return result
