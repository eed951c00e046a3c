"""References: the short citations of lemmas and networks, matched to the BibTeX entries of ``references.bib``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from varflow.export.names import latex_text

_CITED = re.compile(r"^(?P<label>.*?\b(?:1[89]|20)\d\d)\b(?:,\s*(?P<detail>.*))?$")
_ENTRY = re.compile(r"@(?P<type>\w+)\{(?P<key>[^,]+),\n(?P<body>.*?)\n\}", re.S)
_FIELD = re.compile(r"^\s*(\w+) = \{(.*)\},?$", re.M)


@dataclass(frozen=True)
class Reference:
    """One entry of the list of references: ``fields`` as in BibTeX, plain Unicode text."""

    key: str
    type: str
    fields: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The entry in one line: authors, title, where, year."""
        f = dict(self.fields)
        authors = " and ".join(_turned(a) for a in f.get("author", "").split(" and ") if a)
        where = ", ".join(w for w in (f.get("booktitle"), f.get("journal"), f.get("volume")) if w)
        arxiv = f"arXiv:{f['eprint']}" if "eprint" in f else ""
        parts = [_commas(authors), f.get("title", ""), where, arxiv, f.get("year", "")]
        return ". ".join(p.rstrip(".") for p in parts if p) + "."

    @property
    def bibtex(self) -> str:
        """The entry for a .bib file, its text escaped."""
        rows = [f"  {k} = {{{_bib(v)}}}," for k, v in self.fields]
        if any(k == "eprint" for k, _ in self.fields):
            rows.append("  archiveprefix = {arXiv},")
        return "\n".join([f"@{self.type}{{{self.key},", *rows, "}"])


def _turned(author: str) -> str:
    last, _, first = author.partition(", ")
    return f"{first} {last}".strip()


def _commas(authors: str) -> str:
    names = authors.split(" and ")
    return authors if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"


def _bib(text: str) -> str:
    plain = text.replace("{", "(").replace("}", ")").replace("\\", "/")
    return latex_text(plain).replace("{[}", "[").replace("{]}", "]")


@cache
def known() -> dict[str, Reference]:
    """Entries of the data file by the label they are cited by."""
    text = files("varflow.export").joinpath("references.bib").read_text(encoding="utf-8")
    found = {}
    for block in text.split("\n% ")[1:]:
        label, _, rest = block.partition("\n")
        if entry := _ENTRY.search(rest):
            found[label.strip()] = Reference(entry["key"], entry["type"], tuple(_FIELD.findall(entry["body"])))
    return found


@dataclass(frozen=True)
class Citation:
    """One place of one reference, such as equation 10 of number 1."""

    number: int
    key: str
    detail: str = ""


@dataclass
class References:
    """The references that a document cites, numbered in the order they are first cited."""

    entries: list[Reference] = field(default_factory=list)

    def cite(self, text: str) -> tuple[Citation, ...]:
        """Citations for a text such as "He et al. 2015, eq. 10; Yang 2020, arXiv:2006.14548"."""
        parts = [p.strip() for p in text.split(";")]
        return tuple(self._one(p) for p in parts if p and not p.startswith("by "))

    def _one(self, text: str) -> Citation:
        match = _CITED.match(text)
        label, detail = (match["label"], match["detail"] or "") if match else (text, "")
        entry = known().get(label)
        if entry is None:
            entry, detail = _unknown(text), ""
        elif detail.startswith("arXiv:"):
            detail = ""
        if entry.key not in [e.key for e in self.entries]:
            self.entries.append(entry)
        number = [e.key for e in self.entries].index(entry.key) + 1
        return Citation(number, entry.key, detail)


def _unknown(text: str) -> Reference:
    slug = re.sub(r"[^a-z0-9]+", "", text.lower())[:32] or "reference"
    return Reference(slug, "misc", (("title", text),))
