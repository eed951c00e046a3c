"""The largest of a function that is not monotone: its law, gradients of winners, and networks against brute force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy as sp
from scipy.integrate import quad
from scipy.stats import norm as normal

import varflow as vf
from tests.convolutional import GAIN, HE, Draw, F, N, Tensor, check, image, profile, torch
from varflow.laws.evaluation import Evaluation
from varflow.laws.largest import winner
from varflow.laws.maxima import Maximum, TwoMaxima
from varflow.laws.ranked import Race, drawn_winner, ranked_winner, winner_of
from varflow.symbols import arg
from varflow.window import Window

X = arg(0)
SILU = X / (1 + sp.exp(-X))
BENT = {"silu": F.silu, "gelu": F.gelu, "abs": torch.abs, "x*tanh(x)": lambda x: x * torch.tanh(x)}


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def _drawn(matrix: Any, f: Callable[[Any], Any], draws: int = 2**21) -> tuple[Any, Any]:
    """Entries, and which of them has the largest f."""
    x = np.random.default_rng(5).multivariate_normal(np.zeros(len(matrix)), matrix, draws, method="cholesky")
    return x, f(x).argmax(axis=1)


def test_a_monotone_score_changes_nothing() -> None:
    matrix = np.diag([0.5, 1.0, 0.75]) + 0.4
    plain, ranked = winner(matrix), winner_of(matrix, False, lambda x: x**3)
    for power in (1, 2, 4):
        assert ranked.expected(ranked.points**power) == pytest.approx(plain.expected(plain.points**power), rel=1e-5)
    assert ranked.expected(np.ones(1)).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("count", [2, 4, 9])
def test_largest_absolute_value(count: int) -> None:
    """|x| has the distribution function 2 Phi - 1."""
    stated = quad(lambda z: z**2 * count * (2 * normal.cdf(z) - 1) ** (count - 1) * 2 * normal.pdf(z), 0, 12)[0]
    law = ranked_winner(np.ones(count), 0.0, np.abs)
    assert law.expected(law.points**2).sum() == pytest.approx(stated, rel=1e-5)
    assert law.expected(law.points).sum() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("common", [0.0, 0.6])
def test_winners_of_unequal_variances(common: float) -> None:
    """The integral, a quasi-random sample and random draws agree on the value, its square and who wins."""
    matrix = np.diag([0.3, 1.0, 2.0]) + common
    x, first = _drawn(matrix, silu)
    best = x[np.arange(len(x)), first]
    for law in (winner_of(matrix, False, silu), drawn_winner(matrix, silu)):
        assert law.expected(np.ones(1)) == pytest.approx(np.bincount(first) / len(x), abs=5e-3)
        for f in (silu, lambda x: silu(x) ** 2):
            assert law.expected(f(law.points)).sum() == pytest.approx(f(best).mean(), rel=5e-3)


def test_winners_of_alike_entries() -> None:
    """Race: one window, one of its entries, and two windows that have a part in common."""
    q, c = np.full((1, 1), 1.5), np.full((1, 1), 0.5)
    x, _ = _drawn(np.eye(8) + 0.5, silu)
    one, two = (np.take_along_axis(h, silu(h).argmax(axis=1)[:, None], 1)[:, 0] for h in (x[:, :4], x[:, 4:]))
    square, cube = X**2, X**3
    assert Race(4, 4, square, None, SILU, 0).apply(q, c).item() == pytest.approx((one**2).mean(), rel=5e-3)
    alone = (one**2 * (silu(x[:, :4]).argmax(axis=1) == 0)).mean()
    assert Race(4, 1, square, None, SILU, 0).apply(q, c).item() == pytest.approx(alone, rel=1e-2)
    assert Race(4, 4, square, cube, SILU, 0).apply(q, c).item() == pytest.approx((one**2 * two**3).mean(), rel=2e-2)
    many = Race(4, 4, square, None, SILU, 0).apply(np.array([[1.5], [1.0]]), c)
    assert many.shape == (2, 1) and many[1, 0] < many[0, 0]


def test_windows_of_a_line() -> None:
    """Overlapping windows of entries that covary unevenly, at every pair of windows."""
    window = Window((sp.Integer(6),), (3,), (2,), ((1, 1),), (1,))
    matrix = 0.5 ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    second, square = np.diag(matrix)[:, None], SILU**2
    x, _ = _drawn(matrix, silu, 2**19)
    windows = [row[row >= 0] for row in window.table()]
    best = np.stack([silu(x[:, w]).max(axis=1) for w in windows], axis=1)
    alone = Maximum(window, square, SILU).apply(second, matrix).ravel()
    assert alone == pytest.approx((best**2).mean(axis=0), rel=1e-2)
    both = TwoMaxima(window, SILU, SILU, SILU).apply(second, matrix)
    assert both == pytest.approx(best.T @ best / len(x), rel=1e-2)


@pytest.mark.parametrize(("size", "kernel", "function"), [
    (16, 2, "silu"), (16, 3, "gelu"), (16, 2, "abs"), (16, 3, "x*tanh(x)"), (32, 3, "silu")])
def test_pooled_networks(size: int, kernel: int, function: str) -> None:
    """A convolution, the function, max pooling, a convolution and relu: every value and gradient."""
    padding = kernel // 2 if kernel == 3 else 0
    net, x = image(N, size, size)
    a = net.activation(net.conv(x, N, 3, padding=1, name="c", **HE), function, name="a")
    m = net.max_pool(a, kernel, 2, padding, name="m")
    net.relu(net.conv(m, N, 3, padding=1, name="d", **HE), name="y")

    def forward(draw: Draw) -> Tensor:
        c = draw.name("c", draw.conv(draw.input(N, size, size), N, 3, 2, padding=1))
        m = draw.name("m", F.max_pool2d(draw.name("a", BENT[function](c)), kernel, 2, padding))
        return F.relu(draw.name("d", draw.conv(m, N, 3, 2, padding=1)))

    check(net, forward, draws=200 if size == 32 else 400, samples=2, bias=0.02)


@pytest.mark.parametrize("kernel", [2, 3])
def test_gradients_of_all_windows_tied(kernel: int) -> None:
    """Global averaging ties the gradients of all windows, an average before sums them up again."""
    net, x = image(N, 8, 8)
    a = net.activation(net.avg_pool(x, 3, 1, 1, name="p"), "2*x*sigmoid(3*x)", name="a")
    h = net.max_pool(a, kernel, 2, name="m")
    net.linear(net.mean_pool(net.activation(h, "silu")), N, name="y", **GAIN)

    def forward(draw: Draw) -> Tensor:
        p = draw.name("p", F.avg_pool2d(draw.input(N, 8, 8), 3, 1, 1))
        m = draw.name("m", F.max_pool2d(draw.name("a", 2 * p * torch.sigmoid(3 * p)), kernel, 2))
        return F.linear((F.silu(m)).mean((2, 3)), draw.weight(N, N))

    check(net, forward, draws=300, bias=0.02)


def test_middle_of_a_large_image() -> None:
    """Far from borders, with numbers for no size: the limit that the numbers of larger and larger images approach."""
    net, x = image(N, "h", "w", position_correlation="1/3")
    m = net.max_pool(net.activation(x, "silu"), 3, 2, 1, name="m")
    net.relu(net.conv(m, N, 3, padding=1, name="c", **HE), name="y")
    d = vf.derive(net)
    moments = Evaluation({}, lambda m: float("nan"))
    limit, program = d.main, d.main.program
    found = {n: moments.of(limit.second(limit.program.values[n])) for n in ("m", "c", "y")}
    matrix = (np.eye(9) * 2 + 1) / 3
    x, first = _drawn(matrix, silu, 2**19)
    assert found["m"] == pytest.approx((silu(x[np.arange(len(x)), first]) ** 2).mean(), rel=1e-2)
    assert found["c"] == pytest.approx(2 * found["m"], rel=1e-9)
    assert profile(net.bind({"h": 12, "w": 12}), "m").reshape(6, 6)[3, 3] == pytest.approx(found["m"], rel=1e-3)
    assert moments.of(limit.second(program.gradients["m"])) == pytest.approx(1, rel=1e-9)
