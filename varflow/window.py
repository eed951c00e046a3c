"""Which input positions an output position sees: the geometry of convolutions, pooling and resampling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

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

    def table(self) -> Index:
        """Flat input position of every (output position, tap), row-major; -1 outside the grid.

        Shape (outputs, taps), to be read only. Raises InputError while a size is a symbol.
        """
        if not self.is_numeric:
            raise InputError(f"the grid {self.inputs} has no numbers", instead="numbers for all symbols")
        return _table(self)


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
    sizes = [int(n) for n in w.inputs]
    grid: Index = np.zeros((1, 1), dtype=np.int64)
    axes = zip(sizes, w.outputs, w.kernel, w.stride, w.padding, w.dilation, strict=True)
    for n, out, k, s, (low, _), d in axes:
        places = s * np.arange(int(out))[:, None] + d * np.arange(k)[None, :] - low
        axis = _within(places, n, w.mode)
        inside = (grid[:, None, :, None] >= 0) & (axis[None, :, None, :] >= 0)
        joined = np.where(inside, grid[:, None, :, None] * n + axis[None, :, None, :], -1)
        grid = joined.reshape(grid.shape[0] * axis.shape[0], grid.shape[1] * k)
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
