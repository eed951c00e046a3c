"""A function of one variable made ready for Gaussian integrals: its kinks, its jumps, where it bends.

The mesh of a function is a list of points between which it is a polynomial to ten digits. A kink that
nobody announced shows as a panel that never becomes one: it is closed in by halving and then remembered.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.errors import InputError
from varflow.laws.algebra import affine, depends, rational
from varflow.laws.cells import KINKED, NotFlat, pieces
from varflow.laws.numeric import vectorized
from varflow.laws.panels import ORDER, TO_COEFFICIENTS, Array, Index, points, tails
from varflow.symbols import X

Function: TypeAlias = Any
"""A sympy expression in ``symbols.X``, or a callable on float64 arrays."""
MESH_TOLERANCE = 1e-10
MESH_LEVELS = 56
MAX_MESH = 300_000
NOISE = 2e-9
"""Of its size: what a callable may be off by, before it is refused."""
_CLOSE, _DIFFERENCES = 1e-7, np.array([1.0, -6.0, 15.0, -20.0, 15.0, -6.0, 1.0]) / np.sqrt(924.0)
SMALLEST = 2.0**-20
_APART = 1e-6
"""Points that are closer, beside 1 or their distance to the origin, close in on one kink."""
_ODD = 1.0 + 1 / 29.3
"""Keeps the starting points of a mesh off the round numbers where kinks are, so that these show."""
_INSET = 1e-9
_AT_ENDS = np.polynomial.legendre.legvander(np.array([2 * _INSET - 1, 1 - 2 * _INSET]), ORDER - 1).T
_GRADES = np.array([-8.0, -2.0, -0.5, 0.5, 2.0, 8.0])


class Integrand:
    """f as a function of numpy arrays, with the points where it bends.

    ``f``: a sympy expression in ``symbols.X``, its kinks read off; or a callable from a float64 array to an
    array of its shape, its kinks found by sampling (a feature narrower than about 1e-3 of its distance to
    the origin can be missed there: announce it in ``breaks``). ``breaks`` are kinks and jumps, sorted. Rounding
    and other noise of a callable, as differences have, is measured and not taken for kinks.
    Raises InputError for an expression with other symbols. Values that are not numbers raise when met.
    """

    def __init__(self, f: Function, breaks: tuple[float, ...] = ()) -> None:
        known = set(breaks)
        scales: list[tuple[float, float]] = []
        if isinstance(f, sp.Expr):
            f = rational(f)
            _only_x(f)
            self._function = vectorized(f, (X,), real=True)
            known |= set(_kinks(f))
            scales = _bends(f)
            self.text = str(f)
        else:
            self._function = f
            self.text = getattr(f, "__name__", "the function")
        self.breaks: Array = np.array(sorted(known), dtype=float)
        self._bends = scales
        self._meshes: dict[int, Array] = {}
        self._kinks: dict[int, Array] = {}
        self._sampled = not isinstance(f, sp.Expr)

    def __call__(self, x: Array) -> Array:
        """f at every point; raises InputError where f is not a real number."""
        with np.errstate(all="ignore"):
            values = np.asarray(self._function(x))
        if np.isnan(values).any():
            values = np.where(np.isnan(values) & np.isin(x, self.breaks), 0.0, values)
        if np.iscomplexobj(values) or np.isnan(values).any():
            self._refuse(x, values)
        return np.asarray(np.broadcast_to(values.astype(float, copy=False), x.shape))

    def _refuse(self, x: Array, values: Any) -> None:
        lost = np.broadcast_to(np.isnan(values) | (np.imag(values) != 0), x.shape)
        if lost.any():
            place = float(x[lost][np.argmin(np.abs(x[lost]))])
            raise InputError(
                f"{self.text} has no real value at x = {place:.6g}",
                why="a Gaussian variable takes every real value",
                instead="a function that is real and finite on the whole line",
            )

    def at(self, x: Array) -> Array:
        """f at points, the mean of both sides at a jump: the limit of E f as the variance vanishes."""
        below, above = self.sides(x)
        return (below + above) / 2

    def sides(self, x: Array) -> tuple[Array, Array]:
        """f just below and just above every point."""
        x = np.asarray(x, dtype=float)
        gap = np.where(np.isin(x, self.breaks), 1e-13 * np.abs(x) + 1e-100, 0.0)
        return self(x - gap), self(x + gap)

    def mesh(self, reach: float) -> Array:
        """Sorted points of [-X, X], X >= reach, between which f is close to a polynomial."""
        octave = max(0, int(np.ceil(np.log2(max(reach, 1.0)))))
        if octave not in self._meshes:
            self._meshes[octave] = self._find_mesh(2.0**octave)
        return self._meshes[octave]

    def kinks(self, reach: float) -> Array:
        """Where in [-X, X], X >= reach, f may bend or jump, to about 1e-7: its mesh, close points taken as one."""
        octave = max(0, int(np.ceil(np.log2(max(reach, 1.0)))))
        if octave not in self._kinks:
            self._kinks[octave] = _clusters(self.mesh(reach)[1:-1])
        return self._kinks[octave]

    def _find_mesh(self, reach: float) -> Array:
        known = self.breaks
        mesh, found = self._halved(self._start(reach, known))
        fresh = [x for x in found if np.all(np.abs(known - x) > 1e-9 * (abs(x) + SMALLEST))]
        if fresh:
            self.breaks = np.sort(np.concatenate([known, fresh]))
            mesh, _ = self._halved(self._start(reach, self.breaks))
        kept = self._joined(mesh)
        gaps = np.diff(mesh, prepend=-np.inf, append=np.inf)
        sharp = mesh[np.minimum(gaps[1:], gaps[:-1]) < 1e-9 * np.abs(mesh) + 1e-11]
        self.breaks = np.union1d(self.breaks, np.intersect1d(kept, sharp))
        return kept

    def _joined(self, mesh: Array) -> Array:
        """The mesh without points that f does not need."""
        kept, last = mesh, len(mesh) + 1
        while len(kept) < last:
            last = len(kept)
            for first in (1, 2):
                kept = self._without(kept, np.arange(first, len(kept) - 1, 2))
        return kept

    def _without(self, mesh: Array, candidates: Index) -> Array:
        """The mesh without those candidates, no two of them neighbours, across which f is smooth."""
        candidates = candidates[~np.isin(mesh[candidates], self.breaks)]
        if len(candidates) == 0:
            return mesh
        a, b = mesh[candidates - 1], mesh[candidates + 1]
        size, error = self._unevenness(a, b)
        smooth = error <= MESH_TOLERANCE * size + self._harmless(a, b)
        return np.delete(mesh, candidates[smooth])

    def _start(self, reach: float, hard: Array) -> Array:
        dyadic = _ODD * 2.0 ** np.arange(-3, np.log2(reach))
        parts = [hard, dyadic, -dyadic / _ODD, np.array([reach, -reach])]
        parts += [centre + scale * _ODD * _GRADES for centre, scale in self._bends]
        every = np.unique(np.concatenate(parts))
        return np.asarray(every[np.abs(every) <= reach])

    def _halved(self, start: Array) -> tuple[Array, list[float]]:
        a, b = start[:-1], start[1:]
        edges, kinks, scale = [start], [], self._harmless(a, b)
        for _ in range(MESH_LEVELS):
            size, error = self._unevenness(a, b)
            rough = error > MESH_TOLERANCE * size + scale + 1e-250
            kinks += _closed_in(a, b, rough)
            rough &= b - a > 1e-12 * np.maximum(np.abs(a), np.abs(b)) + 1e-15
            a, b, scale = a[rough], b[rough], np.tile(scale[rough], 2)
            if len(a) == 0 or self._too_many(len(a)):
                break
            middle = (a + b) / 2
            edges.append(middle)
            a, b = np.concatenate([a, middle]), np.concatenate([middle, b])
        return np.unique(np.concatenate(edges)), _distinct(kinks)

    def _harmless(self, a: Array, b: Array) -> Array:
        """Errors on the panels [a, b] below what f is nearer to the origin: rounding, not bends."""
        places = 2.0 ** np.arange(-40, 1 + np.log2(np.max(np.abs(np.stack([a, b])))), 0.5)
        values = np.abs(self(np.stack([places, -places]))).max(axis=0)
        largest = np.maximum.accumulate(np.where(values < 1e250, values, 0.0))
        inside = np.searchsorted(places, np.minimum(np.abs(a), np.abs(b)) / 8)
        own = np.abs(self(points(a, b))).max(axis=1)
        own = np.where(own < 1e250, own, 0.0)
        rounding = 1e-14 * largest[np.maximum(inside - 1, 0)] + 2e-15 * own
        size = float(max(own.max(), largest[-1]))
        return rounding + self._noise(a, b, size) if self._sampled else np.asarray(rounding)

    def _noise(self, a: Array, b: Array, size: float) -> Array:
        """Ten standard deviations of the noise of f on every panel, from sixth differences of close neighbours.

        Source: Hamming 1962, chapter 6; More and Wild 2011, Estimating computational noise. Raises InputError for
        noise that is not small beside ``size``.
        """
        places = np.array([0.1379, 0.2713, 0.4251, 0.6173, 0.8347])[:, None] + _CLOSE * np.arange(7)
        values = self(a[:, None, None] + (b - a)[:, None, None] * places)
        values = np.where(np.abs(values) < 1e150, values, 0.0)
        noise = np.sqrt(np.mean((values @ _DIFFERENCES) ** 2, axis=1))
        if np.median(noise) > NOISE * size:
            raise InputError(
                f"{self.text} is noisy",
                why=f"values at close places differ by {float(np.median(noise)):.2g}",
                instead="float64 values, smooth but for kinks and jumps, the same at every call",
            )
        return np.asarray(10 * noise)

    def _too_many(self, panels: int) -> bool:
        """Whether halving has no end in sight; InputError for a callable."""
        if panels > MAX_MESH and self._sampled:
            raise InputError(
                f"{self.text} is too rough",
                why=f"it is close to a polynomial on none of {panels} pieces of the line",
                instead="a function that bends and oscillates less",
            )
        return panels > MAX_MESH

    def _unevenness(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Size of f on every panel, and how far it is from a polynomial, inside and at the ends."""
        inner = points(a, b)
        near = (b - a)[:, None] * np.array([_INSET, -_INSET])
        values = self(np.concatenate([inner, np.stack([a, b], axis=1) + near], axis=1))
        values = np.where(np.abs(values) < 1e250, values, 0.0)
        inner, ends = values[:, :-2], values[:, -2:]
        missed = np.abs(inner @ TO_COEFFICIENTS @ _AT_ENDS - ends).max(axis=1)
        return np.abs(inner).max(axis=1), np.maximum(tails(inner), 1e-2 * missed)


def _clusters(places: Array) -> Array:
    """One of every group of close points: the middle of its narrowest panel."""
    if len(places) == 0:
        return places
    ends = np.flatnonzero(np.diff(places) > _APART * (1 + np.abs(places[1:]))) + 1
    found = []
    for group in np.split(places, ends):
        k = int(np.argmin(np.diff(group))) if len(group) > 1 else 0
        found.append(float(group[k] + group[min(k + 1, len(group) - 1)]) / 2)
    return np.array(found)


def _closed_in(a: Array, b: Array, rough: npt.NDArray[np.bool_]) -> list[float]:
    """Kinks: in rough panels that are very small, and between small halves of which none is rough."""
    width, size = b - a, np.maximum(np.abs(a), np.abs(b))
    found = list((a + b)[rough & (width < 1e-12 * size + 1e-15)] / 2)
    n = len(a) // 2
    if len(a) == 2 * n and np.array_equal(b[:n], a[n:]):
        quiet = ~rough[:n] & ~rough[n:] & (width[:n] < 1e-8 * size[:n] + 1e-13)
        found += list(b[:n][quiet])
    return [float(x) for x in found]


def _distinct(values: list[float]) -> list[float]:
    """Kinks that lie apart, moved to the round number beside them if there is one."""
    kept: list[float] = []
    for x in sorted(values):
        short = round(x, 9)
        x = short if abs(short - x) < 1e-10 * abs(x) + 2e-15 else x
        if not kept or x - kept[-1] > 1e-9 * abs(x) + 1e-13:
            kept.append(x)
    return kept


def _only_x(expr: sp.Expr) -> None:
    others = sorted(map(str, expr.free_symbols - {X}))
    if others:
        raise InputError(
            f"no value for {', '.join(others)}",
            instead="an expression whose only symbol is varflow.symbols.X",
        )


def _kinks(expr: sp.Expr) -> list[float]:
    if not expr.has(*KINKED):
        return []
    try:
        return [float(b) for b in pieces(expr, X)[0]]
    except (NotFlat, TypeError):
        return []


def _bends(expr: sp.Expr) -> list[tuple[float, float]]:
    """(root, 1/slope) of every affine argument inside the expression."""
    found: set[tuple[float, float]] = set()
    waiting = list(expr.args)
    while waiting:
        part = waiting.pop()
        form = affine(part, (X,)) if isinstance(part, sp.Expr) and depends(part, (X,)) else None
        if form is None:
            waiting += part.args
        else:
            slope = float(form[0][X])
            found.add((-float(form[1]) / slope, 1 / abs(slope)))
    return sorted(found)


@lru_cache(maxsize=512)
def _of_expression(expr: sp.Expr) -> Integrand:
    return Integrand(expr)


def integrand(f: Function) -> Integrand:
    """The Integrand of an expression (made once), of a callable, or the one given."""
    if isinstance(f, Integrand):
        return f
    return _of_expression(f) if isinstance(f, sp.Expr) else Integrand(f)
