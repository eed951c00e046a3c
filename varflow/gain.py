"""The gains of one activation: its moments at a Gaussian input, and the initialization they ask for."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any, overload

import sympy as sp

from varflow.activations import ACTIVATIONS
from varflow.errors import ExpressionError, InputError, kind_of
from varflow.gain_fields import FIELDS, GainFields, exact, variance_of
from varflow.gain_gated import GatedGain
from varflow.gain_single import ActivationGain
from varflow.gated import GATED, GatedCall, read_gated
from varflow.laws.expectation import require_real
from varflow.symbols import X

if TYPE_CHECKING:
    from varflow.gain_callable import CallableGain

__all__ = ["FIELDS", "ActivationGain", "GainFields", "GatedGain", "gain"]
_WORD = re.compile(r"[^\W\d]\w*(?=\s*(\(|$))")


@overload
def gain(
    activation: str | sp.Expr, q: sp.Expr | float = 1, mean: sp.Expr | float = 0
) -> ActivationGain: ...
@overload
def gain(
    activation: Callable[[Any], Any], q: sp.Expr | float = 1, mean: sp.Expr | float = 0
) -> CallableGain: ...
def gain(
    activation: str | sp.Expr | Callable[[Any], Any],
    q: sp.Expr | float = 1,
    mean: sp.Expr | float = 0,
) -> Any:
    """The gains of an activation at x ~ N(mean, q).

    ``activation``: a name, a text in ``x``, a sympy expression with ``varflow.symbols.X`` or exactly one symbol;
    the name of a function of several inputs or with several outputs (``"swiglu"``, ``"maxout(3)"``, ``"crelu"``)
    gives a GatedGain; a function of a numpy array a CallableGain, whose fields are floats. ``q`` (the variance of
    x) and ``mean`` are numbers or sympy expressions (numbers for a function). Raises ExpressionError for a text
    that is no expression, InputError for one without a clear argument and for a negative variance, NotReal for
    one that is not real on the whole line, NoFormula (Divergent where a moment does not exist).
    """
    if isinstance(activation, sp.Expr):
        return _gain(_in_x(activation), variance_of(q), exact(mean))
    if not isinstance(activation, str):
        if not callable(activation):
            raise InputError(f"{kind_of(activation)} is not an activation",
                             instead="a name, a text in x, a sympy expression, or a function of an array")
        from varflow.gain_callable import CallableGain

        return CallableGain.of(activation, float(variance_of(q)), float(exact(mean)))
    found = read_gated(activation)
    if found is not None:
        return _gated(found, variance_of(q), exact(mean))
    return _gain(_parsed(activation), variance_of(q), exact(mean))


def _parsed(text: str) -> sp.Expr:
    if text.strip() in ACTIVATIONS:
        return ACTIVATIONS[text.strip()].at()
    from varflow.expressions import parse_activation

    try:
        return _in_x(parse_activation(text))
    except ExpressionError as error:
        raise _with_hint(text, error) from None


def _with_hint(text: str, error: ExpressionError) -> ExpressionError:
    """The error, naming the activation that an unknown first word was perhaps meant to be."""
    word = _WORD.match(text.strip())
    known = {n.replace("_", ""): n for n in (*ACTIVATIONS, *GATED)}
    plain = word[0].lower().replace("_", "") if word else ""
    close = get_close_matches(plain, known, n=1) if plain and word and word[0] not in ACTIVATIONS else []
    if not close or "unknown" not in error.what:
        return error
    return ExpressionError(error.what, error.where, "no activation or symbol has this name",
                           f"did you mean {known[close[0]]!r}? (varflow list --ops shows all)")


def _in_x(expr: sp.Expr) -> sp.Expr:
    symbols = expr.free_symbols
    if X in symbols or not symbols:
        return expr
    if len(symbols) > 1:
        raise InputError(
            f"which of {', '.join(sorted(map(str, symbols)))} is the argument?",
            instead="use varflow.symbols.X for the argument",
        )
    return expr.xreplace({next(iter(symbols)): X})


@lru_cache(maxsize=512)
def _gain(f: sp.Expr, q: sp.Expr, mean: sp.Expr) -> ActivationGain:
    require_real(f, X)
    return ActivationGain(f, q, mean)


@lru_cache(maxsize=512)
def _gated(function: GatedCall, q: sp.Expr, mean: sp.Expr) -> GatedGain:
    return GatedGain(function, q, mean)
