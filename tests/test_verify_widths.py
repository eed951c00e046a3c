"""Networks at other widths: which ones, and what stays as it is."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from tests.test_verify import deep
from varflow.derive import derive
from varflow.errors import InputError
from varflow.lowering import lower
from varflow.network import Network
from varflow.program import Bias
from varflow.verify import predictions, samples_for, verify
from varflow.verify_widths import ladder, scaled


def program_of(net: Network) -> Any:
    return net, lower(net)


def test_widths_quarter_half_and_whole() -> None:
    scales, note = ladder(*program_of(deep(2, 64)))
    assert [int(s.program.shape(0).channels) for s in scales] == [16, 32, 64]
    assert not note
    assert not any(s.rounded for s in scales)


def test_narrow_networks_are_widened() -> None:
    scales, note = ladder(*program_of(deep(2, 8)))
    assert [int(s.program.shape(0).channels) for s in scales] == [8, 16, 32]
    assert "4 n" in note


def test_widths_that_do_not_fit_together() -> None:
    net = Network("odd")
    x = net.input("x", 50)
    net.add(x, net.concat(net.linear(x, 25, variance="1/fan_in"), net.linear(x, 25, variance="1/fan_in")))
    assert [s.factor for s in ladder(*program_of(net))[0]] == [1, 2, 4]
    with pytest.raises(InputError):
        ladder(net, lower(net), (0.5,))


def test_scales_and_biases_are_kept() -> None:
    net = Network("numbers")
    x = net.input("x", 64)
    h = net.linear(x, 128, name="a", variance="1/100", bias="1/(3*fan_in)")
    net.linear(net.permute(h), 64, name="b", weight="a", transpose=True, variance="1/100")
    base = lower(net)
    half = scaled(net, base, ladder(*program_of(net))[0][0].factor)
    a, b = base.weights["a"], half.program.weights["a"]
    assert (int(b.rows), int(b.columns)) == (32, 16)
    assert a.variance * a.fan_in == b.variance * b.fan_in
    biases = [s.primitive.variance for p in (base, half.program) for s in p if isinstance(s.primitive, Bias)]
    assert biases[0] == biases[1]


def test_rounded_outputs_are_predicted_at_each_width() -> None:
    net = Network("ten classes")
    h = net.gelu(net.linear(net.input("x", 100), 120, variance="2/fan_in"))
    net.linear(net.gelu(net.linear(h, 120, variance="2/fan_in")), 10, variance="1/fan_in", name="out")
    assert samples_for(lower(net)) == 32
    result = verify(net, draws=1500)
    assert result.widths == (30, 60, 120)
    assert "fail" not in {c.verdict for c in result.checks.values()}
    assert result.checks["backward", "x"].relative_width < 0.03


def test_inputs_that_cannot_be_divided_change_their_own_gradients_only() -> None:
    net = Network("three channels")
    x = net.input("x", 3)
    y = net.linear(net.relu(net.linear(x, 64, variance="2/fan_in")), 64, variance="1/fan_in")
    program = lower(net)
    stated = predictions(derive(net), {}, program.values)
    half = scaled(net, program, Fraction(1, 2))
    assert not half.of_width
    assert half.inputs == {"x": Fraction(4, 3)}
    again = predictions(derive(half.network), {}, program.values)
    for key, prediction in half.of_inputs(stated).items():
        assert prediction.value == pytest.approx(again[key].value, rel=1e-12)
    assert again["backward", "x"].value == pytest.approx(stated["backward", "x"].value * 3 / 4)
    net.concat(x, y)
    assert scaled(net, lower(net), Fraction(1, 2)).of_width
