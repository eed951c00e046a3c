"""The activation y = a f(b x + c) + d and its moments, as polynomials of a and d over named moments of f."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import sympy as sp

from varflow.activations import substitute
from varflow.errors import UnsupportedError
from varflow.laws.expectation import GaussianExpectation, Normal, derivative, expect, has_jump
from varflow.symbols import X

G, G1, G2 = sp.symbols("g dg ddg", real=True)
"""g(x) = f(b x + c) and its derivatives, where a moment is written down."""
Y, Y1, Y2 = sp.symbols("y dy ddy", real=True)
"""y = a g + d and its derivatives, where a user writes a moment down."""


@dataclass(frozen=True)
class Tailored:
    """y = a f(b x + c) + d at x ~ N(0, q); constants are symbols or values.

    Moments of g(x) = f(b x + c) are symbols, so that equations stay small; ``closed`` and ``integral`` say what
    a symbol stands for.
    """

    f: sp.Expr
    a: sp.Expr
    b: sp.Expr
    c: sp.Expr
    d: sp.Expr
    q: sp.Expr

    @cached_property
    def inner(self) -> sp.Expr:
        """g(x) = f(b x + c)."""
        return substitute(self.f, {X: self.b * X + self.c})

    @cached_property
    def slope(self) -> sp.Expr:
        """g'. Raises UnsupportedError where f jumps."""
        if has_jump(self.f, X):
            raise UnsupportedError(
                "a condition on slopes has no meaning for an activation that jumps"
            )
        return derivative(self.inner, X)

    @cached_property
    def bend(self) -> sp.Expr:
        """g''. Raises UnsupportedError where f' jumps."""
        if has_jump(self.slope, X):
            raise UnsupportedError(
                "C''(1) is infinite: the derivative of the activation jumps",
                instead="conditions on network_c_0, or on slopes",
            )
        return derivative(self.slope, X)

    def function(self, table: Mapping[sp.Symbol, sp.Expr]) -> sp.Expr:
        """y in ``symbols.X``, its constants replaced."""
        a, b, c, d = (sp.sympify(e).xreplace(table) for e in (self.a, self.b, self.c, self.d))
        f = substitute(self.f, {s: v for s, v in table.items() if s in self.f.free_symbols})
        return a * substitute(f, {X: b * X + c}) + d

    # -- named moments -------------------------------------------------------------------------------------

    @cached_property
    def moments(self) -> dict[sp.Expr, sp.Symbol]:
        """The symbol of every moment of g used so far, by its expression in G, G1, G2 and x."""
        return {}

    def moment(self, expr: sp.Expr) -> sp.Expr:
        """E of an expression in G, G1, G2 and x: a symbol; constants as they are."""
        if not expr.free_symbols & {G, G1, G2, X}:
            return expr
        return self.moments.setdefault(expr, sp.Dummy(f"E{len(self.moments)}", real=True))

    def integrand(self, expr: sp.Expr) -> sp.Expr:
        """The expression as a function of ``symbols.X``."""
        values: dict[sp.Basic, sp.Basic] = {}
        for symbol, name in ((G, "inner"), (G1, "slope"), (G2, "bend")):
            if symbol in expr.free_symbols:
                values[symbol] = getattr(self, name)
        return substitute(expr, values)

    @cached_property
    def closed(self) -> dict[sp.Symbol, sp.Expr]:
        """What each symbol of a moment stands for, in closed form where there is one."""
        made = {}
        for expr, symbol in self.moments.items():
            made[symbol] = expect(self.integrand(expr), {X: Normal()}, lambda u, v: self.q)
        return made

    @cached_property
    def integral(self) -> dict[sp.Symbol, sp.Expr]:
        """The same as integrals, which numbers are faster and safer with."""
        made = {}
        for expr, symbol in self.moments.items():
            body = self.integrand(expr)
            made[symbol] = (
                GaussianExpectation(body, (X,), (self.q,)) if X in body.free_symbols else body
            )
        return made

    # -- moments of y --------------------------------------------------------------------------------------

    def expectation(self, expr: sp.Expr) -> sp.Expr:
        """E of an expression in Y, Y1, Y2 and x: where it is a polynomial of these, one of a and d too."""
        values = {Y: self.a * G + self.d, Y1: self.a * G1, Y2: self.a * G2}
        ours = sorted(expr.free_symbols & set(values), key=str)
        if ours and not expr.is_polynomial(*ours):
            return self.moment(substitute(expr, values))
        total = []
        for term in sp.Add.make_args(sp.expand(expr.xreplace(values))):
            constant, rest = term.as_independent(G, G1, G2, X, as_Add=False)
            total.append(constant * self.moment(rest))
        return sp.Add(*total)

    @property
    def second(self) -> sp.Expr:
        """E y^2."""
        return self.expectation(Y**2)

    @property
    def variance(self) -> sp.Expr:
        """Var y."""
        return sp.expand(self.second - self.expectation(Y) ** 2)

    @property
    def q_slope(self) -> sp.Expr:
        """dE y^2/dq, by the score of the variance: jumps and kinks included."""
        score = (X**2 / self.q - 1) / (2 * self.q)
        first, second = self.moment(G * score), self.moment(G**2 * score)
        return self.a**2 * second + 2 * self.a * self.d * first
