"""Chunks on several threads, and memory used again: no bit depends on either."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from varflow.lowering import lower
from varflow.network import Network
from varflow.program import Program
from varflow.simulate import crew, recycle
from varflow.simulate.cpu import Simulator


def images() -> Program:
    net = Network("images")
    x = net.input("x", channels=3, positions=(8, 8))
    for k in range(3):
        x = net.relu(net.batch_norm(net.conv(x, 8, 3, padding=1, name=f"conv{k}", variance="2/fan_in"), batch=6))
    return lower(net)


@pytest.mark.parametrize(("threads", "memory"), [(2, 1 << 28), (3, 1 << 28), (2, 1), (4, 1 << 16)])
def test_no_bit_depends_on_threads_or_memory(threads: int, memory: int) -> None:
    program = images()
    one = Simulator(program, threads=1, given=True).run(11, 5)
    other = Simulator(program, threads=threads, memory=memory, given=True).run(11, 5)
    assert one.summaries() == other.summaries()


@pytest.mark.parametrize(("count", "most", "workers"), [(0, 3, 2), (1, 3, 2), (7, 3, 2), (8, 100, 3), (5, 1, 4)])
def test_cut(count: int, most: int, workers: int) -> None:
    pieces = crew.cut(10, count, most, workers)
    assert [a + k for a, n in pieces for k in range(n)] == list(range(10, 10 + count))
    assert all(0 < n <= most for _, n in pieces)
    assert len(pieces) >= min(count, workers)


@pytest.mark.parametrize("workers", [1, 3])
def test_pieces_arrive_in_order_and_errors_end_all(workers: int) -> None:
    seen: list[int] = []
    crew.in_turn(lambda first, count: first * count, [(k, 2) for k in range(20)], workers, lambda a, r: seen.append(r))
    assert seen == [2 * k for k in range(20)]

    def run(first: int, count: int) -> int:
        if first == 4:
            raise ValueError("four")
        return first

    with pytest.raises(ValueError, match="four"):
        crew.in_turn(run, [(k, 1) for k in range(1000)], workers, lambda a, r: None)
    with pytest.raises(KeyboardInterrupt):
        crew.in_turn(run, [(k, 1) for k in range(4)], workers, _interrupt)


def _interrupt(first: int, result: int) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_ends_pieces_under_way() -> None:
    begun = threading.Event()

    def run(first: int, count: int) -> int:
        if first == 0:
            begun.wait(30)
            return 0
        begun.set()
        while True:
            crew.breathe()

    with pytest.raises(KeyboardInterrupt):
        crew.in_turn(run, [(0, 1), (1, 1)], 2, _interrupt)


def test_memory_is_used_again_only_when_nothing_refers_to_it() -> None:
    size = recycle.LEAST // 4
    with recycle.recycling():
        x = recycle.empty((2, size))
        address, part = x.ctypes.data, x[1].reshape(-1, 4)
        assert not address % recycle.LINE
        part[:] = 7.0
        del x
        other = recycle.empty((2, size))
        other[:] = 0.0
        assert other.ctypes.data != address
        assert np.all(part == 7.0)
        del part
        assert recycle.empty((2, size)).ctypes.data == address
        assert recycle.empty((size // 8,)).base is None
    assert recycle.empty((2, size)).base is None
