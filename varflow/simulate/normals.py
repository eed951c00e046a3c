"""Normal numbers straight from the counter, in vector instructions: what `rng` defines, a tile of 64 at a time.

Written in LLVM's vectors, as `tiles` are. Philox works on 64-bit lanes that hold 32-bit words, even counters in one
vector and odd ones in another, so that both together are the words in order; what is the same in all lanes is a scalar
until it meets a vector. Words become numbers in registers. Polynomials are minimax fits: relative error of the
radius 1e-7, error of sine and cosine 3e-8 before rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from varflow.simulate.jit import intrinsic, numbas
from varflow.simulate.tiles import LANES, VECTORS

cgutils, types = numbas("numba.core.cgutils"), numbas("numba.types")

ROUNDS = 10
TOGETHER, ABREAST = (2, 4) if VECTORS > 1 else (1, 1)
"""Tiles made together, and counters (two a tile) that take every round of Philox abreast: the multiplications of one
fill the waits of another, where there are registers enough."""
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
SQRT_HALF, STEP_31 = 0x3F3504F3, 31 << 23
"""Bits of sqrt(1/2) as a float32; those that an exponent of 31 adds."""
LOG = (
    1.0000064373016357, -0.6666942834854126, 0.4994245767593384, -0.3981376588344574, 0.34486448764801025,
    -0.3236100375652313, 0.20164762437343597,
)  # fmt: skip
"""(2 y - 2 log(1 + y)) / y^2 on sqrt(1/2) - 1 to sqrt(2) - 1, lowest power first."""
SINE = (1.0, -0.16666650699202573, 0.008332036875166489, -0.00019504022001457142)
COSINE = (1.0, -0.4999985669584858, 0.04165502688424037, -0.0013585908510001569)
"""sin(a) / a and cos(a) in a^2, abs(a) <= pi/4."""

_LONG, _INT, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_LONGS, _INTS, _FLOATS = (ir.VectorType(kind, n) for kind, n in ((_LONG, LANES // 2), (_INT, LANES), (_FLOAT, LANES)))
_LOW, _HALF = 0xFFFFFFFF, 32
Builder = Any


def _multiply_add(b: Builder, x: Any, y: Any, z: Any) -> Any:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return b.call(cgutils.get_or_insert_function(b.module, kind, f"llvm.fmuladd.v{LANES}f32"), [x, y, z])


def _same(kind: Any, value: Any) -> Any:
    """The vector of one number."""
    return ir.Constant(kind, [value] * kind.count)


def _wide(b: Builder, value: Any) -> Any:
    """A scalar in every lane; a vector as it is."""
    if isinstance(value.type, ir.VectorType):
        return value
    nothing = ir.Constant(_LONGS, ir.Undefined)
    one = b.insert_element(nothing, value, _INT(0))
    return b.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(_INT, _LONGS.count), [0] * _LONGS.count))


def _constant(like: Any, number: int) -> Any:
    return _same(like.type, number) if isinstance(like.type, ir.VectorType) else like.type(number)


def _low(b: Builder, x: Any) -> Any:
    return b.and_(x, _constant(x, _LOW))


def _mixed(b: Builder, *terms: Any) -> Any:
    """Exclusive or; a scalar where all terms are."""
    scalars = [t for t in terms if not isinstance(t.type, ir.VectorType)]
    vectors = [t for t in terms if isinstance(t.type, ir.VectorType)]
    total = None
    for t in scalars:
        total = t if total is None else b.xor(total, t)
    for t in vectors:
        total = t if total is None else b.xor(_wide(b, total), t)
    return total


def _philox(b: Builder, counters: Sequence[Sequence[Any]], keys: Sequence[tuple[Any, Any]]) -> list[list[Any]]:
    """Four words for each of some counters, in the low halves of their lanes; the high halves hold anything."""
    states = [list(c) for c in counters]
    for k0, k1 in keys:
        products = [[b.mul(_low(b, c[2 * i]), _constant(c[2 * i], MULTIPLIERS[i])) for i in (0, 1)] for c in states]
        highs = [[b.lshr(p, _constant(p, _HALF)) for p in pair] for pair in products]
        states = [
            [_mixed(b, high1, c[1], k0), p1, _mixed(b, high0, c[3], k1), p0]
            for c, (high0, high1), (p0, p1) in zip(states, highs, products, strict=True)
        ]
    return states


def _keys(b: Builder, seed: Any) -> list[tuple[Any, Any]]:
    key = [_low(b, seed), b.lshr(seed, _LONG(_HALF))]
    keys = []
    for _ in range(ROUNDS):
        keys.append((key[0], key[1]))
        key = [_low(b, b.add(k, _LONG(w))) for k, w in zip(key, WEYL, strict=True)]
    return keys


def _words(b: Builder, blocks: Sequence[Any], seed: Any, draw: Any, tensor: Any) -> list[list[Any]]:
    """The words of LANES blocks from each of ``blocks`` on, multiples of LANES, in order."""
    keys, counters = _keys(b, seed), []
    for block in blocks:
        high = b.or_(b.lshr(block, _LONG(_HALF)), b.shl(b.lshr(draw, _LONG(_HALF)), _LONG(16)))
        for odd in (0, 1):
            lanes = ir.Constant(_LONGS, [2 * k + odd for k in range(_LONGS.count)])
            counters.append([b.add(_wide(b, _low(b, block)), lanes), tensor, _low(b, draw), high])
    states = [s for k in range(0, len(counters), ABREAST) for s in _philox(b, counters[k : k + ABREAST], keys)]
    return [
        [b.bitcast(b.or_(_low(b, x), b.shl(y, _constant(y, _HALF))), _INTS) for x, y in zip(even, odd, strict=True)]
        for even, odd in zip(states[::2], states[1::2], strict=True)
    ]


def _polynomial(b: Builder, coefficients: Sequence[float], x: Any) -> Any:
    total = _same(_FLOATS, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = _multiply_add(b, total, x, _same(_FLOATS, c))
    return total


def _radius(b: Builder, word: Any) -> Any:
    """sqrt(-2 log u), u = (word // 2 + 1/2) / 2^31."""
    number = b.sitofp(b.lshr(word, _same(_INTS, 1)), _FLOATS)
    bits = b.bitcast(b.fadd(number, _same(_FLOATS, 0.5)), _INTS)
    shifted = b.sub(bits, _same(_INTS, SQRT_HALF + STEP_31))
    exponent = b.sitofp(b.ashr(shifted, _same(_INTS, 23)), _FLOATS)
    mantissa = b.bitcast(b.add(b.and_(shifted, _same(_INTS, 0x7FFFFF)), _same(_INTS, SQRT_HALF)), _FLOATS)
    y = b.fsub(mantissa, _same(_FLOATS, 1.0))
    rest = _multiply_add(b, b.fmul(y, y), _polynomial(b, LOG, y), b.fmul(y, _same(_FLOATS, -2.0)))
    square = _multiply_add(b, exponent, _same(_FLOATS, -2.0 * math.log(2.0)), rest)
    root = cgutils.get_or_insert_function(b.module, ir.FunctionType(_FLOATS, [_FLOATS]), f"llvm.sqrt.v{LANES}f32")
    return b.call(root, [square])


def _pair(b: Builder, first: Any, second: Any) -> tuple[Any, Any]:
    """Two independent normals of two words: the second word's highest two bits are the quadrant, which swaps sine and
    cosine and says their signs; the others are the angle in it."""
    radius, sign = _radius(b, first), _same(_INTS, -(1 << 31))
    angle = b.fmul(b.sitofp(b.shl(second, _same(_INTS, 2)), _FLOATS), _same(_FLOATS, math.pi / 4 * 2.0**-31))
    z = b.fmul(angle, angle)
    sine = b.fmul(b.fmul(radius, angle), _polynomial(b, SINE, z))
    cosine = b.fmul(radius, _polynomial(b, COSINE, z))
    odd = b.icmp_signed("!=", b.and_(second, _same(_INTS, 1 << 30)), _same(_INTS, 0))
    turned = b.xor(second, b.shl(second, _same(_INTS, 1)))
    pair = []
    for one, other, bits in ((cosine, sine, turned), (sine, cosine, second)):
        chosen = b.bitcast(b.select(odd, other, one), _INTS)
        pair.append(b.bitcast(b.xor(chosen, b.and_(bits, sign)), _FLOATS))
    return pair[0], pair[1]


def _normal_tiles(typing: Any, out: Any, tile: Any, tiles: Any, seed: Any, draw: Any, tensor: Any) -> Any:
    """N(0, 1) of ``tiles`` tiles from number ``tile`` of a tensor and draw, float32 at ``out``; all int64."""

    def emit(context: Any, b: Builder, signature: Any, arguments: Any) -> Any:
        out, tile, tiles, seed, draw, tensor = arguments

        def some(first: Any, count: int) -> None:
            blocks = [b.mul(b.add(b.add(tile, first), _LONG(i)), _LONG(LANES)) for i in range(count)]
            for i, words in enumerate(_words(b, blocks, seed, draw, tensor)):
                values = [*_pair(b, words[0], words[1]), *_pair(b, words[2], words[3])]
                start = b.add(out, b.mul(b.add(first, _LONG(i)), _LONG(16 * LANES)))
                for k, value in enumerate(values):
                    place = b.inttoptr(b.add(start, _LONG(4 * LANES * k)), _FLOATS.as_pointer())
                    b.store(value, place).align = 4

        whole = b.udiv(tiles, _LONG(TOGETHER))
        with cgutils.for_range(b, whole, intp=_LONG) as loop:
            some(b.mul(loop.index, _LONG(TOGETHER)), TOGETHER)
        with cgutils.for_range(b, tiles, start=b.mul(whole, _LONG(TOGETHER)), intp=_LONG) as loop:
            some(loop.index, 1)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), emit


normal_tiles: Any = intrinsic(_normal_tiles)
