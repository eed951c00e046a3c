"""From a Network to the text of a graph file, so that reading it gives an equal network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import sympy as sp

from varflow.activations import ACTIVATIONS
from varflow.errors import InputError
from varflow.load.assumptions import written
from varflow.load.schema import POLICIES
from varflow.load.yaml import MAX_DIGITS, is_text
from varflow.lowering import Shapes, infer_shapes
from varflow.network import BlockNode, Handle, InputNode, Network
from varflow.ops.base import Op
from varflow.ops.pointwise import ActivationLayer
from varflow.printing import to_text
from varflow.program import Shape
from varflow.symbols import FAN_IN, FAN_OUT, HEAD_WIDTH, X

_PLAIN = re.compile(r"-?[A-Za-z0-9_.(][A-Za-z0-9_.()/*+^<>= -]*")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}


def network_text(network: Network) -> str:
    """A network as YAML. Raises InputError for one that a graph file cannot say."""
    if network.preserve not in POLICIES:
        raise InputError(f"preserve {network.preserve!r} cannot be written", instead="one of " + ", ".join(POLICIES))
    lines = [f"name: {scalar(network.name)}"]
    if network.source:
        lines.append(f"source: {scalar(network.source)}")
    lines.append(f"preserve: {network.preserve}")
    lines += _body(network, {}, network.symbols, infer_shapes(network), ())
    return "\n".join(lines) + "\n"


def _body(network: Network, scope: Mapping[str, sp.Symbol], declared: Mapping[str, sp.Symbol], shapes: Shapes,
          given: tuple[Shape, ...]) -> list[str]:
    """Lines of symbols, inputs, nodes and outputs; ``given`` are the shapes that a block's inputs take from outside."""
    scope = {**scope, **declared}
    nodes = list(network.nodes())
    first = next((k for k, (_, layer) in enumerate(nodes) if not isinstance(layer, InputNode)), len(nodes))
    lines = ["symbols:"] if declared else []
    lines += [f"  {scalar(n)}: {flow(written(s))}" for n, s in sorted(declared.items())]
    lines.append("inputs:")
    for (name, layer), shape in zip_longest(nodes[:first], given[:first]):
        lines.append(f"  {scalar(name)}: {flow(_input(layer, scope, shape))}")
    lines += ["nodes:"] if nodes[first:] else []
    for name, layer in nodes[first:]:
        lines += _node(network, name, layer, scope, shapes)
    if network.declared_outputs:
        lines.append(f"outputs: {flow([h.key for h in network.declared_outputs])}")
    return lines


def _input(layer: Any, scope: Mapping[str, sp.Symbol], given: Shape | None = None) -> dict[str, Any]:
    default = InputNode(layer.channels) if given is None else InputNode(given.channels, given.positions)
    changed = {k: v for k, v in vars(layer).items() if v != getattr(default, k) or (k == "channels" and given is None)}
    return {k: _value(v, scope) for k, v in changed.items()}


def _node(network: Network, name: str, layer: Op | InputNode | BlockNode, scope: Mapping[str, sp.Symbol],
          shapes: Shapes) -> list[str]:
    inputs = network.inputs_of(name)
    if isinstance(layer, BlockNode):
        return _block(name, layer, inputs, scope, tuple(shapes[h.node][int(h.port or 0)] for h in inputs))
    if isinstance(layer, InputNode):
        return [f"  - {flow({'name': name, 'op': 'input', **_input(layer, scope)})}"]
    fields = {k: _value(v, scope) for k, v in layer.fields().items()}
    op = layer.name
    known = _activation(layer)
    if known:
        op, fields = ("activation", {"function": "identity"}) if known == "identity" else (known, {})
    return [f"  - {flow({'name': name, 'op': op, 'in': _names(inputs), **fields})}"]


def _activation(layer: Op) -> str | None:
    """The name of a parameterless activation that a layer applies."""
    if not isinstance(layer, ActivationLayer):
        return None
    return next((n for n, a in ACTIVATIONS.items() if not a.parameters and a.expression == layer.function), None)


def _block(name: str, layer: BlockNode, inputs: list[Handle], scope: Mapping[str, sp.Symbol],
           given: tuple[Shape, ...]) -> list[str]:
    body = layer.body
    head: dict[str, Any] = {"name": name, "op": "block", "in": _names(inputs)}
    if layer.repeat != 1:
        head["repeat"] = _value(layer.repeat, scope)
    head |= {"body_name": body.name} if body.name != name else {}
    head |= {"source": body.source} if body.source else {}
    head |= {"preserve": body.preserve} if body.preserve != "forward" else {}
    used = _used(body)
    own = {n: s for n, s in body.symbols.items() if n not in used or scope.get(n) != s}
    lines = [f"{k}: {v if isinstance(v, str) and k == 'op' else flow(v)}" for k, v in head.items()]
    lines += _body(body, scope, own, infer_shapes(body, given), given)
    return [("  - " if k == 0 else "    ") + line for k, line in enumerate(lines)]


def _used(network: Network) -> set[str]:
    """Names of the symbols that a network's own layers (its blocks included) use."""
    found: set[str] = set()
    for _, layer in network.nodes():
        if isinstance(layer, BlockNode):
            found |= set(layer.body.symbols) | {s.name for s in layer.repeat.free_symbols}
            continue
        values = vars(layer).values() if isinstance(layer, InputNode) else layer.fields().values()
        exprs = [e for v in values for e in (v if isinstance(v, tuple) else (v,)) if isinstance(e, sp.Expr)]
        found |= {s.name for e in exprs for s in e.free_symbols if s.name != "x" or isinstance(layer, InputNode)}
    return found


def _names(handles: list[Handle]) -> Any:
    return handles[0].key if len(handles) == 1 else [h.key for h in handles]


def _value(value: Any, scope: Mapping[str, sp.Symbol]) -> Any:
    """A field's value as plain text, number, list or flag."""
    if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], int):
        return value[0]
    if isinstance(value, tuple | list):
        return [_value(v, scope) for v in value]
    if not isinstance(value, sp.Basic):
        return value
    for s in value.free_symbols - {FAN_IN, FAN_OUT, HEAD_WIDTH, X}:
        if scope.get(s.name) != s:
            raise InputError(f"the symbol {s.name!r} in {str(value)[:80]!r} is not the network's symbol of this name",
                             why="they differ in their assumptions", instead="one symbol per name")
    if value.is_Integer and abs(int(value)) < 10**MAX_DIGITS:
        return int(value)
    return to_text(value)


def flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(k)}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(v) for v in value) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return scalar(value) if isinstance(value, str) else str(value)


def scalar(text: str) -> str:
    """A text as YAML: bare where that is read back as the same text, else in double quotes."""
    if _PLAIN.fullmatch(text) and is_text(text) and text == text.strip() and text not in ("---", "..."):
        return text
    return '"' + "".join(_escaped(c) for c in text) + '"'


def _escaped(c: str) -> str:
    if c in _ESCAPES:
        return _ESCAPES[c]
    if c.isprintable() and c != "\ufeff":
        return c
    code = ord(c)
    if 0xD800 <= code < 0xE000:
        raise InputError(f"the character {c!r} cannot be written", instead="text without lone surrogates")
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
