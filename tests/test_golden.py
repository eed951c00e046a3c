"""Published reference values against derived and solved networks.

The asserted values are copied here; where the reference file lies beside the project, they must equal it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sympy as sp

import varflow as vf

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "golden" / "golden.json"
n, m, k, p, t, a, mu = sp.symbols("n m k p t a mu")


def plain(expr: sp.Expr | None) -> sp.Expr:
    """The expression over symbols without assumptions, so that it can be compared by name."""
    assert expr is not None
    return expr.subs({s: sp.Symbol(s.name) for s in expr.free_symbols}, simultaneous=True)


def layer(function: str = "identity", *, policy: str = "forward", **fields: Any) -> vf.Solution:
    net = vf.Network("layer")
    h = net.linear(net.input("x", channels="n"), "m", name="w", **fields)
    net.activation(h, function)
    return vf.solve(net, preserve=policy)


def node(build: Callable[[vf.Network, vf.Handle], object], field: str = "second_moment", **inputs: Any) -> sp.Expr:
    net = vf.Network("net")
    build(net, net.input("x", channels="n", **inputs))
    return plain(getattr(vf.derive(net)[list(vf.derive(net))[-1]], field))


def stream(length: int, branch: Callable[[vf.Network, vf.Handle], vf.Handle]) -> sp.Expr:
    net = vf.Network("stream")
    x = net.input("x", channels="n")
    for i in range(length):
        x = net.add(x, branch(net, x), name=f"x{i + 1}")
    return plain(vf.derive(net)[f"x{length}"].second_moment)


def relu_branch(net: vf.Network, x: vf.Handle) -> vf.Handle:
    return net.linear(net.relu(net.linear(x, "n", variance="1/fan_in")), "n", variance="2/fan_in")


def batch_norm_rate(batch: int | None) -> float:
    """Gradient growth per layer of a deep batch-norm ReLU network."""
    net = vf.Network("rate")
    x = net.input("x", channels=100)
    for i in range(6):
        x = net.linear(net.relu(net.batch_norm(x, batch=batch)), 100, variance="2/fan_in", name=f"w{i}")
    g = {key: v["grad_second_moment"] for key, v in vf.derive(net).numeric().items()}
    return float(g["w1"] / g["w2"])


def gate(function: str) -> float:
    net = vf.Network("gate")
    first, second = net.split(net.linear(net.input("x", channels=64), 128, variance="1/fan_in"), 64)
    net.multiply(first, net.activation(second, function), name="y")
    return float(vf.derive(net)["y"].numeric()["second_moment"])


def post_norm(net: vf.Network, x: vf.Handle) -> object:
    h = net.linear(net.relu(net.linear(net.layer_norm(x), "n", variance="1/fan_in")), "n", variance="1/fan_in")
    return net.add(net.layer_norm(x), h)


def default_layer(what: str) -> sp.Expr:
    net = vf.Network("default")
    net.relu(net.linear(net.input("x", channels="n"), "n", variance="1/(3*fan_in)", distribution="uniform", name="w"))
    d = vf.derive(net)
    return plain(d.weights["w"].variance if what == "variance" else d["activation_1"].second_moment)


BOUND = sp.sqrt(3 * plain(layer(policy="harmonic")["w"].variance))
VALUES: dict[str, tuple[str, object]] = {
    "torch_gain_leaky": ("sqrt(2/(1+a**2))", plain(layer("leaky_relu(a)")["w"].init_gain)),
    "torch_linear_default": ("1/(3*n)", default_layer("variance")),
    "torch_linear_relu_gain": ("1/6", default_layer("gain")),
    "xavier_var": ("2/(i+o)", plain(layer(policy="harmonic")["w"].variance)),
    "xavier_uniform_bound": ("sqrt(6/(i+o))", BOUND),
    "he_normal_std": ("sqrt(2/n)", plain(layer("relu")["w"].std)),
    "lecun_std": ("sqrt(1/n)", plain(layer()["w"].std)),
    "orth_relu": ("sqrt(2)", plain(layer("relu", distribution="orthogonal")["w"].init_gain)),
    "prelu_gain_025": ("sqrt(2/(1+0.25**2))", plain(layer("prelu(0.25)")["w"].init_gain)),
    "dropout_m2": ("1/(1-p)", node(lambda net, x: net.dropout(x, "p"))),
    "dropout_var": ("(s2+p*mu**2)/(1-p)", node(lambda net, x: net.dropout(x, "p"), "variance", mean="mu",
                                               second_moment="s2 + mu**2")),
    "nfresnet_var": ("1+l*alpha**2", stream(4, lambda net, x: net.scale(
        net.linear(net.layer_norm(x), "n", variance="1/fan_in"), "alpha"))),
    "skipinit_var": ("l+1", stream(5, lambda net, x: net.linear(net.layer_norm(x), "n", variance="1/fan_in"))),
    "res_relu_growth": ("2**L", stream(6, relu_branch)),
    "stable_resnet": ("(1+1/L)**L", stream(5, lambda net, x: net.scale(relu_branch(net, x), "1/sqrt(5)"))),
    "ys_relu_B": ("1+sv*sw/2", stream(1, lambda net, x: net.linear(
        net.relu(net.linear(x, "n", variance="sw/fan_in")), "n", variance="sv/fan_in"))),
    "us_add": ("1/sqrt(2)", 1 / sp.sqrt(node(lambda net, x: net.add(x, net.linear(x, "n", variance="1/fan_in"))))),
    "edm2_mpsum": ("sqrt((1-t)**2+t**2)", sp.sqrt(node(lambda net, x: net.add(
        x, net.linear(x, "n", variance="1/fan_in"), weights=("1 - t", "t"))))),
    "inception_sum": ("m", node(lambda net, x: net.add(*(net.linear(x, "n", variance="1/fan_in") for _ in range(4))))),
    "postln_norm": ("3/2", node(post_norm)),
    "kedia_linear_var": ("d_in*w*(s2+mu**2)", node(lambda net, x: net.linear(x, "m", variance="w"), mean="mu",
                                                   second_moment="s2 + mu**2")),
    "kedia_relu_var": ("(pi-1)/(2*pi)*s2", node(lambda net, x: net.relu(net.linear(x, "n", variance="s2/fan_in")),
                                                "variance")),
    "avgpool": ("1/k", node(lambda net, x: net.mean_pool(x), positions=["k"])),
    "uniform_attn": ("(1+(T-1)*rho)/T", node(lambda net, x: net.mean_pool(x), positions=["T"],
                                             position_correlation="rho")),
    "rigl_sparse": ("2/k", plain(layer("relu", keep="p")["w"].variance)),
    "m2_glu": ("0.293379035858", gate("sigmoid")),
    "m2_geglu": ("0.42522148257", gate("gelu")),
    "m2_swiglu": ("0.355775519817", gate("silu")),
    "bn_relu_8": ("1.7881899766587481", batch_norm_rate(8)),
    "bn_relu_32": ("1.5219528305518795", batch_norm_rate(32)),
    "bn_relu_inf": ("pi/(pi-1)", batch_norm_rate(None)),
}
SETTING = {"nfresnet_var": {"l": 4}, "skipinit_var": {"l": 5}, "res_relu_growth": {"L": 6}, "stable_resnet": {"L": 5},
           "inception_sum": {"m": 4}, "kedia_linear_var": {"d_in": sp.Symbol("n")}, "xavier_var": {"i": n, "o": m},
           "xavier_uniform_bound": {"i": n, "o": m}, "rigl_sparse": {"k": p * n}}
TOLERANCE = {"bn_relu_8": 2e-3, "bn_relu_32": 2e-3, "postln_norm": 1e-9, "m2_glu": 1e-9, "m2_geglu": 1e-9,
             "m2_swiglu": 1e-9}


@pytest.mark.parametrize("name", sorted(VALUES))
def test_published_value(name: str) -> None:
    published, ours = VALUES[name]
    expected = sp.sympify(published).subs(SETTING.get(name, {}))
    difference = sp.sympify(ours) - expected
    names = sorted(difference.free_symbols | expected.free_symbols, key=str)
    at = {s: sp.Rational(2 * i + 3, 11) for i, s in enumerate(names)}
    size = abs(float(expected.subs(at)))
    assert abs(float(difference.subs(at))) <= TOLERANCE.get(name, 1e-12) * size


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference values are not beside this checkout")
def test_the_copies_are_the_reference() -> None:
    reference = {e["id"]: e["value"] for e in json.loads(REFERENCE.read_text())}
    assert {name: reference[name] for name in VALUES} == {name: published for name, (published, _) in VALUES.items()}


def test_disagreeing_constants_are_not_reproduced() -> None:
    tanh, silu = (vf.gain(name).numeric()["init_gain"] for name in ("tanh", "silu"))
    assert tanh is not None
    assert silu is not None
    assert abs(tanh - 5 / 3) > 0.05
    assert abs(silu - 2**0.5) > 0.2
