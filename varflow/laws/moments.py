"""Named moments: a straight-line program of equations, each over earlier moments and the network's symbols.

An equation is a *template* (a sympy expression over placeholders) and what its placeholders stand for.
Equal steps of a deep network share one template, so deriving, printing and evaluating cost what the distinct
steps cost. Nothing is expanded until someone asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import sympy as sp

from varflow.activations import substitute
from varflow.calculus import symbols_in
from varflow.laws.tidy import joined
from varflow.symbols import positive_slot, slot

EXACTNESS = ("exact", "wide", "closure", "measured", "underived")
TIERS = ("closed", "quadrature", "population", "measured")


def weakest(scale: Sequence[str], labels: Iterable[str]) -> str:
    """The last of the labels in the order of ``scale``; the first of the scale for none."""
    first = scale[0]
    return scale[max((scale.index(x) for x in labels if x != first), default=0)]


@dataclass(eq=False)
class Moment:
    """One named number of the derivation: ``symbol`` = ``template`` with its placeholders standing for ``args``.

    ``kind`` is q (second moment), m (mean), c (covariance), r (another expectation); ``node`` the node it
    describes. ``operator`` (profiles only) mixes positions of the arguments' arrays and stands instead of the
    template. ``template`` is None where no formula exists; then ``value`` and ``measure`` say which program
    value and which of its moments a population must supply (``value`` None: nothing can).
    """

    index: int
    kind: str
    node: str
    template: sp.Expr | None
    args: tuple[Quantity, ...]
    exactness: str
    tier: str
    assumptions: frozenset[str]
    backward: bool = False
    value: int | None = None
    measure: str = ""
    degree: int = 1
    operator: Any = None

    @property
    def symbol(self) -> sp.Symbol:
        """The moment's name as a symbol; unique in its system."""
        return sp.Symbol(f"{self.kind}_{self.index}", **({"positive": True} if self.positive else {"real": True}))

    @property
    def positive(self) -> bool:
        """Whether the number is known to be positive."""
        return self.kind in ("q", "g")

    def right_side(self, name: Callable[[Moment], sp.Expr] | None = None) -> sp.Expr | None:
        """The equation's right side over earlier moments' symbols (or what ``name`` gives for them)."""
        if self.template is None:
            return None
        return fill(self.template, self.args, name or (lambda m: m.symbol))


Quantity: TypeAlias = "Moment | sp.Expr"


@dataclass(frozen=True, eq=False)
class Formula:
    """A template and what its placeholders stand for; not yet named. ``exactness``, ``tier`` and ``assumptions``
    come on top of those of its arguments.

    ``degree`` is its degree in second moments and covariances that fluctuate at finite width: up to one the
    formula holds in expectation at any width, beyond (2) only in the wide limit.
    """

    template: sp.Expr
    args: tuple[Quantity, ...] = ()
    exactness: str = "exact"
    tier: str = "closed"
    assumptions: frozenset[str] = frozenset()
    degree: int = 0

    @property
    def is_zero(self) -> bool:
        """Whether it is zero by structure."""
        return self.template is sp.S.Zero


ZERO = Formula(sp.S.Zero)
ONE = Formula(sp.S.One)


def place(index: int, quantity: Quantity) -> sp.Symbol:
    """The placeholder for a quantity at ``index``, with its sign."""
    return positive_slot(index) if _sign(quantity) else slot(index)


def fill(template: sp.Expr, args: tuple[Quantity, ...], name: Callable[[Moment], sp.Expr]) -> sp.Expr:
    """The template with its placeholders replaced."""
    table = {place(i, a): name(a) if isinstance(a, Moment) else a for i, a in enumerate(args)}
    result: sp.Expr = template.xreplace(table) if not has_integral(template) else _filled(template, table)
    return result


def _filled(template: sp.Expr, table: Mapping[sp.Symbol, sp.Expr]) -> sp.Expr:
    """A template with integrals: they are put in their normal form again."""
    integrals = [e for e in sp.preorder_traversal(template) if type(e).__name__ == "GaussianExpectation"]
    outermost = {e: sp.Dummy() for e in integrals if not any(e is not o and o.has(e) for o in integrals)}
    made = {d: e.func(substitute(e.integrand, table), e.variables, [c.xreplace(table) for c in e.covariance])
            for e, d in outermost.items()}  # fmt: skip
    result: sp.Expr = template.xreplace(outermost).xreplace(table).xreplace(made)
    return result


@lru_cache(maxsize=4096)
def has_integral(template: sp.Expr) -> bool:
    """Whether an unevaluated expectation stands in a template."""
    return any(type(e).__name__ == "GaussianExpectation" for e in sp.preorder_traversal(template))


def constant(expr: sp.Expr) -> Formula:
    """An expression of the network's symbols alone."""
    if expr.is_Number:
        return Formula(expr)
    return Formula(place(0, expr), (expr,))


def named(moment: Moment) -> Formula:
    """The formula that is just this moment."""
    return Formula(place(0, moment), (moment,), degree=moment.degree)


_PART = [sp.Symbol(f"_f{i}", real=True) for i in range(64)]


def part(i: int) -> sp.Symbol:
    """The i-th formula in the shape given to :func:`combine`."""
    while i >= len(_PART):
        _PART.append(sp.Symbol(f"_f{len(_PART)}", real=True))
    return _PART[i]


@lru_cache(maxsize=65536)
def is_polynomial(expr: sp.Expr, symbols: frozenset[sp.Symbol]) -> bool:
    """Whether an expression is a polynomial in symbols as it stands; sympy would search integrals to their ends."""
    if expr in symbols or not symbols_in(expr) & symbols:
        return True
    if isinstance(expr, sp.Add | sp.Mul):
        return all(is_polynomial(a, symbols) for a in expr.args)
    whole = isinstance(expr, sp.Pow) and expr.exp.is_Integer and expr.exp >= 0
    return bool(whole) and is_polynomial(expr.base, symbols)


def _sign(quantity: Quantity) -> bool:
    """Whether a quantity is known to be positive."""
    return quantity.positive if isinstance(quantity, Moment) else bool(quantity.is_positive)


@lru_cache(maxsize=65536)
def _combined(shape: sp.Expr, templates: tuple[sp.Expr, ...], places: tuple[tuple[int, ...], ...],
              signs: tuple[bool, ...]) -> sp.Expr:
    """``shape`` of templates whose i-th placeholder becomes that at ``places[.][i]``, positive where ``signs`` says."""
    def placed(template: sp.Expr, at: tuple[int, ...]) -> sp.Expr:
        kinds = (positive_slot if signs[k] else slot for k in at)
        return template.xreplace({kind(i): kind(k) for i, (k, kind) in enumerate(zip(at, kinds, strict=True))})

    filled = [placed(t, at) for t, at in zip(templates, places, strict=True)]
    result = shape.xreplace({part(i): t for i, t in enumerate(filled)})
    if len(filled) >= 12 or not is_polynomial(result, symbols_in(result)):
        return result
    return sp.expand(result)


def combine(shape: sp.Expr, formulas: Sequence[Formula]) -> Formula:
    """``shape``, an expression of ``part(0), part(1), ...``, of formulas: one formula over the union of their
    arguments. The work is cached by structure."""
    args: dict[object, Quantity] = {id(a) if isinstance(a, Moment) else a: a for f in formulas for a in f.args}
    index = {key: i for i, key in enumerate(args)}
    places = tuple([tuple([index[id(a) if isinstance(a, Moment) else a] for a in f.args]) for f in formulas])
    signs = tuple([_sign(a) for a in args.values()])
    template = _combined(shape, tuple([f.template for f in formulas]), places, signs)
    degree = _degree(shape, tuple([f.degree for f in formulas]))
    exactness = ["wide" if degree > 1 else "exact", *[f.exactness for f in formulas]]
    return Formula(template, tuple(args.values()) if symbols_in(template) else (), weakest(EXACTNESS, exactness),
                   weakest(TIERS, [f.tier for f in formulas]),
                   frozenset().union(*[f.assumptions for f in formulas]), degree)


@lru_cache(maxsize=4096)
def _degree(shape: sp.Expr, degrees: tuple[int, ...]) -> int:
    """The degree of a shape of formulas of these degrees."""
    return degree_in(shape, tuple(part(i) for i, d in enumerate(degrees) for _ in range(d)))


def total(formulas: Sequence[Formula]) -> Formula:
    """The sum of formulas."""
    kept = [f for f in formulas if not f.is_zero]
    if len(kept) == 1:
        return kept[0]
    return combine(_shape(sp.Add, len(kept)), kept) if kept else ZERO


def product(*formulas: Formula) -> Formula:
    """The product of formulas."""
    if any(f.is_zero for f in formulas):
        return ZERO
    kept = [f for f in formulas if f.template is not sp.S.One or f.degree or f.exactness != "exact"]
    if len(kept) == 1:
        return kept[0]
    return combine(_shape(sp.Mul, len(kept)), kept) if kept else ONE


@lru_cache(maxsize=1024)
def _shape(operation: type[sp.Expr], count: int) -> sp.Expr:
    """The sum or product of the first ``count`` formulas."""
    return operation(*(part(i) for i in range(count)))


@lru_cache(maxsize=65536)
def degree_in(template: sp.Expr, unknowns: tuple[sp.Symbol, ...]) -> int:
    """Degree of a template in quantities that fluctuate at finite width (one listed twice counts twice): 0, 1, or 2
    for anything beyond a linear form."""
    present = [u for u in unknowns if u in symbols_in(template)]
    if not present:
        return 0
    distinct = tuple(dict.fromkeys(present))
    if len(present) > len(distinct) or not is_polynomial(template, frozenset(distinct)):
        return 2
    degrees = [_degree_of_monomial(t, frozenset(distinct)) for t in sp.Add.make_args(template)]
    known = [d for d in degrees if d is not None]
    if len(known) == len(degrees):
        return min(max(known), 2)
    return min(int(sp.Poly(template, *distinct).total_degree()), 2)


def _degree_of_monomial(term: sp.Expr, unknowns: frozenset[sp.Symbol]) -> int | None:
    """Degree of a product of powers; None where a sum of unknowns is among its factors."""
    degree = 0
    for factor in sp.Mul.make_args(term):
        base, power = factor.as_base_exp()
        if base in unknowns:
            degree += int(power)
        elif symbols_in(base) & unknowns:
            return None
    return degree


@dataclass
class MomentSystem:
    """All named moments of one derivation, in the order they are defined."""

    moments: list[Moment] = field(default_factory=list)

    def define(self, kind: str, node: str, formula: Formula | None, *, backward: bool = False,
               value: int | None = None, measure: str = "") -> Moment:
        """Name a formula; None where there is no formula."""
        index = len(self.moments)
        if formula is None:
            m = Moment(index, kind, node, None, (), "wide", "population", frozenset(), backward, value, measure)
        else:
            m = self._labelled(index, kind, node, formula, backward)
            m.value, m.measure = value, measure
        self.moments.append(m)
        return m

    def operate(self, operator: Any, args: tuple[Quantity, ...], kind: str, node: str, backward: bool) -> Moment:
        """Name what ``operator.apply`` makes of the arrays of ``args``."""
        over = [a for a in args if isinstance(a, Moment)]
        m = Moment(len(self.moments), kind, node, None, args, weakest(EXACTNESS, (a.exactness for a in over)),
                   weakest(TIERS, (a.tier for a in over)), frozenset().union(*(a.assumptions for a in over)),
                   backward, operator=operator)
        self.moments.append(m)
        return m

    @staticmethod
    def _labelled(index: int, kind: str, node: str, f: Formula, backward: bool) -> Moment:
        over = [a for a in f.args if isinstance(a, Moment)]
        exactness = weakest(EXACTNESS, [f.exactness, *(a.exactness for a in over)])
        tier = weakest(TIERS, [f.tier, *(a.tier for a in over)])
        if tier == "closed" and has_integral(f.template):
            tier = "quadrature"
        assumptions = f.assumptions.union(*(a.assumptions for a in over))
        return Moment(index, kind, node, f.template, f.args, exactness, tier, assumptions, backward,
                      degree=min(f.degree, 1))


class Expansion:
    """Formulas over the network's symbols alone, made by substituting equations into each other."""

    def __init__(self) -> None:
        self._known: dict[Moment, sp.Expr | None] = {}

    def seed(self, moment: Moment, expr: sp.Expr) -> None:
        """Let a moment stand as ``expr`` instead of being expanded."""
        self._known[moment] = expr

    def of(self, quantity: Quantity) -> sp.Expr | None:
        """The expanded expression, or None where a moment on the way has no formula."""
        if not isinstance(quantity, Moment):
            return quantity
        stack = [] if quantity in self._known else [quantity]
        while stack:
            m = stack[-1]
            missing = [a for a in m.args if isinstance(a, Moment) and a not in self._known]
            if missing and m.template is not None:
                stack += missing
                continue
            stack.pop()
            self._known[m] = self._one(m)
        return self._known[quantity]

    def _one(self, m: Moment) -> sp.Expr | None:
        if m.template is None:
            return None
        if any(self._known[a] is None for a in m.args if isinstance(a, Moment)):
            return None
        expr = fill(m.template, m.args, lambda a: self._known[a])
        return sp.oo if expr.has(sp.zoo) else joined(expr)
