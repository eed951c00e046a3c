"""Simulation of a pre-LN transformer against PyTorch: seconds of a draw, forward and backward, and time to 1 %.

Each draw takes fresh weights for every block of graphs/transformer.yaml, carries T random tokens through, pulls a
random cotangent back to them, and takes the second moment of every value and gradient. Ours is
`varflow.simulate.cpu.simulate`; PyTorch draws the weights (randn), computes attention by its own softmax, since every
value is measured, and differentiates. Processor seconds of one thread, in turns: the least of each, which other work
on the machine disturbs least. A draw has the same law in both, so that the draws for a standard error of 1 % at every
node are the same too: they are found from ours, and what it takes to set up a simulation is added once.

Collapsing a product of T columns with an n x n matrix saves a factor of about n/T, until what is left (scores, softmax,
statistics) takes most of the time: at 128 tokens and width 768 no more than about 4 is to be had.

    python benchmarks/transformer.py [--heads 12] [--width 64] [--tokens 128] [--blocks 12] [--draws 4] [--turns 3]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any


def program_of(heads: int, width: int, tokens: int, blocks: int) -> Any:
    """The shipped graph at these sizes."""
    from varflow.load import from_text
    from varflow.load.shipped import graph_folder
    from varflow.lowering import lower

    text = (graph_folder() / "transformer.yaml").read_text(encoding="utf-8").replace("repeat: 12", f"repeat: {blocks}")
    return lower(from_text(text).bind({"h": heads, "k": width, "T": tokens}))


def simulator(program: Any) -> tuple[float, Any]:
    """Processor seconds to set a simulation up, and the simulator."""
    from varflow.simulate.cpu import Simulator

    start = time.process_time()
    made = Simulator(program, threads=1)
    return time.process_time() - start, made


def ours(made: Any, draws: int, first: int) -> tuple[float, Any]:
    """Processor seconds of a draw, and the statistics."""
    start = time.process_time()
    found = made.run(draws, first)
    return (time.process_time() - start) / draws, found


def theirs(heads: int, width: int, tokens: int, blocks: int) -> float:
    """Processor seconds of one draw with PyTorch."""
    import torch

    torch.set_num_threads(1)
    start, d = time.process_time(), heads * width
    kept: list[Any] = []

    def keep(x: Any) -> Any:
        x.retain_grad()
        kept.append(x)
        return x

    def linear(x: Any, out: int) -> Any:
        return keep(x @ (torch.randn(x.shape[-1], out) / x.shape[-1] ** 0.5))

    def norm(x: Any) -> Any:
        return keep(torch.nn.functional.layer_norm(x, (d,), eps=0.0))

    def by_head(x: Any) -> Any:
        return x.view(tokens, heads, width).transpose(0, 1)

    x = keep(torch.randn(tokens, d, requires_grad=True))
    for _ in range(blocks):
        u = norm(x)
        q, k, v = (linear(u, d) for _ in range(3))
        logits = keep(by_head(q) @ by_head(k).transpose(1, 2) / width**0.5)
        mixed = keep(keep(torch.softmax(logits, dim=2)) @ by_head(v))
        middle = keep(x + linear(mixed.transpose(0, 1).reshape(tokens, d), d))
        h = keep(torch.nn.functional.gelu(linear(norm(middle), 4 * d)))
        x = keep(middle + linear(h, d))
    y = norm(x)
    y.backward(torch.randn_like(y))
    sums = [(float(t.detach().square().mean()), float(t.grad.square().mean())) for t in kept]
    assert all(a > 0 and b > 0 for a, b in sums)
    return time.process_time() - start


def draws_to(found: Any, share: float) -> tuple[int, str]:
    """Draws for a standard error of ``share`` at every node, and the node that takes most."""
    worst, node = 0.0, ""
    for direction in ("forward", "backward"):
        for name, s in getattr(found, direction).items():
            spread = s.second_moment_variance / s.second_moment**2
            if spread > worst:
                worst, node = spread, f"{name}, {direction}"
    return max(2, round(worst / share**2)), node


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("heads", 12), ("width", 64), ("tokens", 128), ("blocks", 12), ("draws", 4), ("turns", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    o = parser.parse_args()
    sizes = (o.heads, o.width, o.tokens, o.blocks)
    setup, made = simulator(program_of(*sizes))
    ours(made, 1, 0)
    theirs(*sizes)
    pairs = [(ours(made, o.draws, 100 * (turn + 1))[0], theirs(*sizes)) for turn in range(o.turns)]
    _, found = ours(made, 16, 10_000)
    need, node = draws_to(found, 0.01)
    mine, other = (min(p[k] for p in pairs) for k in (0, 1))
    print(json.dumps({
        "sizes": dict(zip(("heads", "width", "tokens", "blocks"), sizes, strict=True)),
        "seconds to set up": round(setup, 2), "seconds per draw": round(mine, 4), "PyTorch": round(other, 4),
        "ratio": round(other / mine, 2), "draws to 1 %": need, "at": node,
        "seconds to 1 %": round(setup + need * mine, 1), "PyTorch to 1 %": round(need * other, 1),
        "ratio to 1 %": round(need * other / (setup + need * mine), 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
