"""Closed forms of one cell: sums of polynomial x exp(quadratic) x erf x sin/cos over half spaces.

exp(linear) shifts the mean (Girsanov), exp(square) changes the covariance, erf(L) is the probability of a
half space of a fresh Gaussian, sin and cos are exponentials of an imaginary argument (oscillations.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product

import sympy as sp

from varflow.laws.algebra import Line, affine, line, ordered, products
from varflow.laws.cells import Bounds, NotFlat, split
from varflow.laws.distributions import NoFormula
from varflow.laws.orthants import Corner, corner_moment
from varflow.laws.oscillations import Oscillation, Tail, above, whole
from varflow.laws.pairs import Matrix, NotClosed, moment
from varflow.laws.powers import as_powers
from varflow.laws.quadratics import root_moment
from varflow.laws.reach import radical
from varflow.laws.straight import bottom_up

Covariance = Callable[[sp.Symbol, sp.Symbol], sp.Expr]
MAX_CUTS, MAX_PIECES = 3, 4000
CENTRAL = 8
"""Degree up to which central orthants have templates."""


class Exhausted(Exception):
    """More work than a closed form is worth."""


@dataclass
class Budget:
    """How many pieces may still be integrated."""

    left: int

    def spend(self, pieces: int) -> None:
        self.left -= pieces
        if self.left < 0:
            raise Exhausted


@dataclass(frozen=True)
class Half:
    """The half space form > threshold."""

    form: sp.Expr
    threshold: sp.Expr


@dataclass(frozen=True)
class Piece:
    """coefficient * monomial * exp(exponent) * cos or sin(phase) on an intersection of half spaces."""

    coefficient: sp.Expr
    powers: tuple[tuple[sp.Symbol, int], ...]
    exponent: sp.Expr
    waves: tuple[sp.Expr, ...]
    errors: tuple[Line, ...]
    halves: tuple[Half, ...]
    roots: tuple[sp.Expr, ...] = ()
    single: bool = False
    """Whether it is a function of one variable."""


def closed(
    expr: sp.Expr,
    variables: frozenset[sp.Symbol],
    covariance: Covariance,
    budget: Budget | None = None,
) -> sp.Expr:
    """E[expr] over zero-mean Gaussians, every part of it in closed form, else NotClosed; not yet tidy.

    Raises Exhausted where that takes more pieces than the budget has.
    """
    budget = budget or Budget(MAX_PIECES)
    try:
        return _closed(expr, variables, covariance, budget)
    except NoFormula:
        raise NotClosed from None


def _closed(
    expr: sp.Expr, variables: frozenset[sp.Symbol], covariance: Covariance, budget: Budget
) -> sp.Expr:
    try:
        cells = split(expr, variables)
    except NotFlat:
        raise NotClosed from None
    found = []
    for cell in cells:
        if cell.body == 0:
            continue
        for sign, halves in _half_spaces(cell.bounds):
            for piece in _pieces(cell.body, variables, halves):
                budget.spend(_work(piece))
                found.append((sign, piece))
    return sp.Add(*[sign * _expect(piece, covariance) for sign, piece in found])


def _work(piece: Piece) -> int:
    """What a piece costs, in simple ones: truncated moments of high degree are long, those of two erf longer."""
    degree = sum(k for _, k in piece.powers)
    if piece.waves and piece.halves:
        return (1 + len(piece.waves) // 2 + degree // 4) << len(piece.errors)
    cuts = len(piece.errors) + len(piece.halves)
    long = (1 + degree // 2) * (1 + degree // 4) if cuts > 2 else 1 + degree // 4 if cuts > 1 or piece.halves else 1
    work: int = 2 ** len(piece.errors) * (1 + len(piece.waves)) * long
    return work


def _half_spaces(bounds: Bounds) -> Iterator[tuple[int, tuple[Half, ...]]]:
    """Every bound as a signed sum of half spaces, multiplied out."""
    options: list[list[tuple[int, Half]]] = []
    for form, lo, hi in bounds:
        if hi == sp.oo:
            options.append([(1, Half(form, lo))])
        elif lo == sp.S.NegativeInfinity:
            options.append([(1, Half(-form, -hi))])
        else:
            options.append([(1, Half(form, lo)), (-1, Half(form, hi))])
    for choice in product(*options):
        yield int(sp.prod([s for s, _ in choice])), tuple(h for _, h in choice)


def _pieces(
    body: sp.Expr, variables: frozenset[sp.Symbol], halves: tuple[Half, ...]
) -> Iterator[Piece]:
    for coefficient, powers in products(_plain(body), variables):
        piece = Piece(coefficient, (), sp.S.Zero, (), (), halves, single=len(variables) == 1)
        for factor, power in powers.items():
            piece = _absorb(piece, factor, power, variables)
        yield piece


def _plain(body: sp.Expr) -> sp.Expr:
    """sinh, cosh, erfc, powers of numbers in terms of exp and erf."""
    made: sp.Expr = bottom_up(body, (_plain_node,))
    return made


def _plain_node(expr: sp.Expr) -> sp.Expr:
    if isinstance(expr, (sp.sinh, sp.cosh)):
        x, sign = expr.args[0], 1 if isinstance(expr, sp.cosh) else -1
        return (sp.exp(x) + sign * sp.exp(-x)) / 2
    if isinstance(expr, sp.erfc):
        return 1 - sp.erf(expr.args[0])
    if isinstance(expr, sp.Pow) and expr.exp.free_symbols and expr.base.is_positive:
        return sp.exp(expr.exp * sp.log(expr.base))
    return expr


def _absorb(piece: Piece, factor: sp.Expr, power: int, variables: frozenset[sp.Symbol]) -> Piece:
    if factor in variables and power >= 0:
        return replace(piece, powers=(*piece.powers, (factor, power)))
    if isinstance(factor, sp.exp):
        return replace(piece, exponent=piece.exponent + power * factor.args[0])
    if isinstance(factor, sp.Pow) and radical(factor, variables) is not None:
        return replace(piece, roots=(*piece.roots, factor**power))
    straight = line(factor.args[0], variables) if len(factor.args) == 1 else None
    if straight is None or power < 0:
        raise NotClosed
    if isinstance(factor, sp.erf):
        return replace(piece, errors=piece.errors + (straight,) * power)
    if isinstance(factor, (sp.sin, sp.cos)):
        shift = sp.pi / 2 if isinstance(factor, sp.sin) else sp.S.Zero
        return replace(piece, waves=piece.waves + (factor.args[0] - shift,) * power)
    raise NotClosed


def _expect(piece: Piece, covariance: Covariance) -> sp.Expr:
    """Remove erf factors (fresh half spaces) and products of waves, then integrate."""
    if piece.roots:
        return piece.coefficient * _with_root(piece, covariance)
    if len(piece.errors) + len(piece.halves) > MAX_CUTS:
        raise NotClosed
    fresh = [sp.Dummy(f"w{i}", real=True) for i in range(len(piece.errors))]

    def extended(u: sp.Symbol, v: sp.Symbol) -> sp.Expr:
        if u in fresh or v in fresh:
            return sp.Integer(int(u == v))
        return covariance(u, v)

    total = []
    for keep in product((False, True), repeat=len(fresh)):
        halves = [
            Half(sp.sqrt(2) * e.scale * e.form + w, -sp.sqrt(2) * e.constant)
            for e, w, k in zip(piece.errors, fresh, keep, strict=True)
            if k
        ]
        weight = 2 ** sum(keep) * (-1) ** (len(fresh) - sum(keep))
        cut = replace(piece, halves=(*piece.halves, *halves))
        for wave_weight, phase in _single_waves(piece.waves):
            total.append(weight * wave_weight * _integrate(cut, phase, extended))
    return piece.coefficient * sp.Add(*total)


def _with_root(piece: Piece, covariance: Covariance) -> sp.Expr:
    """A monomial times a power of a quadratic, over the whole line."""
    roots = sp.Mul(*piece.roots)
    names = frozenset(v for v in roots.free_symbols if _is_variable(v, covariance))
    found = radical(roots, names)
    simple = not (piece.errors or piece.halves or piece.waves) and piece.exponent == 0
    if found is None or not simple or any(v != found[0] for v, _ in piece.powers):
        raise NotClosed
    degree = sum(k for _, k in piece.powers)
    z, a, b = found
    power = roots.exp
    return a**power * root_moment(degree, power, b / a, covariance(z, z))


def _single_waves(waves: tuple[sp.Expr, ...]) -> list[tuple[sp.Expr, sp.Expr]]:
    """A product of cosines as a weighted sum of single cosines (phase 0: the constant 1)."""
    if not waves:
        return [(sp.S.One, sp.S.Zero)]
    result: dict[sp.Expr, sp.Expr] = {waves[0]: sp.S.One}
    for wave in waves[1:]:
        wider: dict[sp.Expr, sp.Expr] = {}
        for phase, weight in result.items():
            for s in (1, -1):
                total = sp.expand(phase + s * wave)
                if -total in wider:
                    total = -total
                wider[total] = wider.get(total, sp.S.Zero) + weight / 2
        result = wider
    return [(weight, phase) for phase, weight in result.items()]


class _Law:
    """A Gaussian law on named variables, changed by exponential tilts."""

    def __init__(self, names: list[sp.Symbol], covariance: Covariance) -> None:
        self.names = names
        self.cov = [[covariance(u, v) for v in names] for u in names]
        self.mean: list[sp.Expr] = [sp.S.Zero] * len(names)
        self.factor: sp.Expr = sp.S.One

    def vector(self, form: sp.Expr) -> list[sp.Expr]:
        found = affine(form, self.names)
        if found is None:
            raise NotClosed
        return [found[0].get(v, sp.S.Zero) for v in self.names]

    def image(self, a: list[sp.Expr]) -> list[sp.Expr]:
        return [sp.Add(*[r * x for r, x in zip(row, a, strict=True)]) for row in self.cov]

    def dot(self, a: list[sp.Expr], b: list[sp.Expr]) -> sp.Expr:
        return sp.expand(sp.Add(*[x * y for x, y in zip(a, b, strict=True)]))

    def quadratic(self, weights: sp.Matrix) -> None:
        """Multiply by exp(x' weights x); the mean must still be zero."""
        sigma = sp.Matrix(self.cov)
        n = len(self.names)
        change = sp.eye(n) - 2 * weights * sigma
        below = sp.expand(change.det())
        if not (_decays(weights) or (n == 1 and below.is_positive)):
            raise NotClosed
        self.factor /= sp.sqrt(below)
        self.cov = (sigma * change.adjugate() / below).applyfunc(sp.cancel).tolist()

    def shift(self, a: list[sp.Expr]) -> None:
        """Multiply by exp(a.x)."""
        image = self.image(a)
        self.factor *= sp.exp(sp.cancel(self.dot(a, image) / 2))
        self.mean = [sp.cancel(m + x) for m, x in zip(self.mean, image, strict=True)]


def _decays(weights: sp.Matrix) -> bool:
    """Whether x' weights x is never positive: by the signs of principal minors (sympy's own test simplifies them, which
    can take a hundred times as long), by sympy where they do not tell."""
    minors = (
        sp.factor((-weights).extract(rows, rows).det())
        for size in range(1, weights.rows + 1)
        for rows in map(list, combinations(range(weights.rows), size))
    )
    signs = [True if m.is_nonnegative else False if m.is_negative else None for m in minors]
    if False in signs or None not in signs:
        return False not in signs
    return bool(weights.is_negative_semidefinite)


def _integrate(piece: Piece, phase: sp.Expr, covariance: Covariance) -> sp.Expr:
    """E[monomial exp(exponent) cos(phase) 1(halves)]."""
    symbols = set().union(*(h.form.free_symbols for h in piece.halves), piece.exponent.free_symbols)
    symbols |= phase.free_symbols | {v for v, _ in piece.powers}
    names = ordered(s for s in symbols if _is_variable(s, covariance))
    law = _Law(names, covariance)
    constant, linear, bounded = _tilt(law, piece.exponent)
    wave, offset = _wave(law, phase)
    if any(linear):
        law.shift(linear)
    scale = sp.exp(constant) * law.factor
    if any(wave):
        return scale * _oscillating(piece, law, wave, offset, scale != 1)
    growing = scale != 1 and not (len(piece.halves) == 2 and (bounded or piece.single))
    return scale * sp.cos(offset) * _moment(piece, law, growing)


def _is_variable(symbol: sp.Symbol, covariance: Covariance) -> bool:
    try:
        return bool(covariance(symbol, symbol) != 0)
    except KeyError:
        return False


def _tilt(law: _Law, exponent: sp.Expr) -> tuple[sp.Expr, list[sp.Expr], bool]:
    """Apply the quadratic part of the exponent; its constant and linear part, and whether it is bounded above."""
    index = {v: i for i, v in enumerate(law.names)}
    constant: sp.Expr = sp.S.Zero
    linear: list[sp.Expr] = [sp.S.Zero] * len(index)
    weights = sp.zeros(len(index))
    for coefficient, powers in products(exponent, law.names):
        if not powers.keys() <= index.keys() or sum(powers.values()) > 2:
            raise NotClosed
        places = [index[v] for v, k in powers.items() for _ in range(k)]
        if len(places) == 2:
            weights[places[0], places[1]] += coefficient / 2
            weights[places[1], places[0]] += coefficient / 2
        elif places:
            linear[places[0]] += coefficient
        else:
            constant += coefficient
    if not weights.is_zero_matrix:
        law.quadratic(weights)
    square = weights.is_diagonal() and all(weights[i, i].is_nonpositive for i in index.values())
    bounded = square and all(weights[i, i].is_negative for i, a in enumerate(linear) if a != 0)
    return constant, linear, bool(bounded)


def _wave(law: _Law, phase: sp.Expr) -> tuple[list[sp.Expr], sp.Expr]:
    found = affine(phase, law.names)
    if found is None:
        raise NotClosed
    return [found[0].get(v, sp.S.Zero) for v in law.names], found[1]


def _oscillating(
    piece: Piece, law: _Law, wave: list[sp.Expr], offset: sp.Expr, tilted: bool
) -> sp.Expr:
    """E[monomial cos(wave.x + offset)], over the whole space or one half space."""
    image = law.image(wave)
    places = [law.names.index(v) for v, _ in piece.powers]
    swing = Oscillation(
        tuple(k for _, k in piece.powers),
        tuple(law.mean[i] for i in places),
        tuple(tuple(law.cov[i][j] for j in places) for i in places),
        tuple(image[i] for i in places),
        law.dot(wave, image),
        sp.expand(offset + law.dot(wave, law.mean)),
    )
    if not piece.halves:
        return whole(swing)
    forms, thresholds = _coordinates(piece.halves)
    if len(forms) > 1:
        raise NotClosed
    form = law.vector(forms[0])
    spread = law.image(form)
    tail = Tail(
        _tidy(sp.expand(thresholds[0] - law.dot(form, law.mean))),
        _tidy(law.dot(form, spread)),
        tuple(_tidy(spread[i]) for i in places),
        _tidy(law.dot(form, image)),
        tilted,
    )
    if tail.variance == 0:
        raise NotClosed
    return above(swing, tail)


def _moment(piece: Piece, law: _Law, tilted: bool) -> sp.Expr:
    """Name the coordinates (monomial variables, half-space forms) and ask for their moment."""
    forms, thresholds = _coordinates(piece.halves)
    exponents, sign = [0] * len(forms), 1
    for v, k in piece.powers:
        if -v in forms:
            exponents[forms.index(-v)], sign = k, sign * (-1) ** k
            continue
        if v not in forms:
            forms.append(v)
            exponents.append(0)
        exponents[forms.index(v)] = k
    vectors = [law.vector(f) for f in forms]
    images = [law.image(a) for a in vectors]
    gram: Matrix = tuple(tuple(_tidy(law.dot(a, b)) for b in images) for a in vectors)
    mean = tuple(_tidy(law.dot(a, law.mean)) for a in vectors)
    if any(gram[i][i] == 0 for i in thresholds):
        raise NotClosed
    if piece.single and len(thresholds) == 2 and gram[0][1] != 0 and not tilted:
        gaps = tuple(sp.expand(t - mean[i]) for i, t in thresholds.items())
        if any(gaps) or sum(exponents) > CENTRAL:
            i = next((i for i, k in enumerate(exponents) if k), 0)
            both = Corner(mean[i], gram[i][i], gram[i][:2], gaps, (gram[0][0], gram[1][1]), gram[0][1])
            return sign * corner_moment(exponents[i], both)
    return sign * moment(tuple(exponents), mean, gram, thresholds, tilted)


def _tidy(expr: sp.Expr) -> sp.Expr:
    return expr if expr.is_Atom or expr.is_polynomial() else as_powers(sp.together(expr))


def _coordinates(halves: tuple[Half, ...]) -> tuple[list[sp.Expr], dict[int, sp.Expr]]:
    forms: list[sp.Expr] = []
    thresholds: dict[int, sp.Expr] = {}
    for half in halves:
        straight = affine(half.form, half.form.free_symbols)
        form, threshold = half.form, half.threshold
        if straight is not None and len(straight[0]) == 1:
            (k,) = straight[0].values()
            size = k if k.is_positive else -k
            form, threshold = half.form / size, half.threshold / size
        thresholds[len(forms)] = threshold
        forms.append(form)
    return forms, thresholds
