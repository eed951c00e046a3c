"""The expectation of an expression: expand, factor over independent groups, use a closed form or an integral."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import sympy as sp
from sympy.core.relational import Relational

from varflow.laws.algebra import (
    affine,
    affine_parts,
    build,
    depends,
    line,
    ordered,
    products,
    size,
    term_count,
)
from varflow.laws.cells import NotFlat, kinked, split
from varflow.laws.distributions import (
    Bernoulli,
    Distribution,
    NoFormula,
    Normal,
    OneHot,
    Opaque,
    Sphere,
)
from varflow.laws.domain import check
from varflow.laws.integral import GaussianExpectation, even_part, is_odd
from varflow.laws.pairs import NotClosed
from varflow.laws.reach import in_reach
from varflow.laws.tidy import tidy
from varflow.laws.univariate import MAX_CUTS, MAX_PIECES, Budget, Covariance, Exhausted, closed

Powers = dict[sp.Expr, int]
MAX_DIMENSION = 2
MAX_DEPTH = 12
MAX_NODES = 2000
MAX_WORK = 60_000
MAX_OPEN = 40
MAX_FAILURES, FEW_PIECES = 8, 80


@dataclass(frozen=True)
class Law:
    """The distributions of the variables, and the covariances of the Gaussian ones."""

    distributions: Mapping[sp.Symbol, Distribution]
    table: dict[tuple[sp.Symbol, sp.Symbol], sp.Expr] = field(default_factory=dict)

    def covariance(self, u: sp.Symbol, v: sp.Symbol) -> sp.Expr:
        """KeyError for what is no Gaussian variable."""
        return self.table[u, v]

    def of_forms(self, a: sp.Expr, b: sp.Expr, names: list[sp.Symbol]) -> sp.Expr:
        """The covariance of two linear forms."""
        left, right = affine(a, names), affine(b, names)
        assert left is not None and right is not None
        terms = [x * y * self.table[u, v] for u, x in left[0].items() for v, y in right[0].items()]
        return sp.expand(sp.Add(*terms))


def make_law(
    names: list[sp.Symbol], distributions: Mapping[sp.Symbol, Distribution], covariance: Covariance
) -> Law:
    """Ask for every covariance once; Sphere coordinates get those of their Gaussian stand-ins."""
    law = Law(distributions)
    for u in names:
        for v in names:
            law.table[u, v] = _covariance(u, v, distributions, covariance)
    return law


def _covariance(
    u: sp.Symbol,
    v: sp.Symbol,
    distributions: Mapping[sp.Symbol, Distribution],
    covariance: Covariance,
) -> sp.Expr:
    first, second = distributions[u], distributions[v]
    if isinstance(first, Normal) and isinstance(second, Normal):
        a, b = ordered({u, v}) if u != v else (u, v)
        return covariance(a, b)
    if isinstance(first, Sphere) and first == second:
        return sp.S.One if u == v else -1 / (first.samples - 1)
    return sp.S.Zero


def degenerate(expr: sp.Expr, law: Law) -> sp.Expr:
    """Variables of zero variance become 0, perfectly correlated ones multiples of one of them."""
    names = ordered(expr.free_symbols & {u for u, _ in law.table})
    gone = {u: sp.S.Zero for u in names if law.table[u, u] == 0}
    for u, v in combinations([u for u in names if u not in gone], 2):
        c = law.table[u, v]
        if c == 0 or u in gone or v in gone:
            continue
        if sp.cancel(c**2 - law.table[u, u] * law.table[v, v]) == 0:
            gone[v] = sp.cancel(c / law.table[u, u]) * u
    return expr.xreplace(gone) if gone else expr


@dataclass
class _Sum:
    """The running result; integrals over one set of variables with one factor are joined."""

    law: Law
    depth: int
    done: list[sp.Expr] = field(default_factory=list)
    open: dict[tuple[frozenset[sp.Symbol], sp.Expr], sp.Expr] = field(default_factory=dict)
    constants: dict[sp.Expr, sp.Expr] = field(default_factory=dict)
    failures: int = 0
    budget: Budget = field(default_factory=lambda: Budget(MAX_PIECES))

    def add(self, coefficient: sp.Expr, powers: Powers) -> None:
        if not powers:
            number, rest = coefficient.as_coeff_Mul()
            self.constants[rest] = self.constants.get(rest, sp.S.Zero) + number
            return
        factors: list[sp.Expr] = [coefficient]
        hard: list[tuple[frozenset[sp.Symbol], sp.Expr]] = []
        for names, part in components(powers, self.law):
            hopeless = self.failures >= MAX_FAILURES and len(names) == 1
            value = None if hopeless else easy(part, names, self.law, self.budget)
            if value is None:
                self.failures += 1
                hard.append((names, build(part)))
            elif value == 0:
                return
            else:
                factors.append(value)
        self._collect(sp.Mul(*factors), hard)

    def _collect(self, factor: sp.Expr, hard: list[tuple[frozenset[sp.Symbol], sp.Expr]]) -> None:
        if len(hard) == 1:
            number, rest = factor.as_coeff_Mul()
            key = (hard[0][0], rest)
            self.open[key] = self.open.get(key, sp.S.Zero) + number * hard[0][1]
        else:
            values = [integral(body, names, self.law, self.depth) for names, body in hard]
            self.done.append(sp.Mul(factor, *values))

    def total(self, original: sp.Expr) -> sp.Expr:
        """Everything settled; ``original``, in one variable and all of it open, is kept unexpanded."""
        active = original.free_symbols & self.law.distributions.keys()
        for (names, factor), body in self.open.items():
            whole = len(self.open) == 1 and not self.done and factor == 1 and active == names
            if whole and not self.constants:
                body = original
            elif _cancels(self.constants.get(factor, sp.S.Zero), body):
                body += self.constants.pop(factor)
            self.done.append(factor * integral(body, names, self.law, self.depth))
        constants = [k * v for k, v in self.constants.items()]
        plain = [v for v in self.done if not v.has(GaussianExpectation)]
        rest = [v for v in self.done if v.has(GaussianExpectation)]
        return sp.Add(tidy(sp.Add(*plain, *constants)), *map(_opened, rest))


def _opened(value: sp.Expr) -> sp.Expr:
    """Products multiplied out, integrals left as they are."""
    return sp.expand_mul(value, deep=False)


def _cancels(constant: sp.Expr, body: sp.Expr) -> bool:
    """Whether E[body + constant] is better kept in one integral: the two have opposite signs."""
    sign = sp.Add.make_args(body)[0].as_coeff_Mul()[0]
    return constant != 0 and bool(sign.is_negative) != bool(constant.is_negative)


def expectation(expr: sp.Expr, law: Law, depth: int = 0) -> sp.Expr:
    """E[expr]; NoFormula if it is out of reach."""
    if depth > MAX_DEPTH:
        raise NoFormula("the expectation needs too many reductions", where=str(expr))
    variables = expr.free_symbols & law.distributions.keys()
    if not variables:
        return expr
    if _too_wide(expr, variables, law):
        return integral(expr, frozenset(variables), law, depth)
    single = len(variables) == 1
    try:
        result = _Sum(law, depth)
        if single:
            result.budget = Budget(FEW_PIECES)
        return _summed(result, expr, variables, law, depth)
    except Exhausted:
        if single:
            return integral(expr, frozenset(variables), law, depth)
        raise NoFormula(
            "the expression has too many terms", why=f"more than {MAX_PIECES} pieces to integrate"
        ) from None


def _summed(
    result: _Sum, expr: sp.Expr, variables: set[sp.Symbol], law: Law, depth: int
) -> sp.Expr:
    terms = list(products(expr, variables))
    if len(variables) <= MAX_DIMENSION and any(_many_tails(powers, law) for _, powers in terms):
        return integral(expr, frozenset(variables), law, depth)
    for coefficient, powers in terms:
        _add_term(result, coefficient, powers, law, depth)
    return result.total(expr)


def _many_tails(powers: Powers, law: Law) -> bool:
    """Whether a term is an orthant of four or more correlated Gaussians: no part of its sum is worth a formula."""
    if _tails(powers) <= MAX_CUTS:
        return False
    names = set().union(*(f.free_symbols for f in powers)) & law.distributions.keys()
    if not all(isinstance(law.distributions[v], Normal) for v in names):
        return False
    return any(_tails(part) > MAX_CUTS for _, part in components(powers, law))


def _tails(powers: Powers) -> int:
    return sum(k for f, k in powers.items() if isinstance(f, (sp.erf, sp.erfc)))


def _too_wide(expr: sp.Expr, variables: set[sp.Symbol], law: Law) -> bool:
    """Whether a function of one Gaussian is left to quadrature, since expanding it would take seconds."""
    if len(variables) > 1 or not isinstance(law.distributions[next(iter(variables))], Normal):
        return False
    nodes, terms = size(expr, MAX_WORK), term_count(expr, variables)
    if nodes > MAX_NODES or nodes * terms > MAX_WORK:
        return True
    return terms > MAX_OPEN and not in_reach(expr, frozenset(variables))


def _add_term(result: _Sum, coefficient: sp.Expr, powers: Powers, law: Law, depth: int) -> None:
    """Settle the discrete and opaque variables of a term, hand over the Gaussian rest."""
    atoms = [f for f in powers if f not in law.distributions]
    inside = ordered(set().union(*(a.free_symbols for a in atoms)) & law.distributions.keys())
    discrete = [v for v in inside if _is_discrete(law.distributions[v])]
    if discrete:
        whole = coefficient * build(powers)
        result.done.append(_enumerate(whole, discrete[0], law, depth))
        return
    rest: Powers = {}
    hot: dict[OneHot, sp.Expr] = {}
    for factor, power in powers.items():
        kind = law.distributions.get(factor)
        if kind is None or isinstance(kind, (Normal, Sphere)):
            rest[factor] = power
        elif isinstance(kind, OneHot) and hot.setdefault(kind, factor) != factor:
            return
        else:
            coefficient *= _raw_moment(factor, power, kind)
    result.add(coefficient, rest)


def _is_discrete(kind: Distribution) -> bool:
    if isinstance(kind, Opaque):
        raise NoFormula("a variable known by its moments alone stands inside a function")
    return isinstance(kind, (Bernoulli, OneHot))


def _raw_moment(symbol: sp.Expr, power: int, kind: Distribution) -> sp.Expr:
    if isinstance(kind, Opaque):
        if power not in kind.moments:
            raise NoFormula(f"the moment of order {power} of {symbol} is not known")
        return kind.moments[power]
    if isinstance(kind, OneHot):
        return kind.probabilities[kind.symbols.index(symbol)]
    assert isinstance(kind, Bernoulli)
    return kind.keep


def _enumerate(expr: sp.Expr, variable: sp.Symbol, law: Law, depth: int) -> sp.Expr:
    """Condition on the value of a discrete variable."""
    kind = law.distributions[variable]
    if isinstance(kind, Bernoulli):
        cases = [({variable: sp.S.One}, kind.keep), ({variable: sp.S.Zero}, 1 - kind.keep)]
    else:
        assert isinstance(kind, OneHot)
        cases = [
            ({s: sp.Integer(int(s == hot)) for s in kind.symbols}, p)
            for hot, p in zip(kind.symbols, kind.probabilities, strict=True)
        ]
    return sp.Add(*[p * expectation(expr.subs(values), law, depth + 1) for values, p in cases])


def components(powers: Powers, law: Law) -> list[tuple[frozenset[sp.Symbol], Powers]]:
    """The factors of a term, grouped so that different groups are independent."""
    groups: list[tuple[set[sp.Symbol], Powers]] = []
    for factor, power in powers.items():
        names = set(factor.free_symbols & law.distributions.keys())
        joined: tuple[set[sp.Symbol], Powers] = (names, {factor: power})
        apart = []
        for group in groups:
            if _linked(group[0], names, law):
                joined = (joined[0] | group[0], group[1] | joined[1])
            else:
                apart.append(group)
        groups = [*apart, joined]
    return [(frozenset(names), part) for names, part in groups]


def _linked(first: set[sp.Symbol], second: set[sp.Symbol], law: Law) -> bool:
    return any(u == v or law.table[u, v] != 0 for u in first for v in second)


def easy(
    part: Powers, names: frozenset[sp.Symbol], law: Law, budget: Budget | None = None
) -> sp.Expr | None:
    """The closed form of one independent factor, or None; NoFormula for Sphere coordinates."""
    kinds = {law.distributions[v] for v in names}
    if any(isinstance(k, Sphere) for k in kinds):
        return _spherical(build(part), names, law, kinds)
    whole = build(part)
    if not in_reach(whole, names):
        return None
    try:
        return closed(whole, names, law.covariance, budget)
    except NotClosed:
        return None


def _spherical(
    expr: sp.Expr, names: frozenset[sp.Symbol], law: Law, kinds: set[Distribution]
) -> sp.Expr:
    """Homogeneous functions of degree k: the Gaussian expectation over E[(chi_{B-1}/sqrt(B-1))^k]."""
    kind = next(iter(kinds))
    degree = homogeneous_degree(expr, names) if len(kinds) == 1 else None
    if degree is None or not isinstance(kind, Sphere):
        raise NoFormula("a function of normalized batch samples that is not homogeneous")
    try:
        value = closed(expr, names, law.covariance)
    except NotClosed:
        raise NoFormula("no closed form over normalized batch samples") from None
    return sp.expand(tidy(value)) / chi_moment(kind.samples, degree)


def homogeneous_degree(expr: sp.Expr, names: frozenset[sp.Symbol]) -> int | None:
    """k with f(t y) = t^k f(y) for t > 0, else None."""
    try:
        cells = [c for c in split(expr, names) if c.body != 0]
    except NotFlat:
        return None
    if any(
        lo not in (0, sp.S.NegativeInfinity) or hi not in (0, sp.oo)
        for c in cells
        for _, lo, hi in c.bounds
    ):
        return None
    degrees = set()
    for cell in cells:
        for _, powers in products(cell.body, names):
            degrees.add(sum(powers.values()) if powers.keys() <= names else None)
    return degrees.pop() if len(degrees) == 1 else None


def chi_moment(samples: sp.Expr, degree: int) -> sp.Expr:
    """E[(chi_{B-1} / sqrt(B-1))^k]."""
    m = samples - 1
    if degree % 2 == 0:
        return sp.factor(sp.Mul(*[(m + 2 * j) / m for j in range(degree // 2)]))
    half = sp.Rational(degree, 2)
    return (2 / m) ** half * sp.gamma(m / 2 + half) / sp.gamma(m / 2)


def leaves(expr: sp.Basic, names: frozenset[sp.Symbol]) -> set[sp.Expr]:
    """The linear forms through which an expression depends on the variables."""
    return {part.form for part in affine_parts(expr, names)}


Visitor = Callable[[sp.Expr, sp.Expr, sp.Expr], sp.Expr]


def rewrite_affine(expr: sp.Basic, names: frozenset[sp.Symbol], visit: Visitor) -> sp.Basic:
    """Rebuild the expression with ``visit`` at every affine part."""
    if not depends(expr, names):
        return expr
    if isinstance(expr, Relational):
        return expr.func(rewrite_affine(expr.lhs - expr.rhs, names, visit), 0)
    straight = line(expr, names) if isinstance(expr, sp.Expr) else None
    if straight is not None:
        return visit(straight.form, straight.scale, straight.constant)
    if isinstance(expr, sp.Add):
        flat = [a for a in expr.args if depends(a, names) and line(a, names) is not None]
        rest = [rewrite_affine(a, names, visit) for a in expr.args if a not in flat]
        return sp.Add(rewrite_affine(sp.Add(*flat), names, visit), *rest)
    return expr.func(*[rewrite_affine(a, names, visit) for a in expr.args])


def integral(body: sp.Expr, names: frozenset[sp.Symbol], law: Law, depth: int) -> sp.Expr:
    """E[body] with no closed form: reduce polynomial factors, then an unevaluated expectation."""
    used = frozenset(body.free_symbols & names)
    core, factors = _core(body, used)
    forms = ordered(leaves(core, used))
    if len(forms) > MAX_DIMENSION:
        forms = ordered(core.free_symbols & used)
    if len(forms) > MAX_DIMENSION:
        raise NoFormula(
            f"the expectation needs an integral over {len(forms)} dependent variables",
            where=str(body),
            why=f"at most {MAX_DIMENSION} are done by quadrature",
        )
    outside = [v for v in factors if v not in forms]
    if outside:
        return _reduce(body, outside, forms, law, depth)
    return _unevaluated(body, used, forms, law)


def _core(body: sp.Expr, names: frozenset[sp.Symbol]) -> tuple[sp.Expr, list[sp.Symbol]]:
    """The factors that are no bare variables, and the bare variables; a sum is all core."""
    parts = sp.Mul.make_args(body)
    bare = [p for p in parts if _is_power(p, names)]
    core = sp.Mul(*[p for p in parts if p not in bare])
    return core, ordered({p.as_base_exp()[0] for p in bare})


def _is_power(factor: sp.Expr, names: frozenset[sp.Symbol]) -> bool:
    base, power = factor.as_base_exp()
    return base in names and bool(power.is_Integer and power.is_positive)


def _reduce(
    body: sp.Expr, outside: list[sp.Symbol], forms: list[sp.Expr], law: Law, depth: int
) -> sp.Expr:
    """E[u R]: Stein's lemma where R is smooth, else u regressed on the forms of R."""
    u = outside[0]
    rest = body / u
    names = ordered(body.free_symbols & law.distributions.keys())
    if not kinked(rest, names):
        terms = [law.table[u, b] * rest.diff(b) for b in names if law.table[u, b] != 0]
        return sp.Add(*[expectation(t, law, depth + 1) for t in terms])
    gram = sp.Matrix([[law.of_forms(a, b, names) for b in forms] for a in forms])
    if len(forms) == 2 and sp.cancel(gram.det()) == 0:  # multiples of one variable
        forms, gram = forms[:1], gram[:1, :1]
    wanted = sp.Matrix([law.of_forms(v, f, names) for v in outside for f in forms])
    rows = wanted.reshape(len(outside), len(forms)) * gram.inv()
    noise = [sp.Dummy(f"e{k}", real=True) for k in range(len(outside))]
    fresh = Law({**law.distributions, **{e: Normal() for e in noise}}, dict(law.table))
    others = [v for v in law.distributions if (v, v) in law.table]
    fresh.table.update({(e, v): sp.S.Zero for e in noise for v in others})
    fresh.table.update({(v, e): sp.S.Zero for e in noise for v in others})
    left = rows * gram * rows.T
    for i, j in ((i, j) for i in range(len(noise)) for j in range(len(noise))):
        value = sp.cancel(law.table[outside[i], outside[j]] - left[i, j])
        fresh.table[noise[i], noise[j]] = value
    bare = [p for p in sp.Mul.make_args(body) if _is_power(p, frozenset(names))]
    core, _ = _core(body, frozenset(names))
    image = rows * sp.Matrix(forms)
    swap = {v: sp.cancel(image[k]) + noise[k] for k, v in enumerate(outside)}
    polynomial = sp.Mul(*bare).xreplace(swap)  # not body / core: sympy inverts a Piecewise piece by piece, zeros too
    return expectation(sp.expand(polynomial) * core, fresh, depth + 1)


def _unevaluated(
    body: sp.Expr, used: frozenset[sp.Symbol], forms: list[sp.Expr], law: Law
) -> sp.Expr:
    names = ordered(used)
    if len(forms) == 1 and forms[0] in used and not body.free_symbols - used:
        variance = law.table[forms[0], forms[0]]
        check(body, forms[0], variance if variance.is_number else None)
    symbols = [f if f in used else sp.Dummy(f"L{i}", real=True) for i, f in enumerate(forms)]
    rename = dict(zip(forms, symbols, strict=True))
    if any(f not in used for f in forms):
        body = rewrite_affine(body, used, lambda f, k, c: k * rename[f] + c)
    if is_odd(body, tuple(symbols)):
        return sp.S.Zero
    even = even_part(body, symbols[0]) if len(forms) == 1 else None
    if even is not None:
        one = law.of_forms(forms[0], forms[0], names)
        return tidy(closed(even, frozenset(symbols), lambda s, t: one))
    entries = [
        law.of_forms(forms[i], forms[j], names)
        for i in range(len(forms))
        for j in range(i, len(forms))
    ]
    number, body = body.as_coeff_Mul()
    return number * _signed(GaussianExpectation(body, tuple(symbols), tuple(entries)))


def _signed(made: GaussianExpectation) -> sp.Expr:
    """The sign that all pieces share, taken out."""
    body = made.integrand
    if not isinstance(body, sp.Piecewise):
        return made
    values = [e for e, _ in body.args if e != 0]
    if not values or not all(e.could_extract_minus_sign() for e in values):
        return made
    turned = sp.Piecewise(*[(-e, c) for e, c in body.args])
    return -GaussianExpectation(turned, made.variables, made.covariance)
