"""Activations as data: a name, an expression in ``x``, a reference.

An activation is never recognized by its name: the laws read its expression. Conventions are
those of ``torch.nn``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import sympy as sp
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean

from varflow.symbols import X

HALF = sp.Rational(1, 2)
_x = X
Parameters = tuple[tuple[str, sp.Rational], ...]


def parameter(name: str) -> sp.Symbol:
    """The symbol of an activation's parameter in its expression (real)."""
    return sp.Symbol(name, real=True)


def compare(relation: type[Relational], left: sp.Expr, right: sp.Expr) -> Boolean:
    """A relation between expressions that may hold Piecewise, as relations that hold none.

    sympy itself would rewrite a condition on a Piecewise by solving it for its variable, which may
    take seconds.
    """
    pieces = left.atoms(sp.Piecewise) | right.atoms(sp.Piecewise)
    if not pieces:
        return relation(left, right)
    piece = min(pieces, key=sp.default_sort_key)
    cases, open_still = [], sp.true
    for value, condition in piece.args:
        sides = (side.xreplace({piece: value}) for side in (left, right))
        cases.append(sp.And(open_still, condition, compare(relation, *sides)))
        open_still = sp.And(open_still, sp.Not(condition))
    return sp.Or(*cases)


def substitute(expr: sp.Basic, values: Mapping[sp.Basic, sp.Basic]) -> Any:
    """``expr.xreplace(values)`` where conditions may receive Piecewise values (see ``compare``)."""
    if not expr.has(Relational) or not any(v.has(sp.Piecewise) for v in values.values()):
        return expr.xreplace(values)
    parts = [substitute(part, values) for part in expr.args]
    return compare(expr.func, *parts) if isinstance(expr, Relational) else expr.func(*parts)


@dataclass(frozen=True)
class Activation:
    """One activation: ``expression`` in ``symbols.X`` and its parameters' symbols.

    ``parameters`` are (name, default) in calling order; ``reference`` is author and year; ``torch``
    is the dotted name of PyTorch's own function or module class under ``torch``, if there is one.
    """

    name: str
    expression: sp.Expr
    reference: str
    parameters: Parameters = ()
    torch: str | None = None

    def at(
        self, argument: sp.Expr = X, values: Mapping[str, sp.Expr] = MappingProxyType({})
    ) -> sp.Expr:
        """The expression at an argument; parameters not in ``values`` take their defaults."""
        bound: dict[sp.Basic, sp.Basic] = {
            parameter(n): values.get(n, d) for n, d in self.parameters
        }
        return cast(sp.Expr, substitute(self.expression, {X: argument, **bound}))


def _where(*branches: tuple[object, object]) -> sp.Expr:
    return sp.Piecewise(*branches)


def _positive_part(value: sp.Expr, otherwise: sp.Expr | int = 0) -> sp.Expr:
    return _where((value, _x > 0), (otherwise, True))


def _sigmoid(x: sp.Expr) -> sp.Expr:
    return 1 / (1 + sp.exp(-x))


_alpha, _beta, _omega, _slope = map(parameter, ("alpha", "beta", "omega", "negative_slope"))
_low, _high, _lambd, _weight = map(parameter, ("min_val", "max_val", "lambd", "weight"))
_k, _b, _lower, _upper = map(parameter, ("k", "b", "lower", "upper"))
_threshold, _value = map(parameter, ("threshold", "value"))
_ONE = sp.Integer(1)
_SELU_ALPHA = sp.Rational("1.6732632423543772")
_SELU_SCALE = sp.Rational("1.0507009873554805")
_HARD_SIGMOID = _where((0, _x <= -3), (_x / 6 + HALF, _x < 3), (1, True))

_ALL = (
    Activation("identity", _x, "", torch="nn.Identity"),
    Activation("relu", _positive_part(_x), "Nair and Hinton 2010", torch="nn.ReLU"),
    Activation(
        "leaky_relu",
        _positive_part(_x, _slope * _x),
        "Maas, Hannun and Ng 2013",
        (("negative_slope", sp.Rational(1, 100)),),
        "nn.LeakyReLU",
    ),
    Activation(
        "prelu",
        _positive_part(_x, _weight * _x),
        "He, Zhang, Ren and Sun 2015",
        (("weight", sp.Rational(1, 4)),),
        "nn.PReLU",
    ),
    Activation(  # evaluation mode: the mean slope; the random slope of training is "rrelu_training" of gated.py
        "rrelu",
        _positive_part(_x, (_lower + _upper) / 2 * _x),
        "Xu, Wang, Chen and Li 2015",
        (("lower", sp.Rational(1, 8)), ("upper", sp.Rational(1, 3))),
    ),
    Activation(
        "relu6",
        _where((0, _x <= 0), (_x, _x < 6), (6, True)),
        "Krizhevsky 2010",
        torch="nn.ReLU6",
    ),
    Activation(
        "elu",
        _positive_part(_x, _alpha * (sp.exp(_x) - 1)),
        "Clevert, Unterthiner and Hochreiter 2016",
        (("alpha", _ONE),),
        "nn.ELU",
    ),
    Activation(
        "celu",
        _positive_part(_x, _alpha * (sp.exp(_x / _alpha) - 1)),
        "Barron 2017",
        (("alpha", _ONE),),
        "nn.CELU",
    ),
    Activation(
        "selu",
        _positive_part(_SELU_SCALE * _x, _SELU_SCALE * _SELU_ALPHA * (sp.exp(_x) - 1)),
        "Klambauer, Unterthiner, Mayr and Hochreiter 2017",
        torch="nn.SELU",
    ),
    Activation(
        "gelu", _x * (1 + sp.erf(_x / sp.sqrt(2))) / 2, "Hendrycks and Gimpel 2016", torch="nn.GELU"
    ),
    Activation(
        "gelu_tanh",
        _x * (1 + sp.tanh(sp.sqrt(2 / sp.pi) * (_x + sp.Rational("0.044715") * _x**3))) / 2,
        "Hendrycks and Gimpel 2016",
    ),
    Activation("quick_gelu", _x * _sigmoid(sp.Rational("1.702") * _x), "Hendrycks and Gimpel 2016"),
    Activation("silu", _x * _sigmoid(_x), "Elfwing, Uchibe and Doya 2018", torch="nn.SiLU"),
    Activation(
        "swish",
        _x * _sigmoid(_beta * _x),
        "Ramachandran, Zoph and Le 2017",
        (("beta", _ONE),),
    ),
    Activation("mish", _x * sp.tanh(sp.log(1 + sp.exp(_x))), "Misra 2020", torch="nn.Mish"),
    Activation(
        "softplus",
        sp.log(1 + sp.exp(_beta * _x)) / _beta,
        "Dugas, Bengio, Belisle, Nadeau and Garcia 2001",
        (("beta", _ONE),),
        "nn.Softplus",
    ),
    Activation("sigmoid", _sigmoid(_x), "Verhulst 1845", torch="nn.Sigmoid"),
    Activation(
        "hardsigmoid",
        _HARD_SIGMOID,
        "Courbariaux, Bengio and David 2015",
        torch="nn.Hardsigmoid",
    ),
    Activation("logsigmoid", -sp.log(1 + sp.exp(-_x)), "", torch="nn.LogSigmoid"),
    Activation("tanh", sp.tanh(_x), "LeCun, Bottou, Orr and Muller 1998", torch="nn.Tanh"),
    Activation(
        "hardtanh",
        _where((_low, _x < _low), (_x, _x < _high), (_high, True)),
        "Collobert 2004",
        (("min_val", sp.Integer(-1)), ("max_val", _ONE)),
        "nn.Hardtanh",
    ),
    Activation(
        "lecun_tanh",
        sp.Rational("1.7159") * sp.tanh(2 * _x / 3),
        "LeCun, Bottou, Orr and Muller 1998",
    ),
    Activation("tanhshrink", _x - sp.tanh(_x), "", torch="nn.Tanhshrink"),
    Activation("softsign", _x / (1 + sp.Abs(_x)), "Bergstra et al. 2009", torch="nn.Softsign"),
    Activation(
        "softshrink",
        _where((_x - _lambd, _x > _lambd), (_x + _lambd, _x < -_lambd), (0, True)),
        "Donoho 1995",
        (("lambd", HALF),),
        "nn.Softshrink",
    ),
    Activation(
        "hardshrink",
        _where((_x, _x > _lambd), (_x, _x < -_lambd), (0, True)),
        "Donoho and Johnstone 1994",
        (("lambd", HALF),),
        "nn.Hardshrink",
    ),
    Activation(
        "threshold",
        _where((_x, _x > _threshold), (_value, True)),
        "Jarrett, Kavukcuoglu, Ranzato and LeCun 2009",
        (("threshold", sp.Integer(0)), ("value", sp.Integer(0))),
    ),
    Activation(
        "hardswish",
        _where((0, _x <= -3), (_x * (_x + 3) / 6, _x < 3), (_x, True)),
        "Howard et al. 2019",
        torch="nn.Hardswish",
    ),
    Activation("erf", sp.erf(_x), "Williams 1997", torch="erf"),
    Activation("sin", sp.sin(_x), "Parascandolo, Huttunen and Virtanen 2017", torch="sin"),
    Activation("cos", sp.cos(_x), "Rahimi and Recht 2007", torch="cos"),
    Activation(
        "siren",
        sp.sin(_omega * _x),
        "Sitzmann, Martel, Bergman, Lindell and Wetzstein 2020",
        (("omega", sp.Integer(30)),),
    ),
    Activation(
        "snake",
        _x + sp.sin(_alpha * _x) ** 2 / _alpha,
        "Liu, Hartwig and Ueda 2020",
        (("alpha", _ONE),),
    ),
    Activation("gaussian", sp.exp(-(_x**2)), "Broomhead and Lowe 1988"),
    Activation("exp", sp.exp(_x), "", torch="exp"),
    Activation("abs", sp.Abs(_x), "", torch="abs"),
    Activation("sign", sp.sign(_x), "Rosenblatt 1958", torch="sign"),
    Activation("step", _positive_part(_ONE), "McCulloch and Pitts 1943"),
    Activation("square", _x**2, "", torch="square"),
    Activation("relu_squared", _positive_part(_x**2), "So et al. 2021"),
    Activation("relu_power", _positive_part(_x**_k), "Cho and Saul 2009", (("k", sp.Integer(3)),)),
    Activation("bent_identity", (sp.sqrt(_x**2 + 1) - 1) / 2 + _x, ""),
    Activation("atan", sp.atan(_x), "", torch="atan"),
    Activation("asinh", sp.asinh(_x), "", torch="asinh"),
    Activation(
        "squareplus", (_x + sp.sqrt(_x**2 + _b)) / 2, "Barron 2021", (("b", sp.Integer(4)),)
    ),
)

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType({a.name: a for a in _ALL})
"""Every named activation, by name."""
