"""Streaming statistics over draws, in float64, that merge to the same bits however the draws were cut.

A draw brings one row: for every measured value its mean, second and fourth moment over channels, positions and
samples. Rows are reduced in blocks of 64 draws, aligned at multiples of 64; neighbouring blocks join in pairs,
pairs of pairs and so on, along a binary tree that depends on the draws' numbers alone. So memory grows with the
logarithm of the draws, and any cut into chunks, threads or separate runs gives the same result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from varflow.errors import InputError

Float = NDArray[np.float64]
Rows = NDArray[np.float64]
"""(draws, values, 3): mean, second and fourth moment of every value in every draw."""

BLOCK = 64


@dataclass(frozen=True, eq=False)
class Sums:
    """Count, mean and sums of the second to fourth powers of deviations of one statistic, for every value."""

    count: Float
    mean: Float
    squares: Float
    cubes: Float
    fourths: Float

    @staticmethod
    def of(x: Float, kept: NDArray[np.bool_] | None = None) -> Sums:
        """Of (values, draws), leaving out entries that are not ``kept``."""
        kept = np.ones(x.shape, bool) if kept is None else kept
        count = kept.sum(axis=1).astype(np.float64)
        mean = np.where(kept, x, 0.0).sum(axis=1) / np.maximum(count, 1.0)
        off = np.where(kept, x - mean[:, None], 0.0)
        squares = off * off
        powers = (squares, squares * off, squares * squares)
        return Sums(count, mean, *(p.sum(axis=1) for p in powers))

    def joined(self, other: Sums) -> Sums:
        """Both together (Pebay 2008, equations 2.1, 3.2 and the fourth-order case of 2.1)."""
        count = self.count + other.count
        safe = np.maximum(count, 1.0)
        a, b, step = self.count / safe, other.count / safe, other.mean - self.mean
        shared = self.count * b * step * step
        return Sums(
            count,
            self.mean + b * step,
            self.squares + other.squares + shared,
            self.cubes
            + other.cubes
            + shared * step * (a - b)
            + 3 * step * (a * other.squares - b * self.squares),
            self.fourths
            + other.fourths
            + shared * step * step * (a * a - a * b + b * b)
            + 6 * step * step * (a * a * other.squares + b * b * self.squares)
            + 4 * step * (a * other.cubes - b * self.cubes),
        )

    @cached_property
    def third_cumulant(self) -> Float:
        """Unbiased third cumulant, Fisher's k-statistic; nan for fewer than three."""
        n = self.count
        scale = n / np.maximum((n - 1) * (n - 2), 1.0)
        return np.where(n > 2, scale * self.cubes, np.nan)

    @cached_property
    def fourth_cumulant(self) -> Float:
        """Unbiased fourth cumulant, Fisher's k-statistic; nan for fewer than four."""
        n = self.count
        scale = n / np.maximum((n - 1) * (n - 2) * (n - 3), 1.0)
        found = scale * ((n + 1) * self.fourths - 3 * (n - 1) / np.maximum(n, 1.0) * self.squares**2)
        return np.where(n > 3, found, np.nan)

    @cached_property
    def variance(self) -> Float:
        """Unbiased variance; nan for fewer than two."""
        return np.where(self.count > 1, self.squares / np.maximum(self.count - 1, 1.0), np.nan)


@dataclass(frozen=True, eq=False)
class Part:
    """Statistics of consecutive draws."""

    first: Sums
    second: Sums
    fourth: Sums
    logs: Sums
    largest: Float

    @staticmethod
    def of(rows: Rows) -> Part:
        """Of rows in order of their draws."""
        m, q, f = np.ascontiguousarray(rows.transpose(2, 1, 0))
        with np.errstate(all="ignore"):
            logs = Sums.of(np.log(q), q > 0)
            return Part(Sums.of(m), Sums.of(q), Sums.of(f), logs, q.max(axis=1))

    def joined(self, other: Part) -> Part:
        """These draws and later ones."""
        with np.errstate(all="ignore"):
            return Part(
                self.first.joined(other.first),
                self.second.joined(other.second),
                self.fourth.joined(other.fourth),
                self.logs.joined(other.logs),
                np.maximum(self.largest, other.largest),
            )


    # -- bytes ---------------------------------------------------------------------------------------

    def _arrays(self) -> Iterator[Float]:
        for sums in (self.first, self.second, self.fourth, self.logs):
            yield from (sums.count, sums.mean, sums.squares, sums.cubes, sums.fourths)
        yield self.largest

    def pack(self) -> bytes:
        """All numbers as little-endian bytes."""
        return np.stack(list(self._arrays())).astype("<f8").tobytes()

    @staticmethod
    def unpack(data: bytes, values: int) -> Part:
        """What `pack` wrote of ``values`` values. Raises InputError for another number of bytes."""
        if len(data) != 8 * NUMBERS * values:
            raise InputError(f"{len(data)} bytes are no statistics of {values} values")
        arrays = list(np.frombuffer(data, "<f8").astype(np.float64).reshape(NUMBERS, values))
        first, second, fourth, logs = (Sums(*arrays[k : k + 5]) for k in (0, 5, 10, 15))
        return Part(first, second, fourth, logs, arrays[20])


NUMBERS = 21
"""Numbers of one value in a `Part`."""


@dataclass(frozen=True)
class Summary:
    """One value over all draws.

    ``mean``, ``second_moment`` and ``fourth_moment`` estimate E[x], E[x^2] and E[x^4] of an entry; ``*_variance``
    is the variance between draws of the draw's own average, ``skewness`` and ``log_variance`` those of the
    draw's second moment and of its logarithm (draws where it is zero, ``zeros`` of them, left out), ``log_third``
    and ``log_fourth`` the logarithm's third and fourth cumulants; ``largest_share`` is the share of one draw in the
    sum of second moments.
    """

    draws: int
    mean: float
    mean_variance: float
    second_moment: float
    second_moment_variance: float
    fourth_moment: float
    fourth_moment_variance: float
    skewness: float
    log_mean: float
    log_variance: float
    largest_share: float
    zeros: int
    log_third: float = 0.0
    log_fourth: float = 0.0

    @property
    def standard_error(self) -> float:
        """Standard error of the second moment, from the variation between draws."""
        return math.sqrt(self.second_moment_variance / self.draws)


@dataclass(eq=False)
class Statistics:
    """Statistics of one simulation: ``forward`` and ``backward`` by node, ``weights`` (gradients) by name.

    ``columns`` says which column of the rows a name reads; several names may read one.
    """

    columns: Mapping[tuple[str, str], int]
    parts: dict[tuple[int, int], Part] = field(default_factory=dict)
    pending: dict[int, dict[int, Float]] = field(default_factory=dict)

    # -- adding --------------------------------------------------------------------------------------

    def add(self, rows: Rows, first_draw: int) -> None:
        """Rows of consecutive draws from number ``first_draw``. Raises InputError for draws already counted."""
        start = 0
        while start < len(rows):
            block, offset = divmod(first_draw + start, BLOCK)
            count = min(BLOCK - offset, len(rows) - start)
            added = rows[start : start + count].copy()
            self._add_to_block(block, dict(enumerate(added, offset)))
            start += count

    def _add_to_block(self, block: int, rows: Mapping[int, Float]) -> None:
        """Rows of one block by their places in it."""
        waiting = self.pending.get(block, {})
        counted = any((level, block >> level) in self.parts for level in range(64))
        if counted or not waiting.keys().isdisjoint(rows):
            raise InputError(f"draw {block * BLOCK + min(rows)} is counted already, or a later one of its block")
        waiting = {**waiting, **rows}
        if len(waiting) < BLOCK:
            self.pending[block] = waiting
        else:
            self.pending.pop(block, None)
            self._join(0, block, _reduced(waiting))

    def _join(self, level: int, index: int, part: Part) -> None:
        while (level, index ^ 1) in self.parts:
            sibling = self.parts.pop((level, index ^ 1))
            part = sibling.joined(part) if index & 1 else part.joined(sibling)
            level, index = level + 1, index >> 1
        self.parts[level, index] = part

    def merge(self, other: Statistics) -> None:
        """Take in the statistics of other draws; the result has the bits of one run over all of them."""
        if self.columns != other.columns:
            raise InputError("statistics of different values cannot be merged")
        for (level, index), part in other.parts.items():
            if any(b >> level == index for b in self.pending) or self._covers(level, index):
                raise InputError(f"draw {(index << level) * BLOCK} is counted already")
            self._join(level, index, part)
        for block, rows in other.pending.items():
            self._add_to_block(block, rows)

    def _covers(self, level: int, index: int) -> bool:
        return any(
            i >> max(level - k, 0) == index >> max(k - level, 0) for k, i in self.parts
        )

    # -- pieces --------------------------------------------------------------------------------------

    @property
    def value_count(self) -> int:
        """Number of distinct columns."""
        return len(set(self.columns.values()))

    def pieces(self) -> Iterator[tuple[int, int, bytes]]:
        """What has been counted as (first draw, number of draws, bytes): aligned powers of two of whole blocks
        reduced, draws of unfinished blocks row by row."""
        for (level, index), part in sorted(self.parts.items()):
            yield (index << level) * BLOCK, BLOCK << level, part.pack()
        for block, rows in sorted(self.pending.items()):
            starts = [k for k in sorted(rows) if k - 1 not in rows]
            for start in starts:
                stop = next(k for k in range(start, BLOCK + 1) if k not in rows)
                data = np.stack([rows[k] for k in range(start, stop)]).astype("<f8").tobytes()
                yield block * BLOCK + start, stop - start, data

    def add_piece(self, first: int, count: int, data: bytes) -> None:
        """Take in what `pieces` gave. Raises InputError for bytes that cannot be, and draws already counted."""
        values = self.value_count
        if count < BLOCK:
            if len(data) != 24 * count * values or first // BLOCK != (first + count - 1) // BLOCK:
                raise InputError(f"{len(data)} bytes are not {count} draws of {values} values")
            self.add(np.frombuffer(data, "<f8").astype(np.float64).reshape(count, values, 3), first)
            return
        level = (count // BLOCK).bit_length() - 1
        if count != BLOCK << level or first % count:
            raise InputError(f"{count} draws from number {first} are no piece")
        other = Statistics(self.columns)
        other.parts[level, first // count] = Part.unpack(data, values)
        self.merge(other)

    # -- reading -------------------------------------------------------------------------------------

    @property
    def draws(self) -> int:
        """Number of draws counted."""
        return sum(BLOCK << level for level, _ in self.parts) + sum(map(len, self.pending.values()))

    def _ordered(self) -> list[Part]:
        found = [(index << level, part) for (level, index), part in self.parts.items()]
        found += [(block, _reduced(rows)) for block, rows in self.pending.items() if rows]
        return [part for _, part in sorted(found, key=lambda entry: entry[0])]

    def copy(self) -> Statistics:
        """What has been counted until now."""
        return Statistics(self.columns, dict(self.parts), dict(self.pending))

    def total(self) -> Part:
        """All draws together. Raises InputError where there is none."""
        parts = self._ordered()
        if not parts:
            raise InputError("no draw has been made")
        result = parts[0]
        for part in parts[1:]:
            result = result.joined(part)
        return result

    def summaries(self) -> dict[tuple[str, str], Summary]:
        """Every measured value: {("forward" | "backward" | "weight", name): summary}."""
        part, draws = self.total(), self.draws
        made: dict[int, Summary] = {}
        for column in set(self.columns.values()):
            made[column] = _summary(part, column, draws)
        return {key: made[column] for key, column in self.columns.items()}

    def _direction(self, direction: str) -> dict[str, Summary]:
        return {name: s for (d, name), s in self.summaries().items() if d == direction}

    @property
    def forward(self) -> dict[str, Summary]:
        """Nodes' values."""
        return self._direction("forward")

    @property
    def backward(self) -> dict[str, Summary]:
        """Gradients with respect to nodes' values."""
        return self._direction("backward")

    @property
    def weights(self) -> dict[str, Summary]:
        """Gradients with respect to weights, summed over samples and places (second moments only)."""
        return self._direction("weight")

    def digest(self) -> str:
        """A hash of the bits of all draws together, and of how many they are and what they measure."""
        found = hashlib.blake2b(repr((self.draws, sorted(self.columns.items()))).encode(), digest_size=32)
        found.update(self.total().pack())
        return found.hexdigest()

    def __eq__(self, other: object) -> bool:
        """The same values and draws, bit by bit."""
        if not isinstance(other, Statistics):
            return NotImplemented
        same = self.columns == other.columns and self.draws == other.draws
        return same and (not self.draws or self.total().pack() == other.total().pack())

    __hash__ = None  # type: ignore[assignment]


def _reduced(rows: Mapping[int, Float]) -> Part:
    return Part.of(np.stack([rows[offset] for offset in sorted(rows)]))


def _summary(part: Part, c: int, draws: int) -> Summary:
    q, positive = part.second, float(part.logs.count[c])
    with np.errstate(all="ignore"):
        spread = float(q.squares[c]) / draws
        skewness = float(q.cubes[c]) / draws / spread**1.5 if spread > 0 else 0.0
        total = float(q.mean[c]) * draws
    return Summary(
        draws=draws,
        mean=float(part.first.mean[c]),
        mean_variance=float(part.first.variance[c]),
        second_moment=float(q.mean[c]),
        second_moment_variance=float(q.variance[c]),
        fourth_moment=float(part.fourth.mean[c]),
        fourth_moment_variance=float(part.fourth.variance[c]),
        skewness=skewness,
        log_mean=float(part.logs.mean[c]) if positive else -math.inf,
        log_variance=float(part.logs.variance[c]) if positive > 1 else 0.0,
        largest_share=float(part.largest[c]) / total if total > 0 else 0.0,
        zeros=draws - int(positive),
        log_third=float(part.logs.third_cumulant[c]) if positive > 2 else 0.0,
        log_fourth=float(part.logs.fourth_cumulant[c]) if positive > 3 else 0.0,
    )
