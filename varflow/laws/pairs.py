"""E[x_1^e_1 ... x_n^e_n 1(x_i > t_i, ...)] of jointly Gaussian x, by Stein's lemma.

Stein (1981): E[x_a g] = mu_a E[g] + sum_b Cov(x_a, x_b) E[d_b g]; the derivative of an indicator is a delta,
that is a density times an expectation conditional on the border. What is left are orthant probabilities:
one threshold (erf), two (Phi2), two or three central ones (arcsin; Sheppard 1899), independent ones.
Each answer is computed once for a pattern of zeros, in dummies, and then filled in.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from itertools import combinations, combinations_with_replacement, product

import sympy as sp

from varflow.binormal import Phi2

MAX_DEGREE, MAX_NAMED = 24, 4


class NotClosed(Exception):
    """No closed form is known."""


Vector = tuple[sp.Expr, ...]
Matrix = tuple[Vector, ...]


@dataclass(frozen=True)
class Pattern:
    """Which numbers of a moment are zero: the key of its template."""

    exponents: tuple[int, ...]
    cut: tuple[int, ...]
    zero_mean: tuple[bool, ...]
    zero_threshold: tuple[bool, ...]
    correlated: frozenset[tuple[int, int]]
    tilted: bool
    mirror: int = 0
    """1 or -1: two coordinates of one variance, the second threshold is the first or its negative."""


def moment(
    exponents: tuple[int, ...],
    mean: Vector,
    gram: Matrix,
    thresholds: dict[int, sp.Expr],
    tilted: bool = False,
) -> sp.Expr:
    """The moment, x ~ N(mean, gram), coordinate i > thresholds[i]; NotClosed if none is known.

    ``tilted``: the caller multiplies by a growing exponential, so tails are written with erfc.
    """
    most = MAX_DEGREE if len(thresholds) < 2 else 16 if len(exponents) == 2 else 8
    if sum(exponents) > most:
        raise NotClosed
    n = range(len(exponents))
    shift = {i: sp.expand(thresholds[i] - mean[i]) for i in thresholds}
    pattern = Pattern(
        exponents,
        tuple(sorted(thresholds)),
        tuple(mean[i] == 0 for i in n),
        tuple(shift[i] == 0 for i in sorted(shift)),
        frozenset((i, j) for i, j in combinations(n, 2) if gram[i][j] != 0),
        tilted,
        _mirror(gram, shift),
    )
    values: dict[sp.Expr, sp.Expr] = {_MEAN(i): mean[i] for i in n}
    values |= {_SHIFT(i): s for i, s in shift.items()}
    if pattern.mirror:
        r = sp.cancel(gram[0][1] / gram[0][0])
        values |= {_BELOW: 1 - r, _ABOVE: 1 + r, _BOTH: sp.expand(1 - r**2)}
    values |= {_GRAM(i, j): gram[i][j] for i in n for j in n if j >= i}
    template = None if _hopeless(pattern) else _template(pattern)
    if template is None:
        raise NotClosed
    return template.xreplace(values)


def _mirror(gram: Matrix, shift: dict[int, sp.Expr]) -> int:
    if len(gram) != 2 or len(shift) != 2 or 0 in shift.values() or gram[0][0] != gram[1][1] or gram[0][1] == 0:
        return 0
    return 1 if shift[0] == shift[1] else -1 if sp.expand(shift[0] + shift[1]) == 0 else 0


def _hopeless(pattern: Pattern) -> bool:
    """Whether the answer would hold a probability that has no name, or many pages.

    Probabilities of two correlated thresholds, not both central, multiply the even moments of the coordinates
    that depend on the two. Phi2 stands for them in moments of few factors; odd moments of high degree need
    none, and count as hopeless too.
    """
    zero = dict(zip(pattern.cut, pattern.zero_threshold, strict=True))
    named = not pattern.tilted and len(pattern.cut) == 2 and sum(pattern.exponents) <= MAX_NAMED
    for i, j in pattern.correlated:
        if named or i not in zero or j not in zero or (zero[i] and zero[j]):
            continue
        near = _connected(i, pattern)
        shifted = any(pattern.exponents[k] and not pattern.zero_mean[k] for k in near)
        degree = sum(pattern.exponents[k] for k in near)
        if shifted or degree % 2 == 0 or degree > 3:
            return True
    return False


def _connected(start: int, pattern: Pattern) -> set[int]:
    near, new = {start}, {start}
    while new:
        new = {k for pair in pattern.correlated for k in pair if not near.isdisjoint(pair)} - near
        near |= new
    return near


@cache
def _MEAN(i: int) -> sp.Dummy:
    return sp.Dummy(f"m{i}", real=True)


@cache
def _SHIFT(i: int) -> sp.Dummy:
    return sp.Dummy(f"t{i}", real=True)


_BELOW, _ABOVE, _BOTH = sp.symbols("1-r 1+r 1-r^2", positive=True, cls=sp.Dummy)


@cache
def _GRAM(i: int, j: int) -> sp.Dummy:
    return sp.Dummy(f"g{i}{j}", positive=True) if i == j else sp.Dummy(f"g{i}{j}", real=True)


@lru_cache(maxsize=4096)
def _template(pattern: Pattern) -> sp.Expr | None:
    """The moment in dummies; None if there is no closed form."""
    mean = tuple(sp.S.Zero if zero else _MEAN(i) for i, zero in enumerate(pattern.zero_mean))
    try:
        found = _uncentred(pattern.exponents, mean, _state(replace(pattern, exponents=())))
    except NotClosed:
        return None
    return _joined(found, pattern.mirror) if found.has(Phi2, _ABOVE) else _split(found)


@lru_cache(maxsize=256)
def _state(pattern: Pattern) -> _State:
    """The centred law of a pattern, whose moments share what they are made of."""
    n = len(pattern.zero_mean)
    gram = tuple(
        tuple(
            _GRAM(min(i, j), max(i, j))
            if i == j or (min(i, j), max(i, j)) in pattern.correlated
            else sp.S.Zero
            for j in range(n)
        )
        for i in range(n)
    )
    zero = dict(zip(pattern.cut, pattern.zero_threshold, strict=True))
    shift = {i: sp.S.Zero if zero[i] else _SHIFT(i) for i in pattern.cut}
    if pattern.mirror:
        shift[1] = pattern.mirror * shift[0]
        gram = ((gram[0][0], gram[0][1]), (gram[0][1], gram[0][0]))
    return _State(n, gram, (sp.S.Zero,) * n, shift, pattern.tilted, pattern.mirror)


def _expand(expr: sp.Expr) -> sp.Expr:
    """Products multiplied out; exponentials stay joined."""
    return sp.expand(expr, power_exp=False)


def _distributed(*factors: sp.Expr) -> sp.Expr:
    """The product of sums whose terms are multiplied out already."""
    choices = product(*[sp.Add.make_args(f) for f in factors])
    return sp.Add(*[sp.Mul(*terms) for terms in choices])


@lru_cache(maxsize=4096)
def _terms(expr: sp.Expr) -> sp.Expr:
    """A drift, a covariance or a power of them, multiplied out."""
    return _expand(expr)


def _split(expr: sp.Expr) -> sp.Expr:
    """A sum of products with its functions multiplied out inside, exponentials as products."""
    return expr.xreplace({f: sp.expand(f) for f in expr.atoms(sp.exp, sp.Function)})


def _joined(expr: sp.Expr, mirror: int) -> sp.Expr:
    """One exponential a term, its exponent one ratio."""
    one = {_BELOW: 2 - _ABOVE} if mirror == 1 else {_ABOVE: 2 - _BELOW}
    parts: dict[tuple[sp.Expr, ...], list[sp.Expr]] = {}
    for term in sp.Add.make_args(expr):
        growths = tuple(f.args[0] for f in sp.Mul.make_args(term) if isinstance(f, sp.exp))
        rest = sp.Mul(*[f for f in sp.Mul.make_args(term) if not isinstance(f, sp.exp)])
        parts.setdefault(growths, []).append(_with_both(rest) if mirror else rest)
    return sp.Add(
        *[
            term * sp.exp(sp.cancel(sp.Add(*growths).xreplace(one)))
            for growths, terms in parts.items()
            for term in terms
        ]
    )


def _with_both(term: sp.Expr) -> sp.Expr:
    """sqrt(1 - r^2) in one piece."""
    powers = term.as_powers_dict()
    if sp.S.Half not in (powers[_BELOW], powers[_ABOVE]):
        return term
    return term * sp.sqrt(_BOTH) / (sp.sqrt(_BELOW) * sp.sqrt(_ABOVE))


def _uncentred(exponents: tuple[int, ...], mean: Vector, state: _State) -> sp.Expr:
    """x = mean + y: the binomial expansion into moments of the centred y."""
    total: list[tuple[sp.Expr, tuple[int, ...]]] = [(sp.S.One, ())]
    for e, m in zip(exponents, mean, strict=True):
        options = [e] if m == 0 else range(e + 1)
        total = [
            (c * sp.binomial(e, k) * m ** (e - k), (*done, k)) for c, done in total for k in options
        ]
    return sp.Add(*[_distributed(c, state.moment(done)) for c, done in total])


@dataclass(frozen=True)
class _State:
    """y ~ N(drift, gram) of n coordinates, y_i > shift[i]; ``drift`` comes from conditioning."""

    size: int
    gram: Matrix
    drift: Vector
    shift: dict[int, sp.Expr]
    tilted: bool
    mirror: int = 0
    known: dict[int, _State] = field(default_factory=dict, compare=False)
    edges: dict[tuple[int, int], sp.Expr] = field(default_factory=dict, compare=False)
    seen: dict[tuple[int, ...], sp.Expr] = field(default_factory=dict, compare=False)

    def moment(self, e: tuple[int, ...]) -> sp.Expr:
        """E[y^e, y_i > shift[i]], multiplied out."""
        if e not in self.seen:
            self.seen[e] = self._reduce(e) if any(e) else _terms(self.probability())
        return self.seen[e]

    def _reduce(self, e: tuple[int, ...]) -> sp.Expr:
        a = max(range(self.size), key=lambda i: (e[i] > 0, i not in self.shift, e[i]))
        rest = _less(e, a)
        total = []
        if self.drift[a] != 0:
            total.append(_distributed(_terms(self.drift[a]), self.moment(rest)))
        for b in range(self.size):
            if rest[b] and self.gram[a][b] != 0:
                total.append(_distributed(rest[b] * _terms(self.gram[a][b]), self.moment(_less(rest, b))))
        for i in self.shift:
            if self.gram[a][i] != 0:
                on_border = self.given(i).border(rest, i, self)
                total.append(_distributed(self.edge(a, i), on_border))
        return sp.Add(*total)

    def border(self, e: tuple[int, ...], i: int, before: _State) -> sp.Expr:
        """The moment on y_i = its threshold (self is already conditional on that)."""
        value = _terms(before.shift[i] ** e[i])
        if value == 0:
            return sp.S.Zero
        return _distributed(value, self.moment((*e[:i], 0, *e[i + 1 :])))

    def edge(self, a: int, i: int) -> sp.Expr:
        """Cov(y_a, y_i) times the density of y_i at its threshold."""
        if (a, i) not in self.edges:
            v = self.gram[i][i]
            gap = self.shift[i] - self.drift[i]
            height = _terms(self.gram[a][i] / (sp.sqrt(2 * sp.pi) * root(v)))
            self.edges[a, i] = _distributed(height, sp.exp(-(gap**2) / (2 * v)))
        return self.edges[a, i]

    def given(self, i: int) -> _State:
        """The law given y_i = its threshold."""
        if i not in self.known:
            self.known[i] = self._given(i)
        return self.known[i]

    def _given(self, i: int) -> _State:
        if self.mirror:
            return self._mirrored(i)
        v, n = self.gram[i][i], range(self.size)
        gap = self.shift[i] - self.drift[i]
        entries = {
            (j, k): _ratio(self.gram[j][k] * v - self.gram[i][j] * self.gram[i][k], v)
            for j, k in combinations_with_replacement(n, 2)
        }
        gram = tuple(tuple(entries[min(j, k), max(j, k)] for k in n) for j in n)
        drift = tuple(_ratio(self.drift[j] * v + self.gram[i][j] * gap, v) for j in n)
        shift = {j: s for j, s in self.shift.items() if j != i}
        if any(gram[j][j] == 0 for j in shift):
            raise NotClosed
        return _State(self.size, gram, drift, shift, self.tilted)

    def _mirrored(self, i: int) -> _State:
        """The same for two coordinates of variance v and thresholds t, t or t, -t: in 1 - r and 1 + r, so that
        nothing is left to divide by at r = 1 or r = -1."""
        v, zero = self.gram[0][0], sp.S.Zero
        r = 1 - _BELOW if self.mirror == 1 else _ABOVE - 1
        inner = v * _BELOW * _ABOVE
        gram = ((zero, zero), (zero, inner)) if i == 0 else ((inner, zero), (zero, zero))
        drift = tuple(self.shift[i] if j == i else r * self.shift[i] for j in range(2))
        return _State(2, gram, drift, {1 - i: self.shift[1 - i]}, self.tilted)

    def probability(self) -> sp.Expr:
        """P(y_i > shift_i for all i): independent blocks of one, two or three thresholds."""
        todo, blocks = set(self.shift), []
        while todo:
            block = {todo.pop()}
            while near := {j for j in todo if any(self.gram[i][j] != 0 for i in block)}:
                block |= near
                todo -= near
            blocks.append(sorted(block))
        return sp.Mul(*[self._block(block) for block in sorted(blocks)])

    def _block(self, block: list[int]) -> sp.Expr:
        gaps = [_ratio(self.shift[i] - self.drift[i], sp.S.One) for i in block]
        if len(block) == 1:
            x = gaps[0] / (sp.sqrt(2) * root(self.gram[block[0]][block[0]]))
            return sp.erfc(x) / 2 if self.tilted else (1 - sp.erf(x)) / 2
        if len(block) == 2 and not self.tilted and any(g != 0 for g in gaps):
            below = [-g / root(self.gram[i][i]) for g, i in zip(gaps, block, strict=True)]
            return Phi2(*below, self._correlation(*block))
        if len(block) > 3 or any(g != 0 for g in gaps):
            raise NotClosed
        angles = [sp.asin(self._correlation(i, j)) for i, j in combinations(block, 2)]
        base = sp.Rational(1, 2 ** len(block))
        return base + sp.Add(*angles) / (sp.pi * (2 if len(block) == 2 else 4))

    def _correlation(self, i: int, j: int) -> sp.Expr:
        return self.gram[i][j] / (root(self.gram[i][i]) * root(self.gram[j][j]))


def _less(e: tuple[int, ...], a: int) -> tuple[int, ...]:
    return (*e[:a], e[a] - 1, *e[a + 1 :])


def _ratio(numerator: sp.Expr, denominator: sp.Expr) -> sp.Expr:
    return sp.cancel(numerator / denominator)


def root(variance: sp.Expr) -> sp.Expr:
    """sqrt of a variance given as a ratio of polynomials, numerator and denominator each positive."""
    above, below = sp.fraction(variance)
    if not above.free_symbols and not below.free_symbols:
        return sp.sqrt(variance)
    if _negative_example(below):
        above, below = -above, -below
    return sp.sqrt(sp.expand(above)) / sp.sqrt(sp.expand(below))


def _negative_example(expr: sp.Expr) -> bool:
    """The sign at one Gram matrix (1 on the diagonal, small elsewhere); determinants keep theirs."""
    values = {
        s: sp.Integer(1) if s.is_positive else sp.Rational(1, 10 + 3 * k)
        for k, s in enumerate(sorted(expr.free_symbols, key=lambda s: str(s.name)))
    }
    return bool(expr.xreplace(values) < 0)
