"""How signals settle at criticality: powers of depth instead of exponentials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy as sp

from varflow.laws.cells import NotFlat, kinked, pieces
from varflow.laws.expectation import (
    GaussianExpectation,
    Normal,
    compile_formula,
    derivative,
    expect,
)
from varflow.onevariable import text
from varflow.smallsignal import SmallSignal
from varflow.symbols import X


@dataclass(frozen=True)
class CorrelationDecay:
    """1 - c_l ~ coefficient / l^power at layer l, c the correlation of two inputs.

    Power 1 where f' is continuous: coefficient 2/C''(1), C''(1) = s_w q E f''^2; power 2 where f' jumps, by D_i
    at x_i: coefficient 9/K^2, K = s_w sum_i D_i^2 exp(-x_i^2/2q)/(pi sqrt(2)) (Hayou et al. 2019).
    """

    power: int
    coefficient: sp.Expr

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        number = None if self.coefficient.free_symbols else float(self.coefficient)
        return {"power": self.power, "coefficient": text(self.coefficient), "value": number}


@dataclass(frozen=True)
class KernelDecay:
    """q_{l+1} = q_l (1 + rate q_l^power + ...) near q* = 0, at s_w E f'^2 -> 1.

    So q_l ~ (-rate power l)^(-1/power) where ``rate`` < 0 (q* attracts). ``parallel`` and ``perpendicular`` are
    the critical exponents: deviations fall as l^-parallel and l^-perpendicular (Roberts et al. 2022, eq. 5.36
    and section 5.3.3, where power = 1, rate = a_1).
    """

    power: sp.Expr
    rate: sp.Expr
    perpendicular: sp.Expr

    @property
    def parallel(self) -> sp.Expr:
        """(1 + power)/power: 2 for smooth activations."""
        return (1 + self.power) / self.power

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        names = ("power", "rate", "parallel", "perpendicular")
        return {n: text(getattr(self, n)) for n in names} | {
            "value": {n: float(getattr(self, n)) for n in names}
        }


def kernel_decay(near: SmallSignal) -> KernelDecay | None:
    """How the variance moves near q* = 0; None where five orders of f show no change."""
    found = near.correction
    if found is None:
        return None
    power, rate, slope = found
    return KernelDecay(power, rate, slope / (rate * power))


def correlation_decay(f: sp.Expr, sw: sp.Expr, q: sp.Expr) -> CorrelationDecay | None:
    """The decay at chi_perp = 1 for a variance q > 0; None for linear f, or where f' jumps at unknown places."""
    try:
        kinks = _kinks(derivative(f, X))
    except NotFlat:
        return None
    if kinks:
        total = sp.Add(*(jump**2 * sp.exp(-(place**2) / (2 * q)) for place, jump in kinks))
        return CorrelationDecay(2, _settled(9 / (sw * total / (sp.pi * sp.sqrt(2))) ** 2))
    bend = derivative(derivative(f, X), X)
    if bend == 0:
        return None
    second = expect(bend**2, {X: Normal()}, lambda u, v: q)
    return CorrelationDecay(1, _settled(2 / (sw * q * second)))


def _kinks(slope: sp.Expr) -> list[tuple[sp.Expr, sp.Expr]]:
    """(place, jump) of every jump of f'."""
    if not kinked(slope, (X,)):
        return []
    borders, bodies = pieces(slope, X)
    steps = [
        (b, (after - before).subs(X, b))
        for b, before, after in zip(borders, bodies, bodies[1:], strict=False)
    ]
    return [(b, s) for b, s in steps if s.free_symbols or abs(sp.N(s, 30)) > sp.Float("1e-18")]


def _settled(expr: sp.Expr) -> sp.Expr:
    if expr.free_symbols or not expr.has(GaussianExpectation, sp.Float):
        return sp.cancel(expr) if expr.free_symbols else expr
    return sp.Float(float(compile_formula(expr, ())()), 15)
