"""Every named activation against PyTorch's own, values and derivatives."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy as sp

from varflow import activations, gated
from varflow.activations import ACTIVATIONS, Activation, parameter
from varflow.calculus import derivative
from varflow.errors import InputError
from varflow.gain import gain
from varflow.gated import GATED, read_gated
from varflow.symbols import X, arg

GRID = np.array(
    [-7.3, -3.2, -2.9, -1.7, -1.01, -0.6, -0.4, -1e-3, 1e-3, 0.3, 0.7, 1.3, 2.9, 3.1, 6.2]
)
SINGLE = 1e-7
OTHER = {"gelu_tanh", "prelu", "softplus", "rrelu", "threshold"}
BY_HAND: dict[str, Callable[[float], float]] = {
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "swish": lambda x: x / (1 + math.exp(-x)),
    "lecun_tanh": lambda x: 1.7159 * math.tanh(2 * x / 3),
    "siren": lambda x: math.sin(30 * x),
    "snake": lambda x: x + math.sin(x) ** 2,
    "gaussian": lambda x: math.exp(-x * x),
    "step": lambda x: float(x > 0),
    "relu_squared": lambda x: max(x, 0) ** 2,
    "relu_power": lambda x: max(x, 0) ** 3,
    "bent_identity": lambda x: (math.sqrt(x * x + 1) - 1) / 2 + x,
    "squareplus": lambda x: (x + math.sqrt(x * x + 4)) / 2,
}


def evaluated(expression: sp.Expr) -> np.ndarray:
    return np.array(
        [float(expression.xreplace({X: sp.Float(float(x), 30)}).evalf(20)) for x in GRID]
    )


def torch_function(activation: Activation) -> Any:
    torch = pytest.importorskip("torch")
    if activation.name == "gelu_tanh":
        return torch.nn.GELU(approximate="tanh")
    if activation.name == "rrelu":
        return torch.nn.RReLU().eval()
    if activation.name == "threshold":
        return torch.nn.Threshold(0.0, 0.0)
    if activation.name == "prelu":
        return torch.nn.PReLU(1, 0.25, dtype=torch.float64)
    if activation.name == "softplus":
        return torch.nn.Softplus(beta=1.0, threshold=1e3)
    path = (activation.torch or "").split(".")
    if path[0] == "nn":
        return getattr(torch.nn, path[1])(*(float(d) for _, d in activation.parameters))
    return getattr(torch, path[0])


@pytest.mark.parametrize("name", [n for n, a in ACTIVATIONS.items() if a.torch or n in OTHER])
def test_value_and_derivative_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    activation = ACTIVATIONS[name]
    x = torch.tensor(GRID, dtype=torch.float64, requires_grad=True)
    y = torch_function(activation)(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    expression = activation.at()
    derivative = expression.diff(X).replace(sp.DiracDelta, lambda *_: sp.Integer(0))
    np.testing.assert_allclose(evaluated(expression), y.detach().numpy(), rtol=1e-12, atol=1e-14)
    rtol = (
        SINGLE if name in ("hardsigmoid", "hardswish") else 1e-11
    )  # torch holds their 1/6 in float32
    np.testing.assert_allclose(evaluated(derivative), slope.numpy(), rtol=rtol, atol=1e-14)


@pytest.mark.parametrize("name", BY_HAND)
def test_value_without_torch(name: str) -> None:
    expected = [BY_HAND[name](float(x)) for x in GRID]
    np.testing.assert_allclose(evaluated(ACTIVATIONS[name].at()), expected, rtol=1e-12, atol=1e-14)


def test_every_activation_is_tested() -> None:
    tested = {n for n, a in ACTIVATIONS.items() if a.torch} | OTHER | set(BY_HAND)
    assert tested == set(ACTIVATIONS)


@pytest.mark.parametrize(
    ("name", "module", "values"),
    [
        ("leaky_relu", "LeakyReLU", (0.3,)),
        ("elu", "ELU", (1.7,)),
        ("celu", "CELU", (0.6,)),
        ("softplus", "Softplus", (2.5, 1e3)),
        ("hardtanh", "Hardtanh", (-2.0, 0.5)),
        ("threshold", "Threshold", (0.5, -1.5)),
        ("softshrink", "Softshrink", (0.9,)),
        ("hardshrink", "Hardshrink", (0.9,)),
    ],
)
def test_parameters_mean_what_they_mean_in_torch(name: str, module: str, values: tuple[float, ...]) -> None:
    torch = pytest.importorskip("torch")
    activation = ACTIVATIONS[name]
    bound = {
        n: sp.Rational(str(v)) for (n, _), v in zip(activation.parameters, values, strict=False)
    }
    y = getattr(torch.nn, module)(*values)(torch.tensor(GRID, dtype=torch.float64))
    np.testing.assert_allclose(
        evaluated(activation.at(X, bound)), y.numpy(), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_an_activation_is_exact_and_closed(activation: Activation) -> None:
    declared = {parameter(n) for n, _ in activation.parameters}
    assert activation.expression.free_symbols - {X} == declared
    assert not activation.expression.atoms(sp.Float)
    assert activation.at().free_symbols <= {X}
    assert activation.name.isidentifier()


def test_the_argument_and_the_parameters_are_put_in_at_once() -> None:
    alpha = parameter("alpha")
    assert ACTIVATIONS["snake"].at(alpha, {"alpha": X}) == alpha + sp.sin(X * alpha) ** 2 / X


def test_rrelu_of_training_has_torchs_random_slopes() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x = torch.randn(200_000, dtype=torch.float64)
    y = torch.nn.RReLU()(x).numpy()
    moments = gain("rrelu_training").numeric()
    for power, name in ((1, "mean"), (2, "second_moment")):
        error = (y**power).std() / math.sqrt(len(y))
        assert abs((y**power).mean() - moments[name]) < 5 * error
        assert error < 0.01


GATES: dict[str, Callable[[Any, Any], Any]] = {
    "bilinear": lambda F, x: x[:, 0] * x[:, 1],
    "glu": lambda F, x: F.glu(x, dim=1)[:, 0],
    "reglu": lambda F, x: x[:, 0] * F.relu(x[:, 1]),
    "geglu": lambda F, x: x[:, 0] * F.gelu(x[:, 1]),
    "swiglu": lambda F, x: x[:, 0] * F.silu(x[:, 1]),
    "maxout(2)": lambda F, x: x.amax(dim=1),
    "maxout(5)": lambda F, x: x.amax(dim=1),
    "max_pool(4)": lambda F, x: F.max_pool1d(x[:, None], 4)[:, 0, 0],
    "crelu": lambda F, x: F.relu(x),
    "concat_elu": lambda F, x: F.elu(x),
}


@pytest.mark.parametrize("name", GATES)
def test_functions_of_several_inputs_are_those_of_torch(name: str) -> None:
    """Values and the gradient at every input."""
    torch = pytest.importorskip("torch")
    call = read_gated(name)
    assert call is not None
    both_signs = len(call.outputs) == 2
    points = np.stack([np.roll(GRID, 4 * i) for i in range(call.inputs)], axis=1)
    for sign, output in zip((1, -1), call.outputs, strict=False):
        x = torch.tensor(sign * points, dtype=torch.float64, requires_grad=True)
        y = GATES[name](torch.nn.functional, x)
        (slopes,) = torch.autograd.grad(y.sum(), x)
        symbols = [arg(i) for i in range(call.inputs)]
        rows = [dict(zip(symbols, map(sp.Float, row), strict=True)) for row in points]
        ours = [float(output.xreplace(row)) for row in rows]
        np.testing.assert_allclose(ours, y.detach().numpy().ravel(), rtol=1e-12, atol=1e-14)
        for i, symbol in enumerate(symbols):
            slope = derivative(output, symbol)
            ours = [float(sp.N(slope.xreplace(row))) for row in rows]
            wanted = slopes.numpy()[:, i] * (sign if both_signs else 1)
            np.testing.assert_allclose(ours, wanted, rtol=1e-12, atol=1e-14)


def test_every_function_of_several_inputs_is_tested() -> None:
    assert {name.partition("(")[0] for name in GATES} | {"rrelu_training"} == set(GATED)
    assert not set(GATED) & set(ACTIVATIONS)


def test_data_take_at_most_eight_lines() -> None:
    for module in (activations, gated):
        tree = ast.parse(inspect.getsource(module))
        table = next(n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "_ALL")
        assert isinstance(table.value, ast.Tuple)
        for entry in table.value.elts:
            assert (entry.end_lineno or 0) - entry.lineno < 8, ast.unparse(entry)


@pytest.mark.parametrize(
    "text", ["swiglu(3)", "maxout(0)", "maxout(5/2)", "maxout(65)", "maxout(n=3)", "maxout(2, 3)"]
)
def test_wrong_parameters_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        read_gated(text)


def test_named_parameters() -> None:
    assert read_gated("maxout(k=3)") == read_gated(" maxout( 3 ) ")
    assert read_gated("x*tanh(x)") is None and read_gated("gelu") is None
