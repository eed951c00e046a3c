"""Gauss-Legendre panels, halved where the last Legendre coefficients of the integrand do not vanish.

Many integrals ("rows") are done together: every panel of every row is one line of an array. The error of
a panel is estimated from the decay of its Legendre coefficients (Trefethen 2008, section 2), so that an
integrand which is accepted is known as a polynomial, not only its integral.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from varflow.errors import UnsupportedError

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Rows = Callable[[Index, Array], Array]
"""f(row of each line [n], points [n, m]) -> values [n, m]."""

ORDER = 24
TOLERANCE = 1e-13
LEVELS = 64
INTEGRABLE = 1e-6
"""A greater part of an integral left in panels halved LEVELS times: it diverges."""
MAX_PANELS = 400_000
BATCH = 40_000
"""Panels evaluated at a time: about a million points, 8 MB an array."""

NODES, WEIGHTS = np.polynomial.legendre.leggauss(ORDER)
LEGENDRE = np.polynomial.legendre.legvander(NODES, ORDER - 1)
"""P_n(t_j) at [j, n]."""
TO_COEFFICIENTS = LEGENDRE * WEIGHTS[:, None] * (np.arange(ORDER) + 0.5)
"""values @ this = Legendre coefficients of the interpolant."""
_LAST = TO_COEFFICIENTS[:, -3:]


@dataclass(frozen=True)
class Panels:
    """Intervals [a, b] with the values of their rows' integrands at the nodes."""

    row: Index
    a: Array
    b: Array
    values: Array

    @property
    def half(self) -> Array:
        """Half the width of every panel."""
        return (self.b - self.a) / 2

    @property
    def points(self) -> Array:
        """The nodes, [n, ORDER]."""
        return points(self.a, self.b)

    def integrals(self) -> Array:
        """The integral over every panel."""
        return np.asarray(self.half * (self.values @ WEIGHTS))

    def masses(self) -> Array:
        """The integral of the magnitude over every panel."""
        return np.asarray(self.half * (np.abs(self.values) @ WEIGHTS))


def points(a: Array, b: Array) -> Array:
    """The nodes of the panels [a, b], [n, ORDER]."""
    return np.asarray(((a + b) / 2)[:, None] + ((b - a) / 2)[:, None] * NODES)


def tails(values: Array) -> Array:
    """The largest of the last three Legendre coefficients of every panel."""
    last: Array = np.abs(values @ _LAST).max(axis=1)
    return last


def cut(breaks: Array) -> tuple[Index, Array, Array]:
    """Panels (row, a, b) between the sorted breaks [rows, m] of every row, empty ones left out."""
    row = np.repeat(np.arange(breaks.shape[0]), breaks.shape[1] - 1)
    a, b = breaks[:, :-1].ravel(), breaks[:, 1:].ravel()
    wide = b - a > 4e-16 * (np.abs(a) + np.abs(b))
    return row[wide], a[wide], b[wide]


def resolved(
    f: Rows, breaks: Array, tolerance: float = TOLERANCE, floor: Array | float = 0.0
) -> Iterator[Panels]:
    """Panels on which f is a polynomial up to ``tolerance`` times the row's integral of abs(f).

    ``floor`` [rows]: a size that makes the error of a row harmless even where its own integral is smaller.
    Raises UnsupportedError where that takes more than MAX_PANELS undecided panels.
    """
    rows = breaks.shape[0]
    mass = np.zeros(rows)
    row, a, b = cut(breaks)
    for level in range(LEVELS):
        bad_panels = []
        for part in _batches(row, a, b):
            panels = Panels(*part, f(part[0], points(part[1], part[2])))
            size = panels.masses()
            mass += np.bincount(panels.row, size, rows)
            bad = _bad(panels, size, tolerance * np.maximum(mass, floor))
            bad &= panels.b - panels.a > 1e-14 * (np.abs(panels.a) + np.abs(panels.b)) + 1e-290
            if level == LEVELS - 1:
                _mark_divergent(panels, size, bad, mass)
                bad[:] = False
            mass -= np.bincount(panels.row[bad], size[bad], rows)
            good = ~bad
            yield Panels(panels.row[good], panels.a[good], panels.b[good], panels.values[good])
            bad_panels.append((panels.row[bad], panels.a[bad], panels.b[bad]))
        row, a, b = (np.concatenate(x) for x in zip(*bad_panels, strict=True))
        if len(a) == 0:
            return
        _check(len(a), rows)
        middle = (a + b) / 2
        row, a, b = (
            np.concatenate([row, row]),
            np.concatenate([a, middle]),
            np.concatenate([middle, b]),
        )


def _mark_divergent(
    panels: Panels, size: Array, bad: npt.NDArray[np.bool_], mass: Array
) -> None:
    """Panels at a pole that still hold a part of their row's integral are infinite."""
    left = np.bincount(panels.row[bad], size[bad], len(mass))
    pole = bad & (left > INTEGRABLE * mass)[panels.row] & (size > 0)
    panels.values[pole] = np.sign(np.median(panels.values[pole], axis=1))[:, None] * np.inf


def _batches(row: Index, a: Array, b: Array) -> Iterator[tuple[Index, Array, Array]]:
    for i in range(0, max(len(a), 1), BATCH):
        yield row[i : i + BATCH], a[i : i + BATCH], b[i : i + BATCH]


def _bad(panels: Panels, size: Array, allowed: Array) -> npt.NDArray[np.bool_]:
    tail = panels.half * tails(panels.values)
    floor = np.maximum(size, 1e-300)
    error = size * np.minimum(1.0, (10 * tail / floor) ** 1.5)
    return np.asarray(error > allowed[panels.row] + 1e-300)


def _check(count: int, rows: int) -> None:
    if count > MAX_PANELS + 200 * rows:
        raise UnsupportedError(
            "an integrand is too rough for quadrature",
            why=f"{count} intervals were not resolved",
            instead="a function with fewer jumps or oscillations, or a smaller variance",
        )


def integrate(
    f: Rows, breaks: Array, tolerance: float = TOLERANCE, floor: Array | float = 0.0
) -> tuple[Array, Array]:
    """Integrals of f and of its magnitude, [rows], between the first and last break of every row."""
    rows = breaks.shape[0]
    total, size = np.zeros(rows), np.zeros(rows)
    for panels in resolved(f, breaks, tolerance, floor):
        total += np.bincount(panels.row, panels.integrals(), rows)
        size += np.bincount(panels.row, panels.masses(), rows)
    return total, size
