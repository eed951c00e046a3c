"""Results as JSON: schema 1, formulas as text of the expression grammar, numbers beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import sympy as sp

from varflow.derive import FIELDS, Derivation, NodeLaw, WeightLaw
from varflow.errors import ExpressionError, InputError, UnsupportedError
from varflow.export.bounded import TOO_LONG, Bounded
from varflow.export.steps import BACKWARD, FORWARD, Name, Steps
from varflow.laws.moments import Quantity, fill
from varflow.printing import to_text

SCHEMA = 1
LIMIT = 120
"""Operations of a formula that is written out; a longer one is given over the moments it is made of."""


def to_json(subject: Any, values: Mapping[str, Any] | None = None, verification: Any = None) -> dict[str, Any]:
    """The document of a Derivation, a Solution or a Network.

    ``{"schema", "network", "nodes": {NAME: {FIELD: text or None, "value": {FIELD: number}}}, "weights": ...}``.
    A formula that does not exist is None. One of more than 120 operations is given over named moments (q_NODE,
    m_NODE, g_NODE, ...). Moments in equations that no field of a node gives (k_NODE, g_NODE'2, ...) have
    equations of their own under "moments". Numbers are given where ``values`` (or a network without open symbols)
    allow them. ``verification`` adds predicted, estimate, ci and verdict to each
    node and direction, the overall verdict, delta and power, and what it takes to make the run again.
    Raises InputError for ``values`` that leave symbols open.
    """
    from varflow.export import split_subject

    derivation, solution = split_subject(subject)
    writer = _Writer(derivation)
    numbers = _numbers(derivation, values)
    result: dict[str, Any] = {
        "schema": SCHEMA, "network": derivation.network.name,
        "nodes": {name: writer.node(law, numbers) for name, law in derivation.items()},
        "weights": {name: _weight(w, values or {}) for name, w in derivation.weights.items()},
    }
    writer.define_used()
    if writer.moments:
        result["moments"] = writer.moments
    if solution is not None:
        result |= _solution(solution)
    if verification is not None:
        _add_verification(result, verification)
    return result


def text_of(expr: sp.Basic | None) -> str | None:
    """The text of the expression grammar, sympy's own for what that cannot say (integrals); None for None."""
    if expr is None:
        return None
    try:
        return to_text(expr)
    except ExpressionError:
        return str(expr)


class _Writer:
    """Formulas of nodes; collects the equations of the moments that long formulas are given over."""

    def __init__(self, derivation: Derivation) -> None:
        self.derivation, self.inputs = derivation, derivation.inputs
        self.bounded = Bounded(LIMIT)
        self.moments: dict[str, str | None] = {}
        self._used: dict[str, Name] = {}
        self._steps: Steps | None = None

    @property
    def steps(self) -> Steps:
        """Names of all moments."""
        if self._steps is None:
            self._steps = Steps(self.derivation)
        return self._steps

    def node(self, law: NodeLaw, numbers: dict[str, dict[str, Any]] | None) -> dict[str, Any]:
        """One node's fields."""
        formulas = self.formulas(law)
        fields: dict[str, Any] = {f: text_of(formulas[f]) for f in FIELDS}
        fields |= {
            "exactness": law.exactness, "grad_exactness": law.grad_exactness, "tier": law.tier,
            "assumptions": list(law.assumptions), "equation": self.equation(law.name, FORWARD),
            "grad_equation": self.equation(law.name, BACKWARD), "value": None if numbers is None else numbers[law.name]}
        return fields

    def formulas(self, law: NodeLaw) -> dict[str, sp.Expr | None]:
        """Every field's formula; over named moments where it, or its source's, is too long."""
        if not self._long(law):
            return {f: getattr(law, f) for f in FIELDS}
        d = self.derivation
        mean, q = self.told(law.forward.mean, law.name, "m"), self.told(law.forward.second, law.name, "q")
        g = sp.S.Zero if law.backward is None else self.told(law.backward.second, law.name, "g")
        source = d.single_input(law.name)
        return {"mean": mean, "second_moment": q, "variance": None if q is None or mean is None else q - mean**2,
                "gain": self._over(q, self.inputs[0]) if len(self.inputs) == 1 else None,
                "local_gain": self._over(q, source) if source else None,
                "grad_second_moment": g, "grad_gain": g, "grad_local_gain": self._local_gradient(law, source)}

    def _long(self, law: NodeLaw) -> bool:
        source = self.derivation.single_input(law.name)
        nodes = [law, *([self.derivation[source]] if source else [])]
        laws = [x for n in nodes for x in (n.forward, n.backward) if x is not None]
        return any(self.bounded.state(m) is TOO_LONG for x in laws for m in (x.mean, x.second))

    def told(self, quantity: Quantity | None, node: str, kind: str) -> sp.Expr | None:
        """The formula, or the moment's name, its equation being put under "moments"."""
        if self.bounded.state(quantity) is not TOO_LONG:
            return self.bounded.of(quantity)
        return self._named(Name(kind, node))

    def _named(self, name: Name) -> sp.Expr:
        self._write_moments()
        return sp.Symbol(readable(name))

    def _write_moments(self) -> None:
        if self.moments:
            return
        for direction in (FORWARD, BACKWARD):
            for value in self.steps.ordered(direction):
                step = self.steps.step(value, direction)
                for line in step.lines if step else ():
                    self.moments[readable(line.name)] = self._side(line.template, line.args)

    def _side(self, template: sp.Expr | None, args: tuple[Quantity, ...]) -> str | None:
        if template is None:
            return None
        return text_of(fill(template, args, self._symbol))

    def _symbol(self, moment: Quantity) -> sp.Symbol:
        name = self.steps.name(moment)
        self._used.setdefault(readable(name), name)
        return sp.Symbol(readable(name), real=True)

    def define_used(self) -> None:
        """Put the equations under "moments" of what an equation is made of and no node's field gives."""
        own = {f"{kind}_{node}" for node in self.derivation for kind in ("q", "m", "g")}
        if self._used.keys() <= own | self.moments.keys():
            return
        steps = (self.steps.step(v, direction) for direction in (FORWARD, BACKWARD)
                 for v in self.steps.ordered(direction))
        lines = {readable(line.name): line for step in steps if step for line in step.lines}
        while missing := [n for n in self._used if n not in own and n not in self.moments and n in lines]:
            for name in missing:
                self.moments[name] = self._side(lines[name].template, lines[name].args)

    def equation(self, value: str, direction: str) -> str | None:
        """The local step: this second moment over the moments it is made of."""
        step = self.steps.step(value, direction) if self.steps.node_of(value) else None
        if step is None:
            return None
        line = step.main
        side = self._side(line.template, line.args)
        return None if side is None else f"{readable(line.name)} == {side}"

    def _over(self, q: sp.Expr | None, source: str) -> sp.Expr | None:
        below = self.told(self.derivation[source].forward.second, source, "q")
        return None if q is None or below is None or below == 0 else q / below

    def _local_gradient(self, law: NodeLaw, source: str | None) -> sp.Expr | None:
        if source is None or law.backward is None or self.derivation.readers(source) != 1:
            return None
        above = self.derivation[source].backward
        below = self.told(law.backward.second, law.name, "g")
        if above is None or below is None or below == 0:
            return None
        top = self.told(above.second, source, "g")
        return None if top is None else top / below


def readable(name: Name) -> str:
    """A moment's name in JSON."""
    return f"{name.kind}_{name.node}" + (f"'{name.variant}" if name.variant > 1 else "")


def _numbers(derivation: Derivation, values: Mapping[str, Any] | None) -> dict[str, dict[str, Any]] | None:
    if values is None and derivation.free_symbols():
        return None
    try:
        return {n: {k: plain(v) for k, v in row.items()} for n, row in derivation.numeric(values or {}).items()}
    except UnsupportedError:
        if values is None:
            return None
        raise


def plain(value: Any) -> Any:
    """A number as JSON knows it: arrays as lists; None for what is not finite."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if hasattr(value, "tolist") and getattr(value, "ndim", False):
        return [plain(v) for v in value.tolist()]
    number = float(value)
    return number if math.isfinite(number) else None


def _weight(w: WeightLaw, values: Mapping[str, Any]) -> dict[str, Any]:
    fields = {"variance": w.variance, "std": w.std, "init_gain": w.init_gain, "fan_in": w.fan_in, "fan_out": w.fan_out}
    found: dict[str, Any] = {k: text_of(v) for k, v in fields.items()}
    numbers = {k: _value(v, values) for k, v in fields.items()}
    value = None if any(v is None for v in numbers.values()) else numbers
    return found | {"distribution": w.distribution, "draw": w.draw,
                    "unknown": None if w.unknown is None else w.unknown.name, "value": value}


def _value(expr: sp.Expr, values: Mapping[str, Any]) -> float | None:
    from varflow.laws.expectation import compile_formula

    symbols = sorted(expr.free_symbols, key=str)
    if any(s.name not in values for s in symbols):
        return None
    return plain(compile_formula(expr, symbols)(*(values[s.name] for s in symbols)))  # type: ignore[no-any-return]


def _solution(solution: Any) -> dict[str, Any]:
    answers = {str(u): {"condition": text_of(c), "answer": text_of(a), "closed_form": bool(closed)}
               for u, c, a, closed in solution.equations}
    return {"preserve": solution.preserve, "notes": list(solution.notes), "solved": answers}


def _add_verification(result: dict[str, Any], verification: Any) -> None:
    """The checks beside each node's fields, and the overall result."""
    for node, checks in verification.nodes.items():
        if node not in result["nodes"]:
            raise InputError(f"the verification has a node {node!r} that the network lacks",
                             instead="a verification of the same network")
        for direction, check in checks.items():
            if check is not None:
                result["nodes"][node][direction] = _check(check)
    for field in ("verdict", "delta", "power", "draws", "seed", "widths"):
        if (value := getattr(verification, field, None)) is not None or field in ("verdict", "delta", "power"):
            result[field] = [plain(v) for v in value] if isinstance(value, (tuple, list)) else _scalar(value)
    if record := getattr(verification, "record", None):
        result |= {"hash": verification.hash, "run": dict(record)}


def _scalar(value: Any) -> Any:
    return value if isinstance(value, int) else plain(value)


def _check(check: Any) -> dict[str, Any]:
    found = {"predicted": plain(check.predicted), "estimate": plain(check.estimate),
             "ci": [plain(v) for v in check.ci], "verdict": check.verdict}
    for field in ("exactness", "draws", "note", "draws_needed"):
        if (value := getattr(check, field, None)) not in (None, ""):
            found[field] = _scalar(value)
    return found
