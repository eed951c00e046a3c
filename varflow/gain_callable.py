"""The gains of a Python function: numbers alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from types import MappingProxyType
from typing import Any

import numpy as np

from varflow.errors import InputError
from varflow.gain_fields import FIELDS, LATEX
from varflow.gain_numbers import ActivationNumbers


@dataclass(frozen=True)
class CallableGain:
    """Moments of a Python function of a numpy array at x ~ N(mean, q), and what follows from them.

    The fields are those of :class:`ActivationGain`, as floats: a function has no formula, so ``closed_form`` is
    False throughout. Derivatives are central differences, none of them across a kink (E f'^2 to about 1e-9,
    with kinks 1e-8); a jump cannot be told from a steep slope, so ``chi`` of a function that jumps is large, not
    infinite. Second derivatives and dead inputs need a formula: None.
    """

    activation: Callable[[Any], Any]
    input_variance: float
    input_mean: float
    mean: float
    second_moment: float
    variance: float
    init_gain: float | None
    init_gain_centered: float | None
    derivative_second_moment: float
    chi: float | None
    second_derivative_second_moment: None = None
    dead_share: None = None

    @classmethod
    def of(cls, function: Callable[[Any], Any], q: Any, mean: Any) -> CallableGain:
        """Evaluate every field. Raises InputError for a function that does not map arrays to arrays of reals."""
        q, m = float(q), float(mean)
        f = ActivationNumbers(checked(function))
        first, second = float(f.mean(q, m)), float(f.second_moment(q, m))
        slopes, variance = float(f.derivative_second_moment(q, m)), second - first**2
        return cls(function, q, m, first, second, variance, _inverse_root(second), _inverse_root(variance), slopes,
                   q * slopes / second if second else None)

    @property
    def closed_form(self) -> Mapping[str, bool]:
        """False for every field."""
        return MappingProxyType(dict.fromkeys(FIELDS, False))

    def numeric(self, values: Mapping[str, float] | None = None) -> dict[str, float | None]:
        """Every field by name."""
        return {name: getattr(self, name) for name in FIELDS}

    def _repr_latex_(self) -> str:
        rows = (rf"{LATEX[k]} &= {v:.6g}" for k, v in self.numeric().items() if v is not None)
        return "$\\begin{aligned}" + r" \\ ".join(rows) + "\\end{aligned}$"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{k}</td><td>{v:.6g}</td></tr>" for k, v in self.numeric().items() if v is not None)
        return f"<table><tr><th>field</th><th>value</th></tr>{rows}</table>"


def _inverse_root(moment: float) -> float | None:
    return 1 / sqrt(moment) if moment > 1e-300 else None


def checked(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function over arrays: as it is, or applied to every entry where it takes only numbers."""
    probe = np.array([-1.5, 0.25, 2.0])
    if not callable(function):
        raise InputError(f"a {type(function).__name__} is not an activation",
                         instead="a name, a text in x, a sympy expression, or a function of an array")
    try:
        values = np.asarray(function(probe), dtype=float)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.shape == probe.shape:
        return lambda x: np.asarray(function(x), dtype=float)
    single = np.vectorize(function, otypes=[float])
    try:
        single(probe)
    except Exception as error:
        raise InputError("the function maps no array of reals to an array of reals",
                         why=f"{type(error).__name__}: {error}", instead="lambda x: np.maximum(x, 0)") from None
    return lambda x: np.asarray(single(x), dtype=float)
