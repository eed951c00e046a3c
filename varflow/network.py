"""Network: a computation graph of layers over networkx.MultiDiGraph, and its builder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias

import networkx as nx
import sympy as sp

from varflow.activations import ACTIVATIONS
from varflow.errors import InputError, kind_of, require
from varflow.fields import exact, make_op, read_scalar
from varflow.ops.base import Op
from varflow.symbols import FAN_IN, FAN_OUT, HEAD_WIDTH, positive

Value: TypeAlias = float | int | str | sp.Expr
INPUT_FIELDS = {
    "channels": None, "positions": (), "mean": sp.S.Zero, "second_moment": sp.S.One,
    "position_correlation": sp.S.Zero, "sample_correlation": sp.S.Zero,
}


@dataclass(frozen=True)
class Handle:
    """A node's output, usable as another node's input."""

    node: str
    port: str = ""

    @property
    def key(self) -> str:
        """``NAME``, or ``NAME:port`` for a node with several outputs."""
        return f"{self.node}:{self.port}" if self.port else self.node


@dataclass(frozen=True)
class InputNode:
    """A network input: channels, positions and the moments of its entries."""

    channels: sp.Expr
    positions: tuple[sp.Expr, ...] = ()
    mean: sp.Expr = sp.S.Zero
    second_moment: sp.Expr = sp.S.One
    position_correlation: sp.Expr = sp.S.Zero
    sample_correlation: sp.Expr = sp.S.Zero


@dataclass(frozen=True)
class BlockNode:
    """A nested network applied ``repeat`` times, every time with weights of its own unless they are named."""

    body: Network
    repeat: sp.Expr = sp.S.One


class Network:
    """A network as a graph of layers.

    ``graph`` is the networkx.MultiDiGraph: a node's ``op`` is the layer's name (``input`` and ``block``
    besides the registered ones), its other attributes that layer's fields; an edge's ``port`` is the place
    among the inputs, ``out`` the output port it reads. ``symbols`` are the names expressions may use; a
    network built in Python makes a positive symbol of a name it meets first, one with ``strict`` refuses it.
    ``places`` says where a node stands in its file, for error messages.
    """

    def __init__(self, name: str = "network", *, preserve: str = "forward", source: str = "",
                 symbols: Mapping[str, sp.Symbol] | None = None, strict: bool = False) -> None:
        require(name, str, "the name of the network", 'a text: Network("my network")')
        self.name, self.preserve, self.source, self.strict = name, preserve, source, strict
        self.graph: nx.MultiDiGraph[Any] = nx.MultiDiGraph(name=name)
        self.symbols: dict[str, sp.Symbol] = dict(symbols or {})
        self.places: dict[str, str] = {}
        self.declared_outputs: list[Handle] = []
        self._nodes: dict[str, Op | InputNode | BlockNode] = {}
        self._stems: dict[str, int] = {}
        self._counts: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Network {self.name!r}: {len(self._nodes)} nodes>"

    # -- names and symbols ---------------------------------------------------------------------------

    def symbol(self, name: str, **assumptions: bool) -> sp.Symbol:
        """The network's symbol of this name; made with the assumptions (positive unless said) if new."""
        if name not in self.symbols:
            self.symbols[name] = sp.Symbol(name, **assumptions) if assumptions else positive(name)
        return self.symbols[name]

    def resolve(self, name: str) -> sp.Symbol | None:
        """The symbol that a name in an expression stands for."""
        if name in ("fan_in", "fan_out"):
            return FAN_IN if name == "fan_in" else FAN_OUT
        if name in self.symbols:
            return self.symbols[name]
        return None if self.strict else self.symbol(name)

    def scalar(self, value: Value, where: str = "") -> sp.Expr:
        """A number, text or sympy expression as an expression of this network's symbols."""
        expr = read_scalar(value, self.resolve, where)
        for s in expr.free_symbols:
            self.symbols.setdefault(s.name, s)
        return expr

    def where(self, node: str) -> str:
        """The place of a node, for an error message."""
        return f"{self.places[node]}, node {node!r}" if node in self.places else f"node {node!r}"

    def _fresh(self, stem: str, name: str | None) -> str:
        if name is None:
            count = self._stems.get(stem, 1)
            while (name := f"{stem}_{count}") in self._nodes:
                count += 1
            self._stems[stem] = count
        if not isinstance(name, str) or not name or ":" in name or name in self._nodes:
            why = "it is taken" if isinstance(name, str) and name in self._nodes else "a name is a text without ':'"
            raise InputError(f"node name {name!r} cannot be used", why=why, instead="another name")
        return name

    # -- building ------------------------------------------------------------------------------------

    def node(self, name: str) -> Op | InputNode | BlockNode:
        """The layer at a node."""
        return self._nodes[name]

    def nodes(self) -> Iterator[tuple[str, Op | InputNode | BlockNode]]:
        """Nodes in the order they were added."""
        return iter(self._nodes.items())

    def _place(self, name: str, op: str, layer: Op | InputNode | BlockNode, fields: Mapping[str, Any],
               inputs: tuple[Handle, ...]) -> None:
        for i in inputs:
            if not isinstance(i, Handle) or i.node not in self._nodes:
                raise InputError(f"input {i!r} of {name!r} is not a node of this network",
                                 instead="what a builder method of this network returned")
        self._nodes[name] = layer
        self.graph.add_node(name, op=op, **fields)
        for port, i in enumerate(inputs):
            self.graph.add_edge(i.node, name, port=port, out=i.port)

    def input(self, name: str, channels: Value, positions: Any = (), mean: Value = 0, second_moment: Value = 1,
              position_correlation: Value = 0, sample_correlation: Value = 0) -> Handle:
        """An input of i.i.d. channels; correlations (Pearson) between positions and between samples."""
        name = self._fresh("input", name)
        sizes = positions if isinstance(positions, (list, tuple)) else (positions,)
        layer = InputNode(self.scalar(channels), tuple(self.scalar(p) for p in sizes), self.scalar(mean),
                          self.scalar(second_moment), self.scalar(position_correlation),
                          self.scalar(sample_correlation))
        self._check_input(name, layer)
        fields = {k: v for k, v in vars(layer).items() if v != INPUT_FIELDS[k]}
        self._place(name, "input", layer, fields, ())
        return Handle(name)

    def _check_input(self, name: str, layer: InputNode) -> None:
        for size in (layer.channels, *layer.positions):
            if size.is_integer is False or size.is_positive is False:
                raise InputError(f"input {name!r}: size {size} is not a positive whole number", self.where(name),
                                 "it counts channels or positions", "1, 2, 3, ...")
        variance = layer.second_moment - layer.mean**2
        if variance.is_negative:
            raise InputError(f"input {name!r}: second moment {layer.second_moment} is below its squared mean",
                             self.where(name), "E[x^2] - E[x]^2 is a variance", "a larger second_moment")
        for field in ("position_correlation", "sample_correlation"):
            c = getattr(layer, field)
            if c.is_number and not -1 <= c <= 1:
                raise InputError(f"input {name!r}: {field} {c} is outside [-1, 1]", self.where(name),
                                 "no correlation is", "a number from -1 to 1")
        count, c = sp.Mul(*layer.positions), layer.position_correlation
        if (c * (count - 1)).is_number and c * (count - 1) < -1:
            raise InputError(f"input {name!r}: position_correlation {c} among {count} positions", self.where(name),
                             "their sum would have a negative variance", f"{-1 / (count - 1)} or more")

    def apply(self, op: str | Op, *inputs: Handle, name: str | None = None, **fields: Any) -> Any:
        """A layer by its registered name and fields (or as an object); returns its output handle, or a tuple
        of them. Raises InputError for unknown layers, fields or values."""
        require(op, (str, Op), "the layer", 'a layer\'s name, or the layer itself: net.apply("relu", x)')
        stem = op if isinstance(op, str) else op.name
        name = self._fresh(stem, name)
        layer = make_op(op, fields, self.resolve, self.where(name)) if isinstance(op, str) else op
        self._adopt_symbols(layer)
        self._place(name, stem, layer, layer.fields(), inputs)
        outputs = getattr(layer, "sizes", None) if stem == "split" else None
        return Handle(name) if outputs is None else self._ports(name)

    def _ports(self, name: str) -> tuple[Handle, ...]:
        count = self._output_count(name)
        return (Handle(name),) if count == 1 else tuple(Handle(name, str(i)) for i in range(count))

    def _output_count(self, name: str) -> int:
        """Number of outputs of a node; shapes are inferred only where it depends on them, and once."""
        from varflow.lowering import infer_shapes

        layer = self._nodes[name]
        if isinstance(layer, BlockNode):
            return len(layer.body.outputs())
        if self.graph.nodes[name]["op"] != "split":
            return 1
        if name not in self._counts:
            self._counts[name] = len(infer_shapes(self)[name])
        return self._counts[name]

    def _adopt_symbols(self, layer: Op) -> None:
        for value in layer.fields().values():
            for expr in value if isinstance(value, tuple) else (value,):
                if isinstance(expr, sp.Expr):
                    for s in expr.free_symbols - {FAN_IN, FAN_OUT, HEAD_WIDTH}:
                        if s.name != "x":
                            self.symbols.setdefault(s.name, s)

    def block(self, body: Network, *inputs: Handle, repeat: Value = 1, name: str | None = None) -> Any:
        """A nested network applied ``repeat`` times (a number or a symbol); its inputs in their order."""
        require_network(body, "the body of the block")
        if body is self:
            raise InputError("a block cannot be the network it stands in", instead="another network as its body")
        name = self._fresh("block", name)
        count = self.scalar(repeat)
        if count.is_number and not (count.is_integer and count.is_positive):
            raise InputError(f"repeat {repeat!r} is not a positive whole number", self.where(name),
                             "a block is applied once or more", "1, 2, 3, ... or a symbol")
        for key, symbol in body.symbols.items():
            self.symbols.setdefault(key, symbol)
        layer = BlockNode(body, count)
        self._place(name, "block", layer, {"body": body, "repeat": count}, inputs)
        ports = body.outputs()
        return Handle(name) if len(ports) == 1 else tuple(Handle(name, str(i)) for i in range(len(ports)))

    def output(self, *handles: Handle) -> None:
        """Declare the outputs; without it they are the nodes that nothing reads."""
        for h in handles:
            if not isinstance(h, Handle) or h.node not in self._nodes or h not in self._ports(h.node):
                raise InputError(f"output {h!r} is not an output of a node of this network",
                                 instead="what a builder method of this network returned")
        self.declared_outputs += handles

    def linear(self, x: Handle, out_channels: Value, name: str | None = None, weight: str | None = None,
               transpose: bool = False, variance: Value | None = None, distribution: str = "normal",
               bias: Value | None = None, **fields: Any) -> Handle:
        """y = W x (+ b); see :class:`varflow.ops.linear.Linear`."""
        result: Handle = self.apply("linear", x, name=name, out_channels=out_channels, weight=weight,
                                    transpose=transpose, variance=variance, distribution=distribution, bias=bias,
                                    **fields)
        return result

    def activation(self, x: Handle, function: str | sp.Expr, name: str | None = None) -> Handle:
        """f(x) for a named activation, ``"leaky_relu(0.2)"``, or any expression of x."""
        result: Handle = self.apply("activation", x, name=name, function=function)
        return result

    def add(self, *xs: Handle, weights: Any = (), name: str | None = None) -> Handle:
        """Weighted sum."""
        result: Handle = self.apply("add", *xs, name=name, weights=weights)
        return result

    def scale(self, x: Handle, factor: Value, name: str | None = None) -> Handle:
        """c x."""
        result: Handle = self.apply("scale", x, name=name, factor=factor)
        return result

    def split(self, x: Handle, *each: Value, sizes: Sequence[Value] = (), name: str | None = None
              ) -> tuple[Handle, ...]:
        """Consecutive channel blocks, their sizes one by one or as ``sizes``; the last may be left out."""
        result: tuple[Handle, ...] = self.apply("split", x, name=name, sizes=(*each, *sizes))
        return result

    def dropout(self, x: Handle, p: Value, mask: str | None = None, inverted: bool = True,
                name: str | None = None) -> Handle:
        """Dropout of rate p; ``mask`` names a mask that layers share."""
        result: Handle = self.apply("dropout", x, name=name, p=p, mask=mask, inverted=inverted)
        return result

    def __getattr__(self, op: str) -> Callable[..., Any]:
        """One method per registered layer and per named activation: ``net.layer_norm(x)``, ``net.relu(x)``.

        What follows the inputs are the layer's fields in their order: ``net.conv(x, 64, 3, padding=1)``.
        """
        from varflow.ops import OPS

        if op in OPS:
            return lambda *xs, name=None, **fields: self._by_place(op, xs, name, fields)
        if op in ACTIVATIONS:
            return lambda x, *parameters, name=None, **named: self.activation(
                x, _call(op, parameters, named), name=name)
        near = get_close_matches(op, [*OPS, *ACTIVATIONS], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"Network has no layer, activation or attribute {op!r}{hint}", name=op)

    def _by_place(self, op: str, given: tuple[Any, ...], name: str | None, fields: Mapping[str, Any]) -> Any:
        """A layer whose inputs, and fields after them, are given by their place."""
        from varflow.ops import OPS

        order = [f.name for f in dataclasses.fields(OPS[op])]
        inputs = len(given) if not order else next((k for k, x in enumerate(given) if not isinstance(x, Handle)),
                                                   len(given))
        placed = dict(zip(order, given[inputs:], strict=False))
        if len(given) - inputs > len(order) or placed.keys() & fields.keys():
            raise InputError(f"{op} is given {len(given) - inputs} fields by their place",
                             why=f"its fields are {', '.join(order)}", instead="each field once")
        return self.apply(op, *given[:inputs], name=name, **placed, **fields)

    # -- reading -------------------------------------------------------------------------------------

    def inputs_of(self, node: str) -> list[Handle]:
        """Where a node's inputs come from, in port order."""
        edges = sorted(self.graph.in_edges(node, data=True), key=lambda e: e[2]["port"])
        return [Handle(u, data.get("out", "")) for u, _, data in edges]

    def outputs(self) -> list[Handle]:
        """Declared outputs, else the nodes that nothing reads, in the order they were added."""
        if self.declared_outputs:
            return list(self.declared_outputs)
        sinks = [n for n in self._nodes if self.graph.out_degree(n) == 0]
        return [h for n in sinks for h in self._ports(n)]

    def bind(self, values: Mapping[str, float | int | sp.Expr]) -> Network:
        """The network with numbers in place of symbols, and of unknown scales (named ``s_WEIGHT``).

        Raises InputError for a name that is neither, or a value that is not a number.
        """
        from varflow.rebuild import bound

        return bound(self, values)

    def substitute(self, table: Mapping[sp.Symbol, sp.Expr],
                   variances: Mapping[str, sp.Expr] | None = None, prefix: str = "") -> Network:
        """A copy with symbols replaced, and ``variances`` (by weight group) given to unknown weights."""
        from varflow.rebuild import substituted

        return substituted(self, table, variances or {}, prefix)

    @staticmethod
    def from_networkx(graph: nx.DiGraph[Any]) -> Network:
        """A network from a DiGraph or MultiDiGraph: node attributes are ``op`` and that layer's fields, edge
        attributes ``port`` and ``out``. Raises InputError for a graph that is not a network."""
        from varflow.rebuild import from_networkx

        return from_networkx(graph)

    def check(self) -> None:
        """Raise ErrorList with every shape or structure error of the network."""
        from varflow.lowering import infer_shapes

        infer_shapes(self)

    def parameters(self) -> sp.Expr:
        """How many numbers the network would train: weights, biases, and gamma and beta of normalizations."""
        from varflow.lowering import parameters

        return parameters(self)

    def __eq__(self, other: object) -> bool:
        """The same layers, connections, names, symbols and policy; ``places`` do not count."""
        if not isinstance(other, Network):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self.name)

    def _identity(self) -> tuple[object, ...]:
        layers = [(n, layer, self.inputs_of(n)) for n, layer in self._nodes.items()]
        return self.name, self.preserve, self.source, self.symbols, layers, self.declared_outputs

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(f"<tr><td>{escape(n)}</td><td>{escape(self.graph.nodes[n]['op'])}</td></tr>"
                       for n in self._nodes)
        return f"<table><caption>{escape(self.name)}</caption>{rows}</table>"


def require_network(value: object, what: str) -> None:
    """Raise InputError unless ``value``, which ``what`` names, is a Network."""
    if isinstance(value, Network):
        return
    hints = ((str, f"vf.load({value!r}), for a graph file or a shipped graph"),
             (nx.Graph, "vf.Network.from_networkx(graph), for a networkx graph"),
             (Handle, "the network, not the handle of one of its nodes"))
    hint = next((text for kind, text in hints if isinstance(value, kind)), "")
    owned = getattr(value, "network", None)
    hint = hint or ("its .network" if isinstance(owned, Network) else "a vf.Network, or vf.load(FILE)")
    raise InputError(f"{what} is {kind_of(value)}, not a Network", instead=hint)


def _call(name: str, parameters: tuple[Value, ...], named: Mapping[str, Value]) -> str:
    """An activation's name and parameters as an expression."""
    from varflow.expressions import to_text

    texts = []
    for key, value in [*(("", p) for p in parameters), *named.items()]:
        number = value if isinstance(value, str) else exact(value)
        if number is None:
            raise InputError(f"a parameter of {name} is {kind_of(value)}", why="it has one input, then parameters",
                             instead="a number, or an expression as text")
        text = number if isinstance(number, str) else to_text(number)
        texts.append(f"{key}={text}" if key else text)
    return f"{name}({', '.join(texts)})" if texts else name
