"""Collapsed sampling: its law against sampled draws and against exact laws, its plan, refusals and reproducibility."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, binom, chi2, kstest

import varflow as vf
from tests.simulate.collapsed_law import NETWORKS, RESULT, agreement
from varflow.errors import InputError, UnsupportedError
from varflow.lowering import lower
from varflow.network import Network
from varflow.program import Program
from varflow.simulate import patches
from varflow.simulate.collapsed import choose
from varflow.simulate.cpu import Chunk, Simulator, simulate
from varflow.simulate.kernels import RandomMatrix
from varflow.simulate.kernels_collapse import Revealed, collapse
from varflow.simulate.kernels_haar import RevealedHaar, collapse_haar
from varflow.simulate.plan import make_plan
from varflow.simulate.tape import fits
from varflow.verify import plan

DRAWS = 20_000
LEAST = 1e-5
"""P-values below it refute; there are 260 tests here."""


@pytest.mark.parametrize("name", NETWORKS)
def test_law_is_that_of_sampled_draws(name: str) -> None:
    p = agreement(name, DRAWS)
    assert min(p.values()) > LEAST, {k: v for k, v in p.items() if v <= LEAST}


def test_law_over_a_million_draws() -> None:
    """The committed result of the script covers every network; the least of all its p-values is not too small."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    assert set(found) == set(NETWORKS)
    assert all(entry["draws"] >= 1_000_000 for entry in found.values())
    values = [p for entry in found.values() for p in entry["p"].values()]
    assert min(values) > 0.01 / len(values)


def forgetting(own: bool, across: bool) -> Callable[..., Any]:
    """`collapse` without the conditions on earlier uses of the same side, of the other side, or both."""

    def wrong(
        x: Any, weight: RandomMatrix, revealed: Revealed, tensor: int, *, transpose: bool = False, **place: Any
    ) -> Any:
        known = revealed.uses
        if own:
            known[transpose].clear()
        kept = list(known[not transpose])
        if across:
            known[not transpose].clear()
        y = collapse(x, weight, revealed, tensor, transpose=transpose, **place)
        known[not transpose][:] = kept
        return y

    return wrong


@pytest.mark.parametrize(
    ("name", "own", "across"),
    [("mlp", False, True), ("residual", False, True), ("tied", False, True), ("positions", False, True),
     ("blocks", False, True), ("mixture", True, False), ("recurrent", True, False), ("tied_twice", True, False),
     ("tied_twice", False, True), ("recurrent", True, True), ("convolved", False, True), ("gated", True, False),
     ("convolved_again", True, False), ("convolved_again", False, True)],
)  # fmt: skip
def test_forgotten_conditions_are_found(name: str, own: bool, across: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "collapse", forgetting(own, across))
    assert min(agreement(name, DRAWS).values()) < LEAST / 1000


def chain(width: int, layers: int, variance: str = "2/fan_in") -> Program:
    net = Network("chain")
    h = net.input("x", width)
    for k in range(layers):
        h = net.relu(net.linear(h, width, variance=variance, name=f"z{k}"), name=f"h{k}")
    return lower(net)


def squared_norm_ratio(q: Any, n: int) -> Any:
    """Distribution function of (2/n) chi^2_K, K ~ Bin(n, 1/2): a ReLU layer's norm ratio under He's variance."""
    k = np.arange(1, n + 1)
    weights = binom.pmf(k, n, 0.5) / (1 - 0.5**n)
    return (weights[:, None] * chi2.cdf(n * q[None] / 2, k[:, None])).sum(axis=0)


@pytest.mark.parametrize("draws", [30_000])
def test_relu_chain_has_its_exact_law(draws: int) -> None:
    n, layers = 24, 5
    simulator = Simulator(chain(n, layers), seed=2, method="collapsed")
    rows = np.concatenate([simulator.rows(first, 1000) for first in range(0, draws, 1000)])
    q = {key: rows[:, column, 1] for key, column in simulator.plan.columns.items()}
    steps = ["x", *(f"h{k}" for k in range(layers))]
    ratios = [q["forward", b] / q["forward", a] for a, b in pairwise(steps)]
    for ratio in ratios:
        assert kstest(ratio, lambda r: squared_norm_ratio(r, n)).pvalue > LEAST
    bound = 5 / draws**0.5
    assert np.abs(np.corrcoef(np.log(ratios)) - np.eye(layers)).max() < bound
    back = q["backward", f"h{layers - 2}"] / q["backward", f"z{layers - 1}"]
    assert kstest(back * n / 2, chi2(n).cdf).pvalue > LEAST
    assert kstest(back * n / 2, chi2(n + 1).cdf).pvalue < LEAST


def test_tape_is_the_step_by_step_run() -> None:
    """Both executors draw the same values; moments differ by rounding alone."""
    for name, samples in product(("mlp", "residual", "recurrent", "tied_twice", "mixture", "gated"), (1, 3, 6)):
        plan = make_plan(lower(NETWORKS[name]()), samples, weights=True, method="collapsed")
        assert fits(plan)
        tape = Simulator(lower(NETWORKS[name]()), samples=samples, seed=5, weights=True, method="collapsed").rows(7, 40)
        np.testing.assert_allclose(tape, Chunk(plan, 5, 7, 40).rows(), rtol=2e-4, atol=1e-6)
    assert not fits(make_plan(lower(NETWORKS["blocks"]()), 3, method="collapsed"))


@pytest.mark.parametrize("name", ["mlp", "tied_twice", "blocks", "positions"])
@pytest.mark.parametrize("method", ["auto", "collapsed"])
def test_bits_do_not_depend_on_threads_chunks_or_splits(name: str, method: str) -> None:
    program = lower(NETWORKS[name]())
    options: dict[str, Any] = {"seed": 3, "weights": True, "method": method, "samples": 3}
    whole = simulate(program, 150, threads=1, **options)
    for threads, memory in ((2, 2**28), (2, 5_000), (1, 2_000)):
        assert whole == simulate(program, 150, threads=threads, memory=memory, **options)
    merged = simulate(program, 0, **options)
    for first, draws in ((130, 20), (0, 30), (30, 100)):
        merged.merge(simulate(program, draws, first_draw=first, **options))
    assert merged == whole


def test_every_use_is_consistent_with_one_matrix() -> None:
    """d . (W x) = (W^T d) . x for all pairs of uses."""
    draws, rows, columns = 50, 12, 14
    rng = np.random.default_rng(0)
    revealed = Revealed(draws, (6, 6))
    matrix = RandomMatrix(rows, columns, 1, 0.7)
    for k in range(3):
        for transpose in (False, True):
            given = rng.standard_normal((draws, 2, rows if transpose else columns)).astype(np.float32)
            collapse(given, matrix, revealed, 10 * k + transpose, seed=1, transpose=transpose)
    for x, y in revealed.uses[False]:
        for d, e in revealed.uses[True]:
            np.testing.assert_allclose(
                np.einsum("dik,djk->dij", d, y), np.einsum("dik,djk->dij", e, x), rtol=1e-3, atol=1e-3
            )


@pytest.mark.parametrize(("rows", "columns"), [(13, 13), (15, 11), (11, 15)])
def test_haar_uses_are_those_of_one_isometry(rows: int, columns: int) -> None:
    """d . (W x) = (W^T d) . x for all pairs of uses, and no length changes where W has orthonormal columns or rows."""
    draws, rng, revealed = 50, np.random.default_rng(0), RevealedHaar(50, 8, max(rows, columns))
    uses: tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]] = ([], [])
    for k, transpose in enumerate((False, True, True, False)):
        x = rng.standard_normal((draws, 2, rows if transpose else columns)).astype(np.float32)
        y = collapse_haar(x, rows, columns, 1.0, revealed, k, seed=1, transpose=transpose)
        uses[transpose].append((x, y))
        if (columns if transpose else rows) == max(rows, columns):
            np.testing.assert_allclose(np.einsum("dik,djk->dij", y, y), np.einsum("dik,djk->dij", x, x), atol=1e-3)
    for (x, y), (d, e) in product(*uses):
        np.testing.assert_allclose(np.einsum("dik,djk->dij", d, y), np.einsum("dik,djk->dij", e, x), atol=1e-3)


def test_haar_columns_are_uniform_on_their_spheres() -> None:
    """A coordinate's square is Beta(1/2, (N-1)/2), in what is orthogonal to the first column Beta(1/2, (N-2)/2)."""
    draws, n = 20_000, 9
    revealed, x = RevealedHaar(draws, 2, n), np.zeros((draws, 2, n), np.float32)
    x[:, 0, :2] = x[:, 1, 1:3] = 2**-0.5
    one, two = (collapse_haar(x[:, k : k + 1], n, n, 1.0, revealed, k, seed=1)[:, 0] for k in range(2))
    assert kstest(one[:, 0] ** 2, beta(0.5, (n - 1) / 2).cdf).pvalue > LEAST
    rest = (two - one / 2) / 0.75**0.5
    axis = np.eye(n)[0] - one[:, :1] * one
    along = (rest * axis).sum(axis=1) / np.linalg.norm(axis, axis=1)
    assert kstest(along**2, beta(0.5, (n - 2) / 2).cdf).pvalue > LEAST
    assert kstest(along**2, beta(0.5, (n - 1) / 2).cdf).pvalue < LEAST


def test_columns_that_depend_on_others() -> None:
    """Zero columns, equal ones and sums give zero, equal results and sums."""
    draws = 200
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, draws, 1, 30)).astype(np.float32)
    x = np.concatenate([a, 0 * a, a, b], axis=1)
    y = collapse(x, RandomMatrix(40, 30, 1), Revealed(draws, (6, 0)), 2, seed=1)
    assert not y[:, 1].any()
    np.testing.assert_allclose(y[:, 2], y[:, 0], rtol=1e-5, atol=1e-5)
    revealed = Revealed(draws, (6, 0))
    first = collapse(x, RandomMatrix(40, 30, 1), revealed, 2, seed=1)
    second = collapse(a + b, RandomMatrix(40, 30, 1), revealed, 3, seed=1)
    np.testing.assert_allclose(second[:, 0], first[:, 0] + first[:, 3], rtol=1e-4, atol=1e-4)


def test_a_matrix_that_is_known_whole() -> None:
    """More columns than the matrix has: what it does to them is one linear map."""
    draws, n = 200, 5
    x = np.random.default_rng(0).standard_normal((draws, 3 * n, n)).astype(np.float32)
    y = collapse(x, RandomMatrix(n, n, 1), Revealed(draws, (3 * n, 0)), 2, seed=1)
    for a, b in zip(x.astype(np.float64), y.astype(np.float64), strict=True):
        solution, *_ = np.linalg.lstsq(a, b, rcond=None)
        assert np.abs(a @ solution - b).max() < 1e-2 * np.abs(b).max()
    assert abs((y[:, 0] ** 2).sum(1).mean() / (x[:, 0] ** 2).sum(1).mean() / n - 1) < 0.2


def test_values_that_are_not_finite_stay_so() -> None:
    for bad in (np.inf, np.nan):
        x = np.ones((1, 2, 8), np.float32)
        x[0, 1, 3] = bad
        y = collapse(x, RandomMatrix(8, 8, 1), Revealed(1, (2, 0)), 2, seed=1)
        assert np.isfinite(y[0, 0]).all()
        assert not np.isfinite(y[0, 1]).any()


@pytest.mark.parametrize("scale", ["1e-24", "1e20"])
def test_signals_of_any_size(scale: str) -> None:
    """The law does not depend on the scale of the signal, to the ends of float32."""
    net = Network("scaled")
    h = net.relu(net.linear(net.scale(net.input("x", 16), scale), 16, weight="W", variance="1/16"))
    net.linear(net.scale(h, f"1/{scale}"), 16, weight="W", transpose=True, variance="1/16", name="y")
    small = simulate(lower(net), 4000, method="collapsed").forward["y"]
    brute = simulate(lower(net), 4000, method="sampled", seed=1).forward["y"]
    error = (small.standard_error**2 + brute.standard_error**2) ** 0.5
    assert abs(small.second_moment - brute.second_moment) < 5 * error
    assert error < 0.03 * brute.second_moment


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "uniform": ({"distribution": "uniform"}, "uniform"),
    "rademacher": ({"distribution": "rademacher"}, "rademacher"),
    "orthogonal": ({"distribution": "orthogonal", "keep": "1/2"}, "mask"),
    "sparse": ({"keep": "1/2"}, "mask"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    fields, reason = REFUSED[name]
    net = Network(name)
    h = net.relu(net.linear(net.input("x", 64), 64, name="one", variance="1/fan_in"))
    net.linear(h, 64, name="two", variance="1/fan_in", **fields)
    program = lower(net)
    with pytest.raises(UnsupportedError, match=rf"'two'(.|\n)*{reason}"):
        Simulator(program, method="collapsed")
    plan = Simulator(program, samples=2, method="auto").plan
    assert (plan.choices.collapsed("one"), plan.choices.collapsed("two")) == (True, False)
    assert reason in plan.choices.text()
    with pytest.raises(InputError, match="guessed"):
        Simulator(program, method="guessed")


def test_auto_collapses_what_is_cheaper() -> None:
    program = chain(64, 2)
    few, many = choose(program, 2, "auto"), choose(program, 512, "auto")
    assert all(c.collapse for c in few.by_weight.values())
    assert not any(c.collapse for c in many.by_weight.values())
    assert "z1 (64 x 64, 2 uses, columns 2 + 2): collapsed" in few.text()
    net = Network("image")
    h = net.conv(net.input("x", 128, (2, 2)), 128, kernel=3, padding=1, name="wide", variance="1/fan_in")
    net.depthwise_conv(h, kernel=3, padding=1, name="deep", variance="1/fan_in")
    image = choose(lower(net), 2, "auto")
    assert (image.collapsed("wide"), image.collapsed("deep")) == (True, False)
    assert "wide (128 x 1152, 2 uses, columns 8 + 8): collapsed" in image.text()
    assert not any(c.collapse for c in choose(program, 2, "sampled").by_weight.values())


def test_weights_are_collapsed_in_all_uses_or_none() -> None:
    """The choice does not depend on what is measured."""
    program = lower(NETWORKS["tied_twice"]())
    alone = Simulator(program, nodes=["h0"], method="collapsed")
    assert alone.plan.choices == Simulator(program, method="collapsed").plan.choices
    whole = simulate(program, 30, seed=3, method="collapsed").forward["h0"]
    assert simulate(program, 30, seed=3, method="collapsed", values=["h0"]).forward["h0"] == whole


def test_verification_by_collapsed_draws() -> None:
    net = vf.Network("two")
    h = net.relu(net.linear(net.input("x", 48), 64, name="one", variance="2/fan_in"))
    net.linear(h, 40, name="two", variance="1/fan_in")
    options: dict[str, Any] = {"draws": 400, "delta": 0.1, "method": "collapsed"}
    result = vf.verify(net, **options)
    assert result.verdict == "pass", result.summary()
    assert "two (40 x 64, 2 uses, columns 8 + 8): collapsed" in plan(net).text()
    assert plan(net, method="sampled").to_dict()["weights"]["two"]["method"] == "sampled"
    net.linear(h, 16, name="three", distribution="uniform", variance="1/fan_in")
    with pytest.raises(UnsupportedError, match="three"):
        vf.verify(net, **options)


def test_memory_is_freed() -> None:
    plan = make_plan(chain(32, 6), 2, method="collapsed")
    chunk = Chunk(replace(plan), 0, 0, 1)
    chunk.rows()
    assert not chunk.revealed
    assert set(chunk.values) <= {plan.steps[-1].value}


def test_haar_columns_that_depend_on_others() -> None:
    """U x, U (2 x), then U^T d: lengths and inner products are those of an isometry in every draw."""
    draws, n, rng, revealed = 2000, 8, np.random.default_rng(0), RevealedHaar(2000, 3, 8)
    x = rng.standard_normal((draws, 1, n)).astype(np.float32)
    y, twice = (collapse_haar(np.float32(k) * x, n, n, 1.0, revealed, k, seed=3) for k in (1, 2))
    np.testing.assert_allclose(twice, 2 * y, atol=1e-5)
    d = np.tanh(y + np.float32(0.3)) + rng.standard_normal((draws, 1, n)).astype(np.float32)
    e = collapse_haar(d, n, n, 1.0, revealed, 3, seed=3, transpose=True)
    np.testing.assert_allclose(np.square(e).sum(axis=2), np.square(d).sum(axis=2), rtol=1e-4)
    np.testing.assert_allclose((d * twice).sum(axis=2), (e * 2 * x).sum(axis=2), atol=1e-3)
