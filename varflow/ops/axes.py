"""Fields that speak of position axes: one number for all of them, or one for each."""

from __future__ import annotations

from collections.abc import Sequence

import sympy as sp

from varflow.errors import InputError, ShapeError
from varflow.ops.base import Axes, Padding
from varflow.program import Shape
from varflow.window import Window

MOST_AXES = 3


def check_numbers(least: int, **fields: Axes | Padding | None) -> None:
    """Raise InputError for a field with a number below ``least``, or without numbers."""
    for name, values in fields.items():
        if values is None or values == "same":
            continue
        if not values or any(isinstance(v, str) or v < least for v in values):
            raise InputError(f"{name} {_text(values)} cannot be used",
                             why=f"{name} is made of whole numbers of at least {least}",
                             instead="one number, or one for every position axis")


def _text(values: Axes | str) -> str:
    return str(values[0]) if len(values) == 1 else str(values)


def position_axes(layer: str, shape: Shape) -> int:
    """How many position axes a layer slides over. Raises ShapeError for none, or more than three."""
    if not 1 <= len(shape.positions) <= MOST_AXES:
        raise ShapeError(f"{layer} needs 1 to {MOST_AXES} position axes", why=f"its input has shape {shape}",
                         instead="an input declared with positions, as positions: [32, 32]")
    return len(shape.positions)


def spread(field: str, values: Axes, axes: int) -> tuple[int, ...]:
    """One number for every axis. Raises ShapeError where there are too few or too many."""
    if len(values) not in (1, axes):
        raise ShapeError(f"{field} has {len(values)} numbers for {axes} position axes",
                         instead="one number, or one for every position axis")
    return tuple(values) * (axes if len(values) == 1 else 1)


def window(layer: str, shape: Shape, kernel: Axes, stride: Axes, padding: Padding, dilation: Axes = (1,),
           mode: str = "zeros") -> Window:
    """The window of a layer on an input. ``padding`` "same" keeps the positions, an odd place more behind.

    Raises ShapeError for numbers that do not fit the axes, InputError for "same" with a stride.
    """
    axes = position_axes(layer, shape)
    sizes, steps, gaps = (spread(f, v, axes) for f, v in
                          (("kernel", kernel), ("stride", stride), ("dilation", dilation)))
    return Window(shape.positions, sizes, steps, _both_sides(padding, sizes, steps, gaps), gaps, mode)


def _both_sides(padding: Padding, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
                ) -> tuple[tuple[int, int], ...]:
    if not isinstance(padding, str):
        return tuple((p, p) for p in spread("padding", padding, len(kernel)))
    if any(s != 1 for s in stride):
        raise InputError("padding 'same' with a stride", why="as many places as before come out at stride 1 only",
                         instead="padding as numbers")
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((t // 2, t - t // 2) for t in total)


def divided(layer: str, channels: sp.Expr, parts: sp.Expr, what: str) -> sp.Expr:
    """``channels / parts``. Raises ShapeError where that is not a whole number."""
    share = channels / parts
    if share.is_integer is False:
        raise ShapeError(f"{layer}: {channels} channels do not divide into {parts} {what}",
                         instead=f"a number of {what} that divides the channels")
    return share
