"""Names in documents: everything a user may have called something, made safe for LaTeX and Markdown.

A name is never printed raw: :func:`latex_text` is for running text of a LaTeX document, :func:`math_name` for
upright text within a formula (LaTeX and MathJax alike), :func:`markdown_text` for running text of Markdown.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

LONGEST = 28
"""Characters of a name that a formula shows in full."""

GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "zeta": "ζ", "eta": "η", "theta": "θ",
    "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ",
    "tau": "τ", "upsilon": "υ", "phi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ",
    "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω",
}
_GREEK_COMMAND = {letter: rf"\{name}" for name, letter in GREEK.items()}
_LATIN = frozenset("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿŒœŠšŽž"
                   "ĂăĄąĆćČčĎďĘęĚěĞğŁłŃńŇňŐőŘřŚśŞşŤťŮůŰűŸŹźŻż")
"""Letters beyond ASCII that the T1 encoding has."""

_TEXT = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "`": r"\textasciigrave{}",
    "-": r"{-}", "[": r"{[}", "]": r"{]}", "²": r"\ensuremath{{}^2}", "±": r"\ensuremath{\pm}",
    "≤": r"\ensuremath{\le}", "≥": r"\ensuremath{\ge}", "×": r"\ensuremath{\times}", "…": r"\dots{}",
    "→": r"\ensuremath{\to}", "–": r"--", "—": r"---", "·": r"\ensuremath{\cdot}", "∞": r"\ensuremath{\infty}",
}
_MATH = {
    "\\": r"\backslash ", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"{\wedge}", "~": r"{\sim}", "<": r"\lt ", ">": r"\gt ", "|": r"\vert ", "-": r"\text{-}", "*": r"{\ast}",
    "'": r"\text{'}", '"': r"\text{''}", "`": r"\text{'}", " ": r"\ ", "=": r"{=}", "+": r"{+}", ":": r"{:}",
    ",": r"{,}", ";": r"{;}", "!": r"{!}", "?": r"{?}", "/": r"{/}", "…": r"\ldots ", "(": r"{(}", ")": r"{)}",
    "[": r"{[}", "]": r"{]}", "@": r"\text{@}", ".": r"{.}",
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|$~])|([&<>])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def _code(char: str) -> str:
    return f"U+{ord(char):04X}"


def _plain(char: str) -> bool:
    return char.isascii() and char.isprintable()


@lru_cache(maxsize=65536)
def latex_text(text: str, breakable: bool = False) -> str:
    """Text for a LaTeX document: every special character escaped, characters that the fonts lack as U+XXXX.

    ``breakable`` lets lines break between any two characters.
    """
    parts = [_text_char(c) for c in unicodedata.normalize("NFC", text)]
    if not breakable:
        return "".join(parts)
    return "".join(p if p == " " else p + r"\allowbreak{}" for p in parts)


def _text_char(char: str) -> str:
    if char in _TEXT:
        return _TEXT[char]
    if _plain(char) or char in _LATIN:
        return char
    if char in _GREEK_COMMAND:
        return rf"\ensuremath{{{_GREEK_COMMAND[char]}}}"
    return " " if char.isspace() else "{[}" + _code(char) + "{]}"


@lru_cache(maxsize=65536)
def math_name(name: str) -> str:
    """The name as upright text within a formula."""
    parts: list[tuple[bool, str]] = [_math_char(c) for c in unicodedata.normalize("NFC", name)]
    inside = "".join(text if upright else f"}}{text}\\mathrm{{" for upright, text in parts)
    return rf"\mathrm{{{inside}}}".replace(r"\mathrm{}", "")


def _math_char(char: str) -> tuple[bool, str]:
    if char in _MATH:
        return True, _MATH[char]
    if char.isascii() and char.isalnum():
        return True, char
    if char in _GREEK_COMMAND:
        return False, _GREEK_COMMAND[char] + " "
    if char in _LATIN:
        return True, rf"\text{{{char}}}"
    return True, r"\ " if char.isspace() else rf"\text{{[{_code(char)}]}}"


@lru_cache(maxsize=65536)
def markdown_text(text: str) -> str:
    """Text for Markdown: no markup, no HTML, one line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return _MARKDOWN.sub(lambda m: "\\" + m[1] if m[1] else _ENTITIES[m[2]], line)


def markdown_code(text: str) -> str:
    """A name as code within a Markdown table or line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split()) or " "
    safe = line.replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if "`" in line else ""
    return f"{fence}{pad}{safe}{pad}{fence}"


def symbol_latex(name: str) -> str:
    r"""A user's symbol: ``n``, ``d_k`` as d_{\mathrm{k}}, ``alpha`` as a Greek letter, ``fan_in`` upright."""
    head, _, tail = name.partition("_")
    if not tail or (len(head) > 1 and head not in GREEK):
        return _letter(name)
    return rf"{_letter(head)}_{{{_letter(tail)}}}"


def _letter(name: str) -> str:
    if name in GREEK:
        return rf"\{name}"
    return name if len(name) == 1 and name.isascii() and name.isalnum() else math_name(name)


class Labels:
    """Short, distinct names for formulas: long ones lose their middle, and get a number where they would meet."""

    def __init__(self, names: Iterable[str]) -> None:
        self.full = tuple(names)
        taken = {n for n in self.full if len(n) <= LONGEST}
        self._short: dict[str, str] = {}
        for number, name in enumerate(n for n in self.full if len(n) > LONGEST):
            short = f"{name[:12]}…{name[-8:]}"
            self._short[name] = short if short not in taken else f"{name[:8]}…{number + 1}"
            taken.add(self._short[name])

    def of(self, name: str) -> str:
        """The label of a name."""
        return self._short.get(name, name)

    @property
    def shortened(self) -> dict[str, str]:
        """Label by name, of names that lost their middle."""
        return dict(self._short)
