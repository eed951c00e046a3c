"""Gains of gates and Python functions, the report of one activation, and the command that prints it."""

from __future__ import annotations

import json
import math
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy as sp

import varflow as vf
from varflow.errors import ExpressionError, InputError, MissingExtraError
from varflow.export.gain_plot import figure
from varflow.export.gain_report import export_gain, page, to_latex, to_markdown
from varflow.gain import FIELDS, gain
from varflow.gain_report import GainReport, readable
from varflow.laws.expectation import compile_formula
from varflow.maps import C, Q, activation_maps
from varflow.symbols import X, arg, positive

HEAVY = {"scipy.integrate", "networkx", "numba", "torch", "matplotlib"}
HALF = sp.Rational(1, 2)
GATES = ("bilinear", "glu", "reglu", "geglu", "swiglu", "maxout(2)", "maxout(3)", "max_pool(4)", "maxout(7)", "crelu",
         "concat_elu")


# -- functions of several inputs ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize(("q", "mean"), [(1, 0), (2, sp.Rational(1, 2))])
def test_gates_against_samples(name: str, q: int, mean: sp.Expr) -> None:
    g: Any = gain(name, q, mean)
    numbers, count, call = g.numeric(), 300_000, g.function
    xs = [arg(i) for i in range(call.inputs)]
    rng = np.random.default_rng(4)
    points = float(mean) + math.sqrt(q) * rng.standard_normal((len(xs), count))
    values = [np.broadcast_to(sp.lambdify(xs, f, "scipy")(*points), count) for f in call.outputs]
    slopes = []
    for f in call.outputs:
        for i in range(len(xs)):
            high, low = points.copy(), points.copy()
            high[i] += 1e-6
            low[i] -= 1e-6
            slopes.append((sp.lambdify(xs, f, "scipy")(*high) - sp.lambdify(xs, f, "scipy")(*low)) / 2e-6)
    samples = {"mean": np.mean(values, axis=0), "second_moment": np.mean(np.square(values), axis=0),
               "derivative_second_moment": np.sum(np.square(slopes), axis=0) / len(values)}
    for field, sample in samples.items():
        error = sample.std() / math.sqrt(count)
        assert abs(sample.mean() - numbers[field]) < 5 * error + 1e-5, field
        assert error < 0.01 * max(abs(numbers[field]), 0.5)
    assert numbers["variance"] == pytest.approx(numbers["second_moment"] - numbers["mean"] ** 2)
    assert numbers["chi"] == pytest.approx(q * numbers["derivative_second_moment"] / numbers["second_moment"])


def test_maxout_in_closed_form() -> None:
    assert gain("maxout(2)").mean == 1 / sp.sqrt(sp.pi)
    assert sp.simplify(gain("maxout(3)").second_moment - 1 - sp.sqrt(3) / (2 * sp.pi)) == 0
    assert gain("maxout(4)").closed_form["second_moment"] and not gain("maxout(9)").closed_form["second_moment"]
    assert gain("maxout(1)").mean == 0 and gain("maxout(1)").second_moment == 1


def test_each_input_of_a_gate_has_its_share() -> None:
    g: Any = gain("reglu")
    assert g.derivative_second_moments == (sp.Rational(1, 2), sp.Rational(1, 2))
    assert gain("maxout(5)").derivative_second_moments == (sp.Rational(1, 5),) * 5  # type: ignore[attr-defined]
    crelu: Any = gain("crelu")
    assert crelu.total["second_moment"] == 1 and crelu.second_moment == sp.Rational(1, 2)
    assert crelu.total["derivative_second_moment"] == 1 and isinstance(crelu.activation, sp.Tuple)


@pytest.mark.parametrize(("name", "factor"), [("bilinear", "identity"), ("reglu", "relu"), ("geglu", "gelu")])
def test_the_kernel_of_a_gate_is_a_product(name: str, factor: str) -> None:
    g: Any = gain(name)
    wanted = Q * C * activation_maps(gain(factor).activation, 1).kernel
    ours, theirs = (compile_formula(k, (Q, C))(np.array([0.5, 2.0]), np.array([-0.4, 0.7])) for k in (g.kernel, wanted))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    at_one = float(compile_formula(g.kernel, (Q, C))(1.0, 1.0))
    assert at_one == pytest.approx(g.numeric()["second_moment"])
    step = 1e-5
    slope = (at_one - float(compile_formula(g.kernel, (Q, C))(1.0, 1 - step))) / step / at_one
    assert slope == pytest.approx(g.numeric()["chi"], rel=5e-3)


def test_noise_has_no_kernel() -> None:
    for name in ("rrelu_training",):
        g: Any = gain(name)
        assert g.kernel is None
    both: Any = gain("crelu")
    relu: Any = activation_maps(gain("relu").activation, 1).kernel
    assert float(both.kernel.subs({Q: 1, C: HALF})) == pytest.approx(float(relu.subs({Q: 1, C: HALF})))


@pytest.mark.parametrize(("op", "fields", "name"), [
    ("glu", {}, "glu"), ("glu", {"function": "silu"}, "swiglu"), ("maxout", {"k": 3}, "maxout(3)"),
    ("crelu", {}, "crelu"), ("crelu", {"function": "elu"}, "concat_elu")])
def test_layers_have_the_same_moments(op: str, fields: dict[str, Any], name: str) -> None:
    net = vf.Network("gate")
    h = net.linear(net.input("x", channels=12), 12, variance="1/fan_in", name="h")
    net.apply(op, h, name="y", **fields)
    d = vf.derive(net)
    numbers: Any = d.numeric()
    ours: Any = gain(name).numeric()
    assert numbers["y"]["second_moment"] == pytest.approx(ours["second_moment"], rel=1e-9)
    share = numbers["h"]["grad_second_moment"] / numbers["y"]["grad_second_moment"]
    width = numbers_of_channels(op, fields)
    assert share == pytest.approx(ours["derivative_second_moment"] * width, rel=1e-9)


def numbers_of_channels(op: str, fields: dict[str, Any]) -> float:
    """Output channels for each input channel."""
    return {"glu": 1 / 2, "maxout": 1 / int(fields.get("k", 2)), "crelu": 2.0}[op]


# -- functions of Python ---------------------------------------------------------------------------------------


def test_a_python_function_has_numbers_alone() -> None:
    g = gain(lambda x: np.maximum(x, 0))
    wanted = gain("relu").numeric()
    assert g.numeric()["second_moment"] == pytest.approx(wanted["second_moment"], rel=1e-10)
    assert g.numeric()["derivative_second_moment"] == pytest.approx(0.5, rel=1e-9)
    assert g.mean == pytest.approx(wanted["mean"], rel=1e-10) and isinstance(g.mean, float)
    assert not any(g.closed_form.values()) and set(g.closed_form) == set(FIELDS) == set(g.numeric())
    assert g.dead_share is None and g.second_derivative_second_moment is None
    assert "0.5" in g._repr_html_()


def test_a_python_function_of_one_number() -> None:
    shifted = gain(math.tanh, q=2, mean=0.3).numeric()
    wanted = gain("tanh", q=2, mean=sp.Rational(3, 10)).numeric()
    for name in ("mean", "second_moment", "variance", "init_gain", "init_gain_centered", "chi"):
        assert shifted[name] == pytest.approx(wanted[name], rel=1e-7), name


def test_zero_as_a_python_function() -> None:
    g = gain(lambda x: 0 * x)
    assert g.init_gain is None and g.init_gain_centered is None and g.chi is None


@pytest.mark.parametrize("wrong", [3, lambda x: x + None, lambda x: "a", lambda: 1])
def test_what_is_no_function_of_a_number_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError):
        gain(wrong)


# -- one activation ----------------------------------------------------------------------------------------------


def test_fields_are_made_when_asked_for() -> None:
    gain("relu")
    start = time.process_time()
    g = gain("relu", q=sp.Rational(12345, 1234))
    assert time.process_time() - start < 0.02
    assert not set(FIELDS) & set(vars(g))
    assert g.second_moment == sp.Rational(12345, 2468) and "second_moment" in vars(g)


def test_dead_inputs() -> None:
    m, q = sp.Symbol("m", real=True), positive("q")
    assert gain("relu").dead_share == sp.Rational(1, 2)
    shifted = gain("relu", q=q, mean=m).dead_share
    assert shifted is not None
    value = float(shifted.subs({m: 1, q: 4}))
    assert value == pytest.approx(math.erfc(0.5 / math.sqrt(2)) / 2)
    assert gain("hardshrink").numeric()["dead_share"] == pytest.approx(math.erf(0.5 / math.sqrt(2)))
    assert gain("tanh").dead_share == 0 and gain("leaky_relu").dead_share == 0 and gain("step").dead_share == HALF
    assert gain(sp.S.Zero).dead_share == 1


def test_saturated_inputs() -> None:
    g: Any = gain("tanh")
    border = math.acosh(10)
    assert g.saturated_share() == pytest.approx(math.erfc(border / math.sqrt(2)), rel=1e-6)
    assert gain("hardtanh").saturated_share() == pytest.approx(math.erfc(1 / math.sqrt(2)), rel=1e-12)
    assert gain("hardtanh", q=4, mean=1).saturated_share() == pytest.approx(0.5 + math.erfc(1 / math.sqrt(2)) / 2)
    assert gain("relu").saturated_share() == pytest.approx(0.5) and gain("identity").saturated_share() == 0
    assert gain("sign").saturated_share() == pytest.approx(1)


def test_second_derivatives_leave_kinks_out() -> None:
    assert gain("relu").second_derivative_second_moment == 0 and gain("square").second_derivative_second_moment == 4
    assert gain("gelu").second_derivative_second_moment == sp.sqrt(3) / (2 * sp.pi)
    sample = np.random.default_rng(1).standard_normal(400_000)
    values = (-2 * np.tanh(sample) / np.cosh(sample) ** 2) ** 2
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - gain("tanh").numeric()["second_derivative_second_moment"]) < 5 * error


@pytest.mark.parametrize(("text", "field", "value"), [
    ("log(abs(x))", "derivative_second_moment", math.inf),
    ("sqrt(abs(x))*sign(x)", "second_moment", math.sqrt(2 / math.pi)),
    ("tanh(1000*x)", "dead_share", 0.0), ("x^20", "second_moment", float(sp.factorial2(39)))])
def test_unusual_activations(text: str, field: str, value: float) -> None:
    g: Any = gain(text)
    assert g.numeric()[field] == pytest.approx(value, rel=1e-9)
    start = time.process_time()
    assert 0 <= g.saturated_share() <= 1
    assert time.process_time() - start < 1


@pytest.mark.parametrize("text", ["1/x", "log(x)", "exp(x^2)"])
def test_activations_without_moments_are_refused(text: str) -> None:
    with pytest.raises(vf.VarflowError):
        gain(text).numeric()
    answer = command(text)
    assert answer.returncode == 2 and "Traceback" not in answer.stderr


@pytest.mark.parametrize(("text", "meant"), [("gelluu", "gelu"), ("SwiGLU2", "swiglu"), ("leakyrelu", "leaky_relu"),
                                             ("leekyrelu(0.1)", "leaky_relu"), ("max_out(3)", "maxout")])
def test_unknown_names_are_answered_by_the_nearest(text: str, meant: str) -> None:
    with pytest.raises(ExpressionError, match=f"did you mean '{meant}'"):
        gain(text)


def test_other_errors_get_no_hint() -> None:
    for text in ("relu(3)", "x*foo(x)", "qqqqqq", "x +"):
        with pytest.raises(ExpressionError) as caught:
            gain(text)
        assert "did you mean" not in str(caught.value)


# -- documents -------------------------------------------------------------------------------------------------


def test_rendering_in_a_notebook() -> None:
    g = gain("relu")
    assert "<table>" in g._repr_html_() and "init_gain" in g._repr_html_() and r"\frac{1}{2}" in g._repr_html_()
    bad = gain("tanh", q=positive("<script>"))
    assert "<script>" not in bad._repr_html_() and "<script>" not in bad._repr_latex_()
    assert r"\input{" not in gain("relu", q=positive(r"\input{a}"))._repr_latex_()
    assert "maxout(3)" in gain("maxout(3)")._repr_html_()


def test_maps_render_too() -> None:
    maps = activation_maps(gain("relu").activation, positive("<script>"))
    assert "<script>" not in maps._repr_html_() and r"\chi" in maps._repr_latex_()
    assert "s &=" in activation_maps(np.tanh, 1)._repr_latex_()
    assert r"\mathbb{E} f^2" in gain(np.tanh)._repr_latex_()


def test_names_are_escaped_in_documents() -> None:
    report = GainReport(gain("relu", q=positive(r"\input{a}")), name=r"\input{b} & <script>")
    text = to_latex(page(report))
    assert r"\input{" not in text and r"b\} \& \textless{}script" in text
    assert "<script>" not in to_markdown(page(report))


def test_long_fractions_are_shown_as_decimals() -> None:
    short = readable(gain("selu").second_moment)
    assert short.has(sp.Float) and readable(sp.Rational(1, 3) + X) == sp.Rational(1, 3) + X
    assert "0000000000" not in to_latex(page(GainReport(gain("selu"))))


def test_json_document() -> None:
    document = GainReport(gain("tanh"), bias_variance=sp.Rational(1, 10), weight_scale=sp.Rational(3, 2)).document()
    maps = document["maps"]
    (point,) = maps["fixed_points"]
    assert document["schema"] == 1 and document["activation"] == "tanh(x)" and maps["weight_scale"] == "3/2"
    assert point["stability"] == "stable" and point["correlations"][-1]["c"] == 1.0
    assert "maps" not in GainReport(gain("swiglu")).document()
    assert GainReport(gain("relu", q=positive("q"))).document()["value"] == {}


@pytest.mark.parametrize("suffix", [".tex", ".md", ".json", ".png", ".svg"])
def test_documents_are_written(suffix: str, tmp_path: Path) -> None:
    if suffix in (".png", ".svg"):
        pytest.importorskip("matplotlib")
    path = export_gain(GainReport(gain("gelu"), name="gelu"), tmp_path / f"gelu{suffix}")
    content = path.read_bytes()
    marks = {".tex": rb"\end{document}", ".md": b"# The gains of gelu", ".json": b'"fixed_points"', ".png": b"PNG",
             ".svg": b"<svg"}
    assert marks[suffix] in content


def test_gains_are_exported(tmp_path: Path) -> None:
    path = vf.export(vf.gain("swiglu"), tmp_path / "swiglu.md")
    assert path.read_text().startswith("# The gains of swiglu")


@pytest.mark.parametrize("text", [
    "identity", "exp", "square", "sign", "5", pytest.param("log(abs(x))", marks=pytest.mark.slow)])
def test_figures_of_unusual_maps(text: str) -> None:
    pytest.importorskip("matplotlib")
    assert figure(GainReport(gain(text))).axes


def test_wrong_paths_are_refused(tmp_path: Path) -> None:
    report = GainReport(gain("relu"))
    with pytest.raises(InputError, match="suffix"):
        export_gain(report, tmp_path / "a.doc")
    with pytest.raises(InputError, match="folder"):
        export_gain(report, tmp_path / "missing" / "a.tex")
    with pytest.raises(InputError, match="no maps"):
        pytest.importorskip("matplotlib")
        export_gain(GainReport(gain("swiglu")), tmp_path / "a.png")


def test_a_figure_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="varflow\\[plot\\]"):
        export_gain(GainReport(gain("relu")), tmp_path / "relu.png")


@pytest.mark.slow
def test_pdf(tmp_path: Path) -> None:
    from shutil import which

    if which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    for name in ("gelu", "swiglu", "leaky_relu"):
        path = export_gain(GainReport(gain(name), name=name + r"_&\x"), tmp_path / f"{name}.pdf")
        assert path.read_bytes().startswith(b"%PDF")


# -- the command ----------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "varflow.cli", "gain", *arguments], capture_output=True, text=True,
                          check=False)


def test_the_command_is_light_and_fast() -> None:
    program = ("import sys, json\nfrom varflow import cli\nsys.argv = ['varflow', 'gain', 'relu']\n"
               "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
               "print(json.dumps(sorted(sys.modules)))")
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    loaded = set(json.loads(answer.stdout.splitlines()[-1]))
    assert not HEAVY & loaded
    assert "init_gain" in answer.stdout
    assert min(seconds) < 1.5


def test_tables_of_the_command(tmp_path: Path) -> None:
    answer = command("tanh", "--maps", "--weight-scale", "3/2", "--bias-variance", "1/10")
    assert answer.returncode == 0 and "fixed points" in answer.stdout and "stable" in answer.stdout
    assert "\x1b" not in answer.stdout
    assert all(a in answer.stdout for a in ("E[tanh(z)**2", "weight_scale", "dead_share"))
    target = tmp_path / "relu.json"
    assert command("relu", "-o", str(target)).stdout.strip() == str(target)
    assert json.loads(target.read_text())["maps"]["keeps_every_q"] is True


def test_json_of_the_command_is_finite() -> None:
    document = json.loads(command("sign", "--maps", "--json").stdout)
    assert document["chi"] == "oo" and document["value"]["chi"] is None
    assert document["maps"]["fixed_points"][0]["chi"] is None
    assert json.loads(command("maxout(3)", "--json").stdout)["value"]["mean"] == pytest.approx(1.5 / math.sqrt(math.pi))


def test_latex_of_the_command() -> None:
    lines = command("relu", "--latex", "--maps").stdout.splitlines()
    assert lines[0].startswith("f(x) = ") and any(line.startswith("q' = q") for line in lines)


@pytest.mark.parametrize("arguments", [("gellu",), ("swiglu", "--maps"), ("relu", "--q", "a b"), ("maxout(0)",),
                                       ("relu", "-o", "a.doc"), ("relu", "--weight-scale", "s", "-o", "a.png")])
def test_wrong_commands(arguments: tuple[str, ...]) -> None:
    answer = command(*arguments)
    assert answer.returncode == 2 and answer.stdout == "" and "error" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_every_activation_has_a_document() -> None:
    for name in ("identity", "step", "square", "exp", "siren"):
        text = to_latex(page(GainReport(gain(name), name=name)))
        assert text.count(r"\begin{") == text.count(r"\end{") > 2


@pytest.mark.parametrize("arguments", [
    ("--q", "-1"), ("--q", "nan"), ("--mean", "-inf"), ("--maps", "--weight-scale", "-2"), ("--bias-variance", "-1/20"),
    ("--q", "2*q", "--set", "q=-1"),
], ids=" ".join)
def test_arguments_without_a_meaning_are_refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    from varflow import cli

    monkeypatch.setattr("sys.argv", ["varflow", "gain", "tanh", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and re.search("is negative|no finite real number", capsys.readouterr().err)


def test_maps_at_scales_of_unknown_sign() -> None:
    """Sympy does not know besselk(1, 1/4) to be real: the maps of bent_identity were refused."""
    g: Any = gain("bent_identity")
    maps = g.maps()
    assert float(maps.weight_scale) == pytest.approx(1 / g.numeric()["second_moment"], rel=1e-12)
    with pytest.raises(InputError, match="no finite real number"):
        gain("relu", sp.sqrt(sp.besselj(0, 3)))
