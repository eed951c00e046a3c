"""A plain reading of a primitive program on given arrays at finite width, forward and backward.

Values are float64 arrays of samples x positions x channels, positions in one axis (row by row). A flattened
value counts channel by channel, as torch.nn.Flatten does. Nothing is clever here: it is what lowerings and the
other readers of a program are tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.program import (
    Bias,
    Concat,
    Contract,
    Cotangent,
    Embed,
    Flatten,
    Input,
    Instruction,
    Mask,
    Permute,
    Pointwise,
    PositionExpand,
    PositionMean,
    Program,
    Slice,
    Standardize,
    StandardizeBackward,
    Unflatten,
)
from varflow.symbols import arg

Array = npt.NDArray[np.float64]


@dataclass
class Given:
    """The random parts of a network, by name: inputs, masks and cotangents (samples x positions x channels, or
    what broadcasts to it), weights (rows x columns), biases (channels), permutations (channel c of the result
    is channel ``permutations[name][c]`` of the value)."""

    samples: int = 1
    inputs: dict[str, Array] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    biases: dict[str, Array] = field(default_factory=dict)
    masks: dict[str, Array] = field(default_factory=dict)
    cotangents: dict[str, Array] = field(default_factory=dict)
    permutations: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)


def draw(program: Program, samples: int, rng: np.random.Generator) -> Given:
    """Everything random in a program, drawn at its widths (inputs uncorrelated; weights of any law as Gaussian,
    orthogonal ones as a Haar matrix of the stated entry variance)."""
    given = Given(samples)
    for step in program:
        shape = (samples, int(step.shape.places), int(step.shape.channels))
        match step.primitive:
            case Input(name=name, mean=mean, second_moment=q):
                spread = float(sp.sqrt(q - mean**2))
                given.inputs[name] = float(mean) + spread * rng.standard_normal(shape)
            case Cotangent(name=name):
                given.cotangents[name] = rng.standard_normal(shape)
            case Bias(name=name, variance=variance):
                given.biases[name] = float(sp.sqrt(variance)) * rng.standard_normal(shape[2])
            case Mask(name=name, keep=keep, per_sample=per_sample):
                size = (samples, 1, 1) if per_sample else shape
                given.masks.setdefault(name, (rng.random(size) < float(keep)).astype(np.float64))
            case Permute(name=name):
                given.permutations.setdefault(name, rng.permutation(shape[2]))
            case Contract(weight=weight) if weight not in given.weights:
                given.weights[weight] = _matrix(program, weight, rng)
    return given


def _matrix(program: Program, name: str, rng: np.random.Generator) -> Array:
    w = program.weights[name]
    rows, columns = int(w.rows), int(w.columns)
    entries = rng.standard_normal((rows, columns))
    if w.distribution == "orthogonal":
        tall = entries if rows >= columns else entries.T
        q = np.linalg.solve(np.linalg.cholesky(tall.T @ tall), tall.T).T * np.sqrt(len(tall))
        entries = q if rows >= columns else q.T
    mask = rng.random((rows, columns)) < float(w.keep)
    return float(w.value) + float(sp.sqrt(w.variance)) * entries * mask


def interpret(program: Program, given: Given) -> list[Array]:
    """Every value of the program."""
    values: list[Array] = []
    for step in program:
        args = [values[i] for i in step.args]
        shape = (given.samples, int(step.shape.places), int(step.shape.channels))
        values.append(np.broadcast_to(_value(step, args, shape, given), shape))
    return values


def weight_gradient(program: Program, values: Sequence[Array], weight: str) -> Array:
    """dL/dW, rows x columns, summed over samples and positions."""
    pairs = program.weight_gradients[weight]
    return np.asarray(sum(np.einsum("bpr,bpc->rc", values[r], values[c]) for r, c in pairs))


def _value(step: Instruction, args: list[Array], shape: tuple[int, int, int], given: Given) -> Array:
    match step.primitive:
        case Input(name=name):
            return given.inputs[name]
        case Cotangent(name=name):
            return given.cotangents[name]
        case Bias(name=name):
            return given.biases[name]
        case Mask(name=name):
            return given.masks[name]
        case Contract(weight=weight, transpose=transpose):
            w = given.weights[weight]
            return args[0] @ (w if transpose else w.T)
        case Pointwise(expr=expr):
            return np.asarray(_compiled(expr, len(args))(*args), dtype=np.float64)
        case Standardize() as norm:
            return _standardize(norm, args[0])[0]
        case StandardizeBackward(forward=norm):
            return _standardize_backward(norm, *args)
        case Concat():
            return np.concatenate(args, axis=2)
        case _:
            return _moved(step, args[0], shape, given.permutations)


def _moved(step: Instruction, x: Array, shape: tuple[int, int, int],
           permutations: Mapping[str, npt.NDArray[np.int64]]) -> Array:
    match step.primitive:
        case PositionMean():
            return np.asarray(x.mean(axis=1, keepdims=True))
        case PositionExpand():
            return x
        case Slice(start=start, size=size):
            return x[:, :, int(start) : int(start + size)]
        case Embed(start=start):
            out = np.zeros(shape)
            out[:, :, int(start) : int(start) + x.shape[2]] = x
            return out
        case Permute(name=name, inverse=inverse):
            order = permutations[name]
            return x[:, :, np.argsort(order) if inverse else order]
        case Flatten():
            return x.transpose(0, 2, 1).reshape(len(x), 1, -1)
        case Unflatten():
            return x.reshape(len(x), shape[2], shape[1]).transpose(0, 2, 1)
        case other:
            raise NotImplementedError(f"{type(other).__name__} has no reference")


def _standardize(norm: Standardize, x: Array) -> tuple[Array, Array]:
    """The normalized value, and sigma."""
    axes: tuple[int, ...] = (3,) if norm.axis == "channel" else (0, 1)
    groups = int(norm.groups) if norm.axis == "channel" else 1
    grouped = x.reshape(*x.shape[:2], groups, -1)
    mean = grouped.mean(axis=axes, keepdims=True) if norm.center else np.zeros(())
    sigma = np.sqrt(((grouped - mean) ** 2).mean(axis=axes, keepdims=True) + float(norm.eps))
    sigma = np.broadcast_to(sigma, grouped.shape)
    return ((grouped - mean) / sigma).reshape(x.shape), sigma.reshape(x.shape)


def _standardize_backward(norm: Standardize, x: Array, d: Array) -> Array:
    y, sigma = _standardize(norm, x)
    groups = int(norm.groups) if norm.axis == "channel" else 1

    def mean(a: Array) -> Array:
        if norm.axis == "sample":
            return np.asarray(a.mean(axis=(0, 1), keepdims=True))
        grouped = a.reshape(*a.shape[:2], groups, -1)
        return np.broadcast_to(grouped.mean(axis=3, keepdims=True), grouped.shape).reshape(a.shape)

    return np.asarray((d - (mean(d) if norm.center else 0.0) - y * mean(y * d)) / sigma)


@cache
def _compiled(expr: sp.Expr, count: int) -> Callable[..., Any]:
    symbols = [arg(i) for i in range(count)]
    compiled: Callable[..., Any] = sp.lambdify(symbols, expr, modules=["scipy", "numpy"])
    return compiled
