"""Criticality against the literature, mpmath's quadrature, iterated maps and finite wide networks."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import sympy as sp

import varflow as vf
from varflow.activations import ACTIVATIONS
from varflow.criticality import Criticality, CriticalPoint
from varflow.errors import InputError, MissingExtraError, SolveError, UnsupportedError
from varflow.maps import Q
from varflow.smallsignal import small_signal
from varflow.symbols import X

SCALE_INVARIANT = ["identity", "relu", "leaky_relu", "prelu", "abs"]
ZERO = ["tanh", "sin", "erf", "elu", "selu", "softsign", "atan", "asinh", "hardtanh", "relu6", "lecun_tanh"]
HALF_STABLE = ["gelu", "silu", "hardswish", "snake"]
NONE = ["sigmoid", "softplus", "cos", "gaussian", "exp", "square", "relu_squared", "step", "sign", "hardshrink"]


def point(subject: Criticality) -> CriticalPoint:
    assert subject.point is not None
    return subject.point


def floats(found: CriticalPoint) -> tuple[float, float, float]:
    """(s_w, s_b, q*)."""
    assert found.q is not None
    return float(found.sw), float(found.sb), float(found.q)


def average(f: Callable[[Any], Any], q: float) -> Any:
    """E f(z), z ~ N(0, q), by mpmath."""
    s = mpmath.sqrt(q)
    cuts = [-12 * s, -4 * s, 0, 4 * s, 12 * s]
    return mpmath.quad(lambda x: f(x) * mpmath.npdf(x, 0, s), cuts)


# -- classes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names"),
    [("scale-invariant", SCALE_INVARIANT), ("K*=0", ZERO), ("half-stable", HALF_STABLE), ("none", NONE)],
    ids=["scale-invariant", "zero", "half-stable", "none"],
)
def test_classes_of_the_literature(kind: str, names: list[str]) -> None:
    """Roberts, Yaida and Hanin (2022), section 5.3."""
    assert {name: vf.criticality(name).kind for name in names} == dict.fromkeys(names, kind)


def test_the_class_is_read_from_the_expression() -> None:
    y = sp.Symbol("y", real=True)
    assert vf.criticality(sp.Max(y, y / 5)).kind == "scale-invariant"
    assert vf.criticality("x*(1 + erf(x/sqrt(2)))/2").kind == "half-stable"
    assert vf.criticality("tanh(x) + 1/10").kind == "none" or point(vf.criticality("tanh(x) + 1/10")).q != 0
    assert vf.criticality("x + x**3").points[0].stability == "unstable"


def test_scale_invariant_point_with_symbols() -> None:
    found = point(vf.criticality("leaky_relu(a)"))
    a = sp.Symbol("a", real=True)
    assert found.q is None and found.sb == 0
    assert sp.simplify(found.sw - 2 / (1 + a**2)) == 0


@pytest.mark.parametrize(("name", "sw"), [("tanh", 1), ("erf", sp.pi / 4), ("sin", 1), ("elu", 1), ("relu6", 2)])
def test_small_signals_set_the_weight(name: str, sw: sp.Expr) -> None:
    """C_W = 2/(f'(0+)^2 + f'(0-)^2), C_b = 0."""
    found = point(vf.criticality(name))
    assert (found.q, found.sb, found.stability) == (0, 0, "stable") and sp.simplify(found.sw - sw) == 0


@pytest.mark.parametrize(
    ("name", "power", "rate", "perpendicular"),
    [("tanh", sp.S.One, -2, 1), ("sin", sp.S.One, -1, 1), ("elu", sp.Rational(1, 2), -sp.sqrt(2 / sp.pi), 2)],
)
def test_kernel_decay(name: str, power: sp.Expr, rate: sp.Expr, perpendicular: sp.Expr) -> None:
    """tanh and sin: a_1 = -2, -1 (Roberts et al. 2022, eq. 5.81 and below); elu by its kink in f''."""
    found = point(vf.criticality(name)).kernel_decay
    assert found is not None
    assert (found.power, sp.simplify(found.rate - rate)) == (power, 0)
    assert found.parallel == (1 + power) / power and sp.simplify(found.perpendicular - perpendicular) == 0
    q, near = 1e-4, vf.criticality(name).variances
    measured = (float(near.second(q)) / q - 1) / q ** float(power)
    assert measured == pytest.approx(float(rate), rel=2e-2)


def test_kernel_falls_as_a_power_of_depth() -> None:
    for name in ("sin", "elu"):
        subject, layers = vf.criticality(name), 800
        decay = point(subject).kernel_decay
        assert decay is not None
        q = 1.0
        for _ in range(layers):
            q = float(subject.variances.second(q))
        law = (-float(decay.rate) * float(decay.power) * layers) ** (-1 / float(decay.power))
        assert q == pytest.approx(law, rel=3e-2)


def test_expansion_sees_both_sides() -> None:
    near = small_signal(vf.criticality("selu").activation)
    assert near is not None and near.vanishes
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    assert float(near.unit_slope) == pytest.approx(scale**2 * (1 + alpha**2) / 2, rel=1e-12)
    assert small_signal(1 / X) is None


def test_half_stable_point_by_mpmath() -> None:
    """chi_parallel = chi_perp = 1 for gelu at its point, by a quadrature of another hand."""
    found = point(vf.criticality("gelu"))
    sw, sb, q = floats(found)

    def f(x: Any) -> Any:
        return x * mpmath.ncdf(x)

    def slope(x: Any) -> Any:
        return mpmath.ncdf(x) + x * mpmath.npdf(x)

    assert float(sw * average(lambda x: slope(x) ** 2, q)) == pytest.approx(1, abs=1e-11)
    assert float(sw * average(lambda x: f(x) * slope(x) * x, q) / q) == pytest.approx(1, abs=1e-10)
    assert float(sw * average(lambda x: f(x) ** 2, q) + sb) == pytest.approx(q, rel=1e-11)


@pytest.mark.parametrize(
    ("name", "side"), [("gelu", "above"), ("snake", "above"), ("silu", "below"), ("hardswish", "below")]
)
def test_half_stable_attracts_from_one_side(name: str, side: str) -> None:
    """Beside a double fixed point the variance moves one way: down, or up, on both sides."""
    found = point(vf.criticality(name))
    assert found.stability == f"half-stable from {side}"
    sw, sb, q = floats(found)
    for start in (0.99 * q, 1.002 * q):
        moved = sw * float(vf.criticality(name).variances.second(start)) + sb - start
        assert moved < 0 if side == "above" else moved > 0


# -- the line ----------------------------------------------------------------------------------------------------


def test_line_of_erf_is_a_formula() -> None:
    sw, sb = vf.criticality("erf").line_formulas
    assert sp.simplify(sw - sp.pi * sp.sqrt(1 + 4 * Q) / 4) == 0
    assert sp.simplify(sb - Q + sp.sqrt(1 + 4 * Q) * sp.asin(2 * Q / (1 + 2 * Q)) / 2) == 0
    found = vf.criticality("erf").at(q=1)
    assert found.closed_form and found.sw == sp.sqrt(5) * sp.pi / 4


@pytest.mark.parametrize("name", ["tanh", "erf", "gelu", "softsign", "atan"])
def test_points_lie_on_the_line(name: str) -> None:
    subject = vf.criticality(name)
    for q in (5.0,) if name == "gelu" else (0.3, 1.0, 5.0):
        sw, sb = subject.line(q)
        phase = subject.phase(sw, sb, start=q)
        assert phase.name == "critical" and phase.q == pytest.approx(q, rel=1e-9)
        assert phase.xi_c == math.inf == phase.xi_gradient


def test_line_over_arrays_and_by_bias() -> None:
    subject = vf.criticality("tanh")
    sw, sb = subject.line(np.array([0.1, 1.0]))
    assert sw.shape == sb.shape == (2,)
    assert float(subject.at(sb=sb[1]).sw) == pytest.approx(sw[1], rel=1e-10)
    assert float(subject.at(sw=sw[0]).sb) == pytest.approx(sb[0], rel=1e-8)
    assert np.isnan(vf.criticality("sigmoid").line(0.01)[0]), "s_b would be negative"


def test_line_of_tanh_by_mpmath() -> None:
    sw, _, q = floats(vf.criticality("tanh").at(sb="0.05"))
    slopes = average(lambda x: mpmath.sech(x) ** 4, q)
    assert float(sw * slopes) == pytest.approx(1, abs=1e-11)
    assert float(sw * average(lambda x: mpmath.tanh(x) ** 2, q)) + 0.05 == pytest.approx(q, rel=1e-11)


def test_where_there_is_no_point() -> None:
    with pytest.raises(SolveError, match="it runs from sw = 1 "):
        vf.criticality("tanh").at(sw=0.5)
    with pytest.raises(SolveError, match="without bias only"):
        vf.criticality("relu").at(sb=0.1)
    with pytest.raises(SolveError, match="jumps"):
        vf.criticality("sign").at(q=1)
    with pytest.raises(SolveError, match="f\\(0\\) is not 0"):
        vf.criticality("cos").at(q=0)
    with pytest.raises(InputError, match="one of q, sb and sw"):
        vf.criticality("tanh").at()
    with pytest.raises(InputError, match="no number for k"):
        _ = vf.criticality("tanh(k*x)").kind
    with pytest.raises(InputError, match="does not depend on x"):
        vf.criticality("tnh")
    for name in ("gelu", "relu", "tanh"):
        with pytest.raises(InputError, match="q = -1 is negative"):
            vf.criticality(name).at(q=-1)
    for side in ("q", "sb", "sw"):
        with pytest.raises(InputError, match="no number for v"):
            vf.criticality("gelu").at(**{side: "v"})
    with pytest.raises(SolveError, match="in floats"):
        vf.criticality("tanh").at(q=1e30)


# -- the plane ---------------------------------------------------------------------------------------------------


def test_relu_phases() -> None:
    relu = vf.criticality("relu")
    assert relu.phase(2).name == "critical" and relu.phase(2, start=7).q == 7
    ordered = relu.phase(1, 0.5)
    assert ordered.q == pytest.approx(1) and ordered.chi_1 == 0.5 and ordered.name == "ordered"
    lost = relu.phase(3, 0.1)
    assert (lost.q, lost.name) == (math.inf, "unbounded") and lost.chi_1 == pytest.approx(1.5)
    assert relu.phase(1).q == 0


def test_several_fixed_points_depend_on_the_start() -> None:
    gelu = vf.criticality("gelu")
    phase = gelu.phase(2.05, 0.08, start=0.01)
    low, high = (p.value for p in phase.fixed_points)
    assert [p.stability for p in phase.fixed_points] == ["stable", "unstable"]
    assert phase.q == low and gelu.phase(2.05, 0.08, start=2 * high).q == math.inf


def test_depth_scales_follow_from_slopes() -> None:
    scales = vf.criticality("tanh").depth_scales(2.5, 0.05)
    phase = vf.criticality("tanh").phase(2.5, 0.05)
    assert phase.c_slope is not None and phase.chi_1 is not None
    assert scales["xi_c"] == pytest.approx(-1 / math.log(phase.c_slope))
    assert scales["xi_gradient"] is not None and scales["xi_gradient"] < 0 < phase.chi_1 - 1


def test_correlations_settle_as_the_decay_says() -> None:
    """erf at the edge of chaos: 1 - c_l = coefficient/l, by iterating its map."""
    found = vf.criticality("erf").at(q=1)
    assert found.decay is not None and found.decay.power == 1
    sw, sb, c, layers = float(found.sw), float(found.sb), 0.2, 20_000
    for _ in range(layers):
        c = sw * 2 / math.pi * math.asin(2 * c / 3) + sb
    assert layers * (1 - c) == pytest.approx(float(found.decay.coefficient), rel=5e-3)


def test_no_critical_point_with_dropout() -> None:
    """Schoenholz et al. (2017), section 5."""
    subject = vf.criticality("tanh", dropout="0.1")
    assert subject.kind == "none" and subject.point is None and "dropout" in subject.reason
    phase = subject.phase(1.7, 0.05)
    assert phase.c is not None and 0 < phase.c < 1 and phase.xi_c is not None and phase.xi_c < 100
    plain = vf.criticality("tanh").phase(1.7, 0.05)
    assert phase.q is not None and plain.q is not None and phase.q > plain.q
    with pytest.raises(SolveError, match="dropout"):
        subject.at(sb=0.05)
    with pytest.raises(UnsupportedError, match="dropout"):
        subject.plot("x.png")
    with pytest.raises(InputError, match="drop rate"):
        vf.criticality("tanh").dropout(1)


def test_variances_are_checked() -> None:
    with pytest.raises(InputError, match="not negative"):
        vf.criticality("tanh").phase(-1, 0)
    for start in (-1, float("nan"), "x"):
        with pytest.raises(InputError, match=r"start|finite"):
            vf.criticality("relu").phase(1, 0, start)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no number for p"):
        vf.criticality("tanh", "p").phase(1, 0)


# -- finite wide networks ----------------------------------------------------------------------------------------


def two_inputs(
    f: Callable[[Any], Any], sw: float, sb: float, depth: int, width: int, drop: float = 0.0, draws: int = 6,
    seed: int = 3,
) -> tuple[Any, Any]:
    """(variance, correlation) of pre-activations at every layer of tanh-like nets, averaged over draws."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(draws):
        h = rng.standard_normal((2, width))
        row = []
        for _ in range(depth):
            keep = rng.random(h.shape) >= drop
            weights = rng.standard_normal((width, width)) * math.sqrt(sw / width)
            x = (h * keep / (1 - drop)) @ weights + math.sqrt(sb) * rng.standard_normal(width)
            row.append([np.mean(x**2), np.mean(x[0] * x[1])])
            h = f(x)
        rows.append(row)
    mean = np.mean(rows, axis=0)
    return mean[:, 0], mean[:, 1] / mean[:, 0]


def test_wide_networks_settle_at_the_fixed_points() -> None:
    phase = vf.criticality("tanh").phase(2.5, 0.05)
    q, c = two_inputs(np.tanh, 2.5, 0.05, 40, 600)
    assert q[-5:].mean() == pytest.approx(phase.q, rel=2e-2)
    assert float(c[-5:].mean()) == pytest.approx(phase.c, abs=4e-2)


def test_wide_networks_lose_correlation_at_the_depth_scale() -> None:
    """In the ordered phase 1 - c falls as exp(-l/xi_c): the slope of log(1 - c), and its standard error."""
    xi = vf.criticality("tanh").depth_scales(1.2, 0.2)["xi_c"]
    assert xi is not None
    slopes = []
    for seed in range(12):
        _, c = two_inputs(np.tanh, 1.2, 0.2, 14, 500, seed=seed)
        slopes.append(-np.polyfit(np.arange(6, 14), np.log(1 - c[6:14]), 1)[0])
    error = np.std(slopes, ddof=1) / math.sqrt(len(slopes))
    assert error < 0.02 / xi
    assert abs(np.mean(slopes) - 1 / xi) < 4 * error


def test_wide_networks_with_dropout() -> None:
    phase = vf.criticality("tanh", dropout="0.2").phase(1.5, 0.1)
    q, c = two_inputs(np.tanh, 1.5, 0.1, 25, 700, drop=0.2)
    assert q[-8:].mean() == pytest.approx(phase.q, rel=2e-2)
    assert c[-8:].mean() == pytest.approx(phase.c, abs=3e-2)


def test_gradients_keep_their_size_on_the_line() -> None:
    """|J|^2 per entry stays 1 through 20 layers of tanh on its critical line, at its q*."""
    found = vf.criticality("tanh").at(q=0.8)
    sw, sb, width = float(found.sw), float(found.sb), 500
    rng = np.random.default_rng(5)
    sizes = []
    for _ in range(8):
        h, g, product = np.tanh(rng.standard_normal(width) * math.sqrt(0.8)), np.eye(width)[:40], np.eye(width)[:40]
        layers = []
        for _ in range(20):
            w = rng.standard_normal((width, width)) * math.sqrt(sw / width)
            x = w @ h + math.sqrt(sb) * rng.standard_normal(width)
            h = np.tanh(x)
            layers.append((w, 1 - h**2))
        product = g
        for w, slope in reversed(layers):
            product = (product * slope) @ w
        sizes.append(np.sum(product**2) / len(g))
    error = float(np.std(sizes)) / math.sqrt(len(sizes))
    assert float(np.mean(sizes)) == pytest.approx(1, abs=5 * error) and error < 0.1


# -- documents ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tanh", "relu", "gelu", "sigmoid"])
def test_phase_diagram(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for suffix in (".png", ".svg"):
        written = vf.criticality(name).plot(tmp_path / f"{name}{suffix}")
        assert written.stat().st_size > 5000


def test_plot_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot draw into"):
        vf.criticality("tanh").plot(tmp_path / "phases.gif")
    for module in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        vf.criticality("tanh").plot(tmp_path / "phases.png")


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if n not in ("siren",)])
def test_every_activation_has_a_document(name: str) -> None:
    document = vf.criticality(name).to_dict()
    assert document["kind"] in ("scale-invariant", "K*=0", "half-stable", "none") and document["reason"]
    assert vf.criticality(name)._repr_latex_().startswith("$")
    for each in vf.criticality(name).points:
        assert each.to_dict()["value"]["sw"] > 0
