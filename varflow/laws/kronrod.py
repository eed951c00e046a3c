"""Gauss-Kronrod panels: many integrals together, halved where the 10- and the 21-point rule disagree.

Rule: QUADPACK qk21 (Piessens et al. 1983).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from varflow.laws.distributions import Inaccurate
from varflow.laws.panels import Array

TOLERANCE = 2e-12
LEVELS = 110
MAX_PANELS = 60_000
BATCH = 20_000
JUMPS, BISECTIONS = (3, 9, 12, 15), (8, 44)
"""Levels at which rough panels are searched for a jump, and halvings: few show that there is none."""
REFUSED = 1e-6
_HALF_NODES = np.array(
    [
        0.995657163025808080735527280689003,
        0.973906528517171720077964012084452,
        0.930157491355708226001207180059508,
        0.865063366688984510732096688423493,
        0.780817726586416897063717578345042,
        0.679409568299024406234327365114874,
        0.562757134668604683339000099272694,
        0.433395394129247190799265943165784,
        0.294392862701460198131126603103866,
        0.148874338981631210884826001129720,
        0.0,
    ]
)
_HALF_KRONROD = np.array(
    [
        0.011694638867371874278064396062192,
        0.032558162307964727478818972459390,
        0.054755896574351996031381300244580,
        0.075039674810919952767043140916190,
        0.093125454583697605535065465083366,
        0.109387158802297641899210590325805,
        0.123491976262065851077958109585166,
        0.134709217311473325928054001771707,
        0.142775938577060080797094273138717,
        0.147739104901338491374841515972068,
        0.149445554002916905664936468389821,
    ]
)
_HALF_GAUSS = np.array(
    [
        0.066671344308688137593568809893332,
        0.149451349150580593145863396957658,
        0.219086362515982043995534934228163,
        0.269266719309996355091226921569473,
        0.295524224714752870173815619188769,
    ]
)
NODES = np.concatenate([-_HALF_NODES, _HALF_NODES[-2::-1]])
KRONROD = np.concatenate([_HALF_KRONROD, _HALF_KRONROD[-2::-1]])
GAUSS = np.zeros(21)
GAUSS[1:10:2] = _HALF_GAUSS
GAUSS[11:20:2] = _HALF_GAUSS[::-1]


Rows = Callable[[Any, Array], tuple[Array, Array]]
"""f(row indices [n], points [n, 21]) -> values and magnitudes [n, 21]; rounding is relative to the latter."""


def integrate_rows(
    f: Rows, breaks: Array, weight: Array | None = None, most: int = MAX_PANELS, group: Any = None
) -> tuple[Array, Array]:
    """For each row, the integrals of f and its magnitude from the first to the last sorted break.

    ``weight``: how much a row counts in what the caller sums; light rows need fewer digits. ``group``: which of
    several sums that is. ``most``: panels evaluated in all, or 48 for each one given. Raises Inaccurate where a
    relative error of REFUSED may be left: f has a pole, or is rougher than so many panels show.
    """
    rows = breaks.shape[0]
    group = np.zeros(rows, dtype=int) if group is None else group
    weight = np.zeros(rows) if weight is None else np.maximum(weight, 1e-290)
    row = np.repeat(np.arange(rows), breaks.shape[1] - 1)
    a, b = breaks[:, :-1].ravel(), breaks[:, 1:].ravel()
    total, size, lost = np.zeros(rows), np.zeros(rows), np.zeros(rows)
    wide = b > a
    row, a, b = row[wide], a[wide], b[wide]
    left = max(most, 48 * len(a))
    allowed = np.zeros(rows)
    for level in range(LEVELS):
        if len(a) == 0:
            break
        value, mass, error = _batched(f, row, a, b)
        scale = size + np.bincount(row, mass, rows)
        most_of_all = np.zeros(int(group.max(initial=0)) + 1)
        np.maximum.at(most_of_all, group, weight * scale)
        light = np.where(weight > 0, 0.01 * most_of_all[group] / weight, 0.0)
        allowed = np.maximum(0.05 * scale, light)
        bad = error > TOLERANCE * (allowed[row] + 1e-300)
        left -= len(a)
        go_on = (level < LEVELS - 1) & (2 * np.count_nonzero(bad) < left)
        split = bad & go_on & ((b - a) > 1e-13 * (np.abs(a) + np.abs(b)))
        total += np.bincount(row[~split], value[~split], rows)
        size += np.bincount(row[~split], mass[~split], rows)
        lost += np.bincount(row[bad & ~split], error[bad & ~split], rows)
        ends = (row[split], a[split], b[split])
        row, a, b = _cut_at_jumps(f, *ends) if level in JUMPS else _halved(*ends)
    if np.any(lost > REFUSED * (allowed + 1e-290)):
        _refuse()
    return total, size


def _halved(row: Any, a: Array, b: Array) -> tuple[Any, Array, Array]:
    middle = (a + b) / 2
    return np.tile(row, 2), np.concatenate([a, middle]), np.concatenate([middle, b])


def _cut_at_jumps(f: Rows, row: Any, a: Array, b: Array) -> tuple[Any, Array, Array]:
    """Panels cut in two: where f jumps, found by bisection, else in the middle."""
    values = f(row, (a + b)[:, None] / 2 + (b - a)[:, None] / 2 * NODES)[0]
    steps = np.abs(np.diff(values, axis=1))
    place = np.argmax(steps, axis=1)
    height = steps.max(axis=1, initial=0.0)
    one = np.flatnonzero(2 * height > steps.sum(axis=1))
    low, high = (a[one] + (b - a)[one] * (1 + NODES[place[one] + k]) / 2 for k in (0, 1))
    for most in BISECTIONS:
        low, high, still = _bisected(f, row[one], (low, high), height[one], most)
        one, low, high = one[still], low[still], high[still]
    left, right = (a + b) / 2, (a + b) / 2
    left[one], right[one] = low, high
    return np.tile(row, 2), np.concatenate([a, right]), np.concatenate([left, b])


def _bisected(
    f: Rows, row: Any, ends: tuple[Array, Array], height: Array, most: int
) -> tuple[Array, Array, Any]:
    """Intervals halved ``most`` times towards a step of ``height``, and whether the step is still there."""
    low, high = ends
    under = f(row, low[:, None])[0][:, 0]
    for _ in range(most):
        middle = (low + high) / 2
        near = np.abs(f(row, middle[:, None])[0][:, 0] - under) < height / 2
        low, high = np.where(near, middle, low), np.where(near, high, middle)
    below, above = (f(row, x[:, None])[0][:, 0] for x in (low, high))
    return low, high, np.abs(above - below) > height / 2


def _refuse() -> None:
    raise Inaccurate(
        "an integral cannot be computed to the digits it should have",
        why="the integrand has a pole, or it jumps or oscillates too often",
        instead="a function without poles, or a smaller variance",
    )


def _batched(f: Rows, row: Any, a: Array, b: Array) -> tuple[Array, Array, Array]:
    if len(a) <= BATCH:
        return _panels(f, row, a, b)
    parts = [slice(i, i + BATCH) for i in range(0, len(a), BATCH)]
    found = [_panels(f, row[k], a[k], b[k]) for k in parts]
    value, mass, error = (np.concatenate(x) for x in zip(*found, strict=True))
    return value, mass, error


def _panels(f: Rows, row: Any, a: Array, b: Array) -> tuple[Array, Array, Array]:
    half, centre = (b - a) / 2, (a + b) / 2
    values, magnitudes = f(row, centre[:, None] + half[:, None] * NODES)
    value = half * (values @ KRONROD)
    mass = half * (magnitudes @ KRONROD)
    raw = np.abs(value - half * (values @ GAUSS))
    floor = np.maximum(mass, 1e-300)
    error = np.where(raw > 0, floor * np.minimum(1.0, (200 * raw / floor) ** 1.5), 0.0)
    return value, mass, np.where(error < 1e-15 * floor, 0.0, error)
