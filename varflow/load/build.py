"""From the values of a graph file to a Network, with every error reported at its place.

A node that cannot be read keeps its name, so that what reads it is still checked as far as possible and one
mistake is reported once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

import sympy as sp

from varflow.activations import ACTIVATIONS
from varflow.errors import ErrorList, ExpressionError, InputError, VarflowError
from varflow.fields import closest, make_op, read_scalar
from varflow.load.assumptions import read_symbol
from varflow.load.schema import Block, Body, Document, Input, Layer, read_part
from varflow.load.yaml import POISON, Path, Tree, shown
from varflow.lowering import node_shapes
from varflow.network import Handle, InputNode, Network
from varflow.ops.base import OPS, Op
from varflow.printing import to_text
from varflow.program import Input as InputPrimitive
from varflow.program import Instruction, Lowering, Program, Shape
from varflow.symbols import FAN_IN, FAN_OUT

MAX_TERMS, MAX_UNROLLED, MAX_NAMES, MAX_ERRORS, MAX_PART = 1000, 100_000, 200, 200, 600
Shapes = tuple[Shape, ...]


class Scope(dict[str, sp.Expr]):
    """The symbols an expression may use; called with a name, the symbol (or the number given for it) or None.

    An ``open`` one makes up the symbols it lacks: their declaration is damaged, and that is reported already.
    """

    open = False

    def __init__(self, symbols: Mapping[str, sp.Expr], numbers: Mapping[str, sp.Expr]) -> None:
        super().__init__(symbols)
        self.numbers = numbers

    def __call__(self, name: str) -> sp.Expr | None:
        return self.get(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The symbol of a name."""
        return sp.Symbol(name, positive=True) if self.open and name not in self else super().get(name, default)

    def within(self, **more: sp.Symbol) -> Scope:
        """A copy with more symbols."""
        copy = Scope({**self, **more}, self.numbers)
        copy.open = self.open
        return copy


def build(tree: Tree, numbers: Mapping[str, sp.Expr]) -> Network:
    """The network that a file describes, with ``numbers`` in place of symbols. Raises ErrorList with every error."""
    document, wrong = read_part(tree, Document, (), tree.value)
    network = Network(strict=True)
    if document is not None:
        network = Network(document.name, preserve=document.preserve, source=document.source, strict=True)
        _Builder(tree, network, Scope({}, numbers), Program(), ()).fill(document, None, wrong)
    if tree.errors:
        raise ErrorList(in_order(tree.errors))
    return network


def in_order(errors: Iterable[VarflowError]) -> list[VarflowError]:
    """Errors by line and column, each once and with all four parts."""
    flat = [complete(e) for err in errors for e in (err.errors if isinstance(err, ErrorList) else (err,))]
    return sorted({e.message(): e for e in flat}.values(), key=_line)


def complete(error: VarflowError) -> VarflowError:
    """The error, with a reason and a remedy where it came without."""
    why, instead = ("an expression is made of numbers, declared symbols, + - * / ^ and known functions",
                    "an expression such as 2/fan_in, 1/sqrt(2) or n + 1")
    if not isinstance(error, ExpressionError):
        why, instead = "the value is outside what this field can be", "a value that fits, as docs/graph_files.md says"
    parts = (error.what, error.where, error.why or why, error.instead or instead)
    return type(error)(*(p if len(p) <= MAX_PART else f"{p[:MAX_PART]}..." for p in parts))


def _line(error: VarflowError) -> tuple[int, int]:
    found = re.search(r":(\d+):(\d+)", error.where)
    return (int(found[1]), int(found[2])) if found else (0, 0)


class _Builder:
    """Fills one network (a file's, or a block's body) from its part of a file."""

    def __init__(self, tree: Tree, network: Network, scope: Scope, lowered: Program, path: Path) -> None:
        self.tree, self.network, self.scope, self.lowered, self.path = tree, network, scope, lowered, path
        self.shapes: dict[str, Shapes] = {}
        self.broken: set[str] = set()
        self.later: set[str] = set()
        self.lenient = False
        self.unrolled = 0

    # -- reporting -----------------------------------------------------------------------------------

    def report(self, what: str, path: Path, why: str, instead: str, key: bool = False) -> None:
        self.tree.errors.append(InputError(what, self.place(path, key), why, instead))

    def place(self, path: Path, key: bool = False) -> str:
        """``file:line:col``, and which node and which of its inputs or fields it is."""
        where, rest = self.tree.where(path, key), path[len(self.path):]
        if rest[:1] == ("inputs",) and len(rest) > 1:
            return ", ".join([where, f"input {shown(rest[1])}", *(str(r) for r in rest[2:3])])
        if rest[:1] != ("nodes",) or len(rest) < 2:
            return where
        node = self.value(path[: len(self.path) + 2])
        name = node.get("name") if isinstance(node, dict) else None
        parts = [where] + ([f"node {shown(name)}"] if isinstance(name, str) else [])
        if rest[2:3] == ("in",):
            parts.append(f"input {rest[3] if len(rest) > 3 else 0}")
        elif rest[2:3] not in ((), ("name",), ("op",)):
            parts.append(str(rest[2]))
        return ", ".join(parts)

    def value(self, path: Path) -> Any:
        value = self.tree.value
        for part in path:
            value = value[part]
        return value

    def caught(self, error: VarflowError, where: str) -> None:
        for e in error.errors if isinstance(error, ErrorList) else (error,):
            self.tree.errors.append(e if e.where else type(e)(e.what, where, e.why, e.instead))

    # -- the parts -----------------------------------------------------------------------------------

    def fill(self, body: Body, given: list[Shape | None] | None, wrong: set[str]) -> None:
        """Read symbols, inputs, nodes and outputs; ``given`` are the shapes that a block's inputs get, ``wrong``
        the parts that do not fit. After MAX_ERRORS the rest is not read."""
        damaged = self.tree.damaged
        self.scope.open |= "symbols" in wrong or (*self.path, "symbols") in damaged
        self.lenient = bool(wrong & {"inputs", "nodes"}) or (*self.path, "inputs") in damaged
        self.declare(body.symbols)
        self.inputs(body.inputs, given)
        self.later = {n["name"] for n in body.nodes if isinstance(n, dict) and isinstance(n.get("name"), str)}
        for k, node in enumerate(body.nodes):
            if len(self.tree.errors) > MAX_ERRORS:
                raise ErrorList(in_order(self.tree.errors))
            self.judged(self.node, (*self.path, "nodes", k), node)
        self.outputs(body.outputs)

    def declare(self, symbols: Mapping[str, Any]) -> None:
        for name, value in symbols.items():
            path = (*self.path, "symbols", name)
            try:
                symbol = read_symbol(name, value, self.tree.where(path, key=True))
            except InputError as error:
                self.tree.errors.append(error)
                symbol = sp.Symbol(name, positive=True)
            self.scope[name] = symbol
            if name not in self.scope.numbers:
                self.network.symbols[name] = symbol
            elif all(getattr(self.scope.numbers[name], f"is_{k}") == v for k, v in symbol.assumptions0.items()):
                self.scope[name] = self.scope.numbers[name]
            else:
                self.report(f"{self.scope.numbers[name]} is no number for {name!r}", path, "it is declared otherwise",
                            "a number of the kind that the declaration names", key=True)

    def inputs(self, inputs: Mapping[str, Any], given: list[Shape | None] | None) -> None:
        if not inputs and not self.lenient:
            self.report("there is no input", (*self.path, "inputs"), "a network is a function of its inputs",
                        "inputs: {x: {channels: n}}", key=True)
        for k, (name, value) in enumerate(inputs.items()):
            shape = given[k] if given is not None and k < len(given) else None
            path = (*self.path, "inputs", name)
            self.judged(self.input, path, name, {} if value is None else value, given is not None, shape)

    def judged(self, step: Callable[..., None], path: Path, *args: Any) -> None:
        """One step; a number that sympy cannot compare is reported, like any other mistake."""
        try:
            step(path, *args)
        except (TypeError, ValueError, ArithmeticError, NotImplementedError) as error:
            self.report("a number here cannot be judged", path, f"{type(error).__name__}: {error}"[:200],
                        "a simpler number")

    def input(self, path: Path, name: str, value: Any, inner: bool, shape: Shape | None) -> None:
        spec, wrong = read_part(self.tree, Input, path, value)
        fields = None if spec is None else self.input_fields(spec, path, value, wrong, inner, shape)
        if not self.named(name, path) or fields is None:
            self.broken.add(name)
            return
        self.network.places[name] = self.tree.where(path, key=True)
        try:
            self.network.input(name, **fields)
        except VarflowError as error:
            self.caught(error, self.place(path, key=True))
            self.broken.add(name)
            return
        layer = self.network.node(name)
        assert isinstance(layer, InputNode)
        own = Shape(layer.channels, layer.positions)
        if shape is not None and own != shape:
            self.report(f"the block's input {name!r} is declared with shape {own} and gets {shape}", path,
                        "a declared shape is a promise", "the shape it gets, or none: {}", key=True)
        self.shapes[name] = (own,)

    def input_fields(self, spec: Input, path: Path, value: Mapping[str, Any], wrong: set[str], inner: bool,
                     shape: Shape | None) -> dict[str, Any] | None:
        """Fields of an input; None where one of them is not right."""
        count = len(self.tree.errors)
        stated = [f for f in Input.model_fields if f in value and f not in wrong]
        read = {f: self.expression(getattr(spec, f), (*path, f)) for f in stated if f != "positions"}
        if "positions" in stated:
            read["positions"] = tuple(self.expression(p, (*path, "positions", k)) for k, p in enumerate(spec.positions))
        if shape is not None:
            read = {"channels": shape.channels, "positions": shape.positions, **read}
        if "channels" not in read and not inner and "channels" not in wrong and path not in self.tree.damaged:
            self.report("an input needs its channels", path, "every width follows from those of the inputs",
                        "{channels: n}", key=True)
        good = "channels" in read and len(self.tree.errors) == count and not wrong
        return read if good else None

    def expression(self, value: Any, path: Path) -> sp.Expr | None:
        if value is POISON:
            return None
        try:
            return _bounded(read_scalar(plain(value), self.scope, self.place(path)), self.place(path))
        except VarflowError as error:
            self.caught(error, self.place(path))
            return None

    def named(self, name: str, path: Path) -> bool:
        """Whether a name can be given to a node; reports why not."""
        if not name:
            self.report("'' cannot name a node", path, "others refer to it by name", "a name", key=True)
            return False
        if ":" in name:
            self.report(f"{shown(name)} cannot name a node", path, "a colon separates a node from its output port",
                        "a name without a colon", key=True)
            return False
        if name in self.shapes or name in self.broken:
            self.report(f"the name {shown(name)} is taken", path, "a name stands for one node", "another name",
                        key=True)
            return False
        return True

    # -- nodes ---------------------------------------------------------------------------------------

    def node(self, path: Path, value: Any) -> None:
        name = value.get("name") if isinstance(value, dict) else None
        sound = isinstance(name, str) and name != "" and self.named(name, (*path, "name"))
        kind = value.get("op") if isinstance(value, dict) else None
        read = {"input": self.late_input, "block": self.block}.get(str(kind), self.layer)
        try:
            read(path, value, sound)
        finally:
            if isinstance(name, str):
                self.later.discard(name)
                if name not in self.shapes:
                    self.broken.add(name)

    def late_input(self, path: Path, value: dict[str, Any], sound: bool) -> None:
        """An input that stands among the nodes."""
        if sound:
            self.input(path, value["name"], {k: v for k, v in value.items() if k not in ("name", "op")}, False, None)
        elif not isinstance(value.get("name"), str):
            self.report("an input has no name", path, "other nodes refer to a node by its name",
                        "- {name: x, op: input, channels: n}")

    def layer(self, path: Path, value: Any, sound: bool) -> None:
        spec, wrong = read_part(self.tree, Layer, path, value)
        if spec is None:
            return
        fields = {k: plain(v) for k, v in (spec.model_extra or {}).items()}
        handles = None if "in" in wrong else self.handles(spec.inputs, path)
        good = not _poisoned(fields) and path not in self.tree.damaged and not wrong - {"in"}
        op = self.op(spec.op, fields, path) if good else None
        if op is None or handles is None or not sound:
            return
        self.network.places[spec.name] = self.tree.where(path)
        self.settle(spec.name, op, handles, self.place(path))

    def op(self, op: str, fields: dict[str, Any], path: Path) -> Op | None:
        where = self.place(path)
        places = {k: self.tree.where((*path, k)) + where[len(self.tree.where(path)):] for k in (*fields, "op")}
        scope = self.scope.within(fan_in=FAN_IN, fan_out=FAN_OUT)
        try:
            if op in ACTIVATIONS and op not in OPS:
                return make_op("activation", {"function": _function(op, fields, scope, places)}, scope, where)
            if op not in OPS:
                known = [*OPS, *ACTIVATIONS, "block", "input"]
                raise InputError(f"no layer is called {shown(op)}", places["op"],
                                 "it is neither a layer nor an activation", closest(op, known))
            layer = make_op(op, fields, scope, where, places)
            for field, value in layer.fields().items():
                for expr in value if isinstance(value, tuple) else (value,):
                    if isinstance(expr, sp.Expr):
                        _bounded(expr, places.get(field, where))
            return layer
        except VarflowError as error:
            self.caught(error, where)
            return None

    def settle(self, name: str, op: Op, handles: tuple[Handle, ...], where: str) -> None:
        """Add a layer to the network; check its shapes and its weights against what stands before it."""
        try:
            self.network.apply(op, *handles, name=name)
            self.shapes[name] = node_shapes(self.network, name, self.shapes, {})
            self.lower(name, op, handles, where)
        except VarflowError as error:
            self.caught(error, where)

    def lower(self, name: str, op: Op, handles: tuple[Handle, ...], where: str) -> None:
        """Lower one layer on inputs of the right shapes: named weights must agree, and fans must mean something."""
        build = Lowering(self.lowered, "/".join(map(str, (*self.path, name))))
        args = []
        for k, h in enumerate(handles):
            shape = self.shapes[h.node][int(h.port or 0)]
            primitive = InputPrimitive(f"{build.node} {k}", sp.S.Zero, sp.S.One)
            args.append(build.source(primitive, shape))
        start = len(self.lowered)
        try:
            op.lower(build, *args)
        except VarflowError as error:
            raise type(error)(error.what, where, error.why, error.instead) from None
        if any(_uses_fans(step) for step in self.lowered.instructions[start:]):
            raise InputError("fan_in and fan_out mean nothing here", where, "only a weight has a fan",
                             "the number of channels")

    def handles(self, names: tuple[str, ...], path: Path) -> tuple[Handle, ...] | None:
        """What a node reads; None where one of it is missing or broken."""
        listed = isinstance(self.value(path).get("in"), list)
        found = [self.handle(n, (*path, "in", k) if listed else (*path, "in")) for k, n in enumerate(names)]
        return None if None in found else tuple(h for h in found if h)

    def handle(self, text: Any, path: Path) -> Handle | None:
        if text is POISON:
            return None
        name, colon, port = text.partition(":")
        if name in self.shapes:
            return self.port(name, port if colon else None, text, path)
        if name in self.broken or (self.lenient and name not in self.later):
            return None
        if name in self.later:
            self.report(f"{shown(name)} is read before it is made", path, "a node stands below what it reads",
                        f"the node {shown(name)} further up; a network has no cycle")
        else:
            known = [n for n in (*self.shapes, *self.broken) if n][-MAX_NAMES:]
            self.report(f"there is no node {shown(name)}", path, "a node reads nodes and inputs of its own network",
                        closest(name, known) if known else "an input or a node above")
        return None

    def port(self, name: str, port: str | None, text: str, path: Path) -> Handle | None:
        outputs = len(self.shapes[name])
        if port is None and outputs == 1:
            return Handle(name)
        if port is not None and port.isascii() and port.isdigit() and len(port) < 6 and int(port) < outputs:
            return Handle(name, port)
        ports = ", ".join(f"{name}:{i}" for i in range(min(outputs, 8)))
        why = f"{name!r} has {outputs} outputs" if outputs > 1 else f"{name!r} has one output"
        self.report(f"{shown(text)} is not an output", path, why, ports if outputs > 1 else name)
        return None

    # -- blocks --------------------------------------------------------------------------------------

    def block(self, path: Path, value: Any, sound: bool) -> None:
        spec, wrong = read_part(self.tree, Block, path, value)
        if spec is None:
            return
        handles = None if "in" in wrong else self.handles(spec.arguments, path)
        repeat = None if "repeat" in wrong else self.expression(spec.repeat, (*path, "repeat"))
        if not wrong & {"in", "inputs"} and len(spec.arguments) != len(spec.inputs):
            self.report(f"the block has {len(spec.inputs)} input(s) and gets {len(spec.arguments)}", path,
                        "every input of a block stands for one value", "as many names under `in` as under `inputs`")
            handles = None
        given: list[Shape | None] = [None] * len(spec.inputs)
        if handles is not None:
            given = [self.shapes[h.node][int(h.port or 0)] for h in handles]
        inner = self.body(path, spec, given, wrong)
        if inner is None or handles is None or repeat is None or not sound or wrong:
            return
        self.network.places[spec.name] = self.tree.where(path)
        self.connect(path, spec, inner, handles, repeat)

    def body(self, path: Path, spec: Block, given: list[Shape | None], wrong: set[str]) -> _Builder | None:
        """The block's network, filled; None where it has errors of its own."""
        count = len(self.tree.errors)
        network = Network(spec.body_name or spec.name, preserve=spec.preserve, source=spec.source, strict=True)
        inner = _Builder(self.tree, network, self.scope.within(), self.lowered, path)
        inner.fill(spec, given, wrong)
        return inner if len(self.tree.errors) == count and not inner.broken else None

    def connect(self, path: Path, spec: Block, inner: _Builder, handles: tuple[Handle, ...], repeat: sp.Expr) -> None:
        where = self.place(path)
        try:
            self.network.block(inner.network, *handles, repeat=repeat, name=spec.name)
            self.shapes[spec.name] = node_shapes(self.network, spec.name, self.shapes, {})
        except VarflowError as error:
            self.caught(error, where)
            return
        times = int(repeat) if repeat.is_number else 1
        self.unrolled += times * (inner.unrolled + len(inner.shapes))
        if self.unrolled > MAX_UNROLLED:
            self.report(f"the repeats unroll to more than {MAX_UNROLLED} nodes", (*path, "repeat"),
                        "a number of repeats is written out", "a symbol as the repeat count")
            self.unrolled = 0

    # -- outputs -------------------------------------------------------------------------------------

    def outputs(self, names: tuple[str, ...]) -> None:
        path = (*self.path, "outputs")
        listed = (*path, 0) in self.tree.places
        for k, name in enumerate(names):
            handle = self.handle(name, (*path, k) if listed else path)
            if handle is not None and not self.path and handle in self.network.declared_outputs:
                self.report(f"output {shown(name)} is listed twice", (*path, k) if listed else path,
                            "one independent cotangent arrives at each output",
                            "each once; for two cotangents, an identity layer behind it")
            elif handle is not None:
                self.network.output(handle)


def plain(value: Any) -> Any:
    """A value of a file as a layer's field takes it: decimals exact."""
    if isinstance(value, list):
        return tuple(plain(v) for v in value)
    return sp.Rational(str(value)) if isinstance(value, Decimal) else value


def _poisoned(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_poisoned(v) for v in value.values())
    return any(_poisoned(v) for v in value) if isinstance(value, tuple | list) else value is POISON


def _function(op: str, fields: Mapping[str, Any], scope: Scope, places: Mapping[str, str]) -> str:
    """The text of a named activation with its parameters."""
    known = [n for n, _ in ACTIVATIONS[op].parameters]
    for name in fields:
        if name not in known:
            instead = closest(name, known) if known else f"{{op: {op}}} without it"
            raise InputError(f"{op} has no field {shown(name)}", places[name], "its fields are its parameters", instead)
    texts = [f"{n}={to_text(read_scalar(v, scope, places[n]))}" for n, v in fields.items()]
    return f"{op}({', '.join(texts)})" if texts else op


def _bounded(expr: sp.Expr, where: str) -> sp.Expr:
    """The expression, if multiplying it out stays small."""
    if _terms(expr) > MAX_TERMS:
        raise InputError(f"multiplied out, this has more than {MAX_TERMS} terms", where,
                         "widths and factors are multiplied out", "a shorter expression")
    return expr


def _terms(expr: sp.Basic) -> int:
    if isinstance(expr, sp.Add):
        return min(sum(map(_terms, expr.args)), MAX_TERMS + 1)
    if isinstance(expr, sp.Mul):
        count = 1
        for factor in expr.args:
            count = min(count * _terms(factor), MAX_TERMS + 1)
        return count
    if isinstance(expr, sp.Pow) and expr.exp.is_Integer:
        return int(min(_terms(expr.base) ** min(abs(int(expr.exp)), 20), MAX_TERMS + 1))
    return 1


def _uses_fans(step: Instruction) -> bool:
    values = [getattr(step.primitive, f.name) for f in dataclasses.fields(step.primitive)]  # type: ignore[arg-type]
    return any(isinstance(v, sp.Expr) and v.free_symbols & {FAN_IN, FAN_OUT} for v in values)
