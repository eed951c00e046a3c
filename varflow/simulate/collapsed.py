"""Which contractions are collapsed: their result drawn in the law that the matrix gives it, without the matrix.

What a matrix of i.i.d. Gaussian entries does to the columns of a contraction (samples, positions, patches of a
convolution) is Gaussian given the columns: `kernels_collapse` draws it for the cost of the columns' inner products.
What a Haar matrix does to them is an isometry of their span, uniform among those: `kernels_haar`.
A weight is collapsed in all of its uses or in none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from varflow.errors import InputError, UnsupportedError
from varflow.program import Contract, Program, Weight
from varflow.simulate.keeping import KEPT_BYTES, OFTEN, kept, may_be_kept, size_of
from varflow.simulate.sizes import number, whole

METHODS = ("auto", "sampled", "collapsed")

NORMAL, PRODUCT, INNER, COMBINED, SOLVED, MOVED, CALL, TRIANGULAR = 1.1, 0.03, 0.025, 0.025, 0.3, 1.5, 200, 3
"""Nanoseconds of one core: a normal number; a weight times an entry of one column; a term of an inner product; a term
of a linear combination; a step of a small solve; an entry of a patch; a contraction of no size; one of the N M^2 steps
of a QR factorization."""
READ, FAR, NEAR_BYTES = 0.08, 0.15, 2**20
"""Nanoseconds to read a kept weight where the matrix fits into a near cache, and where it does not."""

MOST_BYTES = 2**30
"""Bytes that inner products of one weight's columns may take in a draw."""
SPARE_DIMENSIONS = 4
"""Dimensions that columns of a Haar matrix leave free. In float32 the last ones are known badly: the largest error of
an inner product over thousands of draws is 2e-5 with four left, 1e-4 with two, 1e-2 with one, 0.2 with none."""


@dataclass(frozen=True)
class Use:
    """One contraction: W x (``transpose``: W^T x) for ``columns`` vectors x of length ``inner``: samples, positions, or
    the patches of a window with their taps. ``groups`` blocks of channels have a matrix each."""

    value: int
    transpose: bool
    columns: int
    inner: int
    outer: int
    groups: int = 1
    windowed: bool = False


@dataclass(frozen=True)
class Choice:
    """How one weight is simulated. ``reason`` says why it cannot be collapsed (empty where it can); costs are
    estimated nanoseconds of one core per draw. ``kept``: sampled once for all uses, not anew in each."""

    weight: str
    uses: tuple[Use, ...]
    reason: str
    sampled: float
    collapsed: float
    collapse: bool
    kept: bool = False

    @property
    def columns(self) -> tuple[int, int]:
        """Columns of W x, and of W^T x, over all uses."""
        right, left = (sum(u.columns for u in self.uses if u.transpose is t) for t in (False, True))
        return right, left

    def line(self) -> str:
        """The choice in a line of text."""
        right, left = self.columns
        costs = f"sampled {_time(self.sampled)}, collapsed {_time(self.collapsed)}"
        what = "collapsed" if self.collapse else "sampled once" if self.kept else "sampled"
        first = self.uses[0]
        sides = (first.inner, first.outer) if first.transpose else (first.outer, first.inner)
        size = " x ".join(map(str, sides)) + (f", {first.groups} groups" if first.groups > 1 else "")
        why = f"cannot be collapsed: {self.reason}" if self.reason else costs
        return f"{self.weight} ({size}, {len(self.uses)} uses, columns {right} + {left}): {what}; {why}"


@dataclass(frozen=True)
class Choices:
    """The choices for all weights of a program; ``samples`` inputs per draw."""

    samples: int
    by_weight: dict[str, Choice] = field(default_factory=dict)

    def collapsed(self, weight: str) -> bool:
        """Whether a weight is collapsed."""
        return self.by_weight[weight].collapse

    def text(self) -> str:
        """The plan in words: a line for each weight, and the time of a draw's contractions."""
        total = sum(c.collapsed if c.collapse else c.sampled for c in self.by_weight.values())
        brute = sum(c.sampled for c in self.by_weight.values())
        head = f"Plan for {self.samples} samples a draw (estimated times of one core per draw):"
        foot = f"contractions: {_time(total)} a draw, {_time(brute)} with every weight sampled"
        return "\n".join([head, *(f"  {c.line()}" for c in self.by_weight.values()), foot])


    def to_dict(self) -> dict[str, Any]:
        """For JSON: estimated seconds of one core per draw."""
        weights = {
            name: {
                "method": "collapsed" if c.collapse else "sampled", "kept": c.kept, "uses": len(c.uses),
                "columns": list(c.columns),
                "sampled": c.sampled / 1e9, "collapsed": None if c.reason else c.collapsed / 1e9,
                "reason": c.reason or None,
            }
            for name, c in self.by_weight.items()
        }  # fmt: skip
        return {"samples": self.samples, "weights": weights}


def _time(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds / 1e3:.3g} us"


def refusal(w: Weight) -> str:
    """Why products with a weight cannot be drawn without it; empty where they can."""
    if w.distribution == "orthogonal" and (w.taps, w.groups) != (1, 1):
        return "it is orthogonal, with several taps or groups"
    if w.distribution not in ("normal", "orthogonal"):
        return f"its distribution is {w.distribution}: only products with Gaussian or Haar matrices have a known law"
    if number(w.keep, f"keep of {w.name!r}") < 1:
        return "a sparsity mask (keep < 1) makes its entries non-Gaussian"
    return ""


def uses_of(program: Program, samples: int) -> dict[str, list[Use]]:
    """Every contraction of the program by weight, in order."""
    found: dict[str, list[Use]] = {}
    for value, step in enumerate(program):
        if isinstance(step.primitive, Contract):
            p, w = step.primitive, program.weights[step.primitive.weight]
            rows = step.shape if not p.transpose else program.shape(step.args[0])
            sizes = (rows.places, w.rows, w.columns, w.groups)
            places, high, wide, groups = (whole(s, f"the size of {step.node!r}") for s in sizes)
            inner, outer = (high // groups, w.taps * wide) if p.transpose else (w.taps * wide, high // groups)
            use = Use(value, p.transpose, samples * places, inner, outer, groups, p.window is not None)
            found.setdefault(p.weight, []).append(use)
    return found


def bytes_needed(uses: Sequence[Use], haar: bool) -> int:
    """Bytes that a draw keeps of a collapsed weight, and its scratch: inner products and factors, columns of a Haar
    matrix."""
    right, left = (sum(u.columns for u in uses if u.transpose is t) for t in (False, True))
    scratch = 20 * (right + left) * max(u.columns for u in uses)
    if haar:
        return 8 * (right + left) * (right + left + max(uses[0].inner, uses[0].outer)) + scratch
    return 8 * uses[0].groups * (right**2 + left**2 + right * left) + scratch


def obstacle(uses: Sequence[Use], haar: bool) -> str:
    """Why products of a weight whose law is known are too many to be drawn without it; empty where they are not."""
    columns, wanted = sum(u.columns for u in uses), bytes_needed(uses, haar)
    if wanted > MOST_BYTES:
        size = f"{wanted / 2**30:.3g} GiB a draw, more than {MOST_BYTES / 2**30:.3g}"
        return f"inner products of its {columns} columns take {size}"
    dimensions = max(uses[0].inner, uses[0].outer)
    if haar and columns > dimensions - SPARE_DIMENSIONS:
        return f"{columns} columns leave fewer than {SPARE_DIMENSIONS} of {dimensions} dimensions, too few for float32"
    return ""


def haar_costs(uses: Sequence[Use]) -> tuple[float, float]:
    """Nanoseconds a draw with an orthogonal weight that is drawn, once, and with one that is not."""
    first = uses[0]
    tall, thin = max(first.inner, first.outer), min(first.inner, first.outer)
    drawn, collapsed, known = (NORMAL + TRIANGULAR * thin) * tall * thin, 0.0, 0
    for u in uses:
        terms = u.columns * (known + u.columns / 2)
        drawn += CALL + PRODUCT * u.inner * u.outer * u.columns
        moved = MOVED * u.columns * (2 * tall + u.inner)
        collapsed += CALL + NORMAL * u.columns * tall + (INNER + COMBINED) * terms * 2 * tall + moved
        known += u.columns
        collapsed += SOLVED * u.columns * known**2
    return drawn, collapsed


def sampled_cost(uses: Sequence[Use]) -> float:
    """Nanoseconds a draw: every weight is generated in every use."""
    return sum(CALL + u.groups * u.inner * u.outer * (NORMAL + PRODUCT * u.columns) for u in uses)


def kept_cost(uses: Sequence[Use]) -> float:
    """Nanoseconds a draw: every weight is generated once, and read in every use."""
    entries = uses[0].inner * uses[0].outer
    read = READ if size_of(uses[0]) <= NEAR_BYTES else FAR
    return NORMAL * entries + sum(CALL + entries * max(read, PRODUCT * u.columns) for u in uses)


def collapsed_cost(uses: Sequence[Use]) -> float:
    """Nanoseconds a draw: fresh normals, inner products with all that was revealed, combinations, solves."""
    return sum(_collapsed_costs(uses))


def _collapsed_costs(uses: Sequence[Use]) -> Iterator[float]:
    before = {False: 0, True: 0}
    for u in uses:
        own, across, b = before[u.transpose], before[not u.transpose], u.columns
        inner = b * (own + across + b) * u.inner + b * across * u.outer
        combined = b * (own + across + b / 2) * u.outer
        solved = b * (own + b) ** 2 / 2 + b * (own + across) ** 2
        moved = MOVED * b * (u.outer if u.transpose else u.inner) if u.windowed else 0.0
        yield CALL + u.groups * (NORMAL * b * u.outer + INNER * inner + COMBINED * combined + SOLVED * solved + moved)
        before[u.transpose] += b


def check_method(method: str) -> None:
    """InputError for a method that does not exist."""
    if method not in METHODS:
        raise InputError(f"method {method!r} is not known", instead=", ".join(map(repr, METHODS)))


def choose(program: Program, samples: int, method: str) -> Choices:
    """How every weight of the program is simulated; independent of what is measured.

    Raises InputError for an unknown method, UnsupportedError where ``method`` is "collapsed" and a weight cannot be.
    """
    check_method(method)
    found: dict[str, Choice] = {}
    for name, uses in uses_of(program, samples).items():
        haar = program.weights[name].distribution == "orthogonal"
        reason = refusal(program.weights[name]) or obstacle(uses, haar)
        if reason and method == "collapsed":
            raise UnsupportedError(
                f"weight {name!r} cannot be collapsed", name, reason, 'method="auto" or "sampled"'
            )
        often = len(uses) >= OFTEN and size_of(uses[0]) <= KEPT_BYTES and may_be_kept(program, uses, name)
        drawn = kept_cost(uses) if often else sampled_cost(uses)
        costs = haar_costs(uses) if haar else (drawn, collapsed_cost(uses))
        wanted = method == "collapsed" or (method == "auto" and costs[1] < costs[0])
        found[name] = Choice(name, tuple(uses), reason, *costs, wanted and not reason)
    return Choices(samples, kept(program, samples, found))
