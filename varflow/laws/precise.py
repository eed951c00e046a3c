"""Formulas as numpy functions, and their numbers with enough digits where doubles cancel.

``guarded`` bounds the rounding error of every value (straight.py); points where it may reach 1e-10 of the
value are computed again by mpmath, with twice the digits until the bound is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import numpy as np
import sympy as sp
from sympy.core.function import UndefinedFunction

from varflow.binormal import by_mpmath
from varflow.laws.straight import NoProgram, Program, bind, program, text_of
from varflow.waves import BY_MPMATH

TOLERANCE = 1e-10
MOST_DIGITS = 800
_EPS = 2.3e-16
MOST_BITS = 2000
_LOST = (ArithmeticError, ValueError, TypeError, NotImplementedError, MemoryError)
_SATURATING = ("tanh", "erf")
_GROWING = frozenset((*_SATURATING, "exp", "sinh", "cosh", "coth", "sech", "csch", "erfc", "gamma", "loggamma",
                      "polygamma", "sin", "cos", "tan", "sec", "csc", "cot", "besselk", "expm1"))


def _inverse(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: 1 / function(x)


def _of_inverse(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: function(1 / x)


def _np_acot(x: Any) -> Any:
    return np.arctan(1 / x)


def _np_polygamma(n: Any, x: Any) -> Any:
    from scipy.special import polygamma

    return polygamma(np.asarray(n, dtype=int), x)


_NUMPY: dict[str, Any] = {
    **{n: getattr(np, n) for n in ("absolute", "sqrt", "where", "maximum", "minimum", "sign")},
    **{n: getattr(np, n) for n in ("logical_not", "logical_and", "logical_or", "exp", "log")},
    **{n: getattr(np, n) for n in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "expm1")},
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "power": np.power,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "Abs": np.absolute,
    "sec": _inverse(np.cos),
    "csc": _inverse(np.sin),
    "cot": _inverse(np.tan),
    "coth": _inverse(np.tanh),
    "sech": _inverse(np.cosh),
    "csch": _inverse(np.sinh),
    "acot": _of_inverse(np.arctan),
    "acoth": _of_inverse(np.arctanh),
    "heaviside": lambda x: np.heaviside(x, 0.5),
    "polygamma": _np_polygamma,
    "_one": np.float64(1),
    "_zero": np.float64(0),
    "_nan": np.float64(np.nan),
    "_eps": _EPS,
}


def function_of(
    expr: sp.Expr, symbols: Sequence[sp.Symbol], table: Mapping[str, Any]
) -> Callable[..., Any]:
    """The formula as a function of numpy arrays; ``table`` has functions beyond numpy's, by name.

    Raises NoProgram.
    """
    made = program(expr, symbols)
    run = bind(made, text_of(made), _numpy_names(made, table))

    def formula(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return run(arguments)

    return formula


def _numpy_names(made: Program, table: Mapping[str, Any]) -> dict[str, Any]:
    names = {**_NUMPY, **table}
    for name, kind in made.calls.items():
        if name not in names:
            names[name] = _single(kind)
    return {**names, "_numbers": [_double(n) for n in made.numbers]}


def _double(number: sp.Expr) -> Any:
    try:
        return np.float64(float(number))
    except OverflowError:
        return np.float64(np.inf) * np.sign(number)


@lru_cache(maxsize=64)
def _single(kind: Any) -> Callable[..., Any]:
    """A function that no table has, by sympy's own translation."""
    takes = None if isinstance(kind, UndefinedFunction) else getattr(kind, "nargs", None)
    if not takes:
        raise NoProgram(str(kind))
    arguments = sp.symbols(f"a:{min(takes)}", real=True)
    made: Callable[..., Any] = sp.lambdify(arguments, kind(*arguments), ["scipy", "numpy"])
    return made


_one_image: ContextVar[bool] = ContextVar("_one_image", default=False)


@contextmanager
def one_image() -> Iterator[None]:
    """Here an array's entries are of the positions of one image, so that digits count in units of the largest."""
    token = _one_image.set(True)
    try:
        yield
    finally:
        _one_image.reset(token)


def guarded(
    expr: sp.Expr, symbols: Sequence[sp.Symbol], table: Mapping[str, Any], again: sp.Expr
) -> Callable[..., Any]:
    """The formula as a function of equally shaped arrays, to about ten digits where doubles suffice not.

    ``again`` is the same formula in sympy's own functions, for mpmath. Raises NoProgram.
    """
    made = program(expr, symbols, errors=True)
    run = bind(made, text_of(made), _numpy_names(made, table))
    slow = _Slow(again, tuple(symbols))

    def formula(*values: Any) -> Any:
        with np.errstate(all="ignore"):
            value, bound = run([np.asarray(v, dtype=float) for v in values])
        value, bound = np.asarray(value, dtype=float), np.asarray(bound, dtype=float)
        size = np.abs(value)
        if _one_image.get():
            size = np.max(size[np.isfinite(size)], initial=0.0)
        bad = ~(bound <= TOLERANCE * size)
        return slow.repair(value, bad, values) if bad.any() else value

    return formula


def mp_function(expr: sp.Expr, symbols: Sequence[sp.Symbol]) -> Callable[..., Any]:
    """f(x, digits=30): the value by mpmath; None where it is not real, or infinite.

    Raises NoProgram.
    """
    import mpmath as mp

    made = program(expr, symbols)
    text = text_of(made)
    runs: dict[int, Any] = {}

    def f(x: Any, digits: int = 30) -> Any:
        with mp.workdps(digits):
            if digits not in runs:
                runs[digits] = bind(made, text, _mp_names(made, digits))
            try:
                value = runs[digits]((mp.mpf(x),))
            except _LOST:
                return None
            return None if isinstance(value, mp.mpc) or not mp.isfinite(value) else value

    return f


class _Slow:
    """The formula by mpmath, made when first needed."""

    def __init__(self, expr: sp.Expr, symbols: tuple[sp.Symbol, ...]) -> None:
        self.expr, self.symbols = expr, symbols
        self.made: Program | None = None
        self.text = ""
        self.runs: dict[int, Callable[..., Any]] = {}

    def repair(self, value: Any, bad: Any, arguments: Sequence[Any]) -> Any:
        """The values with those marked computed again; one that stays out of reach is left."""
        shape = np.broadcast_shapes(value.shape, *[np.shape(a) for a in arguments])
        result = np.array(np.broadcast_to(value, shape))
        where = np.broadcast_to(bad, shape)
        columns = [np.broadcast_to(np.asarray(a, dtype=float), shape)[where] for a in arguments]
        rows = np.stack(columns, axis=1) if columns else np.zeros((int(where.sum()), 0))
        different, first, back = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        old = result[where]
        new = [self.at(row, float(old[k])) for row, k in zip(different, first, strict=True)]
        result[where] = np.array(new)[np.ravel(back)]
        return result

    def at(self, row: Any, old: float) -> float:
        """One value: more digits until the error bound is small."""
        if not np.all(np.isfinite(row)):
            return old
        digits = 40
        while digits <= MOST_DIGITS:
            found = self.attempt(row, digits)
            if found is None:
                return old
            value, bound = found
            if bound <= 1e-13 * abs(value):
                return float(value)
            digits *= 2
        return float(value) if bound <= 1e-9 * abs(value) or abs(value) < 1e-300 else old

    def attempt(self, row: Any, digits: int) -> tuple[Any, Any] | None:
        import mpmath

        with mpmath.workdps(digits):
            try:
                if digits not in self.runs:
                    self.runs[digits] = bind(self.program(), self.text, _mp_names(self.program(), digits))
                value, bound = self.runs[digits]([mpmath.mpf(float(x)) for x in row])
                real = not isinstance(value, mpmath.mpc) and mpmath.isfinite(value)
                return (value, bound) if real and mpmath.isfinite(bound) else None
            except (*_LOST, NoProgram):
                return None

    def program(self) -> Program:
        if self.made is None:
            self.made = program(self.expr, self.symbols, errors=True)
            self.text = text_of(self.made)
        return self.made


def _within_reach(name: str, function: Any) -> Any:
    """mpmath's function; OverflowError where its argument alone has thousands of bits before the point."""
    if name not in _GROWING or function is None:
        return function

    def guarded(*arguments: Any) -> Any:
        import mpmath as mp

        if max(mp.mag(a) for a in arguments) > MOST_BITS:
            if name in _SATURATING and not isinstance(arguments[-1], mp.mpc):
                return mp.sign(arguments[-1])
            raise OverflowError(name)
        return function(*arguments)

    return guarded


def _power(base: Any, exponent: Any) -> Any:
    """base^exponent; OverflowError where that has millions of digits."""
    import mpmath as mp

    if base != 0 and mp.mag(exponent) + mp.mag(mp.mag(base)) > MOST_BITS:
        raise OverflowError("power")
    return mp.power(base, exponent)


def _mp_names(made: Program, digits: int) -> dict[str, Any]:
    import mpmath as mp

    names = {n: _within_reach(n, getattr(mp, n, None)) for n in made.calls}
    names |= {
        "absolute": abs,
        "Abs": abs,
        "where": lambda c, a, b: a if c else b,
        "power": _power,
        "maximum": max,
        "minimum": min,
        "logical_not": lambda a: not a,
        "sqrt": mp.sqrt,
        "logical_and": lambda a, b: a and b,
        "logical_or": lambda a, b: a or b,
        "heaviside": lambda x: (1 + mp.sign(x)) / 2,
        "polygamma": mp.polygamma,
        "loggamma": mp.loggamma,
        "besselk": mp.besselk,
        "Phi2": by_mpmath,
        **BY_MPMATH,
        "_one": mp.mpf(1),
        "_zero": mp.mpf(0),
        "_nan": mp.nan,
        "_eps": mp.mpf(10) ** -digits,
        "_numbers": [_mp_number(n, digits) for n in made.numbers],
    }
    if any(f is None for f in names.values()):
        raise NoProgram("a function that mpmath does not have")
    return names


def _mp_number(number: sp.Expr, digits: int) -> Any:
    import mpmath as mp

    if isinstance(number, sp.Rational):
        return mp.mpf(int(number.p)) / int(number.q)
    return mp.mpf(sp.N(number, digits + 5)._mpf_)
