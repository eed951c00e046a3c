"""Every named activation against PyTorch's own, values and derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy as sp

from varflow.activations import ACTIVATIONS, Activation, parameter
from varflow.symbols import X

GRID = np.array(
    [-7.3, -3.2, -2.9, -1.7, -1.01, -0.6, -0.4, -1e-3, 1e-3, 0.3, 0.7, 1.3, 2.9, 3.1, 6.2]
)
SINGLE = 1e-7
OTHER = {"gelu_tanh", "prelu", "softplus"}
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
