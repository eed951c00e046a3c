"""Machine code on disk: found again, never run when it is of another text or damaged, and without numba."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from varflow.simulate import elementary, jit, machine, vectors
from varflow.simulate.jit import Kernel, c_types_of, kind_of, words_of

DRAWN = (
    "import sys\n"
    "from varflow.simulate import kernels, rng\n"
    "x = rng.sample('normal', (4, 60), seed=1, tensor=1).reshape(4, 2, 30)\n"
    "y = kernels.contract(x, kernels.RandomMatrix(20, 30, 2), seed=3)\n"
    "print(y.tobytes().hex() + kernels.moments(y).tobytes().hex(), 'numba' in sys.modules)\n"
)

TAPED = (
    "import sys, varflow as vf\n"
    "from varflow.lowering import lower\n"
    "from varflow.simulate.cpu import Simulator\n"
    "net = vf.Network('tape')\n"
    "x = net.dropout(net.input('x', 40), '1/4')\n"
    "h = net.activation(net.linear(x, 30, name='a', bias='1/10', variance='1/fan_in'), 'gelu')\n"
    "h = net.relu(net.linear(h, 30, name='b', variance='2/fan_in'))\n"
    "net.add(h, net.linear(h, 30, name='c', weight='b'))\n"
    "run = Simulator(lower(net), samples=2, method='collapsed')\n"
    "print(run.run(70).digest() + type(run.tape).__name__, 'numba' in sys.modules)\n"
)
"""Sources, pointwise steps and collapsed products, of one column and of several, all of them handlers."""


def drawn(folder: Path, code: str = DRAWN, **settings: str) -> tuple[str, str]:
    """The bits of a product in a process of its own, and whether it had to import numba."""
    given = os.environ | {"NUMBA_CACHE_DIR": str(folder)} | settings
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True,
                          timeout=300)  # fmt: skip
    bits, loaded = done.stdout.split()
    return bits, loaded


def damage(file: Path, byte: int) -> None:
    text = bytearray(file.read_bytes())
    text[byte] ^= 1
    file.write_bytes(bytes(text))


@pytest.mark.slow
def test_kept_code_runs_without_numba_and_damaged_code_never(tmp_path: Path) -> None:
    first, compiled = drawn(tmp_path)
    assert compiled == "True"
    files = sorted(tmp_path.glob("*.code"))
    assert {f.name.rpartition("-")[0] for f in files} == {"_sample", "_contract", "_moments"}
    assert drawn(tmp_path) == (first, "False")
    for k, file in enumerate(files):
        damage(file, (-1, len(file.read_bytes()) // 2, 12)[k])
    assert drawn(tmp_path) == (first, "True")
    assert drawn(tmp_path) == (first, "False")
    files[0].write_bytes(files[0].read_bytes()[:-100])
    assert drawn(tmp_path) == (first, "True")


def test_numba_itself_draws_the_same_bits(tmp_path: Path) -> None:
    """The way of machines and versions of numba on which this was not tried."""
    assert drawn(tmp_path / "a", VARFLOW_PLAIN_NUMBA="1") == (drawn(tmp_path / "b")[0], "True")
    assert not list((tmp_path / "a").glob("*.code"))


@pytest.mark.slow
def test_numba_itself_runs_the_handlers_of_a_tape(tmp_path: Path) -> None:
    """In C's convention: numba's own is known of one series only."""
    bits, _ = drawn(tmp_path / "b", TAPED)
    assert bits.endswith("Tape")
    assert drawn(tmp_path / "a", TAPED, VARFLOW_PLAIN_NUMBA="1") == (bits, "True")
    assert drawn(tmp_path / "a", TAPED, VARFLOW_PLAIN_NUMBA="1") == (bits, "True"), "from numba's own cache"
    assert not list((tmp_path / "a").glob("*.code"))


def test_code_of_another_text_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, code = tmp_path / "f.code", machine.Code("f", False, b"text")
    machine._write(file, code)
    assert machine._read(file) == code
    monkeypatch.setattr(machine, "STAMP", "another")
    assert machine._read(file) is None
    assert machine._read(tmp_path / "none.code") is None


def test_the_stamp_covers_every_module_with_compiled_code() -> None:
    folder = Path(machine.__file__).parent
    marks = ("@device", "@inline", "@kernel", "@handler", "@reduction", "intrinsic(", "import binding")
    compiling = {f.stem for f in folder.glob("*.py") if any(mark in f.read_text() for mark in marks)}
    cuda = {name for name in compiling if name.startswith("cuda")}
    assert compiling - cuda - {"stream"} <= set(machine.COMPILED_MODULES)
    assert all((folder / f"{name}.py").exists() for name in machine.COMPILED_MODULES)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    machine._write(tmp_path / "file" / "f.code", machine.Code("f", False, b""))
    assert machine._read(tmp_path / "file" / "f.code") is None


class Settings(NamedTuple):
    kind: int
    scale: float
    seed: np.uint64


def _collect(x: Any, sizes: Any, flag: Any, factor: Any, settings: Any, out: Any, start: Any, stop: Any) -> None:
    for d in range(start, stop):
        out[d, 0] = x[d, 1, 0] * factor + sizes[1]
        out[d, 1] = settings.scale if flag else settings.kind
        out[d, 2] = x.shape[2] + sizes[0][2]
        out[d, 3] = np.float64(settings.seed >> np.uint64(60))


def test_arguments_of_every_kind_reach_a_kernel() -> None:
    run, x, out = Kernel(_collect), np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.zeros((2, 4))
    settings = Settings(-7, 0.25, np.uint64(2**64 - 1))
    for value, flag in ((x, True), (x.transpose(0, 2, 1), False)):
        run(value, ((1, 2, -3), 5), flag, np.float32(0.5), settings, out, 0, 2)
        for d in range(2):
            wanted = [value[d, 1, 0] / 2 + 5, 0.25 if flag else -7, value.shape[2] - 3, 15.0]
            np.testing.assert_array_equal(out[d], wanted)


def test_arguments_as_words() -> None:
    x = np.zeros((2, 3), np.float32)
    assert kind_of(x) == ("<f4", 2, "C")
    assert kind_of(x.T) == ("<f4", 2, "A")
    assert kind_of(Settings(1, 2.0, np.uint64(3))) == (("kind", "scale", "seed"), ("int64", "float64", "uint64"))
    assert [kind_of(v) for v in (True, 3, 2.0, np.float32(1))] == ["bool", "int64", "float64", "float32"]
    assert words_of(x) == [None, None, 6, 4, x.ctypes.data, 2, 3, 12, 4]
    assert words_of((np.uint64(2**64 - 1), 1.0, (False, -2))) == [2**64 - 1, 1.0, 0, -2]
    value: Any
    for value in (x, x.T, (1, 2.0, Settings(1, 2.0, np.uint64(3)))):
        assert len(words_of(value)) == len(c_types_of(kind_of(value)))


def test_deferred_names_are_numbas_once_something_is_compiled() -> None:
    jit.prepare()
    for module in (elementary, vectors):
        assert not any(isinstance(v, jit.Deferred) for v in vars(module).values())
