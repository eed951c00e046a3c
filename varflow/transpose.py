"""The backward pass: a program's transpose, appended instruction by instruction.

Contract <-> its transpose, pointwise -> times the derivative, copy <-> sum, slice <-> embed (Yang 2020,
arXiv:2006.14548). No layer writes a gradient rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import sympy as sp

from varflow.calculus import pulled_back
from varflow.errors import UnsupportedError
from varflow.program import (
    Bias,
    Blend,
    Concat,
    Contract,
    Cotangent,
    Deal,
    Embed,
    Flatten,
    Input,
    Instruction,
    Lowering,
    Mask,
    Mix,
    Permute,
    Pointwise,
    PositionExpand,
    PositionMean,
    Program,
    Repeat,
    RepeatBackward,
    Scores,
    Slice,
    Softmax,
    SoftmaxBackward,
    Standardize,
    StandardizeBackward,
    Unflatten,
    WindowMax,
    WindowMaxBackward,
)
from varflow.symbols import arg


def transpose(program: Program, backward_from: list[int] | None = None) -> None:
    """Append the backward pass: a cotangent at every output, then each instruction's transpose.

    Fills ``program.gradients`` for every node a gradient reaches, and ``weight_gradients``.
    """
    build = Lowering(program, backward=True)
    pending: dict[int, list[int]] = {}
    forward = len(program)
    for k, value in enumerate(program.outputs if backward_from is None else backward_from):
        build.node = program.instructions[value].node
        source = build.source(Cotangent(f"output {k}"), program.shape(value))
        pending.setdefault(value, []).append(source)
    gradients = program.pulled_back
    for value in reversed(range(forward)):
        if value not in pending:
            continue
        build.node = program.instructions[value].node
        terms = pending.pop(value)
        total = build.pointwise(sp.Add(*(arg(i) for i in range(len(terms)))), *terms)
        gradients[value] = total
        for source_value, term in _pull_back(build, value, total):
            pending.setdefault(source_value, []).append(term)
    for name, value in program.values.items():
        if value in gradients:
            program.gradients[name] = gradients[value]


def _pull_back(build: Lowering, value: int, d: int) -> list[tuple[int, int]]:
    """(argument, its share of the gradient) for the instruction that made ``value``."""
    step = build.program.instructions[value]
    match step.primitive:
        case Input() | Bias() | Mask() | Cotangent():
            return []
        case Pointwise(expr=expr):
            return list(_pull_back_pointwise(build, expr, step.args, d))
        case Contract(weight=weight, transpose=flipped, window=window):
            pair = (step.args[0], d) if flipped else (d, step.args[0])
            build.program.weight_gradients.setdefault(weight, []).append(pair)
            build.program.weight_windows.setdefault(weight, []).append(window)
            return [(step.args[0], build.convolve(weight, d, window, not flipped))]
        case Concat():
            return list(_pull_back_concat(build, step.args, d))
        case Scores() | Blend():
            return list(_pull_back_pair(build, step, d))
        case Softmax() as forward:
            return [(step.args[0], build.emit(SoftmaxBackward(forward), (value, d), step.shape))]
        case _:
            return [(step.args[0], _pull_back_linear(build, step, d))]


def _pull_back_pointwise(
    build: Lowering, expr: sp.Expr, args: tuple[int, ...], d: int
) -> Iterator[tuple[int, int]]:
    for i, value in enumerate(args):
        if isinstance(build.program.instructions[value].primitive, Bias | Mask):
            continue
        share = pulled_back(expr, arg(i), arg(len(args)))
        if share != 0:
            yield value, build.pointwise(share, *args, d)


def _pull_back_concat(build: Lowering, args: tuple[int, ...], d: int) -> Iterator[tuple[int, int]]:
    start: sp.Expr = sp.S.Zero
    for value in args:
        size = build.shape(value).channels
        yield value, build.slice(d, start, size)
        start += size


def _pull_back_pair(build: Lowering, step: Instruction, d: int) -> Iterator[tuple[int, int]]:
    """Transposes of what is linear in each of two arguments."""
    a, b = step.args
    match step.primitive:
        case Scores(heads=heads):
            yield a, build.emit(Blend(heads), (d, b), build.shape(a))
            yield b, build.emit(Blend(heads, transpose=True), (d, a), build.shape(b))
        case Blend(heads=heads, transpose=False):
            yield a, build.emit(Scores(heads), (d, b), build.shape(a))
            yield b, build.emit(Blend(heads, transpose=True), (a, d), build.shape(b))
        case other:
            raise UnsupportedError(f"no transpose is known for {type(other).__name__}", step.node)


def _pull_back_linear(build: Lowering, step: Instruction, d: int) -> int:
    """Transposes of one-argument primitives."""
    x = step.args[0]
    shape = build.shape(x)
    match step.primitive:
        case PositionMean():
            return build.position_expand(build.pointwise(arg(0) / shape.places, d), shape.positions)
        case PositionExpand(positions=positions):
            return build.pointwise(arg(0) * sp.Mul(*positions), build.position_mean(d))
        case Standardize() as forward:
            return build.emit(StandardizeBackward(forward), (x, d), shape)
        case Mix() as mix:
            return build.mix(replace(mix, transpose=not mix.transpose), d)
        case WindowMax() as forward_max:
            return build.emit(WindowMaxBackward(forward_max), (x, d), shape)
        case Deal(count=count, inverse=inverse):
            return build.deal(d, count, not inverse)
        case Slice(start=start):
            return build.embed(d, start, shape.channels)
        case Embed(start=start):
            return build.slice(d, start, shape.channels)
        case Permute(name=name, inverse=inverse):
            return build.permute(d, name, not inverse)
        case Flatten():
            return build.unflatten(d, shape.channels, shape.positions)
        case Unflatten():
            return build.flatten(d)
        case Repeat() as forward:
            return build.emit(RepeatBackward(forward), (x, d), shape)
        case other:
            raise UnsupportedError(f"no transpose is known for {type(other).__name__}", step.node)
