"""Laws in symbols: the traps of sharing, positions, normalization and channel identity (THEORY.md's values)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
import sympy as sp

import varflow as vf
from varflow.network import Handle, Network
from varflow.symbols import positive

Build = Callable[[Network], object]
n, m, s, q = (positive(k) for k in "nmsq")


def derived(build: Build, name: str = "net") -> vf.Derivation:
    """The derivation of a network that ``build`` fills."""
    net = Network(name)
    build(net)
    return vf.derive(net)


def same(found: sp.Expr | None, expected: object) -> None:
    """Equal as formulas."""
    assert found is not None
    assert sp.simplify(found - sp.sympify(expected)) == 0, found


def dense(net: Network, x: Handle, variance: object = "s/n", out: object = "n", **fields: object) -> Handle:
    """A linear layer."""
    return net.linear(x, out, variance=variance, **fields)  # type: ignore[arg-type]


# -- sharing -------------------------------------------------------------------------------------------------


def _residual(net: Network) -> None:
    x = net.input("x", "n", second_moment="q")
    net.add(x, net.relu(x), name="y")


def _shared(net: Network) -> None:
    x = net.input("x", "n", second_moment="q")
    net.add(dense(net, x, weight="W"), dense(net, net.relu(x), weight="W"), name="y")


def _tied(net: Network) -> None:
    """W of m x n with Var s/n, forward and transposed."""
    x = net.input("x", "n", second_moment="q")
    h = net.relu(dense(net, x, out="m", weight="W"))
    dense(net, h, weight="W", transpose=True, name="y")


def _haar(net: Network) -> None:
    x = net.input("x", "n", second_moment="q")
    h = net.relu(dense(net, x, "1/n", weight="W", distribution="orthogonal"))
    dense(net, h, "1/n", weight="W", transpose=True, distribution="orthogonal", name="y")


def _relu_ended(net: Network) -> None:
    x = net.input("x", "n", second_moment="q")
    net.add(*(net.relu(dense(net, x, "2/n")) for _ in range(3)), name="y")


@pytest.mark.parametrize(("build", "expected", "gradient"), [
    (_residual, 5 * q / 2, sp.Rational(5, 2)),
    (_shared, 5 * s * q / 2, 5 * s / 2),
    (_tied, q * (m**2 * s**2 / (4 * n**2) + m * s**2 / (2 * n)), m**2 * s**2 / (4 * n**2) + m * s**2 / (2 * n)),
    (_haar, q / 2, sp.Rational(1, 2)),
    (_relu_ended, q * (3 + 6 / sp.pi), 3),
], ids=["residual", "shared", "tied", "haar", "relu-ended"])
def test_sharing(build: Build, expected: sp.Expr, gradient: sp.Expr) -> None:
    d = derived(build)
    same(d["y"].second_moment, expected)
    same(d["x"].grad_second_moment, gradient)
    assert d["y"].tier == "closed"


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_shared_depth(depth: int) -> None:
    """x += W x with one W: sum_k C(L, k)^2 s^k."""
    def build(net: Network) -> None:
        x = net.input("x", "n")
        for k in range(depth):
            x = net.add(x, dense(net, x, weight="W"), name=f"y{k}")

    d = derived(build)
    expected = sum(sp.binomial(depth, k) ** 2 * s**k for k in range(depth + 1))
    same(d[f"y{depth - 1}"].second_moment, expected)
    same(d["x"].grad_second_moment, expected)


def test_shared_transformer_blocks() -> None:
    """x += W2 gelu(W1 ln(x)), the same weights in 12 blocks: 50 by brute force, not 6.1."""
    def build(net: Network) -> None:
        x = net.input("x", "n")
        for k in range(12):
            h = net.activation(dense(net, net.layer_norm(x), "1/n", weight="W1"), "gelu")
            x = net.add(x, dense(net, h, "1/n", weight="W2"), name=f"y{k}")

    value = derived(build)["y11"].numeric({"n": 512})["second_moment"]
    assert value == pytest.approx(50.4, rel=0.01)


# -- channel identity ----------------------------------------------------------------------------------------


def test_permuted_channels_are_other_channels() -> None:
    def build(net: Network) -> None:
        x = net.input("x", "n")
        p = net.permute(x, permutation="P")
        net.relu(net.add(x, p, name="sum"), name="y")
        net.relu(net.add(p, net.permute(x, permutation="P"), name="twice"), name="z")

    d = derived(build)
    same(d["sum"].second_moment, 2)
    same(d["y"].second_moment, 1)
    same(d["twice"].second_moment, 4)


def test_weight_reused_on_permuted_channels() -> None:
    """W^T perm(erf(W x)) has no part along x: coordinate i meets row pi(i)."""
    def build(net: Network) -> None:
        h = net.activation(dense(net, net.input("x", "n"), "1/n", weight="W"), "tanh")
        dense(net, net.permute(h), "1/n", weight="W", transpose=True, name="y")
        net.identity(h, name="h")

    d = derived(build)
    at = {"n": 64}
    assert d["y"].numeric(at)["second_moment"] == pytest.approx(d["h"].numeric(at)["second_moment"], rel=1e-9)


def test_gradients_of_parts_return_through_a_permutation() -> None:
    """A quarter of the permuted channels is read three times as strongly, the rest through relu: 9/4 + 3/8."""
    def build(net: Network) -> None:
        x = net.input("x", 128)
        a, b = net.split(net.permute(dense(net, x, "1/128", out=128, name="fc")), 32, 96)
        net.scale(a, 3, name="a")
        net.relu(b, name="b")

    d = derived(build)
    same(d["fc"].grad_second_moment, sp.Rational(9, 4) + sp.Rational(3, 8))


def test_halves_of_a_projection_are_independent() -> None:
    def build(net: Network) -> None:
        a, b = net.split(dense(net, net.input("x", "n"), "1/n", out="2*n"), "n", "n")
        net.multiply(a, b, name="y")
        net.multiply(a, a, name="square")

    d = derived(build)
    same(d["y"].second_moment, 1)
    same(d["y"].mean, 0)
    same(d["square"].second_moment, 3)


def test_blocks_are_weighed_by_width() -> None:
    """96 channels at 4 and 32 at 0: 3; a product with oneself has mean q and second moment 3 q^2."""
    def build(net: Network) -> None:
        a = net.input("a", 96, second_moment=4)
        x = net.concat(a, net.scale(net.input("b", 32), 0), name="x")
        net.linear(x, "n", variance="1/fan_in", name="y")
        net.multiply(a, a, name="square")

    d = derived(build)
    same(d["x"].second_moment, 3)
    same(d["y"].second_moment, 3)
    same(d["square"].second_moment, 48)
    same(d["square"].mean, 4)


# -- streams -------------------------------------------------------------------------------------------------


def test_post_activation_stream() -> None:
    """x <- relu(x + g): E x_L = sum 1/sqrt(2 pi k), E x_L^2 = L/2 + sum 1/sqrt(j k) / (2 pi) over j + k <= L."""
    depth = 3

    def build(net: Network) -> None:
        x = net.relu(net.input("g1", "n"), name="x1")
        for k in range(2, depth + 1):
            x = net.relu(net.add(x, net.input(f"g{k}", "n")), name=f"x{k}")

    d = derived(build)
    for depth in (1, 2, 3):
        at = {"n": 8}
        found = d[f"x{depth}"].numeric(at)
        pairs = [(j, k) for j in range(1, depth) for k in range(1, depth) if j + k <= depth]
        second = depth / 2 + sum(1 / math.sqrt(j * k) for j, k in pairs) / (2 * math.pi)
        tolerance = 1e-8 if d[f"x{depth}"].tier != "population" else 0.01
        assert found["second_moment"] == pytest.approx(second, rel=tolerance)
        mean = sum(1 / math.sqrt(2 * math.pi * k) for k in range(1, depth + 1))
        assert found["mean"] == pytest.approx(mean, rel=tolerance)


# -- normalization -------------------------------------------------------------------------------------------


def _batch_norm(batch: int | None) -> Build:
    def build(net: Network) -> None:
        h = dense(net, net.input("x", "n"), "1/n", name="fc")
        net.relu(net.batch_norm(h, batch=batch, name="norm"), name="y")

    return build


def test_batch_norm_forward() -> None:
    """Spherical, not Gaussian: at B = 8, E relu = 0.4134."""
    d = derived(_batch_norm(8))
    same(d["norm"].second_moment, 1)
    same(d["y"].second_moment, sp.Rational(1, 2))
    assert d["y"].numeric({"n": 8})["mean"] == pytest.approx(0.41340, abs=2e-5)
    wide = derived(_batch_norm(None))
    assert wide["y"].numeric({"n": 8})["mean"] == pytest.approx(1 / math.sqrt(2 * math.pi), rel=1e-9)


@pytest.mark.parametrize("batch", [4, 5, 8, 32])
def test_batch_norm_backward(batch: int) -> None:
    """(B-2)/(B-3) for an independent cotangent."""
    def build(net: Network) -> None:
        net.batch_norm(net.linear(net.input("x", "n"), "n", variance="1/n", name="fc"), batch=batch, name="y")

    same(derived(build)["fc"].grad_second_moment, sp.Rational(batch - 2, batch - 3))


def _explosion(batch: int | None) -> float:
    """((B-1 + J'(c)) / (1 - J(c)) - 1) / (B-3), J the arc-cosine kernel of relu, c = -1/(B-1)."""
    if batch is None:
        return math.pi / (math.pi - 1)
    c = -1 / (batch - 1)
    slope = (math.pi - math.acos(c)) / math.pi
    kernel = math.sqrt(1 - c * c) / math.pi + c * slope
    return ((batch - 1 + slope) / (1 - kernel) - 1) / (batch - 3)


@pytest.mark.parametrize("batch", [5, 8, 32, None])
def test_gradients_of_a_batch_norm_chain(batch: int | None) -> None:
    """Relu and batch norm explode at every depth: Yang et al. 2019 (arXiv:1902.08129)."""
    def build(net: Network) -> None:
        x = net.input("x", "n")
        for k in range(6):
            x = net.relu(net.batch_norm(net.linear(x, "n", variance="1/n"), batch=batch), name=f"h{k}")

    numbers = derived(build).numeric({"n": 64})
    ratio = numbers["h1"]["grad_second_moment"] / numbers["h2"]["grad_second_moment"]
    assert ratio == pytest.approx(_explosion(batch), rel=1e-9)


def test_layer_and_rms_norm() -> None:
    def build(net: Network) -> None:
        x = net.input("x", "n", mean="1/2", second_moment="q")
        net.layer_norm(x, gamma=2, beta="1/3", name="ln")
        net.rms_norm(x, name="rms")

    d = derived(build)
    same(d["ln"].second_moment, 4 + sp.Rational(1, 9))
    same(d["ln"].mean, sp.Rational(1, 3))
    same(d["rms"].second_moment, 1)
    same(d["x"].grad_second_moment, 4 / (q - sp.Rational(1, 4)) + 1 / q)


# -- masks, bias, positions ----------------------------------------------------------------------------------


def test_masks() -> None:
    def build(net: Network) -> None:
        x = net.input("x", "n", second_moment="q")
        a, b = net.dropout(x, "1/4", mask="m"), net.dropout(x, "1/4", mask="m")
        net.add(a, b, name="shared")
        net.add(net.dropout(x, "1/4"), net.dropout(x, "1/4"), name="own")

    d = derived(build)
    same(d["shared"].second_moment, q * sp.Rational(16, 3))
    same(d["own"].second_moment, q * (sp.Rational(8, 3) + 2))


def test_drop_path_keeps_a_sample_together() -> None:
    """One mask for all positions: the mean over positions keeps E mask^2 = 1/keep."""
    def build(net: Network) -> None:
        x = net.input("x", "n", positions=(4,), position_correlation="c")
        net.mean_pool(net.drop_path(x, p="1/4"), name="path")
        net.mean_pool(net.dropout(x, p="1/4"), name="drop")

    c = sp.Symbol("c", real=True)
    d = derived(build)
    found = {k: d[k].numeric({"n": 8, "c": 0.3})["second_moment"] for k in ("path", "drop")}
    assert found["path"] == pytest.approx(4 / 3 * (1 + 3 * 0.3) / 4)
    assert found["drop"] == pytest.approx((4 / 3 + 3 * 0.3) / 4)
    assert c.name in d.free_symbols()


def test_mean_pooling() -> None:
    """P positions of correlation c: (1 + (P-1) c) / P forward; backward 1/P^2, the same at every position."""
    def build(net: Network) -> None:
        x = net.input("x", "n", positions=(2, 2), position_correlation="1/4")
        net.mean_pool(net.relu(dense(net, x, "2/n", name="fc"), name="h"), name="y")

    d = derived(build)
    r = sp.Rational(1, 4)
    c = (sp.sqrt(1 - r**2) + r * (sp.pi - sp.acos(r))) / sp.pi
    assert d["y"].numeric({"n": 8})["second_moment"] == pytest.approx(float((1 + 3 * c) / 4))
    same(d["h"].grad_second_moment, sp.Rational(1, 16))
    same(d["x"].grad_second_moment, sp.Rational(1, 16))


def test_bias_is_shared_by_positions() -> None:
    def build(net: Network) -> None:
        x = net.input("x", "n", positions=(4,))
        net.mean_pool(net.bias(x, variance="1/2"), name="y")

    same(derived(build)["y"].second_moment, sp.Rational(1, 4) + sp.Rational(1, 2))


def test_bias_is_shared_by_samples() -> None:
    """A large batch norm removes a bias: it is the same in all samples."""
    def build(net: Network) -> None:
        net.batch_norm(net.bias(net.input("x", "n"), variance=3, name="b"), name="y")

    d = derived(build)
    same(d["b"].second_moment, 4)
    same(d["b"].grad_second_moment, 1)


# -- forms that must not matter ------------------------------------------------------------------------------


def _named(names: dict[str, str], swap: bool) -> nx.MultiDiGraph[str]:
    """Two branches over one input, nodes added in either order."""
    g: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    nodes = [
        ("x", {"op": "input", "channels": "n", "second_moment": "q"}),
        ("a", {"op": "linear", "out_channels": "n", "variance": "2/fan_in", "weight": "A"}),
        ("r", {"op": "activation", "function": "relu"}),
        ("b", {"op": "linear", "out_channels": "n", "variance": "1/fan_in", "weight": "B"}),
        ("t", {"op": "activation", "function": "gelu"}),
        ("y", {"op": "add"}),
    ]
    for name, fields in reversed(nodes) if swap else nodes:
        g.add_node(names[name], **fields)
    edges = [("x", "a", 0), ("a", "r", 0), ("r", "b", 0), ("a", "t", 0), ("b", "y", 0), ("t", "y", 1), ("r", "y", 2)]
    for u, v, port in reversed(edges) if swap else edges:
        g.add_edge(names[u], names[v], port=port)
    return g


def test_names_and_order_do_not_matter() -> None:
    plain = {k: k for k in "xarbty"}
    other = {"x": "zeta", "a": "y", "r": "b", "b": "x", "t": "a", "y": "end"}
    first = vf.derive(Network.from_networkx(_named(plain, False)))
    for names, swap in ((other, False), (plain, True), (other, True)):
        second = vf.derive(Network.from_networkx(_named(names, swap)))
        for k in plain:
            one, two = first[k], second[names[k]]
            for field in ("mean", "second_moment", "grad_second_moment"):
                assert sp.expand(getattr(one, field) - getattr(two, field)) == 0, (k, field)


@pytest.mark.parametrize("text", ["relu", "Piecewise((x, x > 0), (0, True))", "(x + abs(x))/2", "max(x, 0)"])
def test_spellings_of_relu(text: str) -> None:
    def build(net: Network) -> None:
        x = net.input("x", "n", second_moment="q")
        h = net.activation(dense(net, x, "1/n"), text, name="h")
        net.add(x, net.activation(x, text), dense(net, h, "2/n"), name="y")

    d = derived(build)
    same(d["h"].second_moment, q / 2)
    same(d["h"].mean, sp.sqrt(q) / sp.sqrt(2 * sp.pi))
    same(d["y"].second_moment, 5 * q / 2 + q)
    same(d["x"].grad_second_moment, sp.Rational(5, 2) + 1)


@pytest.mark.parametrize("times", [1, 3, 7])
def test_a_repeated_block_that_ends_in_a_norm(times: int) -> None:
    """Its stream keeps 0^l of what entered; the gradient's factors have no closed product, its numbers are those of
    the unrolled blocks."""
    def stack(count: int | str) -> Any:
        body = vf.Network("body")
        z = body.input("z", "n")
        body.layer_norm(body.add(z, body.tanh(body.linear(z, "n", variance="1/fan_in"))))
        net = vf.Network("stack")
        net.block(body, net.input("x", "n"), repeat=count, name="y")
        return vf.derive(net)["x"]

    assert stack("L").grad_second_moment is None
    found = stack("L").numeric({"n": 64, "L": times})["grad_second_moment"]
    assert found == pytest.approx(stack(times).numeric({"n": 64})["grad_second_moment"], rel=1e-9)
