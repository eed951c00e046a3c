"""Documents of the shipped image networks: short enough for an appendix, within the page, every symbol explained."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import varflow as vf
from varflow.export import latex
from varflow.export.assemble import assemble
from varflow.export.document import Document, Entry
from varflow.export.formulas import printed, shifted, width
from varflow.export.markdown import to_markdown
from varflow.export.steps import Steps

PAGES = {"resnet50": 18, "densenet121": 28, "unet": 12, "mobilenet_v2": 22}
"""At most this many pages."""
needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")


@cache
def document(name: str) -> Document:
    net = vf.load(name)
    d = vf.derive(net)
    solution = vf.solve(net, preserve="forward") if d.unknowns() else None
    return assemble(solution.derivation if solution else d, solution)


def entries(name: str) -> tuple[Entry, ...]:
    return (*document(name).forward, *document(name).backward)


@needs_latex
@pytest.mark.parametrize("name", PAGES)
def test_pages_and_margins(name: str) -> None:
    with TemporaryDirectory() as folder:
        Path(folder, "derivation.tex").write_text(latex.to_latex(document(name)))
        log = latex._run(str(shutil.which("pdflatex")), folder, Path("a.pdf"))
    found = re.search(r"Output written on [^(]*\((\d+) pages", log)
    assert found is not None
    assert int(found[1]) <= PAGES[name]
    too_wide = [float(w) for w in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log)]
    assert max(too_wide, default=0.0) < 5


@pytest.mark.parametrize("name", PAGES)
def test_every_kind_of_symbol_is_explained(name: str) -> None:
    explained = {symbol.partition("_")[0] for symbol, _ in document(name).notation}
    text = " ".join(eq.left + " ".join(map(" ".join, eq.sides)) for e in entries(name) for eq in e.equations)
    used = set(re.findall(r"(?<![a-z\\])([qmgckrs])_\{\\mathrm", text))
    assert used <= explained
    letters = {eq.left for e in entries(name) for line in e.equations for eq in line.where}
    assert set(re.findall(r"t_\{\d+\}", text)) <= letters


@pytest.mark.parametrize("name", PAGES)
def test_every_value_is_told_once(name: str) -> None:
    told = [n for e in document(name).forward for n in e.nodes.names]
    assert len(told) == len(set(told)) == len(Steps(vf.derive(vf.load(name))).values)


def test_blocks_of_a_concatenation_are_told_once_with_their_range() -> None:
    norm = next(e for e in document("densenet121").forward if e.nodes.names == ("norm5",))
    assert len(norm.equations) < 10
    ranges = [side[-1] for eq in norm.equations for side in eq.sides if r"\nu =" in side[-1]]
    assert any(r"\nu = 3, \dots, 18" in r for r in ranges)
    assert any(r"q_{\mathrm{norm5},\nu+1}" in " ".join(side) for eq in norm.equations for side in eq.sides)


def test_corresponding_layers_of_many_blocks_are_told_together() -> None:
    assert len(document("densenet121").forward) < 60
    assert max(e.nodes.count for e in document("densenet121").forward) == 58
    assert any("more equations of these forms" in r for e in entries("densenet121") for r in e.remarks)


def test_moments_without_a_formula_are_formulas_in_sentences() -> None:
    texts = [r for e in entries("resnet50") for r in e.remarks if "no formula" in r]
    assert texts
    for rendered in (latex.to_latex(document("resnet50")), to_markdown(document("resnet50"))):
        said = [line for line in rendered.splitlines() if "no formula" in line]
        assert said
        assert all(re.search(r"\$c_\{.*\}\$", line) for line in said)
        assert "\ue010" not in rendered


def test_a_remark_of_symmetry_is_no_reference() -> None:
    assert not any("symmetry" in r.text for r in document("unet").references)


def test_long_cases_stand_above_their_conditions() -> None:
    import sympy as sp

    x, y = sp.symbols("first_long_name second_long_name", real=True)
    long = sp.Piecewise(((x + y)**2 * sp.exp(x) + sp.exp(y), sp.Or(x > y + 1, sp.And(x < 0, y > 3))), (0, True))
    text = printed(long, {})
    assert r"\\ \quad \text{if }" in text
    assert r"\\ \quad \text{or }" in text
    assert width(text) < width(text.replace(r"\\", ""))


def test_running_numbers() -> None:
    assert [shifted("n", b, a) for a, b in ((1, 0), (1, 2), (2, -1), (-1, 17), (-2, 9))] == [
        "n", "n+2", "2n-1", "17-n", "9-2n"]
