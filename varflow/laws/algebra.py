"""Affine forms, outer expansion into products of atoms, and the rational clean-up of numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import sympy as sp

from varflow.laws.distributions import NoFormula

MAX_TERMS = 4000
Affine = tuple[dict[sp.Symbol, sp.Expr], sp.Expr]


def rational(expr: sp.Expr) -> sp.Expr:
    """The expression with every decimal number replaced by the rational it spells."""
    floats = expr.atoms(sp.Float)
    return expr.xreplace({f: sp.Rational(str(f)) for f in floats}) if floats else expr


def depends(expr: sp.Basic, variables: Collection[sp.Symbol]) -> bool:
    """Whether any of the variables occurs free in the expression."""
    return not expr.free_symbols.isdisjoint(variables)


def ordered(variables: Iterable[sp.Symbol]) -> list[sp.Symbol]:
    """The variables in a fixed order."""
    return sorted(variables, key=sp.default_sort_key)


def affine(expr: sp.Expr, variables: Collection[sp.Symbol]) -> Affine | None:
    """Coefficients and constant of an expression affine in the variables, else None."""
    constant: sp.Expr = sp.S.Zero
    coefficients: dict[sp.Symbol, sp.Expr] = {}
    for term in sp.Add.make_args(sp.expand(expr)):
        if not depends(term, variables):
            constant += term
            continue
        factor, rest = term.as_independent(*variables, as_Add=False)
        if rest in variables:
            coefficients[rest] = coefficients.get(rest, sp.S.Zero) + factor
        else:
            return None
    return {v: c for v, c in coefficients.items() if c != 0}, constant


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
