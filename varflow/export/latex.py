"""A document as LaTeX, stand-alone or as a fragment for \\input, and as PDF."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from varflow.errors import MissingExtraError, UnsupportedError
from varflow.export.document import EXACTNESS_TEXT, TIER_TEXT, Document, Equation, NameList
from varflow.export.formulas import FORMULA, width
from varflow.export.names import latex_text, math_name
from varflow.export.references import Citation
from varflow.export.rendering import environment, lines
from varflow.export.sums import LINE

PACKAGES = "texlive-latex-base texlive-latex-recommended lmodern"
INSTALL = (f"install a LaTeX: on Debian or Ubuntu `apt-get install {PACKAGES}`, on Fedora "
           "`dnf install texlive-scheme-basic texlive-booktabs texlive-lm`, on macOS MacTeX, on Windows MiKTeX; "
           "or export to .tex or .md, which need none")
SECONDS = 180
SHRUNK = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}"
"""Scales what is wider than the page, and nothing else."""
NO_FIGURES: Mapping[str, bytes] = MappingProxyType({})
MATH = (
    (re.compile(r"fan_(in|out)"), r"\\mathrm{fan_{\1}}"),
    (re.compile(r"Var\((\w)_ij\)"), r"\\operatorname{Var}(\1_{ij})"),
    (re.compile(r"\bf'"), r"f'"),
    (re.compile(r"\b([A-Za-z])\^(\w)"), r"\1^{\2}"),
    (re.compile(r"\b([A-Za-z])_(\w)\b"), r"\1_{\2}"),
)
NAMED = re.compile(r"\b([qmgcs])_([A-Za-z]\w+(?:\[\d+\]|\.\w+)*)")
"""A moment or a scale of a node."""


def prose(text: str) -> str:
    """A sentence of ours, with the formulas that it writes plainly set as formulas."""
    found: list[str] = []

    def keep(formula: str) -> str:
        found.append(formula)
        return f"\ue000{len(found) - 1}\ue001"

    text = FORMULA.sub(lambda m: keep(m[1]), text)
    text = NAMED.sub(lambda m: keep(f"{m[1]}_{{{math_name(m[2])}}}"), text)
    for expression, form in MATH:
        text = expression.sub(lambda m, form=form: keep(m.expand(form)), text)  # type: ignore[misc]
    parts = re.split("\ue000(\\d+)\ue001", text)
    return "".join(f"${found[int(p)]}$" if i % 2 else latex_text(p) for i, p in enumerate(parts))


def long(text: str) -> str:
    """A name or a layer, whose words may be broken anywhere if they are long."""
    return " ".join(latex_text(word, breakable=len(word) > 20 or not word.isascii()) for word in text.split(" "))


def names(nodes: NameList) -> str:
    """A list of names in typewriter letters."""
    return ", ".join(r"\dots" if n == "…" else rf"\texttt{{{long(n)}}}" for n in nodes.shown)


def cited(citations: Sequence[Citation]) -> str:
    """Citations behind a sentence."""
    return "".join(rf"~\cite[{latex_text(c.detail)}]{{{c.key}}}" if c.detail else rf"~\cite{{{c.key}}}"
                   for c in citations)


def display(equations: Iterable[Equation]) -> str:
    """Equations one below the other; a line that would still run off the page is scaled down."""
    blocks: list[list[str]] = [[]]
    out: list[str] = []
    for eq in equations:
        for left, right in lines(eq):
            if width(left + right) > LINE:
                out += [_align(blocks.pop()), rf"\[{SHRUNK}{{$\displaystyle {left} {right}$}}\]"]
                blocks.append([])
            else:
                blocks[-1].append(f"{left} &{right}" if left else f"&{right}")
    return "\n".join(filter(None, [*out, _align(blocks[-1])]))


def _align(rows: list[str]) -> str:
    return "" if not rows else "\\begin{align*}\n" + " \\\\\n".join(rows) + "\n\\end{align*}"


def to_latex(document: Document, fragment: bool = False) -> str:
    """The LaTeX text; a fragment leaves preamble and bibliography to the document that inputs it."""
    env = environment()
    env.filters.update(tex=latex_text, long=long, prose=prose, names=names,
                       cited=cited, display=display)
    return env.get_template("derivation.tex.j2").render(
        d=document, fragment=fragment, exactness=EXACTNESS_TEXT, tier=TIER_TEXT,
        h1="subsection" if fragment else "section", h2="paragraph")


def to_bibtex(document: Document) -> str:
    """The references of a fragment."""
    return "\n\n".join(r.bibtex for r in document.references) + "\n"


def write_pdf(document: Document, path: Path) -> None:
    """Sets a document by pdflatex; see :func:`set_pdf`."""
    set_pdf(to_latex(document), path)


def set_pdf(text: str, path: Path, figures: Mapping[str, bytes] = NO_FIGURES) -> None:
    """Runs pdflatex in a folder of its own, without shell escape and without writing elsewhere.

    ``figures`` are files that the text includes, by name. Raises MissingExtraError where no LaTeX, or a package
    of it, is installed.
    """
    program = shutil.which("pdflatex")
    if program is None:
        raise MissingExtraError("pdflatex is not installed", str(path), "a .pdf is set by LaTeX", INSTALL)
    with TemporaryDirectory(prefix="varflow-") as folder:
        Path(folder, "derivation.tex").write_text(text, encoding="utf-8")
        for name, content in figures.items():
            Path(folder, name).write_bytes(content)
        for _ in range(3):
            log = _run(program, folder, path)
            if "Rerun to get" not in log and "rerunfilecheck" not in log and "Table widths have changed" not in log:
                break
        path.write_bytes(Path(folder, "derivation.pdf").read_bytes())


def _run(program: str, folder: str, path: Path) -> str:
    command = [program, "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "derivation.tex"]
    env = {**os.environ, "openout_any": "p", "openin_any": "p", "max_print_line": "1000", "TEXMFOUTPUT": folder}
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=SECONDS, check=False,
                              stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise UnsupportedError(f"pdflatex did not end within {SECONDS} s", str(path),
                               instead="export to .tex and set it by hand") from None
    log_file = Path(folder, "derivation.log")
    log = log_file.read_text(encoding="latin-1") if log_file.exists() else done.stdout.decode("latin-1")
    if done.returncode != 0:
        raise _failure(log, path)
    return log


def _failure(log: str, path: Path) -> MissingExtraError | UnsupportedError:
    missing = re.search(r"File `([^']+)' not found", log)
    if missing:
        return MissingExtraError(f"the LaTeX package file {missing[1]} is not installed", str(path), "", INSTALL)
    error = next((line for line in log.splitlines() if line.startswith("!")), "! no message in its log")
    return UnsupportedError(f"pdflatex stopped: {error[2:]}", str(path), instead="export to .tex and look at its log")
