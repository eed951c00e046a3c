"""Functions of several inputs, or with several outputs, as data: gates, maxout, concatenated activations.

Inputs are ``symbols.arg(0), arg(1), ...``: independent coordinates of one layer. ``NOISE`` is an independent
random number with known moments, drawn for every entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import sympy as sp

from varflow.activations import ACTIVATIONS, HALF, Parameters
from varflow.errors import InputError
from varflow.symbols import arg

NOISE = sp.Symbol("r", real=True)
MAX_INPUTS = 64
Outputs = Callable[..., tuple[sp.Expr, ...]]
Moments = Callable[..., Mapping[int, sp.Expr]]


@dataclass(frozen=True)
class Gated:
    """One function: ``outputs`` of its parameters (in ``symbols.arg``); ``noise`` the raw moments of ``NOISE``.

    ``largest`` says that it is the largest of its first parameter's number of inputs.
    """

    name: str
    outputs: Outputs
    reference: str
    parameters: Parameters = ()
    noise: Moments | None = None
    largest: bool = False


@dataclass(frozen=True)
class GatedCall:
    """A function of the table with its parameters given."""

    gated: Gated
    values: tuple[sp.Rational, ...]

    @property
    def outputs(self) -> tuple[sp.Expr, ...]:
        """One expression in ``symbols.arg`` for every output channel of one group of inputs."""
        return self.gated.outputs(*self.values)

    @property
    def inputs(self) -> int:
        """Number of independent inputs."""
        if self.gated.largest:
            return int(self.values[0])
        symbols = set().union(*(f.free_symbols for f in self.outputs))
        return len(symbols - {NOISE})

    @property
    def noise(self) -> Mapping[int, sp.Expr]:
        """Raw moments of ``NOISE`` by power; empty without noise."""
        return {} if self.gated.noise is None else self.gated.noise(*self.values)

    def __str__(self) -> str:
        return f"{self.gated.name}({', '.join(map(str, self.values))})" if self.values else self.gated.name


def _gate(name: str, reference: str, function: str) -> Gated:
    return Gated(name, lambda: (arg(0) * ACTIVATIONS[function].at(arg(1)),), reference)


def _largest(count: sp.Rational) -> tuple[sp.Expr, ...]:
    return (sp.Max(*(arg(i) for i in range(int(count)))),)


def _both_signs(function: str) -> Outputs:
    return lambda: tuple(ACTIVATIONS[function].at(side) for side in (arg(0), -arg(0)))


def _random_slope(lower: sp.Rational, upper: sp.Rational) -> tuple[sp.Expr, ...]:
    x = arg(0)
    return (sp.Piecewise((x, x > 0), (0, True)) + NOISE * sp.Piecewise((0, x > 0), (x, True)),)


def _uniform(lower: sp.Rational, upper: sp.Rational) -> Mapping[int, sp.Expr]:
    return {1: (lower + upper) / 2, 2: (lower**2 + lower * upper + upper**2) / 3}


_ALL = (
    Gated("bilinear", lambda: (arg(0) * arg(1),), "Mnih and Hinton 2007"),
    _gate("glu", "Dauphin, Fan, Auli and Grangier 2017", "sigmoid"),
    _gate("reglu", "Shazeer 2020", "relu"),
    _gate("geglu", "Shazeer 2020", "gelu"),
    _gate("swiglu", "Shazeer 2020", "silu"),
    Gated("maxout", _largest, "Goodfellow et al. 2013", (("k", sp.Integer(2)),), largest=True),
    Gated("max_pool", _largest, "Riesenhuber and Poggio 1999", (("k", sp.Integer(4)),), largest=True),
    Gated("crelu", _both_signs("relu"), "Shang, Sohn, Almeida and Lee 2016"),
    Gated("concat_elu", _both_signs("elu"), "Salimans, Karpathy, Chen and Kingma 2017"),
    Gated(
        "rrelu_training",
        _random_slope,
        "Xu, Wang, Chen and Li 2015",
        (("lower", HALF**3), ("upper", sp.Rational(1, 3))),
        _uniform,
    ),
)

GATED: Mapping[str, Gated] = MappingProxyType({g.name: g for g in _ALL})
"""Every function of several inputs or outputs, by name."""

_CALL = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*")


def read_gated(text: str) -> GatedCall | None:
    """``"swiglu"``, ``"maxout(3)"`` as a call; None for a text that does not begin with a name of the table.

    Raises InputError for parameters that the function does not have.
    """
    match = _CALL.fullmatch(text)
    if match is None or match[1] not in GATED:
        return None
    gated = GATED[match[1]]
    given = [part for part in (match[2] or "").split(",") if part.strip()]
    values = dict(gated.parameters)
    if len(given) > len(values):
        takes = ", ".join(values) or "none"
        raise InputError(f"{gated.name} has {len(values)} parameters", why=f"its parameters: {takes}",
                         instead=str(GatedCall(gated, tuple(values.values()))))
    for name, part in zip(list(values), given, strict=False):
        values[name] = _number(gated, name, part)
    return GatedCall(gated, tuple(values.values()))


def _number(gated: Gated, name: str, text: str) -> sp.Rational:
    from varflow.expressions import parse

    key, _, value = text.rpartition("=")
    number = parse(value, {}, where=f"{gated.name}, {name}")
    if key.strip() not in ("", name):
        raise InputError(f"{gated.name} has no parameter {key.strip()!r}", instead=f"{name}=...")
    if not number.is_Rational:
        raise InputError(f"{name} of {gated.name} is a number", instead=f"{gated.name}(3)")
    if gated.largest and not (number.is_Integer and 1 <= number <= MAX_INPUTS):
        raise InputError(f"{gated.name} of {number} inputs", why="it takes the largest of 1 to "
                         f"{MAX_INPUTS} inputs", instead=f"{gated.name}(4)")
    return number
