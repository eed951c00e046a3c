"""Derivations as documents: LaTeX, PDF, Markdown, JSON, and the chain of steps behind one node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from varflow.derive import Derivation, derive
from varflow.errors import InputError, MissingExtraError, kind_of, require_path
from varflow.export.explain import explain
from varflow.export.jsonout import to_json
from varflow.gain_fields import GainFields
from varflow.network import Network

__all__ = ["explain", "export", "to_json"]
SUFFIXES = (".tex", ".pdf", ".md", ".json")


def export(subject: Any, path: str | Path, verification: Any = None, fragment: bool = False) -> Path:
    """Write the derivation of ``subject`` (a Derivation, a Solution or a Network) as a document.

    The gains of an activation (``vf.gain``) are written with their maps: .tex, .pdf, .md, .json, .png or .svg.

    The suffix of ``path`` chooses the format: .tex, .pdf, .md or .json. ``verification`` adds its table.
    ``fragment``: a .tex without preamble, for \\input, and a .bib of the same name beside it.
    Returns the path. Raises InputError for another suffix or subject, MissingExtraError where LaTeX is missing.
    """
    require_path(path, "the path", 'where to write: vf.export(derivation, "derivation.pdf")')
    target = Path(path)
    if isinstance(subject, GainFields):
        from varflow.export.gain_report import export_gain
        from varflow.gain_report import GainReport

        return export_gain(GainReport(subject), target)
    if verification is not None and not _is_verification(verification):
        raise InputError(f"the verification is {kind_of(verification)}", instead="what vf.verify returned, or None")
    derivation, solution = split_subject(subject)
    check_target(target, fragment)
    if target.suffix.lower() == ".json":
        import json

        _write(target, json.dumps(to_json(subject, verification=verification), indent=2, ensure_ascii=False) + "\n")
        return target
    from varflow.export.assemble import assemble

    document = assemble(derivation, solution, verification)
    match target.suffix.lower():
        case ".md":
            from varflow.export.markdown import to_markdown

            _write(target, to_markdown(document))
        case ".tex":
            from varflow.export.latex import to_bibtex, to_latex

            _write(target, to_latex(document, fragment))
            if fragment:
                _write(target.with_suffix(".bib"), to_bibtex(document))
        case _:
            from varflow.export.latex import write_pdf

            write_pdf(document, target)
    return target


def split_subject(subject: Any) -> tuple[Derivation, Any]:
    """(derivation, solution or None) of what a user hands over."""
    if isinstance(subject, Derivation):
        return subject, None
    if isinstance(subject, Network):
        return derive(subject), None
    if isinstance(getattr(subject, "derivation", None), Derivation):
        return subject.derivation, subject
    raise InputError(f"{kind_of(subject)} cannot be exported or explained",
                     instead="a Derivation, a Solution or a Network")


def _is_verification(value: object) -> bool:
    return not isinstance(value, type) and all(hasattr(value, name) for name in ("nodes", "verdict", "delta"))


def check_target(target: Path, fragment: bool = False) -> None:
    """Raise InputError, or MissingExtraError, for a path that no document can be written to."""
    suffix = target.suffix.lower()
    if suffix in (".html", ".htm"):
        raise MissingExtraError("documents in HTML are not part of this version", str(target),
                                instead="export to .md, .tex or .pdf")
    if suffix not in SUFFIXES:
        raise InputError(f"the suffix {suffix!r} names no document format", str(target),
                         instead="one of " + ", ".join(SUFFIXES))
    if fragment and suffix != ".tex":
        raise InputError("only a .tex can be a fragment", str(target), instead="a path that ends in .tex")
    if not target.absolute().parent.is_dir():
        raise InputError(f"there is no folder {target.parent}", str(target), instead="a path in an existing folder")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
