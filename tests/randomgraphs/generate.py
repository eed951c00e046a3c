"""Seeded random computation graphs as plain data, and their networkx form.

A graph is a dictionary that JSON can hold: nodes in an order in which each stands behind its
inputs, every one with ``name``, ``op``, ``inputs`` (node and output port, "" where there is one
output) and ``fields``. Widths are texts in units of n: "3/2" is 3n/2. A weight that is used again
states its variance, distribution and sparsity at the first use only.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import networkx as nx

RESULTS = Path(__file__).parent / "results"
WIDTH_FIELDS = ("channels", "out_channels")
MOST_WIDTH = Fraction(3)
MOST_ENTRIES = Fraction(10)
BOUNDED = ("tanh", "sigmoid", "erf", "sin", "hardtanh")
ACTIVATIONS = (*("relu",) * 6, "leaky_relu(0.1)", "leaky_relu(0.2)", "leaky_relu(0.3)", "gelu",
               "gelu", "silu", "silu", "softplus", "abs", "abs", "elu", "selu", "identity",
               *BOUNDED, "tanh")
GATES = ("sigmoid", "sigmoid", "tanh", "hardtanh", "erf", "silu", "gelu")
VARIANCES = {"2/fan_in": 9, "1/fan_in": 9, "1.5/fan_in": 3, "2/(fan_in+fan_out)": 3, "1/fan_out": 2}
SPLITS = {Fraction(1): (("1/2", "1/2"),), Fraction(3, 2): (("1/2", "1"), ("1", "1/2")),
          Fraction(2): (("1/2", "3/2"), ("3/2", "1/2"), ("1/2", "1", "1/2")),
          Fraction(5, 2): (("1", "3/2"), ("2", "1/2")),
          Fraction(3): (("1", "2"), ("1/2", "3/2", "1"))}


class Node(TypedDict):
    """One layer."""

    name: str
    op: str
    inputs: list[list[str]]
    fields: dict[str, Any]


class Spec(TypedDict):
    """A graph; ``batch`` is the number of samples that its batch norms see, None without them."""

    name: str
    batch: int | None
    nodes: list[Node]


@dataclass(frozen=True)
class Value:
    """An output that a layer can read: its width in n, the power of a Gaussian that its tails have.

    ``smooth``: no two samples of a channel agree, so a variance over samples is never zero.
    """

    node: str
    port: str
    width: Fraction
    power: int = 1
    smooth: bool = False


@dataclass
class Builder:
    """A graph in the making; ``batch`` allows batch norm."""

    rng: random.Random
    batch: int | None = None
    nodes: list[Node] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    unread: set[Value] = field(default_factory=set)
    weights: dict[str, tuple[Fraction, Fraction]] = field(default_factory=dict)
    masks: dict[str, tuple[Fraction, str]] = field(default_factory=dict)
    permutations: dict[str, Fraction] = field(default_factory=dict)
    uses: set[tuple[str, bool, Value]] = field(default_factory=set)
    products: int = 0

    # -- choosing --------------------------------------------------------------------------------

    def pick(self, fits: Callable[[Value], bool] = lambda value: True) -> Value | None:
        """A value that fits: sooner one that nothing reads yet, sooner a late one."""
        found = [v for v in self.values if fits(v)]
        if not found:
            return None
        age = {v: len(self.values) - k for k, v in enumerate(self.values)}
        chances = [0.85 ** age[v] * (5 if v in self.unread else 1) for v in found]
        return self.rng.choices(found, chances)[0]

    def any(self) -> Value:
        """Any value."""
        return self.pick() or self.values[-1]

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.rng.random() < p

    def layer(self, op: str, inputs: list[Value], width: Fraction, *, power: int = 1,
              smooth: bool = False, **fields: Any) -> Value:
        """Append a layer with one output."""
        name = f"{op}_{len(self.nodes)}"
        self._append(name, op, inputs, fields)
        return self._offer(Value(name, "", width, power, smooth))

    def _append(self, name: str, op: str, inputs: list[Value], fields: dict[str, Any]) -> None:
        reads = [[v.node, v.port] for v in inputs]
        self.nodes.append({"name": name, "op": op, "inputs": reads, "fields": fields})
        self.unread -= set(inputs)

    def _offer(self, value: Value) -> Value:
        self.values.append(value)
        self.unread.add(value)
        return value

    # -- weights ---------------------------------------------------------------------------------

    def linear(self, x: Value, width: Fraction | None = None) -> Value:
        """A layer with a weight of its own."""
        width = width or self.rng.choices([Fraction(k, 2) for k in (1, 2, 3, 4)], (2, 8, 3, 2))[0]
        variance = self.rng.choices(list(VARIANCES), list(VARIANCES.values()))[0]
        flipped = self.chance(0.12)
        fields: dict[str, Any] = {"out_channels": str(width), "variance": variance} | self._bias()
        if flipped:
            fields["transpose"] = True
        if self.chance(0.4):
            fields["distribution"] = self.rng.choice(("uniform", "uniform", "rademacher"))
        if self.chance(0.1):
            fields["keep"] = self.rng.choice(("1/4", "1/2"))
        if self.chance(0.5):
            fields["weight"] = f"W{len(self.weights)}"
        y = self.layer("linear", [x], width, smooth=True, **fields)
        shape = (x.width, width) if flipped else (width, x.width)
        self.weights[fields.get("weight", y.node)] = shape
        self.uses.add((fields.get("weight", y.node), flipped, x))
        return y

    def _bias(self) -> dict[str, Any]:
        return {"bias": self.rng.choice(("1/10", "1/4"))} if self.chance(0.2) else {}

    def reuse(self, flipped: bool) -> Value:
        """A layer with an earlier weight, or with its transpose."""
        names = list(self.weights)
        self.rng.shuffle(names)
        for name in names:
            rows, columns = self.weights[name]
            width, out = (rows, columns) if flipped else (columns, rows)
            x = self.pick(partial(self._unused, name, flipped, width))
            if x is not None:
                self.uses.add((name, flipped, x))
                flag = {"transpose": True} if flipped else {}
                fields = {"out_channels": str(out), "weight": name} | flag | self._bias()
                return self.layer("linear", [x], out, smooth=True, **fields)
        return self.linear(self.any())

    def _unused(self, weight: str, flipped: bool, width: Fraction, x: Value) -> bool:
        return x.width == width and (weight, flipped, x) not in self.uses

    # -- coordinate-wise layers ------------------------------------------------------------------

    def activation(self, x: Value, functions: tuple[str, ...] = ACTIVATIONS) -> Value:
        """An activation; now and then a square, twice in a graph at most."""
        if functions is ACTIVATIONS and x.power == 1 and self.products < 2 and self.chance(0.04):
            self.products += 1
            return self.layer("activation", [x], x.width, power=2, function="square")
        function = self.rng.choice(functions)
        power = 0 if function in BOUNDED else x.power
        return self.layer("activation", [x], x.width, power=power, function=function)

    def partner(self, x: Value, power: int = 2) -> Value:
        """Another value as wide as x, made for the purpose if there is none."""
        other = self.pick(lambda v: v.width == x.width and v != x and v.power <= power)
        if other is not None:
            return other
        return self.linear(self.pick(lambda v: v != x) or x, x.width)

    def add(self) -> Value:
        """A sum of two or three terms, with weights or without."""
        x = self.any()
        terms = [x, self.partner(x)]
        if self.chance(0.25):
            third = self.pick(lambda v: v.width == x.width and v not in terms)
            terms += [third] if third else []
        return self.sum(terms)

    def sum(self, terms: list[Value], smooth: bool = False) -> Value:
        """The sum of the terms."""
        choices = ("1/2", "1", "-1/2", "2/3", "3/2")
        weights = [self.rng.choice(choices) for _ in terms] if self.chance(0.35) else []
        power = max(v.power for v in terms)
        fields: dict[str, Any] = {"weights": weights} if weights else {}
        return self.layer("add", terms, terms[0].width, power=power, smooth=smooth, **fields)

    def residual(self) -> Value:
        """A skip plus a freshly weighted branch of any earlier value."""
        skip = self.any()
        source = self.any()
        branch = self.activation(source) if self.chance(0.5) else source
        return self.sum([skip, self.linear(branch, skip.width)], smooth=True)

    def subtract(self) -> Value:
        """A difference."""
        x = self.any()
        y = self.partner(x)
        return self.layer("subtract", [x, y], x.width, power=max(x.power, y.power))

    def gate(self) -> Value:
        """a f(b) with a squashing f mostly."""
        x = self.pick(lambda v: v.power < 2)
        if x is None:
            return self.linear(self.any())
        gate = self.activation(self.partner(x, 1), GATES)
        self.products += gate.power
        return self.layer("multiply", [x, gate], x.width, power=x.power + gate.power)

    def product(self) -> Value:
        """a b of two unbounded factors, twice in a graph at most; seldom a a."""
        x = self.pick(lambda v: v.power < 2)
        if x is None or self.products >= 2:
            return self.gate()
        self.products += 1
        y = x if self.chance(0.25) else self.partner(x, 1)
        return self.layer("multiply", [x, y], x.width, power=x.power + y.power)

    def moved(self, op: str) -> Value:
        """A layer that keeps width and tails."""
        x = self.any()
        fields: dict[str, dict[str, Any]] = {
            "scale": {"factor": self.rng.choice(("1/2", "3/2", "-1", "2/3"))},
            "bias": {"variance": self.rng.choice(("1/10", "1/5", "1/2"))},
            "identity": {},
        }
        return self.layer(op, [x], x.width, power=x.power, **fields[op])

    def dropout(self) -> Value:
        """Dropout, with a mask of its own, a named one, or one that an earlier layer has."""
        x = self.any()
        known = [m for m, (width, _) in self.masks.items() if width == x.width]
        p = self.rng.choice(("1/10", "1/4", "1/2"))
        fields: dict[str, Any] = {} if self.chance(0.7) else {"inverted": False}
        if known and self.chance(0.7):
            mask = self.rng.choice(known)
            fields, p = fields | {"mask": mask}, self.masks[mask][1]
        elif self.chance(0.6):
            fields["mask"] = f"M{len(self.masks)}"
            self.masks[fields["mask"]] = (x.width, p)
        return self.layer("dropout", [x], x.width, power=x.power, p=p, **fields)

    # -- channels and normalization --------------------------------------------------------------

    def concat(self) -> Value:
        """Two blocks, of unequal widths where there are some."""
        x = self.any()
        room = MOST_WIDTH - x.width
        y = self.pick(lambda v: v.width not in (x.width,) and v.width <= room)
        y = y or self.pick(lambda v: v != x and v.width <= room)
        if y is None:
            return self.linear(x, Fraction(1, 2))
        return self.layer("concat", [x, y], x.width + y.width, power=max(x.power, y.power))

    def split(self) -> Value:
        """Consecutive blocks, mostly of unequal widths."""
        x = self.pick(lambda v: v.width in SPLITS and (v.width != 1 or self.chance(0.2)))
        if x is None:
            return self.linear(self.any(), Fraction(2))
        sizes = self.rng.choice(SPLITS[x.width])
        name = f"split_{len(self.nodes)}"
        self._append(name, "split", [x], {"sizes": list(sizes)})
        return [self._offer(Value(name, str(k), Fraction(size), x.power))
                for k, size in enumerate(sizes)][-1]

    def permute(self) -> Value:
        """A random permutation of the channels, or one that an earlier layer has."""
        x = self.any()
        known = [p for p, width in self.permutations.items() if width == x.width]
        fields: dict[str, Any] = {}
        if known and self.chance(0.5):
            fields = {"permutation": self.rng.choice(known)}
        elif self.chance(0.6):
            fields = {"permutation": f"P{len(self.permutations)}"}
            self.permutations[fields["permutation"]] = x.width
        return self.layer("permute", [x], x.width, power=x.power, **fields)

    def norm(self, op: str) -> Value:
        """Layer, RMS or batch norm; batch norm right behind a weight, or behind a residual sum."""
        fields: dict[str, Any] = {}
        x = self.any()
        if op == "batch_norm":
            smooth = self.pick(lambda v: v.smooth)
            x = self.linear(x) if smooth is None or self.chance(0.3) else smooth
            fields["batch"] = self.batch
        if self.chance(0.35):
            fields["gamma"] = self.rng.choice(("1/2", "5/4", "3/2"))
        if op != "rms_norm" and self.chance(0.25):
            fields["beta"] = self.rng.choice(("1/2", "-1/4"))
        if self.chance(0.15 if op != "batch_norm" else 0.05):
            fields["eps"] = "1/100"
        return self.layer(op, [x], x.width, power=x.power, **fields)

    # -- the whole graph -------------------------------------------------------------------------

    def input(self, number: int) -> Value:
        """An input of Gaussian entries."""
        width = self.rng.choice((Fraction(1), Fraction(1), Fraction(1, 2), Fraction(3, 2)))
        name = f"x{number}"
        q = self.rng.choice(("1/2", "1", "3/2", "2"))
        fields = {"channels": str(width), "second_moment": q}
        if self.chance(0.4):
            fields["mean"] = self.rng.choice(("1/2", "-1/2", "3/10"))
        self._append(name, "input", [], fields)
        return self._offer(Value(name, "", width))

    def grow(self) -> None:
        """One more step, of one to three layers."""
        steps: list[tuple[Callable[[], Value], int]] = [
            (lambda: self.linear(self.any()), 20), (lambda: self.reuse(False), 11),
            (lambda: self.reuse(True), 12), (lambda: self.activation(self.any()), 22),
            (self.residual, 8), (self.add, 8), (self.subtract, 3), (self.gate, 5),
            (self.product, 2), (self.concat, 7), (self.split, 6), (self.permute, 5),
            (self.dropout, 6),
            (lambda: self.norm("layer_norm"), 4), (lambda: self.norm("rms_norm"), 3),
            (lambda: self.norm("batch_norm"), 25 if self.batch else 0),
            (lambda: self.moved("bias"), 3), (lambda: self.moved("scale"), 3),
            (lambda: self.moved("identity"), 1),
        ]
        self.rng.choices([s for s, _ in steps], [chance for _, chance in steps])[0]()

    def close(self) -> None:
        """Merge until two values at most are left unread, and read what may not stay unread."""
        while len(self.unread) > 2:
            x, y = [v for v in self.values if v in self.unread][:2]
            if x.width != y.width and x.width + y.width <= MOST_WIDTH and self.chance(0.5):
                self.layer("concat", [x, y], x.width + y.width, power=max(x.power, y.power))
            else:
                self.sum([x if x.width == y.width else self.linear(x, y.width), y])
        for v in [v for v in self.values if v in self.unread and self._must_be_read(v)]:
            self.linear(v)

    def _must_be_read(self, value: Value) -> bool:
        siblings = {v for v in self.values if v.node == value.node}
        return value.node.startswith("x") or not siblings <= self.unread


def generate(seed: int, batch: int | None = None) -> Spec | None:
    """The graph of a seed, or None where it has not 7 to 25 layers, where its weights have more
    than 10 n^2 entries, or where it lacks a batch norm that it should have."""
    builder = Builder(random.Random(seed), batch)
    inputs = builder.rng.choice((1, 1, 2))
    for k in range(inputs):
        builder.input(k)
    layers = builder.rng.randint(7, 22)
    while len(builder.nodes) < inputs + layers:
        builder.grow()
    builder.close()
    normed = any(node["op"] == "batch_norm" for node in builder.nodes)
    entries = sum(rows * columns for rows, columns in builder.weights.values())
    fits = 7 <= len(builder.nodes) - inputs <= 25 and entries <= MOST_ENTRIES
    if not fits or (batch is not None and not normed):
        return None
    return {"name": f"seed{seed}", "batch": batch, "nodes": builder.nodes}


def channels(width: str, n: int) -> int:
    """A width as a number of channels; raises ValueError where it is not whole."""
    number = Fraction(width) * n
    if number.denominator != 1:
        raise ValueError(f"width {width} n is not whole at n = {n}")
    return number.numerator


def to_networkx(spec: Spec, n: int | None) -> nx.MultiDiGraph[str]:
    """The graph as varflow.Network.from_networkx reads it; widths as numbers, or texts in n."""

    def width(text: str) -> int | str:
        return f"{text}*n" if n is None else channels(text, n)

    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph(name=spec["name"])
    for node in spec["nodes"]:
        fields = {k: width(v) if k in WIDTH_FIELDS else v for k, v in node["fields"].items()}
        if node["op"] == "split":
            fields["sizes"] = tuple(width(size) for size in node["fields"]["sizes"])
        graph.add_node(node["name"], op=node["op"], **fields)
        for port, (source, out) in enumerate(node["inputs"]):
            graph.add_edge(source, node["name"], port=port, out=out)
    return graph


def load_results(n: int) -> list[dict[str, Any]]:
    """The measured graphs at n = 1024 or 256; see the package's docstring for the records."""
    records: list[dict[str, Any]] = json.loads((RESULTS / f"n{n}.json").read_text())
    return records


def heavy(measured: list[float]) -> bool:
    """Whether a few draws carry the average of a measured [value, error, spread, peak]."""
    return measured[2] > 0.3 or measured[3] > 3
