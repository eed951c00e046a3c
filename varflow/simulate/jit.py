"""How the compiled code is compiled: the one place that talks to numba's decorators.

`inline` functions hold arithmetic only and serve the processor and CUDA alike; `device` and `reduction`
functions work on buffers inside one thread; `kernel` functions run in parallel over draws. All are cached on disk under a stamp
taken from the text of every compiled module, since numba itself looks only at the caller's file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numba

Number = Any
"""A scalar inside compiled code; its numba type follows from the call."""
Array = Any
"""An array inside compiled code."""
Compiled = TypeVar("Compiled", bound=Callable[..., Any])

COMPILED_MODULES = (
    "jit",
    "rng",
    "elementary",
    "vm",
    "kernels",
    "kernels_pointwise",
    "kernels_standardize",
)


def _stamp() -> tuple[str, int]:
    folder = Path(__file__).parent
    files = sorted(folder / f"{name}.py" for name in COMPILED_MODULES)
    text = b"".join(file.read_bytes() for file in files if file.exists())
    return hashlib.sha256(text).hexdigest(), len(text)


STAMP = _stamp()


def _compile(function: Compiled, **options: Any) -> Compiled:
    dispatcher: Any = numba.njit(cache=True, error_model="numpy", **options)(function)
    index = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if index is not None:
        index._source_stamp = STAMP
    return dispatcher  # type: ignore[no-any-return]


def inline(function: Compiled) -> Compiled:
    """Arithmetic pasted into its callers before typing, so that loops around it vectorize."""
    dispatcher: Any = numba.njit(inline="always", error_model="numpy")(function)
    return dispatcher  # type: ignore[no-any-return]


def device(function: Compiled) -> Compiled:
    """A function of one thread, called by kernels; a product and a sum may fuse."""
    return _compile(function, fastmath={"contract"})


def reduction(function: Compiled) -> Compiled:
    """A `device` function whose sums may also be reordered into vector lanes: dot products, moments."""
    return _compile(function, fastmath={"contract", "reassoc", "nsz"})


def kernel(function: Compiled) -> Compiled:
    """A function that runs in parallel over draws."""
    return _compile(function, parallel=True, fastmath={"contract"})
