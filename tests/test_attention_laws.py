"""Laws of attention: the textbook's numbers, formulas against simulation, other rules refuted, what has no formula."""

from __future__ import annotations

from typing import Any

import pytest
import sympy as sp

import varflow as vf
from varflow.errors import UnsupportedError
from varflow.laws.population import run_population
from varflow.laws.softmax import SoftmaxOverlap, SoftmaxResponse, moments
from varflow.lowering import lower
from varflow.network import Network
from varflow.simulate.cpu import simulate
from varflow.verify_widths import ladder, order_of


def block(n: Any = 1024, tokens: Any = 6, heads: Any = 16, rho: Any = "1/3", scale: Any = None, causal: bool = False,
          s: Any = 2, keys: str | None = None) -> Network:
    """Self-attention, its parts as nodes; queries and keys at fan_in variance ``s``, values at 3, the output at 1/2."""
    net = Network("block")
    x = net.input("x", n, (tokens,), position_correlation=rho)
    q = net.linear(x, n, name="q", variance=f"{s}/fan_in")
    k = net.linear(x, n, name="k", variance=f"{s}/fan_in", weight=keys)
    v = net.linear(x, n, name="v", variance="3/fan_in")
    more = {} if scale is None else {"scale": scale}
    logits = net.scores(q, k, heads=heads, name="logits", **more)
    y = net.blend(net.softmax(logits, heads=heads, causal=causal, name="weights"), v, heads=heads, name="y")
    net.linear(y, n, name="o", variance="1/2/fan_in")
    return net


# -- what textbooks say --------------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "scale", "variance"), [(1, 1, "d"), (2, 1, "4*d"), (1, None, "1"), (2, None, "4")])
def test_variance_of_logits(s: int, scale: Any, variance: str) -> None:
    """Xavier (s = 1) and He (s = 2), without and with 1/sqrt(d_k): the textbook's d_k, 4 d_k, 1 and 4."""
    d = sp.Symbol("d", positive=True)
    net = block("h*d", "T", "h", "rho", scale, s=s)
    found = vf.derive(net)["logits"].second_moment
    assert found is not None
    assert sp.expand(found - sp.sympify(variance, locals={"d": d})) == 0
    assert vf.derive(net)["logits"].mean == 0


def test_softmax_sees_what_tokens_do_not_share() -> None:
    T, rho = sp.symbols("T rho", positive=True)
    law = vf.derive(block("h*d", "T", "h", "rho"))
    v = 4 * (1 - rho)
    assert sp.expand(law["weights"].second_moment * T) == SoftmaxOverlap(sp.expand(v), 1, T)
    assert law["weights"].mean == 1 / T
    y = law["y"].second_moment
    assert y is not None
    assert sp.expand(y - 3 * (rho + (1 - rho) * SoftmaxOverlap(sp.expand(v), 1, T))) == 0
    assert law["y"].exactness == "wide" and law["y"].tier == "quadrature"
    assert any("heads" in a for a in law["y"].assumptions)


def test_uniform_limit() -> None:
    """Logits that vanish leave 1/T of what tokens do not share; the gradient of queries vanishes with them."""
    T, rho = sp.symbols("T rho", positive=True)
    law = vf.derive(block("h*d", "T", "h", "rho", scale=0))
    y = law["y"].second_moment
    assert sp.simplify(y - 3 * (rho + (1 - rho) / T)) == 0
    assert law["q"].grad_second_moment == 0
    gradient = law["v"].grad_second_moment
    assert sp.simplify(gradient - sp.Rational(1, 2) / T) == 0


def test_formulas_of_the_block() -> None:
    """THEORY's formulas at unit cotangents (g, h after W_o^T: 1/2 and 0) and projections s_Q = s_K = 2, s_V = 3."""
    T, rho = sp.symbols("T rho", positive=True)
    law = vf.derive(block("h*d", "T", "h", "rho"))
    v, g = sp.expand(4 * (1 - rho)), sp.Rational(1, 2)
    a2, p = SoftmaxOverlap(v, 1, T), SoftmaxResponse(v, 1, T)
    expected = {"v": g * a2, "q": 6 * (1 - rho) ** 2 * g * p, "k": 6 * (1 - rho) * g * p,
                "weights": None, "y": g}
    for name, want in expected.items():
        if want is not None:
            found = law[name].grad_second_moment
            assert found is not None
            assert sp.simplify(found - want) == 0, name
    x = law["x"].grad_second_moment
    total = 3 * expected["v"] + 2 * (expected["q"] + expected["k"])
    assert sp.simplify(x - total) == 0


def test_shared_cotangents() -> None:
    """Behind a mean over tokens every token has the same cotangent: g = h = 1/T^2."""
    net = block("h*d", "T", "h", "rho")
    net.mean_pool(vf.network.Handle("o"), name="m")
    T, rho = sp.symbols("T rho", positive=True)
    law = vf.derive(net)
    v, g = sp.expand(4 * (1 - rho)), 1 / (2 * T**2)
    a2, a11 = (SoftmaxOverlap(v, r, T) for r in (1, rho))
    p, p2 = (SoftmaxResponse(v, r, T) for r in (1, rho))
    wanted = {"v": g * (a2 + (T - 1) * a11), "q": 6 * (1 - rho) ** 2 * g * p,
              "k": 6 * (1 - rho) * g * (p + (T - 1) * rho * p2)}
    for name, want in wanted.items():
        found = law[name].grad_second_moment
        assert found is not None
        assert sp.simplify(found - want) == 0, name


# -- against simulation --------------------------------------------------------------------------------


def deep(kind: str) -> Network:
    """Attention behind attention, where covariances between tokens, forward and backward, have been carried."""
    n, heads = 2048, 32
    net = Network(kind)
    x = net.input("x", n, (5,), position_correlation=0 if kind == "apart" else "1/4")
    if kind == "cross":
        u = net.input("u", n, (8,), position_correlation="1/2")
        q, k, v = net.linear(x, n, variance="1/fan_in"), *(net.linear(u, n, variance="2/fan_in") for _ in range(2))
        x = net.linear(net.attention(q, k, v, heads=heads, name="first"), n, variance="1/fan_in")
    known: dict[str, Any] = {f"{part}_variance": "1/fan_in" for part in ("query", "key", "value", "output")}
    if kind == "sharp":
        known |= {"query_variance": "3/fan_in", "bias": "1/4"}
    h = net.add(x, net.self_attention(x, heads=heads, name="a", **known), name="h")
    g = net.relu(net.linear(net.rms_norm(h), n, variance="2/fan_in"), name="g")
    y = net.add(h, net.self_attention(net.layer_norm(g), heads=heads, name="b", **known), name="y")
    net.linear(net.mean_pool(y, name="m"), 64, variance="1/fan_in", name="z")
    return net


@pytest.mark.parametrize("kind", ["plain", "sharp", "cross", "apart"])
def test_laws_are_those_of_wide_networks(kind: str) -> None:
    """At d_k = 64 and 32 heads within 3 %, forward and backward, and a law that leaves covariances out is not."""
    net = deep(kind)
    law = vf.derive(net)
    numbers, seen = law.numeric({}), simulate(lower(net), 200, seed=3)
    assert all(law[n].second_moment is not None for n in law)
    for name in law:
        for found, s in ((numbers[name]["second_moment"], seen.forward[name]),
                         (numbers[name]["grad_second_moment"], seen.backward.get(name))):
            if s is not None:
                assert abs(found / s.second_moment - 1) < 0.02 + 4 * s.standard_error / s.second_moment, name
                assert s.standard_error < 0.03 * s.second_moment, name


def test_wrong_laws_are_refuted() -> None:
    """Uniform weights, sharp ones, logits that see what tokens share: all outside what simulation allows."""
    s = simulate(lower(block()), 200, seed=5).forward["y"]
    v = 4 * (1 - 1 / 3)

    def y(squares: float) -> float:
        return 3 * (1 / 3 + 2 / 3 * squares)

    right = y(moments(v, 1.0, 6.0)[0])
    assert abs(right - s.second_moment) < 5 * s.standard_error + 0.01 * right
    for wrong in (1 / 6, 1.0, moments(4.0, 1.0, 6.0)[0], moments(v, 1.0, 7.0)[0]):
        assert abs(y(wrong) - s.second_moment) > 6 * s.standard_error


def test_between_samples() -> None:
    """A batch norm over samples behind attention asks for covariances between them."""
    net = Network("batch")
    x = net.input("x", 1024, (4,), position_correlation="1/2", sample_correlation="1/4")
    known: dict[str, Any] = {f"{part}_variance": "2/fan_in" for part in ("query", "key", "value", "output")}
    y = net.self_attention(x, heads=16, name="a", **known)
    net.batch_norm(net.linear(y, 64, variance="1/fan_in", name="f"), name="n")
    law = vf.derive(net)
    seen = simulate(lower(net), 60, seed=2, large_batch=64).backward["f"]
    found = law.numeric({})["f"]["grad_second_moment"]
    assert law["f"].grad_second_moment is not None
    assert abs(found / seen.second_moment - 1) < 0.06 + 4 * seen.standard_error / seen.second_moment


def test_heads_are_scaled_with_their_channels() -> None:
    """Limits of many heads of many channels are extrapolated where both grow; logits at other widths are others."""
    net = block(192, 3, 4, scale=1)
    scales, note = ladder(net, lower(net))
    sizes = [(s.factor, s.program.shape(s.program.values["q"]).channels, s.program.shape(s.program.values["logits"]))
             for s in scales]
    assert [(str(f), int(n), str(shape)) for f, n, shape in sizes] == [
        ("1/2", 48, "(3, 6)"), ("1", 192, "(3, 12)"), ("2", 768, "(3, 24)"), ("4", 3072, "(3, 48)")]
    assert "heads" in note
    assert order_of(scales) == 2
    assert [s.of_width for s in scales] == [True, False, True, True]
    assert [vf.derive(s.network).numeric({})["logits"]["second_moment"] for s in scales[:3]] == [96, 192, 384]


# -- without a formula ---------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [{"causal": True}, {"keys": "q"}])
def test_no_formula_is_a_number_of_the_population(other: dict[str, Any]) -> None:
    """Causal attention, and queries that are keys: the limit of many heads at their stated width."""
    net = block(1024, 5, 64, s=1, **other)
    law = vf.derive(net)
    assert law["y"].second_moment is None and law["y"].tier == "population"
    numbers, seen = law.numeric({}), simulate(lower(net), 300, seed=3)
    for name in ("weights", "y", "o", "v", "x"):
        s, b = seen.forward[name], seen.backward[name]
        for field, m in (("second_moment", s), ("grad_second_moment", b)):
            assert abs(numbers[name][field] / m.second_moment - 1) < 0.02 + 5 * m.standard_error / m.second_moment


@pytest.mark.parametrize(("function", "formula"), [("layer_norm", False), ("tanh(3*x)", False), ("relu", True)])
def test_functions_behind_a_causal_mask_know_every_token(function: str, formula: bool) -> None:
    """Of the mean second moment over tokens gradients in front of a norm were 11 % low. relu is linear in it."""
    net = block(1024, 8, 32, rho=0, s=1, causal=True)
    o = vf.network.Handle("o")
    net.linear(net.layer_norm(o, name="z") if function == "layer_norm" else net.activation(o, function, name="z"),
               256, variance="1/fan_in", name="end")
    law = vf.derive(net)
    assert (law["o"].backward is not None and law["o"].grad_second_moment is not None) == formula
    numbers, seen = law.numeric({}), simulate(lower(net), 400, seed=5)
    for name in ("z", "o", "y", "v"):
        for field, m in (("second_moment", seen.forward[name]), ("grad_second_moment", seen.backward[name])):
            assert abs(numbers[name][field] / m.second_moment - 1) < 0.015 + 3 * m.standard_error / m.second_moment


@pytest.mark.parametrize("behind", ["mean", "mean of relu", "attention"])
def test_tokens_behind_a_causal_mask_have_tokens_in_common(behind: str) -> None:
    """A mean over tokens, and attention, behind causal attention to independent tokens: outputs were taken for
    independent between tokens, as the values are that they mix; the mean was 52 % too small and called wide."""
    net = block(512, 3, 16, rho=0, s=1, causal=True)
    o = vf.network.Handle("o")
    if behind == "attention":
        net.self_attention(o, heads=16, name="z", **{
            f"{part}_variance": "1/fan_in" for part in ("query", "key", "value", "output")})
    else:
        net.mean_pool(net.relu(o) if behind == "mean of relu" else o, name="z")
    numbers, seen = vf.derive(net).numeric({}), simulate(lower(net), 200, seed=5)
    for name in ("z", "o", "y", "v"):
        for field, m in (("second_moment", seen.forward[name]), ("grad_second_moment", seen.backward[name])):
            assert abs(numbers[name][field] / m.second_moment - 1) < 0.02 + 3 * m.standard_error / m.second_moment


@pytest.mark.parametrize("branch", ["attention", "mean pool"])
def test_borders_beside_attention(branch: str) -> None:
    """A zero padded convolution of three tokens loses 2/9 of its second moment; added to attention it lost nothing."""
    net = Network("borders")
    x = net.input("x", 512, (3,))
    if branch == "attention":
        path = net.self_attention(x, heads=16, name="path", **{
            f"{part}_variance": "1/fan_in" for part in ("query", "key", "value", "output")})
    else:
        path = net.expand(net.mean_pool(x, name="mean"), (3,), name="path")
    y = net.add(path, net.conv(x, 512, 3, padding=1, variance="1/fan_in", name="conv"), name="y")
    net.mean_pool(y, name="z")
    numbers, seen = vf.derive(net).numeric({}), simulate(lower(net), 200, seed=5)
    assert numbers["y"]["second_moment"] == pytest.approx(numbers["path"]["second_moment"] + 7 / 9, rel=0.01)
    for name in ("x", "path", "y", "z"):
        for field, m in (("second_moment", seen.forward[name]), ("grad_second_moment", seen.backward[name])):
            assert abs(numbers[name][field] / m.second_moment - 1) < 0.02 + 3 * m.standard_error / m.second_moment


def test_a_function_of_a_blend_has_no_formula() -> None:
    net = block(1024, 5, 64)
    net.linear(net.relu(vf.network.Handle("y"), name="r"), 64, variance="2/fan_in", name="z")
    law = vf.derive(net)
    assert law["r"].second_moment is None
    number, s = law.numeric({})["r"]["second_moment"], simulate(lower(net), 300, seed=1).forward["r"]
    assert abs(number / s.second_moment - 1) < 0.02 + 5 * s.standard_error / s.second_moment


def test_formulas_agree_with_the_population_of_wide_heads() -> None:
    """Two readings of one limit: d_k = 512 in the population, infinite in the formula."""
    net = block(4096, 4, 8)
    law, limit = vf.derive(net), run_population(lower(net), 2**15, 4)
    numbers = law.numeric({})
    for name in law:
        value, gradient = law.program.values[name], law.program.gradients[name]
        assert numbers[name]["second_moment"] == pytest.approx(limit.second_moment[value], rel=0.04), name
        assert numbers[name]["grad_second_moment"] == pytest.approx(limit.second_moment[gradient], rel=0.06), name


def test_refusals_say_what_is_missing() -> None:
    net = Network("wide heads")
    x = net.input("x", 2**17, (4,))
    net.attention(x, x, x, heads=1, name="y")
    with pytest.raises(UnsupportedError, match="too wide for a population"):
        vf.derive(net).numeric({})


def test_logits_beyond_the_formula_have_the_number_of_the_population() -> None:
    """Logits of variance 10,000: no quadrature of the softmax is exact enough, and the weights are nearly one-hot."""
    law = vf.derive(block(4096, 4, 4, rho=0, s=100))
    number = law.numeric({})["y"]["second_moment"]
    assert number == pytest.approx(simulate(lower(law.network), 100, seed=1).forward["y"].second_moment, rel=0.1)
    with pytest.raises(UnsupportedError, match="variance"):
        vf.derive(law.network, tier="closed").numeric({})


def test_dropped_blocks_and_zeros() -> None:
    """A zero value passes through, and a zero query gives uniform weights."""
    net = Network("zero")
    x = net.input("x", 64, (4,))
    zero = net.scale(x, 0)
    net.attention(zero, x, x, heads=2, name="y")
    net.attention(x, x, zero, heads=2, name="none")
    law = vf.derive(net)
    assert law["none"].second_moment == 0
    assert law["y"].second_moment == sp.Rational(1, 4)
