"""Every op's examples, forward and backward: formulas against the population, for random inputs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import varflow as vf
from varflow.laws.population import run_population
from varflow.network import Handle, Network
from varflow.ops.base import OPS

SIZE, REPEATS, WIDTH, PLACES = 2**14, 4, 192, 4
OVER_POSITIONS = ("flatten", "mean_pool")
OVER_IMAGES = ("varflow.ops.conv", "varflow.ops.pool", "varflow.ops.resample", "varflow.ops.gate")
IMAGE = (6, 6)
LARGE_IMAGE = (12, 12)


def _examples() -> Iterator[Any]:
    for name, op in sorted(OPS.items()):
        for k, fields in enumerate(op.examples):
            for dense in (False, True):
                yield pytest.param(name, fields, dense, id=f"{name}-{k}-{'behind linear' if dense else 'on inputs'}")


def _network(name: str, fields: Mapping[str, Any], dense: bool) -> Network:
    """The op on Gaussian inputs of random moments, or behind a hidden layer, read by a square.

    Batch and instance norms of relu over few entries have gradients of infinite second moment: all but one may be 0.
    Behind a depthwise layer stands relu: its gradient does not depend on how large a channel's weights are.
    """
    function = "tanh" if name in ("batch_norm", "instance_norm") else "relu"
    choose = random.Random(f"{name} {sorted(fields.items())} {dense}")
    net = Network(name)
    image = OPS[name].__module__ in OVER_IMAGES or name in ("group_norm", "instance_norm")
    size = LARGE_IMAGE if name == "instance_norm" else IMAGE
    over_tokens = OPS[name].__module__ == "varflow.ops.attention"
    positions = (PLACES,) if name in OVER_POSITIONS or over_tokens else size if image else ()
    width = int(fields["heads"]) * PLACES if name == "blend" else WIDTH
    count = OPS[name].arity[0] if OPS[name].arity[0] > 1 or OPS[name].arity[1] is not None else 2
    inputs = [_input(net, choose, f"x{k}", positions, dense, function, width) for k in range(count)]
    given = {"variance": "1/fan_in", **fields} if name == "linear" else fields
    made = net.apply(name, *inputs, name="op", **given)
    for k, h in enumerate(made if isinstance(made, tuple) else (made,)):
        if "depthwise" in name or "separable" in name:
            net.relu(h, name=f"relu{k}")
        else:
            net.multiply(h, h, name=f"square{k}")
    return net


def _input(net: Network, choose: random.Random, name: str, positions: tuple[int, ...], dense: bool,
           function: str, width: int) -> Handle:
    mean, spread, within = choose.choice(["1/2", "-1/4", "1"]), choose.choice([1, 2]), choose.choice(["0", "1/3"])
    x = net.input(name, width, positions=positions, mean=mean, second_moment=f"({mean})**2 + {spread}",
                  position_correlation=within if positions else 0)
    return net.activation(net.linear(x, width, variance="2/fan_in", bias="1/10"), function) if dense else x


@pytest.mark.parametrize(("name", "fields", "dense"), list(_examples()))
def test_op(name: str, fields: Mapping[str, Any], dense: bool) -> None:
    d = vf.derive(_network(name, fields, dense))
    numbers = d.numeric({})
    limit = run_population(d.program, SIZE, REPEATS)
    for node in d:
        value, gradient = d.program.values[node], d.program.gradients.get(node)
        _agree(numbers[node]["second_moment"], limit.second_moment[value],
               limit.standard_error_second_moment[value], f"{node} forward")
        if gradient is not None:
            _agree(numbers[node]["grad_second_moment"], limit.second_moment[gradient],
                   limit.standard_error_second_moment[gradient], f"{node} backward")
        scale = limit.second_moment[value] ** 0.5
        assert abs(numbers[node]["mean"] - limit.mean[value]) < 0.02 * scale + 6 * limit.standard_error_mean[value]


def _agree(found: float, limit: float, error: float, what: str) -> None:
    assert abs(found - limit) <= 0.03 * abs(limit) + 6 * error, (what, found, limit, error)
