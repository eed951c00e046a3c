"""Normalized activations: published constants, closed forms, answers put back by other means."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import sympy as sp

import varflow as vf
from varflow.composition import Part
from varflow.errors import ExpressionError, InputError, SolveError, UnsupportedError
from varflow.symbols import X
from varflow.tailor import CONDITIONS, RECIPES, Constants, Normalization

PI = sp.pi


def resnet(weight: str) -> Part:
    """The residual network of the tests of DKS: 3, 4, 23 and 3 blocks of three layers."""
    first, other = vf.residual(vf.chain(3), weight, vf.LAYER), vf.residual(vf.chain(3), weight)
    blocks = [p for n in (3, 4, 23, 3) for p in (first, *[other] * (n - 1))]
    return vf.sequence(*blocks, vf.LAYER)


def measured(answer: Constants | Normalization, name: str, q: float = 1.0) -> float:
    """A quantity of the normalized function by mpmath's quadrature, derivatives by differences of it."""
    f = sp.lambdify(X, answer.function, "mpmath")

    def average(g: Any, variance: float = q) -> Any:
        s = mpmath.sqrt(variance)
        b, c = float(answer.get("b", sp.S.One)), float(answer.get("c", sp.S.Zero))
        kink = min(max(-c / b, -8 * s), 8 * s)
        cuts = sorted({-12 * s, mpmath.mpf(kink), mpmath.mpf(0), 12 * s})
        return mpmath.quad(lambda x: g(x) * mpmath.npdf(x, 0, s), cuts)

    def slope(x: Any) -> Any:
        h = mpmath.mpf("1e-6")
        return (f(x + h) - f(x - h)) / (2 * h)

    def bend(x: Any) -> Any:
        h = mpmath.mpf("1e-4")
        return (f(x + h) - 2 * f(x) + f(x - h)) / h**2

    def squares(variance: float) -> Any:
        return average(lambda x: f(x) ** 2, variance)

    second = squares(q)
    step = 1e-4
    values = {
        "mean": lambda: average(f), "second_moment": lambda: second,
        "variance": lambda: second - average(f) ** 2,
        "derivative_second_moment": lambda: average(lambda x: slope(x) ** 2),
        "q_slope": lambda: (squares(q + step) - squares(q - step)) / (2 * step),
        "c_0": lambda: average(f) ** 2 / second,
        "c_slope_0": lambda: q * average(slope) ** 2 / second,
        "c_slope_1": lambda: q * average(lambda x: slope(x) ** 2) / second,
        "c_curvature_1": lambda: q**2 * average(lambda x: bend(x) ** 2) / second,
    }
    return float(values[name]())


# -- closed forms ------------------------------------------------------------------------------------------------


def test_shifted_and_scaled_relu() -> None:
    """The centred relu: sqrt(2)/sqrt(1 - 1/pi), and -1/sqrt(pi - 1) after it (Brock et al. 2021)."""
    found = vf.normalize("relu")
    assert found.best.closed_form and len(found.solutions) == 1
    assert sp.simplify(found["a"] - sp.sqrt(2) / sp.sqrt(1 - 1 / PI)) == 0
    assert sp.simplify(found["d"] + 1 / sp.sqrt(PI - 1)) == 0


def test_scale_alone() -> None:
    assert vf.normalize("relu", "a", conditions={"second_moment": 1})["a"] == sp.sqrt(2)
    sine = vf.normalize("sin", conditions="second_moment")
    assert float(sine["a"]) == pytest.approx(math.sqrt(2 / (1 - math.exp(-2))), rel=1e-14)
    assert vf.normalize("erf", "a", conditions={"variance": 2})["a"].has(sp.asin)
    assert sp.simplify(vf.normalize("relu", "a", conditions={"second_moment": "v"})["a"] ** 2
                       - 2 * sp.Symbol("v", positive=True)) == 0


def test_gaussian_poincare_of_relu_has_two_answers() -> None:
    found = vf.normalize("relu", conditions="gaussian_poincare")
    assert [(s["a"], sp.simplify(s["d"])) for s in found.solutions] == [(sp.sqrt(2), 0), (sp.sqrt(2), -2 / sp.sqrt(PI))]
    assert any("2 solutions" in note for note in found.notes)


def test_selu_is_a_special_case() -> None:
    """Klambauer et al. (2017), eq. 14."""
    found = vf.normalize("elu", "a", "alpha", conditions={"mean": 0, "variance": 1})
    alpha = -sp.sqrt(2 / PI) / (sp.erfc(1 / sp.sqrt(2)) * sp.exp(sp.Rational(1, 2)) - 1)
    assert found.best.closed_form and abs(sp.N(found["alpha"] - alpha, 30)) < 1e-25
    assert float(found["a"]) == pytest.approx(1.0507009873554805, abs=1e-15)
    assert vf.gain(found.function).numeric()["mean"] == pytest.approx(0, abs=1e-15)


def test_leaky_relu_with_symbols() -> None:
    found = vf.normalize("leaky_relu(s)", "a", conditions={"second_moment": 1})
    s = sp.Symbol("s", real=True)
    assert sp.simplify(found["a"] ** 2 - 2 / (1 + s**2)) == 0


def test_signs_matter_where_the_mean_is_not_zero() -> None:
    found = vf.normalize("relu", "a", "d", conditions={"mean": 1, "variance": 2})
    assert [float(s["a"]) for s in found.solutions] == pytest.approx([2.422347792472633, -2.422347792472633])
    for answer in found.solutions:
        assert measured(answer, "mean") == pytest.approx(1) and measured(answer, "variance") == pytest.approx(2)


# -- networks ----------------------------------------------------------------------------------------------------

DKS = {
    "softplus": (0.18761008168267976, 0.40688063442262007, 8.878672543665223, -0.9213466151411376),
    "tanh": (0.07461073057540868, 0.5566915199964182, 18.002635964442558, -0.5034378768692127),
    "gelu": (0.07043253126531114, 0.259489297927707, 20.21158902315857, -0.15815378961903598),
}
TAT = {
    "softplus": (0.15011489794748328, 0.5374599901127068, 10.54880187880574, -0.996481014465811),
    "tanh": (0.0580205218578313, 0.5218639804099805, 22.36066261763117, -0.4796430704354356),
}
"""Input scale, input shift, output scale, output shift before it, as the tests of DKS have them (zeta = 1.2,
tau = 0.2; their solver stops at 1e-8)."""


@pytest.mark.parametrize("name", sorted(DKS))
def test_deep_kernel_shaping(name: str) -> None:
    """Martens et al. (2021): Q(1) = Q'(1) = 1, C(0) = 0, and zeta."""
    found = vf.normalize(name, conditions="dks", network=resnet("0.6"), target="1.2")
    b, c, a, shift = DKS[name]
    got = [float(found[n]) for n in "bcad"]
    assert got == pytest.approx([b, c, a, a * shift], rel=1e-6)
    local = float(found.conditions["network_slope"])
    for quantity, wanted in (("q_slope", 1), ("second_moment", 1), ("c_0", 0), ("c_slope_1", local)):
        assert measured(found, quantity) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("name", sorted(TAT))
def test_tailored_smooth_activations(name: str) -> None:
    """Zhang et al. (2022): C'(1) = 1 and tau."""
    found = vf.normalize(name, conditions="tat", network=resnet("0.6"), target="0.2")
    b, c, a, shift = TAT[name]
    assert [float(found[n]) for n in "bcad"] == pytest.approx([b, c, a, a * shift], rel=1e-5)
    assert found.conditions["network_curvature"] == sp.Rational(1, 329)
    assert measured(found, "c_curvature_1") == pytest.approx(1 / 329, rel=1e-4)


def test_tailored_leaky_relu() -> None:
    """C_f(0) = 0.75 over all subnetworks."""
    found = vf.normalize("leaky_relu", conditions="tat", network=resnet("0.6"), target="0.75")
    assert float(found["negative_slope"]) == pytest.approx(0.6291800290346146, rel=1e-7)
    assert float(found["a"]) == pytest.approx(math.sqrt(2 / (1 + float(found["negative_slope"]) ** 2)), rel=1e-12)
    net = vf.network_map(found.function, resnet("0.6"))
    assert net.largest_c() == pytest.approx(0.75, abs=1e-9)


def test_dks_of_piecewise_linear_activations() -> None:
    found = vf.normalize("leaky_relu", "a", "c", "d", "negative_slope", conditions="dks", network=resnet("0.6"),
                         target="1.2")
    assert float(found["negative_slope"]) == pytest.approx(0.8761257073473065, rel=1e-6)
    assert abs(float(found["c"])) < 1e-9 and float(found["a"]) == pytest.approx(1.0651832705682147, rel=1e-6)
    relu = vf.normalize("relu", "a", "b", "d", fixed={"c": 1}, network=resnet("0.6"),
                        conditions={"c_0": 0, "second_moment": 1, "network_slope": "1.2"})
    assert float(relu["b"]) == pytest.approx(0.3685360046708044, rel=1e-4)


def test_correlations_of_the_tailored_network() -> None:
    """With C_f'(1) = zeta the network keeps orthogonal inputs apart: C_f(0) = 0."""
    found = vf.normalize("softplus", conditions="dks", network=30, target="1.5")
    net = vf.network_map(found.function, 30)
    assert net.slope == pytest.approx(1.5, rel=1e-8) and net.c(0.0) == pytest.approx(0, abs=1e-9)
    assert net.q == 1 and 0 < net.c(0.5) < 0.5


@pytest.mark.slow
def test_network_correlation_of_a_smooth_activation() -> None:
    """C_f(0) = 1/2 over five layers of a swish by its own parameter, without closed forms."""
    found = vf.normalize("swish", "beta", conditions={"network_c_0": "0.5"}, network=3)
    answer = vf.network_map(found.function, 3).c(0.0)
    assert answer == pytest.approx(0.5, abs=1e-8)


# -- other conditions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "free", "conditions"),
    [
        ("tanh", "a, b", {"variance": 1, "c_slope_1": "1.1"}),
        ("gelu", "a, c, d", {"mean": 0, "variance": 1, "c_slope_0": "0.7"}),
        ("elu", "a, alpha, d", {"c_0": 0, "second_moment": 1, "q_slope": "1"}),
        ("sigmoid", "a, d", {"mean": "0.2", "derivative_second_moment": "1/2"}),
        ("softplus", "a, beta, d", {"mean": 0, "variance": 1, "c_slope_1": "1.02"}),
    ],
)
def test_answers_put_back(name: str, free: str, conditions: dict[str, Any]) -> None:
    found = vf.normalize(name, free, conditions=conditions)
    assert max(found.residuals.values()) < 1e-8
    for quantity, value in conditions.items():
        assert measured(found, quantity) == pytest.approx(float(sp.Rational(value)), abs=2e-6)


def test_moments_of_ones_own() -> None:
    found = vf.normalize("relu", "a", conditions={"y**4": 3})
    assert [float(s["a"]) for s in found.solutions] == pytest.approx([2**0.25, -(2**0.25)])
    odd = vf.normalize("relu", "a", "d", conditions={"y": 0, "dy*x": "1/sqrt(2*pi)"})
    assert float(odd["a"]) == pytest.approx(1)
    tanh = vf.normalize("tanh", "d", conditions={"exp(y)": 2})
    z = np.random.default_rng(0).standard_normal(400_000)
    assert float(np.exp(np.tanh(z) + float(tanh["d"])).mean()) == pytest.approx(2, rel=5e-3)


def test_another_variance() -> None:
    found = vf.normalize("tanh", "a", "d", q=4)
    assert measured(found, "variance", 4.0) == pytest.approx(1, rel=1e-9)
    assert float(found["a"]) < float(vf.normalize("tanh")["a"])


def test_several_and_none() -> None:
    with pytest.raises(SolveError, match="the search found none"):
        vf.normalize("tanh", "b", conditions={"variance": 2})
    with pytest.raises(SolveError, match="no real solution"):
        vf.normalize("relu", "d", conditions={"second_moment": "1/10"})
    with pytest.raises(SolveError):
        vf.normalize("relu", "a", conditions={"second_moment": 1, "variance": 1})
    agreeing = vf.normalize("tanh", "a", conditions={"second_moment": 1, "variance": 1})
    assert max(agreeing.residuals.values()) < 1e-12


def test_questions_that_cannot_be_answered() -> None:
    cases: list[tuple[type[Exception], str, tuple[str, ...], dict[str, Any]]] = [
        (InputError, "no condition 'foo'", ("relu",), {"conditions": {"foo": 1}}),
        (ExpressionError, "condition", ("relu",), {"conditions": {"y +": 1}}),
        (InputError, "for 2 constants", ("relu", "a", "d"), {"conditions": {"mean": 0}}),
        (InputError, "no parameter 'beta'", ("elu", "beta"), {}),
        (InputError, "no parameter 'k'", ("tanh(x)", "k"), {}),
        (InputError, "free and fixed", ("relu",), {"fixed": {"a": 2}}),
        (InputError, "no constant 'w'", ("relu",), {"fixed": {"w": 2}}),
        (InputError, "name of an outer constant", ("leaky_relu(a)",), {}),
        (InputError, "named twice", ("relu", "a", "a"), {}),
        (InputError, "no recipe", ("relu",), {"conditions": "gpn"}),
        (InputError, "needs a network", ("tanh",), {"conditions": "dks"}),
        (InputError, "needs a network", ("tanh",), {"conditions": {"network_slope": 2, "mean": 0}}),
        (InputError, "takes no target", ("tanh",), {"conditions": "standard", "target": 2}),
        (InputError, "belongs to a recipe", ("tanh",), {"conditions": {"mean": 0}, "target": 2}),
        (InputError, "no condition", ("tanh",), {"conditions": {}}),
        (UnsupportedError, "jumps", ("sign", "a"), {"conditions": {"c_slope_1": 1}}),
        (UnsupportedError, "infinite", ("relu", "a"), {"conditions": {"c_curvature_1": 1}}),
    ]
    for error, message, arguments, options in cases:
        with pytest.raises(error, match=message):
            vf.normalize(*arguments, **options)


def test_documents() -> None:
    found = vf.normalize("relu")
    document = found.to_dict()
    assert document["solutions"][0]["value"]["d"] == pytest.approx(-0.6833316961214808)
    assert document["solutions"][0]["closed_form"] is True and "a = sqrt(2)" in str(found)
    assert found._repr_latex_().startswith("$") and dict(found) == dict(found.best)
    assert set(RECIPES) >= {"standard", "gaussian_poincare", "dks", "tat"} and all(CONDITIONS.values())


@pytest.mark.parametrize("text", ["sin", "erf", "atan"])
def test_equations_that_hold_in_a_limit_only_have_no_answer(text: str) -> None:
    """a f(b x) with E y^2 = E y'^2 = 1 needs b = 0, where a is infinite: no root is made of rounding."""
    with pytest.raises(SolveError, match="no a, b meets"):
        vf.normalize(text, "a", "b", conditions={"second_moment": 1, "derivative_second_moment": 1})


def test_arguments_that_say_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="variance q -1 is negative"):
        vf.normalize("tanh", q=-1)
    for conditions in ("standard", {"mean": 0, "variance": 1}):
        with pytest.raises(InputError, match="no condition speaks of the network"):
            vf.normalize("relu", conditions=conditions, network=50)
    with pytest.raises(InputError, match="a free constant 3 is an int"):
        vf.normalize("relu", 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="free where none are named"):
        vf.normalize("relu", fixed={"a": 2})
