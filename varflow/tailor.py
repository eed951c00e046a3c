"""Normalizing an activation: constants of a f(b x + c) + d, and of f itself, that meet conditions.

Conditions speak of y = a f(b x + c) + d at x ~ N(0, q): its moments, the slope of the variance map
Q(q) = E y^2, and the correlation map C(c) = E[y(u) y(v)]/E y^2. Known cases: Klambauer et al. 2017 (SELU), Lu,
Gould and Ajanthan 2020 (Gaussian-Poincare), Martens et al. 2021 (DKS), Zhang et al. 2022 (TAT).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from varflow.composition import Part
from varflow.errors import InputError, SolveError
from varflow.gain_fields import variance_of
from varflow.laws.expectation import GaussianExpectation
from varflow.onevariable import activation_in_x, exact, text
from varflow.symbols import X
from varflow.tailor_conditions import CONDITIONS, Condition, conditions_of
from varflow.tailor_model import Tailored
from varflow.tailor_recipes import RECIPES, recipe
from varflow.tailor_solve import solutions_of

OUTER = ("a", "b", "c", "d")
ODD = ("mean", "derivative_mean")
PLAIN = {"a": sp.S.One, "b": sp.S.One, "c": sp.S.Zero, "d": sp.S.Zero}


@dataclass(frozen=True)
class Constants(Mapping[str, sp.Expr]):
    """One answer: the value of every free constant, formulas or numbers.

    ``function`` is the normalized activation in ``symbols.X``; ``residuals`` say by how much each condition is
    missed when the constants are put back (absolute, in the condition's own units).
    """

    constants: Mapping[str, sp.Expr]
    function: sp.Expr
    residuals: Mapping[str, float]

    def __getitem__(self, name: str) -> sp.Expr:
        return self.constants[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.constants)

    def __len__(self) -> int:
        return len(self.constants)

    @property
    def closed_form(self) -> bool:
        """Whether every constant is a formula."""
        return not any(v.has(sp.Float, GaussianExpectation) for v in self.constants.values())

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "constants": {n: text(v) for n, v in self.constants.items()},
            "value": {n: float(v) for n, v in self.constants.items() if not v.free_symbols},
            "function": text(self.function),
            "closed_form": self.closed_form,
            "residuals": dict(self.residuals),
        }


@dataclass(frozen=True)
class Normalization(Mapping[str, sp.Expr]):
    """Every answer to a question of :func:`normalize`; a mapping to the constants of the first one.

    ``solutions``: a > 0 first, then nearest to the activation as it was. ``notes`` say what the reader must
    know: mirror images, other solutions, where a search may have missed some.
    """

    activation: sp.Expr
    q: sp.Expr
    conditions: Mapping[str, sp.Expr]
    solutions: tuple[Constants, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def best(self) -> Constants:
        """The first solution."""
        return self.solutions[0]

    @property
    def function(self) -> sp.Expr:
        """The normalized activation in ``symbols.X``, by the first solution."""
        return self.best.function

    @property
    def residuals(self) -> Mapping[str, float]:
        """By how much the first solution misses each condition."""
        return self.best.residuals

    def __getitem__(self, name: str) -> sp.Expr:
        return self.best[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.best)

    def __len__(self) -> int:
        return len(self.best)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document without its schema number."""
        return {
            "activation": text(self.activation),
            "q": text(self.q),
            "conditions": {n: text(v) for n, v in self.conditions.items()},
            "solutions": [s.to_dict() for s in self.solutions],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        names = ", ".join(f"{n} = {_shown(v)}" for n, v in self.best.items())
        return f"y = {text(self.function)}\n  {names}"

    def _repr_latex_(self) -> str:
        rows = [rf"y &= {sp.latex(self.function)}"]
        rows += [rf"{sp.latex(sp.Symbol(n))} &= {sp.latex(v)}" for n, v in self.best.items()]
        return "$\\begin{aligned}" + r" \\ ".join(rows) + "\\end{aligned}$"


def _shown(value: sp.Expr) -> str:
    if value.is_number and not value.is_Rational:
        return (
            f"{text(value)} = {float(value):.12g}"
            if not value.has(sp.Float)
            else f"{float(value):.12g}"
        )
    return text(value)


def normalize(
    activation: str | sp.Expr,
    *free: str,
    conditions: Mapping[str, Any] | str = "standard",
    q: Any = 1,
    fixed: Mapping[str, Any] | None = None,
    network: Part | int | None = None,
    target: Any = None,
) -> Normalization:
    """Constants with which y = a f(b x + c) + d, x ~ N(0, q), meets conditions.

    ``activation``: a name, a text in ``x`` or an expression. ``free``: the constants to find: of a, b (> 0), c,
    d, and of the activation's own parameters by name (``"alpha"`` of elu); [default: those of the recipe, or a
    and d]. ``fixed`` gives others a value; a constant in neither is absent (a = b = 1, c = d = 0, parameters at
    their defaults). ``conditions``: names of ``tailor.CONDITIONS``, or expressions in y, dy, ddy (its
    derivatives) and x whose expectation is meant, with their values; or a recipe: "standard" (mean 0, variance
    1), "second_moment", "gaussian_poincare", "dks" (``target``: the network's maximal C'(1), zeta) and "tat"
    (its maximal C''(1), tau; for ``free`` parameters of a kinked f its C(0), eta). ``network``: a Part or a depth,
    for conditions on it (``network_...``).

    Answers are put back and residuals reported. Raises SolveError where there is none, InputError for conditions
    that do not determine the free constants.
    """
    names, wanted = recipe(activation, free, conditions, network, target)
    f, own = _with_parameters(activation, [n for n in names if n not in OUTER])
    symbols = {n: _symbol(n, wanted) for n in names if n in OUTER} | own
    values = {n: exact(v) for n, v in (fixed or {}).items()}
    _check_names(symbols, values, f)
    f = f.xreplace({sp.Symbol(n, real=True): v for n, v in values.items() if n not in OUTER})
    a, b, c, d = (symbols.get(n, values.get(n, PLAIN[n])) for n in OUTER)
    spread = variance_of(exact(q), "variance q")
    subject = Tailored(f, a, b, c, d, spread)
    asked = conditions_of(wanted, subject, network)
    found = solutions_of(subject, asked, [symbols[n] for n in names], _start(activation))
    answers = _answers(subject, asked, symbols, found.tables)
    if not answers:
        raise SolveError(f"no {', '.join(names)} meets {_listed(asked)}", why=found.reason)
    return Normalization(
        f,
        spread,
        {c.name: c.target for c in asked},
        tuple(answers),
        _notes(answers, symbols, found.searched),
    )


def _symbol(name: str, wanted: Mapping[str, Any]) -> sp.Symbol:
    """b > 0, since x is symmetric; a > 0 where every condition holds for (-a, -d) too."""
    even = all(n in CONDITIONS and (n not in ODD or exact(v) == 0) for n, v in wanted.items())
    return (
        sp.Symbol(name, positive=True)
        if name == "b" or (name == "a" and even)
        else sp.Symbol(name, real=True)
    )


def _with_parameters(
    activation: str | sp.Expr, names: Sequence[str]
) -> tuple[sp.Expr, dict[str, sp.Symbol]]:
    """The activation with the named parameters as symbols, and these symbols."""
    from varflow.activations import ACTIVATIONS, parameter

    symbols = {n: parameter(n) for n in names}
    if isinstance(activation, str) and activation in ACTIVATIONS:
        known = dict(ACTIVATIONS[activation].parameters)
        for name in names:
            if name not in known:
                raise InputError(
                    f"{activation} has no parameter {name!r}", instead=", ".join([*OUTER, *known])
                )
        return ACTIVATIONS[activation].at(X, symbols), symbols
    f = activation_in_x(activation)
    present = {s.name: s for s in f.free_symbols - {X}}
    for name in names:
        if name not in present:
            raise InputError(
                f"the activation has no parameter {name!r}", instead=", ".join([*OUTER, *present])
            )
    return f, {n: present[n] for n in names}


def _check_names(
    symbols: Mapping[str, sp.Symbol], values: Mapping[str, sp.Expr], f: sp.Expr
) -> None:
    both = sorted(symbols.keys() & values.keys())
    if both:
        raise InputError(f"{', '.join(both)} cannot be free and fixed", why="a and d are free where none are named",
                         instead="other names to be free")
    clash = sorted(s.name for s in f.free_symbols - {X} if s.name in OUTER)
    if clash:
        raise InputError(
            f"the activation's parameter {clash[0]!r} has the name of an outer constant",
            why="y = a f(b x + c) + d",
            instead="another name for it",
        )
    known = {s.name for s in f.free_symbols} | set(OUTER)
    unknown = sorted(n for n in values if n not in known)
    if unknown:
        raise InputError(
            f"there is no constant {unknown[0]!r} to fix", instead=", ".join(sorted(known - {"x"}))
        )


def _start(activation: str | sp.Expr) -> dict[str, float]:
    """Defaults of the activation's parameters, from which the search for a solution begins."""
    from varflow.activations import ACTIVATIONS

    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        return {}
    return {n: float(v) for n, v in ACTIVATIONS[activation].parameters}


def _answers(
    subject: Tailored,
    asked: Sequence[Condition],
    symbols: Mapping[str, sp.Symbol],
    tables: Sequence[dict[sp.Symbol, sp.Expr]],
) -> list[Constants]:
    made: list[Constants] = []
    for table in tables:
        residuals = {c.name: c.missed(subject, table) for c in asked}
        if max(residuals.values()) <= 1e-8:
            values = {n: table[s] for n, s in symbols.items()}
            made.append(Constants(values, subject.function(table), residuals))
    return made


def _listed(asked: Sequence[Condition]) -> str:
    return ", ".join(f"{c.name} = {c.target}" for c in asked)


def _notes(
    answers: Sequence[Constants], symbols: Mapping[str, sp.Symbol], searched: bool
) -> tuple[str, ...]:
    notes = []
    if "a" in symbols and symbols["a"].is_positive:
        notes.append("The negative of y meets the conditions as well.")
    if len(answers) > 1:
        notes.append(
            f"{len(answers)} solutions; the first is the nearest to the activation as it was."
        )
    if searched:
        notes.append("Found by a search from many starting points: there may be other solutions.")
    return tuple(notes)


__all__ = ["CONDITIONS", "RECIPES", "Constants", "Normalization", "normalize"]
