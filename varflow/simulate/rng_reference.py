"""The definition of `rng` in plain integers and float64: slow, and meant to be read and tested against."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from varflow.simulate.rng import DISTRIBUTIONS, ERF_SQRT2, TRUNCATED_STD

MASK = 0xFFFFFFFF


def philox4x32(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Philox4x32-10 of Salmon et al. (2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def block_words(seed: int, draw: int, tensor: int, block: int) -> tuple[int, int, int, int]:
    """The four words of one counter block."""
    high = (block >> 32) | ((draw >> 32) << 16)
    return philox4x32((block & MASK, tensor, draw & MASK, high), (seed & MASK, seed >> 32))


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def _normal(first: int, second: int, which: int) -> float:
    u = float(np.float32((first >> 1) + 0.5)) * 2.0**-31
    angle = (second >> 30) * math.pi / 2 + _signed((second << 2) & MASK) * 2.0**-31 * math.pi / 4
    return math.sqrt(-2 * math.log(u)) * (math.cos(angle), math.sin(angle))[which]


def _of_word(distribution: str, word: int, parameter: float) -> float:
    centre = (_signed(word) + 0.5) * 2.0**-31
    match distribution:
        case "uniform":
            return math.sqrt(3) * centre
        case "truncated_normal":
            return NormalDist().inv_cdf(0.5 + 0.5 * ERF_SQRT2 * centre) / TRUNCATED_STD
        case "rademacher":
            return math.copysign(1.0, centre)
        case "bernoulli":
            return float(word < round(parameter * 2**32))
    return parameter


def element(
    distribution: str, seed: int, draw: int, tensor: int, index: int, parameter: float = 1.0
) -> float:
    """One element, of unit variance unless "bernoulli" or "constant"."""
    assert distribution in DISTRIBUTIONS
    tile, place = divmod(index, 64)
    word, lane = divmod(place, 16)
    words = block_words(seed, draw, tensor, 16 * tile + lane)
    if distribution == "normal":
        pair = word - word % 2
        return _normal(words[pair], words[pair + 1], word % 2)
    return _of_word(distribution, words[word], parameter)
