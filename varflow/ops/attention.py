"""Layers that mix tokens by how alike they are: attention, its parts, and a self-attention layer with its weights.

Tokens are the positions of a value; those of several axes count row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import sympy as sp

from varflow.errors import ShapeError
from varflow.ops.axes import divided, position_axes
from varflow.ops.base import Channels, Count, Flag, Lemma, Op, PerHead, Scalar, Text
from varflow.ops.linear import Linear, add_bias, in_fans, random_weight
from varflow.program import Blend, Lowering, Scores, Shape, Softmax, Weight
from varflow.symbols import HEAD_WIDTH, arg

SCALE = HEAD_WIDTH ** sp.Rational(-1, 2)
VASWANI = "Vaswani et al. 2017, arXiv:1706.03762, section 3.2"
HRON = "Hron et al. 2020, arXiv:2006.10540"


def _scores_shape(layer: str, q: Shape, k: Shape, heads: sp.Expr) -> Shape:
    """The shape of logits. Raises ShapeError."""
    for shape in (q, k):
        position_axes(layer, shape)
        divided(layer, shape.channels, heads, "heads")
    if q.channels != k.channels:
        raise ShapeError(f"{layer}: queries have {q.channels} channels, keys {k.channels}",
                         why="a logit is their inner product", instead="projections to as many channels")
    return Shape(heads * k.places, q.positions)


def _check_rows(layer: str, logits: Shape, heads: sp.Expr, causal: bool) -> None:
    """Raise ShapeError for logits that are not ``heads`` rows, or not square where they are causal."""
    position_axes(layer, logits)
    tokens = divided(layer, logits.channels, heads, "heads")
    if causal and tokens != logits.places:
        raise ShapeError(f"{layer}: causal, with {logits.places} queries and {tokens} keys",
                         why="a token sees itself and those before it", instead="queries and keys of the same tokens")


def _blend_shape(layer: str, a: Shape, v: Shape, heads: sp.Expr) -> Shape:
    """The shape of blended values. Raises ShapeError."""
    for shape in (a, v):
        position_axes(layer, shape)
        divided(layer, shape.channels, heads, "heads")
    if a.channels != heads * v.places:
        raise ShapeError(f"{layer}: weights of {a.channels} channels for {heads} heads and {v.places} tokens",
                         why="every head has a weight for every token",
                         instead=f"{sp.expand(heads * v.places)} channels, as scores of the same tokens have")
    return Shape(v.channels, a.positions)


def _scores(b: Lowering, q: int, k: int, heads: sp.Expr, scale: sp.Expr) -> int:
    shape = _scores_shape("scores", b.shape(q), b.shape(k), heads)
    logits = b.emit(Scores(heads), (q, k), shape)
    factor = scale.xreplace({HEAD_WIDTH: b.shape(q).channels / heads})
    return logits if factor == 1 else b.pointwise(factor * arg(0), logits)


def _attend(b: Lowering, q: int, k: int, v: int, heads: sp.Expr, scale: sp.Expr, causal: bool) -> int:
    logits = _scores(b, q, k, heads, scale)
    weights = b.emit(Softmax(heads, causal), (logits,), b.shape(logits))
    return b.emit(Blend(heads), (weights, v), Shape(b.shape(v).channels, b.shape(q).positions))


@dataclass(frozen=True)
class ScoresLayer(Op):
    """Attention logits: ``scale`` times the inner product of query token p (first input) and key token r (second)
    over the channels of each of ``heads``. A channel of the result is a head and a key token, heads major.

    ``scale`` may use d_k, the channels of a head."""

    name: ClassVar[str] = "scores"
    arity: ClassVar[tuple[int, int | None]] = (2, 2)
    lemma: ClassVar[Lemma] = Lemma(
        "An inner product of d_k independent channels: variance d_k q_Q q_K times the squared scale; the covariance of "
        "two logits is d_k times that of their queries times that of their keys; Gaussian as d_k grows.", HRON)
    examples = ({"heads": 4}, {"heads": 2, "scale": "1/d_k"})

    heads: Count = sp.S.One
    scale: PerHead = SCALE

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (_scores_shape(self.name, shapes[0], shapes[1], self.heads),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (_scores(b, args[0], args[1], self.heads, self.scale),)


@dataclass(frozen=True)
class SoftmaxLayer(Op):
    """exp(x) over its sum over the channels of each of ``heads`` blocks; ``causal``: at place p the first p + 1 of
    every block only, the others are zero."""

    name: ClassVar[str] = "softmax"
    lemma: ClassVar[Lemma] = Lemma(
        "A softmax does not see what the logits of a row have in common: over T logits of variance v and covariance c "
        "it is that of independent ones of variance v - c; its sum of squares is an integral over one variable.", HRON)
    examples = ({"heads": 4},)

    heads: Count = sp.S.One
    causal: Flag = False

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        _check_rows(self.name, shapes[0], self.heads, self.causal)
        return (shapes[0],)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        return (b.emit(Softmax(self.heads, self.causal), args, b.shape(args[0])),)


@dataclass(frozen=True)
class BlendLayer(Op):
    """Values mixed by attention weights: y[p, c] = sum_r a[p, (head of c, r)] v[r, c], ``a`` the first input (channels
    are heads times tokens), ``v`` the second."""

    name: ClassVar[str] = "blend"
    arity: ClassVar[tuple[int, int | None]] = (2, 2)
    lemma: ClassVar[Lemma] = Lemma(
        "Weights that sum to one: what tokens have in common is kept, c, and the rest is multiplied by the sum of "
        "squared weights, q - c; the value is a mixture of Gaussians, one for each head.", HRON)
    examples = ({"heads": 32},)

    heads: Count = sp.S.One

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (_blend_shape(self.name, shapes[0], shapes[1], self.heads),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        shape = _blend_shape(self.name, b.shape(args[0]), b.shape(args[1]), self.heads)
        return (b.emit(Blend(self.heads), args, shape),)


@dataclass(frozen=True)
class Attention(Op):
    """softmax(scale q k^T) v, head by head, of queries, keys and values (the three inputs, in this order); as
    torch.nn.functional.scaled_dot_product_attention.

    Channels are split into ``heads`` blocks; ``scale`` is 1/sqrt(d_k) unless given, d_k the channels of a head.
    ``causal``: a token sees itself and those before it. Keys and values may have other tokens than queries. It is
    ``scores``, ``softmax`` and ``blend`` one after another; those show the logits as a node.
    """

    name: ClassVar[str] = "attention"
    arity: ClassVar[tuple[int, int | None]] = (3, 3)
    lemma: ClassVar[Lemma] = Lemma(
        "Logits are Gaussian with variance v less what a row has in common, v (1 - rho); values keep what tokens "
        "have in common, c, and the rest times the expected sum of squared weights, which falls to 1/T for small v.",
        f"{VASWANI}; {HRON}")
    examples = ({"heads": 4},)

    heads: Count = sp.S.One
    scale: PerHead = SCALE
    causal: Flag = False

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        q, k, v = shapes
        logits = _scores_shape(self.name, q, k, self.heads)
        _check_rows(self.name, logits, self.heads, self.causal)
        if k.places != v.places:
            raise ShapeError(f"attention: {k.places} keys and {v.places} values", why="each key has a value",
                             instead="keys and values of the same tokens")
        return (_blend_shape(self.name, logits, v, self.heads),)

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        q, k, v = args
        return (_attend(b, q, k, v, self.heads, self.scale, self.causal),)


@dataclass(frozen=True)
class SelfAttention(Op):
    """W_o attention(W_q x, W_k x, W_v x): the layer with its four weights, NAME.query, NAME.key, NAME.value and
    NAME.output; as torch.nn.MultiheadAttention of one input.

    ``key_channels`` and ``value_channels`` are those of all heads together (as many as the input has unless given);
    ``query_variance`` and so on are Var(W_ij), ``bias`` the variance of all four biases. See ``attention``.
    """

    name: ClassVar[str] = "self_attention"
    lemma: ClassVar[Lemma] = Lemma(
        "Queries, keys and values are independent projections of one stream, so that logits have variance "
        "s_Q s_K q^2 at scale 1/sqrt(d_k); the output is s_O s_V (c + (q - c) A_2), c the covariance of tokens.",
        f"{VASWANI}; {HRON}")
    examples = ({"heads": 4, "query_variance": "1/fan_in", "key_variance": "1/fan_in", "value_variance": "1/fan_in",
                 "output_variance": "1/fan_in"},)
    torch: ClassVar[str | None] = "MultiheadAttention"
    variances = {part: f"{part}_variance" for part in ("query", "key", "value", "output")}

    heads: Count = sp.S.One
    key_channels: Channels | None = None
    value_channels: Channels | None = None
    scale: PerHead = SCALE
    causal: Flag = False
    query_variance: Scalar | None = None
    key_variance: Scalar | None = None
    value_variance: Scalar | None = None
    output_variance: Scalar | None = None
    distribution: Text = "normal"
    bias: Scalar | None = None

    def __post_init__(self) -> None:
        Linear(sp.S.One, distribution=self.distribution)

    def _widths(self, shape: Shape) -> tuple[sp.Expr, sp.Expr]:
        return self.key_channels or shape.channels, self.value_channels or shape.channels

    def infer(self, *shapes: Shape) -> tuple[Shape, ...]:
        x = shapes[0]
        keys, values = (Shape(n, x.positions) for n in self._widths(x))
        logits = _scores_shape(self.name, keys, keys, self.heads)
        _blend_shape(self.name, logits, values, self.heads)
        return (x,)

    def _linear(self, b: Lowering, x: int, part: str, out: sp.Expr) -> int:
        bare = Weight(f"{b.node}.{part}", out, b.shape(x).channels, sp.S.Zero)
        weight = random_weight(Linear(out, distribution=self.distribution), getattr(self, f"{part}_variance"), bare)
        y = b.contract(b.declare(weight), x)
        return y if self.bias is None else add_bias(b, y, in_fans(self.bias, weight), f"{b.node}.{part}.bias")

    def lower(self, b: Lowering, *args: int) -> tuple[int, ...]:
        x = args[0]
        keys, values = self._widths(b.shape(x))
        q, k, v = (self._linear(b, x, part, out) for part, out in (("query", keys), ("key", keys), ("value", values)))
        y = _attend(b, q, k, v, self.heads, self.scale, self.causal)
        return (self._linear(b, y, "output", b.shape(x).channels),)
