"""What is of a wrong type is refused by name, and the error says what would be right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import sympy as sp

import varflow as vf
from varflow.errors import InputError


def small() -> vf.Network:
    net = vf.Network("small")
    net.linear(net.input("x", channels="n"), "n", name="y")
    return net


D = vf.derive(small())
S = vf.solve(D)
WRONG: list[Any] = [None, 3, 0.5, [1], {"a": 1}, {1: 2}, lambda x: x, vf.Network, vf.Handle("x"), nx.Graph()]
NETWORKS: dict[str, Callable[[Any], object]] = {
    "derive": vf.derive,
    "solve": vf.solve,
    "verify": vf.verify,
    "export": lambda wrong: vf.export(wrong, "never.tex"),
    "explain": lambda wrong: vf.explain(wrong, "y"),
    "save": lambda wrong: vf.save(wrong, "never.yaml"),
    "block": lambda wrong: small().block(wrong, vf.Handle("x")),
}
OTHERS: dict[str, Callable[[Any], object]] = {
    "load": vf.load,
    "replay": vf.replay,
    "from_networkx": vf.Network.from_networkx,
    "criticality": vf.criticality,
    "normalize": vf.normalize,
    "sequence": vf.sequence,
    "node": lambda wrong: D[wrong],
    "explained node": lambda wrong: vf.explain(D, wrong),
    "weight": lambda wrong: S[wrong],
    "save to": lambda wrong: vf.save(small(), wrong),
    "export to": lambda wrong: vf.export(D, wrong),
    "delta": lambda wrong: vf.verify(S, {"n": 16}, draws=16, delta=wrong),
    "seed": lambda wrong: vf.verify(S, {"n": 16}, draws=16, seed=wrong),
    "symbol": lambda wrong: D["y"].numeric({"n": wrong, "s_y": 1}),
    "bound symbol": lambda wrong: small().bind({"n": wrong}),
    "layer": lambda wrong: small().apply(wrong, vf.Handle("x")),
    "network name": vf.Network,
}
ACCEPTED = [(3, "criticality"), (3, "seed"), (0.5, "criticality"), (3, "symbol"), (3, "bound symbol"),
            (0.5, "symbol"), ([1], "symbol"), (0.5, "normalize"), (3, "normalize")]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda w: type(w).__name__)
def test_wrong_types_are_refused(wrong: object) -> None:
    for name, call in (NETWORKS | OTHERS).items():
        if (wrong, name) in ACCEPTED or (name == "delta" and wrong == 0.5):
            continue
        with pytest.raises(InputError):
            call(wrong)
            pytest.fail(f"{name} accepts {wrong!r}")


@pytest.mark.parametrize("name", NETWORKS)
def test_what_to_write_instead_of_a_network(name: str) -> None:
    if name in ("export", "explain"):
        return
    with pytest.raises(InputError, match=r"a str, not a Network\n  instead: vf\.load\('mlp_relu'\)"):
        NETWORKS[name]("mlp_relu")
    with pytest.raises(InputError, match=r"is a DiGraph, not a Network\n  instead: vf\.Network\.from_networkx"):
        NETWORKS[name](nx.DiGraph())


def test_graphs_have_directions() -> None:
    with pytest.raises(InputError, match="not directed"):
        vf.Network.from_networkx(nx.Graph())  # type: ignore[arg-type]


@pytest.mark.parametrize("values", ["n=3", [1], {1: 2}, 5])
def test_values_have_names(values: Any) -> None:
    calls: list[Callable[[], object]] = [lambda: D["y"].numeric(values), lambda: small().bind(values),
                                         lambda: vf.load("mlp_relu", values), lambda: vf.verify(S, values)]
    for call in calls:
        with pytest.raises(InputError, match=r'the values .*\n.*\n  instead: \{"n": 512\}'):
            call()


@pytest.mark.parametrize("value", [np.nan, np.inf, None, "many", [1.0, np.nan], True, "3", 1j])
def test_values_are_finite_numbers(value: Any) -> None:
    with pytest.raises(InputError, match=r"of 'n' is not a number\n  instead: a finite number"):
        D["y"].numeric({"n": value, "s_y": 1})


def test_a_verification_is_one(tmp_path: Path) -> None:
    for wrong in ("pass", 3, vf.Verification):
        with pytest.raises(InputError, match=r"what vf\.verify returned"):
            vf.export(D, tmp_path / "d.md", verification=wrong)


def test_a_handle_names_its_node() -> None:
    with pytest.raises(InputError, match="did you mean 'y'"):
        D[vf.Handle("y")]  # type: ignore[index]


def test_parameters_of_activations_by_their_names() -> None:
    """As torch's layers have them; what is no parameter is refused by name."""
    net = vf.Network("leaky")
    x = net.input("x", channels="n")
    a, b = net.leaky_relu(x, 0.2, name="a"), net.leaky_relu(x, negative_slope="1/5", name="b")
    assert vf.derive(net)[a.node].second_moment == vf.derive(net)[b.node].second_moment == sp.Rational(13, 25)
    for wrong in (x, None, 1j):
        with pytest.raises(InputError, match="a parameter of relu is"):
            net.relu(x, wrong)
    with pytest.raises(InputError, match="a parameter that leaky_relu does not have"):
        net.leaky_relu(x, slope=2)


@pytest.mark.parametrize("function", ["3", "0*x", "a", sp.Integer(3)])
def test_activations_depend_on_their_argument(function: Any) -> None:
    """A constant ended in sympy's GeneratorsNeeded."""
    net = small()
    with pytest.raises(InputError, match=r"does not depend on x|not an expression of x"):
        net.activation(vf.Handle("y"), function)


def test_names_of_layers_that_are_close() -> None:
    with pytest.raises(AttributeError, match="did you mean 'linear'"):
        small().lienar(vf.Handle("y"), 3)
    assert not hasattr(small(), "no_such_layer")


def test_a_network_is_no_block_of_itself() -> None:
    net = small()
    with pytest.raises(InputError, match="the network it stands in"):
        net.block(net, vf.Handle("y"))


@pytest.mark.parametrize("wrong", ["3", None, small()])
def test_parts_of_networks(wrong: Any) -> None:
    for call in (lambda: vf.network_map("tanh", wrong), lambda: vf.sequence(wrong),
                 lambda: vf.residual(wrong, 0.5), lambda: vf.residual(vf.LAYER, 0.5, wrong), lambda: vf.chain(wrong)):
        with pytest.raises(InputError):
            call()
    with pytest.raises(InputError):
        vf.residual(vf.LAYER, None)


def test_numbers_of_numpy_are_numbers() -> None:
    assert vf.chain(np.int64(3)) == vf.chain(3)  # type: ignore[arg-type]
    assert vf.network_map("tanh", np.int64(3)).network == vf.chain(3)  # type: ignore[arg-type]
    found = vf.verify(S, {"n": np.int64(16)}, draws=16, seed=np.int64(3), delta=np.float32(0.02))  # type: ignore[arg-type]
    assert found.draws == 16


def _correlated(places: Any, correlation: str) -> object:
    return vf.Network("net").input("x", 8, (places,), position_correlation=correlation)


def test_what_no_network_has_is_refused() -> None:
    """Sums of negative variance, sizes below zero, weights without entries, constants without a value."""
    with pytest.raises(InputError, match="position_correlation -9/10 among 4 positions"):
        _correlated(4, "-9/10")
    _correlated(4, "-1/3")
    _correlated("P", "-9/10")
    with pytest.raises(InputError, match="not a positive whole number"):
        vf.Network("net").input("x", sp.Symbol("n", negative=True))
    net = vf.Network("net")
    x = net.input("x", 8)
    with pytest.raises(InputError, match="keep = 0"):
        net.linear(x, 8, keep=0)
    net.linear(x, 8, distribution="constant", value="c")
    with pytest.raises(InputError, match="no value for c"):
        vf.derive(net).numeric({})


def test_objects_say_what_they_are() -> None:
    assert repr(small()) == f"<Network {small().name!r}: {len(D.nodes)} nodes>"
    assert repr(D) == f"<Derivation of {D.network.name!r}: {len(D.nodes)} nodes>"
    assert repr(S).startswith(f"<Solution of {S.derivation.network.name!r}, preserve forward: ")


def test_sizes_that_no_machine_has() -> None:
    """They overflowed."""
    with pytest.raises(InputError, match="no machine simulates so many"):
        vf.verify(S, {"n": 10**30})
