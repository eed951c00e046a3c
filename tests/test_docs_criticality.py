"""docs/criticality.md: its examples print what they say, its commands run."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from varflow import cli

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "criticality.md").read_text(encoding="utf-8")
PAIRS = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
            for line in block.splitlines()]


def printed(code: str, names: dict[str, object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "criticality.md", "exec", dont_inherit=True), names)
    return out.getvalue()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["varflow", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_examples_print_what_they_say() -> None:
    assert len(PAIRS) == TEXT.count("```python") == 6
    names: dict[str, object] = {}
    for code, expected in PAIRS:
        assert printed(code, names) == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "phases.png" in command:
        pytest.importorskip("matplotlib")
    assert run(monkeypatch, *shlex.split(command)[1:]) == 0
    out = capsys.readouterr().out
    assert out.strip()
    if "--json" in command:
        document = json.loads(out)
        assert document["schema"] == 1 and document["kind"] == "K*=0" and document["at"]["phase"] == "chaotic"
        assert (tmp_path / "phases.png").exists()


def test_json_of_normalize(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "normalize", "relu", "-c", "mean=0", "-c", "y**2 = 1", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1 and document["solutions"][0]["closed_form"] is True
    assert document["solutions"][0]["value"]["a"] == pytest.approx(1.7128585504496627)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["critical", "tnh"], "does not depend on x"),
        (["critical", "relu", "--sb", "0.1"], "without bias only"),
        (["critical", "tanh", "--dropout", "2"], "drop rate"),
        (["normalize", "relu", "-c", "mean"], "is not NAME=VALUE"),
        (["normalize", "relu", "-c", "mean=0", "-c", "mean=1"], "twice"),
        (["normalize", "relu", "-c", "mean=0", "--recipe", "dks"], "exclude each other"),
        (["normalize", "relu", "-c", "foo=0"], "no condition"),
    ],
)
def test_errors(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out
