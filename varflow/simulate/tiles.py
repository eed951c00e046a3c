"""Tiles of a matrix product in registers: the inner loop of every product over many places.

A tile adds to ``height`` places x ``WIDTH`` channels of a result the sum over taps and depth of input entries
(read in place through row numbers, after Dukhan 2019, arXiv:1907.02129) times packed weights. It is written in
LLVM's vector instructions, since no loop is compiled to them reliably; every entry is one chain of multiply-adds
in the order of taps and depth, so its bits depend neither on the tile's size nor on its place in the grid.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils as untyped_cgutils
from numba.extending import intrinsic

LANES = 16
"""Entries of one vector: a register of AVX-512, two of AVX2, four of NEON."""


def _has_wide_registers() -> bool:
    try:
        return bool(binding.get_host_cpu_features().get("avx512f", False))
    except RuntimeError:
        return False


VECTORS, TALL = (2, 8) if _has_wide_registers() else (1, 6)
WIDTH = VECTORS * LANES
"""Channels of a tile."""
SHORT = 4
"""Places of the lower tile, where fewer than TALL are left; one tile has TALL row numbers in either case."""

cgutils: Any = untyped_cgutils
_FLOAT, _LONG, _INT = ir.FloatType(), ir.IntType(64), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)


def _tile(height: int) -> Any:
    """The intrinsic ``tile(out, weights, rows, taps, count, base, stride, zeros, depth)``.

    All arguments are int64, most of them addresses: ``out`` float32 (height, WIDTH), added to; ``weights`` packed
    float32 (taps, depth, WIDTH); ``rows`` int32 (count, TALL), where a negative number reads ``zeros``; ``taps``
    int32 (count,); input row r lies ``r stride`` bytes behind ``base``, ``depth`` float32 long.
    """

    def declare(
        typing: Any, out: Any, weights: Any, rows: Any, taps: Any, count: Any, base: Any, stride: Any, zeros: Any,
        depth: Any,
    ) -> Any:  # fmt: skip
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _emit(builder, height, *arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), emit

    return intrinsic(declare)


def _emit(
    b: Any, height: int, out: Any, weights: Any, rows: Any, taps: Any, count: Any, base: Any, stride: Any,
    zeros: Any, depth: Any,
) -> None:  # fmt: skip
    sums = [[cgutils.alloca_once(b, _VECTOR) for _ in range(VECTORS)] for _ in range(height)]
    places = [
        [b.gep(_pointer(b, out, _VECTOR), [_LONG(m * VECTORS + v)]) for v in range(VECTORS)] for m in range(height)
    ]
    _copy(b, places, sums)
    with cgutils.for_range(b, count, intp=_LONG) as loop:
        tap = b.sext(b.load(b.gep(_pointer(b, taps, _INT), [loop.index])), _LONG)
        size = b.mul(depth, _LONG(WIDTH))
        packed = b.gep(_pointer(b, weights, _FLOAT), [b.mul(tap, size)])
        first = b.gep(_pointer(b, rows, _INT), [b.mul(loop.index, _LONG(TALL))])
        inputs = [_row(b, first, m, base, stride, zeros) for m in range(height)]
        _accumulate(b, sums, inputs, packed, depth)
    _copy(b, sums, places)


def _pointer(b: Any, address: Any, kind: Any) -> Any:
    return b.inttoptr(address, kind.as_pointer())


def _row(b: Any, numbers: Any, m: int, base: Any, stride: Any, zeros: Any) -> Any:
    """Start of the input row that place m of the tile reads."""
    number = b.sext(b.load(b.gep(numbers, [_LONG(m)])), _LONG)
    inside = b.add(base, b.mul(number, stride))
    return _pointer(b, b.select(b.icmp_signed("<", number, _LONG(0)), zeros, inside), _FLOAT)


def _accumulate(b: Any, sums: Any, inputs: Any, packed: Any, depth: Any) -> None:
    """The loop over the depth of one tap."""
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    everywhere = ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES)
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    multiply_add = cgutils.get_or_insert_function(b.module, kind, f"llvm.fmuladd.v{LANES}f32")
    with cgutils.for_range(b, depth, intp=_LONG) as loop:
        start = b.gep(packed, [b.mul(loop.index, _LONG(WIDTH))])
        vectors = b.bitcast(start, _VECTOR.as_pointer())
        weights = [_load(b, b.gep(vectors, [_LONG(v)])) for v in range(VECTORS)]
        for row, into in zip(inputs, sums, strict=True):
            one = b.insert_element(nothing, b.load(b.gep(row, [loop.index])), _INT(0))
            entry = b.shuffle_vector(one, nothing, everywhere)
            for weight, place in zip(weights, into, strict=True):
                b.store(b.call(multiply_add, [entry, weight, b.load(place)]), place)


def _load(b: Any, place: Any) -> Any:
    value = b.load(place)
    value.align = 4
    return value


def _copy(b: Any, sources: Any, targets: Any) -> None:
    for many, into in zip(sources, targets, strict=True):
        for source, target in zip(many, into, strict=True):
            b.store(_load(b, source), target).align = 4


tall_tile = _tile(TALL)
short_tile = _tile(SHORT)
