"""derive: the law of every node of a network, forward and backward, as formulas and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.errors import InputError
from varflow.laws import moments as mo
from varflow.laws.depth import BlockMap
from varflow.laws.distributions import NoFormula
from varflow.laws.moments import TIERS, Expansion, Moment, Quantity, weakest
from varflow.laws.part import Part
from varflow.lowering import lower
from varflow.network import InputNode, Network, require_network
from varflow.program import (
    Input,
    Primitive,
    Program,
    Repeat,
    RepeatBackward,
    StandardizeBackward,
    Weight,
)
from varflow.symbols import STEP, STREAM

if TYPE_CHECKING:
    from varflow.evaluate import Numbers

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
    def closure(self) -> sp.Expr | None:
        """The Gaussian-closure formula of the second moment, beside a number that a population gives; its error is
        ``closure_error`` among the numbers. None where the law has a formula, or no closure either."""
        closed = self.derivation.closed[self.name]
        return closed.second_moment if self.second_moment is None and closed.exactness == "closure" else None

    @property
    def profile(self) -> npt.NDArray[np.float64] | None:
        """E[x^2] at every position, an array of the positions' shape, in a network with windows over positions whose
        sizes and weights have numbers; None elsewhere."""
        found = None if self.derivation.free_symbols() else self.derivation.numbers({}).profile
        if found is None:
            return None
        value = found.program.values[self.name]
        positions, array = found.program.shape(value).positions, found.second(value)
        return array.reshape([int(n) for n in positions]) if array is not None and positions else None

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

    def __init__(self, network: Network, tier: str = "auto") -> None:
        if tier not in ("auto", "closed"):
            raise InputError(f"no tier is called {tier!r}", instead="auto, or closed (formulas only)")
        self.network, self.only_formulas = network, tier == "closed"
        self.program: Program = lower(network)
        self.main = Part(self.program, self.only_formulas)
        self.system = self.main.system
        self.expansion = Expansion()
        self.nodes: dict[str, NodeLaw] = {name: self._node(name) for name in self.program.values}
        for body in self.main.propagation.maps.values():
            self.nodes |= self._inner_nodes(body)
        self._named: dict[int, sp.Symbol] = {}
        self._taken: set[str] = set()

    def _node(self, name: str) -> NodeLaw:
        forward = self._law(self.program.values[name], name)
        gradient = self.program.gradients.get(name)
        return NodeLaw(self, name, forward, None if gradient is None else self._law(gradient, name))

    def _inner_nodes(self, block: BlockMap) -> dict[str, NodeLaw]:
        """Nodes of a block repeated a symbolic number of times, at repetition ``l``."""
        where = next(i for i, s in enumerate(self.program) if s.primitive is block.repeat)
        step = self.program.instructions[where]
        entering = self.main.second(step.args[0])
        leaving = self.program.pulled_back.get(where)
        seeds = (entering, None if leaving is None else self.main.second(leaving))
        body = block.part
        return {
            name: NodeLaw(self, name,
                          Law(self._lift(block, body.mean(value), seeds), self._lift(block, body.second(value), seeds)),
                          self._inner_gradient(block, name, seeds))
            for name, value in body.program.values.items()}

    def _lift(self, block: BlockMap, moment: Quantity | None, seeds: tuple[Quantity | None, Quantity | None],
              gradient: bool = False) -> Quantity | None:
        """A moment of the body at repetition l, over the moments at the ends of the whole stack."""
        laws = self.main.propagation.laws
        if moment is None or seeds[0] is None or (gradient and seeds[1] is None):
            return None
        try:
            expr = block.formula(moment).subs(STREAM, block.stream(STEP))
            if gradient:
                expr *= block.gradient(STEP + 1, block.repeat.count)
            f = block.lifted(expr, laws.formula(seeds[0]), moment)
        except NoFormula:
            return None
        f = mo.product(f, laws.formula(seeds[1])) if gradient and seeds[1] is not None else f
        kind, node = ("m", "") if not isinstance(moment, Moment) else (moment.kind, moment.node)
        return laws.quantity(f, kind, node, gradient)

    def _inner_gradient(self, block: BlockMap, name: str, seeds: tuple[Quantity | None, Quantity | None]
                        ) -> Law | None:
        value = block.part.program.gradients.get(name)
        if value is None or seeds[1] == 0:
            return None
        return Law(sp.S.Zero, self._lift(block, block.part.second(value), seeds, gradient=True))

    def _law(self, value: int, name: str) -> Law:
        return Law(self.main.mean(value, name), self.main.second(value, name))

    @cached_property
    def closed(self) -> Derivation:
        """The same network with formulas only: Gaussian closures where the law has no formula."""
        return self if self.only_formulas else Derivation(self.network, "closed")

    @property
    def bodies(self) -> list[Part]:
        """Bodies of blocks repeated a symbolic number of times."""
        bodies: list[Part] = self.main.propagation.bodies
        return bodies

    def parts(self) -> list[Part]:
        """The network's program, and the bodies of blocks repeated a symbolic number of times."""
        return [*self.bodies, self.main]

    # -- reading -------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> NodeLaw:
        if name not in self:
            from varflow.fields import closest

            raise InputError(f"no node is called {name!r}", instead=closest(getattr(name, "key", name), self.nodes))
        return self.nodes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.nodes

    @cached_property
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
        return {n: weight_law(w) for n, w in self.all_weights().items()}

    @cached_property
    def width_assumption(self) -> str:
        """Which sizes a wide limit lets grow."""
        sizes = {s.shape.channels for s in self.program if not isinstance(s.primitive, Input)}
        names = sorted({str(x) for e in sizes for x in e.free_symbols})
        which = ", ".join(names) if names else "the hidden widths"
        return f"wide limit: {which} grow; the error is O(1/width)"

    def free_symbols(self) -> set[str]:
        """Names of all symbols that numbers need a value for."""
        return {s.name for s in _open_symbols(self.program)}

    def unknowns(self) -> dict[str, sp.Symbol]:
        """Scales still to be solved for, by weight name."""
        return {n: w.unknown for n, w in self.all_weights().items() if w.unknown is not None}

    def all_weights(self) -> dict[str, Weight]:
        """The program's weights and those of repeated bodies."""
        return {n: w for part in self.parts() for n, w in part.program.weights.items()}

    # -- equations -----------------------------------------------------------------------------------

    def symbol(self, moment: Moment) -> sp.Symbol:
        """A readable name: kind and the node it is a moment of, made unique."""
        if not self._named:
            for name, law in self.nodes.items():
                self._name(law.forward.second, "q", name)
                self._name(law.forward.mean, "m", name)
                self._name(law.backward and law.backward.second, "g", name)
        if moment.index not in self._named:
            self._name(moment, moment.kind, moment.node)
        return self._named[moment.index]

    def _name(self, moment: Quantity | None, kind: str, node: str) -> None:
        if not isinstance(moment, Moment) or moment.index in self._named:
            return
        name = f"{kind}_{node}" if node else moment.symbol.name
        if name in self._taken:
            name = f"{name}'{moment.index}"
        self._taken.add(name)
        sign = {"positive": True} if moment.positive else {"real": True}
        self._named[moment.index] = sp.Symbol(name, **sign)

    def equation(self, quantity: Quantity | None) -> sp.Eq | None:
        """The equation that defines a moment, over the moments before it."""
        if not isinstance(quantity, Moment):
            return None
        right = quantity.right_side(self.symbol)
        return None if right is None else sp.Eq(self.symbol(quantity), right, evaluate=False)

    # -- numbers -------------------------------------------------------------------------------------

    def numbers(self, values: Mapping[str, Any]) -> Numbers:
        """All numbers at the given values of the symbols."""
        from varflow.evaluate import Numbers

        return Numbers(self, values) if values else self._own_numbers

    @cached_property
    def _own_numbers(self) -> Numbers:
        """The numbers of a network without open symbols."""
        from varflow.evaluate import Numbers

        return Numbers(self, {})

    def numeric(self, values: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        """Numbers of every node: {node: {field: float or array}}."""
        numbers = self.numbers(values or {})
        return {name: numbers.node(name) for name in self.nodes}

    def __repr__(self) -> str:
        return f"<Derivation of {self.network.name!r}: {len(self.nodes)} nodes>"

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(n)}</td><td>{_cell(law.second_moment)}</td><td>{_cell(law.grad_second_moment)}</td>"
            f"<td>{law.exactness}</td></tr>" for n, law in self.nodes.items())
        return ("<table><tr><th>node</th><th>E[x&sup2;]</th><th>E[(dL/dx)&sup2;]</th><th>exactness</th></tr>"
                f"{rows}</table>")


def _cell(expr: sp.Expr | None) -> str:
    return "&mdash;" if expr is None else f"${sp.latex(expr)}$"


def _open_symbols(program: Program) -> set[sp.Symbol]:
    """Every symbol of the network that a program's values depend on."""
    found: set[sp.Symbol] = set()
    for w in program.weights.values():
        found |= w.variance.free_symbols | w.keep.free_symbols | w.value.free_symbols
    for s in program:
        found |= _symbols_of(s.primitive) | s.shape.channels.free_symbols
        found |= set().union(*(p.free_symbols for p in s.shape.positions))
    return {s for s in found if s != STREAM and not s.name.startswith("a_")}


def _symbols_of(primitive: Primitive) -> set[sp.Symbol]:
    if isinstance(primitive, Repeat):
        count: set[sp.Symbol] = primitive.count.free_symbols
        return count | _open_symbols(primitive.body)
    if isinstance(primitive, StandardizeBackward | RepeatBackward):
        return _symbols_of(primitive.forward)
    values = [v for v in vars(primitive).values() if isinstance(v, sp.Expr)]
    found: set[sp.Symbol] = set().union(*(v.free_symbols for v in values))
    return found


def weight_law(w: Weight) -> WeightLaw:
    """The initialization that a program's weight states."""
    return WeightLaw(w.name, w.variance, w.fan_in, w.fan_out, w.distribution, w.unknown)


def derive(network: Network, tier: str = "auto") -> Derivation:
    """The law of every node of a network, forward and backward.

    ``tier="closed"``: formulas only, never a population; where there is no exact or wide one, the Gaussian closure
    (arguments of a nonlinear function taken as jointly Gaussian of their true moments), labelled ``closure``.

    Raises ErrorList for a network that is not well formed and UnsupportedError for what the theory does not
    cover.
    """
    require_network(network, "what is to be derived")
    return Derivation(network, tier)
