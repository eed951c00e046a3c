"""Streaming statistics: cumulants, the same bits whatever the cut and the order, pieces as bytes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kstat

from varflow.errors import InputError
from varflow.simulate.statistics import BLOCK, Part, Statistics

COLUMNS = {("forward", "a"): 0, ("forward", "b"): 1, ("backward", "a"): 2, ("backward", "b"): 1}
Rows = NDArray[np.float64]


def rows_of(draws: int, seed: int = 3) -> Rows:
    return np.random.default_rng(seed).gamma(2.0, 1.0, (draws, 3, 3))


def counted(rows: Rows, pieces: list[tuple[int, int]]) -> Statistics:
    """Every piece of the rows in statistics of its own, merged in the given order."""
    result = Statistics(COLUMNS)
    for start, stop in pieces:
        one = Statistics(COLUMNS)
        one.add(rows[start:stop], start)
        result.merge(one)
    return result


def test_cumulants_of_logarithms() -> None:
    rows = rows_of(1000)
    s = counted(rows, [(0, 130), (130, 1000)]).forward["b"]
    logs = np.log(rows[:, 1, 1])
    found = (s.log_mean, s.log_variance, s.log_third, s.log_fourth)
    assert found == pytest.approx([float(kstat(logs, k)) for k in (1, 2, 3, 4)], rel=1e-10)


def test_few_draws_have_no_cumulants() -> None:
    s = counted(rows_of(2), [(0, 2)]).forward["a"]
    assert (s.log_third, s.log_fourth) == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_any_cut_in_any_order_has_the_same_bits(seed: int) -> None:
    rows, rng = rows_of(1000), np.random.default_rng(seed)
    cuts = [0, *sorted(rng.choice(np.arange(1, 1000), 12, replace=False).tolist()), 1000]
    pieces = list(pairwise(cuts))
    whole, shuffled = counted(rows, [(0, 1000)]), [pieces[k] for k in rng.permutation(len(pieces))]
    assert counted(rows, shuffled).digest() == whole.digest()
    assert counted(rows, [(0, 999)]).digest() != whole.digest()


def test_pieces_are_the_statistics() -> None:
    rows = rows_of(700)
    whole = counted(rows, [(0, 70), (300, 700)])
    pieces = list(whole.pieces())
    assert sum(count for _, count, _ in pieces) == 470
    assert {count for _, count, _ in pieces if count >= BLOCK} == {BLOCK, 2 * BLOCK}
    again = Statistics(COLUMNS)
    for piece in reversed(pieces):
        again.add_piece(*piece)
    assert again.digest() == whole.digest()
    assert again == whole
    again.merge(counted(rows, [(70, 300)]))
    assert again.digest() == counted(rows, [(0, 700)]).digest()


@pytest.mark.parametrize(("first", "count", "size"), [
    (0, 10, 10 * 72 - 8), (60, 10, 10 * 72), (0, 64, 8), (64, 128, 21 * 24), (0, 96, 21 * 24), (0, 64, 20 * 24),
])  # fmt: skip
def test_pieces_that_cannot_be(first: int, count: int, size: int) -> None:
    with pytest.raises(InputError):
        Statistics(COLUMNS).add_piece(first, count, bytes(size))


def test_draws_count_once() -> None:
    whole = counted(rows_of(128), [(0, 128)])
    piece = next(iter(whole.pieces()))
    with pytest.raises(InputError, match="counted already"):
        whole.add_piece(*piece)
    assert Part.unpack(piece[2], 3).pack() == piece[2]
