"""How the compiled code is compiled: the one place that talks to numba's decorators.

`inline` functions hold arithmetic only and serve the processor and CUDA alike; `device` functions work on
buffers inside one thread; `kernel` functions run in parallel over draws. All are cached on disk under a stamp
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

Compiled = TypeVar("Compiled", bound=Callable[..., Any])

COMPILED_MODULES = ("jit", "rng", "elementary", "vm", "kernels", "kernels_pointwise", "kernels_standardize")
FAST = {"contract", "reassoc", "nsz"}


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
    """A function of one thread, called by kernels; products and sums may fuse, sums may be reordered."""
    return _compile(function, fastmath=FAST)


def kernel(function: Compiled) -> Compiled:
    """A function that runs in parallel over draws."""
    return _compile(function, parallel=True, fastmath=FAST)
