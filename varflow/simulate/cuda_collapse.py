"""Collapsed products on the GPU: the law of `kernels_collapse`, step by step over all draws of a chunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from varflow.simulate.cuda_device import MOST_BLOCKS, THREADS, blocks_for, empty, launch
from varflow.simulate.cuda_gram import (
    ABREAST,
    combine_kernel,
    dots_kernel,
    factorize_kernel,
    solve_across_kernel,
    solve_own_kernel,
)
from varflow.simulate.cuda_sources import fill

DEPENDENT = 1e-8
"""A squared pivot below this share of the column's square counts as zero, as on the processor."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One earlier use: what went in and what came out, (draws, columns, length) each."""

    x: Any
    y: Any
    columns: int


@dataclass(eq=False)
class CudaRevealed:
    """What products have revealed of one matrix in the draws of a chunk (of one matrix for each of its groups), for
    ``columns`` columns right and left."""

    draws: int
    columns: tuple[int, int]
    uses: tuple[list[Seen], list[Seen]] = field(default_factory=lambda: ([], []))

    def __post_init__(self) -> None:
        right, left = self.columns
        self.factors = tuple(empty(self.draws * n * n, np.float64) for n in (right, left))
        self.cross = empty(self.draws * left * right, np.float64)

    def count(self, side: bool) -> int:
        """Columns revealed on a side."""
        return sum(use.columns for use in self.uses[side])


def dots(
    a: Any, b: Any, out: Any, draws: int, rows: tuple[int, int], length: int, size: int, pitch: int, row: int,
    column: int, steps: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Inner products of all columns of two values, of every draw."""
    along = -(-rows[1] // ABREAST)
    row_step, entry_step = steps or (length, 1)
    launch(
        dots_kernel, (min(rows[0] * along, MOST_BLOCKS), draws), a, b, out, *rows, length, row_step, entry_step, size,
        pitch, row, column, shared=8 * ABREAST * THREADS,
    )  # fmt: skip


def collapse(
    x: Any, y: Any, columns: int, sizes: tuple[int, int], std: float, revealed: CudaRevealed, tensor: int,
    transpose: bool, place: dict[str, Any], parts: int = 1,
) -> None:  # fmt: skip
    """y = W x, or W^T x, for all columns x of every draw, in the law that ``revealed`` leaves; added to it.

    ``sizes``: rows and columns of W; ``parts`` matrices belong to one draw, each with its own x and y.
    """
    draws = revealed.draws
    inner, outer = sizes if transpose else sizes[::-1]
    own, across = revealed.uses[transpose], revealed.uses[not transpose]
    start, opposite = revealed.count(transpose), revealed.count(not transpose)
    pitch, far = revealed.columns[transpose], revealed.columns[not transpose]
    factor, size, width = revealed.factors[transpose], pitch * pitch, max(start + opposite, 1)
    at = 0
    for use in [*own, Seen(x, y, columns)]:
        dots(x, use.x, factor, draws, (columns, use.columns), inner, size, pitch, start, at)
        at += use.columns
    launch(factorize_kernel, (draws,), factor, size, pitch, start, start + columns, DEPENDENT)
    small = empty(draws * columns * width, np.float64)
    launch(solve_own_kernel, (draws,), factor, small, size, pitch, start, columns, width)
    _fresh(y, columns, outer, std, factor, (size, pitch, start), tensor, draws, parts, place)
    if across:
        known, at = empty(draws * columns * opposite, np.float64), 0
        for use in across:
            pair = (columns, use.columns)
            dots(x, use.y, known, draws, pair, inner, columns * opposite, opposite, 0, at)
            dots(y, use.x, small, draws, pair, outer, columns * width, width, 0, start + at)
            at += use.columns
        right = revealed.columns[0]
        steps = (right, 1) if transpose else (1, right)
        launch(
            solve_across_kernel, (draws,), revealed.factors[not transpose], small, known, revealed.cross, far * far,
            far, pitch * far, *steps, start, opposite, columns, width,
        )  # fmt: skip
    at = 0
    for rows, count in [*((use.y, use.columns) for use in own), *((use.x, use.columns) for use in across)]:
        _combine(y, small, rows, columns, count, outer, (columns * width, width, at), 1.0, 0, draws)
        at += count
    own.append(Seen(x, y, columns))


def _fresh(
    y: Any, columns: int, length: int, std: float, factor: Any, layout: tuple[int, int, int], tensor: int, draws: int,
    parts: int, place: dict[str, Any],
) -> None:  # fmt: skip
    """y = std T g: g of independent N(0, 1) rows, T the square of the factor's new rows and columns."""
    size, pitch, start = layout
    normals = empty(draws * columns * length)
    fill(normals, draws // parts, length, rows=parts * columns, tensor=tensor, **place)
    _combine(y, factor, normals, columns, columns, length, (size, pitch, start * pitch + start), std, 1, draws)


def _combine(
    y: Any, factors: Any, rows: Any, columns: int, count: int, length: int, layout: tuple[int, int, int], scale: float,
    fresh: int, draws: int,
) -> None:  # fmt: skip
    grid = (blocks_for(columns * length), draws)
    launch(combine_kernel, grid, y, factors, rows, columns, count, length, *layout, float(scale), fresh)
