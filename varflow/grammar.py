"""The grammar of expressions: its words, its limits, and text read into a tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import sympy as sp
from sympy.core.relational import Relational
from sympy.functions.elementary.piecewise import ExprCondPair
from sympy.logic.boolalg import BooleanAtom

from varflow.binormal import Phi2, normal_cdf
from varflow.errors import ExpressionError
from varflow.waves import WAVES, CosTail, Dawson, SinTail

if TYPE_CHECKING:
    from lark import Lark

MAX_LENGTH, MAX_DEPTH, MAX_OPERATIONS = 2000, 64, 500
MAX_DIGITS, MAX_DECIMAL_EXPONENT, MAX_EXPONENT, MAX_BITS = 50, 400, 64, 4096
MAX_RELATIONS, MAX_SIZE, MAX_HEIGHT = 16, 4000, 100

_GRAMMAR = r"""
?start: disjunction
equation: disjunction ("=" disjunction)?
?disjunction: conjunction (OR conjunction)*
?conjunction: negation (AND negation)*
?negation: NOT negation | relation
?relation: sum (REL sum)*
?sum: product (SIGN product)*
?product: unary (TIMES unary)*
?unary: SIGN unary | power
?power: atom (POW unary)?
?atom: NUMBER                                 -> number
    | NAME                                    -> name
    | NAME "(" (argument ("," argument)*)? ")" -> call
    | "(" disjunction ")"                     -> group
    | LPAR disjunction "," disjunction ")"    -> pair
?argument: NAME "=" disjunction               -> keyword
    | disjunction
OR.2: /or(?![\w.])|\|/
AND.2: /and(?![\w.])|&/
NOT.2: /not(?![\w.])|~/
REL: "<=" | ">=" | "<" | ">" | "==" | "!="
SIGN: "+" | "-"
POW: "**" | "^"
TIMES: "*" | "/"
LPAR: "("
NUMBER: /(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?/
NAME: /[^\W\d]\w*(?:\.\w+)*|`[^`\n]+`/
%ignore /[ \t\r\n]+/
"""

CONSTANTS: Mapping[str, sp.Basic] = MappingProxyType(
    {"pi": sp.pi, "E": sp.E, "True": sp.true, "False": sp.false}
)


class Function(NamedTuple):
    """A sympy function of the grammar and its least and greatest number of arguments."""

    call: Callable[..., sp.Expr]
    least: int = 1
    most: int = 1


_CLASSES = (
    *(sp.exp, sp.log, sp.erf, sp.erfc, sp.gamma, sp.sign, sp.Abs),
    *(sp.sin, sp.cos, sp.tan, sp.cot, sp.sec, sp.csc, sp.asin, sp.acos, sp.atan, sp.acot),
    *(sp.sinh, sp.cosh, sp.tanh, sp.coth, sp.asinh, sp.acosh, sp.atanh, sp.acoth),
)
FUNCTIONS: Mapping[str, Function] = MappingProxyType(
    {c.__name__: Function(c) for c in _CLASSES}
    | {n: Function(sp.Max, 1, MAX_RELATIONS) for n in ("max", "Max")}
    | {n: Function(sp.Min, 1, MAX_RELATIONS) for n in ("min", "Min")}
    | {"abs": Function(sp.Abs), "sqrt": Function(sp.sqrt), "Phi": Function(normal_cdf)}
    | {"Heaviside": Function(sp.Heaviside, 1, 2), "floor": Function(sp.floor)}
    | {"Phi2": Function(Phi2, 3, 3), "besselk": Function(sp.besselk, 2, 2), "Dawson": Function(Dawson)}
    | {"CosTail": Function(CosTail, 2, 2), "SinTail": Function(SinTail, 2, 2)}
)
"""Every function that is not an activation or a choice (``Piecewise``, ``where``)."""
OF_RESULTS = ("Phi2", "besselk", "floor", "CosTail", "SinTail", "Dawson")
"""Functions that formulas of results hold: no activation is made of them."""
CHOICES = ("Piecewise", "where")
SAYABLE = (
    *(sp.Symbol, sp.Rational, sp.Float, type(sp.pi), type(sp.E), sp.Add, sp.Mul, sp.Pow),
    *(sp.Piecewise, ExprCondPair, Relational, sp.And, sp.Or, sp.Not, BooleanAtom),
    *(*_CLASSES, sp.Max, sp.Min, sp.Heaviside, sp.floor, Phi2, sp.besselk, *WAVES),
)
"""What an expression is made of."""
NOT_REAL = (sp.zoo, sp.nan, sp.oo, -sp.oo, sp.I)


@lru_cache(maxsize=1)
def _grammar() -> Lark:
    from lark import Lark

    return Lark(_GRAMMAR, parser="lalr", lexer="basic", start=["start", "equation"])


@lru_cache(maxsize=4096)
def _tree(text: str, start: str) -> tuple[Any, ...]:
    """All subtrees of a text, children before their parents."""
    return tuple(_grammar().parse(text, start=start).iter_subtrees())


def _token(node: Any) -> Any:
    """The token where a node is reported: its own operator or name, else its first."""
    tokens = [c for c in node.children if isinstance(c, str)]
    return tokens[0] if tokens else _token(node.children[0])


def _height(nodes: tuple[Any, ...]) -> int:
    height: dict[int, int] = {}
    for node in nodes:
        height[id(node)] = 1 + max((height.get(id(c), 0) for c in node.children), default=0)
    return max(height.values())


def _excerpt(text: str, at: int) -> str:
    """The text around a position with a caret under it, safe for a terminal."""
    start = max(0, at - 40)
    shown = "".join(c if c.isprintable() else " " for c in text[start : at + 40])
    return f"\n    {shown}\n    {' ' * (at - start)}^"


@dataclass(frozen=True)
class Source:
    """A text and where it comes from (file:line, node)."""

    text: str
    where: str = ""

    def nodes(self, start: str) -> tuple[Any, ...]:
        """All subtrees of the text, children before their parents; the last is the root."""
        from lark.exceptions import UnexpectedInput

        if not isinstance(self.text, str):
            raise ExpressionError(
                f"an expression is text, not {type(self.text).__name__}", self.where
            )
        if len(self.text) > MAX_LENGTH:
            self.fail(f"the expression is longer than {MAX_LENGTH} characters")
        try:
            nodes = _tree(self.text, start)
        except UnexpectedInput as error:
            self.unexpected(error)
        if sum(len(n.children) // 2 for n in nodes) > MAX_OPERATIONS:
            self.fail(f"the expression has more than {MAX_OPERATIONS} operations")
        if _height(nodes) > MAX_DEPTH:
            self.fail(f"the expression is nested deeper than {MAX_DEPTH} levels")
        return nodes

    def unexpected(self, error: Any) -> NoReturn:
        token = getattr(error, "token", None)
        ended = token is not None and token.type == "$END"
        at = len(self.text) if ended else max(0, error.pos_in_stream or 0)
        if not self.text.strip():
            self.fail("the expression is empty")
        if ended:
            self.fail("the expression ends too early", at=at, why="something must follow")
        shown = repr(str(token)[:40]) if token is not None else repr(self.text[at : at + 1])
        before = self.text[:at].rstrip()[-1:]
        juxtaposed = token is not None and token.type in ("NAME", "NUMBER", "LPAR")
        if juxtaposed and (before.isalnum() or before in ")_`"):
            self.fail(f"unexpected {shown}", at=at, why="a product needs its sign", instead="a*b")
        self.fail(f"unexpected {shown}", at=at, why="the grammar has nothing like it here")

    def fail(
        self,
        what: str,
        node: Any = None,
        *,
        at: int | None = None,
        why: str = "",
        instead: str = "",
    ) -> NoReturn:
        if node is not None:
            at = int(_token(node).start_pos)
        place = [self.where] if self.where else []
        if at is not None:
            place.append(f"column {at + 1}")
            what += _excerpt(self.text, at)
        raise ExpressionError(what, ", ".join(place), why, instead)
