"""What a normalized activation can be asked for, as equations in its constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy as sp

from varflow import composition
from varflow.composition import Part, chain
from varflow.errors import InputError
from varflow.laws.expectation import GaussianExpectation, Normal, compile_formula, expect
from varflow.onevariable import exact
from varflow.symbols import X
from varflow.tailor_model import Y1, Y2, Tailored, Y

CONDITIONS: Mapping[str, str] = {
    "mean": "E y",
    "second_moment": "E y^2 = Q(q)",
    "variance": "Var y",
    "derivative_mean": "E y'",
    "derivative_second_moment": "E y'^2",
    "second_derivative_second_moment": "E y''^2",
    "q_slope": "Q'(q) = dE y^2/dq",
    "c_0": "C(0) = (E y)^2/E y^2",
    "c_slope_0": "C'(0) = q (E y')^2/E y^2",
    "c_slope_1": "C'(1) = q E y'^2/E y^2",
    "c_curvature_1": "C''(1) = q^2 E y''^2/E y^2",
    "network_c_0": "the largest C_g(0) over subnetworks g of the network",
    "network_slope": "the largest C_g'(1) (zeta of DKS)",
    "network_curvature": "the largest C_g''(1), local slopes being 1 (tau of TAT)",
}
"""Conditions by name, with what they prescribe."""
PLAIN = {
    "mean": Y,
    "second_moment": Y**2,
    "derivative_mean": Y1,
    "derivative_second_moment": Y1**2,
    "second_derivative_second_moment": Y2**2,
}
RATIOS = {
    "c_0": (Y, 2, 0),
    "c_slope_0": (Y1, 2, 1),
    "c_slope_1": (Y1**2, 1, 1),
    "c_curvature_1": (Y2**2, 1, 2),
}
"""Name: (expression, power of its expectation, power of q)."""
Point = Mapping[sp.Symbol, float]


@dataclass(frozen=True)
class Condition:
    """``left`` = 0 is the equation, over symbols of moments; ``quantity`` is what must equal ``target``.

    ``numeric`` stands for both where there is no expression: it takes values of the constants and gives
    quantity - target.
    """

    name: str
    target: sp.Expr
    left: sp.Expr | None = None
    quantity: sp.Expr | None = None
    numeric: Callable[[Point], float] | None = None

    def missed(self, subject: Tailored, table: Mapping[sp.Symbol, sp.Expr]) -> float:
        """abs(quantity - target) with the constants put in; nan becomes inf."""
        point = _point(table)
        if self.numeric is not None:
            gap = self.numeric(point)
        else:
            assert self.quantity is not None
            gap = _number(self.quantity - self.target, subject, point)
        return abs(gap) if gap == gap else float("inf")


def _point(table: Mapping[sp.Symbol, sp.Expr]) -> dict[sp.Symbol, float]:
    """Floats for the constants; symbols that are left take values of a general kind."""
    loose = sorted(set().union(*(v.free_symbols for v in table.values())) - set(table), key=str)
    point = {s: 1.3 + 0.17 * k for k, s in enumerate(loose)}
    made = {s: float(compile_formula(v, loose)(*point.values())) for s, v in table.items()}
    return point | made


def _number(expr: sp.Expr, subject: Tailored, point: Point) -> float:
    full = dict(point)
    for symbol, integral in subject.integral.items():
        if symbol in expr.free_symbols:
            full[symbol] = evaluated(integral, point)
    return evaluated(expr, full)


def evaluated(expr: sp.Expr, point: Point) -> float:
    """The number of an expression; symbols without a value take 1.3."""
    used = sorted(expr.free_symbols, key=str)
    return float(compile_formula(expr, used)(*(point.get(s, 1.3) for s in used)))


def conditions_of(
    wanted: Mapping[str, Any], subject: Tailored, network: Part | int | None
) -> list[Condition]:
    """The conditions as equations. Raises InputError for unknown names, ExpressionError for unreadable ones."""
    part = chain(network) if isinstance(network, int) else network
    targets = {name: exact(value) for name, value in wanted.items()}
    second = targets.get("second_moment", subject.second)
    return [_condition(name, target, subject, part, second) for name, target in targets.items()]


def _condition(
    name: str, target: sp.Expr, y: Tailored, network: Part | None, second: sp.Expr
) -> Condition:
    if name.startswith("network_") and name in CONDITIONS:
        return _of_network(name, target, y, network, second)
    if name in RATIOS:
        return _ratio(name, target, y, second)
    if name == "variance":
        value = y.variance
    else:
        value = (
            y.q_slope if name == "q_slope" else y.expectation(PLAIN.get(name) or _expression(name))
        )
    return Condition(name, target, sp.expand(value - target), value)


def _ratio(name: str, target: sp.Expr, y: Tailored, second: sp.Expr) -> Condition:
    """A condition on the correlation map, multiplied by E y^2 (its value, where that is prescribed)."""
    inside, power, of_q = RATIOS[name]
    mean = y.expectation(inside)
    top = y.q**of_q * mean**power
    left = mean if target == 0 else sp.expand(top - target * second)
    return Condition(name, target, left, top / y.second)


def _expression(text: str) -> sp.Expr:
    from varflow.expressions import parse

    names = {"y": Y, "dy": Y1, "ddy": Y2, "x": X}
    if text not in names and text.replace("_", "").isalnum():
        raise InputError(f"there is no condition {text!r}", instead=", ".join(CONDITIONS))
    return parse(text, names, where=f"condition {text!r}")


def _of_network(
    name: str, target: sp.Expr, y: Tailored, network: Part | None, second: sp.Expr
) -> Condition:
    """A condition on the network: through the local map where slopes or curvatures compose."""
    if network is None:
        raise InputError(
            f"{name} needs a network", instead="network=100, or composition.residual(...)"
        )
    if name == "network_c_0":
        return Condition(name, target, numeric=_largest_c(target, y, network))
    if name == "network_slope":
        local = _ratio("c_slope_1", composition.local_slope(network, target), y, second)
    else:
        local = _ratio("c_curvature_1", composition.local_curvature(network, target), y, second)
    return Condition(name, local.target, local.left, local.quantity)


def _largest_c(target: sp.Expr, y: Tailored, network: Part) -> Callable[[Point], float]:
    """The largest C(0) of subnetworks minus the target, as a function of the constants."""

    def missed(point: Point) -> float:
        return float(composition.maximum(network, 0.0, _local_map(y, point))) - float(target)

    return missed


def _local_map(y: Tailored, point: Point) -> Callable[[float], float]:
    """C(c) of y at given constants: by its formula where there is one, else by interpolated integrals."""
    formula, names = _kernel(y)
    if formula is None:
        from varflow.depthmap import LocalMap

        return LocalMap(y.function({s: sp.Float(v, 17) for s, v in point.items()}), float(y.q))
    values = [point[s] for s in names]
    one = float(formula(1.0, *values))
    return lambda c: float(formula(c, *values)) / one


@lru_cache(maxsize=32)
def _kernel(y: Tailored) -> tuple[Callable[..., Any] | None, tuple[sp.Symbol, ...]]:
    """E[y(u) y(v)] as a function of the correlation and the constants, if it has a closed form."""
    from varflow.maps import C

    u, v = sp.symbols("u v", real=True)
    f = y.a * y.inner + y.d
    names = tuple(sorted(f.free_symbols - {X}, key=str))
    if any(s in y.b.free_symbols | y.c.free_symbols for s in names):
        return None, ()
    pair = f.xreplace({X: u}) * f.xreplace({X: v})
    kernel = expect(pair, {u: Normal(), v: Normal()}, lambda s, t: y.q if s == t else y.q * C)
    if kernel.has(GaussianExpectation):
        return None, ()
    return compile_formula(kernel, (C, *names)), names
