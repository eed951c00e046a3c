"""How the compiled code is compiled: the one place that knows numba's decorators.

`inline` functions hold arithmetic only and serve the processor and CUDA alike; `device` and `reduction` functions work
on buffers inside one thread; `kernel` functions loop over draws without the interpreter's lock, and `over_draws` runs
them on plain threads (a compiled parallel loop costs several times the compilation, and its threading layers do not
survive forks or calls from several threads). Machine code is kept on disk (`machine`), and importing numba takes longer
than most verifications: what it makes of a function is deferred until a kernel has to be compiled.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np

from varflow.simulate.machine import Code, address_of, compiled, is_known

Number = Any
"""A scalar inside compiled code; its numba type follows from the call."""
Array = Any
"""An array inside compiled code."""

CONTRACT = frozenset({"contract"})
FINE = (0, -2)
"""What compiled code returns where nothing went wrong."""


class Deferred:
    """Something of numba's, made when it is first used; compiled code needs the thing itself: see `prepare`."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @cached_property
    def made(self) -> Any:
        """The thing."""
        return self._make()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        prepare()
        return self.made(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.made, name)


_prepared: list[bool] = []


def deferred(make: Callable[[], Any]) -> Any:
    """Something of numba's: from `prepare` on, the thing itself."""
    return make() if _prepared else Deferred(make)


def prepare() -> None:
    """Put what is deferred in its place in all modules of the simulator: names in compiled code are looked up there."""
    if not _prepared:
        _prepared.append(True)
    for name, module in list(sys.modules.items()):
        if name.startswith("varflow.simulate."):
            for key, value in list(vars(module).items()):
                if isinstance(value, Deferred):
                    setattr(module, key, value.made)


def numbas(path: str) -> Any:
    """A module of numba, or a name in one ("module:name"), imported when it is used."""
    module, _, name = path.partition(":")
    return deferred(lambda: getattr(import_module(module), name) if name else import_module(module))


def intrinsic(function: Callable[..., Any]) -> Any:
    """A function that writes LLVM instructions (numba's ``intrinsic``)."""
    return deferred(lambda: import_module("numba.extending").intrinsic(function))


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    return deferred(lambda: import_module("numba").njit(error_model="numpy", **options)(function))


def inline(function: Callable[..., Any]) -> Any:
    """Arithmetic pasted into its callers before typing, so that loops around it vectorize."""
    return _compiled(function, inline="always")


def device(function: Callable[..., Any]) -> Any:
    """A function of one thread, called by kernels; a product and a sum may fuse."""
    return _compiled(function, fastmath=set(CONTRACT))


def reduction(function: Callable[..., Any]) -> Any:
    """A `device` function whose sums may also be reordered into vector lanes: dot products, moments.

    It is pasted into its callers: of a separate function several copies would exist, optimized once or twice and so
    summed in other orders.
    """
    return _compiled(function, forceinline=True, fastmath={"contract", "reassoc", "nsz"})


def kind_of(value: Any) -> Any:
    """What compiled code takes a value as: hashable, with a repr that names the kind on disk."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.ndim, "C" if value.flags.c_contiguous else "A"
    if isinstance(value, tuple):
        return getattr(type(value), "_fields", ()), tuple(map(kind_of, value))
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    return value.dtype.name if isinstance(value, np.generic) else "int64" if isinstance(value, int) else "float64"


def words_of(value: Any) -> list[Any]:
    """A value as numba's calling convention passes it: an array as the fields of its structure (owner and parent, of
    which there are none, entries, bytes of one, address, shape, strides), a tuple as its parts."""
    if isinstance(value, np.ndarray):
        address = value.__array_interface__["data"][0]
        return [None, None, value.size, value.itemsize, address, *value.shape, *value.strides]
    if isinstance(value, tuple):
        return [word for part in value for word in words_of(part)]
    return [float(value) if isinstance(value, (float, np.floating)) else int(value)]


C_TYPES = {
    "bool": ctypes.c_uint8, "int64": ctypes.c_int64, "uint64": ctypes.c_uint64, "float64": ctypes.c_double,
    "float32": ctypes.c_float,
}  # fmt: skip


def c_types_of(kind: Any) -> list[Any]:
    """The types of `words_of` a value."""
    if isinstance(kind, str):
        return [C_TYPES[kind]]
    if len(kind) == 3:
        return [ctypes.c_void_p] * 2 + [ctypes.c_int64] * (3 + 2 * kind[1])
    return [c for part in kind[1] for c in c_types_of(part)]


class Kernel:
    """A function of arrays, numbers and tuples of numbers that returns nothing, compiled for each kind of arguments."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function, self._entries = function, dict[Any, Any]()

    def __call__(self, *arguments: Any) -> None:
        if not is_known():
            self._plain(*arguments)
            return
        kinds = tuple(map(kind_of, arguments))
        self._run(kinds, [word for value in arguments for word in words_of(value)])

    def on(self, *arguments: Any) -> Callable[[int, int], None]:
        """The kernel on these arguments, to be called with ``start`` and ``stop``: they are looked at once."""
        if not is_known():
            return partial(self._plain, *arguments)
        kinds = (*map(kind_of, arguments), "int64", "int64")
        words = [word for value in arguments for word in words_of(value)]
        self._ready(kinds)
        return lambda start, stop: self._run(kinds, [*words, start, stop], arguments)

    def _run(self, kinds: Any, words: list[Any], alive: Any = None) -> None:
        result, error = ctypes.c_void_p(), ctypes.c_void_p()
        if self._ready(kinds)(ctypes.byref(result), ctypes.byref(error), *words) not in FINE:
            raise MemoryError(f"{self.function.__name__} had no memory for its buffers")

    def _ready(self, kinds: Any) -> Callable[..., int]:
        if kinds not in self._entries:
            self._entries[kinds] = self._entry(kinds)
        run: Callable[..., int] = self._entries[kinds]
        return run

    @cached_property
    def _plain(self) -> Any:
        prepare()
        options = {"error_model": "numpy", "fastmath": set(CONTRACT), "nogil": True, "cache": True}
        return import_module("numba").njit(**options)(self.function)

    def _entry(self, kinds: Any) -> Callable[..., int]:
        name = f"{self.function.__module__}.{self.function.__name__}"
        address = address_of(name, repr(kinds), lambda: self._compiled(kinds))
        given = [c for kind in kinds for c in c_types_of(kind)]
        return ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *given)(address)

    def _compiled(self, kinds: Any) -> Code:
        from varflow.simulate.kinds import type_of

        prepare()
        return compiled(self.function, tuple(map(type_of, kinds)), {"fastmath": set(CONTRACT)})


def kernel(function: Callable[..., None]) -> Any:
    """A function ``f(*arguments, start, stop)`` that works through the draws start..stop; see `over_draws`."""
    return Kernel(function)


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
    return getattr(_own, "share", _threads.count)


_own = threading.local()


def own_threads(share: int, run: Callable[[], None]) -> Callable[[], None]:
    """What a thread runs whose kernels use as many threads as its ``share``."""

    def shared() -> None:
        _own.share = share
        run()

    return shared


def over_draws(run: Callable[..., None], draws: int, *arguments: Any) -> None:
    """Call a kernel on pieces of range(draws), in parallel; each draw is worked through by one thread."""
    step = run.on(*arguments) if isinstance(run, Kernel) else partial(run, *arguments)
    threads = get_threads()
    pieces = min(draws, 1 if threads == 1 else 4 * threads)
    if pieces <= 1:
        step(0, draws)
        return
    cuts = [draws * k // pieces for k in range(pieces + 1)]
    pool = _threads.pool()
    for task in [pool.submit(step, a, b) for a, b in pairwise(cuts)]:
        task.result()
