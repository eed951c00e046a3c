"""Building the document of a derivation or a solution."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import sympy as sp

from varflow.activations import ACTIVATIONS
from varflow.derive import Derivation, WeightLaw
from varflow.export.bounded import Bounded
from varflow.export.document import (
    MOST_BOXED,
    Condition,
    Document,
    Entry,
    Equation,
    NameList,
    Row,
    Rule,
    WeightRow,
)
from varflow.export.formulas import (
    RUNNING,
    Notation,
    Pattern,
    Running,
    formula,
    meanings,
    numbers_in,
    pattern,
    printed,
    width,
)
from varflow.export.layout import Node, activation_name, described
from varflow.export.names import Labels, math_name, symbol_latex
from varflow.export.references import References
from varflow.export.report import VerificationLike, report
from varflow.export.runs import Run, runs
from varflow.export.sizes import Sizes
from varflow.export.steps import BACKWARD, FORWARD, Argument, Line, Name, Step, Steps, alike
from varflow.export.sums import equation, extended, signed
from varflow.laws.moments import fill
from varflow.network import InputNode
from varflow.ops.base import Lemma
from varflow.ops.pointwise import ActivationLayer

MAX_CONDITIONS = 12
BOX = 66.0
"""Letters that a line of the boxed result holds."""
INPUT_RULE = Lemma("The entries are independent over channels, with the moments given.", "")
MEANINGS = {
    "q": r"second moment of an entry $x$ of node $i$: $\mathbb{E}[x^2]$",
    "m": r"mean of an entry $x$ of node $i$: $\mathbb{E}[x]$",
    "g": r"second moment of the gradient at node $i$: $\mathbb{E}[(\partial L/\partial x)^2]$",
    "c": r"covariance at node $i$ between positions, samples or uses of one channel",
    "k": r"coefficient with which an earlier Gaussian vector enters node $i$",
    "r": r"auxiliary expectation at node $i$",
    "s": r"scale of weight $i$: $\mathrm{fan_{in}} \operatorname{Var}(W_{ij})$",
}
"""Kinds of symbols, in words and formulas that LaTeX and Markdown both read."""
_UNKNOWN = re.compile(r"s_[^\s:]+")
MEAN_LABEL = {"wide": "a wide limit", "closure": "an approximation"}
GENERAL = (
    "Weights are independent of each other and of the inputs; the entries of one weight are independent with mean "
    "zero, unless it is stated to be orthogonal or constant.",
    "The gradient is that of a random linear functional of the outputs: its coefficients (the cotangent) are "
    "independent of the network, with mean zero and second moment one. A loss that depends on the outputs is "
    "outside of this.",
)


@runtime_checkable
class SolutionLike(Protocol):
    """What is read of a solution."""

    @property
    def derivation(self) -> Derivation: ...
    @property
    def weights(self) -> Any: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def equations(self) -> Sequence[Any]: ...
    @property
    def preserve(self) -> str: ...


def assemble(derivation: Derivation, solution: SolutionLike | None = None,
             verification: VerificationLike | None = None) -> Document:
    """The document of a derivation; with a solution also what was solved for, with a verification its table.

    A solution that keeps the derivation over its unknowns as ``unsolved`` has its steps told in them.
    """
    told = getattr(solution, "unsolved", None) or derivation
    return Assembly(Steps(told), solution, verification).document()


class Assembly:
    """Turns steps into entries of a document, collecting the rules, references and symbols they use."""

    def __init__(self, steps: Steps, solution: SolutionLike | None = None,
                 verification: VerificationLike | None = None) -> None:
        self.d, self.solution, self.verification = steps.derivation, solution, verification
        self.steps, self.solved = steps, solution.derivation if solution else steps.derivation
        names = [*self.d.program.weights, *self.steps.values]
        self.notation = Notation(Labels(dict.fromkeys(names)))
        self.references, self.rules = References(), dict[str, Rule]()
        self.bounded = Bounded(120)
        self.sizes = Sizes(s for shape in self._grids() for s in shape)
        self.assumed: dict[str, int] = {}
        self.kinds: set[str] = set()

    def document(self) -> Document:
        """All parts; the order of the calls is the order in which references are numbered."""
        citations = self.references.cite(self.d.network.source)
        forward = self.steps.groups(FORWARD)
        network = tuple(self._rows(forward))
        told = {di: tuple(self.entry(g) for g in self.steps.groups(di)) for di in (FORWARD, BACKWARD)}
        weights, found = self._weights(), self._results()
        boxed = tuple(e for e in found if e.left and sum(map(width, e.sides[0])) < BOX and not e.where)
        conditions = self._conditions()
        checked = report(self.verification, self.solved) if self.verification is not None else None
        return Document(
            self.d.network.name, citations, self._notation(), self.sizes.table, self._shortened(), network,
            self._assumptions(told),
            tuple(self.rules.values()), told[FORWARD], told[BACKWARD], boxed,
            tuple(e for e in found if e not in boxed), weights, conditions,
            self._notes(), self.solution.preserve if self.solution else "",
            checked, tuple(self.references.entries))

    # -- notation and network ------------------------------------------------------------------------

    def _notation(self) -> tuple[tuple[str, str], ...]:
        rows = [(f"{kind}_{{i}}", meaning) for kind, meaning in MEANINGS.items() if kind in self.kinds]
        symbols = sorted({str(s) for e in self._shapes() for s in e.free_symbols})
        rows += [(symbol_latex(s), "size of the network") for s in symbols]
        told = (step for di in (FORWARD, BACKWARD) for group in self.steps.groups(di) for step in group)
        return (*rows, *meanings(line.template for step in told for line in step.lines))

    def _shapes(self) -> Iterable[sp.Expr]:
        for value in self.d.program.values.values():
            shape = self.d.program.shape(value)
            yield from (shape.channels, *shape.positions)

    def _grids(self) -> Iterable[tuple[sp.Expr, ...]]:
        """Positions of every node, in the order of the derivation."""
        for part in self.d.parts():
            for value in part.program.values.values():
                yield tuple(part.program.shape(value).positions)

    def _shortened(self) -> tuple[tuple[str, str], ...]:
        return tuple((short, full) for full, short in self.notation.labels.shortened.items())

    def _rows(self, groups: list[list[Step]]) -> Iterable[Row]:
        """One row for nodes of one step, layer and shape."""
        for group in groups:
            parts: dict[tuple[str, str], list[Step]] = {}
            for step in group:
                parts.setdefault((described(self._node(step.node)), self._shape(step.node)), []).append(step)
            for (layer, shape), steps in self._few_shapes(parts):
                inputs = list(dict.fromkeys(i for s in steps for i in self._node(s.node).inputs))
                yield Row(NameList(tuple(s.node for s in steps)), layer, NameList(tuple(inputs)), shape,
                          self._layer_citations(self._node(steps[0].node)))

    @staticmethod
    def _few_shapes(parts: dict[tuple[str, str], list[Step]]) -> Iterable[tuple[tuple[str, str], list[Step]]]:
        """One row for a layer of more than two shapes, from the first to the last."""
        layers: dict[str, list[tuple[str, list[Step]]]] = {}
        for (layer, shape), steps in parts.items():
            layers.setdefault(layer, []).append((shape, steps))
        for layer, found in layers.items():
            if len(found) > 2:
                yield (layer, rf"{found[0][0]}, \dots, {found[-1][0]}"), [s for _, steps in found for s in steps]
            else:
                yield from (((layer, shape), steps) for shape, steps in found)

    def _node(self, value: str) -> Node:
        node = self.steps.node_of(value)
        assert node is not None
        return node

    def _shape(self, value: str) -> str:
        program = next(part.program for part in self.d.parts() if value in part.program.values)
        shape = program.shape(program.values[value])
        axes = map(self.sizes.named, (*shape.positions, shape.channels))
        return r" \times ".join(printed(s, self.sizes.names) for s in axes)

    def _layer_citations(self, node: Node) -> tuple[Any, ...]:
        if not isinstance(node.layer, ActivationLayer):
            return ()
        name = activation_name(node.layer.function)
        return self.references.cite(ACTIVATIONS[name].reference) if name else ()

    def _rule(self, node: Node) -> int:
        if node.op not in self.rules:
            lemma = INPUT_RULE if isinstance(node.layer, InputNode) else node.layer.lemma
            self.rules[node.op] = Rule(len(self.rules) + 1, node.op.replace("_", " "), lemma.sentence,
                                       self.references.cite(lemma.reference))
        return self.rules[node.op].number

    # -- steps ---------------------------------------------------------------------------------------

    def entry(self, group: list[Step]) -> Entry:
        """One group of equal steps as a document's step."""
        first, forward = group[0], group[0].direction == FORWARD
        node = self._node(first.node)
        index = numbers_in([s.node for s in group]) if len(group) > 1 else None
        forms = self._forms(group, index[2]) if index else None
        readers = [] if forward else [self.steps.nodes[r] for r in dict.fromkeys(node.readers)]
        come = None if forward else self._readers(group, index[2] if index and forms else None)
        equations = tuple(eq for run in runs(first.lines, self.steps.argument, len(group) == 1)
                          if (eq := self._run(run, forms, len(group) == 1)) is not None)
        names = tuple(self.notation.labels.of(s.node) for s in group)
        return Entry(
            NameList(names, tuple(index[2]) if index and forms else ()), described(node),
            tuple(dict.fromkeys(self._rule(n) for n in ([node] if forward else readers))), equations,
            first.exactness, first.tier, come,
            len(group) > 1 and forms is None, tuple(self._remarks(group, forms)), tuple(self._assumed(first)))

    def _assumed(self, step: Step) -> Iterable[int]:
        """Numbers of a step's assumptions, behind the general ones."""
        for text in step.assumptions:
            yield self.assumed.setdefault(text, len(GENERAL) + len(self.assumed) + 1)

    def _readers(self, group: list[Step], index: Sequence[int] | None) -> tuple[str, ...]:
        """Where the gradient of a group comes from."""
        rows = [list(dict.fromkeys(self._node(s.node).readers)) for s in group]
        if index is None or any(len(r) != len(rows[0]) for r in rows):
            return tuple(math_name(self.notation.labels.of(n)) for n in rows[0])
        forms = (pattern(column, index) or column[0] for column in zip(*rows, strict=True))
        return tuple(f.latex if isinstance(f, Pattern) else math_name(self.notation.labels.of(f)) for f in forms)

    def _remarks(self, group: list[Step], forms: dict[Name, Pattern | str] | None) -> Iterable[str]:
        """What is said beside the equations."""
        step = group[0]
        for line in step.lines:
            if line.main and line.exactness != step.exactness:
                yield f"The mean is {MEAN_LABEL.get(line.exactness, line.exactness)}."
        if len({len(s.lines) for s in group}) > 1:
            yield "Those that read more blocks have more equations of these forms."
        missing = [formula(self._latex(line.name, forms)) for line in step.lines if line.template is None]
        if missing:
            many = len(missing) > 1
            self.kinds |= {line.name.kind for line in step.lines if line.template is None}
            yield (f"{' and '.join(missing)} {'have' if many else 'has'} no formula; "
                   f"{'their numbers are' if many else 'its number is'} computed from a population.")

    def _forms(self, group: list[Step], index: Sequence[int]) -> dict[Name, Pattern | str] | None:
        """The common form of every name of the group's equations; None where one has none."""
        rows = [list(self._names(s)) for s in group]
        if len({len(row) for row in rows}) > 1:
            return None
        columns = zip(*rows, strict=True)
        forms: dict[Name, Pattern | str] = {}
        for column in columns:
            form = pattern([n.node for n in column], index)
            if form is None or forms.get(column[0], form) != form:
                return None
            forms[column[0]] = form
        return forms

    def _names(self, step: Step) -> Iterable[Name]:
        for line in step.lines:
            yield line.name
            for a in map(self.steps.argument, line.args):
                yield from [a] if isinstance(a, Name) else self._scale_names(a)

    def _scale_names(self, expr: sp.Expr) -> list[Name]:
        return [n for _, n in sorted(self.steps.scales(expr).items(), key=lambda p: p[0].name)]

    def _equation(self, line: Line, forms: dict[Name, Pattern | str] | None, expand: bool) -> Equation | None:
        if line.template is None:
            return None
        self.kinds.add(line.name.kind)
        expr, names = self.filled(line, forms)
        eq = equation(self._latex(line.name, forms), expr, names)
        whole = self.bounded.of(line.moment) if expand and line.main and line.moment is not None else None
        if whole is None:
            return eq
        return extended(eq, self.sizes.named(whole), self._scale_table(whole) | self.sizes.names)

    def _run(self, run: Run, forms: dict[Name, Pattern | str] | None, expand: bool) -> Equation | None:
        """The equation of a line, or of several that differ in one number."""
        if not run.indexed:
            return self._equation(run.line, forms, expand)
        indexed: dict[Name, Any] = {**(forms or {}), **{
            name: Running((forms or {}).get(name, name.node) if form is None else form, shift)
            for name, (form, shift) in run.indexed.items()}}
        eq = self._equation(run.line, indexed, False)
        if eq is None:
            return None
        *before, side = eq.sides
        told = (*side[:-1], rf"{side[-1]}\,,\quad {RUNNING} = {run.first}, \dots, {run.last}")
        return Equation(eq.left, (*before, told), eq.where)

    def filled(self, line: Line, forms: dict[Name, Pattern | str] | None = None
               ) -> tuple[sp.Expr, dict[sp.Symbol, str]]:
        """The right side of an equation, and how its symbols are written."""
        assert line.template is not None
        names: dict[sp.Symbol, str] = {}
        for quantity in line.args:
            self._argument(self.steps.argument(quantity), forms, names)
        expr = fill(line.template, line.args, lambda m: self.steps.symbol(self.steps.name(m)))
        return self.sizes.named(expr), names | self.sizes.names

    def _argument(self, told: Argument, forms: dict[Name, Pattern | str] | None, names: dict[sp.Symbol, str]
                  ) -> None:
        if isinstance(told, Name):
            self.kinds.add(told.kind)
            names[self.steps.symbol(told)] = self._latex(told, forms)
        else:
            names |= self._scale_table(told, forms)

    def _scale_table(self, expr: sp.Expr, forms: dict[Name, Pattern | str] | None = None) -> dict[sp.Symbol, str]:
        scales = self.steps.scales(expr)
        self.kinds |= {"s"} if scales else set()
        return {s: self._latex(n, forms) for s, n in scales.items()}

    def _latex(self, name: Name, forms: dict[Name, Pattern | str] | None) -> str:
        return self.notation.latex(name, (forms or {}).get(name))

    def _assumptions(self, told: dict[str, tuple[Entry, ...]]) -> tuple[str, ...]:
        found = [*GENERAL, *(f"{text[0].upper()}{text[1:]}." for text in self.assumed)]
        entries = [e for part in told.values() for e in part]
        if any(e.exactness == "wide" for e in entries):
            sizes = self.d.width_assumption.removeprefix("wide limit: ").partition(" grow")[0]
            found.append("Steps marked exact hold at any width. Steps marked as a wide limit hold as the sizes "
                         f"{sizes} grow without bound; at finite sizes their relative error is O(1/width).")
        return tuple(found)

    # -- results -------------------------------------------------------------------------------------

    def _results(self) -> tuple[Equation, ...]:
        """Second moments at the outputs and gradients at the inputs, where they are short formulas."""
        found, bounded = [], Bounded(self.bounded.limit)
        for kind, values in (("q", self._outputs()), ("g", self.d.inputs)):
            for value in values[:4]:
                law = self.solved[value].forward if kind == "q" else self.solved[value].backward
                expr = bounded.of(law.second) if law is not None and law.second is not None else None
                if expr is not None:
                    left = self._latex(Name(kind, value), None)
                    found.append(equation(left, self.sizes.named(expr), self._scale_table(expr) | self.sizes.names))
        return tuple(found)

    def _outputs(self) -> list[str]:
        wanted = set(self.d.program.outputs)
        return [v for v in self.steps.values if self.d.program.values.get(v) in wanted]

    def _weights(self) -> tuple[WeightRow, ...]:
        parts: dict[tuple[object, ...], list[WeightLaw]] = {}
        for w in self.solved.weights.values():
            variance = w.variance.xreplace({w.unknown: sp.Symbol("\x00")}) if w.unknown else w.variance
            parts.setdefault((variance, w.fan_in, w.distribution, w.unknown is None), []).append(w)
        groups = [g for group in parts.values() for g in alike(group, lambda w: w.name)]
        rows = [self._weight_row(g) for g in (groups if len(groups) <= MOST_BOXED else parts.values())]
        self.kinds |= {"s"} if self.d.unknowns() else set()
        return tuple(rows)

    def _weight_row(self, group: list[WeightLaw]) -> WeightRow:
        w, names = group[0], [g.name for g in group]
        table = self._scale_table(w.variance)
        index = numbers_in(names) if len(names) > 1 else None
        form = pattern(names, index[2]) if index else None
        symbol = form.latex if isinstance(form, Pattern) else math_name(self.notation.labels.of(w.name))
        if len(names) > 1 and form is None:
            symbol = "i"
        if len(names) > 1 and w.unknown is not None and len({g.unknown for g in group}) > 1:
            table = {w.unknown: f"s_{{{symbol}}}"}
        return WeightRow(
            NameList(tuple(names), tuple(index[2]) if index and form else ()), symbol,
            printed(w.variance, table), printed(w.std, table), printed(w.init_gain, table), printed(w.fan_in, table),
            drawn(w, table), w.unknown is None)

    def _conditions(self) -> tuple[Condition, ...]:
        """Equal conditions are told once."""
        parts: dict[tuple[object, ...], list[Any]] = {}
        mark = sp.Symbol("\x00", positive=True)
        for unknown, condition, answer, closed in self.solution.equations if self.solution else ():
            key = (condition.lhs.xreplace({unknown: mark}), condition.rhs.xreplace({unknown: mark}), answer)
            parts.setdefault(key, []).append((unknown, condition, answer, closed))
        return tuple(self._condition(group) for group in list(parts.values())[:MAX_CONDITIONS])

    def _condition(self, group: list[Any]) -> Condition:
        unknown, condition, answer, closed = group[0]
        names = {s: self._unknown(s) for s in {unknown} | condition.free_symbols | answer.free_symbols
                 if s not in self.d.network.symbols.values()}
        left = printed(condition.lhs, names)
        return Condition(NameList(tuple(str(g[0]) for g in group)),
                         Equation(left, (signed(condition.rhs, names),)),
                         Equation(self._unknown(unknown), (signed(answer, names),)), closed)

    def _notes(self) -> tuple[str, ...]:
        """Notes that differ in the unknown's name only are told once."""
        parts: dict[str, list[tuple[str, str]]] = {}
        for note in self.solution.notes if self.solution else ():
            name = _UNKNOWN.match(note)
            parts.setdefault(note.replace(name[0], "s_") if name else note, []).append((name[0] if name else "", note))
        return tuple(_likewise(group) for group in parts.values())

    def _unknown(self, symbol: sp.Symbol) -> str:
        kind, _, rest = symbol.name.partition("_")
        self.kinds |= {"s"} if kind == "s" and rest else set()
        return self.notation.latex(Name(kind, rest)) if kind in "sqmg" and rest else symbol_latex(symbol.name)


def _likewise(group: list[tuple[str, str]]) -> str:
    others = [name for name, _ in group[1:] if name]
    shown = ", ".join(others if len(others) <= 3 else [others[0], "…", others[-1]])
    return f"{group[0][1]} Likewise {shown}." if others else group[0][1]


def drawn(w: WeightLaw, names: dict[sp.Symbol, str]) -> str:
    """How to draw a weight's entries, as a formula."""
    std = printed(w.std, names)
    match w.distribution:
        case "uniform":
            edge = printed(sp.sqrt(3 * w.variance), names)
            return rf"\mathcal{{U}}\left(-{edge},\, {edge}\right)"
        case "truncated_normal":
            return rf"\mathcal{{N}}\left(0, \sigma^2\right) \text{{ cut at }} \pm 2\sigma,\ \sigma = {std} / 0.8796"
        case "orthogonal":
            return rf"{printed(w.init_gain, names)} \cdot \text{{Haar orthogonal}}"
        case "rademacher":
            return rf"\pm {std} \text{{ with equal probability}}"
        case "constant":
            return r"\text{constant}"
    return rf"\mathcal{{N}}\left(0,\, {printed(w.variance, names)}\right)"
