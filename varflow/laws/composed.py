"""Two mixtures of positions, one after the other, as one: far from borders."""

from __future__ import annotations

from itertools import product

import sympy as sp

from varflow.laws.positions import phases
from varflow.program import Mix
from varflow.window import Uneven, Window

Table = dict[tuple[int, ...], sp.Rational]


def composed(first: Mix, second: Mix) -> Mix | None:
    """``second`` of ``first`` as one mixture of what ``first`` reads; None where it is none (a grid made finer by
    something else than what makes it coarser, uneven windows)."""
    if any(isinstance(mix.window, Uneven) for mix in (first, second)):
        return None
    if first.transpose and second.transpose:
        inner = _coarser(_turned(second), _turned(first))
        return inner and _turned(inner)
    if not first.transpose:
        return None if second.transpose else _coarser(first, second)
    return _there_and_back(first, second) if first.window.stride == second.window.stride else None


def is_identity(mix: Mix) -> bool:
    """Whether every position is what it was."""
    return mix.window.taps == mix.window.spacing == 1 and mix.coefficients == (1,)


def _turned(mix: Mix) -> Mix:
    return Mix(mix.window, mix.coefficients, not mix.transpose, mix.normalized)


def _coarser(first: Mix, second: Mix) -> Mix | None:
    """Two averages over windows: one over a larger window."""
    if first.normalized or second.normalized:
        return None
    a, b = first.window, second.window
    taps: Table = {}
    for (i, x), (j, y) in product(_taps(first), _taps(second)):
        place = tuple(d * p + s * e * q for p, q, d, e, s in zip(i, j, a.dilation, b.dilation, a.stride, strict=True))
        taps[place] = taps.get(place, sp.S.Zero) + x * y
    stride = tuple(s * t for s, t in zip(a.stride, b.stride, strict=True))
    padding = tuple((p + s * q, u + s * v) for (p, u), (q, v), s in zip(a.padding, b.padding, a.stride, strict=True))
    return _mix(taps, a.inputs, stride, padding)


def _taps(mix: Mix) -> list[tuple[tuple[int, ...], sp.Rational]]:
    return list(zip(mix.window.offsets(), mix.coefficients, strict=True))


def _there_and_back(first: Mix, second: Mix) -> Mix | None:
    """A grid made finer and as coarse as it was again: a mixture of neighbours."""
    coarse, stride = first.window.outputs, first.window.stride
    found = dict(zip(product(*(range(s) for s in stride)), phases(first), strict=True))
    taps: Table = {}
    for place, y in phases(second)[0]:
        cell = tuple(p // s for p, s in zip(place, stride, strict=True))
        for offset, x in found[tuple(p % s for p, s in zip(place, stride, strict=True))]:
            at = tuple(c + o for c, o in zip(cell, offset, strict=True))
            taps[at] = taps.get(at, sp.S.Zero) + x * y
    low = tuple(min(0, *(p[k] for p in taps)) for k in range(len(stride)))
    moved = {tuple(p - q for p, q in zip(at, low, strict=True)): x for at, x in taps.items()}
    kernel = [max(p[k] for p in moved) + 1 for k in range(len(stride))]
    beyond = [n - m + k - 1 + q for n, m, k, q in zip(second.window.outputs, coarse, kernel, low, strict=True)]
    padding = tuple((-q, max(int(h), 0) if h.is_Integer else 0) for q, h in zip(low, beyond, strict=True))
    return _mix(moved, coarse, (1,) * len(stride), padding)


def _mix(taps: Table, inputs: tuple[sp.Expr, ...], stride: tuple[int, ...],
         padding: tuple[tuple[int, int], ...]) -> Mix:
    kernel = tuple(max(p[k] for p in taps) + 1 for k in range(len(stride)))
    window = Window(inputs, kernel, stride, padding, (1,) * len(stride))
    return Mix(window, tuple(taps.get(p, sp.S.Zero) for p in window.offsets()))
