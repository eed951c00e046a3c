"""Every file of the corpus is refused with exactly the errors it announces, each with all four parts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from varflow.errors import ErrorList, InputError, VarflowError
from varflow.load import load

BAD = Path(__file__).parent / "bad"
FILES = sorted(BAD.glob("*.yaml"))


def announced(path: Path) -> list[tuple[str, str]]:
    """(line:column, beginning of the message) that a file's comments announce."""
    return re.findall(r"^# expect (\d+:\d+) (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)


def errors_of(path: Path) -> tuple[VarflowError, ...]:
    with pytest.raises(ErrorList) as caught:
        load(path)
    return caught.value.errors


def test_corpus_is_large() -> None:
    assert len(FILES) >= 60


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_bad_file(path: Path) -> None:
    errors = errors_of(path)
    expected = announced(path) or [("1:1", "the file is empty")]
    for error, (place, what) in zip(errors, expected, strict=True):
        assert error.what.startswith(what)
        assert error.where.startswith(f"{path}:{place}")
        assert error.why and error.instead
        assert all(part == "" or len(line) < 1000 for part in error.message() for line in part.splitlines())


def test_messages_are_not_too_long() -> None:
    for path in FILES:
        for error in errors_of(path):
            assert len(error.message()) < 1500 + len(str(path)), path.name


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load(path)
    for word in words:
        assert word in str(caught.value)


def test_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("name: large\n" + "#" * 2**20)
    refused(path, "larger than 1 MiB")


def test_too_many_values(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    path.write_text("name: many\nnodes: [" + "1," * 60_000 + "]\n")
    refused(path, "more than 50000 values")


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: bad\nsource: M\xfcller\n")
    refused(path, "latin.yaml:2:10", "not text in UTF-8")


def test_byte_order_mark_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: good\ninputs: {x: {channels: 3}}\n")
    assert load(path).name == "good"


@pytest.mark.parametrize("name", ["nothing_of_this_name", "mlp_rel", "missing/file.yaml", "", "a\0b", "x" * 5000])
def test_no_such_file(name: str) -> None:
    with pytest.raises(InputError):
        load(name)


def test_nearest_shipped_name_is_offered() -> None:
    with pytest.raises(InputError, match="mlp_relu"):
        load("mlp_rellu")


def test_folder_and_other_endings(tmp_path: Path) -> None:
    refused(tmp_path, "not a file")
    (tmp_path / "net.json").write_text("{}")
    refused(tmp_path / "net.json", "'.json'")


def test_where_names_node_and_port() -> None:
    messages = "\n".join(e.message() for e in errors_of(BAD / "shape_add_three.yaml"))
    for part in ("node 'a'", "node 'b'", "node 'c'", "input 0 is x (3), input 1 is y (4)", "input 1 is z (5)"):
        assert part in messages
    assert "node 'd'" not in messages
