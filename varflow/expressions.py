"""Text to sympy through a small grammar with whitelisted names and limits; nothing is evaluated as code.

``parse(to_text(e), symbols) == e`` for every expression that the grammar can say. Decimals are exact: ``0.2`` is
the rational 1/5. Names that are not identifiers stand between backquotes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import sympy as sp
from sympy.core.relational import Relational
from sympy.functions.elementary.piecewise import ExprCondPair
from sympy.logic.boolalg import Boolean, BooleanAtom
from sympy.printing.str import StrPrinter

from varflow.activations import ACTIVATIONS, Activation
from varflow.errors import ExpressionError
from varflow.symbols import X

if TYPE_CHECKING:
    from lark import Lark, Tree

Symbols = Mapping[str, sp.Symbol] | Callable[[str], sp.Symbol | None]
NO_SYMBOLS: Mapping[str, sp.Symbol] = MappingProxyType({})

MAX_LENGTH, MAX_DEPTH, MAX_OPERATIONS = 2000, 64, 500
MAX_DIGITS, MAX_DECIMAL_EXPONENT, MAX_EXPONENT, MAX_BITS = 50, 400, 64, 4096
MAX_RELATIONS, MAX_SIZE, MAX_HEIGHT = 16, 4000, 100

_GRAMMAR = r"""
?start: disjunction
equation: disjunction ["=" disjunction]
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
    | NAME "(" [argument ("," argument)*] ")" -> call
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


def _normal_cdf(z: sp.Expr) -> sp.Expr:
    return (1 + sp.erf(z / sp.sqrt(2))) / 2


class _Function(NamedTuple):
    """A sympy function of the grammar and its least and greatest number of arguments."""

    call: Callable[..., sp.Expr]
    least: int = 1
    most: int = 1


_CLASSES = (
    *(sp.exp, sp.log, sp.erf, sp.erfc, sp.gamma, sp.sign, sp.Abs),
    *(sp.sin, sp.cos, sp.tan, sp.cot, sp.sec, sp.csc, sp.asin, sp.acos, sp.atan, sp.acot),
    *(sp.sinh, sp.cosh, sp.tanh, sp.coth, sp.asinh, sp.acosh, sp.atanh, sp.acoth),
)
FUNCTIONS: Mapping[str, _Function] = MappingProxyType(
    {c.__name__: _Function(c) for c in _CLASSES}
    | {n: _Function(sp.Max, 1, MAX_RELATIONS) for n in ("max", "Max")}
    | {n: _Function(sp.Min, 1, MAX_RELATIONS) for n in ("min", "Min")}
    | {"abs": _Function(sp.Abs), "sqrt": _Function(sp.sqrt), "Phi": _Function(_normal_cdf)}
    | {"Heaviside": _Function(sp.Heaviside, 1, 2)}
)
"""Every function that is not an activation or a choice (``Piecewise``, ``where``)."""
_CHOICES = ("Piecewise", "where")
_SAYABLE = (
    *(sp.Symbol, sp.Rational, sp.Float, type(sp.pi), type(sp.E), sp.Add, sp.Mul, sp.Pow),
    *(sp.Piecewise, ExprCondPair, Relational, sp.And, sp.Or, sp.Not, BooleanAtom),
    *(*_CLASSES, sp.Max, sp.Min, sp.Heaviside),
)
_NOT_REAL = (sp.zoo, sp.nan, sp.oo, -sp.oo, sp.I)


def parse(text: str, symbols: Symbols, *, where: str = "") -> sp.Expr:
    """The expression that a text says.

    ``symbols`` maps names, or is a function that returns None for an unknown name; ``where`` (file:line, node)
    begins the message of an error. Decimals are exact rationals.

    Raises ExpressionError, and nothing else, for any text that is not a finite real expression of the grammar.
    """
    return _Reader(text, symbols, where).expression()


def parse_activation(text: str, symbols: Symbols = NO_SYMBOLS, *, where: str = "") -> sp.Expr:
    """An activation in ``symbols.X``: a name, a name with parameters, or an expression in ``x``.

    ``"gelu"``, ``"leaky_relu(0.2)"`` (the parameters, in torch.nn's order, or by name) and ``"x*tanh(x)"``.
    Raises ExpressionError.
    """
    return _Reader(text, symbols, where, argument=True).activation()


def parse_equation(text: str, symbols: Symbols, *, where: str = "") -> sp.Eq:
    """``"a = b"`` or ``"a == b"`` as an unevaluated ``Eq``. Raises ExpressionError."""
    return _Reader(text, symbols, where).equation()


def to_text(expr: sp.Basic) -> str:
    """The text that ``parse`` (``parse_equation`` for an ``Eq``) reads back as the same expression.

    A ``Float`` is written by its shortest exact digits and read back as that rational.
    Raises ExpressionError for what the grammar cannot say.
    """
    for part in sp.preorder_traversal(expr):
        if not isinstance(part, _SAYABLE):
            raise ExpressionError(
                f"{type(part).__name__} has no text in the expression grammar",
                why=f"in {expr}"[:300],
            )
    return cast(str, _Printer().doprint(expr))


@lru_cache(maxsize=1)
def _grammar() -> Lark:
    from lark import Lark

    return Lark(
        _GRAMMAR,
        parser="lalr",
        lexer="basic",
        start=["start", "equation"],
        maybe_placeholders=False,
    )


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


class _Reader:
    """One text being read: its subtrees' values, children first, so that no depth of nesting recurses."""

    def __init__(self, text: str, symbols: Symbols, where: str, *, argument: bool = False) -> None:
        self.text, self.symbols, self.where, self.argument = text, symbols, where, argument
        self.values: dict[int, sp.Basic] = {}
        self.nodes: tuple[Any, ...] = ()

    # -- what is asked for

    def expression(self) -> sp.Expr:
        root = self.read("start")
        return self.accepted(self.number(root), root)

    def equation(self) -> sp.Eq:
        root = self.read("equation")
        value = self.value(root)
        if not isinstance(value, sp.Eq):
            self.fail("this is not an equation", root, instead="a = b")
        for side in value.args:
            self.accepted(cast(sp.Expr, side), root)
        if value.lhs == value.rhs or not value.free_symbols:
            self.fail(
                "the equation has no unknown in it", root, why="both sides are constant or the same"
            )
        return value

    def activation(self) -> sp.Expr:
        root = self.read("start", evaluate=False)
        name = str(root.children[0]) if root.data in ("name", "call") else ""
        if name not in ACTIVATIONS:
            self.evaluate(self.nodes)
            return self.accepted(self.number(root), root)
        self.evaluate(self.nodes[:-1])
        arguments = root.children[1:]
        if any(X in self.value(a).free_symbols for a in arguments if a.data != "keyword"):
            return self.accepted(cast(sp.Expr, self.call(root)), root)
        return self.accepted(self.named(ACTIVATIONS[name], X, arguments, root), root)

    # -- text to tree

    def read(self, start: str, *, evaluate: bool = True) -> Any:
        from lark.exceptions import UnexpectedInput

        if not isinstance(self.text, str):
            self.fail(f"an expression is text, not {type(self.text).__name__}")
        if len(self.text) > MAX_LENGTH:
            self.fail(f"the expression is longer than {MAX_LENGTH} characters")
        try:
            self.nodes = _tree(self.text, start)
        except UnexpectedInput as error:
            self.unexpected(error)
        if len(self.nodes) > 2 * MAX_OPERATIONS:
            self.fail(f"the expression has more than {MAX_OPERATIONS} operations")
        if _height(self.nodes) > MAX_DEPTH:
            self.fail(f"the expression is nested deeper than {MAX_DEPTH} levels")
        if evaluate:
            self.evaluate(self.nodes)
        return self.nodes[-1]

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

    # -- tree to values

    def evaluate(self, nodes: tuple[Any, ...]) -> None:
        for node in nodes:
            try:
                self.values[id(node)] = _RULES[node.data](self, node)
            except (ArithmeticError, AttributeError, LookupError, NotImplementedError) as error:
                self.fail("this has no value", node, why=type(error).__name__)
            except (RecursionError, TypeError, ValueError) as error:
                self.fail("this has no value", node, why=type(error).__name__)

    def value(self, node: Any) -> sp.Basic:
        return self.values[id(node)]

    def number(self, node: Any) -> sp.Expr:
        value = self.value(node)
        if not isinstance(value, sp.Expr):
            self.fail("a number is wanted here, not a condition or a pair", node)
        return value

    def condition(self, node: Any) -> Boolean:
        value = self.value(node)
        if not isinstance(value, Boolean) or isinstance(value, sp.Expr):
            self.fail("a condition is wanted here", node, instead="x > 0")
        return value

    def pair(self, node: Any) -> sp.Tuple:
        return sp.Tuple(self.number(node.children[1]), self.condition(node.children[2]))

    def only(self, node: Any) -> sp.Basic:
        return self.value(node.children[-1])

    def literal(self, node: Any) -> sp.Expr:
        mantissa, _, exponent = str(node.children[0]).lower().partition("e")
        if len(mantissa.replace(".", "")) > MAX_DIGITS:
            self.fail(f"a number of more than {MAX_DIGITS} digits", node)
        if len(exponent) > 9 or abs(int(exponent or 0)) > MAX_DECIMAL_EXPONENT:
            self.fail(f"a decimal exponent beyond {MAX_DECIMAL_EXPONENT}", node)
        exact = Fraction(str(node.children[0]))
        return sp.Rational(exact.numerator, exact.denominator)

    def name(self, node: Any) -> sp.Basic:
        name = str(node.children[0])
        if name in CONSTANTS:
            return CONSTANTS[name]
        name = name.strip("`")
        if self.argument and name == X.name:
            return X
        symbol = self.resolve(name)
        if symbol is not None:
            return symbol
        if name in FUNCTIONS or name in ACTIVATIONS:
            self.fail(f"{name} is a function", node, instead=f"{name}(x)")
        self.fail(f"unknown name {name!r}", node, why=self.known(), instead=self.closest(name))

    def resolve(self, name: str) -> sp.Symbol | None:
        return self.symbols.get(name) if isinstance(self.symbols, Mapping) else self.symbols(name)

    def names(self) -> list[str]:
        known = list(self.symbols) if isinstance(self.symbols, Mapping) else []
        return sorted(known) + ([X.name] if self.argument else [])

    def known(self) -> str:
        names = self.names()
        return f"the known names are {', '.join(names[:12])}" + (", ..." if len(names) > 12 else "")

    def closest(self, name: str, *, call: bool = False) -> str:
        functions = [*FUNCTIONS, *ACTIVATIONS, *_CHOICES]
        known = {
            n.lower().replace("_", ""): n
            for n in (functions if call else [*CONSTANTS, *self.names()])
        }
        close = get_close_matches(name[:60].lower().replace("_", ""), known, n=1)
        return known[close[0]] if close else ""

    def prefix(self, node: Any) -> sp.Expr:
        value = self.number(node.children[1])
        return -value if node.children[0] == "-" else value

    def sum(self, node: Any) -> sp.Expr:
        terms = [self.number(c) for c in node.children[::2]]
        signs = [1, *(-1 if sign == "-" else 1 for sign in node.children[1::2])]
        return self.checked(
            sp.Add(*(t if s > 0 else -t for s, t in zip(signs, terms, strict=True))), node
        )

    def product(self, node: Any) -> sp.Expr:
        factors = [self.number(node.children[0])]
        for sign, child in zip(node.children[1::2], node.children[2::2], strict=True):
            factor = self.number(child)
            factors.append(self.power_of(factor, sp.Integer(-1), child) if sign == "/" else factor)
        return self.checked(sp.Mul(*factors), node)

    def power(self, node: Any) -> sp.Expr:
        return self.power_of(self.number(node.children[0]), self.number(node.children[2]), node)

    def power_of(self, base: sp.Expr, exponent: sp.Expr, node: Any) -> sp.Expr:
        if base.is_zero and exponent.is_negative:
            self.fail("division by zero", node)
        if (base is not sp.E or exponent.has(sp.log)) and _reach(exponent) > MAX_EXPONENT:
            self.fail(f"an exponent beyond {MAX_EXPONENT}", node)
        if isinstance(base, sp.Rational) and _bits(base) * _reach(exponent) > MAX_BITS:
            self.fail("a number too large", node)
        return self.checked(sp.exp(exponent) if base is sp.E else sp.Pow(base, exponent), node)

    def relation(self, node: Any) -> sp.Basic:
        sides = [self.number(c) for c in node.children[::2]]
        if len(sides) > MAX_RELATIONS:
            self.fail(f"more than {MAX_RELATIONS} relations", node)
        pairs = zip(node.children[1::2], sides, sides[1:], strict=False)
        return self.checked(sp.And(*(_RELATIONS[str(sign)](a, b) for sign, a, b in pairs)), node)

    def negation(self, node: Any) -> sp.Basic:
        return sp.Not(self.condition(node.children[1]))

    def junction(self, node: Any) -> sp.Basic:
        join = sp.And if node.data == "conjunction" else sp.Or
        value = join(*(self.condition(c) for c in node.children[::2]))
        if len(value.atoms(Relational)) > MAX_RELATIONS:
            self.fail(f"more than {MAX_RELATIONS} relations", node)
        return value

    def equality(self, node: Any) -> sp.Basic:
        root, sides = node.children[0], node.children
        if (
            len(sides) == 1
            and root.data == "relation"
            and list(map(str, root.children[1::2])) == ["=="]
        ):
            sides = root.children[::2]
        if len(sides) != 2:
            return self.value(root)
        return sp.Eq(*map(self.number, sides), evaluate=False)

    def keyword(self, node: Any) -> sp.Basic:
        return self.number(node.children[1])

    # -- functions

    def call(self, node: Any) -> sp.Basic:
        name, arguments = str(node.children[0]), node.children[1:]
        if name in FUNCTIONS:
            return self.function(name, arguments, node)
        if name in _CHOICES:
            return self.choice(name, arguments, node)
        if name in ACTIVATIONS:
            return self.activated(ACTIVATIONS[name], arguments, node)
        if self.resolve(name) is not None:
            self.fail(f"{name} is not a function", node, instead=f"{name}*(...)")
        self.fail(f"unknown function {name!r}", node, instead=self.closest(name, call=True))

    def function(self, name: str, arguments: list[Any], node: Any) -> sp.Expr:
        function = FUNCTIONS[name]
        if any(a.data == "keyword" for a in arguments):
            self.fail(f"{name} takes no named argument", node)
        if not function.least <= len(arguments) <= function.most:
            self.fail(f"{name} takes {function.least} to {function.most} arguments", node)
        values = [self.number(a) for a in arguments]
        if name == "exp":
            return self.power_of(sp.E, values[0], node)
        if name == "gamma" and values[0].is_number and not abs(values[0]) <= MAX_EXPONENT:
            self.fail(f"gamma beyond {MAX_EXPONENT}", node)
        return self.checked(function.call(*values), node)

    def activated(self, activation: Activation, arguments: list[Any], node: Any) -> sp.Expr:
        if not arguments or arguments[0].data == "keyword":
            self.fail(f"{activation.name} of what", node, instead=f"{activation.name}(x)")
        argument = self.number(arguments[0])
        if self.argument and activation.parameters and argument.is_number and len(arguments) == 1:
            self.fail(
                f"{activation.name}({argument}) has no x in it",
                node,
                why="inside a larger expression the first argument is the argument, not a parameter",
                instead=f"{activation.name}(x, {argument})",
            )
        return self.named(activation, argument, arguments[1:], node)

    def named(
        self, activation: Activation, argument: sp.Expr, given: list[Any], node: Any
    ) -> sp.Expr:
        names = [name for name, _ in activation.parameters]
        values: dict[str, sp.Expr] = {}
        for i, child in enumerate(given):
            keyword = child.data == "keyword"
            name = str(child.children[0]) if keyword else names[i] if i < len(names) else ""
            if name not in names or name in values:
                takes = f"its parameters are {', '.join(names)}" if names else "it has no parameter"
                self.fail(f"a parameter that {activation.name} does not have", child, why=takes)
            values[name] = self.number(child)
        copies = activation.expression.count(X)
        if copies * _size(argument) > MAX_SIZE:
            self.fail(f"written out, this has more than {MAX_SIZE} parts", node)
        return self.checked(activation.at(argument, values), node)

    def choice(self, name: str, arguments: list[Any], node: Any) -> sp.Expr:
        if name == "where":
            if [a.data == "keyword" for a in arguments] != [False] * 3:
                self.fail("where takes three arguments", node, instead="where(x > 0, a, b)")
            yes, no = self.number(arguments[1]), self.number(arguments[2])
            branches = [(yes, self.condition(arguments[0])), (no, sp.true)]
        else:
            branches = [cast(Any, self.value(a)).args for a in arguments if a.data == "pair"]
        if len(branches) != len(arguments) - (name == "where") or not branches:
            self.fail("Piecewise takes pairs", node, instead="Piecewise((x, x > 0), (0, True))")
        if branches[-1][1] is not sp.true:
            self.fail("the last condition is not True", node, instead="..., (0, True))")
        if sum(len(c.atoms(Relational)) for _, c in branches) > MAX_RELATIONS:
            self.fail(f"more than {MAX_RELATIONS} relations", node)
        return self.checked(sp.Piecewise(*branches), node)

    # -- limits

    def checked(self, value: sp.Basic, node: Any) -> Any:
        """The value of one step, if it is real, finite and within the limits."""
        if value.has(*_NOT_REAL) or (
            value.is_number and cast(Any, value).is_extended_real is False
        ):
            self.fail("this is not a finite real number", node)
        if _size(value) > MAX_SIZE:
            self.fail(f"written out, this has more than {MAX_SIZE} parts", node)
        if isinstance(value, sp.Rational) and _bits(value) > MAX_BITS:
            self.fail("a number too large", node)
        for factor in sp.Mul.make_args(value):
            if isinstance(factor, sp.Pow | sp.exp) and not _moderate(factor):
                self.fail(f"an exponent beyond {MAX_EXPONENT}", node)
        return value

    def accepted(self, value: sp.Expr, root: Any) -> sp.Expr:
        """The whole value, if the grammar can say all of its parts."""
        if value.is_extended_real is False:
            self.fail("this is not a real number", root)
        for part in sp.preorder_traversal(value):
            if not isinstance(part, _SAYABLE):
                self.fail(f"{type(part).__name__} is outside the grammar", root)
            if isinstance(part, sp.Rational) and _bits(part) > MAX_BITS:
                self.fail("a number too large", root)
            if isinstance(part, sp.Pow | sp.exp) and not _moderate(part):
                self.fail(f"an exponent beyond {MAX_EXPONENT}", root)
        return value


def _bits(value: sp.Rational) -> int:
    return max(int(value.p).bit_length(), int(value.q).bit_length())


def _reach(exponent: sp.Expr) -> int:
    """The greatest magnitude among the numbers of an exponent, at least 1; rounded up."""
    return max((-(-abs(int(r.p)) // int(r.q)) for r in exponent.atoms(sp.Rational)), default=1) or 1


def _moderate(power: sp.Expr) -> bool:
    """Whether a power can be combined with others without writing out a huge number."""
    base, exponent = power.as_base_exp()
    if isinstance(power, sp.exp):
        return not exponent.has(sp.log) or _reach(exponent) <= MAX_EXPONENT
    return _reach(exponent) <= MAX_EXPONENT


def _size(value: sp.Basic) -> int:
    """Number of parts, counted up to a little over the limit."""
    size = 0
    stack = [value]
    while stack and size <= MAX_SIZE:
        size += 1
        stack.extend(stack.pop().args)
    return size


_RELATIONS: Mapping[str, Callable[..., sp.Basic]] = MappingProxyType(
    {"<": sp.Lt, "<=": sp.Le, ">": sp.Gt, ">=": sp.Ge, "==": sp.Eq, "!=": sp.Ne}
)
_RULES: Mapping[str, Callable[[_Reader, Any], sp.Basic]] = MappingProxyType(
    {
        "number": _Reader.literal,
        "name": _Reader.name,
        "call": _Reader.call,
        "group": _Reader.only,
        "pair": _Reader.pair,
        "keyword": _Reader.keyword,
        "power": _Reader.power,
        "unary": _Reader.prefix,
        "product": _Reader.product,
        "sum": _Reader.sum,
        "relation": _Reader.relation,
        "negation": _Reader.negation,
        "conjunction": _Reader.junction,
        "disjunction": _Reader.junction,
        "equation": _Reader.equality,
    }
)
_PLAIN_NAME = re.compile(r"[^\W\d]\w*(?:\.\w+)*")
_WORDS = frozenset(("or", "and", "not"))


class _Printer(StrPrinter):
    """sympy's text, with long integers in pieces, infix equalities and quoted names."""

    def _print_Symbol(self, expr: sp.Symbol) -> str:
        name = str(expr.name)
        if _PLAIN_NAME.fullmatch(name) and name not in CONSTANTS and name not in _WORDS:
            return name
        if not name or "`" in name or "\n" in name:
            raise ExpressionError(f"the name {name!r} has no text in the expression grammar")
        return f"`{name}`"

    def _print_Integer(self, expr: sp.Integer) -> str:
        value = int(expr)
        if abs(value) < 10**MAX_DIGITS:
            return str(value)
        head, tail = divmod(abs(value), 10**MAX_DIGITS)
        text = f"({self._print_Integer(sp.Integer(head))}*10**{MAX_DIGITS} + {tail})"
        return f"-{text}" if value < 0 else text

    def _print_Rational(self, expr: sp.Rational) -> str:
        return (
            f"{self._print_Integer(sp.Integer(expr.p))}/{self._print_Integer(sp.Integer(expr.q))}"
        )

    def _print_Float(self, expr: sp.Float) -> str:
        return repr(float(expr)) if expr._prec <= 53 else str(expr)

    def _print_Relational(self, expr: Relational) -> str:
        return f"{self._print(expr.lhs)} {expr.rel_op} {self._print(expr.rhs)}"
