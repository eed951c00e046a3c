"""Random variables of the wide limit: one coordinate of each channel block is an expression of these.

A *variable* stands for one coordinate of a block; an *instance* says which coordinate (``moves``: how the
block was shifted or permuted since) and at which view (``there``: the other of two places that are compared).
Two instances of a variable with equal moves are the same coordinate, with different moves independent ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import sympy as sp

from varflow.laws.moments import Moment, Quantity
from varflow.program import Mix, Standardize
from varflow.symbols import arg
from varflow.window import Window

ITSELF = arg(0)
Move: TypeAlias = tuple[str, object]


@dataclass(frozen=True)
class View:
    """Which second place two values are compared at: another position, another sample, both, or the same."""

    position: bool = False
    sample: bool = False

    @property
    def same(self) -> bool:
        """Whether both are at one place."""
        return not (self.position or self.sample)


SAME, POSITION, SAMPLE, APART = View(), View(True), View(False, True), View(True, True)


def view_of(position: bool, sample: bool) -> View:
    """The one view of this kind."""
    return (APART if position else SAMPLE) if sample else POSITION if position else SAME


@dataclass(eq=False)
class Variable:
    """A random variable; ``born`` orders them, ``node`` names where it comes from, ``value`` the program
    value whose only block it is (None: one of several)."""

    born: int
    node: str
    backward: bool = False
    value: int | None = None

    gaussian = False
    """Whether it is one of a jointly Gaussian family (zero mean)."""


@dataclass(frozen=True)
class Instance:
    """A coordinate of a variable."""

    variable: Variable
    moves: tuple[Move, ...] = ()
    there: bool = False

    def moved(self, move: Move) -> Instance:
        """The same after one more move; a move and its inverse cancel."""
        return Instance(self.variable, _append(self.moves, move), self.there)

    @property
    def dealt(self) -> bool:
        """Whether its places were made of channels: at every place it is another coordinate."""
        kinds = [kind for kind, _ in self.moves if kind in ("flatten", "unflatten")]
        return bool(kinds) and kinds[-1] == "unflatten"

    def at(self, there: bool) -> Instance:
        """The same coordinate at the other place, or at this one."""
        return self if self.there is there else Instance(self.variable, self.moves, there)


def _append(moves: tuple[Move, ...], move: Move) -> tuple[Move, ...]:
    kind, what = move
    if kind == "shift":
        if moves and moves[-1][0] == "shift":
            what = sp.expand(moves[-1][1] + what)  # type: ignore[operator]
            moves = moves[:-1]
        return moves if what == 0 else (*moves, ("shift", what))
    if moves and moves[-1] == (_INVERSE[kind], what):
        return moves[:-1]
    return (*moves, move)


ANYWHERE: Move = ("anywhere", 0)
"""The move of a value whose coordinates' origin is not known: they may be any of those they come from."""
_INVERSE = {"anywhere": "", "copied": "", "permute": "unpermute", "unpermute": "permute", "flatten": "unflatten",
            "unflatten": "flatten", "deal": "gather", "gather": "deal"}


@dataclass(frozen=True)
class Block:
    """Consecutive channels with one law."""

    size: sp.Expr
    law: Instance | None
    """None: zero."""


Blocks: TypeAlias = tuple[Block, ...]


@dataclass(eq=False)
class Noise(Variable):
    """A Gaussian source: an input's centred entries, a bias or a cotangent. Covariance with itself: ``variance``
    at the same place, times ``position`` and ``sample`` correlations elsewhere. ``placed``: it has positions."""

    variance: sp.Expr = sp.S.One
    position: sp.Expr = sp.S.Zero
    sample: sp.Expr = sp.S.Zero
    kind: str = "input"
    placed: bool = True
    gaussian = True


@dataclass(eq=False)
class Product(Variable):
    """The Gaussian part of W h or W^T h: a new Gaussian, covariant with other uses of W in this orientation.

    ``factor`` is the second moment of an entry, ``normal`` whether entries are Gaussian, ``alone`` whether it is
    the only use of W in this orientation, ``exactness`` that of its covariances, and ``shrink`` what a Haar
    matrix takes off its variance for an earlier opposite use; ``tie`` is what a gradient that knows its weights adds to
    it. ``centred``: the rows of W sum to zero, so that
    the operand's mean over channels is lost. ``note``: what its law assumes.
    """

    weight: str = ""
    transpose: bool = False
    operand: Blocks = ()
    factor: sp.Expr = sp.S.One
    normal: bool = True
    alone: bool = True
    exactness: str = "exact"
    shrink: Moment | None = None
    tie: Moment | None = None
    window: Window | None = None
    centred: bool = False
    note: str = ""
    gaussian = True


@dataclass(eq=False)
class GaussianSum(Variable):
    """A linear combination of Gaussian variables at one coordinate; Gaussian itself."""

    terms: tuple[tuple[Quantity, Instance], ...] = ()
    gaussian = True


@dataclass(eq=False)
class SampleMean(Variable):
    """The mean of a variable over a batch (None: a large one) and over its ``count`` positions; with ``channels`` over
    as many independent channels of one sample instead. Gaussian if the variable is."""

    of: Instance | None = None
    count: sp.Expr = sp.S.One
    batch: sp.Expr | None = None
    channels: sp.Expr | None = None

    @property
    def gaussian(self) -> bool:  # type: ignore[override]
        """Whether what is averaged is Gaussian."""
        return self.of is not None and self.of.variable.gaussian


@dataclass(eq=False)
class PositionAverage(Variable):
    """The mean of a value over all ``count`` positions of its sample (Gaussian if the value is)."""

    of: Instance | None = None
    count: sp.Expr = sp.S.One

    @property
    def gaussian(self) -> bool:  # type: ignore[override]
        """Whether what is averaged is Gaussian."""
        return self.of is not None and self.of.variable.gaussian


@dataclass(eq=False)
class Normed(Variable):
    """A Gaussian value over the random standard deviation of its entries, less their mean: those at all ``places`` of
    ``members`` samples (None: many), or ``channels`` of one sample. In profiles only; taken as Gaussian."""

    of: Instance | None = None
    places: int = 1
    members: sp.Expr | None = None
    channels: bool = False
    eps: sp.Expr = sp.S.Zero
    gaussian = True


@dataclass(eq=False)
class Depthwise(Variable):
    """A depthwise convolution: symmetric, a scale mixture, a sum of ``terms`` products of a weight and a value ``of``.

    ``moments`` is a Gaussian of its second moments, ``twin`` the same one labelled as what stands in for its law;
    ``distribution`` that of its weights, each of variance ``variance``. The weights are the same at all places.
    """

    twin: Instance | None = None
    moments: Instance | None = None
    of: Instance | None = None
    terms: sp.Expr = sp.S.One
    variance: sp.Expr = sp.S.One
    distribution: str = "normal"

    @property
    def weight(self) -> str:
        """The name of its weights."""
        return str(getattr(self.moments and self.moments.variable, "weight", ""))

    @property
    def window(self) -> Window:
        """What an output place reads (with ``transpose``, what reads it)."""
        product = self.moments and self.moments.variable
        assert isinstance(product, Product) and product.window is not None
        return product.window

    @property
    def transpose(self) -> bool:
        """Whether it is the transpose of a depthwise convolution."""
        return self.moments is not None and bool(getattr(self.moments.variable, "transpose", False))


@dataclass(eq=False)
class Standardized(Variable):
    """A depthwise convolution ``of`` less its mean, over its standard deviation, both over a large batch and its
    positions: functions of the channel's weights. ``scale`` are the covariances of what two taps read (taps x taps),
    ``mean`` the mean of what is read. In profiles only."""

    of: Instance | None = None
    scale: Quantity = sp.S.One
    mean: Quantity = sp.S.Zero
    eps: sp.Expr = sp.S.Zero


@dataclass(eq=False)
class Inverse(Variable):
    """One over the standard deviation of a depthwise convolution, as in :class:`Standardized`: the same at all places
    of a channel."""

    of: Instance | None = None
    scale: Quantity = sp.S.One
    mean: Quantity = sp.S.Zero
    eps: sp.Expr = sp.S.Zero


@dataclass(eq=False)
class Mixed(Variable):
    """A value's positions mixed with fixed numbers (Gaussian if the value is)."""

    of: Instance | None = None
    mix: Mix | None = None

    @property
    def gaussian(self) -> bool:  # type: ignore[override]
        """Whether what is mixed is Gaussian."""
        return self.of is not None and self.of.variable.gaussian


@dataclass(eq=False)
class Largest(Variable):
    """The largest of a Gaussian value ``entry`` over a ``window`` of positions. Far from borders
    E[f(largest)] = E[f(``of``) ``weight``], ``of`` the entry itself and ``weight`` how much more often an entry of this
    size wins; ``below`` is the probability that another one is smaller, an expression of ``weight_args`` and
    coefficients. In profiles ``of`` is the mean of the window, which says what it depends on. With a ``score``, a
    function of arg(0), it is the entry of the largest score instead (``below`` is not used)."""

    of: Instance | None = None
    entry: Instance | None = None
    window: Window | None = None
    below: sp.Expr = sp.S.One
    weight_args: tuple[Instance, ...] = ()
    coefficients: tuple[Quantity, ...] = ()
    score: sp.Expr = ITSELF

    @property
    def ranked(self) -> bool:
        """Whether the largest is not that of the entries themselves."""
        return bool(self.score != ITSELF)

    @property
    def weight(self) -> sp.Expr:
        """The density of the largest over that of an entry."""
        n = self.window.taps if self.window else 1
        return n * self.below ** (n - 1)


@dataclass(eq=False)
class Win(Variable):
    """What an entry gets from the windows it wins: the sum over windows of ``of`` times ``slope``, a function of the
    largest entry arg(0) and of ``coefficients``; ``top`` is the :class:`Largest`."""

    of: Instance | None = None
    top: Instance | None = None
    slope: sp.Expr = sp.S.One
    coefficients: tuple[Quantity, ...] = ()

    @property
    def largest(self) -> Largest:
        """The maximum that is won."""
        assert self.top is not None and isinstance(self.top.variable, Largest)
        return self.top.variable

    @property
    def entry(self) -> Instance:
        """What is compared."""
        assert self.largest.entry is not None
        return self.largest.entry

    @property
    def window(self) -> Window:
        """The windows."""
        assert self.largest.window is not None
        return self.largest.window


@dataclass(eq=False)
class Highest(Largest):
    """The largest ``score`` over a ``window``, a function of jointly Gaussian ``entries`` at a place, arg(0), arg(1),
    ..., and of ``coefficients``. ``of`` is a sum of the entries' means over the window, which says what it depends on.
    In profiles only."""

    entries: tuple[Instance, ...] = ()

    @property
    def ranked(self) -> bool:
        """It is no Gaussian entry."""
        return True


@dataclass(eq=False)
class Prize(Win):
    """What a place gets from the windows it wins, ``top`` the :class:`Highest`; ``slope`` is a function of the largest
    score arg(0), of the entries where it is, arg(1), arg(2), ..., and of ``coefficients``."""

    @property
    def entry(self) -> Instance:
        """What it depends on."""
        assert self.largest.of is not None
        return self.largest.of

    @property
    def entries(self) -> tuple[Instance, ...]:
        """What the score is a function of."""
        assert isinstance(self.largest, Highest)
        return self.largest.entries


@dataclass(eq=False)
class Logit(Variable):
    """The inner product of a token's ``queries`` with another token's ``keys`` over the ``width`` channels of a head:
    a sum of many terms, Gaussian. A channel is a head and a key token; ``there`` is another query token."""

    queries: Instance | None = None
    keys: Instance | None = None
    width: sp.Expr = sp.S.One
    gaussian = True
    normal = False


@dataclass(eq=False)
class Attended(Variable):
    """The softmax over ``tokens`` of ``scale`` times a :class:`Logit`; with a ``slope``, the gradient of its weights,
    the softmax's derivative applied to it. Channels as those of the logits."""

    logits: Instance | None = None
    scale: Quantity = sp.S.One
    tokens: sp.Expr = sp.S.One
    slope: Instance | None = None


@dataclass(eq=False)
class Blended(Variable):
    """``factor`` times a value ``of`` (at ``tokens`` tokens) mixed by ``weights`` for each of ``places`` query tokens;
    ``transpose``: a value of the query tokens brought to the tokens. A mixture of Gaussians, known by two moments."""

    weights: Instance | None = None
    factor: Quantity = sp.S.One
    of: Instance | None = None
    transpose: bool = False
    places: sp.Expr = sp.S.One


@dataclass(eq=False)
class MaskEntry(Variable):
    """Zero or one; the same for all positions of a sample if ``per_sample``."""

    keep: sp.Expr = sp.S.One
    per_sample: bool = False
    name: str = ""
    placed: bool = True


@dataclass(eq=False)
class BlockChoice(Variable):
    """Which block a permuted coordinate comes from: one of ``count`` indicators; ``probabilities`` by size."""

    group: object = None
    index: int = 0
    probabilities: tuple[sp.Expr, ...] = ()


@dataclass(eq=False)
class SphereEntry(Variable):
    """A Gaussian value after batch normalization over ``batch`` samples: a coordinate on a sphere."""

    of: Instance | None = None
    batch: sp.Expr = sp.S.One


@dataclass(eq=False)
class Composite(Variable):
    """An expression of instances (``arg(0), arg(1), ...``) with coefficients (``coefficient(i)``)."""

    expr: sp.Expr = sp.S.Zero
    args: tuple[Instance, ...] = ()
    coefficients: tuple[Quantity, ...] = ()


@dataclass(eq=False)
class Opaque(Variable):
    """A variable known by its mean and second moment (and covariance between samples) only.

    ``roots`` are what it depends on; ``linear_in`` the backward value it is linear in. ``mixed``: on all tokens.
    """

    mean: Quantity = sp.S.Zero
    second: Quantity = sp.S.One
    sample: Quantity = sp.S.Zero
    position: Quantity = sp.S.Zero
    roots: tuple[Instance, ...] = ()
    mixed: bool = False
    rule: Standardize | None = None
