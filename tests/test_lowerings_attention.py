"""Attention and its parts against PyTorch's on the same numbers, forward and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import sympy as sp

from tests.reference_interpreter import draw
from tests.test_lowerings import SAMPLES, Case, _check
from varflow.errors import InputError, VarflowError
from varflow.lowering import infer_shapes, lower
from varflow.network import Handle, Network
from varflow.ops import OPS
from varflow.program import Scores

torch: Any = pytest.importorskip("torch")
F = torch.nn.functional
Tensors = list[Any]
CHANNELS, TOKENS = 24, 6


def _by_head(case: Case, x: Any) -> Any:
    """(samples, places, channels) -> (samples, heads, places, channels of a head)."""
    return x.unflatten(2, (int(case.layer.heads), -1)).transpose(1, 2)


def _joined(x: Any) -> Any:
    return x.transpose(1, 2).flatten(2)


def _scale(case: Case, channels: int) -> float:
    width = channels // int(case.layer.heads)
    return float(case.layer.scale.subs(sp.Symbol("d_k", positive=True), width))


def _scores(case: Case, xs: Tensors, _: Any) -> Tensors:
    q, k = (_by_head(case, x) for x in xs)
    return [_joined(_scale(case, xs[0].shape[2]) * torch.matmul(q, k.transpose(2, 3)))]


def _softmax(case: Case, xs: Tensors, _: Any) -> Tensors:
    logits = _by_head(case, xs[0])
    if case.layer.causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return [_joined(F.softmax(logits, dim=3))]


def _blend(case: Case, xs: Tensors, _: Any) -> Tensors:
    return [_joined(torch.matmul(*(_by_head(case, x) for x in xs)))]


def _attention(case: Case, xs: Tensors, _: Any) -> Tensors:
    q, k, v = (_by_head(case, x) for x in xs)
    return [_joined(F.scaled_dot_product_attention(q, k, v, is_causal=bool(case.layer.causal),
                                                   scale=_scale(case, xs[0].shape[2])))]


def _self_attention(case: Case, xs: Tensors, weights: dict[str, Any]) -> Tensors:
    """torch.nn.MultiheadAttention with our weights (all four of one size)."""
    n = xs[0].shape[2]
    module: Any = torch.nn.MultiheadAttention(n, int(case.layer.heads), bias=case.layer.bias is not None,
                                              batch_first=True, dtype=torch.float64)
    del module.in_proj_weight, module.out_proj.weight
    module.in_proj_weight = torch.cat([weights[f"layer.{part}"] for part in ("query", "key", "value")])
    module.out_proj.weight = weights["layer.output"]
    if case.layer.bias is not None:
        biases = [torch.tensor(case.given.biases[f"layer.{part}.bias"]) for part in ("query", "key", "value")]
        module.in_proj_bias = torch.nn.Parameter(torch.cat(biases), requires_grad=False)
        module.out_proj.bias = torch.nn.Parameter(torch.tensor(case.given.biases["layer.output.bias"]),
                                                  requires_grad=False)
    size = xs[0].shape[1]
    mask = torch.ones((size, size), dtype=torch.bool).triu(1) if case.layer.causal else None
    return [module(xs[0], xs[0], xs[0], attn_mask=mask, need_weights=False)[0]]


COUNTERPARTS: dict[str, Callable[[Case, Tensors, Any], Tensors]] = {
    "scores": _scores, "softmax": _softmax, "blend": _blend, "attention": _attention, "self_attention": _self_attention,
}
KNOWN = {f"{part}_variance": "1/fan_in" for part in ("query", "key", "value", "output")}
MORE: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
    ("attention", {"heads": 3, "causal": True}, (TOKENS,)),
    ("attention", {"heads": 6, "scale": "2/d_k"}, (2, 3)),
    ("attention", {"heads": 1, "scale": 0}, (1,)),
    ("self_attention", {"heads": 3, "causal": True, **KNOWN}, (TOKENS,)),
    ("self_attention", {"heads": 2, "bias": "1/10", **KNOWN}, (2, 3)),
)


def _cases() -> Iterator[Any]:
    for op in COUNTERPARTS:
        for fields in OPS[op].examples:
            yield op, dict(fields), (TOKENS,)
    yield from MORE
    yield "softmax", {"heads": 4, "causal": True}, (TOKENS,)


def case_of(op: str, fields: dict[str, Any], positions: tuple[int, ...]) -> Case:
    """The layer, its inputs of the channels that it takes."""
    if op in ("softmax", "blend"):
        return mixed_widths(op, fields, positions)
    return Case(op, fields, positions, OPS[op].arity[0], CHANNELS)


def mixed_widths(op: str, fields: dict[str, Any], positions: tuple[int, ...]) -> Case:
    """Weights for all tokens, and values."""
    net = Network(op)
    xs = [net.input("x0", int(fields["heads"]) * int(np.prod(positions)), positions)]
    xs += [net.input("x1", 2 * int(fields["heads"]), positions)] if op == "blend" else []
    net.apply(op, *xs, name="layer", **fields)
    return drawn(net)


def drawn(net: Network) -> Case:
    case = Case.__new__(Case)
    case.net, case.layer, case.program = net, net.node("layer"), lower(net)
    case.given = draw(case.program, SAMPLES, np.random.default_rng(1))
    return case


@pytest.mark.parametrize(("op", "fields", "positions"), list(_cases()), ids=str)
def test_lowering_is_the_torch_layer(op: str, fields: dict[str, Any], positions: tuple[int, ...]) -> None:
    case = case_of(op, fields, positions)
    if op != "self_attention":
        _check(case, COUNTERPARTS[op])
        return
    held: dict[str, Any] = {}
    tensor = case.tensor
    case.tensor = lambda table, name: held.setdefault(name, tensor(table, name))  # type: ignore[method-assign]
    _check(case, lambda case, xs, _: _self_attention(case, xs, held))


def test_other_tokens_than_the_queries() -> None:
    """Cross-attention: 5 queries look at 7 tokens, whose values have other channels."""
    net = Network("cross")
    q, k, v = net.input("x0", 12, (5,)), net.input("x1", 12, (7,)), net.input("x2", 30, (7,))
    net.attention(q, k, v, heads=3, name="layer")
    assert str(infer_shapes(net)["layer"][0]) == "(5, 30)"
    _check(drawn(net), _attention)


def test_three_layers_are_one_attention() -> None:
    net = Network("parts")
    q, k, v = (net.input(f"x{i}", CHANNELS, (TOKENS,)) for i in range(3))
    logits = net.scores(q, k, heads=4, name="logits")
    net.blend(net.softmax(logits, heads=4, name="weights"), v, heads=4, name="layer")
    case = drawn(net)
    case.layer = Case("attention", {"heads": 4}, (TOKENS,), 3, CHANNELS).layer
    _check(case, _attention)
    assert {"logits", "weights"} <= case.program.gradients.keys()


@pytest.mark.parametrize("wrong", [{"causal": True}, {"scale": "1/d_k"}, {"heads": 2}])
def test_a_wrong_layer_is_rejected(wrong: dict[str, Any]) -> None:
    def other(case: Case, xs: Tensors, w: Any) -> Tensors:
        case.layer = case_of("attention", {"heads": 4, **wrong}, (TOKENS,)).layer
        return _attention(case, xs, w)

    with pytest.raises(AssertionError):
        _check(case_of("attention", {"heads": 4}, (TOKENS,)), other)


# -- sizes, scale, hostile input -----------------------------------------------------------------------


def shaped(*shapes: tuple[Any, Any], op: str = "attention", **fields: Any) -> Network:
    net = Network("shapes")
    xs = [net.input(f"x{k}", channels, positions) for k, (channels, positions) in enumerate(shapes)]
    net.apply(op, *xs, name="layer", **fields)
    return net


@pytest.mark.parametrize(("net", "words"), [
    (shaped((10, 4), (10, 4), (10, 4), heads=4), "10 channels do not divide into 4 heads"),
    (shaped((8, 4), (12, 4), (8, 4), heads=4), "queries have 8 channels, keys 12"),
    (shaped((8, 4), (8, 5), (8, 4), heads=4), "5 keys and 4 values"),
    (shaped((8, 4), (8, 5), (8, 5), heads=4, causal=True), "causal, with 4 queries and 5 keys"),
    (shaped((8, ()), (8, ()), (8, ()), heads=4), "attention needs 1 to 3 position axes"),
    (shaped((4, (2,) * 4), (4, (2,) * 4), (4, (2,) * 4), heads=2), "attention needs 1 to 3 position axes"),
    (shaped((9, 4), op="softmax", heads=4), "9 channels do not divide into 4 heads"),
    (shaped((12, 4), (8, 4), op="blend", heads=4), "weights of 12 channels for 4 heads and 4 tokens"),
    (shaped((8, 4), op="self_attention", heads=4, value_channels=6), "6 channels do not divide into 4 heads"),
    (shaped((8, 4), (8, 4)), "takes 3 input"),
])
def test_sizes_that_do_not_fit(net: Network, words: str) -> None:
    with pytest.raises(VarflowError, match=words):
        infer_shapes(net)


@pytest.mark.parametrize("fields", [{"heads": 0}, {"heads": "1/2"}, {"heads": -4}, {"causal": 1}, {"scale": "d_k("},
                                    {"scale": "__import__('os')"}, {"scale": "9**9**9**9"}, {"scale": float("nan")},
                                    {"head": 4}, {"heads": "a[0]"}])
def test_fields_that_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        shaped((8, 4), (8, 4), (8, 4), **fields)


def test_symbols_stand_for_sizes() -> None:
    net = shaped(("h*d", "T"), ("h*d", "T"), ("h*d", "T"), heads="h", scale="2/d_k")
    step = next(s for s in lower(net) if isinstance(s.primitive, Scores))
    assert str(step.shape) == "(T, T*h)"
    assert "d_k" not in net.symbols
    assert "d_k" not in {s.name for step in lower(net) for s in getattr(step.primitive, "expr", sp.S.Zero).free_symbols}


def test_self_attention_is_its_parts() -> None:
    whole, parts = Network("whole"), Network("parts")
    whole.self_attention(whole.input("x", 24, (4,)), heads=3, name="layer", key_channels=12, **KNOWN)
    x = parts.input("x", 24, (4,))

    def project(name: str, h: Handle, out: int) -> Handle:
        return parts.linear(h, out, name=f"layer.{name}", variance="1/fan_in")

    y = parts.attention(project("query", x, 12), project("key", x, 12), project("value", x, 24), heads=3)
    project("output", y, 24)
    one, other = lower(whole), lower(parts)
    assert [(s.primitive, s.args, s.shape) for s in one] == [(s.primitive, s.args, s.shape) for s in other]
    assert one.weights == other.weights
