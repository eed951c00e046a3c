"""Attention in a population: heads are blocks of coordinates, as many as there are, each with its own weights.

The limit of many heads at the stated width of a head, whatever queries, keys and values have in common, and with a
causal mask too. Logits and weights have coordinates of their own: token by token of head after head.
"""

from __future__ import annotations

import numpy as np

from varflow.errors import UnsupportedError
from varflow.laws.population_cells import Array, Value, whole
from varflow.program import Blend, Instruction, Scores, Softmax, SoftmaxBackward

LEAST_HEADS = 4


def attended(step: Instruction, args: list[Value]) -> Value:
    """The value of an instruction of attention. Raises UnsupportedError for channels of several kinds."""
    if any(len(v.cells) > 1 for v in args):
        raise UnsupportedError("attention over channels of several kinds has no population", step.node,
                               why="a head's channels have one law", instead="a linear layer behind what joins them")
    arrays = [v.cells[0].array for v in args]
    channels = int(step.shape.channels)
    match step.primitive:
        case Scores(heads=heads):
            found = _scores(arrays[0], arrays[1], args[0].channels // int(heads), step.node)
        case Softmax(heads=heads, causal=causal):
            found = _softmax(_by_head(arrays[0], channels // int(heads)), len(arrays[0]), causal)
        case SoftmaxBackward(forward=rule):
            a, d = (_by_head(x, channels // int(rule.heads)) for x in arrays)
            found = _softmax_backward(a, d, len(arrays[0]))
        case Blend(heads=heads, transpose=transpose):
            weights = _by_head(arrays[0], args[0].channels // int(heads))
            found = _blend(weights, arrays[1], channels // int(heads), transpose)
        case other:
            raise UnsupportedError(f"{type(other).__name__} is no part of attention", step.node)
    return whole(channels, found)


def _by_head(x: Array, tokens: int) -> Array:
    """Heads x tokens x samples x places; coordinates that make no whole head are left out."""
    return x[: len(x) // tokens * tokens].reshape(-1, tokens, *x.shape[1:])


def _joined(x: Array, size: int) -> Array:
    """Coordinates of all heads, as many as a value of the population has: the first ones again at the end."""
    heads = -(-size // x.shape[1])
    return np.asarray(x[np.arange(heads) % len(x)].reshape(-1, *x.shape[2:])[:size])


def _scores(q: Array, k: Array, width: int, node: str) -> Array:
    heads = len(q) // width
    if heads < LEAST_HEADS:
        raise UnsupportedError(f"a head of {width} channels is too wide for a population of {len(q)}", node,
                               instead="more heads, or a larger population")
    found = np.einsum("hcsp,hcsr->hrsp", _by_head(q, width), _by_head(k, width), optimize=True)
    return _joined(found, len(q))


def _softmax(logits: Array, size: int, causal: bool) -> Array:
    if causal:
        later = np.arange(logits.shape[1])[:, None, None] > np.arange(logits.shape[3])
        logits = np.where(later, -np.inf, logits)
    a = np.exp(logits - logits.max(axis=1, keepdims=True))
    return _joined(a / a.sum(axis=1, keepdims=True), size)


def _softmax_backward(a: Array, d: Array, size: int) -> Array:
    return _joined(a * (d - (a * d).sum(axis=1, keepdims=True)), size)


def _blend(weights: Array, v: Array, width: int, transpose: bool) -> Array:
    """Every block of ``width`` coordinates mixed by the weights of one head."""
    blocks = -(-len(v) // width)
    mine = weights[np.arange(blocks) % len(weights)]
    values = _joined(_by_head(v, 1), blocks * width).reshape(blocks, width, *v.shape[1:])
    subscripts = "hrsp,hcsp->hcsr" if transpose else "hrsp,hcsr->hcsp"
    return _joined(np.einsum(subscripts, mine, values, optimize=True), len(v))
