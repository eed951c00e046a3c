"""A derivation as an exporter-neutral document: text, formulas in LaTeX, numbers, citations.

The LaTeX and the Markdown exporter render the same :class:`Document`; names in it are raw and escaped by them,
names within formulas are escaped already.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from varflow.export.references import Citation, Reference

EXACTNESS_TEXT = {
    "exact": "exact", "wide": "wide limit", "closure": "approximation (closure)",
    "measured": "measured", "underived": "not derived",
}
TIER_TEXT = {
    "closed": "closed form", "quadrature": "by quadrature", "population": "number from a population",
    "measured": "measured",
}


@dataclass(frozen=True)
class Equation:
    """``left`` = each of ``sides``; a side is a sum, term by term, every term after the first with its sign.

    ``where`` are the abbreviations that the sides use.
    """

    left: str
    sides: tuple[tuple[str, ...], ...]
    where: tuple[Equation, ...] = ()


@dataclass(frozen=True)
class NameList:
    """The nodes that one entry stands for; ``index`` the values of its letter where the formulas are indexed."""

    names: tuple[str, ...]
    index: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many."""
        return len(self.names)

    @property
    def shown(self) -> tuple[str, ...]:
        """At most four names, an ellipsis for the rest."""
        n = self.names
        return n if len(n) <= 4 else (*n[:2], "…", n[-1])

    @property
    def range(self) -> str:
        """The index in words: ``1, …, 39``."""
        v = self.index if self.index[0] < self.index[-1] else self.index[::-1]
        return ", ".join(map(str, v)) if len(v) <= 3 else f"{v[0]}, {v[1]}, …, {v[-1]}"


@dataclass(frozen=True)
class Rule:
    """The lemma of one layer."""

    number: int
    op: str
    sentence: str
    citations: tuple[Citation, ...]


@dataclass(frozen=True)
class Entry:
    """One step: nodes, what they are, the lemmas used and the equations they give. ``readers`` are in LaTeX; None
    in the forward pass. ``assumed`` are the numbers of assumptions that this step makes beyond the general ones."""

    nodes: NameList
    layer: str
    rules: tuple[int, ...]
    equations: tuple[Equation, ...]
    exactness: str
    tier: str
    readers: tuple[str, ...] | None = None
    likewise: bool = False
    remarks: tuple[str, ...] = ()
    assumed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """Nodes of the network table."""

    nodes: NameList
    layer: str
    inputs: NameList
    shape: str
    citations: tuple[Citation, ...] = ()


MOST_BOXED = 12
"""Groups of weights that are boxed; more of them are told in a table alone, by their variance."""


@dataclass(frozen=True)
class WeightRow:
    """Weights that are initialized alike; formulas in LaTeX, ``draw`` the distribution as a formula."""

    weights: NameList
    symbol: str
    variance: str
    std: str
    gain: str
    fan_in: str
    draw: str
    solved: bool


@dataclass(frozen=True)
class Condition:
    """How unknown scales were determined."""

    unknowns: NameList
    equation: Equation
    answer: Equation
    closed_form: bool


@dataclass(frozen=True)
class CheckRow:
    """One line of the verification table."""

    node: str
    direction: str
    predicted: str
    estimate: str
    interval: str
    verdict: str
    exactness: str
    note: str = ""


@dataclass(frozen=True)
class Report:
    """A verification: its rows, how many are left out of them, and the overall result in words."""

    rows: tuple[CheckRow, ...]
    left_out: int
    verdict: str
    counts: str
    setting: str
    power: str


@dataclass(frozen=True)
class Document:
    """All parts in their order."""

    name: str
    citations: tuple[Citation, ...]
    notation: tuple[tuple[str, str], ...]
    sizes: tuple[tuple[str, str], ...]
    shortened: tuple[tuple[str, str], ...]
    network: tuple[Row, ...]
    assumptions: tuple[str, ...]
    rules: tuple[Rule, ...]
    forward: tuple[Entry, ...]
    backward: tuple[Entry, ...]
    results: tuple[Equation, ...]
    long_results: tuple[Equation, ...]
    weights: tuple[WeightRow, ...]
    conditions: tuple[Condition, ...]
    notes: tuple[str, ...]
    preserve: str = ""
    report: Report | None = None
    references: tuple[Reference, ...] = field(default=())

    @property
    def boxed(self) -> tuple[WeightRow, ...]:
        """All weights; none of them where the box would be long or a row has no name of its own."""
        named = all(w.weights.count == 1 or w.weights.index for w in self.weights)
        return self.weights if named and len(self.weights) <= MOST_BOXED else ()
