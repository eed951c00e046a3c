"""Compiled functions that others call by address: each is compiled by itself, once, when it is first needed.

A function that numba links into its callers is optimized and translated again in every one of them; a step of a
tape or of the pointwise machine that is a handler costs its compilation once, and only in programs that use it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from typing import Any

from llvmlite import ir

from varflow.simulate.jit import CONTRACT, intrinsic, numbas, prepare
from varflow.simulate.machine import Code, address_of, compiled, is_known

cgutils, types = numbas("numba.core.cgutils"), numbas("numba.types")
carray = numbas("numba:carray")


def _pointer_to(name: str) -> Any:
    """The pointer of an address, as compiled code sees it."""

    def pointer(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(getattr(types, name))(types.int64), generate

    return intrinsic(pointer)


pointer = _pointer_to("float32")
pointer_to_integers = _pointer_to("int64")
pointer_to_words = _pointer_to("uint32")
pointer_to_doubles = _pointer_to("float64")


class Handler:
    """A function of int64 arguments (numbers, or addresses of buffers) that returns nothing."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function

    @cached_property
    def address(self) -> int:
        """Where its machine code is; compiled, or read from the disk, when first asked for."""
        if not is_known():
            return int(self._plain.address)
        return address_of(f"{self.function.__module__}.{self.function.__name__}", "", self._compiled)

    @cached_property
    def _plain(self) -> Any:
        """A function in C's convention, which any numba can make."""
        prepare()
        options = {"error_model": "numpy", "fastmath": set(CONTRACT), "cache": True}
        return import_module("numba").cfunc(types.void(*self._arguments), **options)(self.function)

    def _compiled(self) -> Code:
        prepare()
        return compiled(self.function, self._arguments, {"fastmath": set(CONTRACT)})

    @property
    def _arguments(self) -> tuple[Any, ...]:
        return (types.int64,) * self.function.__code__.co_argcount


def handler(function: Callable[..., None]) -> Handler:
    """A function of one thread, called by address; a product and a sum may fuse."""
    return Handler(function)


def _emit_call(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
    """A call in numba's convention: places for a result and an exception, of which there are none, come first. In C's
    convention where numba's is not known."""
    address, *given = arguments
    if not is_known():
        plain = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * len(given))
        b.call(b.inttoptr(address, plain.as_pointer()), given)
        return context.get_dummy_value()
    nothing = ir.IntType(8).as_pointer()
    places = [cgutils.alloca_once(b, nothing) for _ in range(2)]
    kind = ir.FunctionType(ir.IntType(32), [nothing.as_pointer()] * 2 + [ir.IntType(64)] * len(given))
    b.call(b.inttoptr(address, kind.as_pointer()), [*places, *given])
    return context.get_dummy_value()


def _call_three(typing: Any, address: Any, a: Any, b: Any, c: Any) -> Any:
    """Call the handler of three integers at an address."""
    return types.void(*[types.int64] * 4), _emit_call


def _call_five(typing: Any, address: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """Call the handler of five integers at an address."""
    return types.void(*[types.int64] * 6), _emit_call


call_three = intrinsic(_call_three)
call_five = intrinsic(_call_five)
