"""Whatever a file holds, loading it gives a network or an InputError, soon."""

from __future__ import annotations

import time
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from varflow.errors import InputError
from varflow.load import from_text, graph_names
from varflow.load.shipped import graph_folder
from varflow.load.yaml import MAX_BYTES
from varflow.network import Network

FILES = [graph_folder() / f"{name}.yaml" for name in graph_names()]
TEXTS = [p.read_text(encoding="utf-8") for p in FILES] + [
    p.read_text(encoding="utf-8") for p in sorted((Path(__file__).parent / "bad").glob("*.yaml"))]
SECONDS = 10.0


def accepted(data: bytes | str) -> Network | None:
    """The network, or None for a refusal; anything else fails the test."""
    start = time.process_time()
    try:
        return from_text(data)
    except InputError as error:
        assert str(error)
        return None
    finally:
        assert time.process_time() - start < SECONDS


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
@example(b"\xff\xfen\x00a\x00")
@example(b"? ? ? ? :")
@example(b"- - - - - - -")
@example(b"%YAML 9.9\n---\na")
@example(b"a: &x [*x]")
@example(b'"\\UFFFFFFFF"')
@example(b'{"\\ud800": 1}')
def test_bytes(data: bytes) -> None:
    accepted(data)


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
@example("\ud800")
def test_text(text: str) -> None:
    accepted(text)


@given(st.text("{}[]:,-?&*!|>'\"%@`# \n\tabn01", max_size=120))
@settings(max_examples=300, deadline=None)
def test_yaml_like(text: str) -> None:
    accepted(text)


WORDS = st.sampled_from([
    "null", "true", "~", "[]", "{}", "-1", "0", "1e9", "9**9**9", "n", "x", "[x, x]", "block", "input", "relu",
    "linear", "fan_in", "(n+1)^64", "&a b", "*a", "!!int 3", "\"", "{a: b}", "L", "1/0", "\t", "softmax(x)", "x:0",
    "<<", "10000000", "a: b", "\n", ": ", "- ", "  "])


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_mutated_files(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(TEXTS))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 12))
        text = text[:at] + data.draw(WORDS) + text[at + length:]
    accepted(text)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_words_replaced(data: st.DataObject) -> None:
    words = data.draw(st.sampled_from(TEXTS)).split(" ")
    for _ in range(data.draw(st.integers(1, 5))):
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(WORDS)
    accepted(" ".join(words))


def test_large_files_are_refused_soon() -> None:
    for text in ("? " * (MAX_BYTES // 2), "- a\n" * (MAX_BYTES // 4), "[" * MAX_BYTES, "{a: " * (MAX_BYTES // 4),
                 "a: " + "x" * (MAX_BYTES - 10), "#" * MAX_BYTES, "a: |\n" + "  x\n" * (MAX_BYTES // 4 - 10),
                 '"' + "\\x41" * (MAX_BYTES // 4 - 1), "- " * (MAX_BYTES // 2), "!" * MAX_BYTES, "&" * MAX_BYTES,
                 "!" * 900 + " a\n", "!a" * (MAX_BYTES // 2), "- !a\n" * (MAX_BYTES // 5), "%" * MAX_BYTES,
                 "\n" * MAX_BYTES, " " * MAX_BYTES, "a:\n" * 100_000, "-\n" * 200_000):
        accepted(text)


def test_many_errors_stay_readable() -> None:
    nodes = "".join(f"  - {{name: a{i}, op: relu, in: b{i}}}\n" for i in range(2000))
    accepted("inputs: {x: {channels: 3}}\nnodes:\n" + nodes)


def test_deep_blocks() -> None:
    text = "inputs: {x: {channels: 3}}\nnodes:\n"
    for depth in range(20):
        pad = "  " * (2 * depth)
        text += f"{pad}  - name: b\n{pad}    op: block\n{pad}    in: x\n{pad}    repeat: 2\n"
        text += f"{pad}    inputs: {{x: {{}}}}\n{pad}    nodes:\n"
    text += "  " * 40 + "  - {name: r, op: relu, in: x}\n"
    assert accepted(text) is None
    assert accepted(text.replace("repeat: 2\n", "repeat: 1\n")) is not None
