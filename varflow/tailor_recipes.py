"""Published normalizations, as names for conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy as sp

from varflow.composition import Part
from varflow.errors import InputError, require


@dataclass(frozen=True)
class Recipe:
    """Conditions with their values; ``network`` names the one whose value is the caller's ``target``."""

    free: tuple[str, ...]
    conditions: Mapping[str, int]
    reference: str
    network: str = ""
    target: float | None = None


RECIPES: Mapping[str, Recipe] = {
    "standard": Recipe(
        ("a", "d"), {"mean": 0, "variance": 1}, "Klambauer et al. 2017; Brock et al. 2021"
    ),
    "second_moment": Recipe(("a",), {"second_moment": 1}, "He et al. 2015"),
    "gaussian_poincare": Recipe(
        ("a", "d"),
        {"second_moment": 1, "derivative_second_moment": 1},
        "Lu, Gould and Ajanthan 2020",
    ),
    "dks": Recipe(
        ("a", "b", "c", "d"),
        {"c_0": 0, "second_moment": 1, "q_slope": 1},
        "Martens et al. 2021",
        "network_slope",
        1.5,
    ),
    "tat": Recipe(
        ("a", "b", "c", "d"),
        {"second_moment": 1, "q_slope": 1, "c_slope_1": 1},
        "Zhang et al. 2022",
        "network_curvature",
        0.3,
    ),
    "tat_leaky": Recipe(
        ("a", "negative_slope"), {"second_moment": 1}, "Zhang et al. 2022", "network_c_0", 0.9
    ),
}
"""Normalizations by name."""


def recipe(
    activation: str | sp.Expr,
    free: tuple[str, ...],
    conditions: Mapping[str, Any] | str,
    network: Part | int | None,
    target: Any,
) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """(free constants, conditions). Raises InputError for unknown recipes and targets that nothing takes."""
    for text in free:
        require(text, str, f"a free constant {text!r}", '"a", "d"')
    names = tuple(part.strip() for text in free for part in text.split(",") if part.strip())
    if len(set(names)) < len(names):
        raise InputError(f"a constant is named twice: {', '.join(names)}")
    if not isinstance(conditions, str):
        if target is not None:
            raise InputError(
                "a target belongs to a recipe", instead='conditions={"network_slope": 1.5}'
            )
        if not conditions:
            raise InputError("no condition", instead='conditions={"mean": 0, "variance": 1}')
        _require_use(network, any(str(name).startswith("network_") for name in conditions))
        return names or ("a", "d"), conditions
    if conditions not in RECIPES:
        raise InputError(f"there is no recipe {conditions!r}", instead=", ".join(RECIPES))
    if conditions == "tat" and activation == "leaky_relu":
        conditions = "tat_leaky"
    made = RECIPES[conditions]
    if made.network and network is None:
        raise InputError(
            f"{conditions} needs a network", instead="network=100, or composition.residual(...)"
        )
    _require_use(network, bool(made.network))
    if target is not None and not made.network:
        raise InputError(f"{conditions} takes no target")
    goal = {made.network: made.target if target is None else target} if made.network else {}
    return names or made.free, {**made.conditions, **goal}


def _require_use(network: Part | int | None, used: bool) -> None:
    """Raise InputError for a network that no condition speaks of."""
    if network is not None and not used:
        raise InputError("no condition speaks of the network", why="those on it are called network_...",
                         instead='conditions={"network_slope": 1.5}, or the recipe "dks"')
