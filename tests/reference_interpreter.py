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
    Blend,
    Concat,
    Contract,
    Cotangent,
    Deal,
    Embed,
    Flatten,
    Input,
    Instruction,
    Mask,
    Mix,
    Permute,
    Pointwise,
    PositionExpand,
    PositionMean,
    Program,
    Scores,
    Slice,
    Softmax,
    SoftmaxBackward,
    Standardize,
    StandardizeBackward,
    Unflatten,
    Weight,
    WindowMax,
    WindowMaxBackward,
)
from varflow.symbols import arg
from varflow.window import Window

Array = npt.NDArray[np.float64]


@dataclass
class Given:
    """The random parts of a network, by name: inputs, masks and cotangents (samples x positions x channels, or
    what broadcasts to it), weights (rows x columns; with several taps or groups taps x rows x columns, the columns
    those of the row's block), biases (channels), permutations (channel c of the result is channel
    ``permutations[name][c]`` of the value)."""

    samples: int = 1
    inputs: dict[str, Array] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    biases: dict[str, Array] = field(default_factory=dict)
    masks: dict[str, Array] = field(default_factory=dict)
    cotangents: dict[str, Array] = field(default_factory=dict)
    permutations: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)


def draw(program: Program, samples: int, rng: np.random.Generator) -> Given:
    """Everything random in a program, drawn at its widths (inputs uncorrelated; weights of any law as Gaussian,
    orthogonal ones as a Haar matrix of the stated entry variance, normalized ones normalized)."""
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
    over_taps = w.taps != 1 or w.groups != 1
    entries = rng.standard_normal((w.taps, rows, columns) if over_taps else (rows, columns))
    if w.distribution == "orthogonal" and not over_taps:
        tall = entries if rows >= columns else entries.T
        q = np.linalg.solve(np.linalg.cholesky(tall.T @ tall), tall.T).T * np.sqrt(len(tall))
        entries = q if rows >= columns else q.T
    entries = law(w, entries)
    return entries * (rng.random(entries.shape) < float(w.keep)) + float(w.value) * (w.distribution == "constant")


def law(w: Weight, entries: Array) -> Array:
    """A weight of the law of ``w`` made of entries of unit variance: scaled, or normalized (rows run over taps and
    columns): scaled weight standardization (Brock et al. 2021), weight normalization (Salimans and Kingma 2016),
    spectral normalization (Miyato et al. 2018)."""
    flat = np.moveaxis(entries, -2, 0).reshape(entries.shape[-2], -1)
    std = float(sp.sqrt(w.variance))
    match w.distribution:
        case "standardized":
            flat = flat - flat.mean(axis=1, keepdims=True)
            flat = flat / np.sqrt(np.square(flat).mean(axis=1, keepdims=True)) * std
        case "weight_norm":
            flat = flat / np.sqrt(np.square(flat).mean(axis=1, keepdims=True)) * std
        case "spectral":
            flat = flat / np.linalg.norm(flat, 2) * float(w.value or 1)
        case _:
            flat = flat * std
    return np.moveaxis(flat.reshape(entries.shape[-2], *entries.shape[:-2], -1), 0, -2)


def interpret(program: Program, given: Given) -> list[Array]:
    """Every value of the program."""
    values: list[Array] = []
    for step in program:
        args = [values[i] for i in step.args]
        shape = (given.samples, int(step.shape.places), int(step.shape.channels))
        values.append(np.broadcast_to(_value(step, args, shape, given), shape))
    return values


def weight_gradient(program: Program, values: Sequence[Array], weight: str) -> Array:
    """dL/dW, shaped as the weight in `Given`, summed over samples and positions."""
    w = program.weights[weight]
    total = np.zeros((w.taps, int(w.rows), int(w.columns)))
    for (row, column), window in zip(program.weight_gradients[weight], program.weight_windows[weight], strict=True):
        d, h = values[row], values[column]
        for t, (at, seen) in enumerate(_taps(window, d.shape[1])):
            full = np.einsum("bpr,bpc->rc", d[:, at], h[:, seen])
            total[t] += _blocks(full, int(w.groups))
    return total if w.taps != 1 or w.groups != 1 else total[0]


def _blocks(full: Array, groups: int) -> Array:
    """The diagonal blocks of a matrix, one below another."""
    parts = full.reshape(groups, full.shape[0] // groups, groups, -1)
    return np.concatenate([parts[g, :, g] for g in range(groups)])


def _taps(window: Window | None, places: int) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """For each tap the output positions that see the grid through it, and what they see."""
    table = np.arange(places)[:, None] if window is None else window.table()
    return [(np.flatnonzero(seen >= 0), seen[seen >= 0]) for seen in table.T]


def _contract(w: Array, x: Array, window: Window | None, transpose: bool, shape: tuple[int, int, int]) -> Array:
    w = w if w.ndim == 3 else w[None]
    rows, columns = w.shape[1:]
    groups = (shape[2] if transpose else x.shape[2]) // columns
    full = np.zeros((len(w), rows, groups * columns))
    for r in range(rows):
        start = r // (rows // groups) * columns
        full[:, r, start : start + columns] = w[:, r]
    out = np.zeros(shape)
    for matrix, (at, seen) in zip(full, _taps(window, shape[1]), strict=True):
        if transpose:
            for p, q in zip(at, seen, strict=True):
                out[:, q] += x[:, p] @ matrix
        else:
            out[:, at] += x[:, seen] @ matrix.T
    return out


def _mix(mix: Mix, x: Array, shape: tuple[int, int, int]) -> Array:
    inputs = shape[1] if mix.transpose else x.shape[1]
    taps = _taps(mix.window, 0)
    matrix = np.zeros((x.shape[1] if mix.transpose else shape[1], inputs))
    for a, (at, seen) in zip(mix.coefficients, taps, strict=True):
        np.add.at(matrix, (at, seen), float(a))
    if mix.normalized:
        matrix /= matrix.sum(axis=1, keepdims=True)
    return np.asarray(np.einsum("pq,spc->sqc" if mix.transpose else "pq,sqc->spc", matrix, x))


def _window_max(x: Array, table: npt.NDArray[np.int64]) -> tuple[Array, npt.NDArray[np.int64]]:
    """Maxima, and the positions they came from (samples x positions x channels both)."""
    seen = np.where((table >= 0)[None, :, :, None], x[:, table], -np.inf)
    first = seen.argmax(axis=2)
    return seen.max(axis=2), table[np.arange(len(table))[None, :, None], first]


def _window_max_backward(x: Array, d: Array, table: npt.NDArray[np.int64]) -> Array:
    place = _window_max(x, table)[1]
    out = np.zeros_like(x)
    np.add.at(out, (np.arange(len(x))[:, None, None], place, np.arange(x.shape[2])), d)
    return out


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
        case Contract(weight=weight, transpose=transpose, window=window):
            return _contract(given.weights[weight], args[0], window, transpose, shape)
        case Mix() as mix:
            return _mix(mix, args[0], shape)
        case WindowMax(window=over):
            return _window_max(args[0], over.table())[0]
        case WindowMaxBackward(forward=forward):
            return _window_max_backward(args[0], args[1], forward.window.table())
        case Pointwise(expr=expr):
            return np.asarray(_compiled(expr, len(args))(*args), dtype=np.float64)
        case Standardize() as norm:
            return _standardize(norm, args[0])[0]
        case StandardizeBackward(forward=norm):
            return _standardize_backward(norm, *args)
        case Concat():
            return np.concatenate(args, axis=2)
        case Scores(heads=heads):
            q, k = (_by_head(x, heads) for x in args)
            return np.asarray(np.einsum("sphc,srhc->sphr", q, k).reshape(shape))
        case Blend(heads=heads, transpose=flipped):
            a, v = (_by_head(x, heads) for x in args)
            return np.asarray(np.einsum("sphr,sphc->srhc" if flipped else "sphr,srhc->sphc", a, v).reshape(shape))
        case Softmax() as rule:
            return _softmax(rule, args[0])
        case SoftmaxBackward(forward=rule):
            a, d = (_by_head(x, rule.heads) for x in args)
            return np.asarray(a * (d - (a * d).sum(axis=3, keepdims=True))).reshape(shape)
        case _:
            return _moved(step, args[0], shape, given.permutations)


def _by_head(x: Array, heads: sp.Expr) -> Array:
    return x.reshape(*x.shape[:2], int(heads), -1)


def _softmax(rule: Softmax, x: Array) -> Array:
    logits = _by_head(x, rule.heads)
    if rule.causal:
        later = np.triu(np.ones((x.shape[1], x.shape[1]), bool), 1)
        logits = np.where(later[None, :, None, :], -np.inf, logits)
    a = np.exp(logits - logits.max(axis=3, keepdims=True))
    return np.asarray(a / a.sum(axis=3, keepdims=True)).reshape(x.shape)


def _moved(step: Instruction, x: Array, shape: tuple[int, int, int],
           permutations: Mapping[str, npt.NDArray[np.int64]]) -> Array:
    match step.primitive:
        case Deal(count=count, inverse=inverse):
            heaps = x.shape[2] // count if not inverse else count
            return x.reshape(*x.shape[:2], heaps, -1).swapaxes(2, 3).reshape(x.shape)
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


AXES = {"channel": (3,), "group": (1, 3), "sample": (0, 1)}


def _grouped(norm: Standardize, x: Array) -> Array:
    return x.reshape(*x.shape[:2], 1 if norm.axis == "sample" else int(norm.groups), -1)


def _standardize(norm: Standardize, x: Array) -> tuple[Array, Array]:
    """The normalized value, and sigma."""
    axes, grouped = AXES[norm.axis], _grouped(norm, x)
    mean = grouped.mean(axis=axes, keepdims=True) if norm.center else np.zeros(())
    sigma = np.sqrt(((grouped - mean) ** 2).mean(axis=axes, keepdims=True) + float(norm.eps))
    sigma = np.broadcast_to(sigma, grouped.shape)
    return ((grouped - mean) / sigma).reshape(x.shape), sigma.reshape(x.shape)


def _standardize_backward(norm: Standardize, x: Array, d: Array) -> Array:
    y, sigma = _standardize(norm, x)

    def mean(a: Array) -> Array:
        grouped = _grouped(norm, a)
        over = grouped.mean(axis=AXES[norm.axis], keepdims=True)
        return np.broadcast_to(over, grouped.shape).reshape(a.shape)

    return np.asarray((d - (mean(d) if norm.center else 0.0) - y * mean(y * d)) / sigma)


@cache
def _compiled(expr: sp.Expr, count: int) -> Callable[..., Any]:
    symbols = [arg(i) for i in range(count)]
    compiled: Callable[..., Any] = sp.lambdify(symbols, expr, modules=["scipy", "numpy"])
    return compiled
