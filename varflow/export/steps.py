"""From a derivation to its steps: which equation is told at which node, in which order, and how often.

A step belongs to one node and one direction. It defines the node's own moments (q, m forward; g backward) and
the auxiliary ones (covariances, coefficients) that stand at that node. Steps that are equal up to names form
one group and are told once.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import TypeAlias, TypeVar

import sympy as sp

from varflow.derive import Derivation, Law
from varflow.export.layout import Node, nodes_of
from varflow.laws.moments import EXACTNESS, TIERS, Moment, Quantity, place, weakest

FORWARD, BACKWARD = "forward", "backward"
_RANK = "skcmqgr"
"""In which order the factors of a product stand."""
T = TypeVar("T")
_NUMBER = re.compile(r"\d+")
FAMILY = 4
"""Groups of corresponding nodes from which they are told together."""
OWN = {FORWARD: ("mean", "second"), BACKWARD: ("second",)}


@dataclass(frozen=True)
class Name:
    """What a number is called: ``kind`` (q m g c k r s), the node (s: the weight) and a number where several
    share both."""

    kind: str
    node: str
    variant: int = 1

    @property
    def key(self) -> str:
        """A unique text, the name of the symbol that stands for it while formulas are built."""
        return f"~{_RANK.find(self.kind)}{self.node}\x00{self.kind}{self.variant}"


Argument: TypeAlias = "Name | sp.Expr"


@dataclass(frozen=True)
class Line:
    """One equation: ``name`` = ``template`` over ``args``; ``template`` None: no formula. ``main``: the node's
    own moment, not an auxiliary one."""

    name: Name
    template: sp.Expr | None
    args: tuple[Quantity, ...]
    main: bool
    exactness: str = "exact"
    tier: str = "closed"
    assumptions: frozenset[str] = frozenset()
    moment: Moment | None = None
    shared: Name | None = None


@dataclass(frozen=True)
class Step:
    """All equations of one node in one direction."""

    node: str
    direction: str
    lines: tuple[Line, ...]

    @property
    def main(self) -> Line:
        """The second moment's line."""
        return next(line for line in reversed(self.lines) if line.main and line.name.kind != "m")

    @property
    def tier(self) -> str:
        """The weakest tier of its lines."""
        return weakest(TIERS, (line.tier for line in self.lines if line.tier in TIERS))

    @property
    def exactness(self) -> str:
        """That of the second moment."""
        return self.main.exactness

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What its lines rest on."""
        return tuple(sorted(frozenset().union(*(line.assumptions for line in self.lines))))


class Steps:
    """All steps of a derivation, forward in the network's order and backward in the reverse order."""

    def __init__(self, derivation: Derivation) -> None:
        self.derivation = derivation
        self.nodes: dict[str, Node] = nodes_of(derivation.network)
        self.names: dict[int, Name] = {}
        self._canonical: dict[int, Moment] = {}
        self._known: dict[object, Moment] = {}
        self._variants: dict[tuple[str, str], int] = defaultdict(int)
        self._scales = {s: Name("s", s.name[2:]) for s in derivation.unknowns().values()}
        self._groups: dict[str, list[list[Step]]] = {}
        self._own_names()
        self._auxiliary: dict[tuple[str, str], list[Moment]] = defaultdict(list)
        self._place_auxiliary()

    # -- what is called what -------------------------------------------------------------------------

    @cached_property
    def values(self) -> tuple[str, ...]:
        """Names of values (nodes and their ports) that a step tells, in order; a block's output is its last node."""
        return tuple(v for v in self.derivation if self.node_of(v) is not None)

    def node_of(self, value: str) -> Node | None:
        """The node a value belongs to."""
        return self.nodes.get(value) or self.nodes.get(value.rpartition(":")[0])

    def law(self, value: str, direction: str) -> Law | None:
        """The law of a value or of its gradient."""
        law = self.derivation[value]
        return law.forward if direction == FORWARD else law.backward

    def own(self, value: str, direction: str) -> Iterator[tuple[str, Quantity | None]]:
        """(kind, moment) of a value's own numbers; a mean that is zero is left out."""
        law = self.law(value, direction)
        if law is None:
            return
        if direction == FORWARD and law.mean is not None and law.mean != 0:
            yield "m", law.mean
        yield ("q" if direction == FORWARD else "g"), law.second

    def ordered(self, direction: str) -> tuple[str, ...]:
        """Values in the order of a pass."""
        return self.values if direction == FORWARD else self.values[::-1]

    def _own_names(self) -> None:
        for direction in (FORWARD, BACKWARD):
            for value in self.ordered(direction):
                for kind in "qmg":
                    self._variants[kind, value] = 1
                for kind, quantity in self.own(value, direction):
                    if isinstance(quantity, Moment):
                        self.names.setdefault(self.canonical(quantity).index, Name(kind, value))

    def canonical(self, moment: Moment) -> Moment:
        """The first of the moments that are defined by the same equation at the same node."""
        if moment.index in self._canonical:
            return self._canonical[moment.index]
        stack = [moment]
        while stack:
            m = stack[-1]
            missing = [a for a in m.args if isinstance(a, Moment) and a.index not in self._canonical]
            if missing:
                stack += missing
                continue
            stack.pop()
            self._canonical[m.index] = self._first(m)
        return self._canonical[moment.index]

    def _first(self, m: Moment) -> Moment:
        if m.template is None:
            return m
        args = tuple(self._canonical[a.index].index if isinstance(a, Moment) else a for a in m.args)
        return self._known.setdefault((m.kind, m.node, m.backward, m.template, args), m)

    def _place_auxiliary(self) -> None:
        """Every moment that an own one needs stands at its node's step, in the pass that it belongs to."""
        late: dict[int, bool] = {}
        for direction in (FORWARD, BACKWARD):
            for value in self.ordered(direction):
                for _, quantity in self.own(value, direction):
                    if isinstance(quantity, Moment):
                        self._visit(self.canonical(quantity), value, late)

    def _visit(self, root: Moment, value: str, late: dict[int, bool]) -> None:
        stack = [root]
        while stack:
            m = stack[-1]
            if m.index in late:
                stack.pop()
                continue
            args = [self.canonical(a) for a in m.args if isinstance(a, Moment)]
            missing = [a for a in args if a.index not in late]
            if missing:
                stack += reversed(missing)
                continue
            stack.pop()
            late[m.index] = m.backward or any(late[a.index] for a in args)
            if m.index not in self.names:
                self._introduce(m, m.node if self.node_of(m.node) else value, late[m.index])

    def _introduce(self, m: Moment, node: str, late: bool) -> None:
        kind = "r" if m.kind == "m" else m.kind
        self._variants[kind, node] += 1
        self.names[m.index] = Name(kind, node, self._variants[kind, node])
        at = node if node in self.derivation.nodes else f"{node}:0"
        self._auxiliary[at, BACKWARD if late else FORWARD].append(m)

    def argument(self, a: Quantity) -> Argument:
        """A moment's name, or the expression itself."""
        return self.name(a) if isinstance(a, Moment) else a

    def name(self, moment: Moment) -> Name:
        """What a moment is called."""
        return self.names[self.canonical(moment).index]

    def symbol(self, name: Name) -> sp.Symbol:
        """The symbol that stands for a name in formulas."""
        return _symbol(name.key, name.kind in "qgs")

    def scales(self, expr: sp.Expr) -> dict[sp.Symbol, Name]:
        """The unknown scales in an expression."""
        return {s: self._scales[s] for s in expr.free_symbols if s in self._scales}

    # -- steps ---------------------------------------------------------------------------------------

    def step(self, value: str, direction: str) -> Step | None:
        """The step of a value; None where no gradient arrives."""
        if self.law(value, direction) is None:
            return None
        moments = {id(m): m for m in self._auxiliary[value, direction]}
        lines = []
        for kind, quantity in self.own(value, direction):
            line = self._own_line(value, kind, quantity, direction)
            if line.moment is not None and line.shared is None:
                moments[id(line.moment)] = line.moment
            else:
                lines.append(line)
        named = sorted(moments.values(), key=lambda m: m.index)
        return Step(value, direction, (*(self._line(m, value, direction) for m in named), *lines))

    def _own_line(self, value: str, kind: str, quantity: Quantity | None, direction: str) -> Line:
        name = Name(kind, value)
        if quantity is None:
            return Line(name, None, (), True, "wide", "population")
        if not isinstance(quantity, Moment):
            return Line(name, quantity, (), True)
        m = self.canonical(quantity)
        if m.index not in self.names:
            return Line(name, m.template, m.args, True, m.exactness, m.tier, m.assumptions)
        if self.names[m.index] != name:
            return Line(name, place(0, m), (m,), True, m.exactness, m.tier, m.assumptions, m, self.names[m.index])
        return self._line(m, value, direction)

    def _line(self, m: Moment, value: str, direction: str) -> Line:
        name = self.names[m.index]
        main = name.node == value and name.variant == 1 and name.kind in ("qm" if direction == FORWARD else "g")
        template, args = (m.template, m.args) if m.template is None else self.told(m, value, direction)
        return Line(name, template, args, main, m.exactness, m.tier, m.assumptions, m)

    def told(self, m: Moment, value: str, direction: str) -> tuple[sp.Expr, tuple[Quantity, ...]]:
        """The equation with sums that a neighbour's moment already names replaced by it."""
        template, args = m.template, m.args
        assert template is not None
        for other in self.neighbours(value, direction):
            for kind, quantity in self.own(other, direction):
                if isinstance(quantity, Moment) and kind == self.names[m.index].kind:
                    template, args = _telescoped(template, args, self.canonical(quantity), m)
        return template, args

    def neighbours(self, value: str, direction: str) -> tuple[str, ...]:
        """The values a step follows from: inputs forward, readers' outputs backward."""
        node = self.node_of(value)
        if node is None:
            return ()
        if direction == FORWARD:
            return tuple(i for i in dict.fromkeys(node.inputs) if i in self.derivation.nodes)
        return tuple(v for r in dict.fromkeys(node.readers) for v in self._outputs(r))

    def _outputs(self, node: str) -> tuple[str, ...]:
        if node in self.derivation.nodes:
            return (node,)
        found, k = [], 0
        while f"{node}:{k}" in self.derivation.nodes:
            found.append(f"{node}:{k}")
            k += 1
        return tuple(found)

    # -- groups --------------------------------------------------------------------------------------

    def groups(self, direction: str) -> list[list[Step]]:
        """Steps of one pass, equal ones together, in the order of the first of each."""
        if direction not in self._groups:
            self._groups[direction] = self._grouped(direction)
        return self._groups[direction]

    def _grouped(self, direction: str) -> list[list[Step]]:
        found: dict[object, list[Step]] = {}
        for value in self.ordered(direction):
            step = self.step(value, direction)
            if step is not None:
                found.setdefault(self._signature(step), []).append(step)
        groups = self._families([part for group in found.values() for part in alike(group, lambda s: s.node)])
        rank = {value: i for i, value in enumerate(self.ordered(direction))}
        return sorted(groups, key=lambda g: rank[g[0].node])

    def _families(self, groups: list[list[Step]]) -> list[list[Step]]:
        """Groups of corresponding nodes of many blocks whose equations differ in how many terms they have as one."""
        found: dict[object, list[list[Step]]] = defaultdict(list)
        for group in groups:
            found[self._family(group[0])].append(group)
        rank = {value: i for i, value in enumerate(self.ordered(groups[0][0].direction))} if groups else {}
        merged = [sorted(chain.from_iterable(parts), key=lambda s: rank[s.node]) for parts in found.values()
                  if len(parts) >= FAMILY]
        return merged + [g for parts in found.values() if len(parts) < FAMILY for g in parts]

    def _family(self, step: Step) -> tuple[object, ...]:
        """What a step shares with those of the corresponding nodes of other blocks."""
        roles = self._roles(step.node, step.direction)
        block, _, last = step.node.rpartition(".")
        lines = frozenset((line.name.kind, line.main, line.template and line.template.func, frozenset(
            told[::2] if isinstance(told := self._told(a, roles), tuple) else "" for a in line.args))
            for line in step.lines)
        return (_NUMBER.sub("", block), last, self._kind(step), step.exactness, step.tier, step.assumptions, lines)

    def _signature(self, step: Step) -> tuple[object, ...]:
        roles = self._roles(step.node, step.direction)
        return (self._kind(step), tuple(
            (line.name.kind, line.name.variant, line.main, line.template, line.exactness, line.tier,
             tuple(self._told(a, roles) for a in line.args)) for line in step.lines))

    def _kind(self, step: Step) -> tuple[object, ...]:
        node = self.node_of(step.node)
        assert node is not None
        port = step.node[len(node.name):]
        if step.direction == FORWARD:
            return (port, node.kind)
        return (port, node.op, *(self.nodes[r].kind for r in node.readers))

    def _roles(self, value: str, direction: str) -> Mapping[str, object]:
        node = self.node_of(value)
        assert node is not None
        roles: dict[str, object] = {r: ("out", i) for i, r in enumerate(node.readers)}
        roles |= {n: ("in", i) for i, n in reversed(list(enumerate(node.inputs)))}
        return roles | {value: "own", node.name: "own"}

    def _told(self, a: Quantity, roles: Mapping[str, object]) -> object:
        told = self.argument(a)
        if isinstance(told, Name):
            return (told.kind, told.variant, roles.get(told.node, "far"))
        return told.xreplace({s: _symbol("~s", True) for s in self.scales(told)})


def alike(items: Sequence[T], name: Callable[[T], str]) -> list[list[T]]:
    """Split into items whose names differ in one number only, and one list of those without such a partner."""
    same: dict[str, list[T]] = defaultdict(list)
    for item in items:
        same[_NUMBER.sub("0", name(item))].append(item)
    parts = [part for group in same.values() for part in _by_one_number(group, name)]
    single = [p[0] for p in parts if len(p) == 1]
    return [p for p in parts if len(p) > 1] + ([single] if single else [])


def _by_one_number(same: list[T], name: Callable[[T], str]) -> list[list[T]]:
    """The coarsest split in which all but one of the numbers of a name agree."""
    count = len(_NUMBER.findall(name(same[0])))
    splits = [_split_at(same, name, k) for k in range(count)]
    return min(splits, key=len) if splits else [same]


def _split_at(same: list[T], name: Callable[[T], str], free: int) -> list[list[T]]:
    found: dict[tuple[str, ...], list[T]] = defaultdict(list)
    for item in same:
        numbers = _NUMBER.findall(name(item))
        found[(*numbers[:free], *numbers[free + 1:])].append(item)
    return list(found.values())


@lru_cache(maxsize=65536)
def _symbol(key: str, positive: bool) -> sp.Symbol:
    return sp.Symbol(key, positive=True) if positive else sp.Symbol(key, real=True)


def _telescoped(template: sp.Expr, args: tuple[Quantity, ...], known: Moment, m: Moment
                ) -> tuple[sp.Expr, tuple[Quantity, ...]]:
    """Puts the moment ``known`` for its own right side, where a multiple of that is a part of the sum
    ``template``."""
    if known is m or known.template is None or not template.is_Add or known in args:
        return template, args
    position = {id(a) if isinstance(a, Moment) else a: i for i, a in enumerate(args)}
    keys = [id(a) if isinstance(a, Moment) else a for a in known.args]
    if not keys or any(k not in position for k in keys):
        return template, args
    table = {place(i, a): place(position[k], a) for i, (a, k) in enumerate(zip(known.args, keys, strict=True))}
    part = sp.Add.make_args(known.template.xreplace(table))
    for factor in _factors(template.args, part):
        used = {factor * t for t in part}
        if used <= set(template.args):
            rest = sp.Add(*(t for t in template.args if t not in used)) + factor * place(len(args), known)
            return _renumbered(rest, (*args, known))
    return template, args


def _factors(terms: tuple[sp.Expr, ...], part: tuple[sp.Expr, ...]) -> Iterator[sp.Expr]:
    """Factors that may take ``part`` into ``terms``: numbers, and for a product that is all of it, products."""
    yield sp.S.One
    first = max(part, key=lambda t: len(t.free_symbols))
    if len(first.free_symbols) < 2:
        return
    for term in terms:
        if term.free_symbols >= first.free_symbols and (len(part) == 1 or term.free_symbols == first.free_symbols):
            factor = term / first
            if all(e.is_positive for s, e in factor.as_powers_dict().items() if not s.is_Number):
                yield factor


def _renumbered(template: sp.Expr, args: tuple[Quantity, ...]) -> tuple[sp.Expr, tuple[Quantity, ...]]:
    kept = [(i, a) for i, a in enumerate(args) if place(i, a) in template.free_symbols]
    table = {place(i, a): place(k, a) for k, (i, a) in enumerate(kept)}
    return template.xreplace(table), tuple(a for _, a in kept)


def exactness_of(steps: list[Step]) -> str:
    """The weakest exactness of some steps."""
    return weakest(EXACTNESS, (s.exactness for s in steps))
