"""Draws on disk: used again, made again where damaged, refused where of something else; the same bits after kills."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import varflow as vf
from tests.test_verify import residual
from varflow.network import Network
from varflow.simulate.cpu import Simulator
from varflow.simulate.statistics import Statistics
from varflow.simulate.stream import arithmetic
from varflow.verify import prepared, verify
from varflow.verify_record import Settings, keeping, run_hash
from varflow.verify_report import Progress
from varflow.verify_run import Run
from varflow.verify_store import StoreError, opened

VALUES = {"n": 16}
DRAWS = 400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of draws made from now on, piece by piece."""
    made: list[int] = []
    run = Simulator.run

    def counted(self: Simulator, draws: int, *args: Any, **options: Any) -> Statistics:
        made.append(draws)
        return run(self, draws, *args, **options)

    monkeypatch.setattr(Simulator, "run", counted)
    return made


def kept(path: Path, **options: Any) -> vf.Verification:
    settings: dict[str, Any] = {"values": VALUES, "draws": DRAWS, "store": path, "resume": True}
    return verify(residual(), **settings | options)


# -- the same numbers --------------------------------------------------------------------------------


def test_a_store_changes_no_number(path: Path, drawn: list[int]) -> None:
    plain = verify(residual(), VALUES, DRAWS)
    first = verify(residual(), VALUES, DRAWS, store=path)
    assert first.hash == plain.hash
    assert {k: c.estimate for k, c in first.checks.items()} == {k: c.estimate for k, c in plain.checks.items()}
    drawn.clear()
    again = kept(path)
    assert again == first
    assert not drawn, "nothing is drawn twice"


def test_more_draws_are_added(path: Path, drawn: list[int]) -> None:
    kept(path)
    drawn.clear()
    more = kept(path, draws=DRAWS + 100)
    assert sum(drawn) == 100
    assert more.hash == verify(residual(), VALUES, DRAWS + 100).hash
    fewer = kept(path, draws=100)
    assert fewer.hash == verify(residual(), VALUES, 100).hash


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_interruptions_change_no_bit(path: Path, threads: int) -> None:
    whole = verify(residual(), VALUES, DRAWS, threads=1)
    for limit in (50, 150, 300):
        def stop(progress: Progress, limit: int = limit) -> None:
            if progress.draws >= limit:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            kept(path, threads=threads, progress=stop)
    assert kept(path, threads=threads).hash == whole.hash


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_chunks_in_any_order(order: tuple[int, ...]) -> None:
    run, settings = made_ready()
    for level in run.levels:
        for k in order:
            first, last = 37 * k, 37 * (k + 1) if k < 3 else DRAWS
            level.statistics.merge(level.simulator.run(last - first, level.first + first))
    assert run_hash(run, settings) == verify(residual(), VALUES, DRAWS).hash


# -- looks -------------------------------------------------------------------------------------------


def test_every_look_spends_its_own_share(path: Path) -> None:
    first = kept(path)
    assert first.record["error_probability"] == pytest.approx(0.01 / 2)
    assert kept(path, draws=2 * DRAWS).record["error_probability"] == pytest.approx(0.01 / 6)
    assert kept(path).record["error_probability"] == first.record["error_probability"], "the same look"
    assert verify(residual(), VALUES, DRAWS).record["error_probability"] == pytest.approx(0.01)


def test_time_limits_the_draws_and_not_their_bits(path: Path) -> None:
    short = kept(path, draws=10**6, max_time=0.2)
    assert 8 <= short.draws < 10**6
    assert short.verdict in ("pass", "inconclusive")
    assert short.hash == vf.replay(short.to_dict()).hash
    assert kept(path, draws=short.draws + 200).hash == verify(residual(), VALUES, short.draws + 200).hash
    assert verify(residual(), VALUES, 10**6, max_time=0).draws > 0


# -- refusals ----------------------------------------------------------------------------------------


def test_a_store_is_not_overwritten(path: Path) -> None:
    kept(path)
    with pytest.raises(StoreError, match="already a file"):
        kept(path, resume=False)


@pytest.mark.parametrize(("options", "what"), [
    ({"seed": 1}, "seed: 0 there, 1 here"), ({"values": {"n": 32}}, "n: 16 there, 32 here"),
    ({"method": "sampled", "values": {"n": 64}}, "n: 16 there"),
])  # fmt: skip
def test_a_store_of_something_else(path: Path, options: dict[str, Any], what: str) -> None:
    kept(path)
    with pytest.raises(StoreError, match=what):
        kept(path, **options)


def wide(width: int = 32, function: str = "gelu") -> Network:
    net = Network("wide")
    net.activation(net.linear(net.input("x", width), width, variance="1/fan_in"), function)
    return net


@pytest.mark.parametrize(("net", "options", "what"), [
    (wide(function="tanh"), {}, "layers, weights or names"),
    (wide(128), {}, "widths: .16, 32, 64. there, .32, 64, 128. here"), (wide(), {"width_scale": (0.5,)}, "widths"),
    (wide(), {"method": "sampled"}, "program"),
])  # fmt: skip
def test_a_store_of_another_network(path: Path, net: Network, options: dict[str, Any], what: str) -> None:
    verify(wide(), draws=50, store=path)
    assert verify(wide(), draws=50, store=path, resume=True, method="auto").draws == 50
    with pytest.raises(StoreError, match=what):
        verify(net, draws=50, store=path, resume=True, **options)


def test_a_store_of_another_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(path)
    monkeypatch.setattr("varflow.verify_record.arithmetic", lambda: arithmetic() | {"numba": "0.1"})
    with pytest.raises(StoreError, match="versions, numba"):
        kept(path)


@pytest.mark.parametrize("data", [b"some text", b"SQLite format 3\x00" + bytes(1000)])
def test_what_is_no_store(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(StoreError):
        kept(path)
    assert path.read_bytes() == data


def test_another_database(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE chunks (x)")
    other.close()
    with pytest.raises(StoreError, match="not a store"):
        kept(path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        kept(tmp_path / "none" / "run.db")


# -- damage ------------------------------------------------------------------------------------------


def test_damaged_rows_are_drawn_again(path: Path, drawn: list[int]) -> None:
    whole = kept(path)
    with sqlite3.connect(path) as file:
        (first, draws, data) = file.execute("SELECT first, draws, data FROM chunks WHERE draws >= 64").fetchone()
        wrong = bytes([data[0] ^ 1]) + data[1:]
        file.execute("UPDATE chunks SET data = ? WHERE first = ? AND draws = ?", (wrong, first, draws))
    file.close()
    drawn.clear()
    assert kept(path).hash == whole.hash
    assert sum(drawn) == draws
    drawn.clear()
    assert kept(path).hash == whole.hash
    assert not drawn, "the row was mended"


def test_rows_at_another_place_are_drawn_again(path: Path, drawn: list[int]) -> None:
    whole = kept(path)
    with sqlite3.connect(path) as file:
        file.execute("UPDATE chunks SET first = first + 6400 WHERE draws < 64")
    file.close()
    drawn.clear()
    assert kept(path).hash == whole.hash
    assert 0 < sum(drawn) < DRAWS


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_width_is_completed(path: Path, place: int) -> None:
    """Though the others have all of their draws."""
    whole = verify(wide(), draws=200, store=path)
    assert len(whole.record["levels"]) == 3
    with sqlite3.connect(path) as file:
        (last,) = file.execute("SELECT max(first) FROM chunks WHERE place = ?", (place,)).fetchone()
        file.execute("UPDATE chunks SET hash = x'00' WHERE place = ? AND first = ?", (place, last))
    file.close()
    again = verify(wide(), draws=200, store=path, resume=True)
    assert again.hash == whole.hash
    assert again.record["levels"] == whole.record["levels"]


def made_ready() -> tuple[Run, Settings]:
    """The run before any draw."""
    derivation = vf.solve(residual()).derivation
    run, _ = prepared(derivation, VALUES, 0.02, None, {"seed": 0, "method": "auto", "threads": None})
    return run, Settings(derivation, VALUES, 0, "cpu", "auto", None, 0.99)


def gone_on(run: Run, settings: Settings, path: Path) -> str:
    """The hash of a resumed run."""
    for level in run.levels:
        level.statistics = Statistics(level.simulator.plan.columns)
    with keeping(run, path, settings, resume=True):
        run.recall(DRAWS)
        run.advance(DRAWS)
        assert run.keeping is not None
        run.keeping.store.look(run.counts)
    return run_hash(run, settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, Settings, str, Path]]:
    """A finished store in ``run.db``; in ``log`` one whose rows are in the write-ahead log still."""
    folder = tmp_path_factory.mktemp("whole")
    run, settings = made_ready()
    found = gone_on(run, settings, folder / "run.db")
    (folder / "log").mkdir()
    for level in run.levels:
        level.statistics = Statistics(level.simulator.plan.columns)
    with keeping(run, folder / "other.db", settings, resume=False):
        for total in (64, 200, DRAWS):
            run.advance(total)
            assert run.keeping is not None
            run.keeping.store.save()
        for suffix in ("", "-wal"):
            shutil.copy(f"{folder / 'other.db'}{suffix}", f"{folder / 'log' / 'run.db'}{suffix}")
    assert (folder / "log" / "run.db-wal").stat().st_size > 10_000
    yield run, settings, found, folder


def survives(whole: tuple[Run, Settings, str, Path], folder: Path, name: str, wrong: bytes, other: str = "") -> bool:
    """Whether the run is gone on with, to the same hash, from a store with these bytes; False: it is refused."""
    run, settings, expected, source = whole
    for old in folder.iterdir():
        old.unlink()
    if other:
        shutil.copy(source / other, folder / "run.db")
    (folder / name).write_bytes(wrong)
    try:
        assert gone_on(run, settings, folder / "run.db") == expected
    except StoreError as error:
        assert str(error).count("\n") <= 2
        return False
    return True


def flipped(data: bytes, bit: int) -> bytes:
    wrong = bytearray(data)
    wrong[bit // 8] ^= 1 << bit % 8
    return bytes(wrong)


def flips(data: bytes, count: int) -> Iterator[bytes]:
    """Single flipped bits, at random places and in every part of the header."""
    rng = np.random.default_rng(11)
    for bit in [*rng.choice(8 * len(data), count - 100, replace=False), *rng.choice(8 * 100, 100, replace=False)]:
        yield flipped(data, int(bit))


def check_flips(whole: tuple[Run, Settings, str, Path], folder: Path, count: int) -> float:
    data = (whole[3] / "run.db").read_bytes()
    survived = [survives(whole, folder, "run.db", wrong) for wrong in flips(data, count)]
    return sum(survived) / len(survived)


def check_truncations(whole: tuple[Run, Settings, str, Path], folder: Path, count: int) -> None:
    data = (whole[3] / "run.db").read_bytes()
    for size in np.linspace(0, len(data) - 1, count).astype(int):
        survives(whole, folder, "run.db", data[:size])


def check_log(whole: tuple[Run, Settings, str, Path], folder: Path, count: int) -> None:
    data = (whole[3] / "log" / "run.db-wal").read_bytes()
    for wrong in flips(data, count):
        survives(whole, folder, "run.db-wal", wrong, "log/run.db")
    for size in np.linspace(0, len(data) - 1, count // 4).astype(int):
        survives(whole, folder, "run.db-wal", data[:size], "log/run.db")


def test_some_flips_and_truncations(whole: tuple[Run, Settings, str, Path], tmp_path: Path) -> None:
    assert check_flips(whole, tmp_path, 120) > 0.3
    check_truncations(whole, tmp_path, 12)
    check_log(whole, tmp_path, 110)


@pytest.mark.slow
def test_two_thousand_flips(whole: tuple[Run, Settings, str, Path], tmp_path: Path) -> None:
    assert check_flips(whole, tmp_path, 2000) > 0.3


@pytest.mark.slow
def test_two_hundred_truncations(whole: tuple[Run, Settings, str, Path], tmp_path: Path) -> None:
    check_truncations(whole, tmp_path, 200)


@pytest.mark.slow
def test_flips_and_truncations_of_the_log(whole: tuple[Run, Settings, str, Path], tmp_path: Path) -> None:
    check_log(whole, tmp_path, 600)


# -- processes ---------------------------------------------------------------------------------------

LONG = ("residual_block", "--set", "n=256", "--draws", "400000", "--json")


def interruptible() -> None:
    """In a child: SIGINT ends it, also where the tests themselves run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(path: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "varflow.cli", "verify", *LONG, "--store", str(path), *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    )


def rows(path: Path) -> int:
    """Draws in a store that another process writes."""
    if not path.exists():
        return 0
    try:
        with sqlite3.connect(path, timeout=1) as file:
            return int(file.execute("SELECT coalesce(sum(draws), 0) FROM chunks").fetchone()[0])
    except sqlite3.Error:
        return 0
    finally:
        file.close()


def stopped(path: Path, number: int, beyond: int, *more: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of a run that gets a signal once the store has more than ``beyond`` draws."""
    with started(path, *more) as process:
        limit = time.monotonic() + 200
        while rows(path) <= beyond and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        at = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        if number != signal.SIGKILL and process.returncode:
            assert time.monotonic() - at < 2 + SLACK
    return process.returncode, out, err


SLACK = 1.0
"""Seconds that a loaded machine may add."""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_say_how_to_go_on(path: Path, number: int, status: int) -> None:
    returned, out, err = stopped(path, number, 0)
    assert returned == status, err
    assert not out, "an interrupted run gives no verdict"
    assert "Traceback" not in err
    command = shlex.split(next(line for line in err.splitlines() if line.startswith("varflow verify")))
    assert command == ["varflow", "verify", *LONG, "--store", str(path), "--resume"]
    before = rows(path)
    assert before > 0
    again = [sys.executable, "-m", "varflow.cli", *command[1:], "--max-time", "0"]
    answer = subprocess.run(again, capture_output=True, text=True, check=False)
    assert answer.returncode in (0, 3), answer.stderr
    assert json.loads(answer.stdout)["draws"] == before == rows(path)


EARLY = """
import signal, sys
from varflow.__main__ import main
*sys.argv, module, number, times = sys.argv
class Finder:
    def find_spec(self, name, path=None, target=None):
        for _ in range(int(times) if name == module else 0):
            signal.raise_signal(int(number))
sys.meta_path.insert(0, Finder())
main()
"""


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("module", ["typer", "varflow.cli_verify", "varflow.simulate.cpu"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_before_the_first_draw(path: Path, module: str, number: int, status: int, times: int) -> None:
    """While the command line, the simulation or its kernels are imported, once and twice: no traceback."""
    command = [sys.executable, "-c", EARLY, "verify", *LONG, "--store", str(path)]
    answer = subprocess.run([*command, module, str(int(number)), str(times)], capture_output=True, text=True,
                            check=False, preexec_fn=interruptible)
    assert answer.returncode == status, answer.stderr
    assert not answer.stdout and "Traceback" not in answer.stderr
    *_, before, again = answer.stderr.splitlines()
    assert before.startswith("interrupted") and before.endswith("; to go on:")
    assert shlex.split(again) == ["varflow", "verify", *LONG, "--store", str(path), "--resume"]


@pytest.mark.slow
def test_five_kills_and_a_resume(path: Path) -> None:
    """SIGKILL and SIGTERM at five places, then to the end: the hash of the run in one piece, and a replay's."""
    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL)
    for k, number in enumerate(signals):
        more = () if k == 0 else ("--resume",)
        returned, _, err = stopped(path, number, rows(path), *more)
        assert returned in (-signal.SIGKILL, 143, 130), err
    with started(path, "--resume") as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode in (0, 3), err
    command = [sys.executable, "-m", "varflow.cli", "verify", *LONG, "--threads", "1"]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(out)
    assert found["hash"] == json.loads(plain.stdout)["hash"]
    assert found["nodes"].keys() == json.loads(plain.stdout)["nodes"].keys()
    assert vf.replay(found).same


def test_the_hash_is_that_of_another_process(path: Path) -> None:
    """A process that has compiled or loaded other kernels before has the same bits."""
    program = (
        "import numpy as np, varflow as vf\n"
        "from varflow.simulate import kernels\n"
        "kernels.moments_of(np.ones(100, np.float32))\n"
        "net = vf.load('residual_block')\n"
        f"print(vf.verify(net, {{'n': 64}}, {DRAWS}).hash)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                            env=dict(os.environ))
    assert answer.stdout.strip() == verify(vf.load("residual_block"), {"n": 64}, DRAWS).hash


def test_looks_of_two_processes_are_all_counted(path: Path) -> None:
    """The one that looks second reads what the other one wrote."""
    identity = {"network": "a"}
    with opened(path, identity, False) as first, opened(path, identity, True) as second:
        assert (first.look([300]), second.look([360]), second.look([300]), first.look([360])) == (1, 2, 1, 2)
