"""Verification of attention: how limits are extrapolated over heads, every layer, wrong laws, a transformer."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sympy as sp
from typer.testing import CliRunner

import varflow as vf
from tests.simulate.test_cpu import one_layer
from tests.test_attention_laws import block
from tests.test_verify import summary
from varflow.cli import app
from varflow.errors import InputError
from varflow.laws import attention as laws
from varflow.laws import moments as mo
from varflow.lowering import lower
from varflow.network import Network
from varflow.ops import OPS
from varflow.ops.attention import SoftmaxLayer
from varflow.verify import prepared, verify
from varflow.verify_check import Check, Judge, Prediction, Reading, limit_draws, limit_weights
from varflow.verify_report import Key
from varflow.verify_run import Run
from varflow.verify_widths import hidden_widths, ladder, order_of, scaled

DELTA = 0.02
FACTORS = (0.5, 1.0, 2.0, 4.0)


# -- widths and limits ---------------------------------------------------------------------------------


def factors_of(n: int, heads: int, tokens: int = 3) -> list[str]:
    net = block(n, tokens, heads)
    return [str(s.factor) for s in ladder(net, lower(net))[0]]


def test_heads_and_channels_are_enough_and_not_too_wide() -> None:
    assert factors_of(128, 8) == ["1/2", "1", "2", "4"]
    assert factors_of(64, 8) == factors_of(48, 3) == factors_of(16, 1) == ["1", "2", "4", "8"]
    assert factors_of(768, 12) == ["1/4", "1/2", "1", "2"]
    assert factors_of(4096, 32) == ["1/8", "1/4", "1/2", "1"]
    assert factors_of(2**15, 1) == ["1"]


def test_one_head_is_multiplied_too() -> None:
    """One head is the default of the layer, which a field at its default says nothing of."""
    net = block(16, 3, 1)
    twice = ladder(net, lower(net))[0][1].program
    assert [int(twice.shape(twice.values[n]).channels) for n in ("q", "logits")] == [64, 6]


def test_other_factors_multiply_heads_and_their_channels() -> None:
    net = block(128, 3, 8)
    scales, note = ladder(net, lower(net), (0.5, 2))
    assert [int(s.program.shape(s.program.values["q"]).channels) for s in scales] == [32, 128, 512]
    assert "1/2, 1, 2" in note
    assert order_of(scales) == 1
    with pytest.raises(InputError):
        ladder(net, lower(net), (1 / 3,))


def test_a_softmax_of_its_own_keeps_its_tokens() -> None:
    net = one_layer("softmax", {"heads": 8}, (4,), 64)
    half = scaled(net, lower(net), ladder(net, lower(net))[0][0].factor)
    layer = half.network.node("layer")
    assert isinstance(layer, SoftmaxLayer)
    assert layer.heads * 8 == half.program.shape(half.program.values["layer"]).channels
    assert not half.of_width


def test_weights_of_a_quadratic_limit() -> None:
    weights = np.array(limit_weights(FACTORS, 2))
    x = 1 / np.array(FACTORS)
    assert [float(weights @ x**k) for k in range(3)] == pytest.approx([1, 0, 0], abs=1e-12)
    assert limit_weights((0.5, 1.0, 2.0), 2) == pytest.approx((1 / 3, -2, 8 / 3))
    assert limit_weights((1.0,), 2) == (1.0,)
    assert limit_weights((0.25, 0.5, 1.0)) == pytest.approx((-0.5, 0.5, 1.0))
    assert limit_draws(FACTORS, order=2) == pytest.approx((2.83, 4.0, 1.0, 1.0), rel=2e-3)


def of_widths(error: Callable[[float], float], spread: float, order: int = 2, wrong: float = 1.0) -> Check:
    """The verdict on 1000 draws a width, of means 1 + error(1/f)."""
    factors = FACTORS[: order + 2]
    readings = [Reading(f, summary(1 + error(1 / f), spread**2), wrong) for f in factors]
    return Judge(DELTA, 1e-4).check(Prediction(wrong, "wide", order=order), readings)


def test_errors_of_heads_and_of_widths_are_extrapolated() -> None:
    """A bend that a + b/f cannot follow: -3.7 % of one there, nothing of the other."""
    check = of_widths(lambda x: -0.02 * x + 0.04 * x**2, 0.02)
    assert check.verdict == "pass"
    assert check.estimate == pytest.approx(1)
    assert check.power is not None and check.power > 0.9
    assert of_widths(lambda x: -0.02 * x + 0.04 * x**2, 0.02, wrong=1.04).verdict == "fail"
    assert of_widths(lambda x: -0.02 * x + 0.04 * x**2, 0.02, wrong=0.96).verdict == "fail"


@pytest.mark.parametrize("order", [1, 2])
def test_a_bend_is_inconclusive_and_a_shift_is_refuted(order: int) -> None:
    """Also where the bend itself is not beyond doubt, but a prediction is refuted only because of it."""
    size = {1: 0.045, 2: -0.14}[order]
    for spread, refuted in ((0.01, False), (0.12, False), (0.12, True)):
        check = of_widths(lambda x: 0.05 if refuted else size * x ** (order + 1), spread, order)  # noqa: B023
        assert check.verdict == ("fail" if refuted else "inconclusive")
        assert refuted or "larger widths" in check.note


def test_numbers_measured_at_each_width_widen_the_interval() -> None:
    readings = [Reading(f, summary(1.0, 1e-4), 1.0) for f in FACTORS]
    p = Prediction(1.0, "wide", 0.001, order=2)
    sharp, rough = (Judge(DELTA, 1e-4).check(replace(p, errors=(0.0, 0.001, e, e)), readings) for e in (0.001, 0.01))
    assert sharp.verdict == "pass"
    assert rough.verdict == "inconclusive" and "population" in rough.note
    assert p.over((0.5, 0.5)) == pytest.approx(0.001)


# -- every layer ---------------------------------------------------------------------------------------


LONG = (("scores", {"heads": 4}), ("attention", {"heads": 4}))


def layers() -> list[Any]:
    """Every example of every layer of attention."""
    names = [name for name in OPS if OPS[name].__module__ == "varflow.ops.attention"]
    given = [(name, dict(fields)) for name in names for fields in OPS[name].examples]
    return [pytest.param(*g, id=f"{g[0]}-{g[1]}", marks=[pytest.mark.slow] if g in LONG else []) for g in given]


@pytest.mark.parametrize(("op", "fields"), layers())
def test_law_of_every_layer(op: str, fields: dict[str, Any]) -> None:
    """The law holds with four heads, and formulas off by 4 % are refuted by the same draws."""
    net = one_layer(op, fields | {"heads": 4}, (16 if op == "blend" else 4,), 64)
    result = verify(net, draws=500, seed=7, precision=0.013, max_draws=4000, width_scale=(0.5, 2, 4))
    for (_, node), check in result.checks.items():
        assert check.verdict == "pass", (node, check)
        assert check.rejects
    assert result.verdict == "pass"


def test_logits_that_a_linear_layer_reads() -> None:
    """Their gradients are weights that are independent of each other: T E d^2 E k^2 at queries, over two tokens the
    covariances' product, and nothing is shared between keys."""
    T, rho = sp.symbols("T rho", positive=True)
    net = Network("read")
    x = net.input("x", "h*d", ("T",), position_correlation="rho")
    q, k = (net.linear(x, "h*d", variance="2/fan_in", name=name) for name in "qk")
    logits = net.scores(q, k, heads="h", scale=1, name="l")
    net.linear(net.mean_pool(logits), "c", variance="1/fan_in", name="y")
    law, g = vf.derive(net), sp.symbols("c") / (T**3 * sp.Symbol("h"))
    assert _same(law["l"].grad_second_moment, g)
    assert _same(law["q"].grad_second_moment, 2 * T * g)
    assert _same(law["k"].grad_second_moment, g * (2 * T + 2 * rho * T * (T - 1)))


def _same(found: sp.Expr | None, expected: sp.Expr) -> bool:
    """Equal but for assumptions of symbols."""
    assert found is not None
    return bool(sp.simplify(sp.sympify(str(found)) - sp.sympify(str(expected))) == 0)


# -- wrong laws ----------------------------------------------------------------------------------------


Draws = tuple[Run, dict[Key, Check]]


@pytest.fixture(scope="module")
def drawn() -> Draws:
    """A block of attention, 600 draws at the widest, and the verdicts on it."""
    options = {"seed": 1, "method": "auto", "threads": 2, "backend": "cpu"}
    run, notes = prepared(vf.derive(block(128, 4, 8, s=1)), {}, DELTA, None, options)
    assert any("a + b/f + c/f^2" in note for note in notes)
    run.advance(600)
    return run, run.checks(0.01)


def test_a_block_of_attention_is_verified(drawn: Draws) -> None:
    run, checks = drawn
    assert [max(hidden_widths(level.scale.program)) for level in run.levels] == [32, 128, 512, 2048]
    assert {c.verdict for c in checks.values()} == {"pass"}
    assert all(c.rejects for c in checks.values())
    assert min(c.power for c in checks.values() if c.power is not None) > 0.9


@pytest.mark.parametrize("error", [1 - 2 * DELTA, 1 + 2 * DELTA])
def test_a_law_off_by_twice_the_tolerance_fails(drawn: Draws, error: float) -> None:
    """Every node's, forward and backward, planted wrong at all widths."""
    run, right = drawn
    for key in right:
        wrong = replace(run, predicted={**run.predicted, key: run.predicted[key].times(error)})
        levels = [copy(level) for level in run.levels]
        for level in levels:
            level.predicted = {**level.predicted, key: level.predicted[key].times(error)}
        found = replace(wrong, levels=levels).checks(0.01)
        assert [k for k, c in found.items() if c.verdict == "fail"] == [key]


def test_logits_of_a_row_that_see_what_tokens_share_are_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong formula, not a wrong number: v instead of v (1 - rho)."""
    monkeypatch.setattr(laws, "_ROW", mo.part(0) ** 2 * mo.part(1) * mo.part(2) * mo.part(3))
    result = verify(block(64, 4, 4, s=1), draws=150, seed=1, width_scale=(0.5, 2, 4))
    assert result.verdict == "fail"
    failed = {k for k, c in result.checks.items() if c.verdict == "fail"}
    assert ("forward", "weights") in failed
    assert ("forward", "logits") not in failed


# -- the shipped transformer ---------------------------------------------------------------------------


@pytest.mark.slow
def test_two_blocks_of_the_shipped_transformer() -> None:
    """Every node, forward and backward, within 2 %."""
    from varflow.load import from_text

    result = verify(from_text(text_of(2)), {"h": 8, "k": 16, "T": 5}, draws=900)
    assert result.verdict == "pass"
    assert result.rejected == 1
    assert result.reached < 0.02


@pytest.mark.slow
def test_command_line(tmp_path: Any) -> None:
    path = tmp_path / "transformer.yaml"
    path.write_text(text_of(1), encoding="utf-8")
    sizes = [part for size in ("h=8", "k=16", "T=4") for part in ("--set", size)]
    found = CliRunner().invoke(app, ["verify", str(path), *sizes, "--draws", "800", "--json"])
    assert found.exit_code == 0
    assert json.loads(found.stdout)["verdict"] == "pass"


def text_of(blocks: int) -> str:
    """The shipped graph with fewer blocks."""
    from varflow.load.shipped import graph_folder

    text = (graph_folder() / "transformer.yaml").read_text(encoding="utf-8")
    return text.replace("repeat: 12", f"repeat: {blocks}")
