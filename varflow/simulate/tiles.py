"""Tiles of a matrix product in registers: the inner loop of every product over many places.

A tile adds to ``height`` places x ``WIDTH`` channels of a result the sum over taps and depth of input entries
(read in place through row numbers, after Dukhan 2019, arXiv:1907.02129) times packed weights. It is written in
LLVM's vector instructions, since no loop is compiled to them reliably; every entry is one chain of multiply-adds
in the order of taps and depth, so its bits depend neither on the tile's size nor on its place in the grid.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir

from varflow.simulate.jit import intrinsic, numbas

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

cgutils, types = numbas("numba.core.cgutils"), numbas("numba.types")
_FLOAT, _LONG, _INT = ir.FloatType(), ir.IntType(64), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)


def _tile(height: int) -> Any:
    """The intrinsic ``tile(fresh, out, weights, step, row, rows, taps, count, base, stride, zeros, depth)``.

    All arguments are int64, most of them addresses: ``out`` int64 (TALL,), where each place's WIDTH float32 lie, which
    are added to unless the result is ``fresh``; ``weights`` float32, the WIDTH lanes of tap t and depth k at ``t step +
    k row`` bytes; ``rows`` int32 (count, TALL), where a negative number reads ``zeros``; ``taps`` int32 (count,); input
    row r lies ``r stride`` bytes behind ``base``, ``depth`` float32 long.
    """

    def declare(
        typing: Any, fresh: Any, out: Any, weights: Any, step: Any, row: Any, rows: Any, taps: Any, count: Any,
        base: Any, stride: Any, zeros: Any, depth: Any,
    ) -> Any:  # fmt: skip
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _emit(builder, height, *arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12), emit

    return intrinsic(declare)


def _emit(
    b: Any, height: int, fresh: Any, out: Any, weights: Any, step: Any, row: Any, rows: Any, taps: Any, count: Any,
    base: Any, stride: Any, zeros: Any, depth: Any,
) -> None:  # fmt: skip
    sums = [[cgutils.alloca_once(b, _VECTOR) for _ in range(VECTORS)] for _ in range(height)]
    starts = [b.load(b.gep(_pointer(b, out, _LONG), [_LONG(m)])) for m in range(height)]
    places = [[b.gep(_pointer(b, start, _VECTOR), [_LONG(v)]) for v in range(VECTORS)] for start in starts]
    with b.if_else(b.icmp_signed("!=", fresh, _LONG(0))) as (begin, go_on):
        with begin:
            for place in (p for many in sums for p in many):
                b.store(ir.Constant(_VECTOR, [0.0] * LANES), place)
        with go_on:
            _copy(b, places, sums)
    with cgutils.for_range(b, count, intp=_LONG) as loop:
        tap = b.sext(b.load(b.gep(_pointer(b, taps, _INT), [loop.index])), _LONG)
        matrix = b.add(weights, b.mul(tap, step))
        first = b.gep(_pointer(b, rows, _INT), [b.mul(loop.index, _LONG(TALL))])
        inputs = [_row(b, first, m, base, stride, zeros) for m in range(height)]
        _accumulate(b, sums, inputs, matrix, row, depth)
    _copy(b, sums, places)


def _pointer(b: Any, address: Any, kind: Any) -> Any:
    return b.inttoptr(address, kind.as_pointer())


def _row(b: Any, numbers: Any, m: int, base: Any, stride: Any, zeros: Any) -> Any:
    """Start of the input row that place m of the tile reads."""
    number = b.sext(b.load(b.gep(numbers, [_LONG(m)])), _LONG)
    inside = b.add(base, b.mul(number, stride))
    return _pointer(b, b.select(b.icmp_signed("<", number, _LONG(0)), zeros, inside), _FLOAT)


def _accumulate(b: Any, sums: Any, inputs: Any, matrix: Any, row: Any, depth: Any) -> None:
    """The loop over the depth of one tap."""
    multiply_add = _multiply_add(b)
    with cgutils.for_range(b, depth, intp=_LONG) as loop:
        vectors = _pointer(b, b.add(matrix, b.mul(loop.index, row)), _VECTOR)
        weights = [_load(b, b.gep(vectors, [_LONG(v)])) for v in range(VECTORS)]
        for source, into in zip(inputs, sums, strict=True):
            entry = _splat(b, b.load(b.gep(source, [loop.index])))
            for weight, place in zip(weights, into, strict=True):
                b.store(b.call(multiply_add, [entry, weight, b.load(place)]), place)


def _multiply_add(b: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return cgutils.get_or_insert_function(b.module, kind, f"llvm.fmuladd.v{LANES}f32")


def _splat(b: Any, value: Any) -> Any:
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    one = b.insert_element(nothing, value, _INT(0))
    return b.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES))


def _load(b: Any, place: Any) -> Any:
    value = b.load(place)
    value.align = 4
    return value


def _copy(b: Any, sources: Any, targets: Any) -> None:
    for many, into in zip(sources, targets, strict=True):
        for source, target in zip(many, into, strict=True):
            b.store(_load(b, source), target).align = 4


def _turned(typing: Any, out: Any, pitch: Any, rows: Any, step: Any, laws: Any, count: Any) -> Any:
    """LANES rows made lanes: out[k][i] = rows[i][k] laws[i][0] + laws[i][1] for ``count`` blocks of LANES entries k.

    Addresses and bytes: ``pitch`` from k to k + 1 of ``out``, ``step`` from row to row of ``rows``.
    """

    def emit(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        out, pitch, rows, step, laws, count = arguments
        table, multiply_add = _pointer(b, laws, _FLOAT), _multiply_add(b)
        law = [[_splat(b, b.load(b.gep(table, [_LONG(2 * i + k)]))) for k in range(2)] for i in range(LANES)]
        with cgutils.for_range(b, count, intp=_LONG) as loop:
            first = b.add(rows, b.mul(loop.index, _LONG(4 * LANES)))
            vectors = [_load(b, _pointer(b, b.add(first, b.mul(step, _LONG(i))), _VECTOR)) for i in range(LANES)]
            vectors = [b.call(multiply_add, [v, *law[i]]) for i, v in enumerate(vectors)]
            target = b.add(out, b.mul(loop.index, b.mul(pitch, _LONG(LANES))))
            for i, vector in enumerate(_transposed(b, vectors)):
                b.store(vector, _pointer(b, b.add(target, b.mul(pitch, _LONG(i))), _VECTOR)).align = 4
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), emit


def _transposed(b: Any, rows: list[Any]) -> list[Any]:
    """A square of vectors, transposed by swapping blocks of 8, 4, 2 and 1."""
    rows = list(rows)
    size = LANES // 2
    while size:
        for i in (i for i in range(LANES) if not i & size):
            one, other = rows[i], rows[i + size]
            low = [n if not n & size else LANES + n - size for n in range(LANES)]
            high = [n + size if not n & size else LANES + n for n in range(LANES)]
            rows[i], rows[i + size] = _shuffled(b, one, other, low), _shuffled(b, one, other, high)
        size //= 2
    return rows


def _shuffled(b: Any, one: Any, other: Any, order: list[int]) -> Any:
    return b.shuffle_vector(one, other, ir.Constant(ir.VectorType(_INT, LANES), order))


turned: Any = intrinsic(_turned)
tall_tile = _tile(TALL)
short_tile = _tile(SHORT)
