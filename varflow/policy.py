"""Named conditions on a weight: what it means that a layer preserves the signal.

A weight is judged on its *segment*: from the value it multiplies, through the coordinate-wise layers behind it
(activation, bias, dropout; gates and maxima of its own parts), to the next weight, merge with other values,
normalization or output; a constant factor at its end (a branch scale) is left to act. ``forward`` asks that the second
moment is the same at both ends (He et al. 2015), ``backward`` the same of the gradient (Glorot and Bengio 2010),
``harmonic`` and ``geometric`` take that mean of the two variances.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass

import sympy as sp

from varflow.calculus import tidy
from varflow.errors import InputError
from varflow.program import Bias, Concat, Contract, Mask, Pointwise, Program, Slice, WindowMax
from varflow.symbols import arg

POLICIES = ("forward", "backward", "harmonic", "geometric")


@dataclass(frozen=True)
class Segment:
    """From ``start`` through the weight (``product`` = W start) to ``end``; values of the program.

    ``merged`` says whether the end is read by a layer that joins several values.
    """

    weight: str
    start: int
    product: int
    end: int
    merged: bool


def check_policy(name: str) -> str:
    """The policy's name; raises InputError for an unknown one."""
    if name not in POLICIES:
        raise InputError(f"no policy is called {name!r}", instead="one of " + ", ".join(POLICIES))
    return name


def compromise(policy: str, forward: sp.Expr | None, backward: sp.Expr | None) -> sp.Expr | None:
    """The scale that a policy takes from the forward and the backward answer; None where it needs one that is
    missing."""
    if policy == "forward":
        return forward
    if policy == "backward":
        return backward
    if forward is None or backward is None:
        return None
    if policy == "geometric":
        return sp.sqrt(forward * backward)
    return tidy(2 / (1 / forward + 1 / backward))


def segments(program: Program) -> list[Segment]:
    """The segment of every use of a weight in the forward pass, in program order."""
    readers: dict[int, list[int]] = {}
    for i, step in enumerate(program):
        if not step.backward:
            for a in set(step.args):
                readers.setdefault(a, []).append(i)
    return [_segment(program, readers, i) for i, step in enumerate(program)
            if isinstance(step.primitive, Contract) and not step.backward]


def _segment(program: Program, readers: dict[int, list[int]], product: int) -> Segment:
    here = end = _last_of_itself(program, readers, product)
    while end != product and _is_scale(program, end):
        end = program.instructions[end].args[0]
    primitive = program.instructions[product].primitive
    assert isinstance(primitive, Contract)
    merged = any(_joins(program, i) for i in readers.get(here, []))
    return Segment(primitive.weight, program.instructions[product].args[0], product, end, merged)


def leads(program: Program, first: int, last: int) -> bool:
    """Whether ``last`` is made of ``first`` alone: by weights, functions, parts and moves of one value."""
    while last > first:
        sources = _sources(program, last)
        if len(set(sources)) != 1:
            return False
        last = sources[0]
    return last == first


def feeds_maximum(program: Program, value: int) -> bool:
    """Whether a value goes into the maximum of a window before it meets a weight."""
    near = {value}
    for i, step in enumerate(program):
        if not step.backward and near & set(step.args) and not isinstance(step.primitive, Contract):
            near.add(i)
            if isinstance(step.primitive, WindowMax):
                return True
    return False


def _sources(program: Program, index: int) -> list[int]:
    """Arguments that carry signal: all but biases and masks."""
    return [a for a in program.instructions[index].args
            if not isinstance(program.instructions[a].primitive, Bias | Mask)]


def _last_of_itself(program: Program, readers: dict[int, list[int]], product: int) -> int:
    """The last value that is a function of the product alone and that all else hears of it through: behind
    activations, gates and maxima of its own parts."""
    inside, end, waiting = {product}, product, sorted(readers.get(product, []))
    open_to = _open(program, readers, product, inside)
    while waiting:
        i = heapq.heappop(waiting)
        if i in inside or not _is_local(program, i) or not set(_sources(program, i)) <= inside:
            continue
        inside.add(i)
        for reader in readers.get(i, []):
            heapq.heappush(waiting, reader)
        open_to = {v for v in open_to | {i} if _open(program, readers, v, inside)}
        if open_to <= {i}:
            end = i
    return end


def _is_local(program: Program, index: int) -> bool:
    return bool(_sources(program, index)) and isinstance(program.instructions[index].primitive,
                                                         Pointwise | Slice | Concat)


def _open(program: Program, readers: dict[int, list[int]], value: int, inside: Collection[int]) -> set[int]:
    """The value, if it is read outside of these, or an output, or not read at all."""
    read = readers.get(value, [])
    return {value} if value in program.outputs or not read or not set(read) <= set(inside) else set()


def _is_scale(program: Program, index: int) -> bool:
    """Whether a step only multiplies by a constant: that is meant, and not undone where it ends a segment."""
    step = program.instructions[index]
    if not isinstance(step.primitive, Pointwise):
        return False
    factor = step.primitive.expr / arg(0)
    return len(step.args) == 1 and factor != 1 and not factor.has(arg(0))


def _joins(program: Program, index: int) -> bool:
    return isinstance(program.instructions[index].primitive, Pointwise) and len(_sources(program, index)) > 1
