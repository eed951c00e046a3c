"""Different rows among many, by hashing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
_ODD = np.array([0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53],
                dtype=np.uint64)
"""Mixes the columns of a row."""


def different_rows(rows: Array) -> tuple[Index, Index]:
    """A place of every different row, and for every row which of them it is; rows that differ by rounding are equal."""
    mixed = np.cos(np.arange(1.0, rows.shape[1] + 1.0) * 1.7)
    level = rows @ mixed
    size = float(np.abs(level).max(initial=0.0)) or 1.0
    return distinct_rows(np.round(level / size, 12)[:, None])


def distinct_rows(rows: Array) -> tuple[Index, Index]:
    """A place of every different row, and for every row which of them it is.

    By hashing, which for a million rows is several times as fast as sorting them: of rows that fall into one slot of a
    table the last stays, and those that differ from it try again.
    """
    words = np.ascontiguousarray(rows + 0.0, dtype=np.float64).view(np.uint64)
    count, columns = words.shape
    mixed = words[:, 0] if columns == 1 else words @ _ODD[:columns]
    left, same = np.arange(count, dtype=np.int32), np.empty(count, dtype=np.int32)
    bits, turn = max(count.bit_length(), 4), 0x9E3779B97F4A7C15
    table = np.empty(1 << bits, dtype=np.int32)
    while len(left):
        slots = ((mixed[left] * np.uint64(turn)) >> np.uint64(64 - bits)).astype(np.intp)
        table[slots] = left
        same[left] = table[slots]
        left = left[(words[same[left]] != words[left]).any(axis=1)]
        turn = turn * 0xD1342543DE82EF95 % (1 << 64)
    first = np.flatnonzero(same == np.arange(count))
    number = np.empty(count, dtype=np.intp)
    number[first] = np.arange(len(first))
    return first, number[same]
