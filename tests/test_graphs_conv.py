"""Published image networks: sizes, numbers of parameters, and values and gradients of two of them in PyTorch."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sympy as sp

from tests.reference_interpreter import Given, draw, interpret, weight_gradient
from varflow.errors import ShapeError, VarflowError
from varflow.load import from_text, load, to_text
from varflow.lowering import infer_shapes, lower
from varflow.network import Network
from varflow.program import Program
from varflow.verify_widths import scaled

torch: Any = pytest.importorskip("torch")
nn = torch.nn
SAMPLES, SIZE = 2, 64


def output(net: Network) -> Any:
    """Shape of the network's one output."""
    (handle,) = net.outputs()
    return infer_shapes(net)[handle.node][int(handle.port or 0)]


# -- sizes and parameters ----------------------------------------------------------------------------

COUNTS = {
    "vgg16": ({"m": 7}, 138_357_544),
    "resnet50": ({"size": 224}, 25_557_032),
    "densenet121": ({"size": 224}, 7_978_856),
    "mobilenet_v1": ({"size": 224}, 4_231_976),
    "mobilenet_v2": ({"size": 224}, 3_504_872),
    "efficientnet_b0": ({"size": 224}, 5_288_548),
    "convnext_tiny": ({"m": 7}, 28_589_128 - 6_624),  # its layer scale is one number here, not one for each channel
    "dcgan_generator": ({}, 3_576_704),
    "inception_block_concat": ({"s": 28}, 163_696),
}
"""What PyTorch's and Keras' own implementations count (moving averages of batch norms left out)."""


@pytest.mark.parametrize("name", COUNTS)
def test_parameters(name: str) -> None:
    values, count = COUNTS[name]
    assert load(name).bind(values).parameters() == count


def test_what_counts_as_a_parameter() -> None:
    net = Network("counted")
    x = net.input("x", "n", (4, 4))
    h = net.instance_norm(net.group_norm(net.conv(x, "m", 3, padding=1, bias=0, weight="W"), 2))
    net.rms_norm(net.conv_transpose(h, "n", 3, padding=1, weight="W"))
    n, m = net.symbols["n"], net.symbols["m"]
    assert net.parameters() == 9 * n * m + m + 2 * m + n


def test_parameters_of_repeats() -> None:
    net, count = load("residual_mlp"), load("residual_mlp").symbol("L")
    bound = net.bind({"L": 3})
    assert sp.expand(net.parameters().subs(count, 3) - bound.parameters()) == 0


@pytest.mark.parametrize(("name", "values", "shape"), [
    ("resnet50", {"size": 64}, "(1000)"),
    ("preact_resnet", {"size": 32}, "(10)"),
    ("inception_v3_stem", {"size": 299}, "(35, 35, 192)"),
    ("unet", {"c": 64, "m": 32}, "(512, 512, 2)"),
    ("dcgan_generator", {}, "(64, 64, 3)"),
    ("conv_autoencoder", {"c": 32, "m": 4}, "(32, 32, 3)"),
    ("conv_vae", {"c": 32, "m": 4, "d": 64}, "(32, 32, 3)"),
    ("nfnet_block", {"n": 512, "s": 8}, "(8, 8, 512)"),
])
def test_sizes(name: str, values: dict[str, int], shape: str) -> None:
    assert str(output(load(name).bind(values))) == shape


def test_a_size_of_any_parity() -> None:
    """The symbolic sizes of ResNet-50 are the numbers of the bound one."""
    net = load("resnet50")
    size = net.symbols["size"]
    for number in (64, 97, 224):
        bound = infer_shapes(net.bind({"size": number}))
        for name, shapes in infer_shapes(net).items():
            assert [s.positions for s in bound[name]] == [
                tuple(p.subs(size, number) for p in s.positions) for s in shapes], name


# -- blocks that grow --------------------------------------------------------------------------------

DENSE = """
name: dense
symbols: {n: {integer: true}, L: {integer: true}}
inputs: {x: {channels: n}}
nodes:
  - name: block
    op: block
    in: x
    repeat: 3
    inputs: {z: {}}
    nodes:
      - {name: fc, op: linear, in: z, out_channels: 4, variance: 1/fan_in}
      - {name: y, op: concat, in: [z, fc]}
"""


def test_a_block_may_grow() -> None:
    net = from_text(DENSE)
    n = net.symbols["n"]
    assert output(net).channels == n + 12
    assert [w.fan_in for w in lower(net).weights.values()] == [n, n + 4, n + 8]
    assert from_text(to_text(net)) == net
    with pytest.raises(VarflowError, match="the repeated block"):
        from_text(DENSE.replace("repeat: 3", "repeat: L"))
    body = Network("two")
    h = body.relu(body.input("z", "n"))
    body.output(h, body.tanh(h))
    outer = Network("outer")
    outer.block(body, outer.input("x", "n"), repeat=2)
    with pytest.raises((ShapeError, VarflowError)):
        infer_shapes(outer)


# -- PyTorch's own implementations -------------------------------------------------------------------


def norm(channels: int) -> Any:
    return nn.BatchNorm2d(channels, eps=1e-14)


class Bottleneck(nn.Module):  # type: ignore[misc, name-defined]
    """He et al. 2016, figure 5 right, the stride in the 3x3 convolution."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1, self.relu1 = nn.Conv2d(before, width, 1, bias=False), norm(width), nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm2, self.relu2 = norm(width), nn.ReLU()
        self.conv3, self.norm3, self.relu3 = nn.Conv2d(width, 4 * width, 1, bias=False), norm(4 * width), nn.ReLU()
        if before != 4 * width:
            self.conv_skip, self.norm_skip = nn.Conv2d(before, 4 * width, 1, stride, bias=False), norm(4 * width)

    def forward(self, x: Any) -> Any:
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.norm3(self.conv3(self.relu2(self.norm2(self.conv2(y)))))
        skip = self.norm_skip(self.conv_skip(x)) if hasattr(self, "conv_skip") else x
        return self.relu3(y + skip)


class Inverted(nn.Module):  # type: ignore[misc, name-defined]
    """Sandler et al. 2018, figure 4 (d)."""

    def __init__(self, before: int, expansion: int, after: int, stride: int) -> None:
        super().__init__()
        inner = before * expansion
        self.wide, self.residual = expansion > 1, stride == 1 and before == after
        if self.wide:
            self.expand, self.norm1, self.relu1 = nn.Conv2d(before, inner, 1, bias=False), norm(inner), nn.ReLU6()
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.norm2, self.relu2 = norm(inner), nn.ReLU6()
        self.project, self.norm3 = nn.Conv2d(inner, after, 1, bias=False), norm(after)

    def forward(self, x: Any) -> Any:
        y = self.relu1(self.norm1(self.expand(x))) if self.wide else x
        y = self.norm3(self.project(self.relu2(self.norm2(self.depthwise(y)))))
        return x + y if self.residual else y


def stages(blocks: dict[str, Any], name: str, first: Any, others: list[Any]) -> None:
    """Modules by the names of a file's blocks: one of its own, then equal ones."""
    blocks[f"{name}_first"] = first
    blocks.update({f"{name}[{k}]" if len(others) > 1 else name: block for k, block in enumerate(others)})


def resnet50() -> dict[str, Any]:
    layers: dict[str, Any] = {"conv1": nn.Conv2d(3, 64, 7, 2, 3, bias=False), "norm1": norm(64), "relu1": nn.ReLU(),
                              "pool1": nn.MaxPool2d(3, 2, 1)}
    before = 64
    for k, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        stages(layers, f"stage{k}", Bottleneck(before, width, 1 if k == 1 else 2),
               [Bottleneck(4 * width, width, 1) for _ in range(count - 1)])
        before = 4 * width
    return {**layers, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(2048, 1000)}


def mobilenet_v2() -> dict[str, Any]:
    layers: dict[str, Any] = {"conv0": nn.Conv2d(3, 32, 3, 2, 1, bias=False), "norm0": norm(32), "relu0": nn.ReLU6()}
    before = 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for k, (t, c, n, s) in enumerate(table, start=1):
        stages(layers, f"stage{k}", Inverted(before, t, c, s), [Inverted(c, t, c, 1) for _ in range(n - 1)])
        before = c
    return {**layers, "conv_last": nn.Conv2d(320, 1280, 1, bias=False), "norm_last": norm(1280),
            "relu_last": nn.ReLU6(), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "drop": Masked(),
            "fc": nn.Linear(1280, 1000)}


class Masked(nn.Module):  # type: ignore[misc, name-defined]
    """Dropout of rate 1/5 with a given mask."""

    mask: Any = None

    def forward(self, x: Any) -> Any:
        return x * self.mask / 0.8


def leaves(layers: dict[str, Any]) -> dict[str, Any]:
    """Every module without modules inside, by the name of the graph's node."""
    found = {}
    for name, module in layers.items():
        inner = dict(module.named_children())
        found.update({f"{name}.{k}": m for k, m in inner.items()} if inner else {name: module})
    return found


def copy_weights(modules: dict[str, Any], given: Given) -> None:
    """Weights of taps x rows x columns (or rows x columns) into modules of the same names."""
    for name, w in given.weights.items():
        entries = torch.tensor(w if w.ndim == 3 else w[None]).permute(1, 2, 0)
        modules[name].weight.data = entries.reshape(modules[name].weight.shape)
    for name, b in given.biases.items():
        modules[name.removesuffix(".bias")].bias.data = torch.tensor(b)


def agree(ours: Any, theirs: Any, name: str, tolerance: float = 1e-4) -> None:
    """Equal to ``tolerance`` of the module's root mean square."""
    theirs = theirs.detach().reshape(*theirs.shape[:2], -1).transpose(1, 2).numpy()
    scale = float(np.sqrt(np.mean(theirs**2)))
    assert 0 < scale < float("inf"), name
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale, err_msg=name)


def drawn(name: str) -> tuple[Program, Given]:
    program = lower(load(name).bind({"size": SIZE}))
    return program, draw(program, SAMPLES, np.random.default_rng(3))


@pytest.mark.parametrize(("name", "build"), [("resnet50", resnet50), ("mobilenet_v2", mobilenet_v2)])
def test_values_and_gradients_are_pytorchs(name: str, build: Any) -> None:
    layers = {k: m.double() for k, m in build().items()}
    modules = leaves(layers)
    assert sum(p.numel() for m in layers.values() for p in m.parameters()) == COUNTS[name][1]
    program, given = drawn(name)
    copy_weights(modules, given)
    for mask in given.masks.values():
        modules["drop"].mask = torch.tensor(mask).reshape(SAMPLES, -1)
    seen: dict[str, Any] = {}

    def keep(node: str) -> Any:
        def hook(module: Any, inputs: Any, y: Any) -> None:
            y.retain_grad()
            seen[node] = y
        return hook

    for node, module in modules.items():
        module.register_forward_hook(keep(node))
    x = torch.tensor(given.inputs["x"].transpose(0, 2, 1).reshape(SAMPLES, 3, SIZE, SIZE), requires_grad=True)
    y = x
    for module in layers.values():
        y = module(y)
    y.backward(torch.tensor(next(iter(given.cotangents.values()))[:, 0]))
    values = interpret(program, given)
    agree(values[program.gradients["x"]], x.grad, "x")
    for node in seen.keys() & program.values.keys():
        agree(values[program.values[node]], seen[node], node)
        agree(values[program.gradients[node]], seen[node].grad, f"gradient of {node}")
    assert len(seen.keys() & program.values.keys()) == len(modules) - 1
    for weight in [*program.weights][::9]:
        w = weight_gradient(program, values, weight)
        got = torch.tensor(w if w.ndim == 3 else w[None]).permute(1, 2, 0)
        grad = modules[weight].weight.grad.reshape(got.shape)
        assert float((got - grad).abs().max()) <= 1e-4 * float(grad.square().mean().sqrt()), weight


def test_another_stride_is_noticed() -> None:
    """With the stride in the first 1x1 convolution (the paper's own layout) the shapes agree, the values do not."""
    program = lower(load("resnet50").bind({"size": SIZE}), backward=False)
    given = draw(program, SAMPLES, np.random.default_rng(3))
    layers = {k: m.double() for k, m in resnet50().items()}
    copy_weights(leaves(layers), given)
    y = torch.tensor(given.inputs["x"].transpose(0, 2, 1).reshape(SAMPLES, 3, SIZE, SIZE))
    for name in ("conv1", "norm1", "relu1", "pool1", "stage1_first", "stage1[0]", "stage1[1]"):
        y = layers[name](y)
    value = interpret(program, given)[program.values["stage2_first.relu3"]]
    block = layers["stage2_first"]
    agree(value, block(y), "as it is")
    block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    with pytest.raises(AssertionError):
        agree(value, block(y), "stride moved")


# -- other widths ------------------------------------------------------------------------------------


def test_scales_stay_at_other_widths() -> None:
    """Half the channels, the same groups and ratios: fan_in Var of every weight stays, in blocks that grow too."""
    net = Network("wide")
    x = net.conv(net.input("x", 32, (8, 8)), 64, 3, padding=1, groups=4, variance="1/200", name="grouped")
    x = net.group_norm(net.squeeze_excite(x, ratio=4, excite_variance="1/50", name="se"), 8)
    x = net.separable_conv(x, 32, 3, stride=2, variance="2/fan_in", name="sep")
    body = Network("grow")
    z = body.input("z", 32, (3, 3))
    body.concat(z, body.conv(z, 16, 3, padding=1, name="conv"))
    net.pixel_shuffle(net.block(body, x, repeat=2, name="dense"), 2)
    net = net.bind({"s_sep.depthwise": 2, "s_se.squeeze": 2, "s_dense.conv": sp.Rational(3, 2)})
    program = lower(net)
    half = scaled(net, program, Fraction(1, 2)).program
    assert half.weights.keys() == program.weights.keys()
    for name, w in half.weights.items():
        before = program.weights[name]
        assert (w.rows, w.groups) == (before.rows / 2, before.groups / (2 if "depthwise" in name else 1))
        assert w.variance * w.fan_in == before.variance * before.fan_in, name
