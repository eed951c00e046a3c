"""Inner products and linear combinations of rows in registers: the inner loops of collapsed products.

Rows are float32, found through tables of addresses. Loops are written in LLVM's vector instructions, as in `tiles`,
since they compile in a fraction of the time that a vectorizer takes and to the same code every time. A strip is
LANES entries; what is left of a row at its end is read and written under a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from varflow.simulate.jit import intrinsic, numbas
from varflow.simulate.tiles import LANES, VECTORS

SIDE = 4 if VECTORS > 1 else 2
"""Rows of a tile."""
STRIPS = 4 if VECTORS > 1 else 2
"""Strips that a combination works on together, and separate sums of one inner product alone."""

cgutils, types = numbas("numba.core.cgutils"), numbas("numba.types")
_FLOAT, _DOUBLE, _LONG, _INT = ir.FloatType(), ir.DoubleType(), ir.IntType(64), ir.IntType(32)
_VECTOR, _BYTES = ir.VectorType(_FLOAT, LANES), 4 * LANES
_BITS = ir.VectorType(ir.IntType(1), LANES)
HALF = LANES // 2
"""Doubles of a vector."""
_DOUBLES = ir.VectorType(_DOUBLE, HALF)
_ZERO = ir.Constant(_VECTOR, [0.0] * LANES)
Builder = Any
Load = Callable[[Any], Any]


def _at(b: Builder, address: Any, kind: Any) -> Any:
    return b.inttoptr(address, kind.as_pointer())


def _entry(b: Builder, table: Any, k: int) -> Any:
    """Integer k of a table."""
    return b.load(b.gep(_at(b, table, _LONG), [_LONG(k)]))


def _plain(b: Builder) -> Load:
    def load(address: Any) -> Any:
        value = b.load(_at(b, address, _VECTOR))
        value.align = 4
        return value

    return load


def _first_lanes(b: Builder, count: Any, size: int = LANES) -> Any:
    """The mask of the first ``count`` of ``size`` lanes."""
    lanes = ir.Constant(ir.VectorType(_INT, size), list(range(size)))
    return b.icmp_signed("<", lanes, _spread(b, b.trunc(count, _INT), size))


def _masked(b: Builder, mask: Any) -> Load:
    kind = ir.FunctionType(_VECTOR, [_VECTOR.as_pointer(), _INT, _BITS, _VECTOR])
    run = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.load.v{LANES}f32.p0")
    return lambda address: b.call(run, [_at(b, address, _VECTOR), _INT(4), mask, _ZERO])


def _store_masked(b: Builder, value: Any, address: Any, mask: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [_VECTOR, _VECTOR.as_pointer(), _INT, _BITS])
    run = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.store.v{LANES}f32.p0")
    b.call(run, [value, _at(b, address, _VECTOR), _INT(4), mask])


def _spread(b: Builder, value: Any, size: int = LANES) -> Any:
    """A vector of ``size`` equal entries."""
    nothing = ir.Constant(ir.VectorType(value.type, size), ir.Undefined)
    one = b.insert_element(nothing, value, _INT(0))
    return b.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(_INT, size), [0] * size))


def _multiply_add(b: Builder, x: Any, y: Any, z: Any, entry: str = "f32", vector: Any = _VECTOR) -> Any:
    kind = ir.FunctionType(vector, [vector] * 3)
    name = f"llvm.fmuladd.v{vector.count}{entry}"
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), [x, y, z])


def _total(b: Builder, vector: Any) -> Any:
    """The sum of all lanes, as a double."""
    kind = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
    run = cgutils.get_or_insert_function(b.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
    return b.fpext(b.call(run, [_FLOAT(0.0), vector], fastmath=("reassoc",)), _DOUBLE)


def _sums(b: Builder, count: int) -> list[Any]:
    """Places of vectors that start at zero; they become registers."""
    places = [cgutils.alloca_once(b, _VECTOR) for _ in range(count)]
    for place in places:
        b.store(_ZERO, place)
    return places


def _add_to(b: Builder, address: Any, value: Any) -> None:
    place = _at(b, address, _DOUBLE)
    b.store(b.fadd(b.load(place), value), place)


def _over_strips(b: Builder, count: Any, together: int, body: Callable[[Load, Any, int], None]) -> None:
    """``body(load, offset in bytes, which of the strips taken together)`` for all strips, the last one masked."""
    size = _LONG(LANES * together)
    whole = b.udiv(count, size)
    with cgutils.for_range(b, whole, intp=_LONG) as loop:
        start = b.mul(loop.index, _LONG(_BYTES * together))
        for k in range(together):
            body(_plain(b), b.add(start, _LONG(_BYTES * k)), k)
    done = b.mul(whole, size)
    rest = b.udiv(b.add(b.sub(count, done), _LONG(LANES - 1)), _LONG(LANES))
    with cgutils.for_range(b, rest, intp=_LONG) as loop:
        first = b.add(done, b.mul(loop.index, _LONG(LANES)))
        mask = _first_lanes(b, b.sub(count, first))
        body(_masked(b, mask), b.mul(first, _LONG(4)), 0)


def _dots(high: int, wide: int, *, symmetric: bool = False) -> Any:
    """The intrinsic ``dots(left, right, offset, count, out, pitch)``, all int64.

    Adds to the doubles at ``out`` (rows ``pitch`` bytes apart) the inner products of ``high`` rows, whose addresses are
    at ``left``, with ``wide`` rows at ``right``, over ``count`` entries from ``offset`` bytes on. Sums are float32. The
    ``symmetric`` one takes the rows of ``left`` alone and the triangle below the diagonal, which is included.
    """
    pairs = [(i, j) for i in range(high) for j in range(wide) if j <= i or not symmetric]
    together = STRIPS if len(pairs) == 1 else 1

    def declare(typing: Any, left: Any, right: Any, offset: Any, count: Any, out: Any, pitch: Any) -> Any:
        def emit(context: Any, b: Builder, signature: Any, arguments: Any) -> Any:
            left, right, offset, count, out, pitch = arguments
            rows = [b.add(_entry(b, left, i), offset) for i in range(high)]
            columns = rows if symmetric else [b.add(_entry(b, right, j), offset) for j in range(wide)]
            sums = [_sums(b, together) for _ in pairs]

            def body(load: Load, start: Any, k: int) -> None:
                x = [load(b.add(row, start)) for row in rows]
                y = x if symmetric else [load(b.add(column, start)) for column in columns]
                for (i, j), places in zip(pairs, sums, strict=True):
                    b.store(_multiply_add(b, x[i], y[j], b.load(places[k])), places[k])

            _over_strips(b, count, together, body)
            for (i, j), places in zip(pairs, sums, strict=True):
                vector = b.load(places[0])
                for place in places[1:]:
                    vector = b.fadd(vector, b.load(place))
                _add_to(b, b.add(out, b.add(b.mul(pitch, _LONG(i)), _LONG(8 * j))), _total(b, vector))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), emit

    return intrinsic(declare)


def _combine(high: int) -> Any:
    """The intrinsic ``combine(out, factors, pitch, rows, terms, offset, count)``, all int64.

    ``high`` rows, whose addresses are at ``out``, become sum_k factors[k, i] rows[k], over ``count`` entries from
    ``offset`` bytes on; ``factors`` are float32, rows of them ``pitch`` bytes apart. Results may lie where rows do.
    """

    def declare(
        typing: Any, out: Any, factors: Any, pitch: Any, rows: Any, terms: Any, offset: Any, count: Any
    ) -> Any:
        def emit(context: Any, b: Builder, signature: Any, arguments: Any) -> Any:
            out, factors, pitch, rows, terms, offset, count = arguments
            targets = [b.add(_entry(b, out, i), offset) for i in range(high)]
            sums = [_sums(b, STRIPS) for _ in range(high)]

            def strip(start: Any, strips: int, mask: Any) -> None:
                for place in (p for many in sums for p in many[:strips]):
                    b.store(_ZERO, place)
                load = _plain(b) if mask is None else _masked(b, mask)
                with cgutils.for_range(b, terms, intp=_LONG) as loop:
                    row = b.add(b.load(b.gep(_at(b, rows, _LONG), [loop.index])), b.add(offset, start))
                    x = [load(b.add(row, _LONG(_BYTES * k))) for k in range(strips)]
                    factor = b.add(factors, b.mul(loop.index, pitch))
                    for i, places in enumerate(sums):
                        entry = _spread(b, b.load(_at(b, b.add(factor, _LONG(4 * i)), _FLOAT)))
                        for k in range(strips):
                            b.store(_multiply_add(b, entry, x[k], b.load(places[k])), places[k])
                for target, places in zip(targets, sums, strict=True):
                    for k in range(strips):
                        address = b.add(b.add(target, start), _LONG(_BYTES * k))
                        if mask is None:
                            b.store(b.load(places[k]), _at(b, address, _VECTOR)).align = 4
                        else:
                            _store_masked(b, b.load(places[k]), address, mask)

            whole = b.udiv(count, _LONG(LANES * STRIPS))
            with cgutils.for_range(b, whole, intp=_LONG) as loop:
                strip(b.mul(loop.index, _LONG(_BYTES * STRIPS)), STRIPS, None)
            done = b.mul(whole, _LONG(LANES * STRIPS))
            rest = b.udiv(b.add(b.sub(count, done), _LONG(LANES - 1)), _LONG(LANES))
            with cgutils.for_range(b, rest, intp=_LONG) as loop:
                first = b.add(done, b.mul(loop.index, _LONG(LANES)))
                strip(b.mul(first, _LONG(4)), 1, _first_lanes(b, b.sub(count, first)))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), emit

    return intrinsic(declare)


def _reduce(high: int) -> Any:
    """The intrinsic ``reduce(out, pitch, factors, across, down, rows, step, terms, count)``, all int64, of doubles.

    Subtracts from ``high`` rows of ``count`` entries, ``pitch`` bytes apart, sum_k f(i, k) row k: the factor of row i
    and term k lies ``i across + k down`` bytes behind ``factors``, row k ``k step`` bytes behind ``rows``.
    """

    def declare(
        typing: Any, out: Any, pitch: Any, factors: Any, across: Any, down: Any, rows: Any, step: Any, terms: Any,
        count: Any,
    ) -> Any:  # fmt: skip
        def emit(context: Any, b: Builder, signature: Any, arguments: Any) -> Any:
            out, pitch, factors, across, down, rows, step, terms, count = arguments
            targets = [b.add(out, b.mul(pitch, _LONG(i))) for i in range(high)]
            sums = [[cgutils.alloca_once(b, _DOUBLES) for _ in range(STRIPS)] for _ in range(high)]

            def strip(start: Any, strips: int, mask: Any) -> None:
                at = [[b.add(b.add(target, start), _LONG(_BYTES * k)) for k in range(strips)] for target in targets]
                load = _doubles(b, mask)
                for places, addresses in zip(sums, at, strict=True):
                    for place, address in zip(places, addresses, strict=False):
                        b.store(load(address), place)
                with cgutils.for_range(b, terms, intp=_LONG) as loop:
                    row = b.add(b.add(rows, start), b.mul(loop.index, step))
                    x = [load(b.add(row, _LONG(_BYTES * k))) for k in range(strips)]
                    factor = b.add(factors, b.mul(loop.index, down))
                    for i, places in enumerate(sums):
                        entry = b.fneg(b.load(_at(b, b.add(factor, b.mul(across, _LONG(i))), _DOUBLE)))
                        wide = _spread(b, entry, HALF)
                        for k in range(strips):
                            b.store(_multiply_add(b, wide, x[k], b.load(places[k]), "f64", _DOUBLES), places[k])
                for places, addresses in zip(sums, at, strict=True):
                    for place, address in zip(places, addresses, strict=False):
                        _store_doubles(b, b.load(place), address, mask)

            whole = b.udiv(count, _LONG(HALF * STRIPS))
            with cgutils.for_range(b, whole, intp=_LONG) as loop:
                strip(b.mul(loop.index, _LONG(_BYTES * STRIPS)), STRIPS, None)
            done = b.mul(whole, _LONG(HALF * STRIPS))
            rest = b.udiv(b.add(b.sub(count, done), _LONG(HALF - 1)), _LONG(HALF))
            with cgutils.for_range(b, rest, intp=_LONG) as loop:
                first = b.add(done, b.mul(loop.index, _LONG(HALF)))
                strip(b.mul(first, _LONG(8)), 1, _first_lanes(b, b.sub(count, first), HALF))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), emit

    return intrinsic(declare)


def _doubles(b: Builder, mask: Any) -> Load:
    """Reads HALF doubles, those under a mask if there is one."""

    def load(address: Any) -> Any:
        place = _at(b, address, _DOUBLES)
        if mask is None:
            value = b.load(place)
            value.align = 8
            return value
        kind = ir.FunctionType(_DOUBLES, [_DOUBLES.as_pointer(), _INT, mask.type, _DOUBLES])
        run = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.load.v{HALF}f64.p0")
        return b.call(run, [place, _INT(8), mask, ir.Constant(_DOUBLES, [0.0] * HALF)])

    return load


def _store_doubles(b: Builder, value: Any, address: Any, mask: Any) -> None:
    place = _at(b, address, _DOUBLES)
    if mask is None:
        b.store(value, place).align = 8
        return
    kind = ir.FunctionType(ir.VoidType(), [_DOUBLES, _DOUBLES.as_pointer(), _INT, mask.type])
    run = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.store.v{HALF}f64.p0")
    b.call(run, [value, place, _INT(8), mask])


def _power_sums(typing: Any, address: Any, count: Any, out: Any) -> Any:
    """Adds to three doubles at ``out`` the sums of x, x^2 and x^4 over ``count`` entries, summed in float32."""

    def emit(context: Any, b: Builder, signature: Any, arguments: Any) -> Any:
        address, count, out = arguments
        sums = [_sums(b, 2) for _ in range(3)]

        def body(load: Load, start: Any, k: int) -> None:
            x = load(b.add(address, start))
            square = b.fmul(x, x)
            first, second, fourth = (many[k] for many in sums)
            b.store(b.fadd(b.load(first), x), first)
            b.store(b.fadd(b.load(second), square), second)
            b.store(_multiply_add(b, square, square, b.load(fourth)), fourth)

        _over_strips(b, count, 2, body)
        for k, (one, other) in enumerate(sums):
            _add_to(b, b.add(out, _LONG(8 * k)), _total(b, b.fadd(b.load(one), b.load(other))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), emit


dots_tile, dots_strip, dots_one = _dots(SIDE, SIDE), _dots(SIDE, 1), _dots(1, 1)
dots_triangle = _dots(SIDE, SIDE, symmetric=True)
combine_tile, combine_one = _combine(SIDE), _combine(1)
reduce_tile, reduce_one = _reduce(SIDE), _reduce(1)
power_sums: Any = intrinsic(_power_sums)
