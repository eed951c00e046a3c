"""derive: the law of every node of a network, forward and backward, as formulas and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy as sp

from varflow.calculus import quotient
from varflow.errors import InputError, UnsupportedError
from varflow.laws import moments as mo
from varflow.laws.distributions import NoFormula
from varflow.laws.moments import EXACTNESS, TIERS, Evaluation, Expansion, Moment, Quantity, weakest
from varflow.laws.propagate import Propagation
from varflow.laws.variables import Block
from varflow.lowering import lower
from varflow.network import InputNode, Network
from varflow.program import Input, Program, Weight
from varflow.rebuild import scaled_variance

FORWARD, BACKWARD = "forward", "backward"
FIELDS = ("mean", "second_moment", "variance", "gain", "local_gain", "grad_second_moment", "grad_gain",
          "grad_local_gain")


@dataclass(frozen=True)
class Law:
    """Moments of one value: ``mean`` and ``second`` are named moments or expressions, None without formula."""

    mean: Quantity | None
    second: Quantity | None

    def labels(self, scale: tuple[str, ...], field: str, missing: str) -> list[str]:
        """The labels of both moments on one scale."""
        return [missing if m is None else getattr(m, field, scale[0]) for m in (self.mean, self.second)]


class NodeLaw:
    """The law of one node. Formulas are sympy expressions over the network's symbols, None where there is none.

    ``second_moment`` is E[x^2] averaged over channels and places, ``gain`` its ratio to the input's (None with
    several inputs), ``local_gain`` to the node's own input; ``grad_*`` the same for the gradient with respect
    to this value, for a random cotangent of unit second moment at every output.
    """

    def __init__(self, derivation: Derivation, name: str, forward: Law, backward: Law | None) -> None:
        self.derivation, self.name, self.forward, self.backward = derivation, name, forward, backward

    def _expanded(self, quantity: Quantity | None) -> sp.Expr | None:
        return None if quantity is None else self.derivation.expansion.of(quantity)

    @property
    def mean(self) -> sp.Expr | None:
        """E[x]."""
        return self._expanded(self.forward.mean)

    @property
    def second_moment(self) -> sp.Expr | None:
        """E[x^2]."""
        return self._expanded(self.forward.second)

    @property
    def variance(self) -> sp.Expr | None:
        """E[x^2] - E[x]^2."""
        q, m = self.second_moment, self.mean
        return None if q is None or m is None else q - m**2

    @property
    def gain(self) -> sp.Expr | None:
        """E[x^2] over the input's; None where the network has several inputs."""
        return self.derivation.gain(self.name)

    @property
    def local_gain(self) -> sp.Expr | None:
        """E[x^2] over that of the node's own input; None unless it has exactly one."""
        source = self.derivation.single_input(self.name)
        return None if source is None else _ratio(self.second_moment, self.derivation[source].second_moment)

    @property
    def grad_second_moment(self) -> sp.Expr | None:
        """E[(dL/dx)^2]; zero where no gradient arrives."""
        return sp.S.Zero if self.backward is None else self._expanded(self.backward.second)

    @property
    def grad_gain(self) -> sp.Expr | None:
        """E[(dL/dx)^2] over the cotangent's second moment, which is one."""
        return self.grad_second_moment

    @property
    def grad_local_gain(self) -> sp.Expr | None:
        """The factor from this node's gradient to its input's; None unless it is that input's only reader."""
        source = self.derivation.single_input(self.name)
        if source is None or self.derivation.readers(source) != 1:
            return None
        return _ratio(self.derivation[source].grad_second_moment, self.grad_second_moment)

    @property
    def exactness(self) -> str:
        """exact | wide | closure | underived, of the second moment."""
        return _exactness(self.forward)

    @property
    def grad_exactness(self) -> str:
        """As ``exactness``, for the gradient's second moment."""
        return "exact" if self.backward is None else _exactness(self.backward)

    @property
    def tier(self) -> str:
        """closed | quadrature | population: how its numbers are had, the weakest of its moments."""
        labels = self.forward.labels(TIERS, "tier", "population")
        if self.backward is not None:
            labels.append("population" if self.backward.second is None
                          else getattr(self.backward.second, "tier", "closed"))
        return weakest(TIERS, labels)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the formulas rest on, in words."""
        found: set[str] = set()
        for law in (self.forward, self.backward):
            for m in (law.mean, law.second) if law else ():
                found |= m.assumptions if isinstance(m, Moment) else set()
        if "wide" in (self.exactness, self.grad_exactness):
            found.add(self.derivation.width_assumption)
        return tuple(sorted(found))

    @property
    def equation(self) -> sp.Eq | None:
        """The local step: this second moment over the moments it is made of."""
        return self.derivation.equation(self.forward.second)

    @property
    def grad_equation(self) -> sp.Eq | None:
        """The local step of the gradient's second moment."""
        return self.derivation.equation(self.backward.second) if self.backward else None

    @property
    def profile(self) -> None:
        """The array over positions where laws differ between them; positions are exchangeable here: None."""
        return None

    @property
    def standard_error(self) -> float | None:
        """Standard error of the second moment where a population gave the number and the network has no open
        symbols; None for formulas."""
        if self.tier != "population" or self.derivation.free_symbols():
            return None
        return self.numeric({}).get("standard_error")

    def numeric(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Every field as a number (or an array, where ``values`` has arrays); ``standard_error`` where a
        population gave it. Raises InputError naming symbols without a value."""
        return self.derivation.numbers(values or {}).node(self.name)

    def _repr_latex_(self) -> str:
        q = self.second_moment
        return f"$\\displaystyle {sp.latex(q)}$" if q is not None else "no closed formula"

    def __repr__(self) -> str:
        return f"<NodeLaw {self.name}: second_moment={self.second_moment}, grad={self.grad_second_moment}>"


def _exactness(law: Law) -> str:
    return "wide" if law.second is None else str(getattr(law.second, "exactness", "exact"))


def _ratio(a: sp.Expr | None, b: sp.Expr | None) -> sp.Expr | None:
    return None if a is None or b is None or b == 0 else sp.cancel(a / b) if _rational(a, b) else a / b


def _rational(*exprs: sp.Expr) -> bool:
    return all(e.is_rational_function() and e.count_ops() < 60 for e in exprs)


@dataclass(frozen=True)
class WeightLaw:
    """A weight's initialization: ``variance`` of an entry, ``std``, ``init_gain`` = std sqrt(fan_in).

    ``unknown`` is the scale s = fan_in Var(W_ij) that is still to be solved for; ``draw`` says how to draw it.
    """

    name: str
    variance: sp.Expr
    fan_in: sp.Expr
    fan_out: sp.Expr
    distribution: str
    unknown: sp.Symbol | None = None

    @property
    def std(self) -> sp.Expr:
        """Standard deviation of an entry."""
        return sp.sqrt(self.variance)

    @property
    def init_gain(self) -> sp.Expr:
        """std sqrt(fan_in), as torch.nn.init.calculate_gain counts."""
        return sp.sqrt(sp.cancel(self.variance * self.fan_in))

    @property
    def draw(self) -> str:
        """The parameters of the distribution that has this variance, in words and formula."""
        match self.distribution:
            case "uniform":
                return f"uniform on (-a, a), a = {sp.sqrt(3 * self.variance)}"
            case "truncated_normal":
                return f"normal of std {self.std / sp.Float('0.87962566103423978', 17)} truncated at 2 std"
            case "orthogonal":
                return f"{self.init_gain} times a Haar orthogonal matrix"
            case "rademacher":
                return f"+-{self.std} with equal probability"
            case "constant":
                return "constant"
        return f"normal, std {self.std}"


class Derivation(Mapping[str, NodeLaw]):
    """Laws of all nodes: ``d["y"].second_moment``; ``weights``; numbers by :meth:`numeric`."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.program: Program = lower(network)
        self._propagation = Propagation(self.program)
        self.system = self._propagation.laws.system
        self.expansion = Expansion()
        self.nodes: dict[str, NodeLaw] = {name: self._node(name) for name in self.program.values}
        self._named = {}  # type: ignore[var-annotated]

    def _node(self, name: str) -> NodeLaw:
        forward = self._law(self.program.values[name], name)
        gradient = self.program.gradients.get(name)
        return NodeLaw(self, name, forward, None if gradient is None else self._law(gradient, name))

    def _law(self, value: int, name: str) -> Law:
        blocks = self._propagation.values[value]
        laws, n = self._propagation.laws, sp.Add(*(b.size for b in blocks))
        backward = self.program.instructions[value].backward

        def average(of: Any, kind: str) -> Quantity | None:
            try:
                parts = [mo.product(mo.constant(quotient(b.size, n)), of(b.law)) for b in blocks if b.law]
                return laws.quantity(mo.total(parts), kind, name, backward)
            except NoFormula:
                return None

        return Law(average(laws.mean, "m"), average(laws.second, "g" if backward else "q"))

    # -- reading -------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> NodeLaw:
        if name not in self.nodes:
            from varflow.fields import closest

            raise InputError(f"no node is called {name!r}", instead=closest(name, self.nodes))
        return self.nodes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __contains__(self, name: object) -> bool:
        return name in self.nodes

    @property
    def inputs(self) -> list[str]:
        """Names of the network's inputs."""
        return [n for n, layer in self.network.nodes() if isinstance(layer, InputNode)]

    def gain(self, node: str, input: str | None = None) -> sp.Expr | None:
        """E[node^2] / E[input^2]; ``input`` may be left out where there is one."""
        names = self.inputs
        if input is None and len(names) != 1:
            return None
        return _ratio(self[node].second_moment, self[input or names[0]].second_moment)

    def single_input(self, node: str) -> str | None:
        """The one value a node reads, by name; None for inputs, merges and nodes within blocks."""
        base = node.split(":")[0]
        if base not in self.network.graph:
            return None
        sources = self.network.inputs_of(base)
        return sources[0].key if len(sources) == 1 and sources[0].key in self.nodes else None

    def readers(self, node: str) -> int:
        """How many times a value is read."""
        base, _, port = node.partition(":")
        edges = self.network.graph.out_edges(base, data=True)
        outputs = sum(h.key == node for h in self.network.declared_outputs)
        return sum(str(data.get("out", "")) == port for _, _, data in edges) + outputs

    @cached_property
    def weights(self) -> dict[str, WeightLaw]:
        """Initialization of every weight by name."""
        return {n: weight_law(w) for n, w in self.program.weights.items()}

    @cached_property
    def width_assumption(self) -> str:
        """Which sizes a wide limit lets grow."""
        sizes = {s.shape.channels for s in self.program if not isinstance(s.primitive, Input)}
        names = sorted({str(x) for e in sizes for x in e.free_symbols})
        which = ", ".join(names) if names else "the hidden widths"
        return f"wide limit: {which} grow; the error is O(1/width)"

    def free_symbols(self) -> set[str]:
        """Names of all symbols that numbers need a value for."""
        found: set[sp.Symbol] = set()
        for w in self.program.weights.values():
            found |= w.variance.free_symbols | w.keep.free_symbols
        for s in self.program:
            found |= _symbols_of(s.primitive) | s.shape.channels.free_symbols
            found |= set().union(*(p.free_symbols for p in s.shape.positions))
        return {s.name for s in found}

    def unknowns(self) -> dict[str, sp.Symbol]:
        """Scales still to be solved for, by weight name."""
        return {n: w.unknown for n, w in self.program.weights.items() if w.unknown is not None}

    # -- equations -----------------------------------------------------------------------------------

    def symbol(self, moment: Moment) -> sp.Symbol:
        """A readable name: kind and node, made unique."""
        if moment.index not in self._named:
            name = f"{moment.kind}_{moment.node}" if moment.node else moment.symbol.name
            taken = {s.name for s in self._named.values()}
            if name in taken:
                name = f"{name}'{moment.index}"
            self._named[moment.index] = sp.Symbol(name, **({"positive": True} if moment.positive else {"real": True}))
        return self._named[moment.index]

    def equation(self, quantity: Quantity | None) -> sp.Eq | None:
        """The equation that defines a moment, over the moments before it."""
        if not isinstance(quantity, Moment):
            return None
        right = quantity.right_side(self.symbol)
        return None if right is None else sp.Eq(self.symbol(quantity), right, evaluate=False)

    # -- numbers -------------------------------------------------------------------------------------

    def numbers(self, values: Mapping[str, Any]) -> Numbers:
        """All numbers at the given values of the symbols."""
        return Numbers(self, values)

    def numeric(self, values: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        """Numbers of every node: {node: {field: float or array}}."""
        numbers = self.numbers(values or {})
        return {name: numbers.node(name) for name in self.nodes}

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(n)}</td><td>{_cell(law.second_moment)}</td><td>{_cell(law.grad_second_moment)}</td>"
            f"<td>{law.exactness}</td></tr>" for n, law in self.nodes.items())
        return ("<table><tr><th>node</th><th>E[x&sup2;]</th><th>E[(dL/dx)&sup2;]</th><th>exactness</th></tr>"
                f"{rows}</table>")


def _cell(expr: sp.Expr | None) -> str:
    return "&mdash;" if expr is None else f"${sp.latex(expr)}$"


def _symbols_of(primitive: object) -> set[sp.Symbol]:
    from varflow.symbols import arg

    found: set[sp.Symbol] = set()
    for value in vars(primitive).values():
        if isinstance(value, sp.Expr):
            found |= value.free_symbols
        elif hasattr(value, "eps"):
            found |= _symbols_of(value)
    return {s for s in found if s != arg(0) and not s.name.startswith("a_")}


def weight_law(w: Weight) -> WeightLaw:
    """The initialization that a program's weight states."""
    return WeightLaw(w.name, w.variance, w.fan_in, w.fan_out, w.distribution, w.unknown)


class Numbers:
    """Moments of one derivation at given values; runs a population where a formula is missing."""

    def __init__(self, derivation: Derivation, values: Mapping[str, Any]) -> None:
        missing = derivation.free_symbols() - set(values)
        if missing:
            raise InputError(
                f"no value for {', '.join(sorted(missing))}", why="numbers need all symbols",
                instead="values={" + ", ".join(f"{m!r}: ..." for m in sorted(missing)) + "}"
                        + (", or solve for the unknown scales first" if derivation.unknowns() else ""))
        self.derivation, self.values = derivation, dict(values)
        self._evaluation = Evaluation(self.values, self._measured)

    @cached_property
    def _population(self) -> Any:
        from varflow.laws.population import run_population

        for name, value in self.values.items():
            if getattr(value, "ndim", 0):
                raise UnsupportedError(f"{name} is an array, and a node here has no formula",
                                       why="a population is run at one point", instead="one number at a time")
        program = lower(bound(self.derivation.network, self.values))
        return run_population(program)

    def _measured(self, m: Moment) -> float:
        assert m.value is not None
        return float(getattr(self._population, m.measure)[m.value])

    def of(self, quantity: Quantity | None, value: int, measure: str) -> Any:
        """A moment's number; from the population where it has no formula."""
        if quantity is None:
            return float(getattr(self._population, measure)[value])
        return self._evaluation.of(quantity)

    def node(self, name: str) -> dict[str, Any]:
        """All fields of one node."""
        d = self.derivation
        law, program = d[name], d.program
        value = program.values[name]
        q = self.of(law.forward.second, value, "second_moment")
        m = self.of(law.forward.mean, value, "mean")
        result: dict[str, Any] = {"mean": m, "second_moment": q, "variance": q - m * m}
        result["gain"] = self._over(q, d.inputs[0]) if len(d.inputs) == 1 else None
        source = d.single_input(name)
        result["local_gain"] = self._over(q, source) if source else None
        g = self._gradient(name)
        result |= {"grad_second_moment": g, "grad_gain": g, "grad_local_gain": None}
        if source and d.readers(source) == 1 and g != 0:
            result["grad_local_gain"] = self._gradient(source) / g
        if law.tier == "population":
            result["standard_error"] = float(self._population.standard_error_second_moment[value])
        return result

    def _over(self, q: Any, source: str) -> Any:
        d = self.derivation
        return q / self.of(d[source].forward.second, d.program.values[source], "second_moment")

    def _gradient(self, name: str) -> Any:
        d = self.derivation
        law = d[name].backward
        return 0.0 if law is None else self.of(law.second, d.program.gradients[name], "second_moment")


def bound(network: Network, values: Mapping[str, Any]) -> Network:
    """The network with numbers for its symbols and for unknown scales (``s_NAME``)."""
    from varflow.fields import exact

    scales = {n[2:]: exact(v) for n, v in values.items() if n.startswith("s_") and n not in network.symbols}
    variances = {n: scaled_variance(v) for n, v in scales.items() if v is not None}
    table = {s: exact(values[n]) for n, s in network.symbols.items() if n in values}
    return network.substitute({k: v for k, v in table.items() if v is not None}, variances)


def derive(network: Network) -> Derivation:
    """The law of every node of a network, forward and backward.

    Raises ErrorList for a network that is not well formed and UnsupportedError for what the theory does not
    cover.
    """
    return Derivation(network)
