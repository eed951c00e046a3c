"""Arguments of kernels as compiled code finds them: integers at an address made arrays, numbers and tuples again.

Imported where something is compiled, and nowhere else: it needs numba.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from llvmlite import ir

types: Any = import_module("numba.types")
intrinsic: Any = import_module("numba.extending").intrinsic
populate_array: Any = import_module("numba.np.arrayobj").populate_array
from_dtype: Any = import_module("numba.np.numpy_support").from_dtype
_LONG, _DOUBLE = ir.IntType(64), ir.DoubleType()


@cache
def _named(fields: tuple[str, ...]) -> Any:
    return namedtuple("Fields", fields)


def type_of(kind: Any) -> Any:
    """The numba type of what `jit.kind_of` names."""
    if isinstance(kind, str):
        return types.boolean if kind == "bool" else from_dtype(np.dtype(kind))
    if len(kind) == 3:
        return types.Array(from_dtype(np.dtype(kind[0])), kind[1], kind[2])
    fields, kinds = kind
    parts = tuple(map(type_of, kinds))
    return types.NamedTuple(parts, _named(fields)) if fields else types.BaseTuple.from_types(parts)


def unpacked(kinds: Any) -> Any:
    """The intrinsic that reads arguments of these kinds, as `jit.words_of` writes them, and returns them as a tuple."""
    wanted = types.Tuple([type_of(kind) for kind in kinds])

    def declare(typing: Any, address: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            words = _words(builder, arguments[0])
            parts = [_value(context, builder, kind, words) for kind in wanted]
            return context.make_tuple(builder, wanted, parts)

        return wanted(types.int64), emit

    return intrinsic(declare)


def _words(builder: Any, address: Any) -> Iterator[Any]:
    first = builder.inttoptr(address, _LONG.as_pointer())
    number = 0
    while True:
        yield builder.load(builder.gep(first, [_LONG(number)]))
        number += 1


def _value(context: Any, builder: Any, kind: Any, words: Iterator[Any]) -> Any:
    if isinstance(kind, types.Array):
        return _array(context, builder, kind, words)
    if isinstance(kind, types.BaseTuple):
        return context.make_tuple(builder, kind, [_value(context, builder, k, words) for k in kind])
    word = next(words)
    if isinstance(kind, types.Float):
        number = builder.bitcast(word, _DOUBLE)
        return number if kind.bitwidth == 64 else builder.fptrunc(number, ir.FloatType())
    size = context.get_value_type(kind)
    return word if size == _LONG else builder.trunc(word, size)


def _array(context: Any, builder: Any, kind: Any, words: Iterator[Any]) -> Any:
    array = context.make_array(kind)(context, builder)
    data = builder.inttoptr(next(words), context.get_data_type(kind.dtype).as_pointer())
    shape, strides = ([next(words) for _ in range(kind.ndim)] for _ in range(2))
    populate_array(array, data, shape, strides, np.dtype(str(kind.dtype)).itemsize, meminfo=None)
    return array._getvalue()
