"""Weights that are drawn once for all of their uses: their entries, their products, and which weights they are."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from tests.simulate.test_cpu import agree
from varflow.errors import ShapeError
from varflow.lowering import lower
from varflow.network import Network
from varflow.program import Program
from varflow.simulate import keeping
from varflow.simulate.collapsed import choose
from varflow.simulate.cpu import Chunk, Simulator, simulate
from varflow.simulate.kernels import RandomMatrix, contract
from varflow.simulate.kernels_kept import drawn, multiplied
from varflow.simulate.plan import make_plan
from varflow.simulate.tape import fits

WEIGHTS = {
    "normal": {}, "sparse": {"keep": "1/3"}, "uniform": {"distribution": "uniform"},
    "truncated": {"distribution": "truncated_normal", "keep": "1/2"}, "signs": {"distribution": "rademacher"},
}  # fmt: skip


def recurrent(norm: bool = False, **weight: Any) -> Program:
    """Four steps with shared weights, one of them used as its transpose too; ``norm``: a layer no tape knows."""
    net = Network("recurrent")
    state = net.input("x", 48)
    for k in range(4):
        z = net.linear(state, 40, weight="W", variance="1/44", name=f"z{k}", **weight)
        state = net.linear(net.tanh(z), 48, weight="W", transpose=True, variance="1/44", name=f"h{k}", **weight)
    y = net.layer_norm(state) if norm else state
    net.linear(y, 30, variance="1/fan_in", name="out", **weight)
    return lower(net)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 70), (64, 33), (150, 257)])
def test_products_against_numpy(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    matrices = rng.standard_normal((3, rows, columns)).astype(np.float32)
    for places, transpose in product((1, 2, 4, 7, 9, 130), (False, True)):
        x = rng.standard_normal((3, places, rows if transpose else columns)).astype(np.float32)
        want = np.einsum("dpr,drc->dpc" if transpose else "dpc,drc->dpr", x.astype(float), matrices)
        found = multiplied(x, matrices, transpose=transpose)
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=3e-6 * max(rows, columns) ** 0.5)
        with pytest.raises(ShapeError, match="channels"):
            multiplied(x[:, :, :-1], matrices, transpose=transpose)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_entries_are_those_that_are_drawn_anew(kind: str) -> None:
    keep = 1 if "keep" not in WEIGHTS[kind] else 0.5
    weight = RandomMatrix(33, 70, 5, 0.3, WEIGHTS[kind].get("distribution", "normal"), keep, 6)
    x = np.eye(70, dtype=np.float32)[None].repeat(3, axis=0)
    place: dict[str, Any] = {"seed": 2, "first_draw": 7}
    want = contract(x, weight, **place).transpose(0, 2, 1)
    np.testing.assert_allclose(drawn(weight, 3, **place), want, rtol=1e-6)


@pytest.mark.parametrize(("kind", "norm"), list(product(WEIGHTS, (False, True))))
def test_values_are_those_of_an_interpreter(kind: str, norm: bool) -> None:
    agree(recurrent(norm, **WEIGHTS[kind]), 3)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_tape_is_the_step_by_step_run(kind: str) -> None:
    """Bit by bit but for the sums of moments."""
    for samples in (1, 6):
        program = recurrent(False, **WEIGHTS[kind])
        plan = make_plan(program, samples, weights=True, method="sampled")
        assert fits(plan)
        tape = Simulator(program, samples=samples, seed=5, weights=True, method="sampled").rows(7, 20)
        np.testing.assert_allclose(tape, Chunk(plan, 5, 7, 20).rows(), rtol=1e-5, atol=1e-7)


def test_bits_do_not_depend_on_threads_chunks_or_splits() -> None:
    for norm in (False, True):
        options: dict[str, Any] = {"seed": 3, "weights": True, "method": "sampled", "samples": 5}
        whole = simulate(recurrent(norm, keep="1/2"), 150, threads=1, **options)
        for threads, memory in ((2, 2**28), (2, 5_000), (1, 2_000)):
            assert whole == simulate(recurrent(norm, keep="1/2"), 150, threads=threads, memory=memory, **options)
        merged = simulate(recurrent(norm, keep="1/2"), 0, **options)
        for first, draws in ((130, 20), (0, 30), (30, 100)):
            merged.merge(simulate(recurrent(norm, keep="1/2"), draws, first_draw=first, **options))
        assert merged == whole


def test_which_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them where a tape knows every step; else those that are used often; as many as there is room for."""
    plain, normed = recurrent(), recurrent(norm=True)

    def kept(program: Program, method: str = "sampled") -> set[str]:
        return {name for name, c in choose(program, 4, method).by_weight.items() if c.kept}

    assert (kept(plain), kept(normed), kept(plain, "collapsed")) == ({"W", "out"}, {"W"}, set())
    assert "W (40 x 48, 16 uses" in choose(plain, 4, "sampled").text()
    assert "sampled once; sampled " in choose(plain, 4, "sampled").text()
    assert choose(plain, 4, "sampled").to_dict()["weights"]["W"]["kept"] is True
    monkeypatch.setattr(keeping, "KEPT_BYTES", 4 * 40 * 48)
    assert kept(plain) == {"W"}
    monkeypatch.setattr(keeping, "KEPT_BYTES", 4 * 40 * 48 - 1)
    assert kept(plain) == set()


def test_weights_that_are_not_plain_matrices_are_not_kept() -> None:
    net = Network("others")
    x = net.input("x", 24)
    for _ in range(3):
        x = net.linear(x, 24, weight="O", distribution="orthogonal", variance="1/24")
        x = net.linear(x, 24, weight="N", distribution="weight_norm", variance="1/24")
    assert not any(c.kept for c in choose(lower(net), 4, "sampled").by_weight.values())
