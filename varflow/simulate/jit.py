"""How the compiled code is compiled: the one place that talks to numba's decorators.

`inline` functions hold arithmetic only and serve the processor and CUDA alike; `device` and `reduction`
functions work on buffers inside one thread; `kernel` functions loop over draws without the interpreter's lock,
and `over_draws` runs them on plain threads (a compiled parallel loop costs several times the compilation, and
its threading layers do not survive forks or calls from several threads). All are cached on disk under a stamp
taken from the text of every compiled module, since numba itself looks only at the caller's file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

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
    "handlers",
    "lanes",
    "steps",
    "vectors",
    "vm",
    "kernels",
    "kernels_collapse",
    "kernels_gradient",
    "kernels_haar",
    "kernels_narrow",
    "kernels_pointwise",
    "kernels_pool",
    "kernels_product",
    "kernels_standardize",
    "kernels_tape",
    "kernels_window",
    "tiles",
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
    """A `device` function whose sums may also be reordered into vector lanes: dot products, moments.

    It is pasted into its callers: of a separate function several copies exist, optimized once or twice and so summed
    in other orders, and which one is called would depend on what the process compiled or loaded before.
    """
    return _compile(function, forceinline=True, fastmath={"contract", "reassoc", "nsz"})


def kernel(function: Compiled) -> Compiled:
    """A function ``f(*arguments, start, stop)`` that works through the draws start..stop; see `over_draws`."""
    return _compile(function, nogil=True, fastmath={"contract"})


class _Threads:
    """The threads kernels run on, made on first use and again in a forked process."""

    def __init__(self) -> None:
        self.count = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        self._made: tuple[tuple[int, int], ThreadPoolExecutor] | None = None

    def pool(self) -> ThreadPoolExecutor:
        key = (os.getpid(), self.count)
        if self._made is None or self._made[0] != key:
            self._made = (key, ThreadPoolExecutor(self.count, thread_name_prefix="varflow"))
        return self._made[1]


_threads = _Threads()


def set_threads(count: int) -> None:
    """Number of threads that kernels use from now on; no result depends on it."""
    _threads.count = max(1, int(count))


def get_threads() -> int:
    """Number of threads that kernels use."""
    return _threads.count


def over_draws(run: Callable[..., None], draws: int, *arguments: Any) -> None:
    """Call a kernel on pieces of range(draws), in parallel; each draw is worked through by one thread."""
    pieces = min(draws, 1 if _threads.count == 1 else 4 * _threads.count)
    if pieces <= 1:
        run(*arguments, 0, draws)
        return
    cuts = [draws * k // pieces for k in range(pieces + 1)]
    pool = _threads.pool()
    for task in [pool.submit(run, *arguments, a, b) for a, b in pairwise(cuts)]:
        task.result()
