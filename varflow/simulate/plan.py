"""What a simulation will do, laid out before the first draw: sizes, random tensors, lifetimes of values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from varflow.errors import InputError, UnsupportedError
from varflow.program import (
    Bias,
    Contract,
    Cotangent,
    Input,
    Instruction,
    Mask,
    Permute,
    Program,
    Repeat,
    RepeatBackward,
    Standardize,
    StandardizeBackward,
    Weight,
)
from varflow.simulate.collapsed import Choices, choose
from varflow.simulate.kernels import RandomMatrix
from varflow.simulate.kernels_window import RandomTaps
from varflow.simulate.sizes import number, whole
from varflow.simulate.weight_laws import LAWS
from varflow.simulate.windows import is_plain, taps_of

LARGE_BATCH = 256
"""Samples of a draw where a batch norm states no batch size."""
PRODUCT, WEIGHT, VALUE = 1.8e-11, 1e-9, 2e-9
"""Seconds of one core: a multiply-add of a product over many places, a weight drawn, an entry of a value."""


@dataclass(frozen=True)
class Orthogonal:
    """``scale`` times a Haar matrix (orthonormal columns, or rows when wide), entries kept with ``keep``."""

    rows: int
    columns: int
    tensor: int
    scale: float
    keep: float
    mask_tensor: int


Matrix = RandomMatrix | RandomTaps | Orthogonal


@dataclass(frozen=True)
class Revealing:
    """The uses of one collapsed weight that a draw makes: the tensor of fresh normals of each (by value, in order),
    and the columns of W x and of W^T x over all of them. ``patches``: entries of the patches that are kept."""

    tensors: dict[int, int]
    columns: tuple[int, int]
    groups: int = 1
    patches: int = 0

    @property
    def last(self) -> int:
        """The value of the last use."""
        return max(self.tensors)

    @property
    def bytes(self) -> int:
        """Size of the factors, and patches, that condition later uses."""
        right, left = self.columns
        return 8 * self.groups * (right * right + left * left + right * left) + 4 * self.patches


@dataclass(frozen=True)
class Step:
    """One instruction at its numeric shape; ``free``: values no later step reads; ``column``: where the
    statistics of its value go (None: nowhere); ``gradients``: weights whose gradient is known behind it."""

    value: int
    instruction: Instruction
    positions: int
    channels: int
    free: tuple[int, ...] = ()
    column: int | None = None
    gradients: tuple[str, ...] = ()


class Tensors:
    """Numbers of random tensors, a pure function of their names (a later name steps aside where two collide)."""

    def __init__(self) -> None:
        self._number: dict[tuple[str, str], int] = {}
        self._taken: set[int] = set()

    def of(self, kind: str, name: str) -> int:
        """The 32-bit number of a tensor."""
        key, attempt = (kind, name), 0
        while key not in self._number:
            text = f"{kind}:{name}" + (f"#{attempt}" if attempt else "")
            found = int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "little")
            attempt += 1
            if found not in self._taken:
                self._taken.add(found)
                self._number[key] = found
        return self._number[key]


def samples_of(program: Program, large_batch: int = LARGE_BATCH) -> int | None:
    """Samples that batch norms ask for; None without batch norm. Raises UnsupportedError for several sizes."""
    sizes = set()
    for step in program:
        p = step.primitive.forward if isinstance(step.primitive, StandardizeBackward) else step.primitive
        if isinstance(p, Standardize) and p.axis == "sample":
            sizes.add(large_batch if p.batch is None else whole(p.batch, "the batch size"))
    if len(sizes) > 1:
        raise UnsupportedError(
            f"batch sizes {', '.join(map(str, sorted(sizes)))} in one network", why="a draw has one batch"
        )
    return sizes.pop() if sizes else None


@dataclass(eq=False)
class Plan:
    """The steps of one draw. ``columns`` maps (direction, name) to the column of its statistics, ``revealing`` the
    weights that are collapsed to their uses, ``given`` products to the columns of their second moments given what
    they multiply; ``bytes_per_draw`` is the most memory that the values of one draw occupy together."""

    program: Program
    samples: int
    steps: list[Step] = field(default_factory=list)
    columns: dict[tuple[str, str], int] = field(default_factory=dict)
    matrices: dict[str, Matrix] = field(default_factory=dict)
    choices: Choices = field(default_factory=lambda: Choices(1))
    revealing: dict[str, Revealing] = field(default_factory=dict)
    given: dict[int, int] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=Tensors)
    bytes_per_draw: int = 0

    @property
    def column_count(self) -> int:
        """Number of distinct columns."""
        return len(set(self.columns.values()))


def make_plan(
    program: Program,
    samples: int,
    nodes: Collection[str] | None = None,
    weights: bool = False,
    method: str = "sampled",
    given: bool = False,
) -> Plan:
    """The plan that measures ``nodes`` (None: all), both directions, gradients of weights if asked, and if asked the
    second moments ``given`` what a product multiplies (averaged over its weight), as ("given", name).

    Raises InputError for sizes without a number or unknown nodes, UnsupportedError for what cannot be drawn.
    """
    plan = Plan(program, samples)
    _name_tensors(plan)
    plan.choices = choose(program, samples, method)
    by_value = _columns(plan, nodes, weights)
    if given:
        _add_given(plan)
    pairs = program.weight_gradients if weights else {}
    due = {name: max(max(pair) for pair in uses) for name, uses in pairs.items()}
    needed = _needed(program, [*by_value, *(v for uses in pairs.values() for p in uses for v in p)])
    plan.revealing = dict(_revealing(plan, set(needed)))
    kept = [(due[n], v) for n, uses in pairs.items() for p in uses for v in p] + list(_conditions(plan))
    free: dict[int, list[int]] = {value: [] for value in needed}
    for value, reader in _last_readers(program, needed, kept).items():
        free[reader].append(value)
    for value in needed:
        step = program.instructions[value]
        where = f"the size of {step.node!r}"
        plan.steps.append(
            Step(
                value,
                step,
                whole(step.shape.places, where),
                whole(step.shape.channels, where),
                tuple(free[value]),
                by_value.get(value),
                tuple(n for n, at in due.items() if at == value),
            )
        )
    plan.matrices = {n: _matrix(plan.tensors, program.weights[n]) for n in _used_weights(plan.steps)}
    plan.bytes_per_draw = _peak(plan)
    return plan


def seconds_per_draw(plan: Plan) -> float:
    """About how long a draw takes one core, the same on every machine: products, weights, values."""
    total = 0.0
    for step in plan.steps:
        product, entries = step.instruction.primitive, plan.samples * step.positions * step.channels
        total += VALUE * entries
        if isinstance(product, Contract):
            m = plan.matrices[product.weight]
            taps = m.taps if isinstance(m, RandomTaps) else 1
            places = plan.samples * (step.positions if not product.transpose else _places(plan, step))
            total += m.rows * m.columns * taps * (WEIGHT + PRODUCT * places)
    return total


def _places(plan: Plan, step: Step) -> int:
    return whole(plan.program.shape(step.instruction.args[0]).places, "the places of a product")


def _name_tensors(plan: Plan) -> None:
    """Give every tensor of the program its number in the program's order, whatever is measured."""
    uses: Counter[str] = Counter()
    for step in plan.program:
        match step.primitive:
            case Input(name=name) | Cotangent(name=name) | Bias(name=name) | Mask(name=name) | Permute(name=name):
                plan.tensors.of(type(step.primitive).__name__, name)
            case Contract(weight=name):
                plan.tensors.of("Weight", name)
                plan.tensors.of("Sparsity", name)
                plan.tensors.of("Use", f"{name} {uses[name]}")
                uses[name] += 1
            case Repeat() | RepeatBackward():
                raise UnsupportedError(
                    f"the block {step.node!r} is repeated a symbolic number of times", step.node,
                    "a draw has a definite depth", "a number of repeats",
                )  # fmt: skip
            case _:
                pass


def _columns(plan: Plan, nodes: Collection[str] | None, weights: bool) -> dict[int, int]:
    """Columns by value; fills ``plan.columns``."""
    program = plan.program
    unknown = set(nodes or ()) - set(program.values)
    if unknown:
        raise InputError(f"no node is called {', '.join(map(repr, sorted(unknown)))}")
    by_value: dict[int, int] = {}
    for direction, table in (("forward", program.values), ("backward", program.gradients)):
        for name, value in table.items():
            if nodes is None or name in nodes:
                plan.columns[direction, name] = by_value.setdefault(value, len(by_value))
    for name in program.weight_gradients if weights else ():
        plan.columns["weight", name] = plan.column_count
    return by_value


def _add_given(plan: Plan) -> None:
    """Columns for the measured products of the forward pass with fresh weights of independent entries of mean zero."""
    forward = [(v, s.primitive) for v, s in enumerate(plan.program) if not s.backward]
    products = [(v, p.weight) for v, p in forward if isinstance(p, Contract)]
    uses = Counter(weight for _, weight in products)
    for value, weight in products:
        law = plan.program.weights[weight].distribution
        names = [n for n, v in plan.program.values.items() if v == value and ("forward", n) in plan.columns]
        if uses[weight] > 1 or law in ("orthogonal", "constant", *LAWS) or not names:
            continue
        plan.given[value] = plan.column_count
        plan.columns |= {("given", n): plan.given[value] for n in names}


def _needed(program: Program, wanted: Iterable[int]) -> list[int]:
    needed: set[int] = set(wanted)
    for value in range(len(program) - 1, -1, -1):
        if value in needed:
            needed.update(program.instructions[value].args)
    return sorted(needed)


def _revealing(plan: Plan, needed: Collection[int]) -> Iterator[tuple[str, Revealing]]:
    for name, choice in plan.choices.by_weight.items():
        uses = [(k, u) for k, u in enumerate(choice.uses) if u.value in needed]
        if choice.collapse and uses:
            tensors = {u.value: plan.tensors.of("Use", f"{name} {k}") for k, u in uses}
            right, left = (sum(u.columns for _, u in uses if u.transpose is t) for t in (False, True))
            seen = sum(u.groups * u.columns * (u.inner + u.outer) for _, u in uses if u.windowed or u.groups > 1)
            if plan.program.weights[name].distribution == "orthogonal":
                seen += (right + left) * (2 * max(choice.uses[0].inner, choice.uses[0].outer) + 2 * (right + left))
            yield name, Revealing(tensors, (right, left), choice.uses[0].groups, seen)


def _conditions(plan: Plan) -> Iterator[tuple[int, int]]:
    """(last use of a collapsed weight, value that an earlier use read or made), which the last one conditions on."""
    for revealing in plan.revealing.values():
        for value in revealing.tensors:
            yield revealing.last, value
            yield revealing.last, plan.program.instructions[value].args[0]


def _last_readers(
    program: Program, needed: Sequence[int], extra: Sequence[tuple[int, int]]
) -> dict[int, int]:
    last = {value: value for value in needed}
    for value in needed:
        last.update(dict.fromkeys(program.instructions[value].args, value))
    for reader, value in extra:
        last[value] = max(last[value], reader)
    return last


def _used_weights(steps: Sequence[Step]) -> dict[str, None]:
    uses = (s.instruction.primitive for s in steps)
    return dict.fromkeys(p.weight for p in uses if isinstance(p, Contract))


def _matrix(tensors: Tensors, w: Weight) -> Matrix:
    rows, columns = whole(w.rows, f"the size of {w.name!r}"), whole(w.columns, f"the size of {w.name!r}")
    keep, std = number(w.keep, f"keep of {w.name!r}"), _spread(w)
    tensor, mask = tensors.of("Weight", w.name), tensors.of("Sparsity", w.name)
    if w.distribution == "orthogonal" and is_plain(w):
        return Orthogonal(rows, columns, tensor, std * max(rows, columns) ** 0.5, keep, mask)
    entries = "normal" if w.distribution in ("orthogonal", *LAWS) else w.distribution
    m = RandomMatrix(rows, columns, tensor, std, entries, keep, mask)
    return m if is_plain(w) else taps_of(m, w, whole(w.groups, f"the groups of {w.name!r}"))


def _spread(w: Weight) -> float:
    """What multiplies the entries of a weight: their standard deviation, value, or spectral norm."""
    if w.distribution == "constant":
        return number(w.value, f"the value of {w.name!r}")
    if w.distribution == "spectral":
        return number(w.value, f"the spectral norm of {w.name!r}") or 1.0
    return float(number(w.variance, f"the variance of {w.name!r}") ** 0.5)


def _peak(plan: Plan) -> int:
    """Most bytes alive in one draw: live values, one result as large again for temporaries, stored matrices, what is
    revealed of collapsed ones."""
    sizes: dict[int, int] = {}
    alive = peak = 0
    for step in plan.steps:
        sizes[step.value] = 4 * plan.samples * step.positions * step.channels
        alive += sizes[step.value]
        peak = max(peak, alive + 2 * sizes[step.value])
        alive -= sum(sizes[v] for v in step.free)
    factors = sum(r.bytes for r in plan.revealing.values())
    stored = [m for m in plan.matrices.values() if isinstance(m, Orthogonal)]
    kept = [m for name, m in plan.matrices.items() if plan.choices.by_weight[name].kept]
    matrices = sum(4 * m.rows * m.columns for m in [*stored, *kept])
    return peak + factors + matrices + max((24 * m.rows * m.columns for m in stored), default=0)
