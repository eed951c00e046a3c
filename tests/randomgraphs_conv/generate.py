"""Seeded random convolutional networks as plain data, and the same made with varflow's builder.

A graph is a dictionary that JSON can hold, as those of ``tests.randomgraphs``: nodes in an order in
which each stands behind its inputs, every one with ``name``, ``op``, ``inputs`` (node and output
port, "" where there is one output) and ``fields``. Widths are texts in units of n: "3/2" is 3n/2.
A weight that is used again states its variance and distribution at the first use only.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import varflow as vf
from tests.randomgraphs.generate import Node, Spec, channels

RESULTS = Path(__file__).parent / "results" / "measured.json"
WIDTH_FIELDS = ("channels", "out_channels", "squeeze_channels")
MOST_WIDTH = Fraction(2)
LEAST_PLACES, MOST_PLACES = 16, 256
ACTIVATIONS = (*("relu",) * 8, "leaky_relu(0.1)", "leaky_relu(0.3)", "relu6", "relu6", "tanh",
               "tanh", "gelu", "gelu", "silu", "silu")
GATES = ("sigmoid", "sigmoid", "tanh", "silu", "gelu")
BOUNDED = ("tanh", "sigmoid", "relu6")
VARIANCES = {"2/fan_in": 11, "1/fan_in": 8, "3/2/fan_in": 3}
SIDES = ((4, 4), (6, 6), (8, 8), (8, 8), (8, 8), (12, 12), (16, 16), (8, 6), (5, 7), (9, 9))
Size = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """An output that a layer can read: its width in n, its positions (none behind a global mean), the power of a
    Gaussian that its tails have; ``smooth``: no two samples or positions of a channel agree."""

    node: str
    port: str
    width: Fraction
    size: Size
    power: int = 1
    smooth: bool = False

    @property
    def places(self) -> int:
        """Positions of one sample."""
        result = 1
        for n in self.size:
            result *= n
        return result


@dataclass(frozen=True)
class Kept:
    """A weight to use again: channels that a convolution by it reads and writes, its kernel and its groups."""

    name: str
    reads: Fraction
    writes: Fraction
    kernel: int
    groups: int


@dataclass
class Builder:
    """A graph in the making; ``batch`` allows batch norm."""

    rng: random.Random
    batch: int | None = None
    nodes: list[Node] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    unread: set[Value] = field(default_factory=set)
    weights: list[Kept] = field(default_factory=list)
    masks: dict[str, tuple[Fraction, Size, str]] = field(default_factory=dict)
    uses: set[tuple[str, bool, Value]] = field(default_factory=set)
    products: int = 0

    # -- choosing --------------------------------------------------------------------------------

    def pick(self, fits: Callable[[Value], bool] = lambda value: True) -> Value | None:
        """An image that fits: sooner one that nothing reads yet, sooner a late one."""
        found = [v for v in self.values if v.size and fits(v)]
        if not found:
            return None
        age = {v: len(self.values) - k for k, v in enumerate(self.values)}
        chances = [0.8 ** age[v] * (5 if v in self.unread else 1) for v in found]
        return self.rng.choices(found, chances)[0]

    def any(self) -> Value:
        """Any image."""
        found = self.pick()
        assert found is not None
        return found

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.rng.random() < p

    def layer(self, op: str, inputs: list[Value], width: Fraction, size: Size, *, power: int = 1,
              smooth: bool = False, **fields: Any) -> Value:
        """Append a layer with one output."""
        name = f"{op}_{len(self.nodes)}"
        self._append(name, op, inputs, fields)
        return self._offer(Value(name, "", width, size, power, smooth))

    def kept(self, op: str, x: Value, **fields: Any) -> Value:
        """Append a layer that keeps shape and tails."""
        return self.layer(op, [x], x.width, x.size, power=x.power, smooth=x.smooth, **fields)

    def _append(self, name: str, op: str, inputs: list[Value], fields: dict[str, Any]) -> None:
        reads = [[v.node, v.port] for v in inputs]
        self.nodes.append({"name": name, "op": op, "inputs": reads, "fields": fields})
        self.unread -= set(inputs)

    def _offer(self, value: Value) -> Value:
        self.values.append(value)
        self.unread.add(value)
        return value

    # -- weights ---------------------------------------------------------------------------------

    def _width(self) -> Fraction:
        return self.rng.choices([Fraction(k, 2) for k in (1, 2, 3, 4)], (3, 9, 2, 2))[0]

    def _random(self) -> dict[str, Any]:
        """Variance, distribution and bias of a new weight."""
        fields: dict[str, Any] = {"variance": self.rng.choices(list(VARIANCES), list(VARIANCES.values()))[0]}
        if self.chance(0.3):
            fields["distribution"] = self.rng.choice(("uniform", "uniform", "rademacher"))
        return fields | self._bias()

    def _bias(self) -> dict[str, Any]:
        return {"bias": self.rng.choice(("1/10", "1/4"))} if self.chance(0.15) else {}

    def conv(self, x: Value, width: Fraction | None = None, stride: int | None = None, groups: bool = True) -> Value:
        """A convolution with a weight of its own."""
        width = width or self._width()
        kernel = self.rng.choices((1, 3, 5), (4, 10, 2))[0]
        if stride is None:
            stride = 2 if x.places >= 4 * LEAST_PLACES and self.chance(0.3) else 1
        fields: dict[str, Any] = {"out_channels": str(width), "kernel": kernel} | self._random()
        size = self._geometry(x, kernel, stride, fields)
        many = self.rng.choice((2, 4)) if groups and self.chance(0.12) else 1
        if many > 1:
            fields["groups"] = many
        y = self.layer("conv", [x], width, size, smooth=True, **fields)
        self.weights.append(Kept(y.node, x.width, width, kernel, many))
        self.uses.add((y.node, False, x))
        return y

    def _geometry(self, x: Value, kernel: int, stride: int, fields: dict[str, Any]) -> Size:
        """Choose stride, dilation and padding; the output's positions."""
        dilation = 2 if kernel == 3 and stride == 1 and min(x.size) > 4 and self.chance(0.15) else 1
        reach = dilation * (kernel - 1)
        padding = reach // 2
        if reach and stride == 1 and min(x.size) - reach >= 4 and self.chance(0.15):
            padding = 0
        if padding and self.chance(0.4):
            fields["padding_mode"] = self.rng.choice(("circular", "circular", "reflect"))
        given = {"stride": (stride, 1), "padding": (padding, 0), "dilation": (dilation, 1)}
        fields |= {k: v for k, (v, usual) in given.items() if v != usual}
        return tuple((n + 2 * padding - reach - 1) // stride + 1 for n in x.size)

    def depthwise(self) -> Value:
        """A convolution channel by channel."""
        x = self.any()
        kernel = self.rng.choice((3, 3, 5))
        fields: dict[str, Any] = {"kernel": kernel} | self._random()
        stride = 2 if x.places >= 4 * LEAST_PLACES and self.chance(0.2) else 1
        size = self._geometry(x, kernel, stride, fields)
        return self.layer("depthwise_conv", [x], x.width, size, power=x.power, smooth=x.smooth, **fields)

    def transposed(self, x: Value | None = None, width: Fraction | None = None) -> Value:
        """A transposed convolution that doubles the image, or keeps it where it is large already."""
        x = x or self.any()
        width = width or self._width()
        shape = self.rng.choice(({"kernel": 4, "padding": 1}, {"kernel": 2},
                                 {"kernel": 3, "padding": 1, "output_padding": 1}))
        fields: dict[str, Any] = {"out_channels": str(width), "stride": 2, **shape} | self._random()
        size = tuple(2 * n for n in x.size)
        if 4 * x.places > MOST_PLACES:
            fields |= {"stride": 1, "kernel": 3, "padding": 1}
            fields.pop("output_padding", None)
            size = x.size
        return self.layer("conv_transpose", [x], width, size, smooth=True, **fields)

    def reuse(self) -> Value:
        """A layer with an earlier weight, or with its transpose."""
        kept = list(self.weights)
        self.rng.shuffle(kept)
        for w in kept:
            flipped = self.chance(0.3)
            reads, writes = (w.writes, w.reads) if flipped else (w.reads, w.writes)
            found = [v for v in self.values if v.size and v.width == reads and min(v.size) >= w.kernel
                     and (w.name, flipped, v) not in self.uses]
            if found:
                return self._again(w, flipped, self.rng.choice(found), writes)
        return self.conv(self.any())

    def _again(self, w: Kept, flipped: bool, x: Value, width: Fraction) -> Value:
        self.uses.add((w.name, flipped, x))
        fields: dict[str, Any] = {"out_channels": str(width), "kernel": w.kernel, "weight": w.name}
        if w.groups > 1:
            fields["groups"] = w.groups
        if w.kernel > 1:
            fields["padding"] = w.kernel // 2
        fields |= self._bias()
        return self.layer("conv_transpose" if flipped else "conv", [x], width, x.size, smooth=True, **fields)

    # -- coordinate-wise layers ------------------------------------------------------------------

    def activation(self, x: Value, functions: tuple[str, ...] = ACTIVATIONS) -> Value:
        """An activation."""
        function = self.rng.choice(functions)
        power = 0 if function in BOUNDED else x.power
        return self.layer("activation", [x], x.width, x.size, power=power, function=function)

    def partner(self, x: Value, power: int = 2) -> Value:
        """Another value of x's shape, made for the purpose if there is none."""
        def alike(v: Value) -> bool:
            return v.width == x.width and v.size == x.size and v != x and v.power <= power

        return self.pick(alike) or self.fitted(x)

    def fitted(self, x: Value) -> Value:
        """A new value of x's shape, made from another of its image size or half or twice that."""
        def near(v: Value) -> bool:
            return (v != x and v.size in (x.size, doubled(x.size))) or doubled(v.size) == x.size

        source = self.pick(near) or x
        if source.size == x.size:
            return self.same(source, x.width)
        if doubled(source.size) == x.size:
            return self.transposed(source, x.width)
        return self.halved(source, x.width)

    def same(self, x: Value, width: Fraction) -> Value:
        """A convolution that keeps the positions."""
        kernel = self.rng.choice((1, 3))
        fields: dict[str, Any] = {"out_channels": str(width), "kernel": kernel} | self._random()
        return self.layer("conv", [x], width, x.size, smooth=True, **fields | ({"padding": 1} if kernel == 3 else {}))

    def halved(self, x: Value, width: Fraction) -> Value:
        """A convolution of stride 2 on an image of even sides."""
        fields: dict[str, Any] = {"out_channels": str(width), "kernel": 3, "padding": 1, "stride": 2}
        return self.layer("conv", [x], width, tuple((n + 1) // 2 for n in x.size), smooth=True,
                          **fields | self._random())

    def add(self) -> Value:
        """A sum of two or three terms, with weights or without."""
        x = self.any()
        terms = [x, self.partner(x)]
        if self.chance(0.2):
            third = self.pick(lambda v: v.width == x.width and v.size == x.size and v not in terms)
            terms += [third] if third else []
        return self.sum(terms)

    def sum(self, terms: list[Value], smooth: bool = False) -> Value:
        """The sum of the terms."""
        choices = ("1/2", "1", "-1/2", "2/3")
        weights = [self.rng.choice(choices) for _ in terms] if self.chance(0.35) else []
        fields: dict[str, Any] = {"weights": weights} if weights else {}
        return self.layer("add", terms, terms[0].width, terms[0].size, power=max(v.power for v in terms),
                          smooth=smooth, **fields)

    def residual(self) -> Value:
        """A skip plus a freshly weighted branch of any earlier value."""
        skip = self.any()
        source = self.pick(lambda v: v.size == skip.size) or skip
        branch = self.activation(source) if self.chance(0.5) else source
        return self.sum([skip, self.same(branch, skip.width)], smooth=True)

    def gate(self) -> Value:
        """a f(b), mostly with a squashing f."""
        x = self.pick(lambda v: v.power < 2)
        if x is None or self.products >= 2:
            return self.conv(self.any())
        gate = self.activation(self.partner(x, 1), GATES)
        self.products += gate.power
        return self.layer("multiply", [x, gate], x.width, x.size, power=x.power + gate.power)

    def excite(self) -> Value:
        """A squeeze and excitation."""
        x = self.any()
        fields = {"squeeze_channels": "1", "squeeze_variance": "1/fan_in", "excite_variance": "1/fan_in",
                  "function": self.rng.choice(("relu", "silu")), "gate": self.rng.choice(("sigmoid", "hardsigmoid"))}
        if self.chance(0.3):
            fields["bias"] = "1/10"
        return self.kept("squeeze_excite", x, **fields)

    def dropout(self) -> Value:
        """Dropout, with a mask of its own, a named one, or one that an earlier layer has."""
        x = self.any()
        known = [m for m, (width, size, _) in self.masks.items() if (width, size) == (x.width, x.size)]
        p = self.rng.choice(("1/10", "1/4", "1/2"))
        fields: dict[str, Any] = {} if self.chance(0.7) else {"inverted": False}
        if known and self.chance(0.7):
            mask = self.rng.choice(known)
            fields, p = fields | {"mask": mask}, self.masks[mask][2]
        elif self.chance(0.5):
            fields["mask"] = f"M{len(self.masks)}"
            self.masks[fields["mask"]] = (x.width, x.size, p)
        return self.layer("dropout", [x], x.width, x.size, power=x.power, p=p, **fields)

    def bias(self) -> Value:
        """A random bias for every channel."""
        return self.kept("bias", self.any(), variance=self.rng.choice(("1/10", "1/5", "1/2")))

    # -- channels, positions and normalization ---------------------------------------------------

    def concat(self) -> Value:
        """Two blocks of unequal widths where there are some."""
        x = self.any()
        room = MOST_WIDTH - x.width
        y = self.pick(lambda v: v.size == x.size and v.width != x.width and v.width <= room)
        y = y or self.pick(lambda v: v.size == x.size and v != x and v.width <= room)
        if y is None:
            return self.conv(x, Fraction(1, 2))
        return self.layer("concat", [x, y], x.width + y.width, x.size, power=max(x.power, y.power),
                          smooth=x.smooth and y.smooth)

    def pool(self, op: str) -> Value:
        """A maximum or a mean over windows."""
        x = self.pick(lambda v: v.places >= 4 * LEAST_PLACES)
        if x is None:
            return self.activation(self.any())
        even = all(n % 2 == 0 for n in x.size)
        shapes: list[dict[str, Any]] = [{"kernel": 3, "stride": 2, "padding": 1}]
        shapes += [{"kernel": 2}] * 2 if even else []
        if op == "avg_pool":
            shapes += [{"kernel": 3, "stride": 1, "padding": 1, "count_include_pad": False}]
        fields = self.rng.choice(shapes)
        size = x.size if fields.get("stride") == 1 else tuple((n + 1) // 2 for n in x.size)
        return self.layer(op, [x], x.width, size, power=x.power, smooth=x.smooth, **fields)

    def enlarged(self) -> Value:
        """Up-sampling."""
        x = self.pick(lambda v: 4 * v.places <= MOST_PLACES)
        if x is None:
            return self.conv(self.any())
        fields: dict[str, Any] = {"scale": 2, "mode": self.rng.choice(("nearest", "bilinear"))}
        return self.layer("upsample", [x], x.width, doubled(x.size), power=x.power, **fields)

    def shuffled(self) -> Value:
        """Channels dealt to positions."""
        x = self.pick(lambda v: v.width == 2 and 4 * v.places <= MOST_PLACES)
        if x is None:
            source = self.pick(lambda v: 4 * v.places <= MOST_PLACES)
            if source is None:
                return self.conv(self.any())
            x = self.same(source, Fraction(2))
        return self.layer("pixel_shuffle", [x], x.width / 4, doubled(x.size), power=x.power, smooth=x.smooth,
                          upscale_factor=2)

    def norm(self, op: str) -> Value:
        """A normalization; over samples or positions behind values that differ there."""
        fields: dict[str, Any] = {}
        x = self.any()
        if op in ("batch_norm", "instance_norm"):
            least = 36 if op == "instance_norm" else 1
            smooth = self.pick(lambda v: v.smooth and v.places >= least)
            x = smooth or self.conv(x)
        if op == "instance_norm" and x.places < 36:
            op = "group_norm"
        if op == "batch_norm":
            fields["batch"] = self.batch
        if op == "group_norm":
            fields["groups"] = self.rng.choice((1, 2, 4))
        if self.chance(0.3):
            fields["gamma"] = self.rng.choice(("1/2", "5/4", "3/2"))
        if self.chance(0.2):
            fields["beta"] = self.rng.choice(("1/2", "-1/4"))
        if self.chance(0.1):
            fields["eps"] = "1/100"
        return self.layer(op, [x], x.width, x.size, power=x.power, smooth=x.smooth, **fields)

    # -- the whole graph -------------------------------------------------------------------------

    def input(self, number: int, size: Size) -> Value:
        """An input of Gaussian entries."""
        width = self.rng.choice((Fraction(1), Fraction(1), Fraction(1, 2)))
        name = f"x{number}"
        fields: dict[str, Any] = {"channels": str(width), "positions": list(size),
                                  "second_moment": self.rng.choice(("1", "1", "3/2", "2"))}
        if self.chance(0.3):
            fields["mean"] = self.rng.choice(("1/2", "-1/2", "3/10"))
        if self.chance(0.3):
            fields["position_correlation"] = self.rng.choice(("1/4", "1/2"))
        self._append(name, "input", [], fields)
        return self._offer(Value(name, "", width, size, smooth=True))

    def grow(self) -> None:
        """One more step, of one to three layers."""
        steps: list[tuple[Callable[[], Value], int]] = [
            (lambda: self.conv(self.any()), 24), (self.reuse, 5), (self.depthwise, 7), (self.transposed, 7),
            (lambda: self.activation(self.any()), 22), (self.residual, 8), (self.add, 7), (self.gate, 5),
            (self.excite, 3), (self.concat, 6), (self.dropout, 4), (self.bias, 2),
            (lambda: self.pool("max_pool"), 8), (lambda: self.pool("avg_pool"), 7),
            (self.enlarged, 6), (self.shuffled, 2),
            (lambda: self.norm("layer_norm"), 3), (lambda: self.norm("group_norm"), 4),
            (lambda: self.norm("instance_norm"), 5), (lambda: self.norm("batch_norm"), 25 if self.batch else 0),
        ]
        self.rng.choices([s for s, _ in steps], [chance for _, chance in steps])[0]()

    def close(self) -> None:
        """Merge until two values at most are left unread; mostly a global mean and a matrix at the end."""
        while len(images := [v for v in self.values if v in self.unread]) > 2:
            x, y = images[:2]
            if x.size != y.size:
                self._flat(x if len(x.size) else y)
            elif x.width + y.width <= MOST_WIDTH and self.chance(0.5):
                self.layer("concat", [x, y], x.width + y.width, x.size, power=max(x.power, y.power))
            elif x.width == y.width:
                self.sum([x, y])
            else:
                self.sum([self.same(x, y.width) if x.size else self._linear(x, y.width), y])
        for v in [v for v in self.values if v in self.unread and v.size]:
            if self.chance(0.65):
                self._flat(v)

    def _flat(self, x: Value) -> Value:
        y = self.layer("mean_pool", [x], x.width, (), power=x.power)
        return self._linear(y, Fraction(1))

    def _linear(self, x: Value, width: Fraction) -> Value:
        return self.layer("linear", [x], width, (), out_channels=str(width), **self._random())


def doubled(size: Size) -> Size:
    """Twice as many positions along both axes."""
    return tuple(2 * n for n in size)


def generate(seed: int, batch: int | None = None) -> Spec | None:
    """The graph of a seed, or None where it has not 8 to 22 layers or lacks a batch norm that it should have."""
    builder = Builder(random.Random(seed), batch)
    sides = [s for s in SIDES if batch is None or s[0] * s[1] <= 64]
    size = builder.rng.choice(sides)
    inputs = builder.rng.choice((1, 1, 1, 2))
    for k in range(inputs):
        builder.input(k, size)
    layers = builder.rng.randint(7, 19)
    while len(builder.nodes) < inputs + layers:
        builder.grow()
    builder.close()
    normed = any(node["op"] == "batch_norm" for node in builder.nodes)
    read = {source for node in builder.nodes for source, _ in node["inputs"]}
    fits = 8 <= len(builder.nodes) - inputs <= 22 and all(f"x{k}" in read for k in range(inputs))
    if not fits or (batch is not None and not normed):
        return None
    return {"name": f"conv{seed}", "batch": batch, "nodes": builder.nodes}


def network(spec: Spec, n: int) -> vf.Network:
    """The graph made with varflow's builder."""
    net = vf.Network(spec["name"])
    values: dict[str, Any] = {}
    for node in spec["nodes"]:
        fields = {k: channels(v, n) if k in WIDTH_FIELDS else v for k, v in node["fields"].items()}
        inputs = [values[source] for source, _ in node["inputs"]]
        values[node["name"]] = getattr(net, node["op"])(*inputs, name=node["name"], **fields)
    return net


def load_results() -> list[dict[str, Any]]:
    """The measured graphs; see the package's docstring for the records."""
    records: list[dict[str, Any]] = json.loads(RESULTS.read_text())
    return records
