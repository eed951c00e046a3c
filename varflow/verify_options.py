"""What a verification may be asked for: checked before anything is derived."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real

from varflow.errors import InputError, MissingExtraError, require, require_path
from varflow.simulate.backends import check_backend
from varflow.simulate.collapsed import check_method
from varflow.simulate.rng import check_counter

FINEST = 1e-6
"""The smallest precision that single precision can show."""


def check_options(
    draws: int | None = None, seed: int = 0, *, backend: str = "cpu", method: str = "auto", cluster: str | None = None,
    delta: float = 0.02, confidence: float = 0.99, precision: float | None = None, max_draws: int | None = None,
    max_time: float | None = None, threads: int | None = None, width_scale: Sequence[float] | None = None,
    store: str | os.PathLike[str] | None = None, resume: bool = False,
) -> None:  # fmt: skip
    """Raise InputError for options of `varflow.verify.verify` that have no meaning, MissingExtraError or
    UnsupportedError for those that cannot be met here."""
    _check_types(seed, threads, {"delta": delta, "confidence": confidence, "max_time": max_time}, store)
    check_counter(seed, 0, 0, 0, 0)
    check_backend(backend)
    check_method(method)
    if cluster is not None:
        raise MissingExtraError("clusters are not in this version", instead="cluster=None")
    if not 0 < delta < 0.5:
        raise InputError(f"a tolerance delta of {delta}", why="it is a share of the prediction, below one half",
                         instead="delta=0.02")
    if not 0 < confidence < 1:
        raise InputError(f"a confidence of {confidence}", why="it is a probability", instead="confidence=0.99")
    _check_limits(draws, precision, max_draws, max_time, threads)
    if not all(0 < f < math.inf for f in width_scale or ()):
        raise InputError(f"widths times {width_scale} are no widths", instead="positive multiples, such as 0.25 0.5 1")
    if resume and store is None:
        raise InputError("there is no store to go on with", instead="a store (--store FILE) with resume")


def _check_types(seed: object, threads: object, reals: Mapping[str, object], store: object) -> None:
    require(seed, Integral, "the seed", "a whole number: seed=0")
    if threads is not None:
        require(threads, Integral, "the number of threads", "a whole number, or None for all")
    for name, value in reals.items():
        if value is not None or name != "max_time":
            require(value, Real, name, f"a number: {name}=0.02")
    if store is not None:
        require_path(store, "the store", 'a path: store="run.db"')


def _check_limits(
    draws: int | None, precision: float | None, max_draws: int | None, max_time: float | None, threads: int | None
) -> None:
    if draws is not None and not (isinstance(draws, int) and draws >= 2):
        raise InputError(f"{draws} draws give no interval", instead="a whole number, at least 2")
    if precision is not None and not (isinstance(precision, (int, float)) and FINEST <= precision < math.inf):
        raise InputError(f"precision {precision} cannot be reached", instead="a positive share, such as 0.01")
    if max_draws is not None and not (isinstance(max_draws, int) and max_draws >= 2):
        raise InputError(f"at most {max_draws} draws give no interval", instead="a whole number, at least 2")
    if max_time is not None and not max_time >= 0:
        raise InputError(f"max_time {max_time} is no time", instead="seconds, 0 or more")
    if threads is not None and threads < 1:
        raise InputError(f"{threads} threads draw nothing", instead="1 or more")
