"""Which input positions an output position sees: the geometry of convolutions, pooling and resampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.errors import InputError, ShapeError

Index = npt.NDArray[np.int64]
MODES = ("zeros", "circular", "reflect", "replicate")
MAX_TAPS = 4096


@dataclass(frozen=True)
class Window:
    """Tap t of output p reads input ``stride p + dilation t - padding``, axis by axis.

    ``inputs`` are the sizes of the input grid, ``padding`` holds (before, after) for each axis; ``mode`` says
    what stands outside the grid: nothing ("zeros"), or the grid itself wrapped, mirrored or continued.
    Conventions are those of torch.nn.Conv2d.
    """

    inputs: tuple[sp.Expr, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    mode: str = "zeros"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"padding mode {self.mode!r} is not known", instead="one of " + ", ".join(MODES))
        if self.taps > MAX_TAPS:
            raise InputError(f"a window of {self.taps} taps", why=f"at most {MAX_TAPS} are read",
                             instead="a smaller kernel")
        for size, reach, (low, high) in zip(self.inputs, self._reach, self.padding, strict=True):
            if (size + low + high - reach).is_negative:
                raise ShapeError(f"a window of {reach} positions on {size} with padding {low + high}",
                                 why="the window is larger than what it slides over",
                                 instead="a smaller kernel, more padding, or a larger input")
            beyond = max(low, high) - size + int(self.mode == "reflect")
            if self.mode in ("circular", "reflect") and beyond.is_positive:
                raise ShapeError(f"{self.mode} padding of {max(low, high)} on {size} positions",
                                 instead="padding smaller than the input")

    @property
    def taps(self) -> int:
        """Number of input positions in the window."""
        return int(np.prod(self.kernel))

    @property
    def spacing(self) -> int:
        """Input positions per output position: the product of the strides."""
        return int(np.prod(self.stride))

    @property
    def _reach(self) -> tuple[int, ...]:
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def outputs(self) -> tuple[sp.Expr, ...]:
        """Sizes of the output grid."""
        return tuple(
            _whole(n + (low + high - reach), s) + 1
            for n, (low, high), reach, s in zip(self.inputs, self.padding, self._reach, self.stride, strict=True)
        )

    @property
    def uniform(self) -> bool:
        """Whether every output position sees the full window, with no position of the input repeated in it."""
        return self.mode == "circular" or all(low == high == 0 for low, high in self.padding)

    @property
    def covers_evenly(self) -> bool:
        """Whether every input position is seen by equally many outputs: stride 1 without borders, or windows that
        tile the grid."""
        tiles = all(k == s and d == 1 and (n / sp.Integer(s)).is_integer and p == (0, 0) for n, k, s, d, p in zip(
            self.inputs, self.kernel, self.stride, self.dilation, self.padding, strict=True))
        wraps = self.mode == "circular" and self.spacing == 1 and self.outputs == self.inputs
        return bool(tiles or wraps or (self.taps == self.spacing == 1 and self.outputs == self.inputs))

    @property
    def is_numeric(self) -> bool:
        """Whether the grid's sizes are numbers."""
        return all(n.is_number for n in self.inputs)

    def offsets(self) -> Iterator[tuple[int, ...]]:
        """The taps in row-major order, as an index per axis."""
        return product(*(range(k) for k in self.kernel))

    def axes(self) -> list[Index]:
        """Along each axis the input position of every (output position, tap); -1 outside the grid."""
        sides = zip(self.inputs, self.outputs, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [_within(s * np.arange(int(out))[:, None] + d * np.arange(k)[None, :] - low, int(n), self.mode)
                for n, out, k, s, (low, _), d in sides]

    def table(self) -> Index:
        """Flat input position of every (output position, tap), row-major; -1 outside the grid.

        Shape (outputs, taps), to be read only. Raises InputError while a size is a symbol.
        """
        if not self.is_numeric:
            raise InputError(f"the grid {self.inputs} has no numbers", instead="numbers for all symbols")
        return _table(self)


@dataclass(frozen=True)
class Uneven(Window):
    """Windows of different sizes, without strides: along each axis ``spans`` holds where the window of every output
    starts and how many positions it has. ``kernel`` is the largest window; taps that one lacks stand outside the grid.
    """

    spans: tuple[tuple[tuple[int, int], ...], ...] = ()

    @property
    def spacing(self) -> sp.Rational:
        """Input positions per output position."""
        return sp.Rational(sp.Mul(*self.inputs), sp.Mul(*self.outputs))

    @property
    def outputs(self) -> tuple[sp.Expr, ...]:
        """Sizes of the output grid."""
        return tuple(sp.Integer(len(s)) for s in self.spans)

    @property
    def uniform(self) -> bool:
        """Not all windows are full."""
        return False

    @property
    def covers_evenly(self) -> bool:
        """Positions are seen by different numbers of windows, or by windows of different sizes."""
        return False

    @property
    def sizes(self) -> dict[int, sp.Rational]:
        """The numbers of positions that windows have, and how large a share of the windows has so many."""
        counts = Counter(prod(size for _, size in one) for one in product(*self.spans))
        return {size: sp.Rational(n, prod(map(len, self.spans))) for size, n in sorted(counts.items())}

    def axes(self) -> list[Index]:
        """Along each axis the input position of every (output position, tap); -1 where a window has none."""
        found = []
        for k, spans in zip(self.kernel, self.spans, strict=True):
            start, size = np.array(spans, dtype=np.int64).T[:, :, None]
            found.append(np.where(np.arange(k) < size, start + np.arange(k), -1))
        return found


def adaptive(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Uneven:
    """The windows of adaptive pooling: output i of s sees positions floor(i n/s) to ceil((i+1) n/s) - 1 of n."""
    spans = tuple(tuple((i * n // s, -(-(i + 1) * n // s) - i * n // s) for i in range(s))
                  for n, s in zip(inputs, outputs, strict=True))
    ones, kernel = (1,) * len(inputs), tuple(max(size for _, size in one) for one in spans)
    return Uneven(tuple(map(sp.Integer, inputs)), kernel, ones, ((0, 0),) * len(inputs), ones, spans=spans)


def _whole(size: sp.Expr, stride: int) -> sp.Expr:
    """floor(size / stride) of a size whose symbols stand for whole numbers, whatever their assumptions say.

    floor((floor(u) + k) / s) is floor((u + k) / s) for whole k and s: sizes behind several strides stay short.
    """
    whole = {s: sp.Dummy(s.name, integer=True, positive=True) for s in size.free_symbols if not s.is_integer}
    inner = sp.expand(size.xreplace(whole))
    floors = [t for t in sp.Add.make_args(inner) if isinstance(t, sp.floor)]
    if len(floors) == 1 and stride > 1:
        inner += floors[0].args[0] - floors[0]
    return sp.floor(sp.expand(inner / stride)).xreplace({d: s for s, d in whole.items()})


@lru_cache(maxsize=256)
def _table(w: Window) -> Index:
    grid: Index = np.zeros((1, 1), dtype=np.int64)
    for n, axis in zip((int(n) for n in w.inputs), w.axes(), strict=True):
        inside = (grid[:, None, :, None] >= 0) & (axis[None, :, None, :] >= 0)
        joined = np.where(inside, grid[:, None, :, None] * n + axis[None, :, None, :], -1)
        grid = joined.reshape(grid.shape[0] * axis.shape[0], grid.shape[1] * axis.shape[1])
    grid.setflags(write=False)
    return grid


def _within(places: Index, n: int, mode: str) -> Index:
    """Positions brought into 0..n-1 as the mode says; -1 outside."""
    match mode:
        case "circular":
            return np.asarray(places % n)
        case "replicate":
            return np.clip(places, 0, n - 1)
        case "reflect":
            period = max(2 * (n - 1), 1)
            folded = np.abs(places) % period
            return np.where(folded < n, folded, period - folded)
        case _:
            return np.where((places >= 0) & (places < n), places, -1)
