"""Documents: what they say, that names cannot break them, that they stay short, and that LaTeX sets them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import sympy as sp

import varflow as vf
from tests.export import networks
from varflow.errors import InputError, MissingExtraError
from varflow.export import explain, export, latex, to_json
from varflow.export.assemble import assemble
from varflow.export.markdown import to_markdown
from varflow.export.names import (
    Labels,
    latex_text,
    markdown_code,
    markdown_text,
    math_name,
    symbol_latex,
)
from varflow.export.references import References, known
from varflow.expressions import parse
from varflow.network import Network
from varflow.ops import OPS

SCALES = {"n": 64, "s_fc1": 2, "s_fc2": 1}
NETWORKS: dict[str, Callable[[], Network]] = {
    "residual": networks.residual, "prenorm": lambda: networks.prenorm(4), "mixer": networks.mixer,
    "tied": networks.tied, "blocks": lambda: networks.blocks(5), "hostile": networks.hostile,
}
needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")


def markdown(net: Network, folder: Path) -> str:
    return export(vf.derive(net), folder / "out.md").read_text()


def test_residual_says_every_step(tmp_path: Path) -> None:
    text = markdown(networks.residual(), tmp_path)
    for formula in (r"q_{\mathrm{h}} &= \frac{q_{\mathrm{fc1}}}{2}", r"q_{\mathrm{y}} &= q_{\mathrm{fc2}} + 1",
                    r"g_{\mathrm{h}} &= s_{\mathrm{fc2}}", r"g_{\mathrm{fc1}} &= \frac{g_{\mathrm{h}}}{2}",
                    r"\frac{s_{\mathrm{fc1}} s_{\mathrm{fc2}}}{2} + 1", "Delving deep into rectifiers",
                    "Deep residual learning", r"\boxed", "exact, closed form"):
        assert formula in text
    for part in ("Network and notation", "Assumptions", "Rules", "Forward pass", "Backward pass", "Result",
                 "References"):
        assert f"## {part}" in text


def test_equal_steps_are_told_once(tmp_path: Path) -> None:
    text = markdown(networks.chain(40), tmp_path)
    assert "**`fc2`, `fc3`, …, `fc40`** (39 times, $\\ell$ = 2, 3, …, 40)" in text
    assert r"q_{\mathrm{fc}_{\ell}} &= s_{\mathrm{fc}_{\ell}} q_{\mathrm{h}_{\ell-1}}" in text
    assert "(40 times" in text
    assert len(text) < 8000


def test_residual_streams_telescope() -> None:
    document = assemble(vf.derive(networks.prenorm(12)))
    assert len(document.forward) <= 9
    assert any(e.nodes.count == 11 for e in document.forward)
    last = [eq for e in document.backward for eq in e.equations if eq.left == r"g_{\mathrm{x}_{\ell}}"]
    assert last and all(len(side) <= 2 for eq in last for side in eq.sides)


def test_repeats_of_blocks_are_grouped_by_layer() -> None:
    document = assemble(vf.derive(networks.blocks(12)))
    names = {e.nodes.names[0]: e.nodes.count for e in document.forward}
    assert names["blk[0].fc2"] == 12
    assert names["blk[1].fc1"] == 11


def test_auxiliary_moments_stand_before_their_use() -> None:
    document = assemble(vf.derive(networks.mixer()))
    seen: set[str] = set()
    for entry in (*document.forward, *document.backward):
        for eq in entry.equations:
            used = set(re.findall(r"[cgkqr]_\{\\mathrm\{[^}]*\}(?:,\d+)?\}", " ".join(eq.sides[0])))
            assert used <= seen
            seen.add(eq.left)


@pytest.mark.parametrize("suffix", [".tex", ".md", ".json"])
def test_every_network_exports(suffix: str, tmp_path: Path) -> None:
    for name, make in NETWORKS.items():
        path = export(make(), tmp_path / (name + suffix))
        assert path.stat().st_size > 500


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    d = vf.derive(networks.hostile())
    tex = export(d, tmp_path / "a.tex").read_text()
    body = tex.split(r"\begin{document}")[1]
    assert r"\input" not in body
    assert r"\textbackslash{}input" in body.replace(r"\allowbreak{}", "")
    assert "<script" not in export(d, tmp_path / "a.md").read_text().replace("`<script>alert(1)</script>`", "")
    json.loads(export(d, tmp_path / "a.json").read_text())


def test_names() -> None:
    assert latex_text("a_b{c}") == r"a\_b\{c\}"
    assert math_name("fc_1") == r"\mathrm{fc\_1}"
    assert markdown_text("<b>|_") == r"&lt;b&gt;\|\_"
    assert markdown_code("a`b|c") == "`` a`b\\|c ``"
    assert symbol_latex("alpha") == r"\alpha" and symbol_latex("d_k") == "d_{k}"
    labels = Labels(["x" * 300, "x" * 200, "y"])
    assert len({labels.of(n) for n in labels.full}) == 3
    assert all(len(labels.of(n)) <= 28 for n in labels.full)


def test_every_reference_of_an_op_is_known() -> None:
    for op in OPS.values():
        references = References()
        references.cite(op.lemma.reference)
        assert all(r.type != "misc" or len(r.text) > 4 for r in references.entries)
    assert len({r.key for r in known().values()}) > 25


def test_json_has_the_contract() -> None:
    d = vf.derive(networks.residual())
    found = to_json(d, SCALES, networks.verified(d, dict(SCALES)))
    assert (found["schema"], found["network"], found["verdict"]) == (1, "residual block", "pass")
    y = found["nodes"]["y"]
    assert y["second_moment"] == "s_fc1*s_fc2/2 + 1"
    assert y["local_gain"] is None
    assert y["value"]["second_moment"] == 2
    assert y["forward"] == {"predicted": 2.0, "estimate": 2.002, "ci": [1.99, 2.012], "verdict": "pass",
                            "exactness": "exact", "draws": 2000}
    assert found["weights"]["fc1"]["value"]["variance"] == 2 / 64
    assert found["nodes"]["fc1"]["grad_equation"] == "g_fc1 == g_h/2"
    assert found["delta"] == 0.02 and found["power"] == 0.9999
    json.dumps(found, allow_nan=False)


def test_json_formulas_read_back() -> None:
    d = vf.derive(networks.residual())
    symbols = {s.name: s for e in (d["y"].second_moment, d["h"].mean) if e is not None for s in e.free_symbols}
    for node, fields in to_json(d)["nodes"].items():
        for field in ("mean", "second_moment", "grad_second_moment"):
            assert parse(fields[field], symbols.get) == getattr(d[node], field)


def test_json_names_the_moments_of_long_formulas() -> None:
    found = to_json(vf.derive(networks.chain(200)))
    assert found["nodes"]["fc200"]["second_moment"] == "q_fc200"
    assert found["moments"]["q_fc200"] == "q_h199*s_fc200"
    assert len(json.dumps(found)) < 1_000_000


def test_json_refuses_open_symbols() -> None:
    with pytest.raises(InputError, match="s_fc1"):
        to_json(vf.derive(networks.residual()), {"n": 64})


def test_solution(tmp_path: Path) -> None:
    solved = vf.derive(networks.residual())
    s = solved.unknowns()["fc1"]
    solution = SimpleNamespace(
        derivation=solved, weights=solved.weights, preserve="forward", notes=("s_fc1: a <note>.", "s_fc2: a <note>."),
        equations=((s, sp.Eq(s / 2, 1, evaluate=False), sp.Integer(2), True),))
    text = export(solution, tmp_path / "s.md").read_text()
    assert r"\frac{s_{\mathrm{fc1}}}{2} &= 1" in text
    assert r"s_{\mathrm{fc1}} &= 2" in text
    assert r"s\_fc1: a &lt;note&gt;. Likewise s\_fc2." in text
    solution.unsolved, solution.derivation = solved, vf.derive(solved.network.substitute({}, {"fc1": sp.Integer(2)}))
    assert r"q_{\mathrm{h}} &= \frac{q_{\mathrm{fc1}}}{2}" in export(solution, tmp_path / "s.md").read_text()
    assert to_json(solution)["solved"]["s_fc1"] == {"condition": "s_fc1/2 == 1", "answer": "2", "closed_form": True}


def test_verification_table(tmp_path: Path) -> None:
    d = vf.derive(networks.residual())
    text = export(d, tmp_path / "v.md", verification=networks.verified(d, dict(SCALES))).read_text()
    assert r"| `y` | forward | 2 | 2.002 | \[1.99, 2.012\] | pass | exact |" in text
    assert "Overall: **pass** (10 pass)" in text and "tolerance 2 %" in text


def test_long_verifications_show_the_worst() -> None:
    d = vf.derive(networks.chain(50))
    values = {"n": 64.0, **{f"s_fc{i}": 2.0 for i in range(1, 51)}}
    v = networks.verified(d, values)
    v.nodes["h7"]["backward"] = networks.FakeCheck(1, 2, (1.9, 2.1), "fail")
    report = assemble(d, verification=v).report
    assert report is not None and len(report.rows) == 60 and report.left_out == 142
    assert any(r.node == "h7" and r.verdict == "fail" for r in report.rows)


def test_explain_tells_the_chain() -> None:
    text = explain(vf.derive(networks.residual()), "h")
    assert text.index(r"q_{\mathrm{x}} &= 1") < text.index(r"q_{\mathrm{fc1}} &=") < text.index(r"q_{\mathrm{h}} &=")
    assert r"q_{\mathrm{y}}" not in text
    assert r"g_{\mathrm{h}} &= s_{\mathrm{fc2}}" in text
    with pytest.raises(InputError, match="no node"):
        explain(vf.derive(networks.residual()), "hh")


def test_errors(tmp_path: Path) -> None:
    d = vf.derive(networks.residual())
    with pytest.raises(MissingExtraError, match="HTML"):
        export(d, tmp_path / "a.html")
    for path, fragment in (("a.docx", False), ("a.md", True), ("no/such/a.md", False)):
        with pytest.raises(InputError):
            export(d, tmp_path / path, fragment=fragment)
    with pytest.raises(InputError):
        export(3, tmp_path / "a.md")


def test_no_latex_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingExtraError, match="texlive-latex-base"):
        export(vf.derive(networks.residual()), tmp_path / "a.pdf")


def test_a_deep_chain_is_short_and_quick(tmp_path: Path) -> None:
    d = vf.derive(networks.chain(2000))
    start = time.process_time()
    text = export(d, tmp_path / "a.tex").read_text()
    assert time.process_time() - start < 20
    assert len(text) < 15_000


@needs_latex
@pytest.mark.parametrize("name", NETWORKS)
def test_latex_sets_every_document_within_the_page(name: str) -> None:
    document = assemble(vf.derive(NETWORKS[name]()))
    with TemporaryDirectory() as folder:
        Path(folder, "derivation.tex").write_text(latex.to_latex(document))
        log = latex._run(str(shutil.which("pdflatex")), folder, Path("a.pdf"))
    too_wide = [float(w) for w in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log)]
    assert max(too_wide, default=0.0) < 12


def test_lines_break_between_words() -> None:
    """A layer's text broke anywhere: "variance = 1/fa", "n_in"."""
    assert "allowbreak" not in latex.long("conv (kernel = 4, stride = 2, padding = 1, variance = 1/fan_in)")
    assert latex.long(21 * "a").count(r"\allowbreak") == 21


@needs_latex
@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext")
def test_fractions_stay_within_their_rows(tmp_path: Path) -> None:
    """Two points of white at least between a denominator and the numerator below it, in the table of weights."""
    net = vf.Network("two")
    h = net.relu(net.linear(net.input("x", "n"), "n", variance="2/fan_in", name="a"))
    net.linear(h, "n", variance="1/fan_in", name="b")
    path = export(vf.derive(net), tmp_path / "a.pdf")
    text = subprocess.run(["pdftotext", "-bbox", path, "-"], capture_output=True, text=True, check=True).stdout
    words = re.findall(r'xMin="(.*?)" yMin="(.*?)" xMax="(.*?)" yMax="(.*?)">(.*?)<', text)
    left, top = next((float(w[0]), float(w[1])) for w in words if w[4] == "variance")
    column = [(float(w[1]), float(w[3]), w[4]) for w in words
              if abs(float(w[0]) - left) < 8 and top < float(w[1]) < top + 60 and w[4] in "12n"]
    assert [text for _, _, text in sorted(column)] == ["2", "n", "1", "n"]
    (_, _, _), (_, below, _), (above, _, _), _ = sorted(column)
    assert above - below > 2


@needs_latex
def test_pdf(tmp_path: Path) -> None:
    d = vf.derive(networks.residual())
    path = export(d, tmp_path / "a.pdf", verification=networks.verified(d, dict(SCALES)))
    assert path.read_bytes().startswith(b"%PDF")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pdf"]


@needs_latex
def test_fragment_is_included(tmp_path: Path) -> None:
    export(vf.derive(networks.residual()), tmp_path / "block.tex", fragment=True)
    bib = (tmp_path / "block.bib").read_text()
    text = (tmp_path / "block.tex").read_text()
    assert r"\documentclass" not in text and "thebibliography" not in text
    assert set(re.findall(r"\\cite(?:\[[^]]*\])?\{([^}]*)\}", text)) == set(re.findall(r"@\w+\{([^,]*),", bib))
    (tmp_path / "derivation.tex").write_text(
        "\\documentclass{article}\\usepackage{amsmath,amssymb,booktabs,longtable,array,graphicx}"
        "\\begin{document}\\input{block}\\end{document}")
    latex._run(str(shutil.which("pdflatex")), str(tmp_path), tmp_path / "a.pdf")
    assert (tmp_path / "derivation.pdf").exists()


def test_sizes_of_grids_are_named_once() -> None:
    net = vf.Network("image")
    h = net.input("x", 3, ("size", "size"))
    for k in range(2):
        h = net.relu(net.conv(h, 16, 3, stride=2, padding=1, variance="2/fan_in", name=f"conv{k}"))
    text = to_markdown(assemble(vf.derive(net)))
    assert text.count(r"\lfloor") == 2
    assert r"$P_{1} \times P_{1} \times 16$" in text
    assert "A3." in text


@pytest.mark.parametrize("graph", ["two_branch_gate", "dense_concat", "lstm", "transformer"])
def test_json_equations_are_made_of_what_the_document_has(graph: str) -> None:
    """Names such as g_wx'2 and k_wu stood in equations, and nowhere else."""
    found = to_json(vf.derive(vf.load(graph)))
    own = {f"{kind}_{node}" for node in found["nodes"] for kind in ("q", "m", "g")}
    moments = found.get("moments", {})
    texts = [node[field] for node in found["nodes"].values() for field in ("equation", "grad_equation")]
    for text in filter(None, [*texts, *moments.values()]):
        for name in re.findall(r"`([^`]*)`|(?<![\w`.])([qmgckr]_[a-z]\w*)(?![\w.\[':])", text):
            assert "".join(name) in own | moments.keys(), (text, name)
