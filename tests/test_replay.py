"""Reports replayed: the same numbers, which are not the same, and reports that cannot be replayed."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sympy as sp

import varflow as vf
from tests.test_verify import residual
from varflow.errors import InputError
from varflow.lowering import lower
from varflow.network import Network
from varflow.replay import ReplayError
from varflow.simulate.cpu import Simulator
from varflow.simulate.stream import STREAM, program_hash
from varflow.verify import verify

Document = dict[str, Any]


@pytest.fixture(scope="module")
def report() -> Document:
    found: Document = json.loads(json.dumps(verify(residual(), {"n": 16}, 200).to_dict(), allow_nan=False))
    return found


@pytest.fixture
def changed(report: Document) -> Document:
    return copy.deepcopy(report)


def test_the_same_numbers(report: Document, tmp_path: Path) -> None:
    found = vf.replay(report, threads=1)
    assert found.same
    assert found.hash == report["hash"]
    assert not found.differences
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report), encoding="utf-8")
    assert vf.replay(path) == vf.replay(str(path)) == vf.replay(report)
    assert json.loads(json.dumps(found.to_dict()))["same"] is True


def test_a_report_says_what_it_takes(report: Document) -> None:
    run = report["run"]
    assert run["stream"] == STREAM
    assert "fc1" in run["network"]
    assert run["values"] == {"n": 16}
    assert [level["draws"] for level in run["levels"]] == [200]
    assert {"varflow", "numpy", "numba", "processor", "code"} <= run["versions"].keys()


def test_values_and_networks_of_all_kinds() -> None:
    net = Network("kinds")
    x = net.input("x", "n", second_moment="q")
    h = net.linear(x, "n", name="a", variance="3/(2*fan_in)", bias="1/10")
    h = net.dropout(net.activation(h, "x*tanh(log(1+exp(x)))"), "p")
    net.linear(net.gelu(h), 24, name="b", variance=sp.sqrt(2) / 40)
    values = {"n": 24, "q": sp.sqrt(2), "p": 0.1}
    first = verify(net, values, 60, seed=5, width_scale=(0.5, 0.25))
    assert first.record["values"] == {"n": 24, "q": "sqrt(2)", "p": "1/10"}
    assert first.record["width_scale"] == ["1/2", "1/4"]
    assert len(first.record["levels"]) == 3
    assert vf.replay(first.to_dict()).same
    given = verify(residual(), {"n": 16, "s_fc1": 2.5, "s_fc2": 1}, 60)
    assert vf.replay(given.to_dict()).same


def test_the_command(report: Document, tmp_path: Path, changed: Document) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(report), encoding="utf-8")
    changed["nodes"]["y"]["forward"]["estimate"] *= 1.001
    bad.write_text(json.dumps(changed), encoding="utf-8")
    answers = [subprocess.run([sys.executable, "-m", "varflow.cli", "replay", str(file)], capture_output=True,
                              text=True, check=False) for file in (good, bad, tmp_path / "none.json")]
    assert [a.returncode for a in answers] == [0, 1, 2]
    assert "the same numbers" in answers[0].stdout
    assert "y forward estimate" in answers[1].stdout
    assert "cannot be read" in answers[2].stderr


def test_what_differs_is_named(changed: Document) -> None:
    changed["nodes"]["y"]["backward"]["ci"][1] = 1.5
    changed["nodes"]["fc1"]["forward"]["verdict"] = "fail"
    del changed["nodes"]["h"]["forward"]
    found = vf.replay(changed)
    assert not found.same
    assert found.hash == found.expected
    assert [line.split(":")[0] for line in found.differences] == [
        "fc1 forward verdict", "h forward", "y backward ci"]  # fmt: skip


def test_other_draws_have_another_hash(changed: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Simulator.run
    monkeypatch.setattr(Simulator, "run", lambda self, draws, first=0: run(self, draws, first + 1))
    found = vf.replay(changed)
    assert found.differences[0].startswith("hash of the simulated numbers")
    assert any("estimate" in line for line in found.differences)
    assert not found.notes
    changed["run"]["versions"]["numba"] = "0.1"
    assert "numba: 0.1 there" in vf.replay(changed).notes[0]


def test_another_stream(changed: Document) -> None:
    changed["run"]["stream"] = STREAM + 1
    with pytest.raises(ReplayError, match=f"stream version is {STREAM + 1}"):
        vf.replay(changed)


def test_another_network(changed: Document) -> None:
    changed["run"]["network"] = changed["run"]["network"].replace("relu", "gelu")
    with pytest.raises(ReplayError, match="not the one that was verified"):
        vf.replay(changed)


def test_another_program(changed: Document) -> None:
    changed["run"]["values"]["n"] = 32
    with pytest.raises(ReplayError, match="another program"):
        vf.replay(changed)


@pytest.mark.parametrize("document", [
    {}, {"run": {}}, {"run": {"stream": "one"}}, {"run": None},
])  # fmt: skip
def test_what_is_no_report(document: Document) -> None:
    with pytest.raises(InputError, match="how to make its numbers again"):
        vf.replay(document)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00"])
def test_files_that_are_no_reports(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError):
        vf.replay(path)


def test_numbers_count_and_not_how_they_are_written() -> None:
    def net(variance: object) -> str:
        made = Network("net")
        made.linear(made.input("x", 8), 8, name="fc", variance=variance)
        return program_hash(lower(made))

    assert net("1/8") == net(0.125) == net("1/fan_in")
    assert net("1/8") != net("1/9")


@pytest.mark.parametrize("change", [
    {"verdict": "fail"}, {"delta": 0.1}, {"confidence": 0.5}, {"draws": 7}, {"seed": 9}, {"power": 1.0},
    {"rejected": 0.1}, {"widths": [1]}, {"samples": 3}, {"network": "another"}, {"reached": 1e-9}])  # fmt: skip
def test_fields_of_the_whole_report(report: Document, change: dict[str, Any]) -> None:
    found = vf.replay({**report, **change})
    (name, there), = change.items()
    assert [d for d in found.differences if d.startswith(f"{name}: {there}")], found.differences


def test_nodes_that_are_missing_or_made_up(report: Document) -> None:
    nodes = {name: dict(directions) for name, directions in report["nodes"].items()}
    first, check = next((n, dict(d["forward"])) for n, d in nodes.items() if "forward" in d)
    del check["ci"]
    nodes[first]["forward"] = check
    found = vf.replay({**report, "nodes": {**nodes, "ghost": {}}})
    assert any(d.startswith(f"{first} forward ci: None there") for d in found.differences)
    assert "ghost: not in the network" in found.differences
    for run in ({"delta": float("nan")}, {"error_probability": 0.0}, {"confidence": 1.0}):
        with pytest.raises(InputError, match="does not say"):
            vf.replay({**report, "run": {**report["run"], **run}})


@pytest.mark.parametrize("multiple", ["x", "nan", "1/0", "0", "-1"])
def test_multiples_of_widths_that_are_none(changed: Document, multiple: str) -> None:
    changed["run"]["width_scale"] = [multiple]
    with pytest.raises(InputError, match="no multiple of a width"):
        vf.replay(changed)
