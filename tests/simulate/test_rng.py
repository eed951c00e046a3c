"""Random numbers: known answers, the slow reference, the distributions, and independence of streams."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from varflow.errors import InputError
from varflow.simulate import jit, rng
from varflow.simulate import rng_reference as reference

# Random123 1.14, tests/kat_vectors, lines "philox4x32 10": counter, key, answer.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
UNIT = ["normal", "uniform", "truncated_normal", "rademacher"]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    c0, c1, c2, c3 = words(counter)
    k0, k1 = words(key)
    assert reference.philox4x32((c0, c1, c2, c3), (k0, k1)) == words(answer)
    compiled = rng.philox(*(np.uint64(word) for word in words(counter) + words(key)))
    assert tuple(int(word) for word in compiled) == words(answer)


@pytest.mark.parametrize("distribution", rng.DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("seed", "draw", "tensor", "offset"),
    [
        (0, 0, 0, 0),
        (1, 2, 3, 61),
        (2**64 - 1, 2**33 + 5, 2**32 - 1, 2**40 + 7),
        (9, 1, 0, 64 * 2**28 - 40),
    ],
)
def test_reference(distribution: str, seed: int, draw: int, tensor: int, offset: int) -> None:
    got = rng.sample(
        distribution,
        (2, 150),
        seed=seed,
        tensor=tensor,
        first_draw=draw,
        offset=offset,
        parameter=0.3,
    )
    want = [
        [
            reference.element(distribution, seed, draw + d, tensor, offset + i, 0.3)
            for i in range(150)
        ]
        for d in range(2)
    ]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_pure_function_of_the_counter() -> None:
    whole = rng.sample("normal", (5, 3000), seed=4, tensor=2, first_draw=10)
    part = rng.sample("normal", (2, 777), seed=4, tensor=2, first_draw=12, offset=1111)
    assert np.array_equal(part, whole[2:4, 1111:1888])
    threads = jit.get_threads()
    jit.set_threads(1)
    try:
        again = rng.sample("normal", (5, 3000), seed=4, tensor=2, first_draw=10)
    finally:
        jit.set_threads(threads)
    assert np.array_equal(again, whole)


def large(distribution: str, parameter: float = 1.0) -> NDArray[np.float64]:
    draws = rng.sample(distribution, (400, 5000), seed=11, tensor=3, parameter=parameter)
    return draws.astype(np.float64).ravel()


@pytest.mark.parametrize("distribution", UNIT)
def test_unit_variance(distribution: str) -> None:
    x = large(distribution)
    fourth = {"normal": 3.0, "uniform": 1.8, "truncated_normal": 2.3655, "rademacher": 1.0}[
        distribution
    ]
    assert abs(x.mean()) * np.sqrt(x.size) < 5
    assert abs((x**2).mean() - 1) < 5 * np.sqrt(max(fourth - 1, 1e-12) / x.size)
    assert abs((x**4).mean() - fourth) < 0.02
    assert abs((x**3).mean()) < 0.02


def chi_square(counts: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    return float(stats.chisquare(counts, expected).pvalue)


@pytest.mark.parametrize(
    ("distribution", "law"),
    [
        ("normal", stats.norm()),
        ("uniform", stats.uniform(-np.sqrt(3), 2 * np.sqrt(3))),
        ("truncated_normal", stats.truncnorm(-2, 2, scale=1 / rng.TRUNCATED_STD)),
    ],
)
def test_chi_square(distribution: str, law: object) -> None:
    x = large(distribution)
    levels = np.arange(1, 200) / 200
    edges = law.ppf(levels)  # type: ignore[attr-defined]
    counts = np.bincount(np.searchsorted(edges, x), minlength=200)
    assert chi_square(counts, np.full(200, x.size / 200)) > 1e-4


def test_normal_tails() -> None:
    x = np.abs(large("normal"))
    for cut in (2.5, 3.0, 3.5, 4.0):
        expected = 2 * stats.norm.sf(cut) * x.size
        assert abs((x > cut).sum() - expected) < 5 * np.sqrt(expected)
    assert 4.6 < x.max() < 6.7


@pytest.mark.parametrize("parameter", [0.0, 0.001, 0.5, 0.9, 1.0])
def test_bernoulli(parameter: float) -> None:
    x = large("bernoulli", parameter)
    assert set(np.unique(x)) <= {0.0, 1.0}
    assert abs(x.mean() - parameter) <= 5 * np.sqrt(parameter * (1 - parameter) / x.size)


def test_constant() -> None:
    assert np.array_equal(np.unique(large("constant", 0.25)), [0.25])


STREAMS = [
    {"seed": 1},
    {"first_draw": 1},
    {"tensor": 1},
    {"offset": 1},
    {"offset": 16},
    {"offset": 64},
]


@pytest.mark.parametrize("change", STREAMS, ids=str)
def test_neighbouring_streams_are_independent(change: dict[str, int]) -> None:
    base = {"seed": 0, "first_draw": 0, "tensor": 0, "offset": 0}
    x = rng.sample("normal", (1, 1_000_000), **base)[0].astype(np.float64)
    y = rng.sample("normal", (1, 1_000_000), **(base | change))[0].astype(np.float64)
    for f, g in ((x, y), (x**2 - 1, y**2 - 1), (np.abs(x), y)):
        correlation = np.corrcoef(f, g)[0, 1]
        assert abs(correlation) * np.sqrt(x.size) < 5


def test_pairs_fill_the_plane() -> None:
    x = large("normal")
    cells = (stats.norm.cdf(x).reshape(-1, 2) * 20).astype(int)
    counts = np.bincount(cells[:, 0] * 20 + cells[:, 1], minlength=400)
    assert chi_square(counts, np.full(400, len(cells) / 400)) > 1e-4


def test_errors() -> None:
    with pytest.raises(InputError, match="unknown distribution"):
        rng.sample("cauchy", (1, 1), seed=0, tensor=0)
    with pytest.raises(InputError, match="seed"):
        rng.sample("normal", (1, 1), seed=-1, tensor=0)
    with pytest.raises(InputError, match="tensor"):
        rng.sample("normal", (1, 1), seed=0, tensor=2**32)
