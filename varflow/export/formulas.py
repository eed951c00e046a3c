"""Formulas as LaTeX: symbols by their names, integrals, and lines that fit a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import sympy as sp
from sympy.printing.latex import LatexPrinter
from sympy.printing.precedence import PRECEDENCE

from varflow.binormal import Phi2
from varflow.export.names import Labels, math_name, symbol_latex
from varflow.export.rounding import DIGITS, rounded
from varflow.export.steps import Name
from varflow.laws.integral import GaussianExpectation
from varflow.waves import CosTail, Dawson, SinTail

WIDEST_CASE = 44.0
"""Letters of a case beyond which its condition stands below it."""
INDEX, RUNNING = r"\ell", r"\nu"
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Pattern:
    """Names that differ in one number: ``before`` + (index + ``offset``) + ``after``."""

    before: str
    after: str
    offset: int
    letter: str = INDEX

    @property
    def latex(self) -> str:
        """With the index as a letter."""
        index = shifted(self.letter, self.offset)
        if not self.after:
            return rf"{math_name(self.before)}_{{{index}}}" if self.before else index
        return f"{math_name(self.before) if self.before else ''}{index}{math_name(self.after)}"

    @property
    def text(self) -> str:
        """In running text."""
        return f"{self.before}{{l{self.offset:+d}}}{self.after}" if self.offset else f"{self.before}{{l}}{self.after}"


def shifted(letter: str, offset: int, slope: int = 1) -> str:
    """A multiple of an index plus a number."""
    multiple = letter if abs(slope) == 1 else f"{abs(slope)}{letter}"
    if slope < 0:
        return f"{offset}-{multiple}"
    return f"{multiple}{offset:+d}" if offset else multiple


@dataclass(frozen=True)
class Running:
    """A name within equations told once for several numbers: its own is ``shift`` = (multiple, offset) of the letter
    (None: it keeps its own), its node ``node``."""

    node: Pattern | str
    shift: tuple[int, int] | None


def numbers_in(names: Sequence[str]) -> tuple[list[str], int, list[int]] | None:
    """(parts of the first name, place of the one number that differs, its values); None without exactly one."""
    split = [_NUMBER.split(n) for n in names]
    first = split[0]
    if any(len(s) != len(first) or s[::2] != first[::2] for s in split):
        return None
    differing = [i for i in range(1, len(first), 2) if len({s[i] for s in split}) > 1]
    if len(differing) != 1 or any(str(int(s[differing[0]])) != s[differing[0]] for s in split):
        return None
    return first, differing[0], [int(s[differing[0]]) for s in split]


def pattern(names: Sequence[str], index: Sequence[int]) -> Pattern | str | None:
    """The common form of ``names`` over the group's index: a name, a pattern, or None."""
    if len(set(names)) == 1:
        return names[0]
    found = numbers_in(names)
    if found is None:
        return None
    parts, at, values = found
    offsets = {v - i for v, i in zip(values, index, strict=True)}
    if len(offsets) != 1:
        return None
    return Pattern("".join(parts[:at]), "".join(parts[at + 1:]), offsets.pop())


BINORMAL = (r"\Phi_2(h, k; r)", "the probability that two standard normals of correlation r lie below h and k")
NAMED: dict[type[sp.Expr], tuple[str, str]] = {
    Phi2: BINORMAL,
    CosTail: (r"Q_{\cos}(a; b)", "the mean of cos(b x) over x > a, x standard normal (0 elsewhere)"),
    SinTail: (r"Q_{\sin}(a; b)", "the mean of sin(b x) over x > a, x standard normal (0 elsewhere)"),
    Dawson: (r"D_{+}(x)", "Dawson's integral, exp(-x^2) times the integral of exp(t^2) from 0 to x"),
}


def meanings(formulas: Iterable[sp.Basic | None]) -> tuple[tuple[str, str], ...]:
    """Functions in formulas that not everybody knows by their symbol, and what they are."""
    told = [f for f in formulas if f is not None]
    return tuple(meaning for kind, meaning in NAMED.items() if any(f.has(kind) for f in told))


OPEN, CLOSE = "\ue010", "\ue011"
FORMULA = re.compile(f"{OPEN}([^{CLOSE}]*){CLOSE}")


def formula(latex: str) -> str:
    """A formula within a sentence, for the exporters to set."""
    return f"{OPEN}{latex}{CLOSE}"


class Notation:
    """How names are written; ``patterns`` gives the common form of a group's names while it is told."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels

    def latex(self, name: Name, form: Pattern | Running | str | None = None) -> str:
        """A name as LaTeX."""
        variant = f",{name.variant}" if name.variant > 1 else ""
        if isinstance(form, Running):
            variant = variant if form.shift is None else f",{shifted(RUNNING, *form.shift[::-1])}"
            form = form.node
        node = form.latex if isinstance(form, Pattern) else math_name(self.labels.of(name.node))
        return rf"{name.kind}_{{{node}{variant}}}"

    def text(self, name: Name) -> str:
        """A name as plain text."""
        return f"{name.kind}_{name.node}" + (f",{name.variant}" if name.variant > 1 else "")


class Formulas(LatexPrinter):  # type: ignore[misc]
    """sympy's LaTeX with our names; user's symbols are escaped, logarithms and functions in common notation."""

    def __init__(self, names: Mapping[sp.Symbol, str]) -> None:
        super().__init__({"ln_notation": False, "fold_short_frac": False, "inv_trig_style": "full",
                          "parenthesize_super": True})
        self.names = names

    def _print_Symbol(self, expr: sp.Symbol, style: str = "plain") -> str:
        return self.names.get(expr) or symbol_latex(expr.name)

    def _print(self, expr: object, **settings: object) -> str:
        if isinstance(expr, GaussianExpectation):
            return self._expectation(expr)
        return str(super()._print(expr, **settings))

    def _expectation(self, expr: GaussianExpectation) -> str:
        body, shown = expr._shown()
        c = [self._print(e) for e in expr.covariance]
        law = c[0] if len(c) == 1 else (rf"\left(\begin{{smallmatrix}}{c[0]}&{c[1]}\\{c[1]}&{c[2]}"
                                        r"\end{smallmatrix}\right)")
        letters = ",".join(self._print(s) for s in shown)
        return rf"\mathbb{{E}}_{{{letters}\sim\mathcal{{N}}(0,{law})}}\left[{self._print(body)}\right]"

    def _print_Mul(self, expr: sp.Mul) -> str:
        """Square roots that are multiplied stand under one root."""
        roots = [f for f in expr.args if f.is_Pow and abs(f.exp) == sp.S.Half and f.base.is_positive]
        if len(roots) < 2:
            return str(super()._print_Mul(expr))
        coefficient, _ = expr.as_coeff_Mul()
        others = [f for f in expr.args if f not in roots and not f.is_Number]
        above, below = sp.Mul(*(f**2 for f in roots), coefficient**2).as_numer_denom()
        sign = "- " if coefficient.is_negative else ""
        rest = sp.Mul(*others)
        if above == 1:
            return rf"{sign}\frac{{{self._print(rest)}}}{{\sqrt{{{self._print(below)}}}}}"
        root = rf"\sqrt{{{self._print(above / below)}}}"
        return f"{sign}{root}" if rest == 1 else f"{sign}{self.parenthesize(rest, PRECEDENCE['Mul'])} {root}"

    def _print_Float(self, expr: sp.Float) -> str:
        return str(super()._print_Float(sp.Float(expr, DIGITS)))

    def _print_Piecewise(self, expr: sp.Piecewise) -> str:
        rows = [(self._print(e), [r"\text{otherwise}"] if c == sp.true else self._conditions(c)) for e, c in expr.args]
        told = [rf"{body} & {' '.join(parts)}" for body, parts in rows]
        if max(map(width, told)) > WIDEST_CASE:
            told = [r" \\ ".join([body, *(rf"\quad {part}" for part in parts)]) for body, parts in rows]
        return r"\begin{cases} " + r" \\ ".join(told) + r" \end{cases}"

    def _conditions(self, condition: sp.Basic) -> list[str]:
        """The alternatives of a condition, each with its word before it."""
        parts = [self._print(c) for c in (condition.args if isinstance(condition, sp.Or) else (condition,))]
        return [rf"\text{{{'or' if i else 'if'} }} {part}" for i, part in enumerate(parts)]


def printed(expr: sp.Expr, names: Mapping[sp.Symbol, str]) -> str:
    """An expression as LaTeX."""
    return str(Formulas(names).doprint(rounded(expr)))


# -- widths ----------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[{}^_&]|\s+|.", re.S)
_CASES = re.compile(r"\\begin\{cases\}((?:(?!\\begin\{cases\}).)*?)\\end\{cases\}", re.S)
_SILENT = frozenset((r"\left", r"\right", r"\mathrm", r"\text", r"\mathbb", r"\mathcal", r"\displaystyle",
                     r"\operatorname", "&", r"\,", r"\limits", r"\begin", r"\end"))
_WIDE = frozenset("=+-<>") | {r"\cdot", r"\sim", r"\le", r"\ge", r"\leq", r"\geq", r"\neq", r"\to", r"\lt", r"\gt",
                               r"\wedge", r"\vee", r"\quad"}
_WORDS = frozenset((r"\operatorname{asin}", r"\sin", r"\cos", r"\tanh", r"\log", r"\exp", r"\arcsin", r"\arctan",
                    r"\sinh", r"\cosh", r"\min", r"\max", r"\sqrt"))


@lru_cache(maxsize=4096)
def width(latex: str) -> float:
    """About how wide a formula is, in letters: the wider part of a fraction counts, scripts count less."""
    while (found := _CASES.search(latex)) is not None:
        widest = max(found[1].split(r"\\"), key=width)
        latex = f"{latex[:found.start()]}[{widest}]mmmm{latex[found.end():]}"
    tokens = [t for t in _TOKEN.findall(latex) if not t.isspace()]
    return _run(tokens, 0)[0]


def _run(tokens: list[str], i: int) -> tuple[float, int]:
    total = 0.0
    while i < len(tokens) and tokens[i] != "}":
        w, i = _item(tokens, i)
        total += w
    return total, i + 1


def _item(tokens: list[str], i: int) -> tuple[float, int]:
    token = tokens[i]
    if token == "{":
        return _run(tokens, i + 1)
    if token in ("^", "_"):
        w, i = _item(tokens, i + 1) if i + 1 < len(tokens) else (0.0, i + 1)
        return 0.7 * w, i
    if token == r"\frac":
        top, i = _item(tokens, i + 1)
        bottom, i = _item(tokens, i)
        return max(top, bottom) + 0.6, i
    if token in _SILENT:
        return 0.0, i + 1
    if token in _WIDE:
        return 2.6 if token not in "<>" else 2.0, i + 1
    return (len(token) - 1.0 if token in _WORDS else 1.0), i + 1
