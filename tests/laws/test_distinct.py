"""Different rows among many, against numpy's search by sorting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from varflow.laws.distinct import different_rows, distinct_rows

VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-300, 0.1, 0.1 + 1e-17, float("inf")]) | st.floats(-5, 5, width=16)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(0, 40), st.integers(1, 5)), elements=VALUES))
def test_rows_that_differ(rows: np.ndarray) -> None:
    first, place = distinct_rows(rows)
    assert len(first) == len(np.unique(rows + 0.0, axis=0))
    assert np.array_equal(rows[first][place], rows)
    assert np.array_equal(place[first], np.arange(len(first)))


@pytest.mark.parametrize("different", [1, 17, 60_000, 10**9])
def test_a_million_rows(different: int) -> None:
    rows = np.random.default_rng(0).integers(0, different, (10**6, 1)) / 3.0
    first, place = distinct_rows(rows)
    assert len(first) == len(np.unique(rows)) and np.array_equal(rows[first][place], rows)


def test_rows_that_share_a_word() -> None:
    """Rows whose columns mix to the same word are told apart: c + k m = 0 modulo 2^64 for words c, m of both."""
    from varflow.laws.distinct import _ODD

    a, b = (int(x) for x in _ODD[:2])
    words = np.array([[0, 5], [5 * b * pow(a, -1, 1 << 64) % (1 << 64), 0]], dtype=np.uint64)
    assert len(np.unique(words @ _ODD[:2])) == 1
    first, place = distinct_rows(words.view(np.float64))
    assert len(first) == 2 and place[0] != place[1]


def test_rows_equal_up_to_rounding() -> None:
    rows = np.array([[1.0, 2.0], [1.0 + 1e-15, 2.0], [1.0, 2.0 + 1e-6]])
    first, place = different_rows(rows)
    assert len(first) == 2 and place[0] == place[1] != place[2]
