"""Reading a layer's fields: text, numbers and sympy objects become what the field's annotation says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import sympy as sp

from varflow.errors import ErrorList, InputError, VarflowError
from varflow.expressions import parse, parse_activation
from varflow.ops.base import OPS, Op
from varflow.symbols import X

Resolve = Callable[[str], sp.Symbol | None]
NO_PLACES: Mapping[str, str] = MappingProxyType({})


def exact(value: object) -> sp.Expr | None:
    """A number as an exact sympy number (0.1 is 1/10), or None where it is not a real number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, sp.Expr):
        return value.xreplace({f: _decimal(f) for f in value.atoms(sp.Float)})
    if isinstance(value, int):
        return sp.Integer(value)
    if isinstance(value, Fraction):
        return sp.Rational(value.numerator, value.denominator)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return sp.Rational(repr(number)) if abs(number) < float("inf") else None


def _decimal(number: sp.Float) -> sp.Rational:
    return sp.Rational(repr(float(number)) if number._prec <= 53 else str(number))


def shown(value: object, most: int = 80) -> str:
    """A value as a message shows it: on one line and not long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def read_scalar(value: object, resolve: Resolve, where: str = "") -> sp.Expr:
    """An expression from text, a number or a sympy expression."""
    if isinstance(value, str):
        return parse(value, resolve, where=where)
    number = exact(value)
    if number is None:
        raise InputError(f"{shown(value)} is not a number or an expression", where,
                         "a formula is made of numbers and symbols",
                         "a finite number, or an expression as text")
    return number


def _read_size(value: object, resolve: Resolve, where: str) -> sp.Expr:
    size = read_scalar(value, resolve, where)
    if size.is_number and not (size.is_integer and size.is_positive):
        raise InputError(f"size {shown(value)} is not a positive whole number", where,
                         "it counts channels or positions", "1, 2, 3, ...")
    return size


def _read_sizes(value: object, resolve: Resolve, where: str) -> tuple[sp.Expr, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        value = (value,)
    return tuple(read_scalar(v, resolve, where) for v in value)


def _read_axes(value: object, resolve: Resolve, where: str) -> tuple[int, ...]:
    numbers = _read_sizes(value, resolve, where)
    for n in numbers:
        if not (n.is_Integer and n.is_nonnegative):
            raise InputError(f"{shown(value)} is not made of whole numbers", where,
                             "it counts positions, along every axis or axis by axis", "1, 2, 3, ... or a list of them")
    return tuple(int(n) for n in numbers)


def _read_padding(value: object, resolve: Resolve, where: str) -> tuple[int, ...] | str:
    return value if isinstance(value, str) and value == "same" else _read_axes(value, resolve, where)


def _read_function(value: object, resolve: Resolve, where: str) -> sp.Expr:
    if isinstance(value, sp.Expr):
        return _one_variable(value, where)
    if not isinstance(value, str):
        raise InputError(f"{shown(value)} is not an activation", where,
                         "an activation is written as text", "a name, or an expression of x")
    found = parse_activation(value, resolve, where=where)
    if not found.has(X):
        raise InputError(f"{shown(value)} does not depend on x", where, "a constant passes on no signal",
                         "a name, or an expression of x")
    return found


def _one_variable(value: sp.Expr, where: str) -> sp.Expr:
    named = [s for s in value.free_symbols if s.name == "x"]
    if len(named) != 1:
        raise InputError(f"{value} is not an expression of x", where, instead="an expression of one symbol x")
    return value.xreplace({named[0]: X})


def _read_text(value: object, resolve: Resolve, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{shown(value)} is not a name", where, "a name is a text", "a text that is not empty")
    return value


def _read_flag(value: object, resolve: Resolve, where: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{shown(value)} is neither true nor false", where, "it is a switch", "true or false")
    return value


def _read_per_head(value: object, resolve: Resolve, where: str) -> sp.Expr:
    from varflow.symbols import HEAD_WIDTH

    return read_scalar(value, lambda name: HEAD_WIDTH if name == HEAD_WIDTH.name else resolve(name), where)


READERS: Mapping[str, Callable[[Any, Resolve, str], Any]] = {
    "Scalar": lambda v, r, w: read_scalar(v, r, w),
    "PerHead": _read_per_head,
    "Channels": _read_size,
    "Count": _read_size,
    "Sizes": _read_sizes,
    "Axes": _read_axes,
    "Padding": _read_padding,
    "Function": _read_function,
    "Text": _read_text,
    "Flag": _read_flag,
}


def closest(name: str, known: Mapping[str, object] | list[str]) -> str:
    """A hint naming the nearest known name, or all of them."""
    near = get_close_matches(str(name), list(known), n=1)
    names = sorted(known)
    listed = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
    return f"did you mean {near[0]!r}?" if near else f"one of {listed}"


LEAST: Mapping[str, int] = {"variance": 0, "bias": 0, "eps": 0, "keep": 0, "batch": 2}
MOST: Mapping[str, int] = {"keep": 1}


def _in_range(name: str, value: object, where: str) -> None:
    """Raise InputError for a number that a field of this name cannot be."""
    if not isinstance(value, sp.Expr):
        return
    if name in LEAST and (value - LEAST[name]).is_negative:
        raise InputError(f"{name} {shown(value)} is too small", where, f"{name} is at least {LEAST[name]}",
                         "a larger number")
    if name in MOST and (value - MOST[name]).is_positive:
        raise InputError(f"{name} {shown(value)} is too large", where, f"{name} is at most {MOST[name]}",
                         "a smaller number")


def make_op(op: str, fields: Mapping[str, Any], resolve: Resolve, where: str = "",
            places: Mapping[str, str] = NO_PLACES) -> Op:
    """The layer named ``op`` with fields read from text, numbers or expressions.

    ``places`` says where a field stands, for messages. Raises InputError for an unknown layer, an unknown or
    a missing field, or a value that does not fit; ErrorList for several.
    """
    if op not in OPS:
        raise InputError(f"no layer is called {shown(op)}", places.get("op", where), instead=closest(op, OPS))
    declared = {f.name: f for f in dataclasses.fields(OPS[op])}
    errors: list[VarflowError] = [
        InputError(f"layer {op!r} has no field {shown(name)}", places.get(name, where),
                   f"its fields are {', '.join(declared)}" if declared else "it has no fields",
                   closest(name, declared) if declared else "the layer without fields")
        for name in fields if name not in declared]
    errors += [InputError(f"layer {op!r} needs the field {name!r}", where, "it has no default", f"{name}: ...")
               for name, f in declared.items() if f.default is dataclasses.MISSING and name not in fields]
    read: dict[str, Any] = {}
    for name in [n for n in fields if n in declared]:
        try:
            read[name] = _read(declared[name], fields[name], resolve, _place(name, where, places))
            _in_range(name, read[name], _place(name, where, places))
        except VarflowError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else ErrorList(errors)
    try:
        return OPS[op](**read)
    except VarflowError as error:
        raise error if error.where else type(error)(error.what, where, error.why, error.instead) from None


def _place(name: str, where: str, places: Mapping[str, str]) -> str:
    if name in places:
        return f"{places[name]}, {name}"
    return f"{where}.{name}" if where else name


def _read(f: dataclasses.Field[Any], value: object, resolve: Resolve, where: str) -> Any:
    kind, _, optional = str(f.type).partition(" | ")
    if value is None and optional == "None":
        return None
    if kind not in READERS:
        raise InputError(f"the annotation of field {f.name!r} is not read as text", where,
                         "it says how a value is read: Scalar, PerHead, Channels, Count, Sizes, Axes, Padding, "
                         "Function, Text, Flag",
                         "from __future__ import annotations, at the head of the layer's file")
    return READERS[kind](value, resolve, where)
