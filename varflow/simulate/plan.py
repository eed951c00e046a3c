"""What a simulation will do, laid out before the first draw: sizes, random tensors, lifetimes of values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import sympy as sp

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
from varflow.simulate.kernels import RandomMatrix

LARGE_BATCH = 256
"""Samples of a draw where a batch norm states no batch size."""


@dataclass(frozen=True)
class Orthogonal:
    """``scale`` times a Haar matrix (orthonormal columns, or rows when wide), entries kept with ``keep``."""

    rows: int
    columns: int
    tensor: int
    scale: float
    keep: float
    mask_tensor: int


Matrix = RandomMatrix | Orthogonal


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


def number(expr: sp.Expr, what: str) -> float:
    """A float. Raises InputError for an expression with symbols."""
    if expr.free_symbols:
        names = ", ".join(sorted(str(s) for s in expr.free_symbols))
        raise InputError(
            f"{what} is {expr}, without a number for {names}", instead="numbers for all symbols"
        )
    return float(expr)


def whole(expr: sp.Expr, what: str) -> int:
    """A positive integer. Raises InputError for anything else."""
    value = number(expr, what)
    if value != int(value) or value < 1:
        raise InputError(f"{what} is {expr}", why="a size is a positive whole number")
    return int(value)


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
    """The steps of one draw. ``columns`` maps (direction, name) to the column of its statistics;
    ``bytes_per_draw`` is the most memory that the values of one draw occupy together."""

    program: Program
    samples: int
    steps: list[Step] = field(default_factory=list)
    columns: dict[tuple[str, str], int] = field(default_factory=dict)
    matrices: dict[str, Matrix] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=Tensors)
    bytes_per_draw: int = 0

    @property
    def column_count(self) -> int:
        """Number of distinct columns."""
        return len(set(self.columns.values()))


def make_plan(
    program: Program, samples: int, nodes: Collection[str] | None = None, weights: bool = False
) -> Plan:
    """The plan that measures ``nodes`` (None: all), both directions, and gradients of weights if asked.

    Raises InputError for sizes without a number or unknown nodes, UnsupportedError for what cannot be drawn.
    """
    plan = Plan(program, samples)
    _name_tensors(plan)
    by_value = _columns(plan, nodes, weights)
    pairs = program.weight_gradients if weights else {}
    due = {name: max(max(pair) for pair in uses) for name, uses in pairs.items()}
    needed = _needed(program, [*by_value, *(v for uses in pairs.values() for p in uses for v in p)])
    last = _last_readers(program, needed, [(due[n], v) for n, uses in pairs.items() for p in uses for v in p])
    for value in needed:
        step = program.instructions[value]
        where = f"the size of {step.node!r}"
        plan.steps.append(
            Step(
                value,
                step,
                whole(step.shape.places, where),
                whole(step.shape.channels, where),
                tuple(v for v, reader in last.items() if reader == value),
                by_value.get(value),
                tuple(n for n, at in due.items() if at == value),
            )
        )
    plan.matrices = {n: _matrix(plan.tensors, program.weights[n]) for n in _used_weights(plan.steps)}
    plan.bytes_per_draw = _peak(plan)
    return plan


def _name_tensors(plan: Plan) -> None:
    """Give every tensor of the program its number in the program's order, whatever is measured."""
    for step in plan.program:
        match step.primitive:
            case Input(name=name) | Cotangent(name=name) | Bias(name=name) | Mask(name=name) | Permute(name=name):
                plan.tensors.of(type(step.primitive).__name__, name)
            case Contract(weight=name):
                plan.tensors.of("Weight", name)
                plan.tensors.of("Sparsity", name)
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


def _needed(program: Program, wanted: Iterable[int]) -> list[int]:
    needed: set[int] = set(wanted)
    for value in range(len(program) - 1, -1, -1):
        if value in needed:
            needed.update(program.instructions[value].args)
    return sorted(needed)


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
    keep, what = number(w.keep, f"keep of {w.name!r}"), f"the variance of {w.name!r}"
    std = number(w.value, what) if w.distribution == "constant" else number(w.variance, what) ** 0.5
    tensor, mask = tensors.of("Weight", w.name), tensors.of("Sparsity", w.name)
    if w.distribution == "orthogonal":
        return Orthogonal(rows, columns, tensor, std * max(rows, columns) ** 0.5, keep, mask)
    return RandomMatrix(rows, columns, tensor, std, w.distribution, keep, mask)


def _peak(plan: Plan) -> int:
    """Most bytes alive in one draw: live values, one result as large again for temporaries, stored matrices."""
    sizes: dict[int, int] = {}
    alive = peak = 0
    for step in plan.steps:
        sizes[step.value] = 4 * plan.samples * step.positions * step.channels
        alive += sizes[step.value]
        peak = max(peak, alive + 2 * sizes[step.value])
        alive -= sum(sizes[v] for v in step.free)
    stored = [m for m in plan.matrices.values() if isinstance(m, Orthogonal)]
    return peak + sum(4 * m.rows * m.columns for m in stored) + max(
        (24 * m.rows * m.columns for m in stored), default=0
    )
