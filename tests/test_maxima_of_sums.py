"""Max pooling of functions of several Gaussian values at a place (sums of relus, gated sums): numbers at every node
against PyTorch's own layers, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
import sympy as sp

import varflow as vf
from varflow.laws.heights import Height, Score, TwoHeights
from varflow.laws.won_sums import WonSum, WonSumApart
from varflow.lowering import lower
from varflow.network import Handle, Network
from varflow.simulate.backends import simulator
from varflow.symbols import arg
from varflow.verify import predictions
from varflow.window import Window

torch: Any = pytest.importorskip("torch")
F = torch.nn.functional
WIDE = 512
"""Channels."""


def relu(x: sp.Expr) -> sp.Expr:
    return sp.Max(x, 0)


class Layers:
    """The layers of one network in PyTorch, with weights drawn anew in every draw; and the same in varflow."""

    def __init__(self, size: int, samples: int, channels: int, random: Any) -> None:
        self.random, self.channels = random, channels
        self.values: dict[str, Any] = {}
        self.x = self.name("x", self.normal(samples, channels, size, size).requires_grad_())

    def normal(self, *shape: int) -> Any:
        return torch.empty(*shape).normal_(generator=self.random)

    def name(self, name: str, value: Any) -> Any:
        if value.grad_fn is not None:
            value.retain_grad()
        self.values[name] = value
        return value

    def conv(self, x: Any, name: str) -> Any:
        n = self.channels
        w = self.normal(n, n, 3, 3) * (2 / (9 * n)) ** 0.5
        return self.name(name, F.conv2d(x, w, padding=1))

    def relu(self, x: Any, name: str) -> Any:
        return self.name(name, torch.relu(x))

    def sigmoid(self, x: Any, name: str) -> Any:
        return self.name(name, torch.sigmoid(x))

    def add(self, x: Any, y: Any, name: str) -> Any:
        return self.name(name, x + y)

    def multiply(self, x: Any, y: Any, name: str) -> Any:
        return self.name(name, x * y)

    def norm(self, x: Any, name: str) -> Any:
        axes = (0, 2, 3)
        centred = x - x.mean(axes, keepdim=True)
        return self.name(name, centred / x.var(axes, keepdim=True, unbiased=False).sqrt())

    def pool(self, x: Any, name: str) -> Any:
        return self.name(name, F.max_pool2d(x, 3, 2, 1))

    def behind(self, s: Any) -> Any:
        pool = self.pool(s, "pool")
        h = self.relu(self.conv(pool, "c"), "rc")
        mean = self.name("mean", h.mean((2, 3)))
        return self.name("fc", mean @ (self.normal(self.channels, self.channels) / self.channels**0.5))


def handle(made: Any) -> Handle:
    """What a network's method returns."""
    result: Handle = made
    return result


class Model:
    """The same layers of varflow."""

    def __init__(self, size: int, channels: int) -> None:
        self.net = Network("sums")
        self.channels = channels
        self.x = self.net.input("x", channels, (size, size))

    def conv(self, x: Handle, name: str) -> Handle:
        return handle(self.net.conv(x, self.channels, name=name, kernel=3, padding=1, variance="2/fan_in"))

    def relu(self, x: Handle, name: str) -> Handle:
        return handle(self.net.relu(x, name=name))

    def sigmoid(self, x: Handle, name: str) -> Handle:
        return self.net.activation(x, "sigmoid", name=name)

    def add(self, x: Handle, y: Handle, name: str) -> Handle:
        return handle(self.net.add(x, y, name=name))

    def multiply(self, x: Handle, y: Handle, name: str) -> Handle:
        return handle(self.net.multiply(x, y, name=name))

    def norm(self, x: Handle, name: str) -> Handle:
        return handle(self.net.batch_norm(x, name=name))

    def pool(self, x: Handle, name: str) -> Handle:
        return handle(self.net.max_pool(x, kernel=3, stride=2, padding=1, name=name))

    def behind(self, s: Handle) -> Handle:
        pool = self.pool(s, "pool")
        mean = self.net.mean_pool(self.relu(self.conv(pool, "c"), "rc"), name="mean")
        return self.net.linear(mean, self.channels, name="fc", variance="1/fan_in")


Body: TypeAlias = Callable[[Any, Any], Any]


def branches(m: Any, x: Any) -> Any:
    u, v = m.conv(x, "u"), m.conv(x, "v")
    return m.add(m.relu(u, "ru"), m.relu(v, "rv"), "s")


def skip(m: Any, x: Any) -> Any:
    u = m.conv(x, "u")
    v = m.conv(m.relu(u, "ru"), "v")
    return m.add(u, m.relu(v, "rv"), "s")


def normed_sum(m: Any, x: Any) -> Any:
    return m.norm(branches(m, x), "t")


def normed(m: Any, x: Any) -> Any:
    """A residual block with batch norm, whose sum is an argument of a relu."""
    u = m.relu(m.norm(m.conv(x, "u"), "nu"), "ru")
    v = m.norm(m.conv(u, "v"), "nv")
    return m.relu(m.add(u, v, "s"), "rs")


def gate(m: Any, x: Any) -> Any:
    return m.multiply(m.sigmoid(m.conv(x, "u"), "gu"), m.conv(x, "v"), "s")


def behind_a_pool(m: Any, x: Any) -> Any:
    """A residual sum whose skip is a max pool itself, as in ResNet-9."""
    p = m.pool(m.relu(m.norm(m.conv(x, "u"), "nu"), "ru"), "p")
    return m.add(p, m.relu(m.norm(m.conv(p, "v"), "nv"), "rv"), "s")


def pooled(m: Any, x: Any) -> Any:
    """A max pool directly in front of the next, of relus."""
    return m.pool(m.relu(m.conv(x, "u"), "ru"), "p")


def brute(body: Body, size: int, draws: int, samples: int, channels: int) -> dict[str, Any]:
    """{node: draws x (mean, mean square, mean square of the gradient)}."""
    random = torch.Generator().manual_seed(3)
    rows: dict[str, list[tuple[float, ...]]] = {}
    for _ in range(draws):
        layers = Layers(size, samples, channels, random)
        y = layers.behind(body(layers, layers.x))
        y.backward(layers.normal(*y.shape))
        for name, v in layers.values.items():
            rows.setdefault(name, []).append(tuple(float(q) for q in (
                v.detach().mean(), (v.detach() ** 2).mean(), (v.grad**2).mean())))
    return {name: np.array(r) for name, r in rows.items()}


def check(body: Body, size: int, draws: int, samples: int, channels: int = WIDE, bias: float = 0.03) -> None:
    """Means and second moments within 3 % or four standard errors, those of gradients within ``bias`` or that."""
    m = Model(size, channels)
    m.behind(body(m, m.x))
    numbers = vf.derive(m.net).numeric({})
    for name, r in brute(body, size, draws, samples, channels).items():
        found, errors = r.mean(axis=0), r.std(axis=0, ddof=1) / draws**0.5
        scale = found[1] ** 0.5, found[1], found[2]
        for k, field in enumerate(("mean", "second_moment", "grad_second_moment")):
            allowed = max((bias if k == 2 else 0.03) * scale[k], 4 * errors[k])
            assert abs(numbers[name][field] - found[k]) <= allowed, (name, field, numbers[name][field], found[k])


def test_a_residual_sum_behind_batch_norm_is_that_of_pytorch() -> None:
    check(normed, 4, 24, 8, 48)


def test_a_max_pool_of_a_max_pool_is_labelled() -> None:
    """Gradients of windows that share a winner know it through the next pool: 6 to 9 % low, and said to be closures."""
    check(pooled, 6, 40, 4, 96, bias=0.12)
    m = Model(6, 96)
    m.behind(pooled(m, m.x))
    d = vf.derive(m.net)
    found = predictions(d, {}, d.program.values)
    labelled = {name: found["backward", name].exactness for name in ("x", "u", "ru", "p", "pool", "c")}
    assert [name for name, label in labelled.items() if label == "closure"] == ["x", "u", "ru"]


@pytest.mark.slow
@pytest.mark.parametrize(("body", "samples"), [(branches, 2), (skip, 2), (gate, 2), (normed, 12), (normed_sum, 24),
                                               (behind_a_pool, 12)])
def test_numbers_are_those_of_pytorch(body: Body, samples: int) -> None:
    check(body, 8, 16, samples)


@pytest.mark.slow
@pytest.mark.parametrize(("body", "side"), [(normed, 32), (branches, 56)])
def test_large_images_are_those_of_simulation(body: Body, side: int) -> None:
    m = Model(side, 128)
    m.behind(body(m, m.x))
    program = lower(m.net)
    simulation = simulator(program, nodes=list(program.values), seed=5, method="auto", threads=1, backend="cpu",
                           samples=None, large_batch=4, given=True)
    found = simulation.run(40, 1).summaries()
    for name, numbers in vf.derive(m.net).numeric({}).items():
        for pass_, field in (("forward", "second_moment"), ("backward", "grad_second_moment")):
            r = found[pass_, name]
            allowed = max(0.03 * r.second_moment, 4 * r.standard_error)
            assert abs(numbers[field] - r.second_moment) <= allowed, (name, field, numbers[field], r)


# -- operators against draws of all values -------------------------------------------------------------------------

SIDE, DRAWS = 5, 100_000
POOL = Window((sp.Integer(SIDE),) * 2, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
PLACES = SIDE * SIDE
SUM = Score(relu(arg(0)) + relu(arg(1)), 2)


def covariance(reach: float, common: float, borders: float) -> Any:
    """Of neighbours on a grid, with what all places have in common and variances that change from place to place."""
    at = np.array(list(np.ndindex(SIDE, SIDE)), dtype=float)
    near = np.exp(-((at[:, None] - at[None]) ** 2).sum(axis=-1) / reach)
    scale = 1 + borders * at.sum(axis=1) / SIDE
    return ((1 - common) * near + common) * np.outer(scale, scale)


def joint() -> tuple[tuple[Any, ...], Any]:
    """Moments of two values at every place, as operators take them, and draws (2, N, places) of both: the second is
    partly the first at the place before."""
    u, own = covariance(2.0, 0.2, 0.1), covariance(0.5, 0.5, 0.0)
    cross = 0.4 * np.roll(u, 1, axis=1)
    v = 0.16 * np.roll(u, (1, 1), axis=(0, 1)) + 0.8 * own
    whole = np.block([[u, cross], [cross.T, v]])
    moments = tuple(m for c in (u, cross, v) for m in (np.diag(c)[:, None], c))
    x = np.random.default_rng(5).multivariate_normal(np.zeros(2 * PLACES), whole, DRAWS, method="cholesky")
    return moments, np.stack([x[:, :PLACES], x[:, PLACES:]])


@pytest.fixture(scope="module")
def drawn() -> tuple[tuple[Any, ...], Any, Any, Any]:
    """Moments; the largest sums (N, windows), the winning places, and the second value there."""
    moments, (u, v) = joint()
    s = np.maximum(u, 0) + np.maximum(v, 0)
    windows = [row[row >= 0] for row in POOL.table()]
    first = np.stack([w[s[:, w].argmax(axis=1)] for w in windows], axis=1)
    rows = np.arange(DRAWS)[:, None]
    return moments, s[rows, first], first, v[rows, first]


def test_moments_of_the_largest_sum_are_those_of_draws(drawn: Any) -> None:
    moments, top, _, _ = drawn
    for f, g in ((arg(0), top), (arg(0) ** 2, top**2)):
        assert np.allclose(Height(POOL, f, SUM).apply(*moments)[:, 0], g.mean(axis=0), rtol=0.006)
    found = TwoHeights(POOL, arg(0), arg(0), SUM).apply(*moments)
    assert np.allclose(found, top.T @ top / DRAWS, rtol=0.008)


def test_what_places_win_is_what_they_win_in_draws(drawn: Any) -> None:
    moments, _, first, v = drawn
    count = first.shape[1]
    slope = v > 0
    pairs = 0.3 + 0.7 * np.eye(count)
    wins = np.stack([(first == p) & slope for p in range(PLACES)], axis=1).astype(np.float32).reshape(DRAWS, -1)
    both = (wins.T @ wins / DRAWS).reshape(PLACES, count, PLACES, count)
    exact = np.einsum("paqb,ab->pq", both, pairs)
    step = sp.Heaviside(arg(2))
    gradients = (np.ones((count, 1)), np.full((count, count), 0.3))
    same = WonSum(POOL, step, SUM).apply(*moments, *gradients)[:, 0]
    assert np.allclose(same, np.diag(exact), atol=0.02 * np.diag(exact).max())
    apart = WonSumApart(POOL, step, step, 0, SUM).apply(*moments, *gradients)
    off = ~np.eye(PLACES, dtype=bool)
    assert np.allclose(apart[off], exact[off], atol=0.03 * exact[off].max())
    assert apart[off].sum() == pytest.approx(exact[off].sum(), rel=0.01)
