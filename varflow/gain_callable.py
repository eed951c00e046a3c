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
from varflow.laws.domain import Divergent
from varflow.laws.integrand import integrand

REACH = 12.0
"""Standard deviations within which places of infinite slope are looked for."""


@dataclass(frozen=True)
class CallableGain:
    """Moments of a Python function of a numpy array at x ~ N(mean, q), and what follows from them.

    The fields are those of :class:`ActivationGain`, as floats: a function has no formula, so ``closed_form`` is
    False throughout. Derivatives are central differences, none of them across a kink (E f'^2 to about 1e-9,
    with kinks 1e-8); where f jumps (within 1e-9) or bends like |x|^(1/2) E f'^2 is infinite. Second derivatives and
    dead inputs need a formula: None.
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
        """Evaluate every field.

        Raises InputError for a function that does not map arrays to arrays of reals, Divergent where E f^2 does not
        exist.
        """
        q, m = float(q), float(mean)
        plain = checked(function)
        f = ActivationNumbers(plain)
        with np.errstate(all="ignore"):
            first, second = float(f.mean(q, m)), float(f.second_moment(q, m))
        if not np.isfinite([first, second]).all():
            raise Divergent(f"E f(x)^2 is infinite, or too large for a float, at q = {q:g}", _name_of(function),
                            "the function has a pole, or grows faster than the Gaussian density decays",
                            "a function without poles, or a smaller variance")
        steep = has_infinite_slope(plain, abs(m) + REACH * sqrt(q))
        slopes, variance = np.inf if steep else float(f.derivative_second_moment(q, m)), second - first**2
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
    whole, single = _real(function), _real(np.vectorize(_or_infinite(function), otypes=[complex]))
    try:
        if whole(probe).shape == probe.shape:
            return whole
    except Exception:
        pass
    try:
        single(probe)
    except InputError:
        raise
    except Exception as error:
        raise InputError("the function maps no array of reals to an array of reals",
                         why=f"{type(error).__name__}: {error}", instead="lambda x: np.maximum(x, 0)") from None
    return single


def _real(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function as floats, without warnings; what is not real is nan."""
    def real(x: Any) -> Any:
        with np.errstate(all="ignore"):
            values = np.asarray(function(x))
            if not np.iscomplexobj(values):
                return np.asarray(values, dtype=float)
            return np.where(np.imag(values) == 0, np.real(values), np.nan)

    real.__name__ = _name_of(function)
    return real


def _or_infinite(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of one number that is infinite where that is too large for a float, or has a pole."""
    def finite(x: float) -> Any:
        try:
            return function(x)
        except (OverflowError, ZeroDivisionError):
            return np.inf

    finite.__name__ = _name_of(function)
    return finite


def _name_of(function: Callable[[Any], Any]) -> str:
    name = str(getattr(function, "__name__", "<"))
    return "the function" if name.startswith("<") else name


def has_infinite_slope(function: Callable[[Any], Any], reach: float) -> bool:
    """Whether E f'^2 is infinite, seen at the kinks in [-reach, reach]: f jumps, or f' grows like |x - x0|^(-1/2) or
    faster over four decades of |x - x0|."""
    f = integrand(function)
    places = np.union1d(f.kinks(reach), f.breaks)
    return any(_jumps(function, x) or _steepens(function, x) for x in places[np.abs(places) <= reach])


def _jumps(function: Callable[[Any], Any], place: float) -> bool:
    gap = (1 + abs(place)) * np.array([1e-5, 1e-6, 1e-7, 1e-8, 1e-9])
    above, below = function(place + gap), function(place - gap)
    rise = np.abs(above - below)
    return bool(rise.min() > 0.5 * rise.max() and rise.min() > 1e-7 * np.abs([above, below]).max())


def _steepens(function: Callable[[Any], Any], place: float) -> bool:
    gap = (1 + abs(place)) * np.array([1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
    for side in (1, -1):
        values = function(place + side * np.stack([gap, 2 * gap]))
        rise = np.abs(values[1] - values[0])
        told = np.all(rise > 1e-8 * np.abs(values).max())
        if told and np.all(np.diff(np.log10(rise / gap)) > 0.49):
            return True
    return False
