"""Mean field of a deep network of one activation: where variance and correlation settle, and how fast."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from varflow.errors import InputError
from varflow.fixed_points import FixedPoint, FixedPoints, variance_points
from varflow.variances import Variances

MARGIN = 1e-9
"""A slope this close to 1 is critical."""


@dataclass(frozen=True)
class Phase:
    """A deep network at (``sw``, ``sb``) = (fan_in Var W, Var b), dropout keeping ``keep`` of f(x).

    ``q`` is the variance that is reached (0: signals vanish, inf: they grow without bound, None: it
    oscillates), ``fixed_points`` all of them. ``chi_1`` = sw E f'^2 / keep at q is the factor of a gradient's
    second moment per layer, ``chi_parallel`` = dq'/dq. ``c`` is the correlation that two inputs reach (masks
    drawn for each), ``c_slope`` the slope of the correlation map there. Depth scales in layers (Schoenholz
    et al. 2017): ``xi_q`` = -1/log|chi_parallel|, ``xi_c`` = -1/log c_slope, ``xi_gradient`` = -1/log chi_1
    (negative where gradients grow). ``name``: ordered, chaotic, critical, or unbounded. What is not defined
    is None.
    """

    sw: float
    sb: float
    keep: float
    q: float | None
    fixed_points: tuple[FixedPoint, ...]
    chi_1: float | None
    chi_parallel: float | None
    c: float | None
    c_slope: float | None
    name: str

    @property
    def xi_q(self) -> float | None:
        """-1/log|chi_parallel|."""
        return None if self.chi_parallel is None else _depth(abs(self.chi_parallel))

    @property
    def xi_c(self) -> float | None:
        """-1/log c_slope."""
        return None if self.c_slope is None else _depth(self.c_slope)

    @property
    def xi_gradient(self) -> float | None:
        """-1/log chi_1."""
        return None if self.chi_1 is None else _depth(self.chi_1)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document; what is infinite or undefined is null."""
        names = (
            "sw",
            "sb",
            "keep",
            "q",
            "chi_1",
            "chi_parallel",
            "c",
            "c_slope",
            "xi_q",
            "xi_c",
            "xi_gradient",
        )
        numbers = {n: getattr(self, n) for n in names}
        points = [
            {"q": p.value, "slope": p.slope, "stability": p.stability} for p in self.fixed_points
        ]
        return {"phase": self.name, **numbers, "fixed_points": points}


def _depth(slope: float) -> float:
    if abs(slope - 1) <= MARGIN:
        return math.inf
    return 0.0 if slope == 0 else 0.0 if math.isinf(slope) else -1 / math.log(slope)


@dataclass(frozen=True)
class _Layer:
    """One layer: the maps of variance and correlation with dropout."""

    moments: Variances
    sw: float
    sb: float
    keep: float

    def variance(self, q: Any) -> Any:
        return self.sw / self.keep * self.moments.second(q) + self.sb

    def variance_slope(self, q: Any) -> Any:
        return self.sw / self.keep * self.moments.second_slope(q)

    def correlation(self, c: float, q: float) -> float:
        return float((self.sw * self.moments.numbers.kernel(q, c) + self.sb) / q)

    def correlation_slope(self, c: float, q: float) -> float:
        return float(self.sw * self.moments.numbers.kernel_slope(q, c) / q)

    def chi(self, q: float) -> float:
        if self.moments.numbers.jumps:
            return math.inf
        return float(self.sw / self.keep * self.moments.slopes(q))


def phase_of(moments: Variances, sw: float, sb: float, keep: float, start: float | None) -> Phase:
    """The phase at one point of the plane. Raises InputError for values that are no variances."""
    if not (sw >= 0 and sb >= 0 and math.isfinite(sw + sb)):
        raise InputError(f"sw = {sw:g}, sb = {sb:g}", why="variances are finite and not negative")
    layer = _Layer(moments, sw, sb, keep)
    found = variance_points(
        layer.variance, layer.variance_slope, high=1e4 * max(1.0, (sw + sb) / keep)
    )
    first = sw + sb if start is None else start
    q = _reached(layer, found, first)
    points = found.points
    if q is None or math.isinf(q):
        chi = _limit_chi(layer) if q is not None else None
        return Phase(
            sw, sb, keep, q, points, chi, None, None, None, "unbounded" if q else "oscillating"
        )
    at = min(points, key=lambda p: abs(p.value - q)) if points else None
    along = 1.0 if found.every or at is None else at.slope
    chi = layer.chi(max(q, 1e-12))
    c, slope = _correlation(layer, q, chi)
    return Phase(sw, sb, keep, q, points, chi, along, c, slope, _name(chi * keep, keep))


def _name(chi: float, keep: float) -> str:
    if keep == 1 and abs(chi - 1) <= MARGIN:
        return "critical"
    return "ordered" if chi < 1 else "chaotic"


def _reached(layer: _Layer, found: FixedPoints, start: float) -> float | None:
    """The fixed point that the variance goes to from ``start``: the next one on the side it moves to."""
    if found.every:
        return start
    near = [p for p in found if abs(p.value - start) <= 1e-9 * start and p.stability != "unstable"]
    if near:
        return near[0].value
    up = float(layer.variance(start)) > start
    ahead = [p for p in found if (p.value > start) == up and p.value != start]
    if not ahead:
        return math.inf if up else 0.0
    reached = ahead[0] if up else ahead[-1]
    return reached.value if reached.slope > -1 else _settled(layer, start)


def _settled(layer: _Layer, q: float) -> float | None:
    """Where 500 layers lead, if they lead anywhere."""
    for _ in range(500):
        q, before = float(layer.variance(q)), q
        if abs(q - before) <= 1e-14 * q:
            return q
    return None


def _limit_chi(layer: _Layer) -> float | None:
    """chi where the variance grows without bound, if it has a limit there."""
    with np.errstate(all="ignore"):
        far, near = layer.chi(1e10), layer.chi(1e8)
    return far if math.isfinite(far) and abs(far - near) < 1e-6 * abs(far) else None


def _correlation(layer: _Layer, q: float, chi: float) -> tuple[float | None, float | None]:
    """(c*, slope there): the map is convex on [0, 1], so it has at most one fixed point beside 1."""
    if q == 0:
        return None, None
    if layer.keep == 1 and chi <= 1 + MARGIN:
        return 1.0, chi
    if layer.correlation(0.0, q) <= 1e-15:
        return 0.0, layer.correlation_slope(0.0, q)
    c = _crossing(
        lambda c: layer.correlation(c, q) - c, 1.0 if layer.keep < 1 else _below_one(layer, q)
    )
    return c, layer.correlation_slope(c, q)


def _below_one(layer: _Layer, q: float) -> float:
    """A correlation near 1 which the map lowers."""
    gap = 0.5
    while layer.correlation(1 - gap, q) >= 1 - gap and gap > 1e-12:
        gap /= 2
    return 1 - gap


def _crossing(excess: Callable[[float], float], high: float) -> float:
    from scipy.optimize import brentq

    return float(brentq(excess, 0.0, high, xtol=1e-15, rtol=1e-14))
