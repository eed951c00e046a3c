"""What a command works on: the network of a file, its derivation, its solution, the values that were set."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

from varflow.cli_print import hint
from varflow.derive import Derivation, derive
from varflow.errors import ErrorList, InputError, UnsupportedError
from varflow.evaluate import check_value
from varflow.expressions import parse
from varflow.fields import closest
from varflow.load import load
from varflow.network import Network
from varflow.solve import Solution, solve


def read_values(settings: Sequence[str]) -> dict[str, float]:
    """``NAME=VALUE`` texts as numbers. Raises InputError for other texts and names set twice."""
    values: dict[str, float] = {}
    for text in settings:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not name or not equals:
            raise InputError(f"--set {text!r} is not NAME=VALUE", instead="--set n=512")
        if name in values:
            raise InputError(f"--set gives {name!r} twice")
        values[name] = _number(name, value)
    return values


def _number(name: str, text: str) -> float:
    expr = parse(text, lambda _: None, where=f"--set {name}")
    if not expr.is_number or not expr.is_finite or not expr.is_real or abs(expr) > sys.float_info.max:
        raise InputError(f"--set {name}={text} is not a finite number", instead=f"--set {name}=512")
    return int(expr) if expr.is_integer else float(expr)


@dataclass(frozen=True)
class Conditions:
    """What to solve for: ``--preserve``, ``--growth``, ``--equation`` and ``--unknown``."""

    preserve: str | None = None
    growth: str | None = None
    equations: Sequence[str] = ()
    unknowns: Sequence[str] = ()

    @property
    def given(self) -> bool:
        """Whether any was stated."""
        return self.preserve is not None or self.growth is not None or bool(self.equations or self.unknowns)


@dataclass(frozen=True)
class Subject:
    """A network with its laws; ``solution`` where its unknown scales were solved for."""

    derivation: Derivation
    solution: Solution | None
    values: Mapping[str, float]

    @property
    def result(self) -> Solution | Derivation:
        """The solution if there is one, else the derivation."""
        return self.solution or self.derivation

    @property
    def missing(self) -> list[str]:
        """Symbols that numbers need and that were not set."""
        return sorted(self.derivation.free_symbols() - set(self.values))

    def require_values(self) -> None:
        """Raise InputError naming every symbol that has no number."""
        if self.missing:
            raise InputError(f"no value for {', '.join(self.missing)}", why="a simulation needs numbers",
                             instead=" ".join(f"--set {name}=NUMBER" for name in self.missing))

    @staticmethod
    def load(graph: str, settings: Sequence[str], conditions: Conditions, solve: bool | None = None) -> Subject:
        """Read, derive and (``solve``: always, never, or None: where something is unknown or asked) solve."""
        values = read_values(settings)
        network, given = _network(graph, values)
        values = {name: value for name, value in values.items() if name not in given}
        derivation = derive(network)
        wanted = solve if solve is not None else conditions.given or bool(derivation.unknowns())
        scales = {s.name for s in derivation.unknowns().values()} & values.keys()
        if wanted and scales:  # weights whose scales are set need not be solved for
            derivation = derive(network.bind({name: values.pop(name) for name in sorted(scales)}))
            wanted = bool(solve) or conditions.given or bool(derivation.unknowns())
        solution = _solution(derivation, conditions) if wanted else None
        if solution is not None:
            derivation = solution.derivation
        _check_names(values, derivation)
        return Subject(derivation, solution, values)


def _network(graph: str, values: Mapping[str, float]) -> tuple[Network, tuple[str, ...]]:
    """The network, and the names of values that were put in while its file was read: none where it can be read with
    symbols, else the fewest without which its layers have no windows, as adaptive pooling."""
    try:
        return load(graph), ()
    except ErrorList as error:
        if not values or not all(isinstance(e, UnsupportedError) for e in error.errors):
            raise
        for count in range(1, len(values)):
            for names in combinations(values, count):
                with suppress(ErrorList):
                    return load(graph, {name: values[name] for name in names}), names
        return load(graph, values), tuple(values)


def _solution(derivation: Derivation, asked: Conditions) -> Solution:
    solution = solve(derivation, asked.preserve, growth=asked.growth, equations=asked.equations,
                     unknowns=asked.unknowns)
    equations = [a.unknown.name for a in solution.answers[len(solution.answers) - len(asked.equations):]]
    unknown = sorted({s.name for s in derivation.unknowns().values()} - set(equations))
    source = "as asked" if asked.preserve else "by the network's preserve"
    told = [f"{', '.join(unknown)}: preserve {solution.preserve} ({source})"] if unknown else []
    told += [f"{', '.join(equations)}: by {'an equation' if len(equations) == 1 else 'equations'}"] if equations else []
    if told:
        hint(f"solved for {'; '.join(told)}")
    return solution


def _check_names(values: Mapping[str, float], derivation: Derivation) -> None:
    known = derivation.free_symbols() | set(derivation.network.symbols)
    for name in values:
        if name not in known:
            raise InputError(f"--set {name}: the network has no such symbol",
                             instead=closest(name, sorted(known)) if known else "no --set: it has no symbols")
        if name in derivation.network.symbols:
            check_value(name, derivation.network.symbols[name], values[name])
        elif values[name] < 0:
            raise InputError(f"--set {name}: the scale {values[name]} is negative", why="it is fan_in Var(W_ij)",
                             instead=f"--set {name}=2")
