"""The nodes of a network as a derivation names them: layer, inputs, readers, whatever block they stand in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import sympy as sp

from varflow.activations import ACTIVATIONS
from varflow.errors import ExpressionError
from varflow.export.rounding import rounded
from varflow.network import BlockNode, InputNode, Network
from varflow.ops.base import Op
from varflow.ops.pointwise import ActivationLayer
from varflow.printing import to_text
from varflow.symbols import X

UNNAMED = frozenset(("weight", "permutation", "mask", "out_channels", "channels", "positions", "sizes"))
"""Fields that do not tell two steps apart: names of shared things, and widths, which the equations state."""


@dataclass
class Node:
    """One node by its full name (``blk[3].fc1``); ``inputs`` and ``readers`` are names of values (``NAME`` or
    ``NAME:port``) and of nodes."""

    name: str
    layer: Op | InputNode
    inputs: tuple[str, ...]
    readers: list[str] = field(default_factory=list)

    @property
    def op(self) -> str:
        """The layer's registered name."""
        return "input" if isinstance(self.layer, InputNode) else self.layer.name

    @property
    def fields(self) -> dict[str, object]:
        """Field values that differ from their default."""
        if isinstance(self.layer, InputNode):
            return {k: v for k, v in vars(self.layer).items() if k not in ("channels", "positions")
                    and v != (1 if k == "second_moment" else 0)}
        return self.layer.fields()

    @property
    def kind(self) -> tuple[object, ...]:
        """What two nodes share whose steps may be told once."""
        return (self.op, *((k, v) for k, v in self.fields.items() if k not in UNNAMED))


def nodes_of(network: Network) -> dict[str, Node]:
    """Every node outside and inside of blocks, in the order of the derivation."""
    found: dict[str, Node] = {}
    alias = dict(_walk(network, {}, "", found))
    for node in found.values():
        node.inputs = tuple(_resolved(alias, i) for i in node.inputs)
    for node in found.values():
        for source in dict.fromkeys(node.inputs):
            if (base := source if source in found else source.rpartition(":")[0]) in found:
                found[base].readers.append(node.name)
    return found


def _resolved(alias: Mapping[str, str], name: str) -> str:
    while name in alias:
        name = alias[name]
    return name


def _walk(network: Network, given: Mapping[str, str], prefix: str, found: dict[str, Node]) -> Iterator[tuple[str, str]]:
    """Fills ``found``; yields (name of a block's output, name of the value it is)."""
    from varflow.lowering import order

    for name in order(network):
        layer, path = network.node(name), prefix + name
        inputs = tuple(given.get(h.key, prefix + h.key) for h in network.inputs_of(name))
        if isinstance(layer, BlockNode):
            yield from _walk_block(layer, path, inputs, found)
        elif name not in given:
            found[path] = Node(path, layer, inputs)


def _walk_block(layer: BlockNode, path: str, inputs: tuple[str, ...], found: dict[str, Node]
                ) -> Iterator[tuple[str, str]]:
    starts = [n for n, inner in layer.body.nodes() if isinstance(inner, InputNode)]
    symbolic = not layer.repeat.is_number
    ends = inputs
    for i in range(1 if symbolic else int(layer.repeat)):
        prefix = f"{path}[l]." if symbolic else f"{path}." if layer.repeat == 1 else f"{path}[{i}]."
        given = dict(zip(starts, ends, strict=True))
        yield from _walk(layer.body, given, prefix, found)
        ends = tuple(given.get(h.key, prefix + h.key) for h in layer.body.outputs())
    for port, end in enumerate(ends):
        yield (path if len(ends) == 1 else f"{path}:{port}"), end


def text_of(value: object) -> str:
    """A field's value in words: an expression in the grammar where it can be said there, an activation by its
    name, one number for all axes as itself."""
    if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], int):
        return str(value[0])
    if isinstance(value, tuple):
        return "(" + ", ".join(text_of(v) for v in value) + ")"
    if not isinstance(value, sp.Basic):
        return str(value)
    try:
        return to_text(rounded(value) if isinstance(value, sp.Expr) else value)
    except ExpressionError:
        return str(value)


def activation_name(function: sp.Expr) -> str | None:
    """The name of the activation with this expression, if it has one."""
    return next((a.name for a in ACTIVATIONS.values() if a.at() == function), None)


def _named(value: object) -> str | None:
    """The name of a field's value that is an activation."""
    return activation_name(value) if isinstance(value, sp.Expr) and value.has(X) else None


def described(node: Node) -> str:
    """A layer in words: its name and fields."""
    if isinstance(node.layer, ActivationLayer):
        return activation_name(node.layer.function) or f"activation {text_of(node.layer.function)}"
    parts = [f"{k} = {_named(v) or text_of(v)}" for k, v in node.fields.items() if k not in ("out_channels", "weight")]
    if node.fields.get("weight"):
        parts.insert(0, f"weight {node.fields['weight']}")
    return node.op.replace("_", " ") + (f" ({', '.join(parts)})" if parts else "")
