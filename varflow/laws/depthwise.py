"""Depthwise convolutions: sums of few products of a weight and a value, symmetric but not Gaussian.

Given what it reads, y[p] = sum_t w_t h[p + t] is symmetric of variance Var(w) S, S = sum_t h[p + t]^2; with Gaussian
weights it is Gaussian. So E f(y) g is E of the even part of f: where that is a quadratic form, E[y^2 g] is
Var(w) sum_t E[h[p + t]^2 g], the channel identity kept at the tap that reads the place itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import sympy as sp

from varflow.calculus import rename, symbols_in
from varflow.laws import moments as mo
from varflow.laws.blocks import carried, coefficient, is_argument, parts
from varflow.laws.distributions import NoFormula
from varflow.laws.given import coefficient_formula
from varflow.laws.moments import Formula, Quantity
from varflow.laws.numeric import vectorized
from varflow.laws.positions import Array, Mixing, Overall, completed, too_many, window_matrices
from varflow.laws.shared import parity
from varflow.laws.variables import (
    POSITION,
    SAME,
    Composite,
    Depthwise,
    Instance,
    MaskEntry,
    Standardized,
    Variable,
    View,
)
from varflow.program import Mix
from varflow.symbols import arg
from varflow.window import Window

if TYPE_CHECKING:
    from varflow.laws.joint import Laws

_FOURTH = {"normal": sp.Integer(3), "uniform": sp.Rational(9, 5), "rademacher": sp.S.One}
"""E w^4 / (E w^2)^2."""
POINTS = 32
_SIZE = sp.Symbol("size_of_symmetric", positive=True)


@lru_cache(maxsize=4096)
def even_part(f: sp.Expr, x: sp.Symbol) -> tuple[sp.Expr, sp.Expr, sp.Expr]:
    """(a, b, c) with (f(x) + f(-x)) / 2 = a + b |x| + c x^2: what a symmetric variable sees. Raises NoFormula."""
    both = rename(f, ((x, _SIZE),)) + rename(f, ((x, -_SIZE),))
    even = sp.expand(both / 2)
    if not even.is_polynomial(_SIZE) or sp.Poly(even, _SIZE).degree() > 2:
        raise NoFormula("a nonlinear function of a scale mixture")
    poly = sp.Poly(even, _SIZE)
    a, b, c = (poly.coeff_monomial(_SIZE**k) for k in range(3))
    return a, b, c


def of_symmetric(laws: Laws, f: sp.Expr, v: Depthwise | Standardized, coefficients: tuple[Quantity, ...]) -> Formula:
    """E[f(v)]. Raises NoFormula."""
    a, b, c = even_part(f, arg(0))
    _check_at_zero(laws, f, a, arg(0), v)
    parts = [coefficient_formula(a, coefficients)]
    if b != 0:
        parts.append(mo.product(coefficient_formula(b, coefficients), mean_size(laws, v)))
    if c != 0:
        parts.append(mo.product(coefficient_formula(c, coefficients), laws.second(Instance(v))))
    return mo.total(parts)


def _check_at_zero(laws: Laws, f: sp.Expr, even: sp.Expr, x: sp.Symbol, v: Depthwise | Standardized) -> None:
    """Raise NoFormula where f jumps at zero and the convolution is zero with some probability."""
    if f.subs(x, 0) != even and isinstance(v, Depthwise) and v.of is not None and vanishes(laws, v.of):
        raise NoFormula("a function that jumps at zero, of a depthwise convolution that may be zero", v.node)


def vanishes(laws: Laws, x: Instance) -> bool:
    """Whether a value is zero with some probability: relu of a symmetric value, a mask; seen at some points."""
    expr, leaves = flattened(x)
    if isinstance(x.variable, Depthwise):
        return x.variable.of is not None and vanishes(laws, x.variable.of)
    symbols = tuple(sorted(symbols_in(expr), key=str))
    rng = np.random.default_rng(len(symbols))
    drawn = rng.standard_normal((len(symbols), POINTS))
    values = {s: x if is_argument(s) else np.abs(x) for s, x in zip(symbols, drawn, strict=True)}
    for i, leaf in enumerate(leaves):
        if isinstance(leaf.variable, MaskEntry):
            values[arg(i)] = rng.integers(0, 2, POINTS).astype(np.float64)
    found = np.broadcast_to(vectorized(expr, symbols)(*(values[s] for s in symbols)), (POINTS,))
    return bool(np.any(found == 0)) and not np.all(found == 0)


# -- the mean size -----------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def mean_of_chi(terms: int) -> sp.Expr:
    """E of the product of a unit Gaussian's size and chi_n / sqrt(n)."""
    half = sp.Rational(1, 2)
    n = sp.Integer(terms)
    return 2 / sp.sqrt(sp.pi * n) * sp.gamma((n + 1) * half) / sp.gamma(n * half)


@dataclass(frozen=True)
class MeanSize:
    """E|y| of y[p] = sum_t w_t h[p + t] with Gaussian weights and a Gaussian h of independent places."""

    window: Window
    transpose: bool

    def apply(self, second: Array, of: Array) -> Array:
        """(P, 1) from E[y^2] and E[h^2]. Where places differ in size, a chi variable of as many degrees of freedom as
        the first two moments of sum_t h^2 say (Satterthwaite 1946)."""
        from scipy.special import gammaln

        matrices = window_matrices(self.window, self.transpose)
        q = np.broadcast_to(of, (matrices[0].shape[1], 1))
        total, squares = (np.asarray(sum(m @ x for m in matrices)) for x in (q, q**2))
        n = np.divide(total**2, squares, out=np.ones_like(total), where=squares > 0)
        chi = np.exp(gammaln((n + 1) / 2) - gammaln(n / 2)) / np.sqrt(n / 2)
        return np.asarray(np.sqrt(2 / np.pi * second) * chi)


def mean_size(laws: Laws, v: Depthwise | Standardized) -> Formula:
    """E|v|, by the law of chi where what it reads is Gaussian and independent from place to place."""
    of = v.of
    assert of is not None
    if isinstance(v, Standardized):
        raise NoFormula("the mean size of a normalized depthwise convolution", v.node)
    if v.distribution != "normal" or not of.variable.gaussian or not v.terms.is_Integer or v.transpose or v.backward:
        raise NoFormula("the mean size of a depthwise convolution of what is not Gaussian", v.node)
    if not laws.differs(of, False) or not laws.covariance(of, Instance(of.variable, of.moves, True),
                                                                  POSITION).is_zero:
        raise NoFormula("the mean size of a depthwise convolution of places that covary", v.node)
    if laws.profiles and v.window.mode not in ("zeros", "circular"):
        raise NoFormula("the mean size of a depthwise convolution behind mirrored borders", v.node)
    second, read = laws.second(Instance(v)), laws.second(of)
    limit = mo.combine(mean_of_chi(int(v.terms)) * sp.sqrt(mo.part(0)), [second])
    return laws.operated(MeanSize(v.window, v.transpose), (second, read), limit)


# -- beside what it reads ----------------------------------------------------------------------------


def beside(laws: Laws, expr: sp.Expr, indices: list[int], args: tuple[Instance, ...],
           coefficients: tuple[Quantity, ...], view: View) -> Formula:
    """E[expr] of depthwise convolutions and other basic variables: the newest one's weights first. Raises NoFormula."""
    which = max((i for i in indices if isinstance(args[i].variable, Depthwise)), key=lambda i: args[i].variable.born)
    y = args[which]
    v = y.variable
    assert isinstance(v, Depthwise)
    if sum(args[i].variable is v for i in indices) > 1:
        raise NoFormula("a scale mixture at two places", v.node)
    if v.backward and any(reads_weights(laws, args[i], v) for i in indices if i != which):
        raise NoFormula("a gradient beside a value of the same weights", v.node)
    if tied(laws, v) or any(crossed(laws, v, args[i].variable) for i in indices if i != which):
        raise NoFormula("a gradient of a value of the same weights", v.node)
    a, b, c = even_part(expr, arg(which))
    _check_at_zero(laws, expr, a, arg(which), v)
    if b != 0 and not _is_odd(b, args):
        raise NoFormula("the size of a scale mixture beside what it reads", v.node)
    rest = laws.expectation(a, args, coefficients, view) if a != 0 else mo.ZERO
    return mo.total([rest, _squared(laws, c, y, args, coefficients)]) if c != 0 else rest


def _is_odd(f: sp.Expr, args: tuple[Instance, ...]) -> bool:
    """Whether a function changes sign with the symmetric sources of its channel, as the size of a mixture does not."""
    used = {i: a.variable for i, a in enumerate(args) if arg(i) in symbols_in(f)}
    signs = {i: -1 if v.gaussian else parity(v) for i, v in used.items()}
    flipped = rename(f, tuple((arg(i), s * arg(i)) for i, s in signs.items()))
    return 0 not in signs.values() and not any(a.backward for a in used.values()) and sp.expand(flipped + f) == 0


# -- gradients ---------------------------------------------------------------------------------------


def reads_weights(laws: Laws, x: Instance, v: Depthwise) -> bool:
    """Whether a value depends on the weights of a gradient ``v`` other than through it."""
    return any(isinstance(r.variable, Depthwise) and r.variable is not v and r.variable.weight == v.weight
               for r in laws.roots(x))


def tied(laws: Laws, v: Depthwise) -> bool:
    """Whether the gradient W^T b knows W: b = s(y) c with y = W h. It does not matter where c is independent from
    place to place and s^2 has a constant even part, as relu' has: E[w_t^2 s(y)^2] = Var(w) E s^2 then."""
    if not v.backward or v.of is None or not reads_weights(laws, v.of, v):
        return False
    arriving = [r for r in laws.roots(v.of) if r.variable.backward]
    far = (Instance(r.variable, r.moves, True) for r in arriving)
    if not all(r.variable.gaussian and laws.covariance(r, f, POSITION).is_zero
               for r, f in zip(arriving, far, strict=True)):
        return True
    expr, leaves = flattened(v.of)
    return not all(_settled(expr**2, arg(i)) for i, x in enumerate(leaves) if reads_weights(laws, x, v))


def crossed(laws: Laws, u: Variable, v: Variable) -> bool:
    """Whether two gradients W^T b and V^T c of different weights covary, as b and c know both: those of f(W h) g(V h)
    and of f(W h) + g(V h), since |W h| and |V h| grow with the same h."""
    if not (isinstance(u, Depthwise) and isinstance(v, Depthwise)) or u.of is None or v.of is None:
        return False
    if not u.backward or not v.backward or u.weight == v.weight:
        return False
    (f, left), (g, right) = flattened(u.of), flattened(v.of)
    leaves = list(dict.fromkeys([*left, *right]))
    both = f * rename(g, tuple((arg(i), arg(leaves.index(x))) for i, x in enumerate(right)))
    mine, others = ([arg(i) for i, x in enumerate(leaves) if reads_weights(laws, x, w)] for w in (u, v))
    return any(x == y or not _is_even_in_one(both, x, y) for x in mine for y in others)


@lru_cache(maxsize=1024)
def _is_even_in_one(f: sp.Expr, x: sp.Symbol, y: sp.Symbol) -> bool:
    """Whether no part of f is odd in x and odd in y, seen at some points."""
    symbols = tuple(sorted(symbols_in(f), key=str))
    if x not in symbols or y not in symbols:
        return True
    rng = np.random.default_rng(len(symbols))
    values = dict(zip(symbols, rng.uniform(0.1, 2.0, (len(symbols), POINTS)), strict=True))
    function = vectorized(f, symbols)
    found = np.array([a * b * function(*({**values, x: a * values[x], y: b * values[y]}[s] for s in symbols))
                      for a in (1, -1) for b in (1, -1)])
    return bool(np.all(np.abs(found.sum(axis=0)) <= 1e-9 * np.abs(found).max(axis=0)))


def known_by_moments(laws: Laws, u: Variable, v: Variable) -> bool:
    """Whether E[u v] is that of Gaussians of the same second moments."""
    each = all(z.gaussian or (isinstance(z, Depthwise) and not tied(laws, z)) for z in (u, v))
    return each and not crossed(laws, u, v)


def _settled(f: sp.Expr, x: sp.Symbol) -> bool:
    """Whether the even part of a function of x does not depend on x."""
    try:
        _, b, c = even_part(f, x)
    except NoFormula:
        return False
    return bool(b == 0 and c == 0)


def flattened(x: Instance) -> tuple[sp.Expr, list[Instance]]:
    """A value as one expression (coefficients left as they are, each composite's own) of what is no composite."""
    leaves: dict[Instance, int] = {}

    def written(x: Instance) -> sp.Expr:
        v = x.variable
        if not isinstance(v, Composite):
            return arg(leaves.setdefault(x, len(leaves)))
        own = tuple((coefficient(i), sp.Symbol(f"k_{v.born}_{i}", real=True)) for i in range(len(v.coefficients)))
        return rename(v.expr, (*((arg(i), written(carried(a, x))) for i, a in enumerate(v.args)), *own))

    return written(x), list(leaves)


def returned(laws: Laws, apart: Formula, window: Window, transpose: bool, distribution: str) -> Formula:
    """What E[(sum_t w_t s[p + t])^2] / Var(w) gains behind batch norm, s y having the moment ``apart`` between places.

    Given w, normalized values y of independent entries are Gaussian, and their correlation between the places that
    read an entry by the taps t and t' is w_t w_t' / |w|^2 and terms that do not vary with w_t w_t'. By Price's theorem
    E[s s'] gains E[ds/dy ds'/dy'] times it, which is E[s y s' y'] (Stein), and n E[w_t^2 w_t'^2] / |w|^4 = 1/(n + 2)
    for n Gaussian weights.
    """
    mixing = Mixing(mix := Mix(window, (sp.S.One,) * window.taps, transpose), mix, False)
    pairs = laws.operated(mixing, (mo.ZERO, apart), mo.combine(mixing.limit[1] * mo.part(0), [apart]))
    return mo.product(pairs, mo.constant(1 / (window.taps - 1 + _FOURTH.get(distribution, sp.Integer(3)))))


# -- beside a value at its place ---------------------------------------------------------------------


def _squared(laws: Laws, g: sp.Expr, y: Instance, args: tuple[Instance, ...],
             coefficients: tuple[Quantity, ...]) -> Formula:
    """E[y^2 g] = Var(w) sum_t E[h[p + t]^2 g] for a function g of what stands at the place of y."""
    v = y.variable
    assert isinstance(v, Depthwise) and v.of is not None
    w = v.window
    if y.there or any(x.there for x in args) or w.inputs != w.outputs or v.terms != w.taps:
        raise NoFormula("a scale mixture beside a value on another grid, or at another place", v.node)
    of = carried(v.of, y)
    if any(laws.dependent(x, of, SAME) and depthwise_in(x) for i, x in enumerate(args) if g.has(arg(i))):
        raise NoFormula("two depthwise convolutions that read the same places", v.node)
    at = [laws.expectation(g * arg(len(args)) ** 2, (*args, x), coefficients, view)
          for x, view in ((of, SAME), (Instance(of.variable, of.moves, True), POSITION))]
    centre = int(reads_itself(w))
    limit = mo.combine(centre * mo.part(0) + (w.taps - centre) * mo.part(1), at)
    found = laws.operated(Gathering(w, v.transpose), tuple(at), limit)
    return mo.product(mo.constant(v.variance), found)


def depthwise_in(x: Instance) -> bool:
    """Whether a value is made of a depthwise convolution."""
    return isinstance(x.variable, Depthwise) or any(map(depthwise_in, parts(x.variable)))


def reads_itself(w: Window) -> bool:
    """Whether one tap of a window reads the place itself."""
    return all(low % d == 0 and low // d < k and s == 1
               for (low, _), d, k, s in zip(w.padding, w.dilation, w.kernel, w.stride, strict=True))


@dataclass(frozen=True)
class Gathering:
    """sum_t s[p, p + t] over the taps of a window on one grid (its transpose)."""

    window: Window
    transpose: bool

    def apply(self, same: Array, other: Array) -> Array:
        """(P, 1) from moments at one place (P, 1) and between two (P, P')."""
        if too_many(self.window):
            centre = int(reads_itself(self.window))
            return np.full((1, 1), centre * same.mean() + (self.window.taps - centre) * other.mean())
        matrices = window_matrices(self.window, self.transpose)
        full = completed(other, same, matrices[0].shape[1])
        return np.asarray(sum(m.multiply(full).sum(axis=1) for m in matrices), dtype=np.float64).reshape(-1, 1)


def spread_of_scale(laws: Laws, v: Depthwise) -> Quantity:
    """1 / (Var S / (E S)^2), S = sum_t h[p + t]^2: the shape of the gamma law that the squared scale of a depthwise
    convolution is given. Raises NoFormula."""
    of = v.of
    assert of is not None
    far = Instance(of.variable, of.moves, True)
    fourth = laws.expectation(arg(0) ** 4, (of,), (), SAME)
    apart = laws.expectation(arg(0) ** 2 * arg(1) ** 2, (of, far), (), POSITION)
    parts = [laws.operated(Overall(), (f,), f) for f in (fourth, apart, laws.second(of))]
    p, n = mo.part, mo.part(3)
    shape = n / (p(0) / p(2) ** 2 - 1 + (n - 1) * (p(1) / p(2) ** 2 - 1))
    return laws.quantity(mo.combine(shape, [*parts, mo.constant(v.terms)]), "k", v.node)
