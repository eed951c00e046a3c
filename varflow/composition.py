"""Networks as compositions of one local map: feed-forward chains, residual sums, and their subnetworks.

A network that keeps q = 1 everywhere sends a correlation c through its nonlinear layers by the local map C and
mixes it at sums (Martens et al. 2021). What goes through need not be a correlation: with r(y) = mu y from 1 the
same structure composes slopes C'(1) = mu, with r(y) = y + kappa from 0 curvatures C''(1) = kappa of maps of slope
1 (Zhang et al. 2022, appendix on transformations).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import sympy as sp

from varflow.errors import InputError, SolveError, require
from varflow.onevariable import exact

Map: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class Part:
    """A piece of a network with one input and one output."""

    def through(self, x: Any, layer: Map) -> Any:
        """What comes out for ``x``, every nonlinear layer acting as ``layer``."""
        raise NotImplementedError

    def inner(self) -> Iterator[Part]:
        """Subnetworks that are not contiguous pieces of a sequence: branches."""
        yield from ()


@dataclass(frozen=True)
class Layer(Part):
    """A nonlinear layer, with the linear layer that goes with it."""

    def through(self, x: Any, layer: Map) -> Any:
        """layer(x)."""
        return layer(x)


@dataclass(frozen=True)
class Sequence_(Part):
    """Parts one after the other."""

    parts: tuple[Part, ...]

    def through(self, x: Any, layer: Map) -> Any:
        """The parts' maps composed."""
        for part in self.parts:
            x = part.through(x, layer)
        return x

    def inner(self) -> Iterator[Part]:
        """Branches of the parts, each different part once."""
        for part in dict.fromkeys(self.parts):
            yield from part.inner()


@dataclass(frozen=True)
class Residual(Part):
    """weight * shortcut(x) + sqrt(1 - weight^2) * branch(x), which keeps q = 1: maps mix by weight^2."""

    branch: Part
    weight: sp.Expr
    shortcut: Part

    def through(self, x: Any, layer: Map) -> Any:
        """weight^2 shortcut + (1 - weight^2) branch."""
        share = self.weight**2
        share = share if isinstance(x, sp.Expr) else float(share)
        return share * self.shortcut.through(x, layer) + (1 - share) * self.branch.through(x, layer)

    def inner(self) -> Iterator[Part]:
        """Branch and shortcut, and the branches within them."""
        for part in (self.branch, self.shortcut):
            yield part
            yield from part.inner()


LAYER = Layer()
"""One nonlinear layer."""
IDENTITY = Sequence_(())
"""A plain shortcut."""


def require_part(value: object, what: str) -> None:
    """Raise InputError unless ``value``, which ``what`` names, is a part of a network."""
    require(value, Part, what, "LAYER, chain(...), sequence(...) or residual(...)")


def sequence(*parts: Part) -> Part:
    """Parts one after the other."""
    for part in parts:
        require_part(part, "a part of the sequence")
    flat = [p for part in parts for p in (part.parts if isinstance(part, Sequence_) else (part,))]
    return Sequence_(tuple(flat))


def chain(depth: int, part: Part = LAYER) -> Part:
    """``depth`` copies of a part one after the other: a feed-forward network of that many nonlinear layers."""
    require(depth, Integral, "the depth", "a whole number: chain(20)")
    if depth < 0:
        raise InputError(f"a depth of {depth}", instead="0, 1, 2, ...")
    return sequence(*[part] * int(depth))


def residual(branch: Part, weight: Any, shortcut: Part = IDENTITY) -> Part:
    """weight shortcut(x) + sqrt(1 - weight^2) branch(x), 0 <= weight <= 1 (Martens et al. 2021, section 5)."""
    require_part(branch, "the branch")
    require_part(shortcut, "the shortcut")
    share = exact(weight)
    if share.is_number and not 0 <= float(share) <= 1:
        raise InputError(
            f"a shortcut weight of {weight}", instead="0 <= weight <= 1, so that q = 1 is kept"
        )
    return Residual(branch, share, shortcut)


def maximum(network: Part, x: Any, layer: Map) -> Any:
    """The largest value over all subnetworks of what comes out for ``x`` (M_f of Zhang et al. 2022).

    Exact where ``layer`` never lowers its argument, as slopes >= 1, curvatures >= 0 and C maps of slope <= 1 do:
    then a longer sequence is never less than a piece of it, and only branches compete with the whole.
    """
    values = [part.through(x, layer) for part in (network, *dict.fromkeys(network.inner()))]
    return max(values)


def slope(network: Part, local: Any) -> Any:
    """The maximal slope function at a local slope C'(1) >= 1 (Martens et al. 2021, section 4)."""
    return maximum(network, type(local)(1), lambda y: y * local)


def curvature(network: Part, local: Any) -> Any:
    """The maximal curvature function at a local curvature C''(1) >= 0 of maps of slope 1 (Zhang et al. 2022)."""
    return maximum(network, type(local)(0), lambda y: y + local)


def local_slope(network: Part, target: Any) -> sp.Expr:
    """The local slope C'(1) >= 1 at which the network's maximal slope is ``target`` >= 1.

    A formula for a chain, else a number (1e-14). Raises SolveError where there is none.
    """
    goal = exact(target)
    if goal.is_number and float(goal) < 1:
        raise SolveError(
            f"no local slope >= 1 gives the network a slope of {target}", why="slopes multiply"
        )
    if isinstance(network, Sequence_) and all(p == LAYER for p in network.parts) and network.parts:
        return goal ** sp.Rational(1, len(network.parts))
    return sp.Float(_increasing(lambda mu: slope(network, mu) - float(goal), 1.0), 15)


def local_curvature(network: Part, target: Any) -> sp.Expr:
    """The local curvature C''(1) at which the network's maximal curvature is ``target``: target/M(1), exact."""
    whole = max(
        (p.through(sp.S.Zero, lambda y: y + 1) for p in (network, *network.inner())), key=float
    )
    if whole == 0:
        raise SolveError(
            "no local curvature gives the network one", why="it has no nonlinear layer"
        )
    return exact(target) / whole


def _increasing(excess: Callable[[float], float], low: float) -> float:
    """The root above ``low`` of an increasing function."""
    from scipy.optimize import brentq

    width = 1e-3
    while excess(low + width) < 0:
        width *= 2
        if width > 1e9:
            raise SolveError(
                "no local value reaches the network's target",
                why="the network has no nonlinear layer",
            )
    return float(brentq(excess, low, low + width, xtol=1e-15, rtol=1e-14))


def layers(network: Part) -> int:
    """How many nonlinear layers the longest path has."""
    if isinstance(network, Layer):
        return 1
    if isinstance(network, Residual):
        return max(layers(network.branch), layers(network.shortcut))
    return sum(map(layers, parts_of(network)))


def parts_of(network: Part) -> Sequence[Part]:
    """The parts of a sequence."""
    return network.parts if isinstance(network, Sequence_) else (network,)
