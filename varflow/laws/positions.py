"""What mixing positions does to moments: to those at one position, and to those between two.

A moment at one position is an array over positions (P, 1), a moment between two positions an array (P, P')
whose diagonal is not used: there the two positions are one. In the limit of a large image every position sees
the full window and two positions are far apart; then both are numbers and mixing is a linear form of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.program import Mix
from varflow.window import Uneven, Window

Array: TypeAlias = npt.NDArray[np.float64]
MAX_PLACES = 2304
"""Positions (48 x 48) beyond which a grid has a crop (:mod:`~varflow.laws.crops`), or moments are averages."""
MAX_SINGLE = 1 << 17
"""Positions of which all are told apart in moments at one position."""
Rows: TypeAlias = list[dict[int, sp.Rational]]
Taps: TypeAlias = list[tuple[tuple[int, ...], sp.Rational]]


@dataclass(frozen=True)
class Turn:
    """The two places of a moment exchanged."""

    def apply(self, same: Array) -> Array:
        """(P, 1) becomes (1, P)."""
        return same.T


@dataclass(frozen=True)
class Kernel:
    """sum_t s[p + t, p' + t]: what a contraction over a window (or its transpose) adds up."""

    window: Window
    transpose: bool
    between: bool

    @property
    def limit(self) -> sp.Rational:
        """Terms in the sum where the whole window is inside, on average over phases."""
        return sp.Rational(self.window.taps, self.window.spacing if self.transpose else 1)

    def apply(self, moment: Array, beside: Array | None = None) -> Array:
        """``moment`` at one position (or between two) summed over the taps; ``beside`` is the other one of the two,
        needed where one tap reads a position twice."""
        w = self.window
        even = w.uniform and (not self.transpose or (w.covers_evenly and not (self.between and w.spacing > 1)))
        single = not self.between and beside is None
        if (moment.size == 1 and even) or too_many(w, MAX_SINGLE if single else MAX_PLACES):
            return np.full((1, 1), float(moment.mean()) * _mean_count(w, self.transpose))
        matrices = _matrices(w, self.transpose)
        if single:
            return np.asarray(sum(m @ np.broadcast_to(moment, (m.shape[1], 1)) for m in matrices))
        other, same = (moment, beside) if self.between else (beside, moment)
        assert other is not None
        full = completed(other, same, matrices[0].shape[1])
        found = np.asarray(sum(m @ (m @ full).T for m in matrices)).T
        return found if self.between else np.diag(found)[:, None].copy()


@dataclass(frozen=True)
class Mixing:
    """sum_tt' a_t b_t' s[p + t, p' + t'] for two mixtures of positions (None: the position itself); ``between``
    two different output positions, or at one."""

    left: Mix | None
    right: Mix | None
    between: bool

    @property
    def limit(self) -> tuple[sp.Rational, sp.Rational]:
        """Coefficients of the moments at one position and between two: far from borders; on average over positions
        where windows are uneven."""
        if any(m is not None and isinstance(m.window, Uneven) for m in (self.left, self.right)):
            return _on_average(self.left, self.right, self.between)
        left, right = _phases(self.left, self.right), _phases(self.right, self.left)
        alike = everything = sp.S.Zero
        for a, b in zip(left, right, strict=True):
            everything += sum((x for _, x in a), sp.S.Zero) * sum((y for _, y in b), sp.S.Zero)
            alike += sum((x * y for p, x in a for r, y in b if p == r), sp.S.Zero)
        n = sp.Integer(len(left))
        return (sp.S.Zero, everything / n) if self.between else (alike / n, (everything - alike) / n)

    def apply(self, same: Array, other: Array) -> Array:
        """``same`` (P, 1) and ``other`` (P, P') mixed."""
        mix = self.left or self.right
        assert mix is not None
        tiles = all(m is None or (m.window.covers_evenly and not m.transpose) for m in (self.left, self.right))
        if (same.size == 1 and other.size == 1 and tiles) or too_many(mix.window) or _finer(mix.window):
            alike, apart = self.limit
            return np.full((1, 1), float(alike) * same.mean() + float(apart) * other.mean())
        count = (mix_matrix(self.left) if self.left else mix_matrix(mix)).shape[1]
        full = completed(other, same, count)
        full = mix_matrix(self.left) @ full if self.left else full
        full = (mix_matrix(self.right) @ full.T).T if self.right else full
        return np.asarray(full) if self.between else np.diag(full)[:, None]


@dataclass(frozen=True)
class Spread:
    """sum_t a_t s[p + t]: a mixture of positions beside something that is the same at all of them."""

    mix: Mix

    @property
    def limit(self) -> sp.Expr:
        """The sum of the coefficients; its root mean square over positions where they differ."""
        return sp.sqrt(sum(Mixing(self.mix, self.mix, False).limit, sp.S.Zero))

    def apply(self, same: Array) -> Array:
        """(P, 1) mixed."""
        if too_many(self.mix.window) or _finer(self.mix.window):
            return np.full((1, 1), float(self.limit) * same.mean())
        matrix = mix_matrix(self.mix)
        return np.asarray(matrix @ np.broadcast_to(same, (matrix.shape[1], 1)))


@dataclass(frozen=True)
class Average:
    """The mean over the second place, of ``count`` positions."""

    def apply(self, same: Array, other: Array, count: Array) -> Array:
        """(P, 1) and (P, P') become (P, 1)."""
        n = int(count.item())
        if n == 1:
            return np.full((1, 1), same.mean())
        if max(same.size, other.size) == 1 or n > MAX_PLACES:
            return np.full((1, 1), (same.mean() + (n - 1) * other.mean()) / n)
        return np.asarray(completed(other, same, n).mean(axis=1, keepdims=True))


@dataclass(frozen=True)
class Overall:
    """The mean over positions of a moment at one position."""

    def apply(self, same: Array) -> Array:
        """(P, 1) becomes (1, 1)."""
        return np.full((1, 1), same.mean())


def completed(other: Array, same: Array | None, count: int) -> Array:
    """The moment between all pairs of positions, equal ones included."""
    full = np.array(np.broadcast_to(other, (count, count)))
    if same is not None:
        np.fill_diagonal(full, np.broadcast_to(same, (count, 1))[:, 0])
    return full


def window_matrices(w: Window, transpose: bool) -> tuple[Any, ...]:
    """For each tap the (sparse) matrix from input to output positions, or its transpose."""
    return _matrices(w, transpose)


def shared_entries(w: Window) -> tuple[npt.NDArray[np.int64], int]:
    """Entries that the windows of every two output positions have in common, and the number of input positions."""
    total: Any = sum(_matrices(w, False))
    return np.rint((total @ total.T).toarray()).astype(np.int64), total.shape[1]


def too_many(w: Window, most: int = MAX_PLACES) -> bool:
    """Whether a grid has too many positions to tell apart."""
    return int(np.prod([int(n) for n in w.inputs])) > most


def _finer(w: Window) -> bool:
    """Whether uneven windows leave more positions than are told apart."""
    return isinstance(w, Uneven) and int(np.prod([int(n) for n in w.outputs])) > MAX_PLACES


@lru_cache(maxsize=256)
def _mean_count(w: Window, transpose: bool) -> float:
    """Taps inside the grid per output position (per input position for the transpose)."""
    inside = 1.0
    for n, out, k, s, (low, _), d in zip(w.inputs, w.outputs, w.kernel, w.stride, w.padding, w.dilation, strict=True):
        axis = Window((n,), (k,), (s,), ((low, 0),), (d,), w.mode)
        places = s * np.arange(int(out))[:, None] + d * np.arange(k) - low
        within = ((places >= 0) & (places < int(n))).sum() if axis.mode == "zeros" else places.size
        inside *= float(within) / (int(n) if transpose else int(out))
    return inside


@lru_cache(maxsize=64)
def _matrices(w: Window, transpose: bool) -> tuple[Any, ...]:
    """For each tap the matrix from input to output positions (or its transpose)."""
    from scipy.sparse import csr_array

    table, size = w.table(), int(np.prod([int(n) for n in w.inputs]))
    result = []
    for column in table.T:
        rows = np.flatnonzero(column >= 0)
        matrix = csr_array((np.ones(len(rows)), (rows, column[rows])), shape=(len(table), size))
        result.append(matrix.T.tocsr() if transpose else matrix)
    return tuple(result)


@lru_cache(maxsize=64)
def mix_matrix(mix: Mix) -> Any:
    """The matrix of a mixture, from positions of its operand to those of its value (sparse)."""
    from scipy.sparse import diags_array

    total: Any = sum(float(a) * m for a, m in zip(mix.coefficients, _matrices(mix.window, False), strict=True))
    if _is_mean(mix):
        total = diags_array(1 / total.sum(axis=1)) @ total
    return total.T.tocsr() if mix.transpose else total.tocsr()


def sums_alike(mix: Mix) -> bool:
    """Whether coefficients have one sum at all positions; of grids with too many places to tell apart they have."""
    return too_many(mix.window) or _finer(mix.window) or float(np.ptp(mix_matrix(mix).sum(axis=1))) < 1e-12


def _is_mean(mix: Mix) -> bool:
    """Whether coefficients are divided by the sum of those inside: alike ones of uneven windows always are."""
    return mix.normalized or (isinstance(mix.window, Uneven) and len(set(mix.coefficients)) == 1)


@lru_cache(maxsize=64)
def _on_average(left: Mix | None, right: Mix | None, between: bool) -> tuple[sp.Rational, sp.Rational]:
    """Coefficients of the moments at one position and between two on average over positions."""
    found = [_rows(m) for m in (left, right) if m is not None]
    itself: Rows = [{i: sp.S.One} for i in range(len(found[0]))]
    one, two = (itself if m is None else _rows(m) for m in (left, right))
    sums = [[sum(row.values(), sp.S.Zero) for row in rows] for rows in (one, two)]
    if between:
        everything = sp.Mul(*(sum(s, sp.S.Zero) / len(s) for s in sums))
        return sp.S.Zero, everything
    alike = sum((a * b[i] for a_row, b in zip(one, two, strict=True) for i, a in a_row.items() if i in b), sp.S.Zero)
    everything = sum((a * b for a, b in zip(*sums, strict=True)), sp.S.Zero)
    return alike / len(one), (everything - alike) / len(one)


def _rows(mix: Mix) -> Rows:
    """For every position of a mixture's value the positions of its operand and their coefficients."""
    table, count = mix.window.table().tolist(), int(sp.Mul(*mix.window.inputs))
    rows: Rows = [{} for _ in range(count if mix.transpose else len(table))]
    for p, places in enumerate(table):
        taps = [(i, a) for i, a in zip(places, mix.coefficients, strict=True) if i >= 0]
        total = sum((a for _, a in taps), sp.S.Zero) if _is_mean(mix) else sp.S.One
        for i, a in taps:
            at, to = (i, p) if mix.transpose else (p, i)
            rows[at][to] = rows[at].get(to, sp.S.Zero) + a / total
    return rows


def _phases(mix: Mix | None, beside: Mix | None) -> list[Taps]:
    """For every phase of the output positions, the operand's offsets and their coefficients."""
    if mix is None:
        axes = len((beside or mix).window.kernel)  # type: ignore[union-attr]
        return [[((0,) * axes, sp.S.One)]] * _phase_count(beside)
    w = mix.window
    if not mix.transpose:
        taps = [(tuple(d * i - low for i, d, (low, _) in zip(t, w.dilation, w.padding, strict=True)), a)
                for t, a in zip(w.offsets(), mix.coefficients, strict=True)]
        return [_scaled(taps, mix)]
    return [_scaled(_phase(mix, phase), mix) for phase in product(*(range(s) for s in w.stride))]


def phases(mix: Mix) -> list[Taps]:
    """For every phase of the positions of a mixture's value, its operand's offsets and their coefficients."""
    return _phases(mix, None)


def _phase_count(mix: Mix | None) -> int:
    return mix.window.spacing if mix is not None and mix.transpose else 1


def _phase(mix: Mix, phase: tuple[int, ...]) -> Taps:
    """Coarse offsets that reach one phase of the fine grid."""
    w, found = mix.window, []
    for t, a in zip(w.offsets(), mix.coefficients, strict=True):
        steps = [p + low - d * i for p, i, d, (low, _) in zip(phase, t, w.dilation, w.padding, strict=True)]
        if all(x % s == 0 for x, s in zip(steps, w.stride, strict=True)):
            found.append((tuple(x // s for x, s in zip(steps, w.stride, strict=True)), a))
    return found


def _scaled(taps: Taps, mix: Mix) -> Taps:
    total = sum(mix.coefficients, sp.S.Zero) if mix.normalized else sp.S.One
    return [(offset, a / total) for offset, a in taps]
