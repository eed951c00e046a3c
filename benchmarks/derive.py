"""How long deriving a network takes, building and lowering apart: ``python benchmarks/derive.py``.

Chains of 1,000 and 10,000 relu layers, a residual chain of 1,000 and a graph of 1,000 layers of random kinds; with
``--graphs [NAME ...]`` the command ``varflow derive`` on the shipped graphs (all, or those named) instead, each in a
process of its own, in processor time.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import varflow as vf
from varflow.network import Handle

ACTIVATIONS = ("relu", "tanh", "leaky_relu(0.2)", "erf", "abs", "gelu", "sin", "identity")


def chain(layers: int) -> vf.Network:
    """linear, relu, linear, relu, ..."""
    net = vf.Network("chain")
    x = net.input("x", channels="n")
    for _ in range(layers // 2):
        x = net.relu(net.linear(x, "n"))
    return net


def residual(layers: int) -> vf.Network:
    """x + linear(relu(x)), three layers a block."""
    net = vf.Network("residual")
    x = net.input("x", channels="n")
    for _ in range(layers // 3):
        x = net.add(x, net.linear(net.relu(x), "n", variance="1/(4*fan_in)"))
    return net


def mixed(layers: int, seed: int = 0) -> vf.Network:
    """Layers of random kinds, each on one of the last few values."""
    net, choose = vf.Network("mixed"), random.Random(seed)
    recent: list[Handle] = [net.input("x", channels="n")]
    for _ in range(layers):
        recent = [*recent[-3:], _layer(net, choose, recent)]
    return net


def _layer(net: vf.Network, choose: random.Random, recent: list[Handle]) -> Handle:
    x: Handle = choose.choice(recent)
    match choose.choice(("linear", "linear", "linear", "activation", "add", "norm", "dropout", "scale")):
        case "linear":
            return net.linear(x, "n", variance="1/fan_in", bias="1/10")
        case "activation":
            return net.activation(net.linear(x, "n", variance="1/fan_in"), choose.choice(ACTIVATIONS))
        case "add":
            return net.linear(net.add(x, recent[-1]), "n", variance="1/(2*fan_in)")
        case "norm":
            normal: Handle = net.layer_norm(x)
            return normal
        case "dropout":
            return net.dropout(x, p="1/10")
    half: Handle = net.scale(x, "1/2")
    return half


def report(name: str, build: Callable[[], vf.Network]) -> float:
    """Print the seconds of building and deriving; returns microseconds of deriving per layer."""
    start = time.perf_counter()
    net = build()
    built = time.perf_counter()
    d = vf.derive(net)
    end = time.perf_counter()
    each = 1e6 * (end - built) / len(d)
    print(f"{name:28s} {len(d):6d} nodes   build {built - start:6.2f} s   derive {end - built:6.2f} s   "
          f"{each:7.0f} us per layer", flush=True)
    return each


def commands(names: Sequence[str]) -> None:
    """Print the processor time of ``varflow derive`` on every shipped graph, the interpreter's start included."""
    folder = Path(__file__).parent.parent / "graphs"
    for name in names or sorted(file.stem for file in folder.glob("*.yaml")):
        before = os.times()
        run = [sys.executable, "-m", "varflow.cli", "derive", str(folder / f"{name}.yaml")]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = os.times()
        spent = after.children_user - before.children_user + after.children_system - before.children_system
        print(f"{name:28s} {spent:6.2f} s", flush=True)


def main() -> None:
    """Every network once; how the cost per layer grows from 1,000 to 10,000."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--graphs", nargs="*", metavar="NAME")
    options = parser.parse_args()
    if options.graphs is not None:
        commands(options.graphs)
        return
    vf.derive(chain(10))
    short = report("chain of 1,000", lambda: chain(1000))
    long = report("chain of 10,000", lambda: chain(10_000))
    report("residual chain of 1,000", lambda: residual(1000))
    report("1,000 layers of random kinds", lambda: mixed(1000))
    print(f"cost per layer at 10,000 over that at 1,000: {long / short:.2f}")


if __name__ == "__main__":
    main()
