"""Random numbers as a pure function of (seed, draw, tensor, element).

Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a counter of
128 bits under a key of 64 bits, the seed, into four words. Elements come in tiles of 64: element e lies in tile
t = e // 64 at j = e % 64, and reads word j // 16 of the counter block 16 t + j % 16, so that a tile is sixteen
independent counters side by side, a vector's width. The counter is

    (block mod 2^32, tensor, draw mod 2^32, block >> 32 | (draw >> 32) << 16).

A normal pairs words 0 and 1, or 2 and 3, of its block: radius from the first, angle from the second
(Box and Muller 1958); every other distribution reads its own word alone. The processor makes normals in `normals`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.errors import InputError
from varflow.simulate.elementary import log_normal_range, turn
from varflow.simulate.jit import Array, Number, device, inline, kernel, over_draws
from varflow.simulate.normals import normal_tiles
from varflow.simulate.recycle import empty

TILE = 64
CHUNK = 512
LANES = 16

NORMAL, UNIFORM, TRUNCATED, RADEMACHER, BERNOULLI, CONSTANT = range(6)
DISTRIBUTIONS = {
    "normal": NORMAL,
    "uniform": UNIFORM,
    "truncated_normal": TRUNCATED,
    "rademacher": RADEMACHER,
    "bernoulli": BERNOULLI,
    "constant": CONSTANT,
}
TRUNCATED_STD = 0.8796256610342398
ERF_SQRT2 = 0.9544997361036416

F = np.float32
U = np.uint32
J = np.int32
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
SIXTEEN = np.uint64(16)
MULTIPLIER_0 = np.uint64(0xD2511F53)
MULTIPLIER_1 = np.uint64(0xCD9E8D57)
WEYL_0 = np.uint64(0x9E3779B9)
WEYL_1 = np.uint64(0xBB67AE85)
UNIT31 = F(2.0**-31)
UNIFORM_STEP = F(math.sqrt(3.0) * 2.0**-31)
ANGLE_STEP = F(math.pi / 4.0 * 2.0**-31)
TRUNCATED_STEP = F(ERF_SQRT2 * 2.0**-31)
TRUNCATED_SCALE = F(1.0 / ERF_SQRT2)


@inline
def philox(c0: Number, c1: Number, c2: Number, c3: Number, k0: Number, k1: Number) -> Any:
    """Ten rounds on 64-bit lanes that hold 32-bit words; returns four uint32."""
    for _ in range(10):
        p0 = MULTIPLIER_0 * (c0 & LOW)
        p1 = MULTIPLIER_1 * (c2 & LOW)
        c0 = (p1 >> HALF) ^ c1 ^ k0
        c2 = (p0 >> HALF) ^ c3 ^ k1
        c1 = p1
        c3 = p0
        k0 = (k0 + WEYL_0) & LOW
        k1 = (k1 + WEYL_1) & LOW
    return U(c0), U(c1), U(c2), U(c3)


@inline
def block_words(block: Number, seed: Number, draw: Number, tensor: Number) -> Any:
    """The four words of one counter block."""
    high = (block >> HALF) | ((draw >> HALF) << SIXTEEN)
    return philox(block & LOW, tensor, draw & LOW, high, seed & LOW, seed >> HALF)


@inline
def normal_pair(first: Number, second: Number) -> Any:
    """Two independent N(0, 1) of two words; the radius reaches 6.66."""
    u = F(F(F(J(first >> U(1))) + F(0.5)) * UNIT31)
    radius = F(math.sqrt(F(F(-2.0) * log_normal_range(u))))
    angle = F(F(J(U(second << U(2)))) * ANGLE_STEP)
    cosine, sine = turn(angle, U(second >> U(30)))
    return F(radius * cosine), F(radius * sine)


@inline
def uniform_of(word: Number) -> Any:
    """Uniform on (-sqrt 3, sqrt 3), variance 1."""
    return F(F(F(J(word)) + F(0.5)) * UNIFORM_STEP)


@inline
def truncated_of(word: Number) -> Any:
    """N(0, 1) cut at two standard deviations, divided by 0.8796 to variance 1 (inverse distribution function)."""
    y = F(F(F(J(word)) + F(0.5)) * TRUNCATED_STEP)
    w = F(-log_normal_range(F(F(1.0) - y * y)))
    p = F(-6.986128329489615e-06)
    p = p * w + F(9.899116207646762e-05)
    p = p * w + F(-0.0002354990393165008)
    p = p * w + F(-0.003554097329749631)
    p = p * w + F(0.017712831948470186)
    p = p * w + F(0.3560477851645568)
    p = p * w + F(1.3599966860382808)
    return F(F(y * p) * TRUNCATED_SCALE)


@inline
def sign_of(word: Number) -> Any:
    """-1 or 1, equally likely."""
    return F(J(U(J(word) >> J(31)) | U(1)))


@device
def fill_words(
    words: Array, seed: Number, draw: Number, tensor: Number, tile: Number, tiles: Number
) -> None:
    """Random words of `tiles` whole tiles from number `tile`."""
    for t in range(tiles):
        first = (tile + np.uint64(t)) * SIXTEEN
        at = t * TILE
        for i in range(LANES):
            a, b, c, d = block_words(first + np.uint64(i), seed, draw, tensor)
            words[at + i] = a
            words[at + LANES + i] = b
            words[at + 2 * LANES + i] = c
            words[at + 3 * LANES + i] = d


@device
def fill_simple(kind: Number, out: Array, parameter: Number, words: Array, tiles: Number) -> None:
    """The distributions that read one word an element."""
    size = tiles * TILE
    if kind == UNIFORM:
        for i in range(size):
            out[i] = uniform_of(words[i])
    elif kind == TRUNCATED:
        for i in range(size):
            out[i] = truncated_of(words[i])
    elif kind == RADEMACHER:
        for i in range(size):
            out[i] = sign_of(words[i])
    else:
        limit = U(np.int64(min(max(parameter * 4294967296.0 - 0.5, 0.0), 4294967295.0)))
        for i in range(size):
            out[i] = F(1.0) if words[i] <= limit else F(0.0)


@device
def fill(
    out: Array,
    size: Number,
    kind: Number,
    parameter: Number,
    seed: Number,
    draw: Number,
    tensor: Number,
    offset: Number,
    words: Array,
    spare: Array,
) -> None:
    """Elements offset..offset + size of one tensor and draw into out[:size].

    `words` (uint32) and `spare` (float32) are scratch of CHUNK entries; `parameter` is the probability of a one
    for BERNOULLI and the value for CONSTANT.
    """
    if kind == CONSTANT or (kind == BERNOULLI and (parameter <= 0.0 or parameter >= 1.0)):
        for i in range(size):
            out[i] = F(parameter)
        return
    tile = offset // TILE
    lead = offset - tile * TILE
    done = 0
    while done < size:
        tiles = min((size - done + lead + TILE - 1) // TILE, CHUNK // TILE)
        whole = lead == 0 and done + tiles * TILE <= size
        target = out[done:size] if whole else spare
        if kind == NORMAL:
            normal_tiles(target.ctypes.data, tile, tiles, np.int64(seed), np.int64(draw), np.int64(tensor))
        else:
            fill_words(words, seed, draw, tensor, np.uint64(tile), tiles)
            fill_simple(kind, target, parameter, words, tiles)
        count = min(size - done, tiles * TILE - lead)
        if not whole:
            for i in range(count):
                out[done + i] = spare[lead + i]
        done += count
        tile += tiles
        lead = 0


@kernel
def _sample(
    out: Array, kind: Number, parameter: Number, scale: Number, seed: Number, first_draw: Number, tensor: Number,
    offset: Number, start: Number, stop: Number,
) -> None:  # fmt: skip
    words = np.empty(CHUNK, np.uint32)
    spare = np.empty(CHUNK, np.float32)
    for d in range(start, stop):
        row = out[d]
        draw = first_draw + np.uint64(d)
        fill(row, row.size, kind, parameter, seed, draw, tensor, offset, words, spare)
        if scale != F(1.0):
            for i in range(row.size):
                row[i] *= scale


def distribution_code(name: str) -> int:
    """The number of a distribution.

    Raises InputError for an unknown name.
    """
    if name not in DISTRIBUTIONS:
        raise InputError(
            f"unknown distribution {name!r}", instead="one of " + ", ".join(DISTRIBUTIONS)
        )
    return DISTRIBUTIONS[name]


def check_counter(seed: int, first_draw: int, draws: int, tensor: int, elements: int) -> None:
    """InputError unless the numbers fit the counter: 64, 48, 32 and 50 bits."""
    limits = (
        ("seed", seed, 64),
        ("draw", first_draw + max(draws - 1, 0), 48),
        ("first draw", first_draw, 48),
        ("tensor", tensor, 32),
        ("element", elements, 50),
    )
    for name, value, bits in limits:
        if not 0 <= value < 2**bits:
            raise InputError(f"{name} {value} is outside 0..2^{bits} - 1")


def sample(
    distribution: str,
    shape: tuple[int, int],
    *,
    seed: int,
    tensor: int,
    first_draw: int = 0,
    offset: int = 0,
    parameter: float = 1.0,
    scale: float = 1.0,
) -> NDArray[np.float32]:
    """Elements offset.. of one tensor for consecutive draws: shape (draws, elements).

    Variance is scale^2 for "normal", "uniform", "truncated_normal" (cut at two standard deviations, rescaled)
    and "rademacher"; `parameter` is the probability of a one for "bernoulli", the value for "constant".
    Raises InputError for an unknown name or numbers that do not fit the counter.
    """
    kind = distribution_code(distribution)
    check_counter(seed, first_draw, shape[0], tensor, offset + shape[1])
    out = empty(shape)
    words = (np.uint64(seed), np.uint64(first_draw), np.uint64(tensor))
    over_draws(_sample, shape[0], out, kind, float(parameter), F(scale), *words, offset)
    return out
