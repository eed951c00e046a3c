"""What collapsed sampling refuses: more columns than memory or float32 allow."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from varflow.errors import UnsupportedError
from varflow.lowering import lower
from varflow.network import Network
from varflow.program import Program
from varflow.simulate.collapsed import SPARE_DIMENSIONS, bytes_needed, choose, obstacle, uses_of
from varflow.simulate.cpu import Simulator
from varflow.simulate.kernels import Value
from varflow.simulate.kernels_haar import RevealedHaar, collapse_haar


def layer(width: int, distribution: str = "normal", positions: tuple[int, ...] = ()) -> Program:
    net = Network("layer")
    x = net.input("x", width, positions=positions)
    net.linear(x, width, name="fc", variance="1/fan_in", distribution=distribution)
    return lower(net)


def test_thousands_of_columns_are_refused_before_memory_is_taken() -> None:
    program = layer(32, positions=(400, 400))
    tracemalloc.start()
    with pytest.raises(UnsupportedError) as refused:
        Simulator(program, samples=2, method="collapsed")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**24
    said = str(refused.value)
    assert "'fc' cannot be collapsed" in said and "640000 columns" in said and "GiB a draw, more than 1" in said
    assert refused.value.where == "fc" and "sampled" in refused.value.instead
    assert not choose(program, 2, "auto").collapsed("fc")
    assert "more than 1" in choose(program, 2, "auto").by_weight["fc"].line()


def test_columns_that_fit_are_not_refused() -> None:
    uses = uses_of(layer(32, positions=(40, 40)), 1)["fc"]
    assert bytes_needed(uses, False) == 8 * 3 * 1600**2 + 20 * 3200 * 1600
    assert not obstacle(uses, False)


@pytest.mark.parametrize(("samples", "collapsed"), [(28, True), (29, False), (200, False)])
def test_haar_columns_leave_dimensions_free(samples: int, collapsed: bool) -> None:
    program = layer(2 * 28 + SPARE_DIMENSIONS, "orthogonal")
    found = choose(program, samples, "auto").by_weight["fc"]
    assert (found.reason == "") is collapsed
    if collapsed:
        Simulator(program, samples=samples, method="collapsed").run(2)
        return
    assert not found.collapse
    with pytest.raises(UnsupportedError, match="leave fewer than 4 of 60 dimensions"):
        choose(program, samples, "collapsed")


@pytest.mark.parametrize("n", [32, 128])
def test_haar_products_keep_inner_products_up_to_there(n: int) -> None:
    """One isometry in four uses, the third and fourth of results: float32 to 1e-4, in every one of many draws."""
    draws, rng = 12_800 // n, np.random.default_rng(1)
    y: Value = np.empty((draws, 1, n), np.float32)
    known = RevealedHaar(draws, n - SPARE_DIMENSIONS, n)
    for use, columns in enumerate(np.diff(np.linspace(0, n - SPARE_DIMENSIONS, 5).astype(int))):
        x = rng.standard_normal((draws, columns, n)).astype(np.float32)
        x = x if use < 2 else np.maximum(y[:, np.arange(columns) % y.shape[1]], 0) + np.float32(0.3) * x
        y = collapse_haar(x, n, n, 1.0, known, use, seed=2, transpose=use % 2 == 1)
    first, second = (side.astype(np.float64) for side in known.sides)
    one, other = (side @ side.transpose(0, 2, 1) for side in (first, second))
    lengths = np.sqrt(np.einsum("dii->di", one))
    error = np.abs(one - other) / (lengths[:, :, None] * lengths[:, None, :])
    assert error.max() < 1e-4
