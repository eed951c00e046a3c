"""Numbers of networks with stochastic depth: laws given the masks of a sample, and their mean over masks.

A mask that drops a whole branch of a sample (Huang et al. 2016) is one number for all its channels: it does not average
out as widths grow. Given its masks, a sample's values are Gaussian of a variance q(masks), and its gradients of another
that depends on the same masks; over samples they are mixtures. E f(x), E d^2 f'(x)^2 and every moment are therefore the
mean over masks of the moment given them, which is what is taken here: exact as widths and the batch grow. A batch norm
sees samples of all masks; its variance is the mean over masks of the variance given them, and so its 1/sigma is one for
all. What samples of the same masks have in common before it, of covariance c(masks), is a mean that the masks scale,
sqrt(c(masks)) u with the same u for all, of which the mean over masks is taken off (exact where the values behind it
are independent between samples).

All combinations of up to ``EXACTLY`` masks are counted; of more a Sobol sequence chooses some, with weights that keep
the probability of every mask. Images with more than ``IN_IMAGES`` masks, whose every position would have to be followed
for as many combinations, take the mixture for Gaussian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.calculus import rename
from varflow.laws import moments as mo
from varflow.laws.blocks import coefficient
from varflow.laws.crops import Crops
from varflow.laws.evaluation import Evaluation
from varflow.laws.making import there
from varflow.laws.moments import Formula, Moment, Quantity
from varflow.laws.population_masks import DROPPED, masks_of
from varflow.laws.positions import Overall
from varflow.laws.profile import Profile
from varflow.laws.propagate import Propagation
from varflow.laws.standardized import inverse_of
from varflow.laws.variables import (
    APART,
    SAMPLE,
    Block,
    Blocks,
    Composite,
    Instance,
    SampleMean,
    Standardized,
    Variable,
)
from varflow.program import Mask, Program, Standardize, StandardizeBackward, has_windows
from varflow.symbols import arg

Array = npt.NDArray[np.float64]
EXACTLY, SOME = 6, 64
"""Masks all combinations of which are counted, and combinations of more of them."""
IN_IMAGES = 4
"""Masks all combinations of which are counted where every position is followed."""
NOTHING = 1e-8
"""Part of a second moment that is none."""


def sample_masks(program: Program) -> tuple[Mask, ...]:
    """The masks of whole samples."""
    found = (step.primitive for step in program)
    return tuple(dict.fromkeys(p for p in found if isinstance(p, Mask) and p.per_sample))


def mixed(program: Program) -> bool:
    """Whether laws given masks say more: there are such masks, not too many to count, and every statistic is that of a
    sample, or of a batch large enough to hold all kinds of samples."""
    few = any(isinstance(p := step.primitive, Standardize) and p.axis == "sample" and p.batch is not None
              for step in program)
    count = len(sample_masks(program))
    return count > 0 and not few and (count <= IN_IMAGES or not has_windows(program))


def combinations(keep: Sequence[float]) -> tuple[Array, Array]:
    """Masks (combinations x masks) and the probability of each combination."""
    probability = np.asarray(keep, dtype=np.float64)
    if len(keep) <= EXACTLY:
        masks = np.array(list(product((1.0, 0.0), repeat=len(keep))))
        return masks, np.prod(np.where(masks == 1, probability, 1 - probability), axis=1)
    from scipy.stats import qmc

    points = qmc.Sobol(len(keep), scramble=True, rng=np.random.default_rng(0)).random(SOME)
    drawn = np.minimum(probability, 1 - 1.5 / SOME)
    masks = (points < drawn).astype(np.float64)
    odds = np.prod(np.where(masks == 1, probability / drawn, (1 - probability) / (1 - drawn)), axis=1)
    return masks, _weights(masks, odds / odds.sum(), probability)


def _weights(masks: Array, odds: Array, probability: Array) -> Array:
    """The weights next to these, relative to them, that give every mask its probability; these if none are positive."""
    rows = np.vstack([np.ones(len(masks)), masks.T])
    wanted = np.concatenate([[1.0], probability])
    change = np.linalg.lstsq(rows * odds, wanted - rows @ odds, rcond=None)[0]
    found = odds * (1 + change)
    return found if np.all(found > 0) else odds


@dataclass(frozen=True)
class OverMasks:
    """The mean over combinations of masks, of these weights."""

    weights: tuple[float, ...]

    def apply(self, x: Array) -> Array:
        """From a column for each combination, or one for all, to the same number in each."""
        return np.asarray(x if x.shape[1] == 1 else np.broadcast_to(x @ np.asarray(self.weights)[:, None], x.shape))


@dataclass(frozen=True)
class CommonMean:
    """Less the batch's mean in units of the mean over samples of the same masks, from the sizes of what both have in
    common; minus one where the latter is nothing."""

    def apply(self, whole: Array, own: Array, second: Array) -> Array:
        """Numbers, one for each combination of masks or for all."""
        whole, own, second = np.broadcast_arrays(whole, own, second)
        return np.asarray(-np.where(own**2 > NOTHING * second, whole / np.maximum(own, 1e-300), 1.0))


@dataclass(frozen=True)
class Trace:
    """The trace of a matrix."""

    def apply(self, matrix: Array) -> Array:
        """(1, 1)."""
        return np.full((1, 1), np.trace(matrix))


class GivenMasks(Propagation):
    """Laws given the masks of a sample, which are numbers: the symbols ``given``."""

    def __init__(self, program: Program, weights: Array, reference: Sequence[Blocks] | None) -> None:
        self.given = {m: sp.Symbol(f"_kept_{k}", positive=True) for k, m in enumerate(sample_masks(program))}
        self._weights = OverMasks(tuple(weights.tolist()))
        self._scales: dict[Variable, tuple[Instance, Quantity]] = {}
        Propagation.__init__(self, program, profiles=has_windows(program), reference=reference)

    def _blockwise(self, expr: sp.Expr, args: list[Blocks]) -> Blocks:
        names = [self.given.get(p) if isinstance(p := self.program.instructions[i].primitive, Mask) else None
                 for i in self.step.args]
        kept = [i for i, name in enumerate(names) if name is None]
        table = [(arg(i), name) for i, name in enumerate(names) if name is not None]
        table += [(arg(i), arg(k)) for k, i in enumerate(kept)]
        return Propagation._blockwise(self, rename(expr, tuple(table)), [args[i] for i in kept])

    def _over(self, f: Formula) -> Formula:
        """Averaged over masks."""
        if f.is_zero:
            return f
        moment = self.laws.system.operate(self._weights, (self.laws.quantity(f),), "c", self.step.node, False)
        return mo.named(moment)

    def _of_samples(self) -> bool:
        rule = self.step.primitive
        rule = rule.forward if isinstance(rule, StandardizeBackward) else rule
        return isinstance(rule, Standardize) and rule.axis == "sample"

    def _overall(self, f: Formula) -> Formula:
        found = Propagation._overall(self, f)
        return self._over(found) if self._of_samples() else found

    def _normalized(self, law: Instance, centred: bool) -> None:
        if not self._of_samples():
            Propagation._normalized(self, law, centred)

    def _stays_random(self, rule: Standardize, base: Instance, most: int) -> bool:
        return rule.axis != "sample" and Propagation._stays_random(self, rule, base, most)

    def _given_weights(self, rule: Standardize, law: Instance) -> Instance | None:
        """A depthwise convolution over its standard deviation given masks, times what that is of the one over all: of
        weights of mean zero the trace of C (see :mod:`~varflow.laws.standardized`) tells how much masks scale it."""
        found = Propagation._given_weights(self, rule, law)
        if found is None:
            return None
        assert isinstance(found.variable, Standardized)
        size = mo.named(self.laws.system.operate(Trace(), (found.variable.scale,), "c", self.step.node, False))
        scale = self.laws.quantity(mo.combine(sp.sqrt(mo.part(0) / mo.part(1)), [size, self._over(size)]), "k")
        made = self._combination([(scale, found)])
        assert made is not None
        self._scales[made.variable] = found, scale
        return made

    def _large_batch_gradient(self, rule: Standardize, x: Blocks, d: Blocks) -> Blocks:
        y = self._forward_value(rule)[0].law
        if y is None or y.variable not in self._scales:
            return Propagation._large_batch_gradient(self, rule, x, d)
        own, scale = self._scales[y.variable]
        k = inverse_of(own, **self._label(False))
        return tuple(Block(b.size, b.law and self._make(
            Composite, len(d) == 1, expr=coefficient(0) * arg(0) * arg(1), args=(b.law, k), coefficients=(scale,)))
            for b in d)

    def _centred(self, rule: Standardize, x: Instance) -> Instance:
        if rule.axis != "sample" or self.step.backward:
            return Propagation._centred(self, rule, x)
        other = self.laws.pair(x, there(x), APART if self.step.shape.positions else SAMPLE)
        common = self.laws.operated(Overall(), (other,), other)
        if common.is_zero:
            return Propagation._centred(self, rule, x)
        size = mo.combine(sp.sqrt(sp.Max(mo.part(0), 0)), [common])
        parts = (self._over(size), size, Propagation._overall(self, self.laws.second(x)))
        sizes = tuple(self.laws.quantity(f) for f in parts)
        off = self.laws.system.operate(CommonMean(), sizes, "k", self.step.node, False)
        shared = self._make(SampleMean, False, of=x, count=self.step.shape.places, batch=None)
        result = self._combination([(sp.S.One, x), (off, shared)], whole=False)
        assert result is not None
        return result


class Kind(Evaluation):
    """Numbers given one combination of masks; means over masks are taken with its ``peers``, the other ones."""

    peers: Sequence[Kind] = ()

    def _one(self, m: Moment) -> Any:
        if not isinstance(m.operator, OverMasks) or not self.peers:
            return Evaluation._one(self, m)
        found = sum(w * p.of(m.args[0]) for w, p in zip(m.operator.weights, self.peers, strict=True))
        for p in self.peers:
            p._known[m] = found
        return found


class Peers:
    """Means over masks of the numbers given them."""

    def __init__(self, kinds: Sequence[Kind], weights: Array) -> None:
        self._kinds, self._weights = kinds, weights
        for kind in kinds:
            kind.peers = kinds if len(kinds) == len(weights) else ()

    def plan(self, quantities: Iterable[Quantity]) -> None:
        """Say what will be asked for."""
        asked = list(quantities)
        for kind in self._kinds:
            kind.plan(asked)

    def of(self, quantity: Quantity) -> Any:
        """The mean over masks of a moment."""
        found = [np.asarray(kind.of(quantity), dtype=np.float64) for kind in self._kinds]
        if len(found) == len(self._weights):
            return sum(w * f for w, f in zip(self._weights, found, strict=True))
        return float(np.broadcast_to(found[0].ravel(), self._weights.shape) @ self._weights)


class Mixture(Profile):
    """Moments of networks with masks of whole samples (see :class:`Profile`)."""

    def __init__(self, program: Program, values: Mapping[str, Any], measured: Callable[[Moment], Any],
                 reference: Sequence[Blocks] | None = None) -> None:
        self.program, placed = program, has_windows(program)
        keep = [float(m.keep.subs({s: values[str(s)] for s in m.keep.free_symbols})) for m in sample_masks(program)]
        masks, weights = combinations(keep)
        laws = GivenMasks(program, weights, reference)
        self._propagation, self._crops = laws, Crops(program)
        names = [s.name for s in laws.given.values()]
        rows = np.maximum(masks, DROPPED)
        given = [dict(zip(names, map(float, row), strict=True)) for row in rows] if placed else [
            dict(zip(names, rows.T, strict=True))]
        kinds = [Kind({**values, **g}, measured, self._crops if placed else None) for g in given]
        self._evaluation = Peers(kinds, weights)  # type: ignore[assignment]
        self._known = {}

    def of_population(self, value: int) -> bool:
        """What comes from attention where there are windows, and what rests on a moment that the population gives: that
        is a mean over masks, where formulas given masks need it given them."""
        if has_windows(self.program):
            return value in self._attended
        quantity = Profile._quantity(self, value, True)
        return bool(masks_of(self.program)) and getattr(quantity, "tier", "") == "population"

    def exactness(self, value: int) -> str:
        """Exactness as of a profile; beside a batch norm moments of the population stand for those given masks."""
        return "closure" if self.from_population(value) else super().exactness(value)

    def _quantity(self, value: int, second: bool) -> Quantity | None:
        return None if second and self.of_population(value) else super()._quantity(value, second)

    @cached_property
    def _attended(self) -> set[int]:
        """Given its masks a sample's tokens are exchangeable: without windows attention has its laws."""
        return super()._attended if has_windows(self.program) else set()
