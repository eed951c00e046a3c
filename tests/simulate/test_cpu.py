"""The simulator against the plain interpreter on the same numbers, its reproducibility, and exact moments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sympy as sp

from tests.reference_interpreter import Given, interpret, law, weight_gradient
from varflow.errors import InputError, UnsupportedError, VarflowError
from varflow.lowering import lower
from varflow.network import Network
from varflow.ops import OPS
from varflow.program import Bias, Contract, Cotangent, Input, Mask, Permute, Program, Weight
from varflow.simulate.cpu import Chunk, Simulator, simulate
from varflow.simulate.kernels import haar
from varflow.simulate.kernels_window import RandomTaps
from varflow.simulate.plan import Orthogonal, Plan, Tensors, make_plan
from varflow.simulate.rng import sample
from varflow.simulate.statistics import BLOCK, Statistics

SAMPLES, SEED, DRAW = 8, 11, 5


def one_layer(op: str, fields: dict[str, Any], positions: tuple[int, ...], width: int = 192) -> Network:
    """The layer between linear ones."""
    net = Network(op)
    inputs = max(OPS[op].arity[0], 1 if OPS[op].arity[1] == 1 else 2)
    xs = [net.input(f"x{k}", width, positions, mean="1/4") for k in range(inputs)]
    hs = [net.linear(x, width, variance="1/fan_in", name=f"before{k}") for k, x in enumerate(xs)]
    result = net.apply(op, *hs, name="layer", **{"variance": "1/fan_in"} | fields if op == "linear" else fields)
    outputs = result if isinstance(result, tuple) else (result,)
    for k, y in enumerate(outputs):
        net.linear(y, width // 2, variance="1/fan_in", name=f"after{k}")
    return net


def examples() -> list[tuple[str, dict[str, Any], tuple[int, ...]]]:
    """Every example of every layer, without positions and with them, where the layer takes them."""
    found: list[tuple[str, dict[str, Any], tuple[int, ...]]] = []
    for op in OPS:
        for fields in OPS[op].examples:
            for positions in ((), (2, 3)):
                try:
                    lower(one_layer(op, dict(fields), positions))
                except VarflowError:
                    continue
                found.append((op, dict(fields), positions))
    return found


def draw_of(plan: Plan, draws: int, first: int) -> list[Given]:
    """The random parts of each draw, made without the simulator."""
    place: dict[str, Any] = {"seed": SEED, "first_draw": first}
    givens = [Given(plan.samples) for _ in range(draws)]

    def put(table: str, name: str, arrays: Any) -> None:
        for given, array in zip(givens, np.asarray(arrays), strict=True):
            dtype = np.int64 if table == "permutations" else np.float64
            getattr(given, table)[name] = np.asarray(array, dtype)

    for step in plan.program:
        places, channels = plan.samples * int(step.shape.places), int(step.shape.channels)
        shape = (draws, plan.samples, int(step.shape.places), channels)
        p: Any = step.primitive
        kind = type(p).__name__
        match p:
            case Input() | Cotangent():
                z = sample("normal", (draws, places * channels), tensor=plan.tensors.of(kind, p.name), **place)
                spread = float((p.second_moment - p.mean**2) ** 0.5) if isinstance(p, Input) else 1.0
                mean = float(p.mean) if isinstance(p, Input) else 0.0
                put("inputs" if isinstance(p, Input) else "cotangents", p.name, mean + spread * z.reshape(shape))
            case Bias():
                z = sample("normal", (draws, channels), tensor=plan.tensors.of(kind, p.name), **place)
                put("biases", p.name, z * float(p.variance) ** 0.5)
            case Mask():
                size, form = places * channels, shape
                if p.per_sample:
                    size, form = plan.samples, (draws, plan.samples, 1, 1)
                tensor = plan.tensors.of(kind, p.name)
                kept = sample("bernoulli", (draws, size), tensor=tensor, parameter=float(p.keep), **place)
                put("masks", p.name, kept.reshape(form))
            case Permute():
                keys = sample("uniform", (draws, channels), tensor=plan.tensors.of(kind, p.name), **place)
                put("permutations", p.name, np.argsort(keys, axis=1, kind="stable"))
            case Contract():
                m = plan.matrices[p.weight]
                if isinstance(m, Orthogonal):
                    w = haar(m.rows, m.columns, tensor=m.tensor, draws=draws, scale=m.scale, **place)
                elif isinstance(m, RandomTaps):
                    w = taps_of(m, plan.program.weights[p.weight], draws, first)
                else:
                    w = m.dense(SEED, draws, first)
                put("weights", p.weight, w)
    return givens


def taps_of(m: RandomTaps, weight: Weight, draws: int, first: int) -> Any:
    """The matrices of a windowed weight, (draws, taps, rows, columns), normalized without the simulator."""
    entries = m.drawn(SEED, draws, first).astype(np.float64).reshape(draws, m.rows, m.taps, m.columns)
    entries = entries.transpose(0, 2, 1, 3)
    one = replace(weight, variance=sp.Integer(1)) if m.law == "" else weight
    made = np.stack([law(one, e) for e in entries]) * (m.std if m.law == "" else 1.0)
    return made if weight.taps != 1 or weight.groups != 1 else made[:, 0]


def agree(program: Program, samples: int, draws: int = 2) -> None:
    """All values and weight gradients of the simulator are the interpreter's, to 1e-4 of their size."""
    plan = make_plan(program, samples, weights=True)
    chunk = Chunk(replace(plan, steps=[replace(s, free=()) for s in plan.steps]), SEED, DRAW, draws)
    rows = chunk.rows()
    for d, given in enumerate(draw_of(plan, draws, DRAW)):
        want = interpret(program, given)
        for value, got in chunk.values.items():
            expected = want[value].reshape(plan.samples * want[value].shape[1], -1)
            np.testing.assert_allclose(
                np.broadcast_to(got[d], expected.shape), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
            )
        for name in program.weight_gradients:
            column = plan.columns["weight", name]
            gradient = weight_gradient(program, want, name)
            assert rows[d, column, 1] == pytest.approx(np.square(gradient).mean(), rel=1e-4)


@pytest.mark.parametrize(("op", "fields", "positions"), examples(), ids=str)
def test_every_layer(op: str, fields: dict[str, Any], positions: tuple[int, ...]) -> None:
    agree(lower(one_layer(op, fields, positions)), SAMPLES)


def weights_network() -> Network:
    """Shared, transposed, orthogonal, sparse weights of several distributions; shared masks; a permutation."""
    net = Network("weights")
    x = net.input("x", 48)
    h = net.tanh(net.linear(x, 32, weight="W", variance="1/fan_in"))
    y = net.linear(h, 48, weight="W", transpose=True, variance="1/48")
    o = net.linear(y, 32, weight="O", distribution="orthogonal", variance="1/48")
    z = net.linear(net.relu(o), 48, weight="O", transpose=True, distribution="orthogonal", variance="1/48")
    for distribution in ("uniform", "truncated_normal", "rademacher"):
        z = net.linear(z, 48, variance="1/fan_in", distribution=distribution, keep="1/2")
    s = net.add(net.dropout(z, "1/4", mask="m"), net.dropout(x, "1/4", mask="m"), net.permute(z, permutation="P"))
    net.add(net.permute(s, permutation="P"), y)
    return net


def test_weights_of_all_kinds() -> None:
    agree(lower(weights_network()), 3)


@pytest.fixture(scope="module")
def program() -> Program:
    return lower(weights_network())


def test_bits_do_not_depend_on_threads_chunks_or_splits(program: Program) -> None:
    whole = simulate(program, 200, seed=3, threads=1, weights=True)
    assert whole == simulate(program, 200, seed=3, threads=2, weights=True)
    assert whole == simulate(program, 200, seed=3, threads=2, weights=True, memory=10**6)
    parts = [(130, 70), (0, 30), (30, 100)]
    merged = simulate(program, 0, seed=3, weights=True)
    for first, draws in parts:
        merged.merge(simulate(program, draws, seed=3, first_draw=first, weights=True))
    assert merged == whole
    assert merged != simulate(program, 200, seed=4, weights=True)


def test_bits_of_one_node_alone(program: Program) -> None:
    alone = simulate(program, 40, seed=3, values=["add_1"]).forward["add_1"]
    assert alone == simulate(program, 40, seed=3).forward["add_1"]


def test_values_are_freed(program: Program) -> None:
    plan = make_plan(program, 1)
    chunk = Chunk(plan, 0, 0, 1)
    chunk.rows()
    assert not set(chunk.values) - {plan.steps[-1].value}
    sizes = [4 * s.positions * s.channels for s in plan.steps]
    stored = sum(4 * m.rows * m.columns for m in plan.matrices.values() if isinstance(m, Orthogonal))
    kept = sum(4 * m.rows * m.columns for n, m in plan.matrices.items() if plan.choices.by_weight[n].kept)
    assert plan.bytes_per_draw - 7 * stored - kept < sum(sizes) / 2


def test_draws_cannot_be_counted_twice(program: Program) -> None:
    once = simulate(program, 3 * BLOCK)
    for first, draws in ((0, BLOCK), (5, 1), (2 * BLOCK, BLOCK), (0, 4 * BLOCK)):
        with pytest.raises(InputError, match="counted already"):
            simulate(program, 3 * BLOCK).merge(simulate(program, draws, first_draw=first))
    assert once.draws == 3 * BLOCK


def test_statistics_against_numpy() -> None:
    rng = np.random.default_rng(0)
    rows = rng.gamma(2.0, size=(1000, 3, 3))
    rows[::10, 2, 1] = 0
    statistics = Statistics({("forward", n): k for k, n in enumerate("abc")})
    statistics.add(rows[:333], 0)
    statistics.add(rows[333:], 333)
    for k, name in enumerate("abc"):
        s, q = statistics.forward[name], rows[:, k, 1]
        assert (s.mean, s.fourth_moment) == pytest.approx((rows[:, k, 0].mean(), rows[:, k, 2].mean()))
        assert (s.second_moment, s.second_moment_variance) == pytest.approx((q.mean(), q.var(ddof=1)))
        assert s.skewness == pytest.approx(((q - q.mean()) ** 3).mean() / q.std() ** 3)
        assert s.log_variance == pytest.approx(np.log(q[q > 0]).var(ddof=1))
        assert s.largest_share == pytest.approx(q.max() / q.sum())
        assert s.zeros == (100 if name == "c" else 0)


def test_relu_keeps_the_norm_exactly_and_grows_its_square() -> None:
    """He et al. 2015: E|x_l|^2 stays at any width; E|x_l|^4 grows by (1 + 5/n) a layer."""
    n, layers = 8, 4
    net = Network("chain")
    h = net.input("x", n)
    for k in range(layers):
        h = net.relu(net.linear(h, n, variance="2/fan_in"), name=f"h{k}")
    result = simulate(lower(net), 200_000, seed=1)
    start = n * (n + 2) / n**2
    for k in range(layers):
        s = result.forward[f"h{k}"]
        assert s.standard_error < 0.01
        assert abs(s.second_moment - 1) < 5 * s.standard_error
        grown = (s.second_moment_variance + s.second_moment**2) / start
        assert grown == pytest.approx((1 + 5 / n) ** (k + 1), rel=0.04)


@pytest.mark.parametrize(("within", "across"), [(0.5, 0.0), (0.5, 0.25), (-0.25, 0.0), (0.3, -0.1), (1.0, 0.0)])
def test_input_correlations(within: float, across: float) -> None:
    net = Network("input")
    net.identity(net.input("x", 16, (3,), mean=1, second_moment=3, position_correlation=within,
                           sample_correlation=across))  # fmt: skip
    plan = make_plan(lower(net), 4)
    plan.steps = [replace(s, free=()) for s in plan.steps]
    chunk = Chunk(plan, 0, 0, 4000)
    chunk.rows()
    x = chunk.values[0].reshape(4000, 4, 3, 16).astype(float) - 1
    pairs = {(0, 0, 0, 0): 1.0, (0, 0, 0, 2): within, (0, 1, 1, 1): across, (3, 2, 1, 2): across}
    for (a, p, b, r), correlation in pairs.items():
        found = (x[:, a, p] * x[:, b, r]).mean(axis=1)
        error = found.std() / len(found) ** 0.5
        assert abs(found.mean() - 2 * correlation) < 5 * error
        assert error < 0.02


def test_refusals() -> None:
    net = Network("open")
    net.linear(net.input("x", "n"), "n", variance="1/fan_in")
    with pytest.raises(InputError, match="n"):
        simulate(lower(net), 1)
    closed = lower(net.bind({"n": 8}))
    with pytest.raises(InputError, match="guessed"):
        simulate(closed, 1, method="guessed")
    with pytest.raises(InputError, match="nowhere"):
        simulate(closed, 1, values=["nowhere"])
    scaled = Network("scale")
    scaled.linear(scaled.input("x", 8), 8, name="fc")
    with pytest.raises(InputError, match="s_fc"):
        simulate(lower(scaled), 1)


def test_impossible_correlations() -> None:
    net = Network("input")
    net.identity(net.input("x", 4, (2,), sample_correlation="-1/2"))
    with pytest.raises(InputError, match="covariance"):
        simulate(lower(net), 1, samples=5)


def test_batch_norms_set_the_samples() -> None:
    net = Network("norms")
    x = net.input("x", 8)
    h = net.batch_norm(x, batch=6)
    assert Simulator(lower(net)).plan.samples == 6
    with pytest.raises(InputError, match="samples"):
        Simulator(lower(net), samples=3)
    net.batch_norm(h, batch=4)
    with pytest.raises(UnsupportedError, match="4, 6"):
        Simulator(lower(net))


def test_tensor_numbers_are_stable_and_distinct() -> None:
    tensors = Tensors()
    first = tensors.of("Weight", "fc1")
    assert first == Tensors().of("Weight", "fc1")
    numbers = {tensors.of("Weight", f"w{k}") for k in range(20_000)}
    assert len(numbers) == 20_000
