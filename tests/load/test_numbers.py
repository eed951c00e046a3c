"""Numbers that are put in while a file is read."""

from pathlib import Path

import pytest

import varflow as vf
from varflow.cli_subject import Conditions, Subject
from varflow.errors import ErrorList, InputError
from varflow.load import from_text

TEXT = """
name: pyramid
symbols: {size: {integer: true}, n: {}}
inputs: {x: {channels: n, positions: [size]}}
nodes:
  - {name: c, op: conv, in: x, out_channels: n, kernel: 3, padding: 1, variance: 2/fan_in}
  - name: b
    op: block
    in: c
    inputs: {z: {}}
    nodes:
      - {name: p, op: adaptive_avg_pool, in: z, output_size: 4}
"""


def test_a_number_stands_for_a_symbol_everywhere() -> None:
    with pytest.raises(ErrorList, match="which positions a window has"):
        from_text(TEXT)
    network = from_text(TEXT, values={"size": 10})
    assert network == from_text(TEXT.replace("size: {integer: true}, ", "").replace("[size]", "[10]"))
    assert sorted(network.symbols) == ["n"]


@pytest.mark.parametrize(("values", "what"), [
    ({"size": 10.5}, "21/2 is no number for 'size'"),
    ({"size": -3}, "-3 is no number for 'size'"),
    ({"sise": 10}, "'sise' is not a symbol that the file declares"),
    ({"size": float("nan")}, "is not a number"),
])
def test_wrong_numbers(values: dict[str, float], what: str) -> None:
    with pytest.raises(ErrorList, match=what) as caught:
        from_text(TEXT, "pyramid.yaml", values)
    assert "pyramid.yaml" in str(caught.value)


def test_the_command_puts_in_what_reading_needs(tmp_path: Path) -> None:
    """The width stays a symbol, which verification varies."""
    path = tmp_path / "pyramid.yaml"
    path.write_text(TEXT, encoding="utf-8")
    subject = Subject.load(str(path), ["n=24", "size=10"], Conditions())
    assert subject.values == {"n": 24} and subject.derivation.free_symbols() <= {"n"}
    assert vf.load(path, {"size": 10}) == subject.derivation.network
    with pytest.raises(ErrorList, match="which positions a window has"):
        Subject.load(str(path), ["n=24"], Conditions())
    with pytest.raises(InputError, match="no such symbol"):
        Subject.load(str(path), ["m=24", "size=10"], Conditions())
