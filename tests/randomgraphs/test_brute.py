"""The brute force itself, against values known by hand."""

from __future__ import annotations

from typing import Any

import pytest

from .generate import Node, Spec, channels, generate, load_results, to_networkx

torch = pytest.importorskip("torch")


def node(name: str, op: str, *inputs: str, **fields: Any) -> Node:
    """A node that reads outputs written NAME or NAME:port."""
    reads = [[*i.split(":"), ""][:2] for i in inputs]
    return {"name": name, "op": op, "inputs": reads, "fields": fields}


def linear(name: str, source: str, variance: str | None, out: str = "1", **fields: Any) -> Node:
    """A linear layer; no variance for a weight used before."""
    given = {} if variance is None else {"variance": variance}
    return node(name, "linear", source, out_channels=out, **given, **fields)


def relu(name: str, source: str) -> Node:
    """A ReLU."""
    return node(name, "activation", source, function="relu")


X = node("x", "input", channels="1", second_moment="3/2")
CASES: dict[str, tuple[list[Node], float, float]] = {
    "he chain": ([X, linear("a", "x", "2/fan_in"), relu("b", "a"), linear("y", "b", "2/fan_in")],
                 2, 2),
    "skip": ([X, relu("a", "x"), node("y", "add", "x", "a")], 5 / 2, 5 / 2),
    "shared": ([X, relu("a", "x"), linear("b", "x", "3/fan_in", weight="W"),
                linear("c", "a", None, weight="W"), node("y", "add", "b", "c")], 15 / 2, 15 / 2),
    "tied": ([X, linear("a", "x", "1/fan_in", weight="W"), relu("b", "a"),
              linear("y", "b", None, weight="W", transpose=True)], 3 / 4, 3 / 4),
    "tied, wide": ([X, linear("a", "x", "1/fan_in", "3", weight="W"), relu("b", "a"),
                    linear("y", "b", None, weight="W", transpose=True)], 15 / 4, 15 / 4),
    "transposed first": ([X, linear("y", "x", "2/fan_in", "2", transpose=True)], 2, 4),
    "sparse": ([X, linear("y", "x", "2/fan_in", "2", keep="1/4", distribution="uniform")], 2, 4),
    "weighted": ([X, node("a", "permute", "x"), node("y", "add", "x", "a", weights=["1/2", "-2"])],
                 17 / 4, 17 / 4),
    "masked": ([X, node("a", "dropout", "x", p="1/4", mask="M"),
                node("b", "dropout", "x", p="1/4", mask="M", inverted=False),
                node("y", "add", "a", "b")], 49 / 12, 49 / 12),
}


def test_values_known_by_hand() -> None:
    from .brute import measure

    torch.set_num_threads(1)
    for name, (nodes, gain, gradient) in CASES.items():
        table = measure({"name": name, "batch": None, "nodes": nodes}, 256, 80).table()
        q, error = table["y"]["q"][:2]
        g, gradient_error = table["x"]["gq"][:2]
        assert abs(q / 1.5 - gain) < 4 * error / 1.5 + 0.01 * gain, name
        assert abs(g - gradient) < 4 * gradient_error + 0.01 * gradient, name
        assert table["y"]["gq"][0] == pytest.approx(1, abs=0.02)


def test_batch_norm_backward_of_eight_samples() -> None:
    from .brute import measure

    nodes = [X, linear("a", "x", "2/fan_in"), node("y", "batch_norm", "a", batch=8)]
    table = measure({"name": "batch norm", "batch": 8, "nodes": nodes}, 256, 200).table()
    assert table["y"]["q"][0] == pytest.approx(1, abs=1e-5)
    g, error = table["a"]["gq"][:2]
    assert abs(g * 3 - 6 / 5) < 4 * error * 3 and error < 0.01 * g


def test_a_seed_is_a_graph() -> None:
    specs: list[Spec] = [s for seed in range(200) if (s := generate(seed)) is not None]
    assert len(specs) > 100
    again = [s for seed in range(200) if (s := generate(seed)) is not None]
    assert again == specs
    graph = to_networkx(specs[0], 64)
    assert graph.nodes["x0"]["channels"] == channels(specs[0]["nodes"][0]["fields"]["channels"], 64)


def test_normalizations_are_those_of_torch() -> None:
    from .brute import _normalized

    x = torch.randn(8, 96, generator=torch.Generator().manual_seed(0)) * 3 + 1
    eps = {"eps": "1/100"}
    layer = torch.nn.functional.layer_norm(x, (96,), eps=0.01)
    rms = torch.nn.functional.rms_norm(x, (96,), eps=0.01)
    batch = torch.nn.functional.batch_norm(x, None, None, training=True, eps=0.01)
    for axis, center, expected in ((1, True, layer), (1, False, rms), (0, True, batch)):
        assert torch.allclose(_normalized(x, eps, axis, center), expected, atol=1e-5)


def test_results_are_of_these_graphs() -> None:
    wide = {record["spec"]["name"]: record for record in load_results(1024)}
    assert len(wide) == 60
    for record in load_results(256):
        assert record["spec"] == wide[record["spec"]["name"]]["spec"]
    for record in wide.values():
        spec = record["spec"]
        assert spec == generate(int(spec["name"].removeprefix("seed")), spec["batch"])
        errors = [node[k][1] / node[k][0] for node in record["nodes"].values() for k in ("q", "gq")]
        assert max(errors) < 0.01 or spec["batch"] in (4, 5)
