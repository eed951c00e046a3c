"""Text to sympy through a small grammar with whitelisted names; nothing is evaluated as code.

``parse(to_text(e), symbols) == e`` for every expression that the grammar can say. Decimals are
exact: ``0.2`` is the rational 1/5. Names that are not identifiers stand between backquotes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from fractions import Fraction
from types import MappingProxyType
from typing import Any, cast

import sympy as sp
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean

from varflow.activations import ACTIVATIONS, Activation, compare
from varflow.grammar import (
    CHOICES,
    CONSTANTS,
    FUNCTIONS,
    MAX_BITS,
    MAX_DECIMAL_EXPONENT,
    MAX_DIGITS,
    MAX_EXPONENT,
    MAX_HEIGHT,
    MAX_RELATIONS,
    MAX_SIZE,
    NOT_REAL,
    OF_RESULTS,
    SAYABLE,
    Source,
)
from varflow.printing import to_text
from varflow.symbols import X

__all__ = ["parse", "parse_activation", "parse_equation", "to_text"]

Symbols = Mapping[str, sp.Symbol] | Callable[[str], sp.Symbol | None]
NO_SYMBOLS: Mapping[str, sp.Symbol] = MappingProxyType({})


def parse(text: str, symbols: Symbols, *, where: str = "") -> sp.Expr:
    """The expression that a text says.

    ``symbols`` maps names, or is a function that returns None for an unknown name; ``where``
    (file:line, node) begins the message of an error. Decimals are exact rationals.

    Raises ExpressionError, and nothing else, for a text that says no finite real expression.
    """
    return _Reader(text, symbols, where).expression()


def parse_activation(text: str, symbols: Symbols = NO_SYMBOLS, *, where: str = "") -> sp.Expr:
    """An activation in ``symbols.X``: a name, a name with parameters, or an expression in ``x``.

    ``"gelu"``, ``"leaky_relu(0.2)"`` (the parameters, in torch.nn's order, or by name) and
    ``"x*tanh(x)"``. Raises ExpressionError.
    """
    return _Reader(text, symbols, where, argument=True).activation()


def parse_equation(text: str, symbols: Symbols, *, where: str = "") -> sp.Eq:
    """``"a = b"`` or ``"a == b"`` as an unevaluated ``Eq``. Raises ExpressionError."""
    return _Reader(text, symbols, where).equation()


class _Reader:
    """One text being read: its subtrees' values, children first, so that nothing recurses."""

    def __init__(self, text: str, symbols: Symbols, where: str, *, argument: bool = False) -> None:
        self.source, self.symbols, self.argument = Source(text, where), symbols, argument
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
            self.source.fail("this is not an equation", root, instead="a = b")
        for side in value.args:
            self.accepted(cast(sp.Expr, side), root)
        if value.lhs == value.rhs or not value.free_symbols:
            self.source.fail(
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
        applied = any(X in self.value(a).free_symbols for a in arguments if a.data != "keyword")
        try:
            if applied:
                return self.accepted(cast(sp.Expr, self.call(root)), root)
            return self.accepted(self.named(ACTIVATIONS[name], X, arguments, root), root)
        except (ArithmeticError, TypeError, ValueError) as error:
            self.source.fail("this has no value", root, why=type(error).__name__)

    def read(self, start: str, *, evaluate: bool = True) -> Any:
        self.nodes = self.source.nodes(start)
        if evaluate:
            self.evaluate(self.nodes)
        return self.nodes[-1]

    # -- tree to values

    def evaluate(self, nodes: tuple[Any, ...]) -> None:
        for node in nodes:
            try:
                self.values[id(node)] = _RULES[node.data](self, node)
            except (ArithmeticError, AttributeError, LookupError, NotImplementedError) as error:
                self.source.fail("this has no value", node, why=type(error).__name__)
            except (RecursionError, TypeError, ValueError) as error:
                self.source.fail("this has no value", node, why=type(error).__name__)

    def value(self, node: Any) -> sp.Basic:
        return self.values[id(node)]

    def number(self, node: Any) -> sp.Expr:
        value = self.value(node)
        if not isinstance(value, sp.Expr):
            self.source.fail("a number is wanted here, not a condition or a pair", node)
        return value

    def condition(self, node: Any) -> Boolean:
        value = self.value(node)
        if not isinstance(value, Boolean) or isinstance(value, sp.Expr):
            self.source.fail("a condition is wanted here", node, instead="x > 0")
        return value

    def pair(self, node: Any) -> sp.Tuple:
        return sp.Tuple(self.number(node.children[1]), self.condition(node.children[2]))

    def only(self, node: Any) -> sp.Basic:
        return self.value(node.children[-1])

    def literal(self, node: Any) -> sp.Expr:
        mantissa, _, exponent = str(node.children[0]).lower().partition("e")
        if len(mantissa.replace(".", "")) > MAX_DIGITS:
            self.source.fail(f"a number of more than {MAX_DIGITS} digits", node)
        if len(exponent) > 9 or abs(int(exponent or 0)) > MAX_DECIMAL_EXPONENT:
            self.source.fail(f"a decimal exponent beyond {MAX_DECIMAL_EXPONENT}", node)
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
            self.source.fail(f"{name} is a function", node, instead=f"{name}(x)")
        self.source.fail(
            f"unknown name {name!r}", node, why=self.known(), instead=self.closest(name)
        )

    def resolve(self, name: str) -> sp.Symbol | None:
        return self.symbols.get(name) if isinstance(self.symbols, Mapping) else self.symbols(name)

    def names(self) -> list[str]:
        known = list(self.symbols) if isinstance(self.symbols, Mapping) else []
        return sorted(known) + ([X.name] if self.argument else [])

    def known(self) -> str:
        names = self.names()
        if not names:
            return "no symbols are declared here"
        return f"the known names are {', '.join(names[:12])}" + (", ..." if len(names) > 12 else "")

    def closest(self, name: str, *, call: bool = False) -> str:
        functions = [*FUNCTIONS, *ACTIVATIONS, *CHOICES]
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
        first, factors = node.children[0], []
        while first.data == "unary":
            factors.append(sp.Integer(-1 if first.children[0] == "-" else 1))
            first = first.children[1]
        factors.append(self.number(first))
        for sign, child in zip(node.children[1::2], node.children[2::2], strict=True):
            factor = self.number(child)
            factors.append(self.power_of(factor, sp.Integer(-1), child) if sign == "/" else factor)
        return self.checked(sp.Mul(*factors), node)

    def power(self, node: Any) -> sp.Expr:
        return self.power_of(self.number(node.children[0]), self.number(node.children[2]), node)

    def power_of(self, base: sp.Expr, exponent: sp.Expr, node: Any) -> sp.Expr:
        if base.is_zero and exponent.is_negative:
            self.source.fail("division by zero", node)
        if (base is not sp.E or exponent.has(sp.log)) and _reach(exponent) > MAX_EXPONENT:
            self.source.fail(f"an exponent beyond {MAX_EXPONENT}", node)
        if isinstance(base, sp.Rational) and _bits(base) * _reach(exponent) > MAX_BITS:
            self.source.fail("a number too large", node)
        return self.checked(sp.exp(exponent) if base is sp.E else sp.Pow(base, exponent), node)

    def relation(self, node: Any) -> sp.Basic:
        sides = [self.number(c) for c in node.children[::2]]
        if len(sides) > MAX_RELATIONS:
            self.source.fail(f"more than {MAX_RELATIONS} relations", node)
        self.few_cases(sides, node)
        pairs = zip(node.children[1::2], sides, sides[1:], strict=False)
        return self.checked(
            sp.And(*(compare(_RELATIONS[str(sign)], a, b) for sign, a, b in pairs)), node
        )

    def negation(self, node: Any) -> sp.Basic:
        return sp.Not(self.condition(node.children[1]))

    def junction(self, node: Any) -> sp.Basic:
        join = sp.And if node.data == "conjunction" else sp.Or
        value = join(*(self.condition(c) for c in node.children[::2]))
        self.few_relations([value], node)
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
        if name in CHOICES:
            return self.choice(name, arguments, node)
        if name in ACTIVATIONS:
            return self.activated(ACTIVATIONS[name], arguments, node)
        if self.resolve(name) is not None:
            self.source.fail(f"{name} is not a function", node, instead=f"{name}*(...)")
        self.source.fail(f"unknown function {name!r}", node, instead=self.closest(name, call=True))

    def function(self, name: str, arguments: list[Any], node: Any) -> sp.Expr:
        function = FUNCTIONS[name]
        if any(a.data == "keyword" for a in arguments):
            self.source.fail(f"{name} takes no named argument", node)
        if not function.least <= len(arguments) <= function.most:
            few, most = function.least, function.most
            self.source.fail(f"{name} takes {few if few == most else f'{few} to {most}'} arguments", node)
        values = [self.number(a) for a in arguments]
        if name in OF_RESULTS and any(X in v.free_symbols for v in values):
            self.source.fail(f"{name} of x", node, why=f"{name} stands in formulas of results, not in activations")
        if name == "exp":
            return self.power_of(sp.E, values[0], node)
        if name == "gamma" and values[0].is_number and not abs(values[0]) <= MAX_EXPONENT:
            self.source.fail(f"gamma beyond {MAX_EXPONENT}", node)
        if name == "besselk" and not (values[0].is_Rational and abs(values[0]) <= MAX_EXPONENT):
            self.source.fail(f"besselk of an order that is no rational number up to {MAX_EXPONENT}", node)
        if name == "Phi2" and values[2].is_number and not abs(values[2]) <= 1:
            self.source.fail("Phi2 of a correlation beyond 1", node)
        return self.checked(function.call(*values), node)

    def activated(self, activation: Activation, arguments: list[Any], node: Any) -> sp.Expr:
        if not arguments or arguments[0].data == "keyword":
            self.source.fail(f"{activation.name} of what", node, instead=f"{activation.name}(x)")
        argument = self.number(arguments[0])
        if self.argument and activation.parameters and argument.is_number and len(arguments) == 1:
            self.source.fail(
                f"{activation.name}({argument}) has no x in it",
                node,
                why="inside a larger expression, what it acts on comes first",
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
                self.source.fail(
                    f"a parameter that {activation.name} does not have", child, why=takes
                )
            values[name] = self.number(child)
        if activation.expression.has(sp.Piecewise):
            self.few_cases([argument, *values.values()], node)
        copies = activation.expression.count(X)
        if copies * _size(argument) > MAX_SIZE:
            self.source.fail("written out, this is too large", node)
        return self.checked(activation.at(argument, values), node)

    def choice(self, name: str, arguments: list[Any], node: Any) -> sp.Expr:
        if name == "where":
            if [a.data == "keyword" for a in arguments] != [False] * 3:
                self.source.fail("where takes three arguments", node, instead="where(x > 0, a, b)")
            yes, no = self.number(arguments[1]), self.number(arguments[2])
            branches = [(yes, self.condition(arguments[0])), (no, sp.true)]
        else:
            branches = [cast(Any, self.value(a)).args for a in arguments if a.data == "pair"]
        if len(branches) != len(arguments) - (name == "where") or not branches:
            self.source.fail(
                "Piecewise takes pairs", node, instead="Piecewise((x, x > 0), (0, True))"
            )
        if branches[-1][1] is not sp.true:
            self.source.fail("the last condition is not True", node, instead="..., (0, True))")
        self.few_relations([c for _, c in branches], node)
        return self.checked(sp.Piecewise(*branches), node)

    # -- limits

    def few_cases(self, values: list[sp.Expr], node: Any) -> None:
        """Refuse what a condition would have to tell apart into too many cases."""
        pieces = {p for v in values for p in v.atoms(sp.Piecewise)}
        if math.prod(len(p.args) for p in pieces) > MAX_RELATIONS:
            self.source.fail(f"a condition on more than {MAX_RELATIONS} cases", node)

    def checked(self, value: sp.Basic, node: Any) -> Any:
        """The value of one step, if it is real, finite and within the limits."""
        if value.has(*NOT_REAL) or (value.is_number and _unreal(value)):
            self.source.fail("this is not a finite real number", node)
        if _size(value) > MAX_SIZE:
            self.source.fail("written out, this is too large", node)
        for factor in sp.Mul.make_args(value):
            self.moderate(factor, node)
        return value

    def accepted(self, value: sp.Expr, root: Any) -> sp.Expr:
        """The whole value, if the grammar can say all of its parts."""
        if _unreal(value):
            self.source.fail("this is not a real number", root)
        for part in sp.preorder_traversal(value):
            if not isinstance(part, SAYABLE):
                self.source.fail(f"{type(part).__name__} is outside the grammar", root)
            self.moderate(part, root)
        return value

    def moderate(self, part: sp.Basic, node: Any) -> None:
        """Refuse one part that is too large a number, power or choice, or a root of a negative."""
        if isinstance(part, sp.Rational) and _bits(part) > MAX_BITS:
            self.source.fail("a number too large", node)
        if isinstance(part, sp.Pow) and part.base.is_number and _unreal(part):
            self.source.fail("this is not a finite real number", node)
        if isinstance(part, sp.Pow | sp.exp) and not _moderate(part):
            self.source.fail(f"an exponent beyond {MAX_EXPONENT}", node)
        if isinstance(part, sp.Piecewise):
            self.few_relations([c for _, c in part.args], node)

    def few_relations(self, conditions: list[Boolean], node: Any) -> None:
        if sum(len(c.atoms(Relational)) for c in conditions) > MAX_RELATIONS:
            self.source.fail(f"more than {MAX_RELATIONS} relations", node)


def _unreal(value: Any) -> bool:
    return value.is_extended_real is False


def _bits(value: sp.Rational) -> int:
    return max(int(value.p).bit_length(), int(value.q).bit_length())


def _reach(exponent: sp.Expr) -> int:
    """The greatest magnitude among the numbers of an exponent, at least 1; rounded up."""
    return max((-(-abs(int(r.p)) // int(r.q)) for r in exponent.atoms(sp.Rational)), default=1) or 1


def _moderate(power: sp.Expr) -> bool:
    """Whether a power can be combined with others without writing out a huge number."""
    exponent = power.as_base_exp()[1]
    if isinstance(power, sp.exp):
        return not exponent.has(sp.log) or _reach(exponent) <= MAX_EXPONENT
    return _reach(exponent) <= MAX_EXPONENT


def _size(value: sp.Basic) -> int:
    """Number of parts, counted up to a little over the limit; infinite where nested too deep."""
    size, height = 0, 0
    level: list[sp.Basic] = [value]
    while level and size <= MAX_SIZE:
        size, height = size + len(level), height + 1
        level = [part for whole in level for part in whole.args]
    return size if height <= MAX_HEIGHT else MAX_SIZE + 1


_RELATIONS: Mapping[str, type[Relational]] = MappingProxyType(
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
