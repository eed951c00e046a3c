"""Every layer's lowering against PyTorch's layer on the same numbers, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import sympy as sp

from tests.reference_interpreter import Given, draw, interpret, weight_gradient
from varflow.activations import ACTIVATIONS
from varflow.errors import UnsupportedError
from varflow.lowering import lower
from varflow.network import Network
from varflow.ops import OPS
from varflow.ops.base import Op
from varflow.program import Mask, Program

torch: Any = pytest.importorskip("torch")
F = torch.nn.functional

CHANNELS, SAMPLES = 192, 8
Layer = Any
Tensors = list[Any]


class Case:
    """A network of one layer, lowered, with everything random in it drawn."""

    def __init__(self, op: str, fields: dict[str, Any], positions: tuple[int, ...], inputs: int,
                 channels: int = CHANNELS) -> None:
        self.net = Network(op)
        xs = [self.net.input(f"x{i}", channels, positions, mean="1/4") for i in range(inputs)]
        self.net.apply(op, *xs, name="layer", **fields)
        self.layer: Layer = self.net.node("layer")
        self.program: Program = lower(self.net)
        self.given: Given = draw(self.program, SAMPLES, np.random.default_rng(1))

    def tensor(self, table: str, name: str) -> Any:
        return torch.tensor(getattr(self.given, table)[name], requires_grad=True)

    def number(self, name: str) -> float:
        return float(getattr(self.layer, name))


# -- PyTorch's side: (case, inputs of samples x positions x channels, weight) -> outputs ---------------------


def _linear(case: Case, xs: Tensors, weight: Any) -> Tensors:
    bias = case.given.biases.get("layer.bias")
    w = weight.T if case.layer.transpose else weight
    return [F.linear(xs[0], w, None if bias is None else torch.tensor(bias))]


def _bias(case: Case, xs: Tensors, _: Any) -> Tensors:
    return [xs[0] + torch.tensor(case.given.biases["layer.bias"])]


def _activation(case: Case, xs: Tensors, _: Any) -> Tensors:
    named = {name: a.expression for name, a in ACTIVATIONS.items()}
    function = case.layer.function
    known = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}
    for name, torch_function in known.items():
        if function == named[name]:
            return [torch_function(xs[0])]
    assert str(function) == "x*erf(x)", f"no counterpart of {function}"
    return [xs[0] * torch.erf(xs[0])]


def _gate(case: Case) -> Callable[[Any], Any]:
    """PyTorch's function of a layer's ``function``."""
    known: dict[str, Callable[[Any], Any]] = {"sigmoid": torch.sigmoid, "silu": F.silu,
                                              "identity": lambda x: x, "relu": F.relu, "elu": F.elu}
    return next(f for name, f in known.items() if ACTIVATIONS[name].at() == case.layer.function)


def _glu(case: Case, xs: Tensors, _: Any) -> Tensors:
    if case.layer.function == ACTIVATIONS["sigmoid"].expression:
        return [F.glu(xs[0], dim=2)]
    a, b = xs[0].chunk(2, dim=2)
    return [a * _gate(case)(b)]


def _add(case: Case, xs: Tensors, _: Any) -> Tensors:
    weights = case.layer.weights or (1,) * len(xs)
    return [sum(float(w) * x for w, x in zip(weights, xs, strict=True))]


def _batch_norm(case: Case, xs: Tensors, _: Any) -> Tensors:
    x = xs[0].transpose(1, 2)
    ones = torch.ones(x.shape[1], dtype=x.dtype)
    y = F.batch_norm(x, None, None, case.number("gamma") * ones, case.number("beta") * ones, training=True,
                     eps=max(case.number("eps"), 1e-13))
    return [y.transpose(1, 2)]


def _layer_norm(case: Case, xs: Tensors, _: Any) -> Tensors:
    ones = torch.ones(xs[0].shape[2], dtype=xs[0].dtype)
    return [F.layer_norm(xs[0], ones.shape, case.number("gamma") * ones, case.number("beta") * ones,
                         case.number("eps"))]


def _rms_norm(case: Case, xs: Tensors, _: Any) -> Tensors:
    ones = torch.ones(xs[0].shape[2], dtype=xs[0].dtype)
    return [F.rms_norm(xs[0], ones.shape, case.number("gamma") * ones, case.number("eps"))]


def _dropout(case: Case, xs: Tensors, _: Any) -> Tensors:
    torch.manual_seed(3)
    p = case.number("p")
    kept = F.dropout(torch.ones_like(xs[0]), p) != 0
    _set_mask(case, kept.double().numpy())
    torch.manual_seed(3)
    return [F.dropout(xs[0], p) * (1 if case.layer.inverted else 1 - p)]


def _drop_path(case: Case, xs: Tensors, _: Any) -> Tensors:
    mask = torch.tensor(next(iter(case.given.masks.values())))
    return [xs[0] * mask.reshape(-1, 1, 1) / (1 - case.number("p") if case.layer.inverted else 1)]


def _set_mask(case: Case, mask: Any) -> None:
    for step in case.program:
        if isinstance(step.primitive, Mask):
            case.given.masks[step.primitive.name] = mask


def _split(case: Case, xs: Tensors, _: Any) -> Tensors:
    return list(torch.split(xs[0], [int(s) for s in case.layer.sizes], dim=2))


def _permute(case: Case, xs: Tensors, _: Any) -> Tensors:
    return [torch.index_select(xs[0], 2, torch.tensor(case.given.permutations["layer"]))]


def _reshape(case: Case, xs: Tensors, _: Any) -> Tensors:
    places = int(sp.Mul(*case.layer.positions))
    return [xs[0].transpose(1, 2).reshape(len(xs[0]), int(case.layer.channels), places).transpose(1, 2)]


COUNTERPARTS: dict[str, Callable[[Case, Tensors, Any], Tensors]] = {
    "linear": _linear,
    "bias": _bias,
    "activation": _activation,
    "add": _add,
    "subtract": lambda case, xs, w: [torch.subtract(*xs)],
    "glu": _glu,
    "maxout": lambda case, xs, w: [xs[0].unflatten(2, (int(case.layer.k), -1)).amax(dim=2)],
    "crelu": lambda case, xs, w: [torch.cat([_gate(case)(s * xs[0]) for s in (1, -1)], dim=2)],
    "multiply": lambda case, xs, w: [torch.stack(xs).prod(dim=0)],
    "scale": lambda case, xs, w: [torch.mul(xs[0], case.number("factor"))],
    "identity": lambda case, xs, w: [torch.nn.Identity()(xs[0])],
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "batch_norm": _batch_norm,
    "dropout": _dropout,
    "drop_path": _drop_path,
    "concat": lambda case, xs, w: [torch.cat(xs, dim=2)],
    "split": _split,
    "permute": _permute,
    "flatten": lambda case, xs, w: [torch.nn.Flatten()(xs[0].transpose(1, 2))[:, None, :]],
    "reshape": _reshape,
    "expand": lambda case, xs, w: [xs[0].expand(-1, int(sp.Mul(*case.layer.positions)), -1)],
    "mean_pool": lambda case, xs, w: [F.adaptive_avg_pool1d(xs[0].transpose(1, 2), 1).transpose(1, 2)],
}

POSITIONS: dict[str, tuple[tuple[int, ...], ...]] = {"mean_pool": ((4,), (2, 3)), "flatten": ((4,), (2, 3)),
                                                     "expand": ((),)}
"""Position axes of the inputs a layer is tried with; none, and one of three, unless stated."""


def _counts(op: type[Op], fields: dict[str, Any]) -> tuple[int, ...]:
    least, most = op.arity
    if "weights" in fields:
        return (len(fields["weights"]),)
    return tuple(range(max(least, 2), 4)) if most is None else (least,)


def _examples() -> Iterator[Any]:
    for name, op in ((name, OPS[name]) for name in OPS if name in COUNTERPARTS):
        for k, fields in enumerate(op.examples):
            for positions in POSITIONS.get(name, ((), (3,) if name != "reshape" else ())):
                for inputs in _counts(op, dict(fields)):
                    yield pytest.param(name, dict(fields), positions, inputs, CHANNELS,
                                       id=f"{name}-{k}-{positions}-{inputs}")
    yield pytest.param("reshape", {"channels": 48, "positions": (4,)}, (2,), 1, 96, id="reshape-regroups")
    yield pytest.param("reshape", {"channels": 192}, (2, 2), 1, 48, id="reshape-flattens")
    yield pytest.param("linear", {"out_channels": 64, "weight": "W", "transpose": True}, (3,), 1, CHANNELS,
                       id="linear-transpose")
    yield pytest.param("batch_norm", {"batch": 8, "eps": "1/10", "gamma": "3/2", "beta": "1/2"}, (3,), 1,
                       CHANNELS, id="batch_norm-affine")
    yield pytest.param("rms_norm", {"eps": "1/10", "gamma": "3/2"}, (3,), 1, CHANNELS, id="rms_norm-affine")
    yield pytest.param("layer_norm", {"eps": "1/10"}, (), 1, CHANNELS, id="layer_norm-eps")


def _close(ours: Any, theirs: Any, tolerance: float) -> None:
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=tolerance, atol=tolerance)


def _bound(op: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Fields with every unknown given: a linear layer without variance gets one."""
    return {"variance": "1/fan_in", **fields} if op == "linear" else fields


def _check(case: Case, outputs_of: Callable[[Case, Tensors, Any], Tensors], tolerance: float = 1e-9) -> None:
    """Outputs and gradients agree; where no gradient reaches an input, PyTorch's is zero."""
    xs = [case.tensor("inputs", name) for name in case.given.inputs]
    weights = {name: case.tensor("weights", name) for name in case.given.weights}
    outputs = outputs_of(case, xs, next(iter(weights.values()), None))
    values = interpret(case.program, case.given)
    for value, output in zip(case.program.outputs, outputs, strict=True):
        _close(values[value], output, tolerance)
    cotangents = [torch.tensor(c) for c in case.given.cotangents.values()]
    torch.autograd.backward(outputs, cotangents)
    for name, x in zip(case.given.inputs, xs, strict=True):
        reached = case.program.gradients.get(name)
        _close(np.zeros(x.shape) if reached is None else values[reached], x.grad, tolerance)
    for name, w in weights.items():
        _close(weight_gradient(case.program, values, name), w.grad, tolerance)


@pytest.mark.parametrize(("op", "fields", "positions", "inputs", "channels"), list(_examples()))
def test_lowering_is_the_torch_layer(
    op: str, fields: dict[str, Any], positions: tuple[int, ...], inputs: int, channels: int
) -> None:
    _check(Case(op, _bound(op, fields), positions, inputs, channels), COUNTERPARTS[op])


def test_every_layer_has_a_counterpart() -> None:
    from tests.test_lowerings_attention import COUNTERPARTS as OF_TOKENS
    from tests.test_lowerings_conv import COUNTERPARTS as OVER_POSITIONS

    assert set(OPS) == set(COUNTERPARTS) | set(OVER_POSITIONS) | set(OF_TOKENS)


def _torch_activation(dotted: str) -> Callable[..., Any]:
    found: Any = torch
    for part in dotted.split("."):
        found = getattr(found, part)
    function: Callable[..., Any] = found().double() if isinstance(found, type) else found
    return function


@pytest.mark.parametrize("name", [n for n, a in ACTIVATIONS.items() if a.torch])
def test_activation_is_the_torch_function(name: str) -> None:
    """PyTorch's hardsigmoid multiplies gradients by 1/6 in single precision."""
    function = _torch_activation(str(ACTIVATIONS[name].torch))
    _check(Case("activation", {"function": name}, (), 1), lambda case, xs, w: [function(xs[0])],
           1e-7 if name == "hardsigmoid" else 1e-9)


def test_a_wrong_layer_is_rejected() -> None:
    case = Case("activation", {"function": "gelu"}, (), 1)
    with pytest.raises(AssertionError):
        _check(case, lambda case, xs, w: [F.gelu(xs[0], approximate="tanh")])


def test_shared_and_transposed_weights_backward() -> None:
    """y = W^T tanh(W x) + W^T x: gradients sum over uses, and over nodes that read one value."""
    net = Network("tied")
    x = net.input("x", 32)
    h = net.activation(net.linear(x, 32, weight="W", variance="1/32"), "tanh")
    a = net.linear(h, 32, weight="W", transpose=True, variance="1/32")
    net.add(a, net.linear(x, 32, weight="W", transpose=True, variance="1/32"), name="layer")
    case = Case.__new__(Case)
    case.program = lower(net)
    case.given = draw(case.program, SAMPLES, np.random.default_rng(2))
    _check(case, lambda case, xs, w: [torch.tanh(xs[0] @ w.T) @ w + xs[0] @ w])


def test_outputs_read_by_other_nodes_get_both_gradients() -> None:
    """A block of split halves, one gating the other, permuted and joined."""
    net = Network("gates")
    x = net.input("x", 32)
    a, b = net.split(x, 12, 20)
    c, d = net.split(net.permute(x, permutation="P"), 12, 20)
    net.concat(net.multiply(a, c), net.activation(net.add(b, d), "tanh"), name="layer")
    case = Case.__new__(Case)
    case.program = lower(net)
    case.given = draw(case.program, SAMPLES, np.random.default_rng(2))
    order = torch.tensor(case.given.permutations["P"])

    def reference(case: Case, xs: Tensors, w: Any) -> Tensors:
        y = xs[0][..., order]
        return [torch.cat([xs[0][..., :12] * y[..., :12], torch.tanh(xs[0][..., 12:] + y[..., 12:])], dim=2)]

    _check(case, reference)


def test_unknown_transpose_is_refused() -> None:
    from varflow.program import Instruction, Lowering, Primitive, Shape
    from varflow.transpose import _pull_back_linear

    program = Program([Instruction(Primitive(), (0,), Shape(sp.Integer(1)), "odd")])
    with pytest.raises(UnsupportedError):
        _pull_back_linear(Lowering(program), program.instructions[0], 0)
