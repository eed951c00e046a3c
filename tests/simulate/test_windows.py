"""Convolutions, pooling, resampling and normalized weights: against PyTorch on the same drawn weights, and against
the plain interpreter in every padding mode, forward and backward."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import sympy as sp
from numpy.typing import NDArray

from tests.simulate.test_cpu import agree, taps_of
from varflow.errors import ShapeError, UnsupportedError
from varflow.program import Input, Lowering, Mix, Program, Shape, Standardize, Weight
from varflow.simulate.cpu import simulate
from varflow.simulate.kernels_gradient import taps_gradient_moment
from varflow.simulate.kernels_pool import (
    dealt,
    group_standardize,
    group_standardize_backward,
    mixed,
    window_max,
    window_max_backward,
)
from varflow.simulate.kernels_window import RandomTaps
from varflow.simulate.plan import make_plan
from varflow.simulate.routes import route
from varflow.simulate.weight_laws import LAWS, row_laws
from varflow.simulate.windows import _table, convolve, is_narrow
from varflow.symbols import arg
from varflow.transpose import transpose
from varflow.window import MODES, Window

SAMPLES = 3
Floats = NDArray[Any]


def grid(inputs: tuple[int, ...], kernel: int | tuple[int, ...], stride: int = 1, padding: int | tuple[int, int] = 0,
         dilation: int = 1, mode: str = "zeros") -> Window:  # fmt: skip
    axes = len(inputs)
    sides = (padding, padding) if isinstance(padding, int) else padding
    size = (kernel,) * axes if isinstance(kernel, int) else kernel
    return Window(tuple(map(sp.Integer, inputs)), size, (stride,) * axes, (sides,) * axes, (dilation,) * axes, mode)


def places(window: Window) -> tuple[int, int]:
    """Input and output positions."""
    return int(sp.Mul(*window.inputs)), len(window.table())


def values(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def as_images(torch: Any, x: Floats, sizes: Any) -> Any:
    """(samples x positions, channels) as torch's samples x channels x positions, a leaf in float64."""
    parts = torch.tensor(x, dtype=torch.float64).reshape(-1, *map(int, sizes), x.shape[-1])
    return parts.movedim(-1, 1).contiguous().requires_grad_(True)


def as_rows(x: Any) -> Floats:
    """The way back."""
    y: Floats = x.detach().movedim(1, -1).flatten(0, -2).numpy()
    return y


def close(got: Floats, want: Floats) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=5e-6 * np.abs(want).max())


# -- against PyTorch -----------------------------------------------------------------------------------

CONVOLUTIONS = [
    (RandomTaps(40, 24, 1, 0.5, taps=9), grid((6, 5), 3, 1, 1)),
    (RandomTaps(70, 65, 1, taps=9, distribution="uniform"), grid((7, 8), 3, 2, 1)),
    (RandomTaps(33, 20, 1, taps=4, keep=0.5, mask_tensor=2), grid((9,), 4, 2, 2, 2)),
    (RandomTaps(16, 6, 1, taps=8), grid((4, 3, 5), 2, 1, 1)),
    (RandomTaps(30, 10, 1, taps=9, groups=3, distribution="rademacher"), grid((5, 7), 3, 1, 2, 2)),
    (RandomTaps(24, 1, 1, taps=25, groups=24), grid((7, 7), 5, 1, 2)),
    (RandomTaps(12, 4, 1, taps=6, groups=6, keep=0.7, mask_tensor=2), grid((6, 7), (2, 3), 2)),
    (RandomTaps(64, 3, 1, taps=49), grid((16, 16), 7, 2, 3)),
    (RandomTaps(8, 40, 1, taps=4, distribution="truncated_normal"), grid((2, 2), 2, 1, 1)),
    (RandomTaps(8, 600, 1, taps=1), grid((4, 6), 1, 2)),
    (RandomTaps(4, 30, 1, 0.3, "constant", taps=9), grid((4, 6), 3)),
    (RandomTaps(3, 40, 1, taps=9, keep=0.5, mask_tensor=2), grid((6, 5), 3, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("weight", "window"), CONVOLUTIONS, ids=str)
def test_convolution_against_torch(weight: RandomTaps, window: Window) -> None:
    torch = pytest.importorskip("torch")
    (inside, outside), axes = places(window), len(window.inputs)
    x, d = values(2, 2 * inside, weight.columns * weight.groups), values(2, 2 * outside, weight.rows, seed=1)
    y = convolve(x, weight, route(window, 2, 0), seed=5, first_draw=7)
    dx = convolve(d, weight, route(window, 2, 0, True), seed=5, first_draw=7, transpose=True)
    moment = taps_gradient_moment([(d, x, _table(window, 2, 0))], weight.sizes)
    entries = weight.drawn(5, 2, 7).astype(np.float64) * weight.std
    run = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[axes - 1]
    back = (torch.nn.functional.conv_transpose1d, torch.nn.functional.conv_transpose2d,
            torch.nn.functional.conv_transpose3d)[axes - 1]  # fmt: skip
    padding, options = window.padding[0][0], {"groups": weight.groups, "dilation": window.dilation}
    for k in range(2):
        image = as_images(torch, x[k], window.inputs)
        kernel = torch.tensor(entries[k]).reshape(weight.rows, *window.kernel, -1).movedim(-1, 1).requires_grad_(True)
        result = run(image, kernel, stride=window.stride, padding=padding, **options)
        close(y[k], as_rows(result))
        cotangent = as_images(torch, d[k], window.outputs).detach()
        result.backward(cotangent)
        close(dx[k], as_rows(image.grad))
        assert moment[k] == pytest.approx(float(kernel.grad.square().mean()), rel=1e-5)
        spare = [int(n) - m for n, m in zip(window.inputs, back(
            cotangent, kernel, stride=window.stride, padding=padding, **options).shape[2:], strict=True)]  # fmt: skip
        close(dx[k], as_rows(back(cotangent, kernel, stride=window.stride, padding=padding, output_padding=spare,
                                  **options)))  # fmt: skip


def test_narrow_sides_of_both_kinds_are_among_the_convolutions() -> None:
    sides = [(w.rows, w, route(v, 2, 0)) for w, v in CONVOLUTIONS]
    sides += [(w.columns, w, route(v, 2, 0, True)) for w, v in CONVOLUTIONS]
    found = [is_narrow(*side) for side in sides]
    assert any(found[: len(CONVOLUTIONS)]) and any(found[len(CONVOLUTIONS) :])


POOLS = [grid((6, 8), 2, 2), grid((7, 5), 3, 2, 1), grid((5, 5), 3, 1, 1)]


@pytest.mark.parametrize("window", POOLS, ids=str)
def test_pooling_against_torch(window: Window) -> None:
    functional = pytest.importorskip("torch").nn.functional
    torch = pytest.importorskip("torch")
    inside, outside = places(window)
    x, d = values(1, 2 * inside, 5), values(1, 2 * outside, 5, seed=1)
    options = {"stride": window.stride, "padding": window.padding[0][0]}
    mean = Mix(window, (sp.Rational(1, window.taps),) * window.taps)
    inner = Mix(window, mean.coefficients, normalized=True)
    runs = [
        (window_max(x, window), window_max_backward(x, d, window), functional.max_pool2d, {}),
        (mixed(x, mean), mixed(d, Mix(window, mean.coefficients, True)), functional.avg_pool2d, {}),
        (mixed(x, inner), mixed(d, Mix(window, mean.coefficients, True, True)), functional.avg_pool2d,
         {"count_include_pad": False}),
    ]  # fmt: skip
    for y, dx, run, more in runs:
        image = as_images(torch, x[0], window.inputs)
        result = run(image, window.kernel, **options, **more)
        result.backward(as_images(torch, d[0], window.outputs).detach())
        close(y[0], as_rows(result))
        close(dx[0], as_rows(image.grad))


def test_nearest_up_sampling_against_torch() -> None:
    torch = pytest.importorskip("torch")
    fine = grid((6, 8), 2, 2)
    x = values(1, 2 * 12, 5)
    want = torch.nn.functional.interpolate(as_images(torch, x[0], (3, 4)), scale_factor=2)
    close(mixed(x, Mix(fine, (sp.Integer(1),) * 4, transpose=True))[0], as_rows(want))


def test_the_first_of_equal_maxima_wins_and_what_is_outside_never_does() -> None:
    window = grid((4,), 3, 1, 1)
    x = np.array([-1.0, -1.0, -5.0, -2.0], np.float32).reshape(1, 4, 1)
    assert window_max(x, window).ravel().tolist() == [-1, -1, -1, -2]
    d = np.array([1.0, 2.0, 4.0, 8.0], np.float32).reshape(1, 4, 1)
    assert window_max_backward(x, d, window).ravel().tolist() == [3, 4, 0, 8]
    x[0, 2] = np.nan
    assert np.isnan(window_max(x, window).ravel()[1:]).all()


def test_deal_and_back() -> None:
    x = values(2, 3, 12)
    y = dealt(x, 4)
    for i in range(12):
        assert np.array_equal(y[:, :, i % 4 * 3 + i // 4], x[:, :, i])
    assert np.array_equal(dealt(y, 4, inverse=True), x)


@pytest.mark.parametrize("groups", [1, 4, 12])
def test_group_norm_against_torch(groups: int) -> None:
    torch = pytest.importorskip("torch")
    x, d = values(1, 2 * 15, 12) * 2 + 1, values(1, 2 * 15, 12, seed=1)
    image = as_images(torch, x[0], (3, 5))
    result = torch.nn.functional.group_norm(image, groups, eps=1e-3)
    result.backward(as_images(torch, d[0], (3, 5)).detach())
    close(group_standardize(x, 2, groups=groups, eps=1e-3)[0], as_rows(result))
    close(group_standardize_backward(x, d, 2, groups=groups, eps=1e-3)[0], as_rows(image.grad))


# -- against the plain interpreter ---------------------------------------------------------------------


def start(channels: int, positions: tuple[int, ...]) -> tuple[Lowering, int]:
    program = Program()
    b = Lowering(program, "x")
    shape = Shape(sp.Integer(channels), tuple(map(sp.Integer, positions)))
    x = b.source(Input("x", sp.Rational(1, 4), sp.Integer(1)), shape)
    program.values["x"], program.inputs = x, [x]
    return b, x


def end(b: Lowering, *outputs: int) -> Program:
    b.program.values |= {f"y{k}": y for k, y in enumerate(outputs)}
    b.program.outputs = list(outputs)
    transpose(b.program)
    return b.program


def weight_of(name: str, rows: int, columns: int, window: Window, groups: int = 1, **law: Any) -> Weight:
    variance = sp.Rational(1, columns * window.taps)
    return Weight(name, sp.Integer(rows), sp.Integer(columns), variance, taps=window.taps, spacing=window.spacing,
                  groups=sp.Integer(groups), **law)  # fmt: skip


@pytest.mark.parametrize(("mode", "stride", "groups"), list(product(MODES, (1, 2), (1, 2, 12))))
def test_convolution_and_its_transpose_in_every_mode(mode: str, stride: int, groups: int) -> None:
    b, x = start(12, (5, 4))
    window = grid((5, 4), 3, stride, (2, 1), mode=mode)
    w = b.declare(weight_of("W", 24, 12 // groups, window, groups))
    h = b.pointwise(sp.tanh(arg(0)), b.convolve(w, x, window))
    y = b.convolve(w, h, window, transpose=True)
    agree(end(b, b.pointwise(arg(0) * arg(1), x, y)), SAMPLES)


@pytest.mark.parametrize("distribution", [*LAWS, "uniform", "rademacher", "truncated_normal", "constant"])
def test_weights_of_every_law(distribution: str) -> None:
    b, x = start(12, (5, 4))
    window = grid((5, 4), 3, 1, 1)
    value = sp.Rational(1, 8) if distribution == "constant" else sp.S.Zero
    one = b.declare(weight_of("W", 20, 6, window, 2, distribution=distribution, value=value))
    two = b.declare(weight_of("V", 16, 20, grid((5, 4), 1), distribution=distribution, value=value))
    h = b.pointwise(sp.Max(arg(0), 0), b.convolve(one, x, window))
    agree(end(b, b.contract(two, h), b.convolve(two, h, grid((5, 4), 1, 2))), SAMPLES)


def test_pools_norms_and_one_weight_in_several_windows() -> None:
    b, x = start(12, (6, 6))
    near, far = grid((6, 6), 3, 1, 1), grid((6, 6), 3, 1, 2, 2, "circular")
    w = b.declare(weight_of("W", 12, 12, near))
    h = b.pointwise(arg(0) + arg(1), b.convolve(w, x, near), b.convolve(w, x, far))
    h = b.standardize(Standardize("group", groups=sp.Integer(3), eps=sp.Rational(1, 100)), h)
    h = b.standardize(Standardize("sample", batch=sp.Integer(SAMPLES)), b.deal(h, 3))
    pooled = b.window_max(grid((6, 6), 3, 2, 1), h)
    mean = b.mix(Mix(grid((6, 6), 3, 2, 1), tuple(sp.Rational(k, 45) for k in range(9)), normalized=True), h)
    wide = b.mix(Mix(grid((6, 6), 2, 2), (sp.S.One,) * 4, transpose=True), pooled)
    agree(end(b, b.pointwise(arg(0) * arg(1), wide, x), mean, b.standardize(
        Standardize("group", center=False), mean)), SAMPLES)  # fmt: skip


def test_orthogonal_weights_seen_through_one_tap() -> None:
    b, x = start(8, (5, 4))
    window = grid((5, 4), 1, 2)
    w = b.declare(weight_of("W", 12, 8, window, distribution="orthogonal"))
    h = b.convolve(w, x, window)
    agree(end(b, b.convolve(w, b.pointwise(sp.tanh(arg(0)), h), window, transpose=True)), SAMPLES)


# -- laws of rows, bits, refusals ----------------------------------------------------------------------


def test_normalized_rows_are_what_they_say() -> None:
    plain = RandomTaps(10, 4, 3, 0.5, taps=9)
    for law in LAWS:
        weight = RandomTaps(10, 4, 3, 0.5, taps=9, law=law)
        factors = row_laws(weight, seed=1, draws=3).astype(np.float64)
        matrices = plain.drawn(1, 3) * factors[:, :, :1] + factors[:, :, 1:]
        if law == "spectral":
            np.testing.assert_allclose(np.linalg.norm(matrices, 2, axis=(1, 2)), 0.5, rtol=1e-6)
            continue
        np.testing.assert_allclose(np.square(matrices).mean(axis=2), 0.25, rtol=1e-6)
        assert bool(np.abs(matrices.mean(axis=2)).max() < 1e-6) is (law == "standardized")


def residual() -> Program:
    """A small network of most windowed steps."""
    b, x = start(16, (6, 6))
    window = grid((6, 6), 3, 1, 1)
    wide = b.declare(weight_of("W", 48, 16, window))
    deep = b.declare(weight_of("D", 48, 1, window, 48, distribution="weight_norm"))
    h = b.pointwise(sp.Max(arg(0), 0), b.convolve(wide, x, window))
    h = b.standardize(Standardize("group", groups=sp.Integer(4)), b.convolve(deep, h, window))
    return end(b, b.convolve(wide, b.pointwise(sp.Max(arg(0), 0), h), window, transpose=True))


def test_bits_do_not_depend_on_threads_or_chunks() -> None:
    program = residual()
    whole = simulate(program, 70, seed=3, threads=1, weights=True, samples=2)
    assert whole == simulate(program, 70, seed=3, threads=3, weights=True, samples=2)
    assert whole == simulate(program, 70, seed=3, threads=2, weights=True, samples=2, memory=10**6)
    one, other = (simulate(program, 2, seed=3, threads=n, memory=1, samples=2) for n in (1, 3))
    assert one == other
    parts = simulate(program, 30, seed=3, first_draw=40, weights=True, samples=2)
    parts.merge(simulate(program, 40, seed=3, weights=True, samples=2))
    assert parts == whole


def test_second_moments_of_a_convolution() -> None:
    """Circular padding: E y^2 = fan_in Var(W) E x^2, and backward fan_out Var(W) times the cotangent's."""
    b, x = start(16, (4, 4))
    window = grid((4, 4), 3, 1, 1, mode="circular")
    w = b.declare(weight_of("W", 32, 16, window))
    result = simulate(end(b, b.convolve(w, x, window)), 4000, seed=2)
    for found, want in ((result.forward["y0"], 1.0), (result.backward["x"], 2.0)):
        assert found.standard_error < 0.01 * want
        assert abs(found.second_moment - want) < 5 * found.standard_error


def test_refusals() -> None:
    window = grid((4, 4), 3, 1, 1)
    for law, columns, size in (("orthogonal", 4, window), ("standardized", 1, grid((4, 4), 1))):
        b, x = start(4, (4, 4))
        w = b.declare(weight_of("W", 4, columns, size, 4 // columns, distribution=law))
        with pytest.raises(UnsupportedError, match=law):
            make_plan(end(b, b.convolve(w, x, size)), 1)
    weight = RandomTaps(4, 3, 1, taps=9)
    with pytest.raises(ShapeError, match="16 x 3"):
        convolve(values(1, 16, 4), weight, route(window, 1, 0), seed=1)
    with pytest.raises(ShapeError, match="groups"):
        RandomTaps(4, 3, 1, groups=3)


def test_weights_are_numbered_row_by_row() -> None:
    """Entry (row, tap, column) is element (row taps + tap) columns + column of the tensor."""
    b, x = start(4, (4, 4))
    window = grid((4, 4), 3, 1, 1)
    w = b.declare(weight_of("W", 6, 4, window))
    plan = make_plan(end(b, b.convolve(w, x, window)), 1)
    matrix = plan.matrices["W"]
    assert isinstance(matrix, RandomTaps)
    drawn = matrix.drawn(11, 1, 5)[0] * matrix.std
    np.testing.assert_allclose(taps_of(matrix, plan.program.weights["W"], 1, 5)[0, 2, 3, 1], drawn[3, 2 * 4 + 1])
