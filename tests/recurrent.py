"""Recurrences as a user writes them, and brute force: PyTorch's own cells with fresh weights and inputs for every draw,
gradients of a random cotangent at every state, taken in hooks.

    python -m tests.recurrent KIND [--steps 100] [--width 512] [--draws 40] [--samples 8]

prints the second moments that a derivation and PyTorch give, and the largest deviation; ``recurrent.json`` holds what
it found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

import varflow as vf
from tests.convolutional import one_thread
from varflow.load import from_text
from varflow.load.shipped import graph_folder
from varflow.network import Handle, Network

torch: Any = pytest.importorskip("torch")
Tensor: TypeAlias = Any
Array: TypeAlias = npt.NDArray[np.float64]
FORGET = 1.0
ALLOWED = 0.03


def lstm(steps: int) -> Network:
    """The shipped LSTM with another number of steps."""
    text = (graph_folder() / "lstm.yaml").read_text(encoding="utf-8").replace("repeat: 20", f"repeat: {steps}")
    return from_text(text.replace("21*n", f"{steps + 1}*n"))


def unrolled(steps: int, cell: Callable[[Network, Handle, Handle, int], Handle]) -> Network:
    """A cell applied in a loop, with an output at every step."""
    net = Network("recurrence")
    state = net.input("start", "n", second_moment=0)
    for t in range(steps):
        state = cell(net, net.input(f"x{t}", "n"), state, t)
        net.output(state)
    return net


def tanh_cell(net: Network, x: Handle, state: Handle, t: int) -> Handle:
    """torch.nn.RNNCell, its recurrent weight of variance 3/(2n)."""
    a = net.linear(x, "n", weight="W", variance="1/fan_in", name=f"a{t}")
    b = net.linear(state, "n", weight="U", variance="3/2/fan_in", name=f"b{t}")
    h: Handle = net.tanh(net.add(a, b, name=f"z{t}"), name=f"h{t}")
    return h


def gru_cell(net: Network, x: Handle, state: Handle, t: int) -> Handle:
    """torch.nn.GRUCell."""
    a = net.linear(x, "3*n", weight="W", variance="1/fan_in", name=f"a{t}")
    b = net.linear(state, "3*n", weight="U", variance="1/fan_in", name=f"b{t}")
    (a_reset, a_update, a_new), (b_reset, b_update, b_new) = (net.split(z, "n", "n", "n") for z in (a, b))
    reset, update = net.sigmoid(net.add(a_reset, b_reset)), net.sigmoid(net.add(a_update, b_update))
    new = net.tanh(net.add(a_new, net.multiply(reset, b_new)), name=f"new{t}")
    return net.add(new, net.multiply(update, net.subtract(state, new)), name=f"h{t}")


NETWORKS: dict[str, Callable[[int], Network]] = {
    "lstm": lstm,
    "tanh": lambda steps: unrolled(steps, tanh_cell),
    "gru": lambda steps: unrolled(steps, gru_cell),
}


def laws(kind: str, steps: int, width: int) -> Array:
    """Second moments of states (and cells) of all steps, then of what gradient reaches them: 2 x names x steps."""
    numbers = vf.derive(NETWORKS[kind](steps)).numbers({"n": width})
    names = ("step[{}].h", "step[{}].c") if kind == "lstm" else ("h{}",)
    return np.array([[[numbers.node(name.format(t))[field] for t in range(steps)] for name in names]
                     for field in ("second_moment", "grad_second_moment")])


def made(kind: str, width: int) -> Any:
    """PyTorch's cell with fresh weights."""
    cell = {"lstm": torch.nn.LSTMCell, "tanh": torch.nn.RNNCell, "gru": torch.nn.GRUCell}[kind](width, width)
    with torch.no_grad():
        cell.weight_ih.normal_(0, width**-0.5)
        cell.weight_hh.normal_(0, (1.5 if kind == "tanh" else 1) ** 0.5 * width**-0.5)
        cell.bias_ih.zero_()
        cell.bias_hh.zero_()
        if kind == "lstm":
            cell.bias_ih[width : 2 * width] = FORGET
    return cell.requires_grad_(False)


def once(kind: str, steps: int, width: int, samples: int) -> Array:
    """One draw: as :func:`laws`."""
    cell, count = made(kind, width), 2 if kind == "lstm" else 1
    found = np.zeros((2, count, steps))
    held: Any = tuple(torch.zeros(samples, width) for _ in range(count))
    states = []
    for t in range(steps):
        x = torch.randn(samples, width).requires_grad_()
        held = cell(x, held) if count == 2 else (cell(x, held[0]),)
        for k, value in enumerate(held):
            found[0, k, t] = value.detach().square().mean()
            value.register_hook(lambda d, k=k, t=t: found.__setitem__((1, k, t), float(d.square().mean())))
        states.append(held[0])
    every = torch.stack(states)
    every.backward(torch.randn_like(every))
    return found


def brute_force(kind: str, steps: int, width: int, draws: int, samples: int) -> tuple[Array, Array]:
    """Means over draws and their standard errors."""
    torch.manual_seed(11)
    with one_thread():
        rows = np.array([once(kind, steps, width, samples) for _ in range(draws)])
    return rows.mean(axis=0), rows.std(axis=0, ddof=1) / draws**0.5


def deviations(ours: Array, mean: Array, error: Array) -> tuple[Array, Array]:
    """Relative deviations, and what of them is allowed: 3 %, or four standard errors where that is more; the last
    cell of an LSTM gets its gradient from its own state alone, and the last state the cotangent."""
    return ours / mean - 1, np.maximum(ALLOWED, 4 * error / mean)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kind", choices=sorted(NETWORKS))
    for name, value in (("steps", 100), ("width", 512), ("draws", 40), ("samples", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    o = parser.parse_args()
    mean, error = brute_force(o.kind, o.steps, o.width, o.draws, o.samples)
    off, allowed = deviations(laws(o.kind, o.steps, o.width), mean, error)
    rows = {f"{what} of {name}": {
        "largest deviation": round(float(np.abs(off[i, k]).max()), 4),
        "mean deviation": round(float(off[i, k].mean()), 4),
        "largest standard error": round(float((error / mean)[i, k].max()), 4),
        "steps outside": int((np.abs(off) > allowed)[i, k].sum()),
    } for i, what in enumerate(("second moment", "gradient")) for k, name in enumerate("hc"[: off.shape[1]])}
    print(json.dumps({**vars(o), "found": rows}, indent=1))


if __name__ == "__main__":
    main()
