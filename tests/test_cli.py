"""The command line: what it prints where, and its exit status."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import varflow as vf
from varflow import cli
from varflow.errors import UnsupportedError
from varflow.evaluate import Numbers

BLOCK = """
name: block
symbols: {n: {integer: true}}
inputs: {x: {channels: n}}
nodes:
  - {name: fc1, op: linear, in: x, out_channels: n}
  - {name: h, op: relu, in: fc1}
  - {name: fc2, op: linear, in: h, out_channels: n}
  - {name: y, op: add, in: [x, fc2]}
"""
WRONG = BLOCK.replace("in: x, out_channels: n}", "in: x, out_channels: n, variance: 2/fan_in}")


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Answer]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["varflow", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Answer(end.value.code, captured.out, captured.err)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def block(tmp_path: Path) -> str:
    path = tmp_path / "block.yaml"
    path.write_text(BLOCK)
    return str(path)


def interruptible() -> None:
    """In a child: SIGINT ends it, also where the tests themselves run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "varflow.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_is_fast() -> None:
    times = []
    for _ in range(3):
        before = os.times()
        answer = shell("--help")
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert answer.returncode == 0
    assert min(times) < 0.6, "seconds of processor time, which other processes do not change"
    for command in ("derive", "solve", "verify", "export", "draw", "gain", "list", "demo", "doctor"):
        assert command in answer.stdout


def test_version(run: Run) -> None:
    from varflow import __version__

    assert run("--version").out == f"varflow {__version__}\n"


def test_derive(run: Run, block: str) -> None:
    answer = run("derive", block)
    assert answer.status == 0
    assert "s_fc1*s_fc2/2 + 1" in answer.out
    assert "\x1b" not in answer.out
    assert "--preserve" in answer.err


def test_derive_json(run: Run, block: str) -> None:
    document = run("derive", block, "--json").document
    assert document["schema"] == 1
    assert document["network"] == "block"
    assert document["nodes"]["y"]["second_moment"] == "s_fc1*s_fc2/2 + 1"
    assert document["nodes"]["x"]["grad_gain"] == "s_fc1*s_fc2/2 + 1"
    assert document["weights"]["fc1"]["fan_in"] == "n"


def test_numbers_at_values(run: Run, block: str) -> None:
    answer = run("derive", block, "--json", "--set", "n=64", "--set", "s_fc1=2", "--set", "s_fc2=1/2")
    assert answer.document["nodes"]["y"]["value"]["second_moment"] == pytest.approx(1.5)


def test_a_moment_without_a_number_keeps_no_other_from_being_shown(
    run: Run, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Numbers.gradient

    def gradient(self: Numbers, name: str) -> Any:
        if name == "fc1":
            raise UnsupportedError("too many places", instead="fewer places")
        return known(self, name)

    monkeypatch.setattr(Numbers, "gradient", gradient)
    answer = run("derive", block, "--set", "n=64", "--set", "s_fc1=4", "--set", "s_fc2=1")
    rows = {line.split()[0]: line.split() for line in answer.out.splitlines() if line.strip()}
    assert answer.status == 0
    assert "-" in rows["fc1"]
    assert "-" not in rows["h"]
    assert "no number (-) for 1 of the moments: too many places" in answer.err


def test_solve(run: Run, block: str) -> None:
    answer = run("solve", block, "--json")
    assert answer.status == 0
    assert answer.document["weights"]["fc1"]["variance"] == "2/n"
    assert answer.document["preserve"] == "forward"
    assert "solved for s_fc1, s_fc2: preserve forward" in answer.err


def test_solve_as_asked(run: Run, block: str) -> None:
    assert run("solve", block, "--json", "--preserve", "backward").document["preserve"] == "backward"
    growth = run("derive", block, "--json", "--growth", "3/2").document
    assert growth["nodes"]["y"]["second_moment"] == "3/2"
    own = run("solve", block, "--json", "--equation", "q_y = 5", "--unknown", "s_fc2").document
    assert own["weights"]["fc2"]["variance"] == "4/n"


def test_gain(run: Run) -> None:
    document = run("gain", "relu", "--json").document
    assert document["init_gain"] == "sqrt(2)"
    assert document["value"]["variance"] == pytest.approx(0.3408450569)
    assert document["closed_form"]["init_gain"] is True
    assert "1.41421" in run("gain", "relu").out
    assert run("gain", "x*tanh(x)", "--q", "2").status == 0
    assert run("gain", "x^2", "--q", "q", "--set", "q=2", "--json").document["value"]["second_moment"] == 12


def test_list(run: Run) -> None:
    assert "mlp_relu" in run("list").out
    graphs = run("list", "--json").document["graphs"]
    assert all(g["source"] for g in graphs)
    ops = run("list", "--ops", "--json").document
    assert ops["activations"]["gelu"]["value"]["init_gain"] == pytest.approx(1.5335304)
    assert ops["layers"]["linear"]["lemma"]


def test_doctor(run: Run) -> None:
    parts = run("doctor", "--json").document["parts"]
    assert parts["numpy"]["found"]
    assert {"LaTeX", "CUDA", "kernel cache", "threads"} <= set(parts)


@pytest.mark.parametrize(("arguments", "words"), [
    (["derive", "nothing.yaml"], "nothing.yaml"),
    (["derive", "mlp_rel"], "mlp_relu"),
    (["derive", "mlp_relu", "--set", "n"], "--set n=512"),
    (["derive", "mlp_relu", "--set", "n=1", "--set", "n=2"], "twice"),
    (["derive", "mlp_relu", "--set", "k=1"], "no such symbol"),
    (["derive", "mlp_relu", "--set", "n=oo"], "--set n"),
    (["solve", "mlp_relu", "--preserve", "sideways"], "forward, backward"),
    (["verify", "mlp_relu"], "--set n=NUMBER"),
    (["gain", "rel"], "rel"),
    (["gain", "__import__('os')"], "column"),
    (["draw", "mlp_relu"], "not part of this version"),
    (["export", "residual_block", "-o", "x.html"], "HTML"),
    (["export", "residual_block", "-o", "x.doc"], ".tex"),
    (["derive"], "GRAPH"),
    (["frobnicate"], "frobnicate"),
])
def test_bad_input(run: Run, arguments: list[str], words: str) -> None:
    answer = run(*arguments)
    assert answer.status == 2
    assert answer.out == ""
    assert words in answer.err
    assert "Traceback" not in answer.err


def test_internal_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from varflow import cli_doctor

    def fails(json: bool) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(cli_doctor, "run", fails)
    answer = run("doctor")
    assert answer.status == 70
    assert "--debug" in answer.err
    assert "Traceback" not in answer.err
    assert "Traceback" in run("doctor", "--debug").err


def test_names_cannot_command_the_terminal(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(BLOCK.replace("name: block", 'name: "[red]\\e[2Jx"'))
    answer = run("derive", str(path))
    assert "\x1b" not in answer.out + answer.err
    assert answer.status == 2 or "[red]" in answer.out


def test_closed_pipe(block: str) -> None:
    command = f"{sys.executable} -m varflow derive {block} --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert answer.returncode == 0
    assert answer.stderr.count("\n") <= 1


def test_verify(run: Run, block: str) -> None:
    answer = run("verify", block, "--set", "n=64", "--draws", "3000")
    assert answer.status == 0
    assert "pass: 10 checks, 3000 draws, seed 0" in answer.out
    assert "rejected by the same data" in answer.out
    assert "solved for s_fc1, s_fc2: preserve forward" in answer.err


def test_verify_json(run: Run, block: str) -> None:
    arguments = ("verify", block, "--set", "n=64", "--draws", "3000", "--json")
    answer = run(*arguments)
    document = answer.document
    assert document["verdict"] == "pass"
    assert document["delta"] == 0.02
    assert 0 < document["power"] <= 1
    check = document["nodes"]["y"]["backward"]
    assert check["ci"][0] < check["estimate"] < check["ci"][1]
    assert check["predicted"] == 1
    assert run(*arguments, "--threads", "1").out == answer.out, "no result depends on the threads"
    assert run(*arguments, "--seed", "1").out != answer.out


def test_verify_inconclusive(run: Run, block: str) -> None:
    answer = run("verify", block, "--set", "n=64", "--draws", "8")
    assert answer.status == 3
    assert "draws needed" in answer.out


def test_verify_failed(run: Run, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("varflow.verify")
    right = module.predictions

    def wrong(*arguments: Any) -> Any:
        return {k: replace(p, value=1.06 * p.value) for k, p in right(*arguments).items()}

    monkeypatch.setattr(module, "predictions", wrong)
    answer = run("verify", block, "--set", "n=64", "--draws", "1000")
    assert answer.status == 1
    assert "fail: 10 checks" in answer.out


def test_verify_to_a_precision(run: Run, block: str) -> None:
    answer = run("verify", block, "--set", "n=32", "--draws", "200", "--precision", "0.006", "--json")
    assert answer.status == 0
    assert answer.document["draws"] > 200
    limited = run("verify", block, "--set", "n=32", "--draws", "200", "--precision", "0.0001", "--max-draws", "400",
                  "--json")
    assert limited.document["draws"] <= 400


TANH = """
name: two
symbols: {n: {}}
inputs: {x: {channels: n}}
nodes:
  - {name: a, op: linear, in: x, out_channels: n, variance: 4/fan_in}
  - {name: b, op: tanh, in: a}
  - {name: c, op: linear, in: b, out_channels: n}
  - {name: y, op: tanh, in: c}
"""


def test_solve_shows_what_becomes_of_signal_and_gradient(run: Run, tmp_path: Path) -> None:
    """The second moments of inputs and outputs: forward as preserved, backward as they happen to be."""
    path = tmp_path / "two.yaml"
    path.write_text(TANH)
    found = run("solve", str(path), "--set", "n=64")
    d = vf.solve(vf.load(path)).derivation
    x, y = (d[name].numeric({"n": 64}) for name in ("x", "y"))
    head, *rows = found.out[found.out.index("what becomes of the signal"):].splitlines()[2:]
    cells = {row.split()[0]: row.split() for row in rows if row.startswith((" x", " y"))}
    assert head.split() == ["node", "E[x^2]", "=", "E[(dL/dx)^2]", "="]
    assert float(cells["x"][-1]) == pytest.approx(x["grad_second_moment"], rel=1e-5)
    assert float(cells["y"][-3]) == pytest.approx(y["second_moment"], rel=1e-5)
    assert "numbers: --set n=..." not in found.err
    assert "what becomes of the signal" in run("solve", "lstm").out


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(block: str, number: int, status: int) -> None:
    command = [sys.executable, "-m", "varflow.cli", "verify", block, "--set", "n=256", "--draws", "1000000"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "draws, widest interval" in line:
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert "interrupted" in err
        assert " draws, seed 0" in out, "what was reached"


@pytest.mark.parametrize(("command", "why"), [
    (("verify", "nothing.yaml", "--delta", "7"), "a tolerance delta of 7.0"),
    (("verify", "nothing.yaml", "--precision", "0"), "precision 0.0 cannot be reached"),
    (("verify", "nothing.yaml", "--seed", str(2**64)), "seed 18446744073709551616 is outside"),
    (("verify", "nothing.yaml", "-o", "no/report.json"), "no/report.json: the report cannot be written"),
    (("verify", "{}", "--set", "n=32", "--plan", "-o", "report.json"), "--plan draws nothing"),
    (("verify", "{}", "--set", "n=32", "--plan", "--store", "run.db"), "--plan draws nothing"),
    (("export", "nothing.yaml", "-o", "x.doc"), "the suffix '.doc'"),
    (("solve", "{}", "--equation", "q_fd = 1"), "q_fc"),
    (("derive", "{}", "--set", "n=-3"), "n = -3 is not positive"),
    (("derive", "{}", "--set", "n=1e400"), "is not a finite number"),
    (("derive", "{}", "--set", "s_fc1=-1"), "the scale -1 is negative"),
    (("derive", "{}", "--unknown", "s_fc1"), "nothing determines s_fc1"),
    (("verify", "{}", "--set", "n=32", "--unknown", "s_fc1"), "nothing determines s_fc1"),
    (("solve", "{}", "--growth", "abc"), "growth, column 1: unknown name 'abc'"),
    (("verify", "{}", "--set", "n=32", "--resume"), "no store to go on with"),
    (("verify", "{}", "--set", "n=32", "--delta", "7"), "a tolerance delta of 7.0"),
    (("gain", "relu", "--set", "q=3"), "--q 3"),
    (("gain", "relu", "--set", "a=3"), "--set a: no symbol of this name is open"),
    (("critical", "tahn"), "did you mean 'tanh'?"),
    (("critical", "gelu", "--q", "1", "--sw", "2"), "--q stands alone"),
    (("critical", "gelu", "--q", "1", "--sw", "2", "--sb", "3"), "--q stands alone"),
    (("critical", "gelu", "--dropout", "0.5", "--q", "1"), "there is no critical line"),
    (("critical", "gelu", "--dropout", "0.5", "--sb", "1"), "there is no critical line"),
    (("critical", "gelu", "--sw", "abc"), "no number for abc"),
    (("critical", "gelu", "--dropout", "p", "--sw", "1"), "no number for p"),
    (("gain", "relu", "--latex", "--json"), "--latex and --json exclude each other"),
    (("gain", "relu", "--latex", "-o", "relu.tex"), "--latex and --output exclude each other"),
    (("list", "--json", "--markdown"), "--json and --markdown exclude each other"),
    (("demo", "-o", "{}"), "cannot be a folder"),
    (("normalize", "relu", "--fixed", "a"), "--fixed a=1"),
])
def test_options_that_say_nothing_are_refused(run: Run, block: str, command: tuple[str, ...], why: str) -> None:
    """They were passed over, or named after the network had been solved."""
    found = run(*(part.format(block) for part in command))
    assert found.status == 2 and why in found.err, found.err


def test_gains_at_a_vanishing_variance(run: Run) -> None:
    found = run("gain", "relu", "--q", "0", "--mean", "1", "--json").document
    assert found["value"]["second_moment"] == 1 and found["value"]["dead_share"] is None


def test_scales_that_are_set_are_not_solved_for(run: Run, block: str) -> None:
    """They were no symbols of the solved network."""
    unknown = [f"s_{name}" for name in vf.derive(vf.load(block)).unknowns()]
    first, *others = unknown
    settings = ("--set", "n=32", "--set", f"{first}=3")
    found = run("verify", block, *settings, "--draws", "64", "--json")
    assert first not in found.err and all(name in found.err for name in others)
    assert found.document["weights"][first[2:]]["variance"] == "3/n"
    every = [part for name in unknown for part in ("--set", f"{name}=3")]
    assert "solved for" not in run("verify", block, "--set", "n=32", *every, "--draws", "64").err
    assert run("solve", block, *settings).status == run("derive", block, *settings).status == 0


def test_what_equations_determine_is_said(run: Run, block: str) -> None:
    first, *others = (f"s_{name}" for name in vf.derive(vf.load(block)).unknowns())
    found = run("solve", block, "--equation", f"{first} = 3")
    assert f"solved for {', '.join(sorted(others))}: preserve forward" in found.err
    assert f"{first}: by an equation" in found.err


def test_a_report_in_a_file(run: Run, block: str, tmp_path: Path) -> None:
    """What --json prints, beside the table, and what replay reads."""
    path = tmp_path / "report.json"
    settings = ("verify", block, "--set", "n=32", "--draws", "64")
    plain = run(*settings, "-o", str(path))
    assert "64 draws, seed 0" in plain.out and str(path) in plain.err
    assert json.loads(path.read_text())["hash"] == run(*settings, "--json").document["hash"]
    assert run("replay", str(path)).status == 0


@pytest.mark.parametrize("name", ["report.txt", "report", ".", "no/report.json"])
def test_reports_and_documents_are_refused_before_the_simulation(
    run: Run, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("varflow.cli_verify.verify", None)
    found = run("verify", block, "--set", "n=32", "-o", name)
    assert found.status == 2 and "instead: " in found.err
    found = run("export", block, "--set", "n=32", "--verify", "-o", name)
    assert found.status == 2 and "instead: " in found.err


@pytest.mark.parametrize("suffix", ["tex", "md", "json", "pdf"])
def test_export(run: Run, block: str, tmp_path: Path, suffix: str) -> None:
    if suffix == "pdf" and shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex")
    target = tmp_path / f"derivation.{suffix}"
    answer = run("export", block, "-o", str(target))
    assert answer.status == 0
    assert answer.out == f"{target}\n"
    assert "solved for" in answer.err
    assert target.stat().st_size > 1000


def test_export_by_name_with_verdicts(run: Run, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = run("export", block, "--verify", "--set", "n=64", "--json")
    assert answer.status == 0
    assert answer.document == {"schema": 1, "network": "block", "path": "block.tex", "verdict": "pass"}
    assert "pass" in (tmp_path / "block.tex").read_text(encoding="utf-8")


@pytest.mark.slow
def test_demo(run: Run, tmp_path: Path) -> None:
    answer = run("demo", "-o", str(tmp_path / "demo"), "--json")
    assert answer.status == 0, answer.err
    document = answer.document
    assert {n["verdict"] for n in document["networks"]} == {"pass"}
    assert Path(document["document"]).exists()
    assert document["weights"]["mlp_relu"]["fc_in"] == "2/n"


def test_moments_that_no_node_has_are_told(run: Run) -> None:
    assert "c_dense1[0].norm2" in run("derive", "densenet121").err
    assert "moments between" not in run("derive", "mlp_relu").err
