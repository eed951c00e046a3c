"""Compiling a sympy expression to a short program for the pointwise register machine.

Nothing is compiled by numba here: the machine (`kernels_pointwise`) is compiled once and interprets the program
over chunks of lanes. Equal subexpressions are computed once; the expression is first made safe for float32
(`stable`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import sympy as sp
from numpy.typing import NDArray
from sympy.logic.boolalg import BooleanAtom, BooleanFunction

from varflow.errors import UnsupportedError
from varflow.simulate.stable import Decay, WherePositive, stabilize

OPCODES = (
    "load", "add", "sub", "mul", "div", "min", "max", "pow", "lt", "le", "select", "sqrt", "exp", "log", "log1p",
    "tanh", "erf", "erfc", "sin", "cos", "atan", "asinh", "abs", "sign",
)  # fmt: skip
OP = {name: code for code, name in enumerate(OPCODES)}
FUNCTIONS = {
    sp.exp: "exp", sp.log: "log", sp.tanh: "tanh", sp.erf: "erf", sp.erfc: "erfc", sp.sin: "sin", sp.cos: "cos",
    sp.atan: "atan", sp.asinh: "asinh", sp.Abs: "abs", sp.sign: "sign",
}  # fmt: skip

Step = tuple[int, int, int, int]


@dataclass(frozen=True)
class VMProgram:
    """Steps (opcode, target, a, b, c) over registers; the first registers hold the constants.

    ``load`` reads input number a. ``result`` is the register of the value.
    """

    code: NDArray[np.int32]
    constants: NDArray[np.float32]
    registers: int
    result: int
    inputs: int


@dataclass
class _Builder:
    """Single-assignment steps; a value is a number, constants are negative: -1 - index."""

    arguments: dict[sp.Symbol, int]
    steps: list[Step] = field(default_factory=list)
    constants: dict[float, int] = field(default_factory=dict)
    known: dict[object, int] = field(default_factory=dict)

    def constant(self, value: float) -> int:
        return -1 - self.constants.setdefault(value, len(self.constants))

    def emit(self, name: str, a: int = 0, b: int = 0, c: int = 0) -> int:
        step = (OP[name], a, b, c)
        if step not in self.known:
            self.steps.append(step)
            self.known[step] = len(self.steps) - 1
        return self.known[step]

    def value(self, expr: sp.Basic) -> int:
        if expr not in self.known:
            self.known[expr] = self._build(expr)
        return self.known[expr]

    def _build(self, expr: sp.Basic) -> int:
        if expr in self.arguments:
            return self.emit("load", self.arguments[expr])
        if isinstance(expr, BooleanAtom):
            return self.constant(float(bool(expr)))
        if expr.is_number:
            return self._number(expr)
        for kind, build in BUILDERS:
            if isinstance(expr, kind):
                return build(self, expr)
        raise UnsupportedError(
            f"the simulator cannot evaluate {type(expr).__name__} in {expr}",
            why="it knows the elementary functions, Piecewise, Max, Min, Abs, sign and Heaviside",
        )

    def _number(self, expr: sp.Basic) -> int:
        value = complex(expr.evalf())
        if value.imag or math.isnan(value.real):
            raise UnsupportedError(f"the simulator works with real numbers, not {expr}")
        return self.constant(value.real)

    def function(self, expr: sp.Basic) -> int:
        argument = expr.args[0]
        if isinstance(expr, sp.log) and isinstance(argument, sp.Add) and sp.S.One in argument.args:
            return self.emit("log1p", self.value(argument - 1))
        return self.emit(FUNCTIONS[type(expr)], self.value(argument))

    def add(self, expr: sp.Add) -> int:
        minus = [a for a in expr.args if a.could_extract_minus_sign()]
        plus = [a for a in expr.args if a not in minus]
        total = self.fold("add", plus) if plus else self.constant(0.0)
        return reduce(lambda t, a: self.emit("sub", t, self.value(-a)), minus, total)

    def multiply(self, expr: sp.Mul) -> int:
        below = [
            a for a in expr.args if isinstance(a, sp.Pow) and a.exp.is_number and a.exp.is_negative
        ]
        above = [a for a in expr.args if a not in below]
        top = self.fold("mul", above) if above else self.constant(1.0)
        if not below:
            return top
        return self.emit("div", top, self.fold("mul", [a.base**-a.exp for a in below]))

    def fold(self, name: str, terms: Sequence[sp.Basic]) -> int:
        values = [self.value(t) for t in terms]
        return reduce(lambda a, b: self.emit(name, a, b), values)

    def power(self, expr: sp.Pow) -> int:
        base, exponent = expr.args
        if not exponent.is_number or not (2 * exponent).is_integer:
            return self.emit("pow", self.value(base), self.value(exponent))
        if exponent.is_negative:
            return self.emit("div", self.constant(1.0), self.value(base**-exponent))
        if not exponent.is_integer:
            root = self.emit("sqrt", self.value(base))
            return root if exponent == sp.S.Half else self.repeated(root, int(2 * exponent))
        return self.repeated(self.value(base), int(exponent))

    def repeated(self, base: int, exponent: int) -> int:
        if exponent == 1:
            return base
        half = self.repeated(base, exponent // 2)
        square = self.emit("mul", half, half)
        return self.emit("mul", square, base) if exponent % 2 else square

    def piecewise(self, expr: sp.Piecewise) -> int:
        value = self.constant(math.nan)
        for part, condition in reversed(expr.args):
            if condition == sp.true:
                value = self.value(part)
            else:
                value = self.choice(self.value(condition), self.value(part), value)
        return value

    def choice(self, condition: int, then: int, otherwise: int) -> int:
        """A select, or the cheaper step that is the same: a relation is 1 or 0 already, relu is a maximum."""
        zero, one = self.constants.get(0.0), self.constants.get(1.0)
        step = self.steps[condition] if condition >= 0 else (-1, 0, 0, 0)
        if zero is not None and otherwise == -1 - zero:
            if step[0] in (OP["lt"], OP["le"]) and one is not None and then == -1 - one:
                return condition
            if step[:3] == (OP["lt"], otherwise, then):
                return self.emit("max", then, otherwise)
        return self.emit("select", condition, then, otherwise)

    def relation(self, expr: sp.Rel) -> int:
        a, b = self.value(expr.lhs), self.value(expr.rhs)
        match expr:
            case sp.StrictLessThan():
                return self.emit("lt", a, b)
            case sp.StrictGreaterThan():
                return self.emit("lt", b, a)
            case sp.LessThan():
                return self.emit("le", a, b)
            case sp.GreaterThan():
                return self.emit("le", b, a)
        equal = self.emit("mul", self.emit("le", a, b), self.emit("le", b, a))
        return (
            equal if isinstance(expr, sp.Equality) else self.emit("sub", self.constant(1.0), equal)
        )

    def boolean(self, expr: BooleanFunction) -> int:
        match expr:
            case sp.And():
                return self.fold("min", expr.args)
            case sp.Or():
                return self.fold("max", expr.args)
            case sp.Not():
                return self.emit("sub", self.constant(1.0), self.value(expr.args[0]))
        raise UnsupportedError(f"the simulator cannot evaluate the condition {expr}")

    def heaviside(self, expr: sp.Heaviside) -> int:
        zero, x = self.constant(0.0), self.value(expr.args[0])
        at_zero = self.value(expr.args[1])
        below = self.emit("select", self.emit("le", zero, x), at_zero, zero)
        return self.emit("select", self.emit("lt", zero, x), self.constant(1.0), below)

    def where_positive(self, expr: WherePositive) -> int:
        u, a, b = (self.value(x) for x in expr.args)
        return self.emit("select", self.emit("lt", self.constant(0.0), u), a, b)

    def decay(self, expr: Decay) -> int:
        size = self.emit("abs", self.value(expr.args[0]))
        return self.emit("exp", self.emit("sub", self.constant(0.0), size))


BUILDERS: tuple[tuple[type | tuple[type, ...], Callable[[_Builder, sp.Basic], int]], ...] = (
    (tuple(FUNCTIONS), _Builder.function),
    (sp.Add, _Builder.add),
    (sp.Mul, _Builder.multiply),
    (sp.Pow, _Builder.power),
    (sp.Piecewise, _Builder.piecewise),
    (sp.Max, lambda b, e: b.fold("max", e.args)),
    (sp.Min, lambda b, e: b.fold("min", e.args)),
    (sp.Rel, _Builder.relation),
    (BooleanFunction, _Builder.boolean),
    (sp.Heaviside, _Builder.heaviside),
    (WherePositive, _Builder.where_positive),
    (Decay, _Builder.decay),
)

ARITY = {"load": 0, "select": 3} | dict.fromkeys(
    ("add", "sub", "mul", "div", "min", "max", "pow", "lt", "le"), 2
)


def _operands(step: Step) -> tuple[int, ...]:
    return step[1 : 1 + ARITY.get(OPCODES[step[0]], 1)]


def _without_unread(steps: list[Step], result: int) -> tuple[list[Step], int]:
    """The steps that the result depends on."""
    read = {result}
    for i in range(len(steps) - 1, -1, -1):
        if i in read:
            read.update(_operands(steps[i]))
    kept = sorted(i for i in read if i >= 0)
    place = {i: k for k, i in enumerate(kept)} | {v: v for v in read if v < 0}
    made = []
    for i in kept:
        code, *values = steps[i]
        for k, v in enumerate(_operands(steps[i])):
            values[k] = place[v]
        made.append((code, values[0], values[1], values[2]))
    return made, place[result]


def _allocate(
    steps: list[Step], result: int, constants: int
) -> tuple[list[list[int]], dict[int, int], int]:
    """Registers by linear scan; a target never shares a register with its own operands."""
    last = {v: i for i, step in enumerate(steps) for v in _operands(step)}
    last[result] = len(steps)
    place: dict[int, int] = {-1 - k: k for k in range(constants)}
    free: list[int] = []
    top, code = constants, []
    for i, step in enumerate(steps):
        if not free:
            free.append(top)
            top += 1
        place[i] = free.pop()
        operands = _operands(step)
        sources = [place[v] for v in operands] if operands else [step[1]]
        code.append([step[0], place[i], *sources, *[0] * (3 - len(sources))])
        free += {place[v] for v in operands if v >= 0 and last[v] == i}
    return code, place, top


def compile_pointwise(expr: sp.Expr, arguments: Sequence[sp.Symbol]) -> VMProgram:
    """The program of ``expr`` with input k standing for ``arguments[k]``.

    Raises UnsupportedError for a function the machine does not know, or a symbol that is no argument.
    """
    unknown = expr.free_symbols - set(arguments)
    if unknown:
        names = ", ".join(sorted(str(s) for s in unknown))
        raise UnsupportedError(f"the expression {expr} has no value for {names}")
    builder = _Builder({symbol: k for k, symbol in enumerate(arguments)})
    result = builder.value(stabilize(expr))
    steps, result = _without_unread(builder.steps, result)
    code, place, registers = _allocate(steps, result, len(builder.constants))
    return VMProgram(
        np.array(code, np.int32).reshape(-1, 5),
        np.array(list(builder.constants), np.float32),
        max(registers, 1),
        place[result],
        len(arguments),
    )
