"""Compiled functions that others call by address: each is compiled by itself, once, when it is first needed.

A function that numba links into its callers is optimized and translated again in every one of them; a step of a
tape or of the pointwise machine that is a handler costs its compilation once, and only in programs that use it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from varflow.simulate.jit import STAMP


def _pointer_to(kind: Any) -> Any:
    """The pointer of an address, as compiled code sees it."""
    pointers: Any = types.CPointer

    def pointer(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return pointers(kind)(types.int64), generate

    return intrinsic(pointer)


pointer: Any = _pointer_to(types.float32)
pointer_to_integers: Any = _pointer_to(types.int64)
pointer_to_words: Any = _pointer_to(types.uint32)
pointer_to_doubles: Any = _pointer_to(types.float64)


class Handler:
    """A function of int64 arguments (numbers, or addresses of buffers) that returns nothing."""

    def __init__(self, function: Callable[..., None], fastmath: set[str]) -> None:
        self.function, self.fastmath = function, fastmath

    @cached_property
    def address(self) -> int:
        """Where its machine code is; compiled, or read from numba's cache, when first asked for."""
        signature: Any = ((types.int64,) * self.function.__code__.co_argcount, types.void)
        options = {"error_model": "numpy", "fastmath": self.fastmath}
        made: Any = CFunc(self.function, signature, {}, options)
        made.enable_caching()
        made._cache._cache_file._source_stamp = STAMP
        made.compile()
        return int(made.address)


def handler(function: Callable[..., None]) -> Handler:
    """A function of one thread, called by address; a product and a sum may fuse."""
    return Handler(function, {"contract"})


def _emit_call(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
    address, *given = arguments
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * len(given))
    b.call(b.inttoptr(address, kind.as_pointer()), given)
    return context.get_dummy_value()


def _call_three(typing: Any, address: Any, a: Any, b: Any, c: Any) -> Any:
    """Call the handler of three integers at an address."""
    return types.void(*[types.int64] * 4), _emit_call


def _call_five(typing: Any, address: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """Call the handler of five integers at an address."""
    return types.void(*[types.int64] * 6), _emit_call


call_three: Any = intrinsic(_call_three)
call_five: Any = intrinsic(_call_five)
