"""What every gain report has in common: its fields, their numbers and how they render."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

import sympy as sp

from varflow.errors import InputError, UnsupportedError
from varflow.expressions import parse
from varflow.laws.expectation import GaussianExpectation, compile_formula

FIELDS = (
    "mean",
    "second_moment",
    "variance",
    "init_gain",
    "init_gain_centered",
    "derivative_second_moment",
    "second_derivative_second_moment",
    "chi",
    "dead_share",
)
ROOTS = {"init_gain": "second_moment", "init_gain_centered": "variance"}
LATEX: Mapping[str, str] = MappingProxyType({
    "mean": r"\mathbb{E} f",
    "second_moment": r"\mathbb{E} f^2",
    "variance": r"\operatorname{Var} f",
    "init_gain": r"1/\sqrt{\mathbb{E} f^2}",
    "init_gain_centered": r"1/\sqrt{\operatorname{Var} f}",
    "derivative_second_moment": r"\mathbb{E} f'^2",
    "second_derivative_second_moment": r"\mathbb{E} f''^2",
    "chi": r"\chi",
    "dead_share": r"\mathbb{P}(f = f' = 0)",
})


class GainFields(ABC):
    """The fields of a gain report as formulas, each made when it is first asked for.

    ``variance`` is Var f; ``init_gain`` = 1/sqrt(E f^2) keeps the second moment at 1 and ``init_gain_centered``
    = 1/sqrt(Var f) the variance (Brock et al. 2021); None where the moment is zero. ``chi`` = q E f'^2 / E f^2
    is the slope at correlation 1 of the map from the correlation of two inputs to E[f f] / E f^2 (Schoenholz et
    al. 2017), infinite for an activation that jumps.
    """

    input_variance: sp.Expr
    input_mean: sp.Expr

    @property
    @abstractmethod
    def title(self) -> str:
        """The function as text: f(x) = ..."""

    @property
    @abstractmethod
    def mean(self) -> sp.Expr:
        """E f."""

    @property
    @abstractmethod
    def second_moment(self) -> sp.Expr:
        """E f^2."""

    @property
    @abstractmethod
    def derivative_second_moment(self) -> sp.Expr:
        """E f'^2, jumps left out."""

    @property
    @abstractmethod
    def second_derivative_second_moment(self) -> sp.Expr | None:
        """E f''^2, kinks and jumps left out; None where it is not defined."""

    @property
    @abstractmethod
    def dead_share(self) -> sp.Expr | None:
        """The probability of an input where f and f' are both zero; None where it is not known."""

    @property
    @abstractmethod
    def has_jump(self) -> bool:
        """Whether f jumps somewhere."""

    @cached_property
    def variance(self) -> sp.Expr:
        """Var f."""
        return self.second_moment - self.mean**2

    @cached_property
    def init_gain(self) -> sp.Expr | None:
        """1/sqrt(E f^2)."""
        return inverse_root(self.second_moment)

    @cached_property
    def init_gain_centered(self) -> sp.Expr | None:
        """1/sqrt(Var f)."""
        return inverse_root(self.variance)

    @cached_property
    def chi(self) -> sp.Expr | None:
        """q E f'^2 / E f^2."""
        if self.second_moment == 0:
            return None
        if self.has_jump:
            return sp.oo
        return self.input_variance * self.derivative_second_moment / self.second_moment

    @property
    def closed_form(self) -> Mapping[str, bool]:
        """Whether each field is free of unevaluated integrals."""
        values = {name: getattr(self, name) for name in FIELDS}
        return MappingProxyType(
            {k: v is not None and not v.has(GaussianExpectation) for k, v in values.items()}
        )

    @property
    def symbols(self) -> frozenset[str]:
        """Names that the fields leave open."""
        values = (getattr(self, name) for name in FIELDS)
        return frozenset(str(s) for v in values if v is not None for s in v.free_symbols)

    def numeric(self, values: Mapping[str, float] | None = None) -> dict[str, float | None]:
        """Every field as a float; ``values`` for the symbols that are left, by name.

        Raises InputError naming the symbols without a value, UnsupportedError for an integral without a number
        (a second derivative without one is None).
        """
        table = {str(k): float(v) for k, v in (values or {}).items()}
        self._require_variance(table)
        numbers = {name: self._number(name, table) for name in FIELDS}
        for root, moment in ROOTS.items():  # from the number of the moment, in which differences do not cancel
            value = numbers[moment]
            if numbers[root] is not None and value is not None and value > 0:
                numbers[root] = 1 / math.sqrt(value)
        return numbers

    def _require_variance(self, table: Mapping[str, float]) -> None:
        """Refuse values that make the variance of the argument negative."""
        known = {s: exact(table[str(s)]) for s in self.input_variance.free_symbols if str(s) in table}
        if known:
            variance_of(self.input_variance.xreplace(known))

    def _number(self, name: str, table: Mapping[str, float]) -> float | None:
        try:
            return number_of(getattr(self, name), table)
        except UnsupportedError:
            if name not in ("second_derivative_second_moment", "dead_share"):
                raise
            return None

    def _repr_latex_(self) -> str:
        from varflow.export.formulas import printed

        rows = (
            rf"{LATEX[name]} &= {printed(getattr(self, name), {})}"
            for name in FIELDS
            if getattr(self, name) is not None
        )
        return "$\\begin{aligned}" + r" \\ ".join(rows) + "\\end{aligned}$"

    def _repr_html_(self) -> str:
        from html import escape

        from varflow.export.formulas import printed

        numbers = {} if self.symbols else self.numeric()
        rows = "".join(
            f"<tr><td>{name}</td><td>{_number_text(numbers.get(name))}</td>"
            f"<td>${escape(printed(value, {}), quote=False)}$</td></tr>"
            for name in FIELDS
            if (value := getattr(self, name)) is not None
        )
        return (
            f"<table><caption>{escape(self.title)}</caption>"
            f"<tr><th>field</th><th>value</th><th>formula</th></tr>{rows}</table>"
        )


def _number_text(value: float | None) -> str:
    return "&mdash;" if value is None else f"{value:.6g}"


def inverse_root(moment: sp.Expr) -> sp.Expr | None:
    """1/sqrt(moment); None for zero."""
    zero = moment == 0 or (not moment.has(GaussianExpectation) and sp.expand(moment) == 0)
    return None if zero else 1 / sp.sqrt(moment)


def number_of(expr: sp.Expr | None, table: Mapping[str, float]) -> float | None:
    """A formula as a float. Raises InputError naming symbols that are not in the table."""
    if expr is None:
        return None
    symbols = sorted(expr.free_symbols, key=sp.default_sort_key)
    missing = [str(s) for s in symbols if str(s) not in table]
    if missing:
        raise InputError(f"no value for {', '.join(missing)}", instead="numeric({NAME: NUMBER})")
    number = float(compile_formula(expr, symbols)(*[table[str(s)] for s in symbols]))
    if math.isnan(number):
        raise UnsupportedError(
            "this number is out of reach", where=str(expr)[:200], why="the integral has no value in floats"
        )
    return number


def exact(value: sp.Expr | float | str) -> sp.Expr:
    """A number as a rational, as its shortest digits say; an expression as it is; a text as the number it says.

    Raises ExpressionError for a text with names in it, InputError for what is no finite real number.
    """
    if isinstance(value, sp.Expr):
        made = value
    elif isinstance(value, str):
        made = parse(value, {})
    elif isinstance(value, int):
        made = sp.Integer(value)
    elif isinstance(value, numbers.Real) and math.isfinite(value):
        made = sp.Rational(str(float(value)))
    else:
        made = sp.nan
    if made.is_number and not _finite(made):
        raise InputError(f"{str(value)[:60]} is no finite real number", instead="one number, or a sympy expression")
    return made


def _finite(value: sp.Expr) -> bool:
    """Whether a number is real and finite; by its digits where sympy's assumptions do not tell (Bessel functions)."""
    known = value.is_real, value.is_finite
    if None in known and False not in known:
        digits = value.evalf(15)
        known = digits.is_real, digits.is_finite
    return known == (True, True)


def variance_of(value: sp.Expr | float | str, name: str = "variance") -> sp.Expr:
    """A variance, or a scale of variances, as ``exact`` reads it. Raises InputError for a negative one."""
    q = exact(value)
    if q.is_negative:
        raise InputError(f"the {name} {q} is negative", why="a square has no negative mean")
    return q
