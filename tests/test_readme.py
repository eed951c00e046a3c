"""The README and the documents beside it: examples run and print what they say, tables are those of the registry."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from varflow import cli_tables
from varflow.derive import derive
from varflow.load import from_text
from varflow.network import Network
from varflow.ops import OPS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml", ".ci/run")]
TEXTS += sorted((ROOT / "docs").rglob("*.md"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def printed(code: str, names: dict[str, object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec", dont_inherit=True), names)
    return out.getvalue()


@pytest.fixture
def registry() -> Iterator[None]:
    """The registry of layers, without those of examples afterwards."""
    before = dict(OPS)
    yield
    OPS.clear()
    OPS.update(before)


@pytest.mark.usefixtures("registry")
def test_examples_print_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", README, flags=re.DOTALL | re.MULTILINE)
    assert len(pairs) == 5
    names: dict[str, object] = {"__name__": "__main__"}
    for code, expected in pairs:
        assert printed(code, names) == expected
    assert (tmp_path / "block.tex").read_text(encoding="utf-8").startswith("\\documentclass")


def test_first_example_has_ten_lines() -> None:
    lines = [line for line in blocks(README, "python")[0].splitlines() if line]
    assert len(lines) - 1 <= 10, "ten lines, and one that prints"


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_a_layer_takes_twenty_lines(text: str) -> None:
    layer = next(b for b in blocks(text, "python") if "(Op):" in b)
    assert len([line for line in layer.splitlines() if line]) <= 20


@pytest.mark.usefixtures("registry")
def test_layer_of_contributing() -> None:
    printed(blocks(CONTRIBUTING, "python")[0], {"__name__": "__main__"})
    net = Network()
    net.apply("soften", net.input("x", 8), c="1/2", name="y")
    assert str(derive(net)["y"].second_moment) == "16/25"


def test_graph_file() -> None:
    text, = blocks(README, "yaml")
    assert str(derive(from_text(text))["y"].second_moment) == "s_fc1*s_fc2/2 + 1"


def test_commands() -> None:
    commands = [line for block in blocks(README, "sh") for line in block.splitlines()]
    first, second = commands
    assert first.endswith("pip install . && varflow demo")
    assert second == 'pip install ".[test]" && pytest'


def test_tables_are_generated() -> None:
    assert cli_tables.readme(README) == README, "python -m varflow.cli_tables"
    assert cli_tables.ops_page() == (ROOT / "docs" / "ops.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_hosts(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (path.parent / target).exists(), target
    assert not re.search(r"https?://", text), "no host names"
