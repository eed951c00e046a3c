"""Published gains, moments, kernels and initializers against varflow's own.

The asserted values are copied here; where the reference file lies beside the project, they must equal it.
Every value is computed by varflow. Entries of ``HEURISTIC`` are published constants that no moment has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sympy as sp

import varflow as vf
from varflow.laws.expectation import derivative
from varflow.maps import Q, activation_maps
from varflow.symbols import X, positive

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "golden" / "golden.json"
CATEGORIES = {"activation_gain", "activation_moment", "activation_derivative", "initializer", "weight_gain",
              "forward_gain", "backward_gain", "dual_kernel", "maxout", "glu"}
r, a, c, n, i, o, d, k, w0 = sp.symbols("r a c n i o d k w0")
C = sp.Symbol("c", positive=True)
REAL_A = sp.Symbol("a", real=True)


# -- how each is computed --------------------------------------------------------------------------------------


def plain(expr: Any) -> sp.Expr:
    """Over symbols without assumptions."""
    return expr.subs({s: sp.Symbol(s.name) for s in expr.free_symbols}, simultaneous=True)


def field(text: str | sp.Expr, name: str, q: Any = 1) -> sp.Expr:
    """A field of an activation, as a number where it has no symbol."""
    g = vf.gain(text, q)
    value = getattr(g, name)
    return plain(value) if value.free_symbols else sp.Float(g.numeric()[name], 17)


def kernel(text: str) -> sp.Expr:
    formula = activation_maps(vf.gain(text).activation, 1).kernel
    assert formula is not None
    return plain(formula.xreplace({Q: sp.S.One})).xreplace({c: r})


def layer(function: str = "identity", width: str = "o", *, policy: str = "forward", **fields: Any) -> Any:
    """The solved weight of one layer with i inputs."""
    net = vf.Network("layer")
    net.activation(net.linear(net.input("x", channels="i"), width, name="w", **fields), function)
    return vf.solve(net, preserve=policy)["w"]


def torch_default(field: str) -> sp.Expr:
    """nn.Linear's own initialization, a leaky slope of sqrt(5) on a uniform distribution, followed by relu."""
    slope = vf.gain(sp.Piecewise((X, X > 0), (sp.sqrt(5) * X, True))).init_gain
    net = vf.Network("default")
    net.relu(net.linear(net.input("x", channels="n"), "n", variance=slope**2 / vf.Network().scalar("fan_in"),
                        distribution="uniform", name="w"), name="h")
    found = vf.derive(net)
    return plain(found.weights["w"].variance if field == "variance" else found["h"].second_moment)


def uniform_variance(bound: sp.Expr) -> sp.Expr:
    """Var of a uniform distribution on (-bound, bound), from the bound that varflow draws a variance with."""
    net, v, edge = vf.Network("uniform"), positive("v"), positive("edge")
    net.linear(net.input("x", channels="n"), "n", variance="v", distribution="uniform", name="w")
    drawn = sp.sympify(vf.derive(net).weights["w"].draw.split("a = ")[1], {"v": v})
    return sp.solve(drawn - edge, v)[0].subs(edge, bound)


def truncated_variance(cut: sp.Expr) -> sp.Expr:
    inside = sp.Abs(X) < cut
    share = vf.gain(sp.Piecewise((1, inside), (0, True))).mean
    return plain(vf.gain(sp.Piecewise((X, inside), (0, True))).second_moment / share)


def siren_bound() -> sp.Expr:
    """Hidden layers read sin of an argument of large variance: E sin^2 there; w0 W x is to have variance 1."""
    second = sp.limit(vf.gain("sin", positive("q")).second_moment, positive("q"), sp.oo)
    variance = 1 / (n * w0**2 * second)
    return sp.sqrt(variance / uniform_variance(sp.S.One))


def fan_in_of_convolution() -> sp.Expr:
    """Of a full convolution with 3 x 3 taps, which is what Keras counts for a depthwise one."""
    net = vf.Network("conv")
    net.conv(net.input("x", channels="C", positions=[8, 8]), "C", kernel=(3, 3), name="w", variance="2/fan_in")
    return plain(vf.derive(net).weights["w"].fan_in)


def linearized() -> sp.Expr:
    """1/(f'(0)^2 (1 + f(0)^2)) of the sigmoid (Kumar 2017)."""
    f = vf.gain("sigmoid").activation
    return 1 / (derivative(f, X).subs(X, 0) ** 2 * (1 + f.subs(X, 0) ** 2))


def log_softmax() -> sp.Expr:
    """z - log sum exp, whose second term is constant over many channels: log n + log E exp."""
    return vf.gain(X - sp.log(vf.gain("exp").mean)).init_gain_centered


def sparse() -> sp.Expr:
    return plain(layer("relu", keep="p").variance).subs({"p": k / i})


SURROGATE = "erf(x/2.4020563531719796)/2 + 1/2"
LEAKY = sp.Piecewise((X, X > 0), (REAL_A * X, True))
GLOROT = plain(layer(policy="harmonic").variance)
COMPUTED: dict[str, tuple[str, str, Any]] = {
    # id: (published, tolerance, ours)
    "nfnet_gamma_gelu": ("1.7015043497085571", "rel 2e-3", field("gelu", "init_gain_centered")),
    "nfnet_gamma_leaky_relu": ("1.70590341091156", "rel 2e-3", field("leaky_relu(0.01)", "init_gain_centered")),
    "nfnet_gamma_log_sigmoid": ("1.9193484783172607", "rel 2e-3", field("logsigmoid", "init_gain_centered")),
    "nfnet_gamma_relu": ("1.7139588594436646", "rel 2e-3", field("relu", "init_gain_centered")),
    "nfnet_gamma_relu6": ("1.7131484746932983", "rel 2e-3", field("relu6", "init_gain_centered")),
    "nfnet_gamma_selu": ("1.0008515119552612", "rel 2e-3", field("selu", "init_gain_centered")),
    "nfnet_gamma_sigmoid": ("4.803835391998291", "rel 2e-3", field("sigmoid", "init_gain_centered")),
    "nfnet_gamma_softsign": ("2.338853120803833", "rel 2e-3", field("softsign", "init_gain_centered")),
    "nfnet_gamma_tanh": ("1.5939117670059204", "rel 2e-3", field("tanh", "init_gain_centered")),
    "nfnet_gamma_log_softmax": ("1.0002083778381348", "rel 2e-2", log_softmax()),
    "nf_attn_gain": ("2", "abs 1e-12", 1 / field("sigmoid", "mean")),
    "relu_gamma_exact": ("sqrt(2)/sqrt(1-1/pi)", "abs 1e-10", field("relu", "init_gain_centered")),
    "gelu_m2_formula": ("q*(1/4+(q/((1+q)*sqrt(1+2*q))+atan(q/sqrt(1+2*q))/2)/pi)", "abs 1e-10",
                        field("gelu", "second_moment", positive("q"))),
    "relu_var": ("1/2-1/(2*pi)", "abs 1e-12", field("relu", "variance")),
    "relu_m2": ("1/2", "abs 1e-12", field("relu", "second_moment")),
    "relu_mean": ("1/sqrt(2*pi)", "abs 1e-12", field("relu", "mean")),
    "leaky_m2": ("(1+a**2)/2", "abs 1e-12", field(LEAKY, "second_moment")),
    "gelu_var_q1": ("1.0/(2*pi)*(pi/2-1.0/(1+1.0)+asin(1.0/(1+1.0))+2*1.0/((1+1.0)*sqrt(1+2*1.0)))", "abs 1e-10",
                    field("gelu", "variance")),
    "gelu_mean_q": ("q/sqrt(2*pi*(1+q))", "abs 1e-10", field("gelu", "mean", positive("q"))),
    "gelu_grad_q1": ("1/4+asin(1.0/(1.0+1))/(2*pi)+1.0*(5*1.0+3)/(2*pi*(1.0+1)*(2*1.0+1)**(3/2))", "abs 1e-10",
                     field("gelu", "derivative_second_moment")),
    "gelu_grad_q4": ("1/4+asin(4.0/(4.0+1))/(2*pi)+4.0*(5*4.0+3)/(2*pi*(4.0+1)*(2*4.0+1)**(3/2))", "abs 1e-10",
                     field("gelu", "derivative_second_moment", 4)),
    "silu_m2_edm2": ("0.596", "rel 1e-3", sp.sqrt(field("silu", "second_moment"))),
    "sin_m2": ("(1-exp(-2*a**2))/2", "abs 1e-12", field("sin", "second_moment", positive("a") ** 2)),
    "erf_d2": ("4/(pi*sqrt(5))", "abs 1e-10", field("erf", "derivative_second_moment")),
    "relu2_m2": ("3/2", "abs 1e-10", field("relu_squared", "second_moment")),
    "lecun_tanh": ("1.7159*tanh(2/3)", "abs 1e-5", vf.gain("lecun_tanh").activation.subs(X, 1)),
    "sigmoid_like": ("0.29143362342987805", "abs 1e-9", field(SURROGATE, "second_moment")),
    "tanh_m2": ("0.3942944903978409", "abs 1e-9", field("tanh", "second_moment")),
    "silu_m2": ("0.3557755198173524", "abs 1e-9", field("silu", "second_moment")),
    "silu_d2": ("0.3794823516", "abs 1e-9", field("silu", "derivative_second_moment")),
    "softplus_m2": ("0.9212459089", "abs 1e-9", field("softplus", "second_moment")),
    "elu_d2": ("1/2+exp(2)*(1+erf(-2/sqrt(2)))/2", "abs 1e-9", field("elu", "derivative_second_moment")),
    "hardtanh_d2": ("erf(1/sqrt(2))", "abs 1e-10", field("hardtanh", "derivative_second_moment")),
    "gelu_silu_mean_slope": ("1/2", "abs 1e-10", field(derivative(vf.gain("silu").activation, X), "mean")),
    "kernel_relu": ("sqrt(1-r**2)/(2*pi)+(pi-acos(r))*r/(2*pi)", "abs 1e-6", kernel("relu")),
    "kernel_step": ("1/2-acos(r)/(2*pi)", "abs 1e-6", kernel("step")),
    "kernel_relu2": ("(3*sin(acos(r))*r+(pi-acos(r))*(1+2*r**2))/(2*pi)", "abs 1e-6", kernel("relu_squared")),
    "kernel_lrelu02": ("(1-0.2)**2/(2*pi)*sqrt(1-r**2)+((1+0.2**2)/2-(1-0.2)**2/(2*pi)*acos(r))*r", "abs 1e-6",
                       kernel("leaky_relu(0.2)")),
    "kernel_sign": ("2/pi*asin(r)", "abs 1e-6", kernel("sign")),
    "kernel_sin": ("exp(-1)*sinh(r)", "abs 1e-6", kernel("sin")),
    "kernel_cos": ("exp(-1)*cosh(r)", "abs 1e-6", kernel("cos")),
    "kernel_exp": ("exp(1+r)", "abs 1e-6", kernel("exp")),
    "max2_mean": ("1/sqrt(pi)", "abs 1e-10", field("maxout(2)", "mean")),
    "max3_m2": ("1+sqrt(3)/(2*pi)", "abs 1e-10", field("maxout(3)", "second_moment")),
    "max4_m2": ("1+sqrt(3)/pi", "abs 1e-10", field("max_pool(4)", "second_moment")),
    "max4_mean": ("1.0293753730039643", "abs 1e-9", field("max_pool(4)", "mean")),
    "max9_m2": ("2.562617418292496", "abs 1e-8", field("max_pool(9)", "second_moment")),
    "maxout_c_5": ("0.55555", "rel 5e-5", 1 / field("maxout(5)", "second_moment")),
    "m2_glu": ("0.293379035858", "abs 1e-9", field("glu", "second_moment")),
    "m2_geglu": ("0.42522148257", "abs 1e-9", field("geglu", "second_moment")),
    "m2_swiglu": ("0.355775519817", "abs 1e-9", field("swiglu", "second_moment")),
    "torch_gain_leaky": ("sqrt(2/(1+a**2))", "abs 1e-12", field(LEAKY, "init_gain")),
    "prelu_gain_025": ("sqrt(2/(1+0.25**2))", "abs 1e-9", field("prelu(0.25)", "init_gain")),
    "wn_gain": ("sqrt(2)", "abs 1e-12", layer("relu", distribution="weight_norm").init_gain),
    "orth_relu": ("sqrt(2)", "abs 1e-12", layer("relu", distribution="orthogonal").init_gain),
    "sigmoid_kumar": ("sqrt(1/((1/16)*(1+1/4)))", "abs 1e-9", sp.sqrt(linearized())),
    "torch_linear_relu_gain": ("1/6", "abs 1e-12", torch_default("gain")),
    "torch_linear_default": ("1/(3*n)", "abs 1e-12", torch_default("variance")),
    "torch_linear_bias_var": ("1/(3*n)", "abs 1e-12", uniform_variance(1 / sp.sqrt(n))),
    "trunc2_std": ("0.8796256610342398", "abs 1e-14", sp.sqrt(truncated_variance(sp.Integer(2)))),
    "trunc2_formula": ("1-2*c*exp(-c**2/2)/sqrt(2*pi)/erf(c/sqrt(2))", "abs 1e-12", truncated_variance(C)),
    "xavier_var": ("2/(i+o)", "abs 1e-12", GLOROT),
    "xavier_uniform_bound": ("sqrt(6/(i+o))", "abs 1e-12", sp.sqrt(GLOROT / uniform_variance(sp.S.One))),
    "he_normal_std": ("sqrt(2/n)", "abs 1e-12", plain(layer("relu").std).subs(i, n)),
    "lecun_std": ("sqrt(1/n)", "abs 1e-12", plain(layer().std).subs(i, n)),
    "keras_depthwise_trap": ("k**2*C", "abs 1e-12", fan_in_of_convolution().subs("C", sp.Symbol("C")).subs(9, k**2)),
    "small_init": ("sqrt(2/(5*d))", "abs 1e-12",
                   plain(layer(width="4*i", policy="harmonic").std).subs(i, d)),
    "siren_hidden": ("sqrt(6/n)/w0", "abs 1e-12", siren_bound()),
    "rigl_sparse": ("2/k", "abs 1e-12", sparse()),
    "keras_embedding_var": ("0.1**2/12", "abs 1e-12", uniform_variance(sp.Rational(1, 20))),
}
RECOMPUTED = {
    "nfnet_gamma_gelu": 1.700926243363332, "nfnet_gamma_leaky_relu": 1.7048316271773365,
    "nfnet_gamma_log_sigmoid": 1.919125980107654, "nfnet_gamma_relu": 1.7128585504496625,
    "nfnet_gamma_relu6": 1.712858554972395, "nfnet_gamma_selu": 0.9999999999999999,
    "nfnet_gamma_sigmoid": 4.801313372039954, "nfnet_gamma_softsign": 2.3375333631085398,
    "nfnet_gamma_tanh": 1.592537419722832, "relu_var": 0.34084505690810474, "relu_gamma_exact": 1.7128585504496625,
    "gelu_var_q1": 0.3456440110243514, "gelu_grad_q1": 0.4558508656492868, "gelu_grad_q4": 0.506044764053799,
    "silu_m2_edm2": 0.5964692111227137, "erf_d2": 0.5694100347337414, "silu_d2": 0.37948235163282906,
    "softplus_m2": 0.9212459088593002, "elu_d2": 0.6681020012231698, "max3_m2": 1.2756644477108974,
    "max4_m2": 1.5513288954217939, "max9_m2": 2.562617418292496, "maxout_c_5": 0.5555492482288203,
    "sigmoid_kumar": 3.5777087639996634, "m2_glu": 0.2933790358580928, "m2_geglu": 0.42522148257029907,
}
"""Of published numbers that are estimates or rounded: the same recomputed, to be met to 1e-8."""
HEURISTIC: dict[str, tuple[str, Any]] = {
    "torch_gain_tanh": ("5/3", field("tanh", "init_gain")),
    "torch_gain_selu": ("3/4", field("selu", "init_gain")),
    "stylegan_swish": ("sqrt(2)", field("silu", "init_gain")),
    "us_gelu_scale": ("2**0.2*(2/(1-1/pi))**0.4", field("gelu", "init_gain_centered")),
    "us_gelu_grad": ("2**0.6", 1 / sp.sqrt(field("gelu", "derivative_second_moment"))),
}
POINTS = ("1/7", "3/5", "9/10")
"""Values tried for the symbols of a formula; the second symbol gets the next one, and so on."""


def gap(published: str, ours: Any, shift: int) -> tuple[float, float]:
    """(distance, size) at one choice of values for the symbols."""
    expected, found = sp.sympify(published), sp.sympify(ours)
    names = sorted({s.name for s in expected.free_symbols | found.free_symbols})
    at = {name: sp.Rational(POINTS[(j + shift) % 3]) for j, name in enumerate(names)}
    values = [sp.N(e.subs({s: at[s.name] for s in e.free_symbols}), 30) for e in (expected, found)]
    return abs(float(values[0] - values[1])), abs(float(values[0]))


@pytest.mark.parametrize("name", COMPUTED)
def test_published_value(name: str) -> None:
    published, tolerance, ours = COMPUTED[name]
    kind, _, size = tolerance.partition(" ")
    for shift in range(3):
        distance, scale = gap(published, ours, shift)
        assert distance <= max(float(size), 1e-15) * (scale if kind == "rel" else 1)


@pytest.mark.parametrize("name", RECOMPUTED)
def test_recomputed_value(name: str) -> None:
    assert float(sp.N(COMPUTED[name][2])) == pytest.approx(RECOMPUTED[name], rel=1e-8)


@pytest.mark.parametrize("name", HEURISTIC)
def test_heuristic_constants_are_not_reproduced(name: str) -> None:
    published, ours = HEURISTIC[name]
    assert abs(float(sp.N(ours)) / float(sp.N(sp.sympify(published))) - 1) > 1e-2


def test_a_wrong_value_is_rejected() -> None:
    for name, (published, tolerance, ours) in COMPUTED.items():
        kind, _, size = tolerance.partition(" ")
        distance, scale = gap(published, sp.sympify(ours) * sp.Rational(103, 100), 1)
        assert distance > float(size) * (scale if kind == "rel" else 1), name


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference values are not beside this checkout")
def test_the_copies_are_the_reference_and_complete() -> None:
    entries = {e["id"]: e for e in json.loads(REFERENCE.read_text()) if e["category"] in CATEGORIES}
    wanted = {key for key, e in entries.items() if e["trust"] in "AB"}
    assert set(COMPUTED) == wanted
    assert set(HEURISTIC) == {key for key, e in entries.items() if e["trust"] == "D"}
    for name, (published, tolerance, _) in COMPUTED.items():
        assert (entries[name]["value"], entries[name]["tolerance"]) == (published, tolerance), name
    for name, (published, _) in HEURISTIC.items():
        assert entries[name]["value"] == published
    for name, value in RECOMPUTED.items():
        assert float(entries[name]["recomputed"]) == pytest.approx(value, rel=1e-12)
