"""Affine forms, outer expansion into products of atoms, and the rational clean-up of numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

import sympy as sp
from sympy.core.relational import Relational

from varflow.laws.distributions import NoFormula

MAX_TERMS = 4000
Affine = tuple[dict[sp.Symbol, sp.Expr], sp.Expr]


def rational(expr: sp.Expr) -> sp.Expr:
    """The expression with every decimal number replaced by the rational it spells."""
    floats = expr.atoms(sp.Float)
    return expr.xreplace({f: sp.Rational(str(f)) for f in floats}) if floats else expr


def depends(expr: sp.Basic, variables: Collection[sp.Symbol]) -> bool:
    """Whether any of the variables occurs free in the expression."""
    return not symbols_of(expr).isdisjoint(variables)


@lru_cache(maxsize=65536)
def symbols_of(expr: sp.Basic) -> frozenset[sp.Symbol]:
    """The free symbols, every subexpression looked at once."""
    if not expr.args or hasattr(expr, "bound_symbols"):
        return frozenset(expr.free_symbols)
    return frozenset().union(*map(symbols_of, expr.args))


def ordered(variables: Iterable[sp.Symbol]) -> list[sp.Symbol]:
    """The variables in a fixed order."""
    return sorted(variables, key=sp.default_sort_key)


def affine(expr: sp.Expr, variables: Collection[sp.Symbol]) -> Affine | None:
    """Coefficients and constant of an expression affine in the variables, else None."""
    found = _affine(expr, frozenset(variables))
    return None if found is None else (dict(found[0]), found[1])


@lru_cache(maxsize=16384)
def _affine(expr: sp.Expr, variables: frozenset[sp.Symbol]) -> Affine | None:
    found = _straight(expr, variables)
    if found is None:
        if not _may_cancel(expr, variables):
            return None
        found = _straight(sp.expand(expr), variables)
        if found is None:
            return None
    coefficients = {v: sp.expand(c) for v, c in found[0].items()}
    return {v: c for v, c in coefficients.items() if c != 0}, sp.expand(found[1])


def _straight(expr: sp.Expr, variables: frozenset[sp.Symbol]) -> Affine | None:
    """The same without multiplying out products of variables."""
    if expr in variables:
        return {cast(sp.Symbol, expr): sp.S.One}, sp.S.Zero
    if not depends(expr, variables):
        return {}, expr
    if isinstance(expr, sp.Mul):
        inside = [a for a in expr.args if depends(a, variables)]
        found = _straight(inside[0], variables) if len(inside) == 1 else None
        if found is None:
            return None
        factor = sp.Mul(*[a for a in expr.args if a is not inside[0]])
        return {v: factor * c for v, c in found[0].items()}, factor * found[1]
    if not isinstance(expr, sp.Add):
        return None
    coefficients: dict[sp.Symbol, sp.Expr] = {}
    constants = []
    for term in expr.args:
        part = _straight(term, variables)
        if part is None:
            return None
        constants.append(part[1])
        for v, c in part[0].items():
            coefficients[v] = coefficients.get(v, sp.S.Zero) + c
    return coefficients, sp.Add(*constants)


def _may_cancel(expr: sp.Expr, variables: frozenset[sp.Symbol]) -> bool:
    """Whether a small polynomial of the variables may turn out affine once multiplied out."""
    return (
        isinstance(expr, (sp.Add, sp.Mul))
        and size(expr, 200) < 200
        and term_count(expr, variables) <= 64
        and bool(expr.is_polynomial(*variables))
    )


def size(expr: sp.Basic, most: int = 10**6) -> int:
    """The number of nodes of an expression, counted up to ``most``."""
    count, stack = 0, [expr]
    while stack and count < most:
        node = stack.pop()
        count += 1
        stack.extend(node.args)
    return count


@dataclass(frozen=True)
class Line:
    """An affine expression ``scale * form + constant`` with a form in normal shape."""

    scale: sp.Expr
    form: sp.Expr
    constant: sp.Expr


def line(expr: sp.Expr, variables: Collection[sp.Symbol]) -> Line | None:
    """The normal shape of an affine expression that does depend on the variables, else None."""
    found = affine(expr, variables)
    if found is None or not found[0]:
        return None
    coefficients, constant = found
    first = ordered(coefficients)[0]
    lead = coefficients[first]
    if len(coefficients) == 1 and (lead.is_positive or lead.is_negative):
        return Line(lead, first, constant)
    number = lead.as_coeff_Mul()[0]
    form = sp.Add(*[c / number * v for v, c in coefficients.items()])
    return Line(number, form, constant)


def affine_parts(expr: sp.Basic, variables: Collection[sp.Symbol]) -> Iterator[Line]:
    """The largest affine parts through which an expression depends on the variables, each once."""
    seen: set[sp.Basic] = set()
    waiting = [expr]
    while waiting:
        part = waiting.pop()
        if part in seen or not depends(part, variables):
            continue
        seen.add(part)
        if isinstance(part, Relational):
            waiting.append(part.lhs - part.rhs)
            continue
        straight = line(part, variables) if isinstance(part, sp.Expr) else None
        if straight is not None:
            yield straight
        elif isinstance(part, sp.Add):
            flat = [a for a in part.args if line(a, variables) is not None]
            waiting += [a for a in part.args if a not in flat] + [sp.Add(*flat)]
        else:
            waiting += part.args


def is_affine_sum(expr: sp.Basic) -> bool:
    """Whether expansion goes through this node (sums, products, whole powers)."""
    whole = isinstance(expr, sp.Pow) and expr.exp.is_Integer and expr.exp.is_positive
    return isinstance(expr, (sp.Add, sp.Mul)) or bool(whole)


@dataclass
class Atoms:
    """A polynomial skeleton of an expression: everything else of the variables is a named atom."""

    variables: frozenset[sp.Symbol]
    names: dict[sp.Expr, sp.Dummy] = field(default_factory=dict)

    def skeleton(self, expr: sp.Expr) -> sp.Expr:
        """The expression with its atoms replaced by names."""
        if expr in self.variables or not depends(expr, self.variables):
            return expr
        if is_affine_sum(expr):
            return expr.func(*[self.skeleton(a) for a in expr.args])
        return self.names.setdefault(expr, sp.Dummy(f"A{len(self.names)}", real=True))


def term_count(expr: sp.Expr, variables: Collection[sp.Symbol]) -> int:
    """An upper bound of the number of terms after expansion."""
    if not depends(expr, variables):
        return 1
    if isinstance(expr, sp.Add):
        return sum(term_count(a, variables) for a in expr.args)
    if isinstance(expr, sp.Mul):
        return int(sp.prod([term_count(a, variables) for a in expr.args]))
    if is_affine_sum(expr):
        base, power = term_count(expr.args[0], variables), int(expr.args[1])
        return int(sp.binomial(base + power - 1, power)) if power < 60 else MAX_TERMS + base
    return 1


def products(
    expr: sp.Expr, variables: Collection[sp.Symbol]
) -> Iterator[tuple[sp.Expr, dict[sp.Expr, int]]]:
    """The outer expansion: (parameter coefficient, {variable or atom: power}) for every term."""
    if term_count(expr, variables) > MAX_TERMS:
        raise NoFormula("the expression has too many terms", why=f"more than {MAX_TERMS}")
    atoms = Atoms(frozenset(variables))
    outer = sp.expand(
        atoms.skeleton(expr), deep=False, power_base=False, power_exp=False, log=False, func=False
    )
    outer = sp.expand_mul(sp.expand_multinomial(outer)) if atoms.names or variables else outer
    back = {name: atom for atom, name in atoms.names.items()}
    gens = [*back, *ordered(variables)]
    collected: dict[tuple[tuple[sp.Expr, int], ...], sp.Expr] = {}
    for term in sp.Add.make_args(outer):
        coefficient, rest = term.as_independent(*gens, as_Add=False)
        powers = {back.get(b, b): int(e) for b, e in rest.as_powers_dict().items() if b != 1}
        key = tuple(sorted(powers.items(), key=lambda item: sp.default_sort_key(item[0])))
        collected[key] = collected.get(key, sp.S.Zero) + coefficient
    for key, coefficient in collected.items():
        if coefficient != 0:
            yield coefficient, dict(key)


def build(powers: dict[sp.Expr, int]) -> sp.Expr:
    """The product that the powers spell."""
    return sp.Mul(*[b**e for b, e in powers.items()])
