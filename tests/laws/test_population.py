"""The population against closed forms, and against brute force at finite width where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
import sympy as sp

from tests.randomgraphs.generate import heavy, load_results, to_networkx
from tests.reference_interpreter import draw, interpret
from varflow.errors import UnsupportedError
from varflow.laws.population import evaluate, run_population
from varflow.lowering import lower
from varflow.network import Handle, Network
from varflow.symbols import arg, positive

Build = Callable[[Network], None]
N = 96


def moments(build: Build, direction: str = "values", size: int = 2**15,
            repeats: int = 4) -> dict[str, tuple[float, float, float]]:
    """(mean, second moment, its standard error) by node."""
    net = Network("case")
    build(net)
    program = lower(net)
    result = run_population(program, size, repeats, seed=1)
    found = getattr(program, direction)
    return {n: (result.mean[v], result.second_moment[v], result.standard_error_second_moment[v])
            for n, v in found.items()}


def agrees(found: tuple[float, float, float], expected: float) -> None:
    """Within four standard errors (and rounding) and within 2 %, with an error that has the power to tell."""
    _, estimate, error = found
    assert error < 0.01 * expected
    assert abs(estimate - expected) < 4 * error + 1e-3 * expected
    assert abs(estimate - expected) < 0.02 * expected


def dense(net: Network, x: Handle, s: float = 1, out: int = N, fan_in: int = N, **fields: object) -> Handle:
    """A linear layer of scale s."""
    return net.linear(x, out, variance=sp.Rational(str(s)) / fan_in, **fields)  # type: ignore[arg-type]


# -- sums, shared and transposed weights ---------------------------------------------------------------------


def _residual(net: Network) -> None:
    x = net.input("x", N)
    net.add(x, net.relu(x), name="y")


def _shared(net: Network) -> None:
    x = net.input("x", N)
    net.add(dense(net, x, weight="W"), dense(net, net.relu(x), weight="W"), name="y")


def _tied(rows: int, distribution: str = "normal") -> Build:
    def build(net: Network) -> None:
        h = net.relu(net.linear(net.input("x", N), rows, weight="W", variance=f"1/{N}", distribution=distribution))
        net.linear(h, N, weight="W", transpose=True, variance=f"1/{N}", distribution=distribution, name="y")

    return build


def _relu_ended(net: Network) -> None:
    x = net.input("x", N)
    net.add(*(net.relu(dense(net, x, 2)) for _ in range(3)), name="y")


def _shared_depth(net: Network) -> None:
    x = net.input("x", N)
    for k in range(6):
        x = net.add(x, dense(net, x, 0.5, weight="W"), name="y" if k == 5 else None)


def _orthogonal_depth(net: Network) -> None:
    x = net.input("x", N)
    for k in range(6):
        x = net.add(x, dense(net, x, 1, weight="W", distribution="orthogonal"), name="y" if k == 5 else None)


def _stream(net: Network) -> None:
    x = net.scale(net.input("x0", N), 0)
    for k in range(12):
        x = net.relu(net.add(x, net.input(f"g{k}", N)), name="y" if k == 11 else None)


def _sparse(net: Network) -> None:
    x = net.input("x", N)
    h = net.linear(x, N, variance="1/fan_in", keep="1/4", weight="W")
    net.linear(h, N, variance="1/fan_in", keep="1/4", weight="W", transpose=True, name="y")


STREAM = 6 + sum(1 / math.sqrt(j * k) for j, k in product(range(1, 12), repeat=2) if j + k <= 12) / (2 * math.pi)


@pytest.mark.parametrize(("build", "expected"), [
    (_residual, 5 / 2), (_shared, 5 / 2), (_tied(N), 3 / 4), (_tied(3 * N), 15 / 4), (_tied(N // 3), 7 / 36),
    (_tied(N, "orthogonal"), 1 / 2), (_relu_ended, 3 + 6 / math.pi), (_stream, STREAM), (_sparse, 2.0),
    (_shared_depth, sum(math.comb(6, k) ** 2 * 0.5**k for k in range(7))),
    (_orthogonal_depth, math.comb(12, 6)),
], ids=lambda value: getattr(value, "__name__", ""))
def test_second_moment(build: Build, expected: float) -> None:
    agrees(moments(build)["y"], expected)


@pytest.mark.parametrize(("build", "expected"), [
    (_residual, 5 / 2), (_shared, 5 / 2), (_tied(N), 3 / 4), (_tied(N, "orthogonal"), 1 / 2),
    (_shared_depth, sum(math.comb(6, k) ** 2 * 0.5**k for k in range(7))),
], ids=lambda value: getattr(value, "__name__", ""))
def test_gradient_second_moment(build: Build, expected: float) -> None:
    agrees(moments(build, "gradients")["x"], expected)


def _transformer(net: Network) -> None:
    x = net.input("x", N)
    for k in range(12):
        h = net.activation(dense(net, net.layer_norm(x), weight="W1"), "gelu")
        x = net.add(x, dense(net, h, weight="W2"), name="y" if k == 11 else None)


def test_blocks_of_shared_weights() -> None:
    """50 by brute force (DESIGN, section 1)."""
    assert moments(_transformer, size=2**13)["y"][1] == pytest.approx(50.4, rel=0.02)


# -- channel identity ----------------------------------------------------------------------------------------


def _permuted(net: Network) -> None:
    x = net.input("x", N)
    net.relu(net.add(x, net.permute(x, permutation="P"), name="sum"), name="y")


def _glu(net: Network) -> None:
    a, b = net.split(dense(net, net.input("x", N), out=2 * N), N)
    net.multiply(a, b, name="y")


def _unglued(net: Network) -> None:
    a, b = net.split(dense(net, net.input("x", N), out=2 * N), N)
    c, d = net.split(net.concat(a, b), N)
    net.add(a, c, net.multiply(b, d, name="square"), weights=(1, -1, 1), name="y")


def _uneven(net: Network) -> None:
    x = net.concat(net.input("a", 96, second_moment=4), net.scale(net.input("b", 32), 0), name="x")
    first, _ = net.split(net.layer_norm(x, name="normal"), 96)
    net.relu(first, name="y")


def test_permuted_channels_are_other_channels() -> None:
    found = moments(_permuted)
    agrees(found["sum"], 2.0)
    agrees(found["y"], 1.0)
    agrees(moments(_permuted, "gradients")["x"], 1.0)


def test_halves_of_a_projection_are_independent() -> None:
    agrees(moments(_glu)["y"], 1.0)


def test_joined_and_split_channels_are_the_same_channels() -> None:
    found = moments(_unglued)
    agrees(found["square"], 3.0)
    assert found["y"][1] == pytest.approx(found["square"][1], rel=1e-12)


def test_blocks_of_other_laws_are_weighed_by_width() -> None:
    found = moments(_uneven)
    agrees(found["x"], 3.0)
    agrees(found["normal"], 1.0)
    agrees(found["y"], 2 / 3)


def _inverse_of_blocks(net: Network) -> None:
    """Blocks of second moments 4 and 1 permuted, gated by themselves and by the unpermuted: the backward pass
    brings every gradient home."""
    x = net.concat(net.input("a", 96, second_moment=4), net.input("b", 32), name="x")
    p = net.permute(x, permutation="P")
    net.multiply(p, p, name="square")
    net.multiply(p, x, name="cross")


def test_gradients_return_to_the_block_they_came_from() -> None:
    """d(p^2) gives E[4 x^2] = 16 in the first block; d(p x) adds twice the mean 3.25."""
    found = moments(_inverse_of_blocks, "gradients")
    agrees(found["a"], 4 * 4 + 2 * 3.25)
    agrees(found["b"], 4 * 1 + 2 * 3.25)
    agrees(moments(_inverse_of_blocks, repeats=16)["cross"], 3.25**2)


# -- normalization -------------------------------------------------------------------------------------------


def _batch_norm(net: Network) -> None:
    net.relu(net.batch_norm(dense(net, net.input("x", N)), batch=8, name="norm"), name="y")


def _linear_batch_norm(net: Network) -> None:
    net.batch_norm(dense(net, net.input("x", N), name="fc"), batch=8, name="y")


def _batch_norm_chain(net: Network) -> None:
    x = net.input("x", N, sample_correlation="1/4")
    for k in range(8):
        x = net.relu(net.batch_norm(dense(net, x), batch=8), name=f"h{k}")


def test_batch_norm_of_eight() -> None:
    """Spherical, not Gaussian: E relu = 0.4134; backward (B-2)/(B-3) (Yang et al. 2019, arXiv:1902.08129)."""
    found = moments(_batch_norm)
    assert found["y"][0] == pytest.approx(0.41340, rel=2e-3)
    agrees(found["norm"], 1.0)
    agrees(found["y"], 1 / 2)
    agrees(moments(_linear_batch_norm, "gradients")["fc"], 6 / 5)


def test_gradients_of_a_batch_norm_chain_explode() -> None:
    found = moments(_batch_norm_chain, "gradients", 2**13)
    assert (found["h1"][1] / found["h5"][1]) ** (1 / 4) == pytest.approx(1.7875, rel=0.02)


def test_large_batch() -> None:
    def build(net: Network) -> None:
        net.relu(net.batch_norm(net.input("x", N), name="norm"), name="y")

    assert moments(build, size=2**12)["y"][0] == pytest.approx(1 / math.sqrt(2 * math.pi), rel=5e-3)


# -- positions, masks, bias ----------------------------------------------------------------------------------


def _pooled(net: Network) -> None:
    x = net.input("x", N, positions=(2, 2), position_correlation="1/4")
    net.mean_pool(net.relu(dense(net, x, 2)), name="y")


def test_pooled_positions() -> None:
    """q = 1, and the arc-cosine covariance of relu at correlation 1/4."""
    r = 0.25
    c = (math.sqrt(1 - r * r) + r * (math.pi - math.acos(r))) / math.pi
    agrees(moments(_pooled)["y"], (1 + 3 * c) / 4)


def test_flatten_and_reshape() -> None:
    def build(net: Network) -> None:
        x = net.input("x", N, positions=(4,), position_correlation="1/2")
        y = net.reshape(net.flatten(x), channels=N, positions=(4,))
        net.subtract(x, y, name="zero")
        net.mean_pool(y, name="pooled")

    found = moments(build)
    assert found["zero"][1] == 0
    agrees(found["pooled"], (1 + 3 / 2) / 4)


def _masked(net: Network) -> None:
    x = net.input("x", N)
    a, b = net.dropout(x, "1/4", mask="m"), net.dropout(x, "1/4", mask="m")
    net.multiply(a, b, name="shared")
    net.multiply(net.dropout(x, "1/4"), net.dropout(x, "1/4"), name="own")
    net.drop_path(net.bias(x, variance="1/2"), p="1/4", name="path")


def test_masks_and_bias() -> None:
    found = moments(_masked)
    assert found["shared"][0] == pytest.approx(4 / 3, rel=5e-3)
    assert found["own"][0] == pytest.approx(1.0, rel=1e-2)
    agrees(found["path"], 1.5 * 4 / 3)


# -- brute force ---------------------------------------------------------------------------------------------


def _mixture(net: Network) -> None:
    """Everything at once: W reused as W and W^T, gates, permutations of blocks, concat, normalization."""
    x = net.input("x", 64, mean="1/2", second_moment="5/4")
    h = net.activation(dense(net, x, 2, 128, 64, weight="W", bias="1/10"), "gelu", name="h")
    a, b = net.split(h, 48, 80)
    p = net.permute(net.concat(net.activation(b, "tanh"), a), permutation="P", name="p")
    g = net.multiply(p, net.activation(h, "sigmoid"), name="g")
    back = net.linear(g, 64, weight="W", transpose=True, variance="1/32", name="back")
    y = net.layer_norm(net.add(x, back), name="ln")
    again = net.linear(net.dropout(y, "1/5"), 128, weight="W", variance="1/32", name="again")
    net.add(again, net.permute(p, permutation="P"), h, name="y")


def _orthogonal(net: Network) -> None:
    """One orthogonal W, used as W, W^T and W again, between activations."""
    x = net.input("x", 64)
    h = net.activation(dense(net, x, 2, 64, 64, weight="W", distribution="orthogonal"), "relu", name="h")
    b = dense(net, h, 2, 64, 64, weight="W", transpose=True, distribution="orthogonal", name="b")
    c = dense(net, net.activation(net.add(b, x), "tanh"), 2, 64, 64, weight="W", distribution="orthogonal")
    net.add(c, h, name="y")


def _batch(net: Network) -> None:
    """Batch norm over 6 samples and 4 positions, one W before and after it."""
    x = net.input("x", 64, positions=(2, 2))
    h = net.relu(net.batch_norm(dense(net, x, 1, 64, 64, weight="W"), batch=6, name="norm"))
    net.mean_pool(net.add(x, dense(net, h, 1, 64, 64, weight="W"), name="sum"), name="y")


def _brute(build: Build, samples: int, draws: int) -> tuple[dict[str, int], npt.NDArray[np.float64]]:
    """Values by name, and (mean, second moment) of each in every draw."""
    net = Network("brute")
    build(net)
    program, rng = lower(net), np.random.default_rng(5)
    found = [[(np.mean(v), np.mean(v**2)) for v in interpret(program, draw(program, samples, rng))]
             for _ in range(draws)]
    return {**program.values, **{f"d {n}": v for n, v in program.gradients.items()}}, np.array(found)


def _scaled(build: Build, width: int) -> Build:
    """The same network, every channel count multiplied."""
    def scaled(net: Network) -> None:
        small = Network("small")
        build(small)
        sizes = {"channels", "out_channels", "sizes"}
        graph = small.graph.copy()
        for _, fields in graph.nodes(data=True):
            for key in sizes & set(fields):
                v = fields[key]
                fields[key] = tuple(width * s for s in v) if isinstance(v, tuple) else width * v
            if fields.get("variance") is not None and fields["op"] == "linear":
                fields["variance"] = fields["variance"] / width
        made = Network.from_networkx(graph)
        net.__dict__.update(made.__dict__)

    return scaled


@pytest.mark.parametrize(("build", "samples", "scale", "draws"), [
    (_mixture, 1, 2, 200), (_inverse_of_blocks, 1, 2, 200), (_orthogonal, 1, 1, 200), (_batch, 6, 2, 200)])
def test_against_brute_force(build: Build, samples: int, scale: int, draws: int) -> None:
    """Finite width differs by O(1/n): ``scale`` times as wide and twice that, extrapolated."""
    names, narrow = _brute(_scaled(build, scale), samples, 2 * draws)
    _, wide = _brute(_scaled(build, 2 * scale), samples, draws)
    limit = 2 * wide.mean(axis=0) - narrow.mean(axis=0)
    bars = np.hypot(2 * wide.std(axis=0), narrow.std(axis=0) / math.sqrt(2)) / math.sqrt(draws)
    net = Network("limit")
    build(net)
    result = run_population(lower(net), 2**14, repeats=8)
    for name, v in names.items():
        assert abs(result.mean[v] - limit[v, 0]) < 4.5 * bars[v, 0] + 0.02, name
        assert bars[v, 1] < 0.05 * limit[v, 1], name
        assert abs(result.second_moment[v] - limit[v, 1]) < 4.5 * bars[v, 1] + 0.01 * limit[v, 1], name


def test_against_measured_random_graphs() -> None:
    """Every fourth of the recorded graphs, forward and backward; heavy-tailed nodes left out. What remains is
    finite width (n = 1024) and the error of the records, about 1 %."""
    errors = []
    for record in load_results(1024)[::4]:
        program = lower(Network.from_networkx(to_networkx(record["spec"], 1024)))
        result = run_population(program, 2**13, repeats=3)
        for key, node in record["nodes"].items():
            for measured, table in ((node["q"], program.values), (node["gq"], program.gradients)):
                if not heavy(measured):
                    errors.append(abs(result.second_moment[table[key]] / measured[0] - 1))
    assert len(errors) > 400
    assert np.median(errors) < 0.004
    assert np.quantile(errors, 0.9) < 0.015
    assert np.quantile(errors, 0.99) < 0.04


# -- what it refuses, and numbers ----------------------------------------------------------------------------


def test_free_symbols_are_named() -> None:
    net = Network("free")
    net.linear(net.input("x", "n"), "n", variance="c/n")
    with pytest.raises(UnsupportedError, match="n"):
        run_population(lower(net))
    with pytest.raises(UnsupportedError, match="no number is given for c"):
        run_population(lower(net.bind({"n": 64})))


def test_symbolic_repeats_and_constant_weights_are_refused() -> None:
    body = Network("body")
    body.relu(body.input("x", N))
    net = Network("deep")
    net.block(body, net.input("x", N), repeat="L")
    with pytest.raises(UnsupportedError, match="bind the count"):
        run_population(lower(net))
    net = Network("constant")
    net.linear(net.input("x", N), N, distribution="constant", value=1)
    with pytest.raises(UnsupportedError, match="constant"):
        run_population(lower(net))


def test_rectangular_orthogonal_both_ways_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="orthogonal"):
        moments(_tied(2 * N, "orthogonal"))


def test_same_seed_same_numbers() -> None:
    assert moments(_mixture, size=2**10) == moments(_mixture, size=2**10)


@pytest.mark.parametrize(("expr", "at", "expected"), [
    (sp.log(1 + sp.exp(arg(0))), 2000.0, 2000.0),
    (sp.exp(-arg(0)) / (1 + sp.exp(-arg(0))) ** 2, -900.0, 0.0),
    (sp.exp(2 * arg(0)) / (1 + sp.exp(arg(0))) ** 2, 900.0, 1.0),
    (arg(0) / (1 + sp.exp(-arg(0))), -1e5, 0.0),
    (sp.Piecewise((sp.sqrt(arg(0)), arg(0) > 0), (0, True)), -4.0, 0.0),
    (sp.Max(0, sp.Min(arg(0), 6)), 7.0, 6.0),
])
def test_large_arguments_give_limits(expr: sp.Expr, at: float, expected: float) -> None:
    assert evaluate(expr, [np.array([[[at]], [[0.5]]])])[0, 0, 0] == pytest.approx(expected, abs=1e-12)


def test_bound_symbols_are_read() -> None:
    net = Network("bound")
    n = positive("n")
    x = net.input("x", n)
    net.add(x, net.scale(x, "alpha"), name="y")
    program = lower(net.bind({"n": 64, "alpha": 0.5}))
    result = run_population(program, 2**10)
    assert result.second_moment[program.values["y"]] == pytest.approx(2.25)


def test_what_a_transpose_does_not_know_adds_nothing() -> None:
    """Values at 64 places are never orthogonal to 16 outputs of few coordinates: W^T x of an independent x was 6 % too
    large, and its error said to be 0.2 %."""
    net = Network("apart")
    net.conv(net.input("z", 32, (8, 8)), 32, 1, stride=2, variance="2/fan_in", name="W")
    net.conv_transpose(net.input("x", 32, (8, 8)), 32, 1, weight="W", name="t")
    program = lower(net)
    limit = run_population(program)
    assert limit.second_moment[program.values["t"]] == pytest.approx(2, rel=1e-6)
