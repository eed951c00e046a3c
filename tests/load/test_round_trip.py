"""What is saved and loaded again is the same network: graph, fields, symbols, formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from varflow.derive import derive
from varflow.errors import InputError
from varflow.load import from_text, load, save, to_text
from varflow.load.write import flow, scalar
from varflow.load.yaml import read_tree
from varflow.network import BlockNode, InputNode, Network
from varflow.ops import OPS
from varflow.ops.linear import DISTRIBUTIONS, NORMALIZED


def again(net: Network) -> Network:
    """The network after a round trip, checked to be equal, with the same text."""
    text = to_text(net)
    copy = from_text(text)
    assert copy == net
    assert nx.utils.graphs_equal(copy.graph, net.graph)
    assert to_text(copy) == text
    return copy


def simple(**fields: object) -> Network:
    net = Network("simple")
    x = net.input("x", channels="n")
    net.apply("linear", x, name="fc", out_channels="m", **fields)
    return net


@pytest.mark.parametrize("op", sorted(OPS))
def test_every_layer(op: str) -> None:
    for example in OPS[op].examples:
        again(_fitting(op, dict(example)))


def _fitting(op: str, example: dict[str, Any]) -> Network:
    """A network of one layer, with inputs of the first size that it takes."""
    least = max(OPS[op].arity[0], len(example.get("weights", ())))
    plain = (4, 4) if op in ("mean_pool", "flatten") else ()
    for channels, positions in ((192, plain), (16, (8, 8)), (192, (2, 3))):
        net = Network(op)
        inputs = [net.input(f"x{i}", channels=channels, positions=positions) for i in range(least)]
        try:
            net.apply(op, *inputs, name="y", **example)
            net.check()
        except InputError:
            continue
        return net
    raise AssertionError(f"no size fits {op}")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_distributions(distribution: str) -> None:
    keep = 1 if distribution in NORMALIZED else "1/4"
    variance = None if distribution == "spectral" else "2/fan_in"
    net = simple(variance=variance, distribution=distribution, bias="1/10", keep=keep, weight="W")
    d, e = derive(net), derive(again(net))
    assert d["fc"].second_moment == e["fc"].second_moment
    assert d.weights["W"].draw == e.weights["W"].draw


def test_truncated_normal_is_corrected() -> None:
    net = from_text("name: t\nsymbols: {n: {}}\ninputs: {x: {channels: n}}\nnodes:\n  - {name: fc, op: linear, in: x, "
                    "out_channels: n, variance: 2/fan_in, distribution: truncated_normal}")
    law = derive(net).weights["fc"]
    assert law.variance == 2 / sp.Symbol("n", positive=True)
    assert "1.136847" in law.draw and "2 std" in law.draw  # 1/0.87962566103423978


def test_sharing_and_transposed_use() -> None:
    net = Network("tied")
    x = net.input("x", channels="n")
    h = net.relu(net.linear(x, "m", weight="W", name="up"))
    net.linear(h, "n", weight="W", transpose=True, name="down")
    assert derive(again(net))["down"].second_moment == derive(net)["down"].second_moment


def test_inputs_keep_their_moments() -> None:
    net = Network("inputs")
    net.input("x", channels="n", positions=(28, "T"), mean="1/3", second_moment=2, position_correlation=0.25,
              sample_correlation="rho")
    copy = again(net)
    assert copy.node("x") == net.node("x")
    assert copy.node("x").position_correlation == sp.Rational(1, 4)  # type: ignore[union-attr]


def test_decimals_are_exact() -> None:
    net = from_text("name: d\ninputs: {x: {channels: 1e3, second_moment: 1.10, mean: 1e-3}}")
    layer = net.node("x")
    assert (layer.channels, layer.second_moment, layer.mean) == (  # type: ignore[union-attr]
        1000, sp.Rational(11, 10), sp.Rational(1, 1000))


ASSUMPTIONS = [{}, {"integer": True}, {"real": True}, {"positive": True, "even": True}, {"nonnegative": True},
               {"integer": True, "positive": True}, {"negative": True}, {"commutative": True}, {"finite": True},
               {"nonzero": True, "real": True}, {"positive": False}, {"integer": True, "real": True}]


@pytest.mark.parametrize("assumed", ASSUMPTIONS, ids=str)
def test_symbols_keep_their_assumptions(assumed: dict[str, bool]) -> None:
    net = Network("symbols")
    symbol = sp.Symbol("c", **assumed)
    net.scale(net.input("x", channels=3), symbol)
    assert again(net).symbols == {"c": symbol}


def test_declared_but_unused_symbols_stay() -> None:
    net = simple()
    net.symbol("unused", integer=True)
    assert again(net).symbols["unused"].is_integer


def test_symbols_are_positive_unless_said() -> None:
    net = from_text("symbols: {n: {integer: true}, a: , b: {real: true}}\ninputs: {x: {channels: n}}")
    n, a, b = (net.symbols[k] for k in "nab")
    assert n.is_integer and n.is_positive and a.is_positive and a.is_integer is None
    assert b.is_real and b.is_positive is None


def test_nested_blocks() -> None:
    net = Network("nested", preserve="backward", source="a: \"source\" # with signs")
    inner = Network("inner")
    z = inner.input("z", channels="n")
    inner.relu(inner.linear(z, "n", variance="2/fan_in"))
    middle = Network("middle", source="theirs")
    u = middle.input("u", channels="n")
    middle.add(u, middle.block(inner, u, repeat="L", name="deep"), weights=(1, "1/sqrt(L)"))
    x = net.input("x", channels="n")
    net.block(middle, x, repeat=3, name="stack")
    copy = again(net)
    block = copy.node("stack")
    assert isinstance(block, BlockNode) and block.repeat == 3 and block.body == middle


def test_block_with_several_inputs_and_outputs() -> None:
    body = Network("pair")
    a, b = body.input("a", channels=4), body.input("b", channels=4)
    body.output(body.add(a, b), body.relu(b))
    net = Network("outer")
    x, y = net.input("x", channels=4), net.input("y", channels=4)
    p, q = net.block(body, x, y, repeat=2, name="blk")
    net.add(p, q, name="y2")
    assert [h.key for h in again(net).inputs_of("y2")] == ["blk:0", "blk:1"]


def test_block_inputs_take_their_shape_from_outside() -> None:
    net = from_text("symbols: {n: {}}\ninputs: {x: {channels: n, positions: 5}}\nnodes:\n"
                    "  - {name: b, op: block, in: x, inputs: {z: }, nodes: [{name: r, op: relu, in: z}]}")
    block = net.node("b")
    assert isinstance(block, BlockNode)
    inner = block.body.node("z")
    assert isinstance(inner, InputNode) and inner.channels == net.symbols["n"] and inner.positions == (5,)


def test_split_ports() -> None:
    net = Network("split")
    a, b = net.split(net.input("x", channels=12), 8)
    net.relu(b)
    net.output(a)
    again(net)


def test_input_among_the_nodes() -> None:
    net = Network("late")
    h = net.relu(net.input("x", channels=3), name="h")
    net.add(h, net.input("late", channels=3))
    assert [n for n, _ in again(net).nodes()] == ["x", "h", "late", "add_1"]


@pytest.mark.parametrize("name", ["true", "null", "12", "1e5", "- a", "a b", "é", "*x", "a,b", "#", "", " a", "0x1f",
                                  "\u2028", "\x85", "\U0001f600", "a\nb", "'", "\\", "a: b", "~", ".5", "=", "<<"])
def test_names_of_any_text(name: str) -> None:
    if not name:
        return
    net = Network(name, source=name)
    h = net.input("x", channels="n")
    try:
        net.linear(h, "n", name=name, weight=name)
    except InputError:
        return
    again(net)


def test_activations() -> None:
    for function in ("relu", "gelu", "leaky_relu(0.2)", "x*erf(x)", "where(x > 1, x, tanh(x)/2)", "identity", "elu"):
        net = Network("f")
        net.activation(net.input("x", channels=3), function)
        again(net)
    net = Network("symbolic")
    net.activation(net.input("x", channels=3), "leaky_relu(a)")
    again(net)


def test_activation_parameters_are_fields() -> None:
    text = "inputs: {x: {channels: 3}}\nnodes:\n  - {name: a, op: leaky_relu, in: x, negative_slope: 0.2}\n"
    other = "inputs: {x: {channels: 3}}\nnodes:\n  - {name: a, op: activation, in: x, function: leaky_relu(1/5)}\n"
    assert from_text(text) == from_text(other)


def test_floats_in_expressions_become_exact() -> None:
    net = simple(variance=sp.Float(0.1) * sp.Symbol("c", positive=True))
    again(net)


def test_networkx_graph() -> None:
    g: nx.MultiDiGraph[int] = nx.MultiDiGraph(name="g")
    g.add_node(0, op="input", channels="n")
    g.add_node(1, op="linear", out_channels="n", variance="1/fan_in")
    g.add_edge(0, 1)
    again(Network.from_networkx(g))


def test_what_a_file_cannot_say(tmp_path: Path) -> None:
    net = Network("two of one name")
    x = net.scale(net.input("x", channels=3), sp.Symbol("c", positive=True))
    net.scale(x, sp.Symbol("c", real=True))
    with pytest.raises(InputError, match="assumptions"):
        to_text(net)
    net = Network("reserved")
    net.input("x", channels=sp.Symbol("E", positive=True))
    with pytest.raises(InputError, match="symbol's name"):
        to_text(net)
    with pytest.raises(InputError, match="preserve"):
        to_text(Network("n", preserve="nothing"))
    with pytest.raises(InputError, match="written"):
        save(simple(), tmp_path / "no" / "folder.yaml")
    with pytest.raises(InputError, match="ending"):
        save(simple(), tmp_path / "net.txt")


def test_save_and_load(tmp_path: Path) -> None:
    net = simple(variance="2/fan_in")
    save(net, tmp_path / "net.yaml")
    copy = load(tmp_path / "net.yaml")
    assert copy == net and copy.places["fc"] == f"{tmp_path / 'net.yaml'}:9:5"
    assert copy != Network("other") and copy != 3


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_text_scalars(text: str) -> None:
    try:
        written = scalar(text)
    except InputError:
        assert any(0xD800 <= ord(c) < 0xE000 for c in text)
        return
    for document in (f"a: {written}\n", f"a: [{written}, {written}]\n", f"{{{written}: {{{written}: {written}}}}}\n"):
        tree = read_tree(document, "t")
        assert not tree.errors
        assert tree.value in ({"a": text}, {"a": [text, text]}, {text: {text: text}})


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**40), 10**40), st.text("ab1 :#-\"'é\n", max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3),
                            st.dictionaries(st.text("ab1 :-", max_size=3), inner, max_size=3)),
    max_leaves=8)


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_flow_values(value: object) -> None:
    assert read_tree(f"- {flow(value)}\n", "t").value == [value]
