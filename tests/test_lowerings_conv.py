"""Layers over positions against PyTorch's on the same numbers, forward and backward: 1, 2 and 3 axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import sympy as sp

from tests.reference_interpreter import interpret, weight_gradient
from tests.test_lowerings import Case, _close
from varflow.errors import InputError, ShapeError, UnsupportedError, VarflowError
from varflow.lowering import infer_shapes, lower
from varflow.network import Network
from varflow.ops import OPS

torch: Any = pytest.importorskip("torch")
F = torch.nn.functional
CHANNELS = 16
Tensor = Any
Weights = Mapping[str, Tensor]


# -- PyTorch's side: (case, input of samples x channels x positions, weights) -> output ----------------------


def kernel_of(case: Case, w: Tensor, axes: int) -> Tensor:
    """A weight of taps x rows x columns (rows x columns at one tap) as PyTorch holds it."""
    kernel = getattr(case.layer, "kernel", (1,))
    kernel = kernel * axes if len(kernel) == 1 else kernel
    w = w[None] if w.dim() == 2 else w
    return w.permute(1, 2, 0).reshape(*w.shape[1:], *kernel)


def bias_of(case: Case, name: str = "layer.bias") -> Tensor | None:
    bias = case.given.biases.get(name)
    return None if bias is None else torch.tensor(bias)


def _groups(case: Case, x: Tensor) -> int:
    return x.shape[1] if case.layer.name == "depthwise_conv" else int(case.layer.groups)


def _module(case: Case, x: Tensor, w: Tensor, stride: Any = None) -> Tensor:
    """torch.nn.ConvNd with the layer's fields, its weight ours."""
    axes, layer = x.dim() - 2, case.layer
    kind = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[axes - 1]
    padding = getattr(layer, "padding", (0,))
    kernel = kernel_of(case, w, axes)
    module: Any = kind(x.shape[1], len(kernel), kernel.shape[2:], _one(layer.stride), _one(padding),
                  _one(getattr(layer, "dilation", (1,))), _groups(case, x), bias=False,
                  padding_mode=getattr(layer, "padding_mode", "zeros"), dtype=torch.float64)
    del module.weight
    module.weight = kernel
    y = module(x)
    bias = bias_of(case)
    return y if bias is None else y + bias.reshape(-1, *[1] * axes)


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def _conv(case: Case, x: Tensor, weights: Weights) -> Tensor:
    return _module(case, x, weights["layer"])


def _separable(case: Case, x: Tensor, weights: Weights) -> Tensor:
    layer, axes = case.layer, x.dim() - 2
    f = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    depthwise = kernel_of(case, weights["layer.depthwise"], axes)
    x = f(x, depthwise, None, layer.stride, _one(layer.padding), layer.dilation, x.shape[1])
    return f(x, weights["layer.pointwise"].reshape(-1, x.shape[1], *[1] * axes), bias_of(case))


def _conv_transpose(case: Case, x: Tensor, weights: Weights) -> Tensor:
    layer, axes = case.layer, x.dim() - 2
    f = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    return f(x, kernel_of(case, weights["layer"], axes), bias_of(case), layer.stride, layer.padding,
             layer.output_padding, int(layer.groups), layer.dilation)


def _max_pool(case: Case, x: Tensor, _: Weights) -> Tensor:
    layer = case.layer
    f = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.dim() - 3]
    return f(x, layer.kernel, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)


def _avg_pool(case: Case, x: Tensor, _: Weights) -> Tensor:
    layer = case.layer
    f = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.dim() - 3]
    return f(x, layer.kernel, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad)


def _adaptive(case: Case, x: Tensor, _: Weights) -> Tensor:
    average = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    largest = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
    f = (average if case.layer.name == "adaptive_avg_pool" else largest)[x.dim() - 3]
    return f(x, _one(tuple(int(s) for s in case.layer.output_size)))


def _upsample(case: Case, x: Tensor, _: Weights) -> Tensor:
    scale: Any = tuple(float(s) for s in case.layer.scale)
    scale = scale * (x.dim() - 2) if len(scale) == 1 else scale
    if case.layer.mode == "nearest":
        return torch.nn.Upsample(scale_factor=scale, mode="nearest")(x)
    mode = ("linear", "bilinear", "trilinear")[x.dim() - 3]
    return torch.nn.Upsample(scale_factor=scale, mode=mode, align_corners=False)(x)


def _pad(case: Case, x: Tensor, _: Weights) -> Tensor:
    layer, axes = case.layer, x.dim() - 2
    after = layer.before if layer.after is None else layer.after
    before, after = (v * axes if len(v) == 1 else v for v in (layer.before, after))
    sides = [n for pair in reversed(list(zip(before, after, strict=True))) for n in pair]
    return F.pad(x, sides, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)


def _crop(case: Case, x: Tensor, _: Weights) -> Tensor:
    after = case.layer.before if case.layer.after is None else case.layer.after
    for axis, size in enumerate(x.shape[2:]):
        low, high = (int(v[0] if len(v) == 1 else v[axis]) for v in (case.layer.before, after))
        x = x.narrow(axis + 2, low, size - low - high)
    return x


def _affine(case: Case, x: Tensor) -> tuple[Tensor, Tensor]:
    ones = torch.ones(x.shape[1], dtype=x.dtype)
    return case.number("gamma") * ones, case.number("beta") * ones


def _group_norm(case: Case, x: Tensor, _: Weights) -> Tensor:
    return F.group_norm(x, int(case.layer.groups), *_affine(case, x), eps=case.number("eps"))


def _instance_norm(case: Case, x: Tensor, _: Weights) -> Tensor:
    gamma, beta = _affine(case, x)
    return F.instance_norm(x, weight=gamma, bias=beta, eps=max(case.number("eps"), 1e-14))


def _batch_norm(case: Case, x: Tensor, _: Weights) -> Tensor:
    return F.batch_norm(x, None, None, *_affine(case, x), training=True, eps=max(case.number("eps"), 1e-14))


def _layer_norm(case: Case, x: Tensor, _: Weights) -> Tensor:
    """Channels last, as ConvNeXt does."""
    gamma, beta = _affine(case, x)
    return F.layer_norm(x.movedim(1, -1), gamma.shape, gamma, beta, case.number("eps")).movedim(-1, 1)


def _squeeze_excite(case: Case, x: Tensor, weights: Weights) -> Tensor:
    silu = case.layer.squeeze_channels is not None
    act, gate = (F.silu, lambda z: F.relu6(z + 3) / 6) if silu else (F.relu, torch.sigmoid)
    h = x.flatten(2).mean(dim=2)
    h = act(F.linear(h, weights["layer.squeeze"], bias_of(case, "layer.squeeze.bias")))
    gates = gate(F.linear(h, weights["layer.excite"], bias_of(case, "layer.excite.bias")))
    return x * gates.reshape(*gates.shape, *[1] * (x.dim() - 2))


COUNTERPARTS: dict[str, Callable[[Case, Tensor, Weights], Tensor]] = {
    "conv": _conv,
    "depthwise_conv": _conv,
    "pointwise_conv": _conv,
    "separable_conv": _separable,
    "conv_transpose": _conv_transpose,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": _adaptive,
    "adaptive_max_pool": _adaptive,
    "upsample": _upsample,
    "pixel_shuffle": lambda case, x, w: torch.nn.PixelShuffle(case.layer.upscale_factor[0])(x),
    "pixel_unshuffle": lambda case, x, w: torch.nn.PixelUnshuffle(case.layer.downscale_factor[0])(x),
    "pad": _pad,
    "crop": _crop,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "squeeze_excite": _squeeze_excite,
}
IMAGES = {"pixel_shuffle", "pixel_unshuffle"}
"""Layers that PyTorch has for images alone."""
AGAIN = {"batch_norm": _batch_norm, "layer_norm": _layer_norm}
"""Layers with other tests, here on images."""

CONV = {"out_channels": 12, "kernel": 3, "variance": "2/fan_in"}
UP = {"out_channels": 12, "variance": "2/fan_in"}
GEOMETRY = ("kernel", "stride", "padding", "output_padding", "dilation", "groups")
MORE: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
    *(("conv", {**CONV, "padding": 2, "padding_mode": mode, "stride": s}, (7, 5)) for s in (1, 2)
      for mode in ("zeros", "circular", "reflect", "replicate")),
    *(("conv", {**CONV, "padding": "same", "dilation": 2, "kernel": k, "padding_mode": mode}, (8, 9)) for k in (2, 3)
      for mode in ("zeros", "circular")),
    ("conv", {**CONV, "stride": 2, "padding": 1, "dilation": 2, "groups": 4, "bias": "1/10"}, (9,)),
    ("conv", {**CONV, "kernel": (1, 5), "padding": (0, 2), "stride": (2, 1)}, (6, 7)),
    ("conv", {**CONV, "kernel": (2, 3, 1), "padding": (1, 0, 0), "stride": (1, 2, 1), "groups": 2}, (3, 5, 4)),
    ("conv", {**CONV, "padding": 1, "padding_mode": "reflect"}, (3, 4, 5)),
    ("conv", {**CONV, "kernel": 7, "stride": 2, "padding": 3}, (4, 4)),
    ("depthwise_conv", {"kernel": 3, "stride": 2, "padding": 1, "variance": "2/fan_in"}, (5,)),
    ("depthwise_conv", {"kernel": 5, "padding": "same", "multiplier": 3, "variance": "2/fan_in"}, (6, 6)),
    ("separable_conv", {"out_channels": 12, "kernel": 3, "stride": 2, "padding": 1, "depthwise_variance": "1/9",
                        "variance": "1/fan_in", "bias": "1/10"}, (5, 6)),
    *(("conv_transpose", {**UP, **dict(zip(GEOMETRY, numbers, strict=True))}, (4, 3)) for numbers in (
        (4, 2, 1, 0, 1, 1), (3, 2, 1, 1, 1, 2), (3, 3, 0, 2, 2, 4), (2, 2, 0, 0, 1, 1), (5, 1, 2, 0, 1, 1),
        (1, 2, 0, 1, 1, 1))),
    ("conv_transpose", {**UP, "kernel": 4, "stride": 2, "padding": 1, "bias": "1/10"}, (5,)),
    ("conv_transpose", {**UP, "kernel": (2, 3, 1), "stride": (2, 1, 1), "output_padding": (1, 0, 0)}, (2, 3, 4)),
    ("max_pool", {"kernel": 3, "stride": 2, "padding": 1}, (7,)),
    ("max_pool", {"kernel": (2, 3), "stride": (1, 2), "dilation": (2, 1)}, (6, 7)),
    ("max_pool", {"kernel": 2}, (4, 5, 2)),
    ("avg_pool", {"kernel": 3, "stride": 2, "padding": 1, "count_include_pad": False}, (7,)),
    ("avg_pool", {"kernel": (2, 3), "stride": 1, "padding": (1, 0), "count_include_pad": False}, (5, 6)),
    ("avg_pool", {"kernel": 2}, (4, 5, 2)),
    ("avg_pool", {"kernel": 3, "stride": 2, "padding": 1, "ceil_mode": True}, (6,)),
    ("adaptive_avg_pool", {"output_size": 3}, (6,)),
    ("adaptive_avg_pool", {"output_size": (2, 4)}, (6, 4)),
    ("adaptive_avg_pool", {"output_size": (6, 4)}, (6, 4)),
    ("adaptive_avg_pool", {"output_size": (1, 2, 1)}, (2, 4, 3)),
    *(("upsample", {"scale": s, "mode": mode}, positions) for mode in ("nearest", "bilinear")
      for s, positions in ((2, (3,)), (3, (4, 2)), ((4, 2), (2, 3)), ((1, 5), (3, 3)), ((2, 3, 1), (2, 2, 3)))),
    ("upsample", {"scale": 2, "mode": "bilinear"}, (1, 4)),
    ("pixel_shuffle", {"upscale_factor": 4}, (2, 3)),
    ("pixel_unshuffle", {"downscale_factor": 3}, (6, 3)),
    *(("pad", {"before": (2, 0), "after": (1, 3), "padding_mode": mode}, (4, 5))
      for mode in ("zeros", "circular", "reflect", "replicate")),
    ("crop", {"before": (2, 0), "after": (1, 3)}, (5, 6)),
    ("group_norm", {"groups": 1, "eps": "1/10"}, (3, 2)),
    ("group_norm", {"groups": 4}, ()),
    ("instance_norm", {"eps": "1/10", "gamma": "3/2", "beta": "1/2"}, (3, 4)),
    ("batch_norm", {"batch": 8, "gamma": "3/2", "beta": "1/2"}, (3, 4)),
    ("layer_norm", {"gamma": "3/2", "beta": "1/2"}, (3, 4)),
)


def _cases() -> Iterator[Any]:
    for name in COUNTERPARTS:
        for k, fields in enumerate(OPS[name].examples):
            places: tuple[tuple[int, ...], ...] = ((8, 8),) if name in IMAGES else ((8,), (8, 8))
            for positions in places:
                size = {**fields, "output_size": 1} if name == "adaptive_avg_pool" and len(positions) == 1 else fields
                yield pytest.param(name, dict(size), positions, id=f"{name}-example{k}-{positions}")
    for k, (name, given, positions) in enumerate(MORE):
        yield pytest.param(name, given, positions, id=f"{name}-{k}")


def check(case: Case, positions: tuple[int, ...], layer: Callable[[Case, Tensor, Weights], Tensor]) -> None:
    """Output, and gradients of the input and of every weight, are PyTorch's."""
    flat = case.tensor("inputs", "x0")
    weights = {name: case.tensor("weights", name) for name in case.given.weights}
    x = flat.transpose(1, 2).reshape(len(flat), -1, *positions)
    y = layer(case, x, weights)
    values = interpret(case.program, case.given)
    shape = infer_shapes(case.net)["layer"][0]
    assert tuple(y.shape[2:]) == tuple(int(p) for p in shape.positions)
    output = y.reshape(*y.shape[:2], -1).transpose(1, 2)
    _close(values[case.program.outputs[0]], output, 1e-9)
    output.backward(torch.tensor(next(iter(case.given.cotangents.values()))))
    _close(values[case.program.gradients["x0"]], flat.grad, 1e-8)
    for name, w in weights.items():
        _close(weight_gradient(case.program, values, name), w.grad, 1e-8)


@pytest.mark.parametrize(("op", "fields", "positions"), list(_cases()))
def test_lowering_is_the_torch_layer(op: str, fields: dict[str, Any], positions: tuple[int, ...]) -> None:
    channels = 18 if fields.get("downscale_factor") == 3 else CHANNELS
    check(Case(op, fields, positions, 1, channels), positions, {**COUNTERPARTS, **AGAIN}[op])


@pytest.mark.parametrize("wrong", [{"stride": 2}, {"padding_mode": "circular"}, {"padding": 0}, {"groups": 2}])
def test_a_wrong_layer_is_rejected(wrong: dict[str, Any]) -> None:
    def other(case: Case, x: Tensor, weights: Weights) -> Tensor:
        case.layer = Case("conv", {**CONV, "padding": 1, **wrong}, (6, 6), 1, CHANNELS).layer
        return _conv(case, x, weights)

    with pytest.raises((AssertionError, RuntimeError)):
        check(Case("conv", {**CONV, "padding": 1}, (6, 6), 1, CHANNELS), (6, 6), other)


def test_one_weight_forward_and_transposed() -> None:
    """y = conv_transpose(tanh(conv(x))) with one weight: a tied convolutional autoencoder."""
    net = Network("tied")
    x = net.input("x0", 6, (7, 5))
    h = net.tanh(net.conv(x, 9, 3, padding=1, stride=2, weight="W", variance="1/fan_in"))
    net.conv_transpose(h, 6, 3, stride=2, padding=1, weight="W", variance="1/fan_in", name="layer")
    case = Case.__new__(Case)
    case.net, case.program, case.layer = net, lower(net), net.node("layer")
    from tests.reference_interpreter import draw

    case.given = draw(case.program, 3, np.random.default_rng(2))

    def tied(case: Case, x: Tensor, weights: Weights) -> Tensor:
        w = kernel_of(case, weights["W"], 2)
        return F.conv_transpose2d(torch.tanh(F.conv2d(x, w, None, 2, 1)), w, None, 2, 1)

    check(case, (7, 5), tied)
    assert (case.program.weights["W"].fan_in, case.program.weights["W"].fan_out) == (54, sp.Rational(81, 4))


# -- sizes and fans ----------------------------------------------------------------------------------


def one(op: str, channels: Any, positions: tuple[Any, ...], **fields: Any) -> tuple[Network, Any]:
    net = Network(op)
    net.apply(op, net.input("x", channels, positions), name="layer", **fields)
    return net, infer_shapes(net)["layer"][0]


def test_sizes_may_be_symbols() -> None:
    net = Network("images")
    m = net.symbol("m", integer=True, positive=True)
    x = net.input("x", "n", ("H", "W"))
    net.add(x, net.conv(x, "n", 3, padding=1))
    net.add(x, net.depthwise_conv(x, 5, padding="same"))
    halved = net.input("y", "n", (32 * m, 32 * m))
    for _ in range(5):
        halved = net.conv(halved, "k", 3, stride=2, padding=1)
    shapes = infer_shapes(net)
    assert shapes[halved.node][0].positions == (m, m)
    up = net.conv_transpose(net.max_pool(halved, 2), "k", 4, stride=2, padding=1)
    assert str(infer_shapes(net)[up.node][0].positions[0]) == "2*floor(m/2)"
    w = lower(net).weights
    n = net.symbols["n"]
    assert (w["conv_1"].fan_in, w["conv_1"].fan_out, w["depthwise_conv_1"].fan_in) == (9 * n, 9 * n, 25)


@pytest.mark.parametrize(("op", "fields", "fans"), [
    ("conv", {"out_channels": 24, "kernel": 3, "groups": 2, "stride": 2}, (9 * 8, sp.Rational(9 * 12, 4))),
    ("depthwise_conv", {"kernel": 3, "multiplier": 2}, (9, 18)),
    ("pointwise_conv", {"out_channels": 24}, (16, 24)),
    ("conv_transpose", {"out_channels": 24, "kernel": 4, "stride": 2}, (16 * 16 // 4, 16 * 24)),
])
def test_fans_count_what_is_connected(op: str, fields: dict[str, Any], fans: tuple[Any, Any]) -> None:
    w = lower(one(op, 16, (8, 8), **fields)[0]).weights["layer"]
    assert (w.fan_in, w.fan_out) == fans


def test_unknowns_are_named_and_bound() -> None:
    net = Network("separable")
    net.squeeze_excite(net.separable_conv(net.input("x", 32, (4, 4)), 64, 3, padding=1, name="sep"), name="se")
    names = {"sep.depthwise", "sep.pointwise", "se.squeeze", "se.excite"}
    assert {w.name for w in lower(net).weights.values() if w.unknown is not None} == names
    bound = lower(net.bind({"s_sep.depthwise": 2, "s_se.excite": 1})).weights
    assert bound["sep.depthwise"].variance == sp.Rational(2, 9) and bound["se.excite"].variance == sp.Rational(1, 4)
    assert bound["sep.pointwise"].unknown is not None


def test_normalized_weights() -> None:
    w = lower(one("conv", 16, (8, 8), out_channels=36, kernel=3, distribution="spectral")[0]).weights["layer"]
    assert w.unknown is None and w.variance == sp.Rational(1, (6 + 12) ** 2)
    for fields in ({"distribution": "weight_norm", "keep": "1/2"}, {"distribution": "spectral", "variance": 1},
                   {"distribution": "weight norm"}):
        with pytest.raises(InputError):
            one("conv", 16, (8, 8), out_channels=8, kernel=3, **fields)
    assert lower(one("linear", 16, (), out_channels=8, distribution="standardized")[0]).weights["layer"].unknown


@pytest.mark.parametrize(("op", "positions", "fields", "error"), [
    ("conv", (), {"out_channels": 8, "kernel": 3}, ShapeError),
    ("conv", (2, 2, 2, 2), {"out_channels": 8, "kernel": 1}, ShapeError),
    ("conv", (8, 8), {"out_channels": 8, "kernel": (3, 3, 3)}, ShapeError),
    ("conv", (8, 8), {"out_channels": 8, "kernel": 0}, InputError),
    ("conv", (8, 8), {"out_channels": 8, "kernel": "k"}, InputError),
    ("conv", (8, 8), {"out_channels": 8, "kernel": 3, "padding": "valid"}, VarflowError),
    ("conv", (8, 8), {"out_channels": 8, "kernel": 3, "padding": "same", "stride": 2}, InputError),
    ("conv", (8, 8), {"out_channels": 8, "kernel": 3, "groups": 3}, ShapeError),
    ("conv", (8, 8), {"out_channels": 8, "kernel": 3, "padding_mode": "mirror"}, InputError),
    ("conv", (2, 2), {"out_channels": 8, "kernel": 3}, ShapeError),
    ("conv_transpose", (4, 4), {"out_channels": 8, "kernel": 3, "stride": 2, "output_padding": 2}, ShapeError),
    ("max_pool", (8, 8), {"kernel": 2, "padding": 2}, ShapeError),
    ("adaptive_avg_pool", (7, 7), {"output_size": 0}, ShapeError),
    ("adaptive_max_pool", (7, "W"), {"output_size": 7}, UnsupportedError),
    ("max_pool", ("H",), {"kernel": 3, "stride": 2, "ceil_mode": True}, UnsupportedError),
    ("adaptive_avg_pool", ("H", "W"), {"output_size": 7}, UnsupportedError),
    ("upsample", (4, 4), {"scale": 2, "mode": "bicubic"}, InputError),
    ("pixel_shuffle", (4, 4), {"upscale_factor": 3}, ShapeError),
    ("pixel_unshuffle", (5, 4), {"downscale_factor": 2}, ShapeError),
    ("crop", (3, 3), {"before": 2, "after": 1}, ShapeError),
    ("group_norm", (4,), {"groups": 5}, ShapeError),
    ("instance_norm", (), {}, InputError),
    ("squeeze_excite", (4, 4), {"ratio": 5}, ShapeError),
])
def test_what_does_not_fit_is_said(op: str, positions: tuple[Any, ...], fields: dict[str, Any],
                                   error: type[VarflowError]) -> None:
    with pytest.raises(VarflowError) as caught:
        one(op, 16, positions, **fields)
    found = getattr(caught.value, "errors", [caught.value])
    assert any(isinstance(e, error) for e in found) and all(e.instead for e in found), caught.value


def test_fields_by_their_place() -> None:
    net = Network("places")
    x = net.input("x", 8, (8, 8))
    given: Any = net.node(net.conv(x, 4, 3, 2, padding=1).node)
    assert given.fields() == {"out_channels": 4, "kernel": (3,), "stride": (2,), "padding": (1,)}
    given = net.node(net.max_pool(x, 3, stride=2).node)
    assert given.fields() == {"kernel": (3,), "stride": (2,)}
    for op, places, fields in (("max_pool", (3,), {"kernel": 2}), ("upsample", (2, "nearest", 1), {}),
                               ("multiply", (3,), {})):
        with pytest.raises(InputError):
            getattr(net, op)(x, *places, **fields)


@pytest.mark.parametrize("distribution", ["standardized", "weight_norm", "spectral"])
def test_normalized_rows(distribution: str) -> None:
    """A drawn weight has the row lengths, row means or norm that its distribution states."""
    given = {"value": 3} if distribution == "spectral" else {"variance": "2/fan_in"}
    case = Case("conv", {"out_channels": 12, "kernel": 3, "distribution": distribution, **given}, (4, 4), 1, CHANNELS)
    w = kernel_of(case, torch.tensor(case.given.weights["layer"]), 2).flatten(1)
    if distribution == "spectral":
        assert float(torch.linalg.matrix_norm(w, 2)) == pytest.approx(3)
        return
    assert torch.allclose(w.square().sum(dim=1), torch.full((12,), 2.0, dtype=w.dtype))
    assert bool(w.mean(dim=1).abs().max() < 1e-12) is (distribution == "standardized")
