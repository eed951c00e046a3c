"""Verification of image networks: averages over a layer's own weights, batches, draws by their cost, borders."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import sympy as sp

import varflow as vf
from tests.test_verify import DELTA, residual, summary
from varflow.lowering import lower
from varflow.network import Network
from varflow.simulate.cpu import Simulator
from varflow.verify import FEWEST_DRAWS, affordable, batch_of, prepared, verify
from varflow.verify_check import Judge, Prediction, Reading
from varflow.verify_run import Level, Run
from varflow.verify_widths import scaled


def image_network() -> Network:
    net = Network("images")
    h = net.input("x", 16, (6, 6), mean=1, second_moment=2)
    for k, stride in enumerate((1, 2)):
        h = net.relu(net.conv(h, 48, 3, padding=1, stride=stride, variance="2/fan_in", name=f"conv{k}"))
    net.conv_transpose(h, 48, 3, stride=2, groups=4, variance="2/fan_in", name="up")
    return net


@pytest.mark.parametrize("name", ["conv0", "conv1", "up"])
def test_products_averaged_over_their_weights_have_the_same_mean(name: str) -> None:
    """And vary less between draws."""
    found = Simulator(lower(image_network()), samples=4, given=True).run(1600).summaries()
    drawn, averaged = found["forward", name], found["given", name]
    error = (drawn.standard_error**2 + averaged.standard_error**2) ** 0.5
    assert abs(drawn.second_moment - averaged.second_moment) < 5 * error
    assert error < 0.01 * drawn.second_moment
    assert averaged.standard_error < drawn.standard_error


def test_the_average_over_weights_is_taken_where_the_draws_hold_it() -> None:
    drawn, averaged = summary(1.01, 0.2**2), summary(1.0, 0.02**2)
    judge = Judge(DELTA, 1e-4)
    found = judge.check(Prediction(1.0), [Reading(1.0, drawn, 1.0, averaged)])
    assert (found.estimate, found.verdict) == (1.0, "pass")
    far = judge.check(Prediction(1.0), [Reading(1.0, replace(drawn, second_moment=1.2), 1.0, averaged)])
    assert (far.estimate, far.verdict) == (1.2, "fail")


def test_fewer_draws_where_they_cost_minutes() -> None:
    assert verify(residual(), {"n": 16}).draws == 2000
    net = Network("large images")
    net.conv(net.input("x", 256, (64, 64)), 256, 3, padding=1, variance="1/fan_in")
    level = Level(0, scaled(net, lower(net), Fraction(1)), 1.0, {}, [*lower(net).values], {"samples": 8})
    assert FEWEST_DRAWS < affordable(Run([level], {}, DELTA, True)) < 1000


def test_a_batch_is_smaller_where_there_are_positions() -> None:
    def batch(*positions: int) -> int:
        net = Network("norm")
        net.batch_norm(net.input("x", 16, positions))
        return batch_of(lower(net))

    assert [batch(), batch(2, 2), batch(8, 8)] == [256, 64, 32]


def test_centring_over_positions_behind_borders() -> None:
    """Post-activation blocks of 5 x 5 places: what a batch norm takes from a place depends on where it is."""
    net = Network("borders")
    h = net.input("x", 48, (5, 5))
    for k in range(3):
        y = net.relu(net.batch_norm(net.conv(h, 48, 3, padding=1, variance="2/fan_in", name=f"conv{k}")))
        y = net.conv(y, 48, 3, padding=1, variance="2/fan_in", name=f"second{k}")
        h = net.relu(net.add(net.batch_norm(y), h))
    result = verify(net, draws=200)
    assert "fail" not in {c.verdict for c in result.checks.values()}
    for k in range(3):
        check = result.checks["forward", f"second{k}"]
        assert check.verdict == "pass"
        assert check.estimate == pytest.approx(check.predicted, rel=0.01)


def test_what_depends_on_a_large_batch_is_a_limit() -> None:
    """The mean over places of a batch norm has 1/B less: at one number of samples an exact law was refuted."""
    net = Network("batch")
    h = net.batch_norm(net.conv(net.input("x", "c", (6, 6)), "c", 3, name="c1", variance="2/fan_in"), name="bn")
    net.linear(net.mean_pool(h, name="p"), "c", name="y", variance="1/fan_in")
    d = vf.derive(net)
    assert d["p"].second_moment == sp.Rational(1, 16) and d["p"].exactness == "exact"
    result = verify(d, {"c": 16}, draws=400)
    assert result.nodes["p"]["forward"].verdict == result.nodes["y"]["forward"].verdict == "pass"
    assert result.nodes["p"]["forward"].exactness == "wide" and result.nodes["x"]["forward"].exactness == "exact"


def test_zeros_of_a_limit() -> None:
    """A layer norm of few channels leaves something of the mean over places that an instance norm has made zero."""
    net = Network("zero")
    h = net.instance_norm(net.conv(net.input("x", 32, (6, 6)), 32, 3, name="c", variance="2/fan_in"))
    net.mean_pool(net.layer_norm(h), name="p")
    check = verify(net, {}, draws=300).nodes["p"]["forward"]
    assert check.predicted == 0 and check.verdict == "inconclusive" and "limit of zero" in check.note
    wrong = Network("not zero")
    h = wrong.linear(wrong.input("x", 48), 48, variance="1/fan_in", name="h")
    wrong.linear(wrong.tanh(h, name="a"), 48, variance="1/fan_in", name="y")
    run, _ = prepared(vf.derive(wrong), {}, 0.02, None, {"seed": 0, "method": "auto", "threads": 1})
    run.predicted = {key: replace(p, value=0.0) if key == ("forward", "a") else p for key, p in run.predicted.items()}
    for level in run.levels:
        level.advance(200, lambda: False)
    assert len(run.levels) == 3 and run.checks(0.01)["forward", "a"].verdict == "fail"
