"""The unevaluated Gaussian expectation: a sympy expression with bound variables."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import sympy as sp
from sympy.core.containers import Tuple

from varflow.laws.algebra import size
from varflow.laws.cells import KINKED, NotFlat, piecewise
from varflow.laws.straight import bottom_up

TINY, SMALL, LARGE, MOST_KINKS = 120, 300, 1200, 24
_FIRST_INDEX = 7_000_000_000
BOUND = tuple(sp.Dummy(f"z_{i + 1}", dummy_index=_FIRST_INDEX + i, real=True) for i in range(2))


class GaussianExpectation(sp.Expr):  # type: ignore[misc]
    """E[integrand], its variables jointly Gaussian, zero mean, with the given covariance.

    ``covariance`` is (q,) for one variable and (q_1, c, q_2) for two; a Matrix is accepted. Equal
    integrals are equal objects: bound variables, their order and their sign are in normal form.
    """

    is_commutative = True

    def __new__(cls, integrand: sp.Expr, variables: Any, covariance: Any) -> GaussianExpectation:
        entries = _entries(covariance)
        names = tuple(variables)
        if len(entries) != len(names) * (len(names) + 1) // 2 or not 1 <= len(names) <= 2:
            raise ValueError("one or two variables, and their covariance")
        body, entries = _normal_form(integrand, names, entries)
        bound = BOUND[: len(names)]
        made: GaussianExpectation = super().__new__(cls, body, Tuple(*bound), Tuple(*entries))
        return made

    @property
    def integrand(self) -> sp.Expr:
        """The function of the bound variables."""
        return self.args[0]

    @property
    def variables(self) -> tuple[sp.Symbol, ...]:
        """The bound variables."""
        return tuple(self.args[1])

    @property
    def covariance(self) -> tuple[sp.Expr, ...]:
        """(q,) or (q_1, c, q_2)."""
        return tuple(self.args[2])

    @property
    def free_symbols(self) -> set[sp.Basic]:
        """Parameters only."""
        inside = self.integrand.free_symbols.union(*(c.free_symbols for c in self.covariance))
        return set(inside) - set(self.variables)

    @property
    def bound_symbols(self) -> list[sp.Symbol]:
        """The integration variables."""
        return list(self.variables)

    def _eval_is_extended_real(self) -> bool:
        return True

    def _eval_is_finite(self) -> bool:
        return True

    def _eval_is_nonnegative(self) -> bool | None:
        return True if self.integrand.is_nonnegative else None

    def _eval_is_positive(self) -> bool | None:
        return True if self.integrand.is_nonnegative and self.integrand != 0 else None

    def _eval_evalf(self, prec: int) -> sp.Expr:
        if self.free_symbols:
            return self
        from varflow.laws.quadrature import evaluate

        return sp.Float(evaluate(self))

    def _eval_derivative(self, symbol: sp.Symbol) -> sp.Expr:
        """Price's theorem; kinks and jumps of the integrand give densities (price.py)."""
        if symbol not in self.free_symbols:
            return sp.S.Zero
        if self.integrand.has(*KINKED):
            from varflow.laws.price import derivative_of

            return derivative_of(self, symbol)
        f, zs = self.integrand, self.variables
        total = self._like(f.diff(symbol))
        second = [(0, 0)] if len(zs) == 1 else [(0, 0), (0, 1), (1, 1)]
        for (i, j), c in zip(second, self.covariance, strict=True):
            half = sp.Rational(1, 2) if i == j else sp.S.One
            total += half * c.diff(symbol) * self._like(f.diff(zs[i], zs[j]))
        return total

    def _like(self, integrand: sp.Expr) -> sp.Expr:
        if integrand == 0:
            return sp.S.Zero
        return GaussianExpectation(integrand, self.variables, self.covariance)

    def _shown(self) -> tuple[sp.Expr, list[sp.Symbol]]:
        """The integrand with printable names that no parameter uses."""
        taken = {str(s) for s in self.free_symbols}
        options = (n for n in ("z", "u", "v", "w", "zeta", "eta", "xi", "omega") if n not in taken)
        shown = [sp.Symbol(n, real=True) for _, n in zip(self.variables, options, strict=False)]
        return self.integrand.xreplace(dict(zip(self.variables, shown, strict=True))), shown

    def _sympystr(self, printer: Any) -> str:
        body, shown = self._shown()
        law = ", ".join(printer._print(c) for c in self.covariance)
        names = ", ".join(map(str, shown))
        return f"E[{printer._print(body)}; ({names}) ~ N({law})]"

    def _latex(self, printer: Any, exp: Any = None) -> str:
        body, shown = self._shown()
        c = [printer._print(e) for e in self.covariance]
        law = c[0]
        if len(shown) == 2:
            law = rf"\begin{{pmatrix}}{c[0]}&{c[1]}\\{c[1]}&{c[2]}\end{{pmatrix}}"
        names = ",".join(printer._print(s) for s in shown)
        left = rf"\mathbb{{E}}_{{{names}\sim\mathcal{{N}}\left(0,{law}\right)}}"
        text = rf"{left}\left[{printer._print(body)}\right]"
        return text if exp is None else rf"\left({text}\right)^{{{exp}}}"


def _entries(covariance: Any) -> tuple[sp.Expr, ...]:
    if isinstance(covariance, sp.MatrixBase):
        n = covariance.shape[0]
        return tuple(covariance[i, j] for i in range(n) for j in range(i, n))
    return tuple(covariance)


def _normal_form(
    integrand: sp.Expr, names: tuple[sp.Symbol, ...], entries: tuple[sp.Expr, ...]
) -> tuple[sp.Expr, tuple[sp.Expr, ...]]:
    if len(names) == 1:
        return _canonical(integrand.xreplace({names[0]: BOUND[0]})), entries
    options = []
    for order in permutations(range(2)):
        renamed = integrand.xreplace({names[k]: BOUND[i] for i, k in enumerate(order)})
        law = entries if order == (0, 1) else entries[::-1]
        options.append((renamed, law))
    return min(options, key=lambda o: (sp.default_sort_key(o[0]), *map(sp.default_sort_key, o[1])))


def _canonical(body: sp.Expr) -> sp.Expr:
    if not body.has(*KINKED):
        return body
    try:
        if size(body, LARGE) < LARGE and len(body.atoms(*KINKED)) <= MOST_KINKS:
            return piecewise(body, BOUND[0])
    except NotFlat:
        pass
    made: sp.Expr = bottom_up(body, (_as_sign,)) if body.has(sp.Heaviside) else body
    return made


def _as_sign(expr: sp.Expr) -> sp.Expr:
    return (1 + sp.sign(expr.args[0])) / 2 if isinstance(expr, sp.Heaviside) else expr


def even_part(body: sp.Expr, z: sp.Symbol) -> sp.Expr | None:
    """(f(z) + f(-z)) / 2 of a rational function of z and exp(k z) where no exp is left, else None."""
    functions = {f.func for f in body.atoms(sp.Function)}
    if functions != {sp.exp} or size(body, TINY) == TINY:
        return None
    growth = sp.Dummy("T", positive=True)
    total = (body + body.xreplace({z: -z})).replace(sp.exp, lambda k: _power(k, z, growth))
    if total.has(sp.exp) or not total.is_rational_function(z, growth) or _varies(total, z, growth):
        return None
    total = sp.cancel(total)
    return total / 2 if total.is_polynomial(z) and not total.has(growth) else None


def _varies(total: sp.Expr, z: sp.Symbol, growth: sp.Symbol) -> bool:
    """Whether a rational function, its other symbols at one place, is seen to depend on ``growth``."""
    rest = dict.fromkeys(total.free_symbols - {z, growth}, sp.Float("0.66", 30))
    at = [{**rest, z: sp.Float("1.37", 30), growth: sp.Float(t, 30)} for t in ("1.21", "2.93")]
    first, last = (total.xreplace(values) for values in at)
    if not (first.is_Float and last.is_Float):
        return False
    return bool(abs(first - last) > sp.Float("1e-9") * (abs(first) + abs(last)))


def _power(exponent: sp.Expr, z: sp.Symbol, growth: sp.Symbol) -> sp.Expr:
    k = exponent.coeff(z)
    return growth**k if k.is_Integer and exponent == k * z else sp.exp(exponent)


def is_odd(body: sp.Expr, names: tuple[sp.Symbol, ...]) -> bool:
    """Whether the integrand visibly changes its sign with its variables."""
    if size(body, SMALL) == SMALL:
        return False
    mirrored = body.xreplace({v: -v for v in names})
    return bool(mirrored == -body or sp.expand(mirrored + body, deep=False) == 0)
