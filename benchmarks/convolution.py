"""Sampled simulation of a ResNet-50 against PyTorch: seconds and memory of a draw, forward and backward.

Each draw takes fresh weights for all 53 convolutions and the classifier, carries a batch of B images through (He et
al. 2016; batch normalization over the batch), pulls a random cotangent back to the image, and takes the second moment
of every value and gradient. Ours is `varflow.simulate.cpu.simulate`; PyTorch draws the weights (randn), keeps them,
and differentiates with respect to the image alone. Both use the same cores, one after the other in turns.

    python benchmarks/convolution.py [--size 64] [--batches 2 4 8] [--threads 1 2] [--turns 3] [--layers]
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Width, blocks and stride of each stage."""


@functools.cache
def network(size: int, batch: int) -> Any:
    """The program of a ResNet-50 on images of size x size."""
    from varflow.lowering import lower
    from varflow.network import Network

    net = Network("resnet50")

    def unit(x: Any, channels: int, kernel: int, stride: int = 1) -> Any:
        y = net.conv(x, channels, kernel, stride=stride, padding=kernel // 2, variance="2/fan_in")
        return net.batch_norm(y, batch=batch)

    x = net.input("x", 3, (size, size))
    h = net.max_pool(net.relu(unit(x, 64, 7, 2)), 3, stride=2, padding=1)
    for width, blocks, first in STAGES:
        for k in range(blocks):
            stride = first if k == 0 else 1
            y = net.relu(unit(net.relu(unit(h, width, 1)), width, 3, stride))
            y = unit(y, 4 * width, 1)
            h = net.relu(net.add(y, unit(h, 4 * width, 1, stride) if k == 0 else h))
    net.linear(net.mean_pool(h), 1000, variance="1/fan_in")
    return lower(net)


clock = time.perf_counter
"""Wall time; processor time where there is one thread, which other work on the machine disturbs less."""


def ours(size: int, batch: int, draws: int, seed: int) -> float:
    """Seconds of a draw, where there are at least as many draws as threads."""
    from varflow.simulate.cpu import simulate

    program = network(size, batch)
    start = clock()
    simulate(program, draws, seed=seed, method="sampled")
    return (clock() - start) / draws


class Theirs:
    """One draw in PyTorch, with the second moments of values and gradients."""

    def __init__(self, size: int, batch: int) -> None:
        import torch

        self.torch, self.size, self.batch = torch, size, batch
        self.moments: list[Any] = []

    def seen(self, x: Any) -> Any:
        self.moments.append(x.detach().square().mean())
        x.register_hook(lambda g: self.moments.append(g.square().mean()))
        return x

    def unit(self, x: Any, channels: int, kernel: int, stride: int = 1) -> Any:
        f = self.torch.nn.functional
        fan = x.shape[1] * kernel**2
        weight = self.torch.randn(channels, x.shape[1], kernel, kernel).mul_((2 / fan) ** 0.5)
        y = self.seen(f.conv2d(x, weight, stride=stride, padding=kernel // 2))
        return self.seen(f.batch_norm(y, None, None, training=True, eps=1e-30))

    def draw(self) -> None:
        f = self.torch.nn.functional
        self.moments.clear()
        x = self.torch.randn(self.batch, 3, self.size, self.size).requires_grad_(True)
        h = self.seen(f.max_pool2d(self.seen(f.relu(self.unit(x, 64, 7, 2))), 3, 2, 1))
        for width, blocks, first in STAGES:
            for k in range(blocks):
                stride = first if k == 0 else 1
                y = self.seen(f.relu(self.unit(h, width, 1)))
                y = self.unit(self.seen(f.relu(self.unit(y, width, 3, stride))), 4 * width, 1)
                h = self.seen(f.relu(self.seen(y + (self.unit(h, 4 * width, 1, stride) if k == 0 else h))))
        y = h.mean(dim=(2, 3)) @ self.torch.randn(2048, 1000).mul_(2048**-0.5)
        y.backward(self.torch.randn_like(y))


def theirs(size: int, batch: int, draws: int, seed: int) -> float:
    """Seconds of a draw."""
    run = Theirs(size, batch)
    run.torch.manual_seed(seed)
    start = clock()
    for _ in range(draws):
        run.draw()
    return (clock() - start) / draws


def compare(size: int, batch: int, threads: int, turns: int) -> dict[str, Any]:
    import torch

    from varflow.simulate import jit

    global clock
    clock = time.process_time if threads == 1 else time.perf_counter
    jit.set_threads(threads)
    torch.set_num_threads(threads)
    times = [(ours(size, batch, threads, k), theirs(size, batch, 1, k)) for k in range(turns + 1)][1:]
    mine, other = (statistics.median(t) for t in zip(*times, strict=True))
    return {"size": size, "batch": batch, "threads": threads, "ms a draw": round(1e3 * mine, 1),
            "torch ms a draw": round(1e3 * other, 1),
            "ratio": round(statistics.median(b / a for a, b in times), 2)}  # fmt: skip


def most_resident() -> float:
    """The most MiB this process has held (Linux)."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak(run: Callable[..., float], size: int, batch: int) -> dict[str, Any]:
    """MiB that a draw adds to the resident memory of a process that is ready: kernels compiled by a draw on small
    images, which keeps no weight; PyTorch loaded by one small convolution."""
    if run is ours:
        run(32, batch, 1, 0)
    else:
        import torch

        torch.nn.functional.conv2d(torch.zeros(1, 8, 8, 8), torch.zeros(8, 8, 3, 3))
    before = most_resident()
    run(size, batch, 1, 1)
    after = most_resident()
    return {"size": size, "batch": batch, "who": run.__name__, "MiB before": round(before),
            "MiB added": round(after - before)}  # fmt: skip


LAYERS = [(64, 64, 3, 1, 16), (64, 256, 1, 1, 16), (256, 64, 1, 1, 16), (128, 128, 3, 1, 8), (512, 128, 1, 1, 8),
          (256, 256, 3, 1, 4), (1024, 256, 1, 1, 4), (512, 512, 3, 1, 2), (2048, 512, 1, 1, 2), (256, 256, 3, 2, 8),
          (3, 64, 7, 2, 64)]  # fmt: skip
"""Input and output channels, kernel, stride and input size of the layers of a ResNet-50 at 64 x 64."""


def best(run: Callable[[], Any], turns: int = 7) -> float:
    """Milliseconds of the fastest turn, in processor time."""
    run()
    found = []
    for _ in range(turns):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return round(1e3 * min(found), 2)


def layers(batch: int) -> Iterator[dict[str, Any]]:
    """One convolution on one core: ours with fresh weights, PyTorch's randn and convolution apart."""
    import numpy as np
    import sympy as sp
    import torch

    from varflow.simulate import jit
    from varflow.simulate.kernels_window import RandomTaps
    from varflow.simulate.routes import route
    from varflow.simulate.windows import convolve
    from varflow.window import Window

    jit.set_threads(1)
    torch.set_num_threads(1)
    for columns, rows, kernel, stride, size in LAYERS:
        pad = kernel // 2
        w = Window((sp.Integer(size),) * 2, (kernel,) * 2, (stride,) * 2, ((pad, pad),) * 2, (1, 1))
        weight, there, back = RandomTaps(rows, columns, 1, taps=kernel**2), route(w, batch, 0), route(w, batch, 0, True)
        x = np.ones((1, batch * size**2, columns), np.float32)
        d = np.ones((1, there.places, rows), np.float32)
        image, slope = torch.ones(batch, columns, size, size), torch.ones(batch, rows, size // stride, size // stride)
        matrix = torch.ones(rows, columns, kernel, kernel)
        grad = functools.partial(
            torch.ops.aten.convolution_backward, slope, image, matrix, None, [stride] * 2, [pad] * 2, [1, 1], False,
            [0, 0], 1, [True, False, False],
        )  # fmt: skip
        conv = functools.partial(torch.nn.functional.conv2d, image, matrix, stride=stride, padding=pad)
        yield {
            "layer": f"{columns}->{rows} {kernel}x{kernel}/{stride} at {size}", "batch": batch,
            "forward": best(lambda w=weight, x=x, r=there: convolve(x, w, r, seed=1)),
            "backward": best(lambda w=weight, d=d, r=back: convolve(d, w, r, seed=1, transpose=True)),
            "torch randn": best(lambda m=matrix: torch.randn_like(m)), "torch forward": best(conv),
            "torch backward": best(grad),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--layers", action="store_true", help="single layers instead of the network")
    parser.add_argument("--memory", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    for batch in options.batches:
        if options.memory:
            print(json.dumps(peak(ours if options.memory == "ours" else theirs, options.size, batch)), flush=True)
            continue
        if options.layers:
            for line in layers(batch):
                print(json.dumps(line), flush=True)
            continue
        for threads in options.threads:
            print(json.dumps(compare(options.size, batch, threads, options.turns)), flush=True)
        for who in ("ours", "theirs"):
            command = [sys.executable, __file__, "--memory", who, "--batches", batch, "--size", options.size]
            subprocess.run(list(map(str, command)), check=True)


if __name__ == "__main__":
    main()
