"""The graphs that come with varflow: each loads, round-trips and derives; published numbers come out."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import FrameType

import pytest
import sympy as sp

from varflow.derive import Derivation, derive
from varflow.gain import gain
from varflow.load import from_text, graph_names, load, to_text
from varflow.load.shipped import graph_folder
from varflow.network import Network

NAMES = graph_names()
SECONDS = 100


@contextmanager
def limited(seconds: int = SECONDS) -> Iterator[None]:
    """A block that fails instead of running on."""
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def text_of(name: str) -> str:
    return (graph_folder() / f"{name}.yaml").read_text(encoding="utf-8")


@cache
def derived(name: str) -> Derivation:
    with limited():
        return derive(load(name))


def symbol(name: str, **assumptions: bool) -> sp.Symbol:
    return sp.Symbol(name, positive=True, **assumptions)


def known(network: Network, scales: Mapping[str, sp.Expr | int]) -> Derivation:
    """The derivation with given scales s = fan_in Var for weights."""
    fan = sp.Symbol("fan_in", positive=True)
    return derive(network.substitute({}, {k: sp.sympify(v) / fan for k, v in scales.items()}))


def formula(d: Derivation, node: str) -> sp.Expr:
    """A node's second moment, which must have a formula."""
    q = d[node].second_moment
    assert q is not None
    return q


n, L = symbol("n", integer=True), symbol("L", integer=True)


@pytest.mark.parametrize("name", NAMES)
def test_loads_and_round_trips(name: str) -> None:
    net = load(name)
    assert from_text(to_text(net)) == net
    assert net.source and net.preserve == "forward" and net.outputs()
    assert text_of(name).startswith("# ")
    assert load(str(graph_folder() / f"{name}.yaml")) == net


@pytest.mark.parametrize("name", NAMES)
def test_derives(name: str) -> None:
    d = derived(name)
    for handle in d.network.outputs():
        law = d[handle.key]
        assert law.exactness in ("exact", "wide", "closure")
        assert law.grad_exactness in ("exact", "wide", "closure")


def test_every_published_graph_is_there() -> None:
    expected = """mlp_tanh mlp_relu mlp_leaky framework_default small_random unit_variance autoencoder40
        hinton_autoencoder autoencoder_tied residual_block residual_mlp residual_mlp_scaled residual_mlp_depth
        postact_residual highway50 dense_concat nerf_mlp self_normalizing dropout_mlp sparse_mlp shared_depth
        gated_ffn mlp_batchnorm two_branch_gate"""
    assert set(expected.split()) <= set(NAMES)


def test_framework_default() -> None:
    """S03: gain 1/3 per linear layer, 1/6 behind a ReLU; (1/3)(1/6)^10 is left of a wide network's signal."""
    d = derived("framework_default")
    assert sp.expand(formula(d, "fc_in") - sp.Rational(1, 3) - 1 / (3 * n)) == 0
    first, second = (sp.limit(formula(d, f"layer[{k}].fc"), n, sp.oo) for k in (0, 1))
    assert first == sp.Rational(1, 18) and second / first == sp.Rational(1, 6)
    assert sp.limit(formula(d, "layer[9].fc"), n, sp.oo) == sp.Rational(1, 3 * 6**10)
    assert d.weights["fc_in"].variance == 1 / (3 * n)
    assert d.weights["fc_in"].distribution == "uniform"


def test_small_random() -> None:
    """S04: gain 1e-4 fan_in per layer; at 500 units ten layers leave 1e-13."""
    d = derived("small_random")
    assert d["layer[0].fc"].local_gain in (None, n / 10**4)
    assert formula(d, "layer[0].fc") == n / 10**4
    assert formula(d, "layer[9].fc") == (n / 10**4) ** 10
    assert float(formula(d, "layer[9].fc").subs(n, 500)) == pytest.approx(9.765625e-14)


def test_unit_variance() -> None:
    """S05: gain 4096 per layer."""
    d = derived("unit_variance")
    for k in range(1, 5):
        assert formula(d, f"fc{k}") == 4096**k
    assert d["fc3"].local_gain == 4096


def test_residual() -> None:
    """S14: q doubles, 2^L over L blocks; 1/sqrt(2) keeps it; 1/sqrt(L) bounds it by e."""
    d = derived("residual_block")
    s1, s2 = d.unknowns()["fc1"], d.unknowns()["fc2"]
    assert sp.expand(formula(d, "y") - 1 - s1 * s2 / 2) == 0
    assert formula(d, "y").subs({s1: 1, s2: 2}) == 2
    q = {name: formula(derived(name), "stream")
         for name in ("residual_mlp", "residual_mlp_scaled", "residual_mlp_depth")}
    assert q["residual_mlp"] == 2**L
    assert q["residual_mlp_scaled"] == 1
    assert sp.simplify(q["residual_mlp_depth"] - (1 + 1 / L) ** L) == 0
    assert sp.limit(q["residual_mlp_depth"], L, sp.oo) == sp.E


def test_residual_with_a_number_of_blocks() -> None:
    text = text_of("residual_mlp").replace("repeat: L", "repeat: 5")
    assert derive(from_text(text))["stream[4].y"].second_moment == 32


def test_autoencoder40() -> None:
    """S18: He keeps q, Glorot's variance on a square layer halves it, 0.01 N(0, 1) loses it."""
    net = load("autoencoder40")
    unknown = derived("autoencoder40").unknowns()
    assert len(unknown) == 40
    groups = {"fc_in", "encoder.fc", "decoder.fc"}
    he = known(net, {g: 2 if g != "fc_in" else 1 for g in groups})
    assert formula(he, "decoder[19].fc") == 1
    glorot = known(net, dict.fromkeys(groups, 1))
    assert formula(glorot, "decoder[19].fc") == sp.Rational(1, 2**39)
    small = known(net, dict.fromkeys(groups, n / 10**4))
    assert float(formula(small, "decoder[19].fc").subs(n, 512)) < 1e-60


def test_tied_autoencoder() -> None:
    """S19: 3 s^2/4 on a square tied layer, not s^2/2."""
    d = derived("autoencoder_tied")
    s = d.unknowns()["W"]
    q = formula(d, "y").subs(symbol("m", integer=True), n)
    assert sp.expand(q - 3 * s**2 / 4) == 0


def test_dropout() -> None:
    """S27: 1/(1 - p) per mask, made up for by weights of 2 (1 - p)/fan_in."""
    p, p_in = symbol("p"), symbol("p_in")
    d = derived("dropout_mlp")
    assert sp.simplify(formula(d, "drop0") - 1 / (1 - p_in)) == 0
    assert sp.simplify(formula(d, "drop1") / formula(d, "h1") - 1 / (1 - p)) == 0
    right = {"fc1": 1 - p_in, **dict.fromkeys(("fc2", "fc3", "fc_out"), 2 * (1 - p))}
    solved = known(load("dropout_mlp"), right)
    for node in ("fc1", "fc2", "fc3", "fc_out"):
        assert sp.simplify(formula(solved, node) - 1) == 0


def test_sparse() -> None:
    """S28: plain He falls as p^L, 2/(p n) holds."""
    p = symbol("p")
    net = load("sparse_mlp")
    plain = net.substitute({}, {"fc1": sp.Rational(1, 784), "fc2": sp.Rational(2, 300), "fc3": sp.Rational(2, 100)})
    assert derive(plain)["fc3"].second_moment == p**3
    corrected = known(net, {"fc1": 1, "fc2": 2, "fc3": 2})
    assert formula(corrected, "fc3") == 1
    assert corrected.weights["fc2"].variance == 2 / (300 * p)


def test_dense_block_features_do_not_depend_on_depth() -> None:
    """S16 for linear layers: each new feature map has s/2, hence 1 with He."""
    d = derived("dense_concat")
    for k in range(1, 7):
        assert sp.expand(formula(d, f"fc{k}") - d.unknowns()[f"fc{k}"] / 2) == 0


def test_shared_depth() -> None:
    """One block for all layers: 50, where independent blocks give 1 + 12 E[gelu^2] = 6.1."""
    assert derived("shared_depth")["layer[11].y"].numeric({"n": 1024})["second_moment"] == pytest.approx(50.4, abs=0.2)


def test_self_normalizing() -> None:
    """SELU keeps mean 0 and second moment 1 with s = 1."""
    d = derived("self_normalizing")
    numbers = d["layer[31].h"].numeric({"n": 512, "s_layer.fc": 1.0})
    assert numbers["second_moment"] == pytest.approx(1, abs=1e-6)
    assert numbers["mean"] == pytest.approx(0, abs=1e-6)


def test_leaky() -> None:
    """S02: Var = 2/((1 + a^2) fan_in)."""
    a, s = symbol("a"), derived("mlp_leaky").unknowns()["layer[0].fc"]
    q = formula(derived("mlp_leaky"), "layer[0].fc").subs(s, 2 / (1 + a**2))
    assert sp.simplify(q - derived("mlp_leaky").unknowns()["fc_in"]) == 0


def test_gated_branch_is_the_product_of_its_factors() -> None:
    d = derived("gated_ffn")
    values = {"d": 256, "m": 512, "s_gate": 1.0, "s_up": 1.0, "s_down": 1.0}
    silu = gain("silu").second_moment
    assert d["y"].numeric(values)["second_moment"] == pytest.approx(1 + float(silu), rel=1e-8)


def test_batch_norm_starts_anew() -> None:
    for k in range(4):
        d = derived("mlp_batchnorm")
        assert formula(d, f"layer[{k}].norm") == 1


def test_fans_of_the_encoded_inputs() -> None:
    d = derived("nerf_mlp")
    fans = {name: int(w.fan_in) for name, w in d.weights.items()}
    assert (fans["fc1"], fans["fc6"], fans["fc9"]) == (60, 316, 280)
    assert [int(d.weights[k].fan_out) for k in ("fc_density", "fc_colour")] == [1, 3]


def test_no_graph_repeats_a_layer_by_hand_that_nothing_reads() -> None:
    for name in NAMES:
        net = load(name)
        declared = {h.node for h in net.declared_outputs}
        sinks = {v for v in net.graph if net.graph.out_degree(v) == 0}
        assert not declared or sinks <= declared, name
        assert not re.search(r"\t| $", text_of(name), re.MULTILINE), name
