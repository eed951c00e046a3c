"""The chain of steps behind one node."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from varflow.errors import InputError
from varflow.export.assemble import Assembly
from varflow.export.document import EXACTNESS_TEXT, TIER_TEXT
from varflow.export.markdown import cited, display, inline, names, prose
from varflow.export.names import markdown_code, markdown_text
from varflow.export.steps import BACKWARD, FORWARD, Step, Steps
from varflow.fields import closest
from varflow.laws.moments import Moment

MAX_STEPS = 60


class Explanation(str):
    """Text that shows itself as Markdown in a notebook."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return str(self)


def explain(subject: Any, node: str) -> Explanation:
    """The steps that the moments of ``node`` rest on, from the inputs on, as Markdown: forward, then backward.

    ``subject`` is a Derivation, a Solution or a Network. Equal steps are told once. Raises InputError for an
    unknown node.
    """
    from varflow.export import split_subject

    derivation, _ = split_subject(subject)
    steps = Steps(derivation)
    if node not in derivation or (steps.node_of(node) is None and node not in derivation.nodes):
        raise InputError(f"no node is called {node!r}", instead=closest(node, derivation.nodes))
    return Explanation(_Chain(steps, node).text())


class _Chain:
    def __init__(self, steps: Steps, node: str) -> None:
        self.steps, self.node = steps, node
        self.assembly = Assembly(steps)

    def text(self) -> str:
        """All of it."""
        parts = [f"# The chain of steps behind {markdown_code(self.node)}"]
        seen: set[tuple[str, str]] = set()
        for direction in (FORWARD, BACKWARD):
            needed = self._needed(direction) - seen
            seen |= needed
            parts += self._pass(direction, needed)
        return "\n\n".join([*parts, *self._references()]) + "\n"

    def _needed(self, direction: str) -> set[tuple[str, str]]:
        """(value, direction) of every step that the node's own moments rest on."""
        found: set[tuple[str, str]] = set()
        owner = self._owners
        pending = [(self.node, direction)] if self.steps.law(self.node, direction) else []
        while pending:
            at = pending.pop()
            if at in found:
                continue
            found.add(at)
            step = self.steps.step(*at)
            for line in step.lines if step else ():
                moments = [self.steps.canonical(a).index for a in line.args if isinstance(a, Moment)]
                pending += [owner[i] for i in moments if i in owner]
            pending += [(v, at[1]) for v in self.steps.neighbours(*at) if self._constant(v, at[1])]
            pending += [(line.shared.node, at[1]) for line in (step.lines if step else ()) if line.shared]
        return found

    def _constant(self, value: str, direction: str) -> bool:
        """Whether a neighbour's moment is an expression that equations contain without naming it."""
        law = self.steps.law(value, direction)
        return law is not None and law.second is not None and not isinstance(law.second, Moment)

    @cached_property
    def _owners(self) -> dict[int, tuple[str, str]]:
        return {line.moment.index: (value, direction) for direction in (FORWARD, BACKWARD)
                for value in self.steps.ordered(direction)
                if (step := self.steps.step(value, direction)) is not None
                for line in step.lines if line.moment is not None and line.shared is None}

    def _pass(self, direction: str, needed: set[tuple[str, str]]) -> list[str]:
        told = [(way, [s for s in group if (s.node, way) in needed])
                for way in (FORWARD, BACKWARD) for group in self.steps.groups(way)]
        groups = [(way, group) for way, group in told if group]
        if not groups:
            return [f"## {direction.capitalize()}", "No gradient arrives here."] if direction == BACKWARD else []
        shown = groups if len(groups) <= MAX_STEPS else groups[: MAX_STEPS // 2] + groups[-MAX_STEPS // 2:]
        texts = [self._step(group) for _, group in shown]
        if len(groups) > len(shown):
            texts.insert(MAX_STEPS // 2, f"… {len(groups) - len(shown)} more steps …")
        return [f"## {direction.capitalize()}", *texts]

    def _step(self, group: list[Step]) -> str:
        entry = self.assembly.entry(group)
        rules = [r for r in self.assembly.rules.values() if r.number in entry.rules]
        times = f" ({entry.nodes.count} times)" if entry.nodes.count > 1 else ""
        index = f", {inline(chr(92) + 'ell')} = {entry.nodes.range}" if entry.nodes.index else ""
        from_ = "" if entry.readers is None else ", gradient from " + (", ".join(map(inline, entry.readers))
                                                                      or "the cotangent")
        head = f"**{names(entry.nodes)}**{times}{index}: {prose(entry.layer)}{from_}"
        label = f"{EXACTNESS_TEXT[entry.exactness]}, {TIER_TEXT[entry.tier]}"
        why = " ".join(f"{prose(r.sentence)}{cited(r.citations)}" for r in rules)
        return "\n\n".join(p for p in (f"{head} ({label}). {why}".strip(), display(entry.equations).strip()) if p)

    def _references(self) -> list[str]:
        entries = self.assembly.references.entries
        listed = "\n".join(f"{i}. {markdown_text(r.text)}" for i, r in enumerate(entries, start=1))
        return ["## References", listed] if entries else []
