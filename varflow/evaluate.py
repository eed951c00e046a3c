"""Numbers for a derivation: compiled formulas, and a population where a formula is missing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import sympy as sp

from varflow.derive import Derivation, derive
from varflow.derive_existence import require_moment
from varflow.errors import InputError, UnsupportedError, named_values
from varflow.fields import shown
from varflow.laws.distributions import Inaccurate
from varflow.laws.domain import Divergent, NotReal
from varflow.laws.evaluation import Evaluation
from varflow.laws.mixtures import Mixture, mixed
from varflow.laws.moments import Moment, Quantity
from varflow.laws.population import Population, run_population
from varflow.laws.profile import Profile
from varflow.lowering import lower
from varflow.program import Pointwise, has_windows
from varflow.symbols import STEP

ROUNDING = 1e-13
"""What may be rounding's, as a share of the largest second moment."""


def check_value(name: str, symbol: sp.Symbol, value: Any) -> None:
    """Refuse a value that the symbol's assumptions exclude."""
    try:
        given = np.asarray(value)
        numbers = np.asarray(np.nan) if given.dtype.kind in "bcUS" else given.astype(float)
    except (TypeError, ValueError, OverflowError):
        numbers = np.asarray(np.nan)
    if numbers.size == 0 or not np.isfinite(numbers).all():
        raise InputError(f"value {shown(value)} of {name!r} is not a number", instead="a finite number")
    if symbol.is_positive and np.any(numbers <= 0):
        raise InputError(f"{name} = {value} is not positive", why=f"{name} is declared positive",
                         instead="a positive number, or another assumption in symbols")
    if symbol.is_integer and np.any(numbers != np.round(numbers)):
        raise InputError(f"{name} = {value} is not whole", why=f"{name} is declared an integer", instead="1, 2, 3, ...")


def _ratio(numerator: Any, denominator: Any) -> Any:
    """A gain; None where there was nothing to gain."""
    return None if np.any(np.equal(denominator, 0)) else numerator / denominator


class Numbers:
    """Moments of one derivation at given values of its symbols; inside a block repeated L times, at repetition
    ``l`` (0 unless given)."""

    def __init__(self, derivation: Derivation, values: Mapping[str, Any]) -> None:
        values = named_values(values)
        missing = derivation.free_symbols() - set(values)
        if missing:
            listed = ", ".join(f"{m!r}: ..." for m in sorted(missing))
            hint = ", or solve for the unknown scales first" if derivation.unknowns() else ""
            raise InputError(f"no value for {', '.join(sorted(missing))}", why="numbers need all symbols",
                             instead=f"values={{{listed}}}{hint}")
        for name, symbol in derivation.network.symbols.items():
            if name in values:
                check_value(name, symbol, values[name])
        self.derivation = derivation
        self.values = {STEP.name: 0, **values}
        self._given = dict(values)
        self._evaluation = Evaluation(self.values, self._measured)
        self._rescued: dict[tuple[str, str, bool], float] = {}

    def _refuse_arrays(self) -> None:
        for name, value in self.values.items():
            if getattr(value, "ndim", 0):
                raise UnsupportedError(f"{name} is an array, and a node here has no formula",
                                       why="a population is run at one point", instead="one number at a time")

    @cached_property
    def _population(self) -> Population:
        if self.derivation.only_formulas:
            raise UnsupportedError("a node has no formula", why="formulas only were asked for",
                                   instead="derive(network), which evaluates such nodes by a population")
        self._refuse_arrays()
        return run_population(lower(self.derivation.network.bind(self._given)))

    @cached_property
    def _unrolled(self) -> Numbers:
        """The same numbers from the network with its repeats unrolled."""
        self._refuse_arrays()
        values = {k: v for k, v in self._given.items() if k != STEP.name}
        return Numbers(derive(self.derivation.network.bind(values)), {})

    @cached_property
    def profile(self) -> Profile | None:
        """Moments position by position, for a network with windows over positions whose sizes are all numbers."""
        return self._placed if has_windows(self.derivation.program) else None

    @cached_property
    def _placed(self) -> Profile | None:
        """Moments position by position, and over masks of whole samples, where formulas do not say all."""
        d = self.derivation
        masked = mixed(d.program)
        if d.bodies or d.only_formulas or not (masked or has_windows(d.program)):
            return None
        if masked and not has_windows(d.program) and any(getattr(v, "ndim", 0) for v in self.values.values()):
            return None
        self._refuse_arrays()
        bound = {str(s) for step in d.program for n in step.shape.positions for s in n.free_symbols}
        functions = (step.primitive.expr for step in d.program if isinstance(step.primitive, Pointwise))
        bound |= {str(s) for f in functions for s in f.free_symbols}
        given = {k: v for k, v in self._given.items() if k in bound}
        program = lower(d.network.bind(given)) if given else d.program
        make = Mixture if masked else Profile
        measured = self._measured_by_place if has_windows(program) else self._measured
        return make(program, self.values, measured, d.main.propagation.values)

    @staticmethod
    def _value_of(profile: Profile, name: str, gradient: bool) -> int:
        return (profile.program.gradients if gradient else profile.program.values)[name]

    def _in_profile(self, name: str, measure: str, gradient: bool) -> float | None:
        """A moment averaged over positions; None where the network has no profile, or no formula there."""
        profile = self._placed
        if profile is None:
            return None
        value = self._value_of(profile, name, gradient)
        found = profile.mean(value) if measure == "mean" else profile.second(value)
        return None if found is None else float(found.mean())

    def _is_rounding(self, number: float, quantity: Quantity | None, gradient: bool) -> bool:
        """Whether a moment by position is what rounding left of zero: that of the formula is another, as small."""
        assert self._placed is not None
        if number == 0 or abs(number) >= ROUNDING or quantity is None:
            return False
        table = self._placed.program.gradients if gradient else self._placed.program.values
        found = (self._in_profile(name, "second_moment", gradient) for name in table)
        largest = max((x for x in found if x is not None), default=0.0)
        other = float(self._evaluation.of(quantity))
        return max(abs(number), abs(other)) < ROUNDING * largest and abs(number - other) > abs(number) / 2

    def exactness_by_position(self, name: str, gradient: bool) -> str:
        """What its second moment rests on where it is that of its profile."""
        assert self._placed is not None
        return self._placed.exactness(self._value_of(self._placed, name, gradient))

    def population_by_position(self, name: str, gradient: bool) -> bool:
        """Whether its profile rests on moments that a population gave."""
        assert self._placed is not None
        return self._placed.from_population(self._value_of(self._placed, name, gradient))

    def by_position(self, name: str, gradient: bool = False) -> bool:
        """Whether a node's second moment is that of its profile over positions."""
        return self._in_profile(name, "second_moment", gradient) is not None

    def of_population(self, name: str, gradient: bool = False) -> bool:
        """Whether a node's second moment is the population's although it has a formula, which knows no borders, or no
        masks."""
        if (name, "second_moment", gradient) in self._rescued:
            return True
        placed = self._placed
        return placed is not None and placed.of_population(self._value_of(placed, name, gradient))

    def require_number(self, value: int, measure: str) -> None:
        """Raise Divergent where a moment that only a population has does not exist."""
        part = self.derivation.main

        def law(source: int) -> tuple[float, float]:
            quantities = part.mean(source), part.second(source)
            if any(q is None for q in quantities):
                return 0.0, 0.0
            mean, second = (self._evaluation.of(q) for q in quantities)
            return (float(mean), float(second)) if np.ndim(mean) == np.ndim(second) == 0 else (0.0, 0.0)

        require_moment(part.program, value, measure, law, self.values)

    def _measured(self, m: Moment) -> float:
        assert m.value is not None
        self.require_number(m.value, m.measure)
        return float(getattr(self._population, m.measure)[m.value])

    def _measured_by_place(self, m: Moment) -> Any:
        """The moment at every position, one below the other."""
        assert m.value is not None
        return self._population.places[m.measure][m.value][:, None]

    def of(self, name: str, quantity: Quantity | None, field: str, gradient: bool = False) -> Any:
        """A moment of a node; from the population (or the unrolled network) where it has no formula, or one that floats
        do not evaluate."""
        key = (name, field, gradient)
        if key not in self._rescued:
            try:
                return self._by_formula(name, quantity, field, gradient)
            except (Inaccurate, NotReal) as error:
                self._rescued[key] = self._instead(name, field, gradient, error)
        return self._rescued[key]

    def _instead(self, name: str, field: str, gradient: bool, error: UnsupportedError) -> float:
        """The population's moment where a formula fails; ``error`` where there is none."""
        program = self.derivation.program
        if self.derivation.bodies or any(getattr(v, "ndim", 0) for v in self.values.values()):
            raise error
        value = (program.gradients if gradient else program.values)[name]
        try:
            self.require_number(value, field)
            return float(getattr(self._population, field)[value])
        except Divergent:
            raise
        except UnsupportedError:
            raise error from None

    def _by_formula(self, name: str, quantity: Quantity | None, field: str, gradient: bool) -> Any:
        exact = self._in_profile(name, field, gradient)
        if exact is not None:
            return 0.0 if self._is_rounding(exact, quantity, gradient) else exact
        uneven = field == "second_moment" and self.of_population(name, gradient)
        measured = uneven or quantity is None or getattr(quantity, "tier", "") == "population"
        if not uneven and quantity is not None and not (measured and self.derivation.bodies):
            return self._evaluation.of(quantity)
        if self.derivation.bodies:
            plain = name.replace("[l]", f"[{int(self.values[STEP.name])}]")
            return self._unrolled.node(plain)["grad_second_moment" if gradient else field]
        program = self.derivation.program
        value = (program.gradients if gradient else program.values)[name]
        self.require_number(value, field)
        return float(getattr(self._population, field)[value])

    def second(self, name: str) -> Any:
        """E[x^2] of a node."""
        return self.of(name, self.derivation[name].forward.second, "second_moment")

    def gradient(self, name: str) -> Any:
        """E[(dL/dx)^2] of a node; zero where no gradient arrives."""
        law = self.derivation[name].backward
        return 0.0 if law is None else self.of(name, law.second, "second_moment", gradient=True)

    def node(self, name: str) -> dict[str, Any]:
        """All fields of one node."""
        d = self.derivation
        law, q, g = d[name], self.second(name), self.gradient(name)
        m = self.of(name, law.forward.mean, "mean")
        source = d.single_input(name)
        result: dict[str, Any] = {
            "mean": m, "second_moment": q, "variance": q - m * m,
            "gain": _ratio(q, self.second(d.inputs[0])) if len(d.inputs) == 1 else None,
            "local_gain": _ratio(q, self.second(source)) if source else None,
            "grad_second_moment": g, "grad_gain": g, "grad_local_gain": None,
        }
        if source and d.readers(source) == 1 and np.all(g != 0):
            result["grad_local_gain"] = self.gradient(source) / g
        if self.of_population(name) or (law.tier == "population" and not d.bodies and self.profile is None):
            result["standard_error"] = self._population.standard_error_second_moment[d.program.values[name]]
            if law.closure is not None:
                closure = Numbers(d.closed, self._given).second(name)
                result |= {"closure": closure, "closure_error": abs(closure / q - 1)}
        return result
