"""The map of correlations through a network of one activation, every layer keeping the second moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
import sympy as sp

from varflow import composition
from varflow.composition import Part
from varflow.errors import InputError
from varflow.gain_numbers import ActivationNumbers
from varflow.maps import ActivationMaps, Q
from varflow.onevariable import activation_in_x, exact
from varflow.symbols import X

NODES = 96
"""Chebyshev nodes in sqrt(1 - c), in which kinks of f leave the map smooth: interpolation to about 1e-12."""


@dataclass(frozen=True)
class LocalMap:
    """C(c) = E[f(u) f(v)]/E f^2 at variance ``q``, f an expression in ``symbols.X`` without other symbols."""

    activation: sp.Expr
    q: float = 1.0

    @cached_property
    def numbers(self) -> ActivationNumbers:
        """Moments and kernels."""
        return ActivationNumbers(self.activation)

    @cached_property
    def _series(self) -> Callable[[Any], Any]:
        from numpy.polynomial import Chebyshev

        points = (1 + np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)) / 2
        kernel = np.asarray(self.numbers.kernel(self.q, 1 - points**2))
        return Chebyshev.fit(points, kernel / self.second, NODES - 1, domain=[0, 1])

    @cached_property
    def second(self) -> float:
        """E f^2."""
        return float(self.numbers.second_moment(self.q))

    def direct(self, c: Any) -> Any:
        """C(c) by its integral, -1 <= c <= 1."""
        return self.numbers.kernel(self.q, c) / self.second

    def __call__(self, c: float) -> float:
        """C(c); interpolated (about 1e-12) for 0 <= c <= 1."""
        if c >= 1:
            return 1.0
        return float(self._series(np.sqrt(1 - c))) if c >= 0 else float(self.direct(c))

    def slope(self, c: float) -> float:
        """C'(c) = q E[f'(u) f'(v)]/E f^2."""
        return float(self.numbers.kernel_slope(self.q, c)) / self.second


@dataclass(frozen=True)
class NetworkMap:
    """A network of one activation as a map of correlations; made by :func:`network_map`.

    Every layer is scaled so that it keeps the second moment ``q`` of its argument: s_w = q/E f^2, no bias.
    """

    activation: sp.Expr
    network: Part
    q: sp.Expr = sp.S.One

    @cached_property
    def local(self) -> LocalMap:
        """The map of one layer."""
        if self.activation.free_symbols - {X} or self.q.free_symbols:
            raise InputError(
                "the activation or q holds symbols", why="maps are followed in numbers"
            )
        return LocalMap(self.activation, float(self.q))

    @cached_property
    def formula(self) -> sp.Expr | None:
        """C(c) of one layer as a function of ``varflow.maps.C``, with integrals where no closed form is known."""
        maps = ActivationMaps(self.activation, sp.S.One)
        kernel, second = maps.kernel, maps.second_moment_formula
        if kernel is None or second is None:
            return None
        return kernel.subs(Q, self.q) / second.subs(Q, self.q)

    def c(self, c: float) -> float:
        """The correlation of two outputs whose inputs correlate by c."""
        return float(self.network.through(float(c), self.local))

    def largest_c(self, c: float = 0.0) -> float:
        """The largest such correlation over all subnetworks (C_f(0) of the conditions of DKS and TAT)."""
        return float(composition.maximum(self.network, float(c), self.local))

    @cached_property
    def local_slope(self) -> float:
        """C'(1) of one layer: q E f'^2/E f^2."""
        return self.local.slope(1.0)

    @cached_property
    def local_curvature(self) -> float:
        """C''(1) of one layer: q^2 E f''^2/E f^2; infinite where f' jumps."""
        from varflow.laws.expectation import has_jump

        if has_jump(sp.sympify(self.local.numbers.slope), X):
            return float("inf")
        q = self.local.q
        return (
            float(q**2 * self.local.numbers.second_derivative_second_moment(q)) / self.local.second
        )

    @property
    def slope(self) -> float:
        """C_f'(1) of the network."""
        return float(self.network.through(1.0, lambda y: y * self.local_slope))

    @property
    def largest_slope(self) -> float:
        """The largest C'(1) over all subnetworks (Martens et al. 2021)."""
        return float(composition.slope(self.network, self.local_slope))

    def trajectory(self, c: float) -> list[float]:
        """The correlation before the first and after each part of a sequence."""
        values = [float(c)]
        for part in composition.parts_of(self.network):
            values.append(float(part.through(values[-1], self.local)))
        return values


def network_map(activation: str | sp.Expr, network: Part | int, q: Any = 1) -> NetworkMap:
    """The correlation map of a network: a :class:`~varflow.composition.Part`, or a depth of plain layers.

    Raises ExpressionError, InputError for an activation that is not one of ``x``.
    """
    part: Any = composition.chain(int(network)) if isinstance(network, Integral) else network
    composition.require_part(part, "the network")
    return NetworkMap(activation_in_x(activation), part, exact(q))
