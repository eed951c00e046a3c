"""Adaptive pooling of any sizes and windows that are not full: PyTorch's numbers, laws against brute force, images too
large to tell all places apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import varflow as vf
from tests.convolutional import (
    GAIN,
    HE,
    Draw,
    F,
    N,
    Tensor,
    check,
    image,
    near,
    one_thread,
    profile,
    torch,
)
from tests.test_lowerings import Case
from tests.test_lowerings_conv import COUNTERPARTS
from tests.test_lowerings_conv import check as as_torch
from varflow.errors import ErrorList
from varflow.laws import crops, field, positions, windows
from varflow.lowering import lower
from varflow.program import Mix
from varflow.simulate.cpu import simulate
from varflow.simulate.kernels_pool import mixed, window_max, window_max_backward
from varflow.window import Uneven, adaptive

POOLS = {"adaptive_avg_pool": (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
         "adaptive_max_pool": (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)}
SIDES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=2)


# -- the same numbers as PyTorch ---------------------------------------------------------------------------


def same_as_torch(op: str, grid: tuple[int, ...], **fields: Any) -> None:
    as_torch(Case(op, fields, grid, 1, 3), grid, COUNTERPARTS[op])


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(POOLS)), SIDES)
def test_adaptive_pooling_is_that_of_torch(op: str, sides: list[tuple[int, int]]) -> None:
    grid, sizes = zip(*sides, strict=True)
    same_as_torch(op, grid, output_size=sizes)


@pytest.mark.parametrize("op", sorted(POOLS))
def test_three_axes_coarser_finer_and_as_they_were(op: str) -> None:
    same_as_torch(op, (5, 3, 4), output_size=(2, 5, 4))


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_last_windows_are_those_of_torch(op: str) -> None:
    for n, kernel, stride, padding in product((5, 6), (2, 3), (2, 3), (0, 1)):
        fields = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": True}
        same_as_torch(op, (n,), **fields)
        if op == "avg_pool" and padding:
            same_as_torch(op, (n, 5), count_include_pad=False, **fields)
    if op == "max_pool":
        same_as_torch(op, (9, 8), kernel=3, stride=3, padding=1, dilation=(2, 1), ceil_mode=True)


@pytest.mark.parametrize("pair", [((7, 5), (3, 8)), ((4, 6), (9, 4))], ids=str)
def test_kernels_are_those_of_torch(pair: tuple[tuple[int, int], tuple[int, int]]) -> None:
    grid, sizes = pair
    w, random = adaptive(grid, sizes), np.random.default_rng(0)
    x = random.normal(size=(1, 2 * int(np.prod(grid)), 3)).astype(np.float32)
    d = random.normal(size=(1, 2 * int(np.prod(sizes)), 3)).astype(np.float32)
    mean = Mix(w, (sp.Rational(1, w.taps),) * w.taps, normalized=True)
    found = {"adaptive_avg_pool": (mixed(x, mean), mixed(d, Mix(w, mean.coefficients, True, True))),
             "adaptive_max_pool": (window_max(x, w), window_max_backward(x, d, w))}
    for op, (y, dx) in found.items():
        leaf = torch.tensor(x[0].reshape(2, *grid, 3)).movedim(3, 1).requires_grad_()
        result = POOLS[op][1](leaf, sizes)
        result.backward(torch.tensor(d[0].reshape(2, *sizes, 3)).movedim(3, 1))
        for ours, theirs in ((y, result.detach()), (dx, leaf.grad)):
            assert ours[0] == pytest.approx(theirs.movedim(1, 3).reshape(ours.shape[1:]).numpy(), abs=1e-5)


def test_bits_do_not_depend_on_threads() -> None:
    net, x = image(8, 7, 5)
    h = net.apply("adaptive_max_pool", net.relu(net.conv(x, 8, 3, padding=1, **HE)), output_size=(3, 7))
    net.apply("adaptive_avg_pool", h, output_size=(2, 9))
    program = lower(net)
    assert simulate(program, 30, seed=3, threads=1, samples=2) == simulate(program, 30, seed=3, threads=3, samples=2)


# -- laws --------------------------------------------------------------------------------------------------


def pooled(op: str, grid: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[vf.Network, Callable[[Draw], Tensor]]:
    """conv, relu, pool, conv; and by PyTorch."""
    net, x = image(N, *grid)
    h = net.relu(net.conv(x, N, 3, padding=1, name="c", **HE), name="r")
    net.conv(net.apply(op, h, output_size=sizes, name="p"), N, 3, padding=1, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("r", F.relu(draw.name("c", draw.conv(draw.input(N, *grid), N, 3, 2, padding=1))))
        return draw.conv(draw.name("p", POOLS[op][len(grid) - 1](h, sizes)), N, 3, 1, padding=1)

    return net, forward


@pytest.mark.parametrize(("op", "grid", "sizes"), [
    ("adaptive_avg_pool", (7,), (3,)), ("adaptive_max_pool", (7,), (5,)),
    pytest.param("adaptive_max_pool", (9, 4), (4, 8), marks=pytest.mark.slow),
    pytest.param("adaptive_avg_pool", (5, 5), (7, 3), marks=pytest.mark.slow)])
def test_numbers_are_those_of_brute_force(op: str, grid: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    check(*pooled(op, grid, sizes), bias=0.015, draws=200)


@pytest.mark.parametrize("op", sorted(POOLS))
def test_every_position_has_its_own_number(op: str) -> None:
    net, forward = pooled(op, (7,), (4,))
    found = profile(net, "p")
    random, rows = torch.Generator().manual_seed(3), []
    with one_thread():
        for _ in range(150):
            draw = Draw(4, random)
            forward(draw)
            rows.append(draw.values["p"].detach().square().mean(dim=(0, 1)).numpy())
    squares = np.array(rows)
    for k in range(4):
        near(float(found[k]), squares[:, k], 0.01, f"position {k}")


@pytest.mark.parametrize("op", ["adaptive_avg_pool", pytest.param("adaptive_max_pool", marks=pytest.mark.slow)])
def test_a_gradient_that_is_the_same_everywhere(op: str) -> None:
    """Behind the pool a mean over all positions: places that two windows see get two parts of it."""
    net, x = image(N, 7)
    h = net.relu(net.conv(x, N, 3, padding=1, name="c", **HE), name="r")
    net.linear(net.mean_pool(net.apply(op, h, output_size=3, name="p")), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("r", F.relu(draw.name("c", draw.conv(draw.input(N, 7), N, 3, 2, padding=1))))
        return draw.name("p", POOLS[op][0](h, 3)).mean(2) @ draw.weight(N, N).T

    check(net, forward, bias=0.015, draws=300)


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(POOLS))
def test_pools_of_pools_and_a_skip_around_them(op: str) -> None:
    net, x = image(N, 6)
    h = net.conv(x, N, 3, padding=1, name="c", **HE)
    u = net.upsample(net.apply("adaptive_avg_pool", net.apply(op, h, output_size=5, name="p"), output_size=4), 3)
    g = net.upsample(net.relu(h, name="r"), 2)
    net.conv(net.add(u, g, name="s"), N, 3, padding=1, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("c", draw.conv(draw.input(N, 6), N, 3, 2, padding=1))
        u = F.interpolate(F.adaptive_avg_pool1d(draw.name("p", POOLS[op][0](h, 5)), 4), scale_factor=3)
        g = F.interpolate(draw.name("r", F.relu(h)), scale_factor=2)
        return draw.conv(draw.name("s", u + g), N, 3, 1, padding=1)

    check(net, forward, bias=0.015, draws=300)


def test_the_formula_is_the_average_over_windows() -> None:
    """Places that all covary alike: 7 to 3 places by windows of 3, the outer ones with a place of the middle one; 5 to
    4 by windows of 2; in two axes their products."""
    for grid, sizes, share, back in (((7,), (3,), sp.Rational(1, 3), sp.Rational(1, 7)),
                                     ((7, 5), (3, 4), sp.Rational(1, 6), sp.Rational(2, 35))):
        net, x = image(N, *grid, position_correlation="1/4")
        net.pointwise_conv(net.apply("adaptive_avg_pool", x, output_size=sizes, name="p"), N, name="y", **GAIN)
        law = vf.derive(net)
        assert law["p"].second_moment == share + (1 - share) / 4
        assert law["x"].grad_second_moment == back
        numbers = law.numeric({})
        assert numbers["p"]["second_moment"] == pytest.approx(_number(law["p"].second_moment))
        assert numbers["x"]["grad_second_moment"] == pytest.approx(float(back))


def _number(formula: sp.Expr | None) -> float:
    assert formula is not None
    return float(formula)


def test_the_formula_of_maxima_is_the_average_over_windows() -> None:
    """8 to 5 independent places: two windows of 3, three of 2. E max^2 of 2 is 1, of 3 it is 1 + sqrt(3)/(2 pi)."""
    net, x = image(N, 8)
    net.pointwise_conv(net.apply("adaptive_max_pool", x, output_size=5, name="p"), N, name="y", **GAIN)
    w = adaptive((8,), (5,))
    assert w.sizes == {2: sp.Rational(3, 5), 3: sp.Rational(2, 5)}
    law = vf.derive(net)
    stated = 1 + 3**0.5 / (5 * np.pi)
    assert _number(law["p"].second_moment) == pytest.approx(stated)
    assert law.numeric({})["p"]["second_moment"] == pytest.approx(stated)
    assert _number(law["x"].grad_second_moment) == pytest.approx(5 / 8)


@pytest.mark.parametrize("stride", [2, 3])
def test_padding_that_does_not_count_backward(stride: int) -> None:
    """A gradient is divided by what its window has inside, not by how many windows see a place."""
    net, x = image(N, 9)
    h = net.conv(x, N, 3, padding=1, name="c", **HE)
    h = net.avg_pool(h, 3, stride, padding=1, count_include_pad=False, name="p")
    net.conv(h, N, 3, padding=1, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = draw.name("c", draw.conv(draw.input(N, 9), N, 3, 2, padding=1))
        p = draw.name("p", F.avg_pool1d(h, 3, stride, 1, count_include_pad=False))
        return draw.conv(p, N, 3, 1, padding=1)

    check(net, forward, bias=0.015, draws=150)
    assert vf.derive(net)["c"].grad_second_moment == sp.Rational(1, 3 * stride)


def test_last_windows_have_numbers() -> None:
    net, x = image(N, 6)
    h = net.relu(net.conv(x, N, 3, padding=1, name="c", **HE))
    h = net.avg_pool(net.max_pool(h, 2, 3, ceil_mode=True, name="m"), 3, 2, padding=1, ceil_mode=True, name="p")
    net.conv(h, N, 3, padding=1, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = F.relu(draw.name("c", draw.conv(draw.input(N, 6), N, 3, 2, padding=1)))
        m = draw.name("m", F.max_pool1d(h, 2, 3, ceil_mode=True))
        return draw.conv(draw.name("p", F.avg_pool1d(m, 3, 2, 1, ceil_mode=True)), N, 3, 1, padding=1)

    check(net, forward, bias=0.015, draws=200)


# -- large images ------------------------------------------------------------------------------------------


@contextmanager
def told_apart(most: int) -> Iterator[None]:
    """Grids of more than so many places have crops; without them all places are told apart."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (crops, field):
            patch.setattr(module, "MAX_PLACES", most)
        for module in (positions, windows):
            patch.setattr(module, "MAX_PLACES", 10**6)
        patch.setattr(crops, "PLACES", min(1600, int(0.6 * most)))
        yield


@pytest.mark.parametrize(("grid", "sizes"), [
    ((200,), (37,)), ((36,), (250,)), ((200,), (130,)),
    pytest.param((40, 36), (11, 9), marks=pytest.mark.slow)], ids=str)
def test_numbers_with_crops_are_those_with_every_place(grid: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """Gradients too, whose means over overlapping windows go back to neighbours that a mean has made alike."""
    net, x = image(N, *grid, position_correlation="1/5")
    h = net.avg_pool(net.relu(net.conv(x, N, 3, padding=1, name="c", **HE)), 3, 1, padding=1, name="q")
    h = net.avg_pool(net.apply("adaptive_avg_pool", h, output_size=sizes, name="p"), 2, 1, name="p2")
    net.conv(h, N, 3, padding=1, name="y", **GAIN)
    found = []
    for most in (10**6, 100 if len(grid) == 1 else 700):
        with told_apart(most):
            found.append(vf.derive(net).numeric({}))
    for node, exact in found[0].items():
        for moment in ("second_moment", "grad_second_moment"):
            assert found[1][node][moment] == pytest.approx(exact[moment], rel=5e-3), (node, moment)


def test_maxima_over_uneven_windows_of_a_large_grid_are_not_stated() -> None:
    net, x = image(N, 50, 50)
    net.apply("adaptive_max_pool", x, output_size=7, name="p")
    assert vf.derive(net)["p"].second_moment is None


# -- as a user types it ------------------------------------------------------------------------------------


def test_sizes_that_do_not_fit_are_refused() -> None:
    for op, options in product(POOLS, [(("H", "W"), 7), ((7, "W"), 3)]):
        net, x = image(N, *options[0])
        net.apply(op, x, output_size=options[1])
        with pytest.raises(ErrorList, match="depends on the sizes"):
            vf.derive(net)
    net, x = image(N, 7, 7)
    net.apply("adaptive_avg_pool", x, output_size=(2, 2, 2))
    with pytest.raises(ErrorList, match="one for every position axis"):
        vf.derive(net)


def test_whole_ratios_of_symbols_are_ordinary_windows() -> None:
    net = vf.Network("halves")
    m = sp.Symbol("m", integer=True, positive=True)
    x = net.input("x", "n", (4 * m,))
    net.apply("adaptive_max_pool", x, output_size=2 * m, name="p")
    net.max_pool(x, 3, 2, ceil_mode=True, name="ceil")
    assert not any(isinstance(getattr(s.primitive, "window", None), Uneven) for s in lower(net))
    assert vf.derive(net)["p"].second_moment == 1


def test_written_to_a_file_and_read(tmp_path: Path) -> None:
    path = tmp_path / "net.yaml"
    net, _ = pooled("adaptive_avg_pool", (7, 5), (3, 4))
    vf.save(net, path)
    loaded = vf.load(path)
    assert lower(loaded).instructions == lower(net).instructions


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(POOLS))
def test_verification(op: str) -> None:
    loaded = pooled(op, (7, 5), (3, 4))[0]
    assert vf.verify(loaded, draws=300, seed=1, delta=0.1).verdict == "pass"


def test_one_place_spread_padded_and_averaged() -> None:
    """A value that is the same at all places, given borders again and again."""
    net, x = image(N, 5)
    h = net.adaptive_avg_pool(net.relu(net.conv(x, N, 3, padding=1, name="c", **HE)), output_size=1, name="p")
    h = net.upsample(h, 4, mode="bilinear", name="u")
    h = net.pad(net.avg_pool(net.pad(h, 1), 3, 1, padding=1), 2, name="a")
    net.conv(net.relu(h), N, 3, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        h = F.relu(draw.name("c", draw.conv(draw.input(N, 5), N, 3, 2, padding=1)))
        h = draw.name("p", h.mean(2, keepdim=True))
        h = F.avg_pool1d(F.pad(draw.name("u", h.expand(-1, -1, 4)), (1, 1)), 3, 1, 1)
        return draw.conv(F.relu(draw.name("a", F.pad(h, (2, 2)))), N, 3, 1)

    check(net, forward, bias=0.02, draws=200)
