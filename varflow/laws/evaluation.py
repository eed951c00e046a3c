"""Numbers for named moments: one pass of compiled templates and operators over arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp

from varflow.calculus import symbols_in
from varflow.laws.moments import Moment, Quantity, has_integral, is_polynomial, place

if TYPE_CHECKING:
    from varflow.laws.crops import Crops

PART = 1 << 20
"""Numbers that a formula is evaluated at together."""
NEAR = 1e-11
"""What copies of a value lack of a correlation of one, where a formula is evaluated there."""
LARGE = 1 << 12
"""Numbers of an array that is forgotten when nothing reads it any more."""


class Evaluation:
    """Numbers for all moments by one pass of compiled templates, over parameter grids too.

    ``values`` maps symbols' names to numbers or arrays; ``measured`` supplies moments that have no formula, ``known``
    numbers that are known before. With ``crops`` moments are arrays over positions.
    """

    def __init__(self, values: Mapping[str, Any], measured: Callable[[Moment], Any], crops: Crops | None = None,
                 known: Mapping[Moment, Any] | None = None) -> None:
        self.values, self.measured, self.crops = values, measured, crops
        self._known: dict[Moment, Any] = dict(known or {})
        self._readers: Counter[Moment] = Counter()

    @property
    def known(self) -> Mapping[Moment, Any]:
        """The numbers found so far."""
        return self._known

    def of(self, quantity: Quantity) -> Any:
        """The number (or array) of a moment or of an expression of the network's symbols."""
        if not isinstance(quantity, Moment):
            return _evaluate(quantity, (), (), self.values)
        if self._readers and quantity not in self._readers and quantity not in self._known:
            self.plan([quantity])
        stack = [] if quantity in self._known else [quantity]
        while stack:
            m = stack[-1]
            missing = next((a for a in m.args if isinstance(a, Moment) and a not in self._known), None)
            if missing is not None:
                stack.append(missing)
                continue
            stack.pop()
            self._known[m] = self._one(m)
            self._release(m)
        return self._known[quantity]

    def plan(self, quantities: Iterable[Quantity]) -> None:
        """Say what will be asked for: from then on large arrays that nothing of it reads any more are forgotten; what
        is asked for besides may find them anew."""
        seen = {q for q in quantities if isinstance(q, Moment)}
        stack = list(seen)
        self._readers = Counter(seen)
        while stack:
            m = stack.pop()
            if m not in self._known:
                read = {a for a in m.args if isinstance(a, Moment)}
                self._readers.update(read)
                stack += read - seen
                seen |= read

    def _release(self, m: Moment) -> None:
        """Forget large arrays that have been read for the last time."""
        for a in {a for a in m.args if isinstance(a, Moment)}:
            if a in self._readers:
                self._readers[a] -= 1
                if self._readers[a] <= 0 and np.size(self._known[a]) >= LARGE:
                    del self._known[a]

    def _operated(self, operator: Any, numbers: tuple[Any, ...]) -> Any:
        """What an operator makes of arrays; outside profiles they are grids of parameters, of their own shape."""
        arrays = [np.asarray(x, dtype=np.float64) for x in numbers]
        places = [np.atleast_2d(a) for a in arrays]
        if self.crops is not None:
            return self.crops.apply(operator, places)
        return operator.apply(*places).reshape(np.broadcast_shapes(*(a.shape for a in arrays)))[()]

    def _one(self, m: Moment) -> Any:
        if m.template is None and m.operator is None:
            return self.measured(m)
        numbers = tuple(self._known[a] if isinstance(a, Moment) else _evaluate(a, (), (), self.values)
                        for a in m.args)
        if m.operator is not None:
            return self._operated(m.operator, numbers)
        places = tuple(place(i, a) for i, a in enumerate(m.args))
        if self.crops is None:
            return _evaluate(m.template, places, numbers, self.values)
        from varflow.laws.precise import one_image

        with one_image():
            given = tuple(map(_off_diagonal, self.crops.alike(numbers)))
            return self._beside_copies(m.template, places, given, self._by_place(m.template, places, given))

    def _beside_copies(self, expr: sp.Expr, places: tuple[sp.Symbol, ...], numbers: tuple[Any, ...], found: Any) -> Any:
        """The formula's numbers, those of two places that hold copies of one value, where kinks end in 0/0, at a
        correlation just below one."""
        lost = np.isnan(found) if np.ndim(found) == 2 else np.False_
        if not lost.any():
            return found
        pairs = [np.ndim(x) == 2 and min(np.shape(x)) > 1 for x in numbers]
        near = tuple(np.broadcast_to(x * (1 - NEAR) if pair else x, lost.shape)[lost] if np.ndim(x) else x
                     for x, pair in zip(numbers, pairs, strict=True))
        found = np.array(found)
        found[lost] = _evaluate(expr, places, near, self.values, True)
        return found

    def _by_place(self, expr: sp.Expr, places: tuple[sp.Symbol, ...], numbers: tuple[Any, ...]) -> Any:
        """The formula at all places; of many, some rows at a time, as it needs many arrays of their number."""
        shape = np.broadcast_shapes(*(np.shape(x) for x in numbers))
        rows = max(PART // max(shape[1:], default=1), 1) if len(shape) == 2 else 1
        if len(shape) != 2 or shape[0] <= rows:
            return _evaluate(expr, places, numbers, self.values, True)
        found = np.empty(shape)
        for i in range(0, shape[0], rows):
            some = tuple(x[i : i + rows] if np.ndim(x) == 2 and len(x) > 1 else x for x in numbers)
            found[i : i + rows] = _evaluate(expr, places, some, self.values, True)
        return found


def _off_diagonal(given: Any) -> Any:
    """Moments between two positions with their diagonal, which is not used and where formulas end in 0/0, set to what
    is likely to be within their bounds: half the smallest of its row."""
    if np.ndim(given) != 2 or not given.shape[0] == given.shape[1] > 1:
        return given
    found = np.array(given, dtype=np.float64)
    np.fill_diagonal(found, np.inf)
    np.fill_diagonal(found, found[np.arange(len(found)), np.abs(found).argmin(axis=1)] / 2)
    return found


@lru_cache(maxsize=16384)
def _compiled(expr: sp.Expr, symbols: tuple[sp.Symbol, ...], positions: bool) -> Callable[..., Any]:
    """The formula as a function of arrays; of ``positions``, whose digits count in units of the largest, a polynomial
    needs no error bound."""
    from varflow.laws.expectation import compile_formula
    from varflow.laws.precise import function_of

    plain = positions and is_polynomial(expr, frozenset(symbols)) and not (has_integral(expr) or expr.has(sp.Function))
    return function_of(expr, symbols, {}) if plain else compile_formula(expr, symbols)


@lru_cache(maxsize=16384)
def _free(expr: sp.Expr) -> tuple[sp.Symbol, ...]:
    return tuple(sorted(symbols_in(expr), key=str))


def _evaluate(expr: sp.Expr, places: tuple[sp.Symbol, ...], numbers: tuple[Any, ...], values: Mapping[str, Any],
              positions: bool = False) -> Any:
    if expr.has(sp.zoo):
        return float("inf")
    if expr.is_Number:
        return float(expr)
    table = dict(zip(places, numbers, strict=True))
    symbols = _free(expr)
    return _compiled(expr, symbols, positions)(*(table[s] if s in table else values[s.name] for s in symbols))
