"""Depthwise convolutions that a batch norm normalizes: by a standard deviation that its weights know.

y[p] = sum_t w_t h[p + t] has one list of weights w for all places and samples of a channel. Over a large batch its mean
is sum_t w_t m_t, m_t the mean of what tap t reads, and its variance w^T C w, C[t, t'] the covariance of what two taps
read, averaged over places. Normalized values and 1/s are therefore functions of w and h alone: exact as widths and the
batch grow, where h has nothing in common between samples (where borders give it something, to first order in it).
Normalized values do not know the size of w, and with Gaussian weights, by 1/a = int exp(-x a) dx,

    E[1/s^2] = int_0^inf exp(-x eps) det(1 + 2 x Var(w) C)^(-1/2) dx,

which is infinite where C has two positive eigenvalues or one: where at most two taps ever see the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import sympy as sp

from varflow.calculus import rename, symbols_in
from varflow.laws import depthwise
from varflow.laws import moments as mo
from varflow.laws.blocks import coefficient
from varflow.laws.crops import shares
from varflow.laws.depthwise import even_part
from varflow.laws.distributions import NoFormula
from varflow.laws.images import reading, together
from varflow.laws.moments import Formula, Quantity
from varflow.laws.positions import Array, completed, too_many
from varflow.laws.variables import (
    APART,
    POSITION,
    SAMPLE,
    Depthwise,
    Instance,
    Inverse,
    Standardized,
    View,
)
from varflow.symbols import arg
from varflow.window import Window

if TYPE_CHECKING:
    from varflow.laws.joint import Laws

MIXTURES = (Depthwise, Standardized, Inverse)
DISTRIBUTIONS = ("normal", "uniform", "rademacher")


@dataclass(frozen=True)
class TapCovariance:
    """C[t, t']: the covariance of what two taps of a window read, over places and a large batch; on a crop, over the
    places of the grid ``read`` that it stands for."""

    window: Window
    read: tuple[int, ...] = ()

    def apply(self, same: Array, other: Array, sample: Array, apart: Array) -> Array:
        """(taps, taps) from moments at one place and between two, then between samples."""
        w = self.window
        if too_many(w):
            q, c, shared = (float(x.mean()) for x in (same, other, apart))
            return np.asarray((q - c) * np.eye(w.taps) + c - shared)
        weights = shares(self.read, tuple(int(n) for n in w.outputs)) if self.read else None
        reads = reading(w, weights)
        places = reads.shape[1]
        full, between = completed(other, same, places), completed(apart, sample, places)
        return np.asarray(together(w, full, weights) - reads @ between @ reads.T)


def standardized(laws: Laws, y: Instance, eps: sp.Expr, **label: object) -> Instance:
    """A normalized depthwise convolution. Raises NoFormula."""
    v = y.variable
    assert isinstance(v, Depthwise) and v.of is not None
    if not laws.profiles or not laws.samples_apart or v.terms != v.window.taps or v.distribution not in DISTRIBUTIONS:
        raise NoFormula("a norm that its weights do not know", v.node)
    h = v.of
    far = Instance(h.variable, h.moves, True)
    parts = (laws.second(h), *(laws.pair(h, far, w) for w in (POSITION, SAMPLE, APART)))
    scale = laws.quantity(laws.operated(TapCovariance(v.window), parts, mo.ONE), "c", v.node)
    mean = laws.quantity(laws.mean(h), "m", v.node)
    return Instance(Standardized(of=y, scale=scale, mean=mean, eps=eps, **label))  # type: ignore[arg-type]


def inverse_of(y: Instance, **label: object) -> Instance:
    """1/s of a normalized value."""
    v = y.variable
    assert isinstance(v, Standardized)
    return Instance(Inverse(of=v.of, scale=v.scale, mean=v.mean, eps=v.eps, **label), y.moves)  # type: ignore[arg-type]


def beside(laws: Laws, expr: sp.Expr, indices: list[int], args: tuple[Instance, ...],
           coefficients: tuple[Quantity, ...], view: View) -> Formula:
    """E[expr] of depthwise convolutions, normalized or not, and other basic variables. Raises NoFormula."""
    if any(isinstance(args[i].variable, Standardized | Inverse) for i in indices):
        return _beside_scale(laws, expr, indices, args, coefficients)
    return depthwise.beside(laws, expr, indices, args, coefficients, view)


def _beside_scale(laws: Laws, expr: sp.Expr, indices: list[int], args: tuple[Instance, ...],
                 coefficients: tuple[Quantity, ...]) -> Formula:
    """E[1/s^2 f(y)] where the even part of f is a constant: y does not know its sign. Raises NoFormula."""
    inverses = [i for i in indices if isinstance(args[i].variable, Inverse)]
    others = [i for i in indices if i not in inverses]
    if len(inverses) != 1 or len(others) > 1 or any(not isinstance(args[i].variable, Standardized) for i in others):
        raise NoFormula("a normalized depthwise convolution beside what it reads", args[indices[0]].variable.node)
    k = args[inverses[0]]
    f = sp.expand(expr / arg(inverses[0]) ** 2)
    if arg(inverses[0]) in symbols_in(f) or any(coefficient(i) in symbols_in(f) for i in range(len(coefficients))):
        raise NoFormula("a function of a normalized depthwise convolution", k.variable.node)
    constant, size, square = even_part(rename(f, ((arg(others[0]), arg(0)),)), arg(0)) if others else (f, 0, 0)
    if size != 0 or square != 0:
        raise NoFormula("the size of a normalized depthwise convolution beside its scale", k.variable.node)
    return mo.product(mo.constant(constant), laws.second(k))
