"""Products with the weights of one chunk of draws on the GPU: generated, stored, orthogonal or collapsed."""

from __future__ import annotations

from typing import Any

import numpy as np

from varflow.program import Contract
from varflow.simulate.cuda_collapse import CudaRevealed, collapse, dots
from varflow.simulate.cuda_device import blocks_for, empty, launch, sent
from varflow.simulate.cuda_gram import factorize_kernel, orthogonal_kernel
from varflow.simulate.cuda_moves import copy, folded_kernel, patches_kernel
from varflow.simulate.cuda_paths import Path, path
from varflow.simulate.cuda_product import PLACES, direct_kernel, law_kernel, multiply
from varflow.simulate.cuda_sources import fill, mask
from varflow.simulate.kernels import RandomMatrix
from varflow.simulate.kernels_window import RandomTaps, Sizes, as_taps
from varflow.simulate.plan import Orthogonal, Plan, Step
from varflow.simulate.weight_laws import row_laws

F = np.float32
FEWEST = 16
"""With several groups, narrower ones than this are stored and multiplied entry by entry."""


class Weights:
    """What the draws of a chunk know of their weights, and the products with them."""

    def __init__(self, plan: Plan, draws: int, place: dict[str, Any]) -> None:
        self.plan, self.draws, self.place = plan, draws, place
        self.stored: dict[str, Any] = {}
        self.laws: dict[str, Any] = {}
        self.revealed: dict[str, CudaRevealed] = {}

    def sizes(self, name: str) -> Sizes:
        """Rows of a group, columns, taps, groups."""
        m = self.plan.matrices[name]
        return m.sizes if isinstance(m, RandomTaps) else (m.rows, m.columns, 1, 1)

    def contract(self, step: Step, x: Any, places: int, y: Any) -> None:
        """y = W x, or W^T x, for a value of ``places`` places a draw."""
        use = step.instruction.primitive
        assert isinstance(use, Contract)
        name, matrix = use.weight, self.plan.matrices[use.weight]
        taps = _as_taps(matrix)
        samples, positions = (self.plan.samples, 0) if use.window else (1, places)
        way = path(use.window, samples, positions, use.transpose, PLACES)
        if name in self.plan.revealing:
            self._collapse(step, use, taps, way, x, y)
        elif isinstance(matrix, Orthogonal):
            self._directly(self._orthogonal(name, matrix), taps, way, use.transpose, x, y)
        elif taps.groups > 1 and max(taps.sizes[:2]) < FEWEST:
            self._directly(self._narrow(name, taps), taps, way, use.transpose, x, y)
        else:
            laws = self._laws(name, taps)
            multiply(x, y, taps, way, self.draws, transpose=use.transpose, laws=laws, **self.place)

    def _laws(self, name: str, weight: RandomTaps) -> Any:
        """Scale and shift of every row, worked out on the processor; None without such a law."""
        if not weight.law:
            return None
        if name not in self.laws:
            self.laws[name] = sent(row_laws(weight, draws=self.draws, **self.place))
        return self.laws[name]

    def _entries(self, tensor: int, size: int, distribution: str, keep: float, mask_tensor: int) -> Any:
        out = empty(self.draws * size)
        fill(out, self.draws, size, distribution=distribution, tensor=tensor, **self.place)
        if keep < 1:
            mask(out, self.draws, size, keep, tensor=mask_tensor, **self.place)
        return out

    def _narrow(self, name: str, weight: RandomTaps) -> Any:
        """The entries of a weight in small groups, in their law."""
        if name not in self.stored:
            size = weight.rows * weight.row_length
            out = self._entries(weight.tensor, size, weight.distribution, weight.keep, weight.mask_tensor)
            laws = self._laws(name, weight)
            laws = sent(np.zeros(1, np.float32)) if laws is None else laws
            grid = (blocks_for(size), self.draws)
            launch(law_kernel, grid, out, laws, 1, weight.rows, weight.row_length, F(weight.std))
            self.stored[name] = out
        return self.stored[name]

    def _directly(self, entries: Any, weight: RandomTaps, way: Path, transpose: bool, x: Any, y: Any) -> None:
        group_rows, columns, taps, groups = weight.sizes
        outer = (columns if transpose else group_rows) * groups
        launch(
            direct_kernel, (blocks_for(way.places * outer), self.draws), x, y, entries, way.table, way.slots,
            way.places, way.inputs, group_rows, columns, taps, groups, int(transpose),
        )  # fmt: skip

    def _orthogonal(self, name: str, m: Orthogonal) -> Any:
        """Haar matrices: Q of a Gaussian matrix A, from the Cholesky factor of A^T A (R with a positive diagonal)."""
        if name not in self.stored:
            draws, tall, thin = self.draws, max(m.rows, m.columns), min(m.rows, m.columns)
            normals = self._entries(m.tensor, tall * thin, "normal", 1.0, 0)
            factor, work = empty(draws * thin * thin, np.float64), empty(draws * tall * thin, np.float64)
            dots(normals, normals, factor, draws, (thin, thin), tall, thin * thin, thin, 0, 0, steps=(1, thin))
            launch(factorize_kernel, (draws,), factor, thin * thin, thin, 0, thin, 0.0)
            out, grid = empty(draws * tall * thin), (blocks_for(tall), draws)
            wide = int(m.rows < m.columns)
            launch(orthogonal_kernel, grid, normals, factor, work, out, tall, thin, float(m.scale), wide)
            if m.keep < 1:
                mask(out, draws, tall * thin, m.keep, tensor=m.mask_tensor, **self.place)
            self.stored[name] = out
        return self.stored[name]

    def _collapse(self, step: Step, use: Contract, weight: RandomTaps, way: Path, x: Any, y: Any) -> None:
        """The product in its law given all earlier uses; they are forgotten after the last."""
        name, uses = use.weight, self.plan.revealing[use.weight]
        group_rows, width, taps, groups = weight.sizes
        revealed = self.revealed.setdefault(name, CudaRevealed(self.draws * groups, uses.columns))
        columns = way.inputs if use.transpose else way.places
        dealt = x if use.transpose or use.window is None else self._patches(x, way, columns, taps, groups, width)
        if groups > 1 and dealt is x:
            dealt = self._by_group(x, columns, groups, group_rows if use.transpose else width)
        made = y
        if groups > 1 or (use.transpose and use.window is not None):
            made = empty(self.draws * groups * columns * (taps * width if use.transpose else group_rows))
        sizes, tensor = (group_rows, taps * width), uses.tensors[step.value]
        collapse(dealt, made, columns, sizes, weight.std, revealed, tensor, use.transpose, self.place, groups)
        if use.transpose and made is not y:
            numbers = (columns, taps, way.places, groups, width)
            grid = (blocks_for(way.places * groups * width), self.draws)
            launch(folded_kernel, grid, made, y, way.table, way.slots, *numbers)
        elif made is not y:
            self._by_place(made, y, columns, groups, group_rows)
        if step.value == uses.last:
            del self.revealed[name]

    def _patches(self, x: Any, way: Path, places: int, taps: int, groups: int, width: int) -> Any:
        out = empty(self.draws * groups * places * taps * width)
        grid = (blocks_for(groups * places * taps * width), self.draws)
        launch(patches_kernel, grid, x, out, way.table, places, taps, way.inputs, groups, width)
        return out

    def _by_group(self, x: Any, places: int, groups: int, width: int) -> Any:
        """(draws, places, groups x width) -> (draws, groups, places, width)."""
        out, size = empty(self.draws * groups * places * width), groups * places * width
        sizes = (self.draws, groups, places, width)
        copy(x, out, sizes, (0, size, width, groups * width, 1), (0, size, places * width, width, 1))
        return out

    def _by_place(self, x: Any, y: Any, places: int, groups: int, width: int) -> None:
        """(draws, groups, places, width) -> (draws, places, groups x width)."""
        size, sizes = groups * places * width, (self.draws, groups, places, width)
        copy(x, y, sizes, (0, size, places * width, width, 1), (0, size, width, groups * width, 1))


def _as_taps(matrix: RandomMatrix | RandomTaps | Orthogonal) -> RandomTaps:
    if isinstance(matrix, Orthogonal):
        return RandomTaps(matrix.rows, matrix.columns, matrix.tensor, mask_tensor=matrix.mask_tensor)
    return as_taps(matrix) if isinstance(matrix, RandomMatrix) else matrix
