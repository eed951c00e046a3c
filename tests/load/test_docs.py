"""The page on graph files says what the loader does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from varflow.derive import derive
from varflow.errors import InputError
from varflow.grammar import MAX_DEPTH, MAX_LENGTH
from varflow.load import from_text, to_text
from varflow.load.build import MAX_ERRORS, MAX_UNROLLED
from varflow.load.schema import Input
from varflow.load.yaml import MAX_DIGITS, MAX_LEVELS, MAX_VALUES
from varflow.ops.linear import DISTRIBUTIONS, Linear

PAGE = (Path(__file__).parents[2] / "docs" / "graph_files.md").read_text(encoding="utf-8")


def test_example_loads() -> None:
    found = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert found
    net = from_text(found[1])
    assert from_text(to_text(net)) == net
    assert [h.key for h in net.outputs()] == ["h"]
    assert str(derive(net)["stream"].second_moment) in ("2*((L + 1)/L)**L", "2*(1 + 1/L)**L")


def test_error_is_as_shown() -> None:
    text = ("name: block\nsymbols: {n: {}, m: {}}\ninputs:\n  x: {channels: n}\nnodes:\n"
            "  - {name: fc1, op: linear, in: x, out_channels: m}\n\n  - {name: y, op: add, in: [x, fc1]}\n")
    with pytest.raises(InputError) as caught:
        from_text(text, "block.yaml")
    assert str(caught.value) in PAGE


def test_limits_and_fields_are_named() -> None:
    for number in (MAX_ERRORS, MAX_DIGITS, MAX_LEVELS, f"{MAX_VALUES:,}", MAX_LENGTH, MAX_DEPTH, f"{MAX_UNROLLED:,}"):
        assert re.search(rf"\b{number}\b", PAGE), number
    for word in (*DISTRIBUTIONS, *Input.model_fields, *(f.name for f in dataclasses.fields(Linear))):
        assert f"`{word}`" in PAGE, word


def test_words_of_older_yaml() -> None:
    net = from_text("name: no\nsource: on\ninputs: {yes: {channels: 012, mean: 1e-3}}")
    assert (net.name, net.source, [n for n, _ in net.nodes()]) == ("no", "on", ["yes"])
