"""docs/verification.md: its example prints what it says, its commands run."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "verification.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
            for line in block.splitlines()]


def test_the_example_prints_what_it_says() -> None:
    ((code, expected),) = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "verification.md", "exec", dont_inherit=True), {})
    assert out.getvalue() == expected


def test_commands_run(tmp_path: Path) -> None:
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        shell = command.replace("varflow ", f"{sys.executable} -m varflow.cli ", 1)
        answer = subprocess.run(shell, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
    assert "the same numbers" in answer.stdout
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["run"]["stream"] == 1
