"""Making networks from graphs and from other networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networkx as nx
import sympy as sp

from varflow.activations import ACTIVATIONS
from varflow.errors import ErrorList, InputError, VarflowError, named_values, require
from varflow.fields import closest, exact, make_op
from varflow.network import BlockNode, Handle, InputNode, Network
from varflow.ops.base import OPS
from varflow.ops.linear import unknown_variances
from varflow.symbols import FAN_IN


def substituted(network: Network, table: Mapping[sp.Symbol, sp.Expr], variances: Mapping[str, sp.Expr],
                prefix: str, stated: set[str] | None = None) -> Network:
    """A copy of ``network`` with symbols replaced and unknown weights given their variance, each at its first
    use (``stated``: those that have it)."""
    stated = set() if stated is None else stated
    copy = Network(network.name, preserve=network.preserve, source=network.source,
                   symbols={n: s for n, s in network.symbols.items() if s not in table})
    copy.places = dict(network.places)
    for name, layer in network.nodes():
        inputs = network.inputs_of(name)
        if isinstance(layer, InputNode):
            copy.input(name, **{k: _replace(v, table) for k, v in vars(layer).items()})
        elif isinstance(layer, BlockNode):
            body = substituted(layer.body, table, variances, f"{prefix}{name}.", stated)
            copy.block(body, *inputs, repeat=_replace(layer.repeat, table), name=name)
        else:
            fields = {k: _replace(v, table) for k, v in layer.fields().items()}
            fields |= _solved(unknown_variances(layer, prefix + name), variances, stated)
            copy._place(name, layer.name, type(layer)(**fields), fields, tuple(inputs))
    copy.declared_outputs = list(network.declared_outputs)
    return copy


def _solved(unknown: Mapping[str, str], variances: Mapping[str, sp.Expr], stated: set[str]) -> dict[str, sp.Expr]:
    """Variances for the weights of one layer, by field, where they are known and not stated before."""
    found = {field: variances[group] for group, field in unknown.items() if group in variances and group not in stated}
    stated |= {group for group in unknown if group in variances}
    return found


def _replace(value: Any, table: Mapping[sp.Symbol, sp.Expr]) -> Any:
    if isinstance(value, tuple):
        return tuple(_replace(v, table) for v in value)
    return value.xreplace(table) if isinstance(value, sp.Expr) else value


def scaled_variance(scale: sp.Expr) -> sp.Expr:
    """Var(W_ij) of a weight whose scale s = fan_in Var(W_ij) is known."""
    return scale / FAN_IN


def bound(network: Network, values: Mapping[str, Any]) -> Network:
    """See :meth:`varflow.network.Network.bind`."""
    table, scales = {}, {}
    for name, value in named_values(values).items():
        number = exact(value)
        if number is None:
            raise InputError(f"value {value!r} of {name!r} is not a number", instead="a finite number")
        if name in network.symbols:
            table[network.symbols[name]] = number
        elif name.startswith("s_"):
            scales[name[2:]] = scaled_variance(number)
        else:
            raise InputError(f"{name!r} is not a symbol of {network.name!r}",
                             instead=closest(name, network.symbols) if network.symbols else "no values")
    return network.substitute(table, scales)


def from_networkx(graph: nx.DiGraph[Any]) -> Network:
    """See :meth:`varflow.network.Network.from_networkx`."""
    require(graph, nx.Graph, "the graph", "a networkx.DiGraph or MultiDiGraph")
    if not graph.is_directed():
        raise InputError("the graph is not directed", why="an edge leads from a layer to one that reads it",
                         instead="a networkx.DiGraph or MultiDiGraph")
    network = Network(str(graph.graph.get("name") or "network"))
    errors: list[VarflowError] = []
    names = {node: str(node) for node in graph.nodes}
    if len(set(names.values())) < len(names):
        raise InputError("two nodes have the same name as text", instead="nodes that differ as text")
    for node in _order(graph):
        try:
            _add_node(network, graph, node, names)
        except VarflowError as error:
            errors.append(error)
            if len(errors) == 1 and not isinstance(error, InputError):
                break
    if errors:
        raise ErrorList([e for err in errors for e in (err.errors if isinstance(err, ErrorList) else (err,))])
    network.check()
    return network


def _order(graph: nx.DiGraph[Any]) -> list[Any]:
    rank = {n: i for i, n in enumerate(graph.nodes)}
    try:
        return list(nx.lexicographical_topological_sort(graph, key=rank.__getitem__))
    except nx.NetworkXUnfeasible:
        cycle = " -> ".join(str(e[0]) for e in nx.find_cycle(graph))
        raise InputError(f"the graph has a cycle: {cycle}", why="a computation graph has none",
                         instead="unroll recurrent connections") from None


def _add_node(network: Network, graph: nx.DiGraph[Any], node: Any, names: Mapping[Any, str]) -> None:
    attributes = dict(graph.nodes[node])
    op = attributes.pop("op", None)
    if not isinstance(op, str):
        raise InputError(f"node {names[node]!r} has no attribute 'op'",
                         instead="graph.add_node(name, op=\"linear\", out_channels=...)")
    inputs = _inputs(graph, node, names)
    if op == "input":
        if inputs:
            raise InputError(f"the input node {names[node]!r} has incoming edges", instead="no edge into an input")
        _call(network.input, names[node], attributes)
    elif op == "block":
        body = attributes.pop("body", None)
        network.block(body if isinstance(body, Network) else from_networkx(body), *inputs,
                      name=names[node], **attributes)
    else:
        if op in ACTIVATIONS and op not in OPS and not attributes:
            op, attributes = "activation", {"function": op}
        layer = make_op(op, attributes, network.resolve, network.where(names[node]))
        network.apply(layer, *inputs, name=names[node])


def _call(method: Any, name: str, attributes: Mapping[str, Any]) -> None:
    try:
        method(name, **attributes)
    except TypeError:
        raise InputError(f"input {name!r} has fields {sorted(attributes)}", instead=(
            "channels, and optionally positions, mean, second_moment, position_correlation, "
            "sample_correlation")) from None


def _inputs(graph: nx.DiGraph[Any], node: Any, names: Mapping[Any, str]) -> tuple[Handle, ...]:
    edges = [(u, data) for u, _, data in graph.in_edges(node, data=True)]
    ports = [data.get("port", i) for i, (_, data) in enumerate(edges)]
    if sorted(ports, key=str) != sorted(range(len(edges)), key=str):
        raise InputError(f"node {names[node]!r} has input ports {ports}",
                         instead=f"ports 0 to {len(edges) - 1}, each once")
    ordered = [edge for _, edge in sorted(zip(ports, edges, strict=True), key=lambda pair: pair[0])]
    return tuple(Handle(names[u], str(data.get("out", ""))) for u, data in ordered)
