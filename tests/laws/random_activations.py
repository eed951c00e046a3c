"""Gains of random activation texts: each must be answered, or refused in one clear error, at once.

``python tests/laws/random_activations.py [COUNT]`` measures COUNT texts (default 10,000), going on where an
earlier run stopped, and writes ``results/random_activations.json`` beside this file. Every text runs through
``varflow.gain`` in a worker process, so that one without an end is seen, counted and stopped; times are CPU
seconds of that process.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from varflow.activations import ACTIVATIONS
from varflow.grammar import FUNCTIONS

RESULT = Path(__file__).parent / "results" / "random_activations.json"
LIMIT = 2.0
PATIENCE = 120.0
UNARY = [n for n, f in FUNCTIONS.items() if f.least == 1 and n not in ("max", "Max", "min", "Min")]
NUMBERS = ("0", "1", "2", "3", "0.5", "1/3", "0.1", "-1", "-2", "1.702", "pi", "10", "1e-3", "30")
POWERS = ("2", "3", "-1", "0.5", "-2", "5", "1/3", "x", "-0.5", "8")
RELATIONS = ("<", "<=", ">", ">=")


def text(rng: random.Random, depth: int) -> str:
    """A random activation text in ``x`` of at most the given depth."""
    if depth <= 0:
        return "x" if rng.random() < 0.75 else rng.choice(NUMBERS)
    return rng.choice(_MAKERS)(rng, depth - 1)


def _sum(rng: random.Random, depth: int) -> str:
    return f"({text(rng, depth)} {rng.choice('+-')} {text(rng, depth)})"


def _product(rng: random.Random, depth: int) -> str:
    return f"{text(rng, depth)}*({text(rng, depth)})"


def _quotient(rng: random.Random, depth: int) -> str:
    return f"({text(rng, depth)})/({text(rng, depth)})"


def _power(rng: random.Random, depth: int) -> str:
    return f"({text(rng, depth)})**({rng.choice(POWERS)})"


def _function(rng: random.Random, depth: int) -> str:
    return f"{rng.choice(UNARY)}({text(rng, depth)})"


def _activation(rng: random.Random, depth: int) -> str:
    return f"{rng.choice(list(ACTIVATIONS))}({_with_x(rng, depth)})"


def _with_x(rng: random.Random, depth: int) -> str:
    inner = text(rng, depth)
    return inner if "x" in inner.replace("exp", "").replace("max", "") else f"x + {inner}"


def _extreme(rng: random.Random, depth: int) -> str:
    parts = [text(rng, depth - (k > 1)) for k in range(rng.randint(2, 3))]
    return f"{rng.choice(('max', 'min'))}({', '.join(parts)})"


def _condition(rng: random.Random, depth: int) -> str:
    return f"{text(rng, min(depth, 1))} {rng.choice(RELATIONS)} {rng.choice(NUMBERS)}"


def _where(rng: random.Random, depth: int) -> str:
    return f"where({_condition(rng, depth)}, {text(rng, depth)}, {text(rng, depth - 1)})"


def _piecewise(rng: random.Random, depth: int) -> str:
    cases = [f"({text(rng, depth)}, {_condition(rng, depth)})" for _ in range(rng.randint(1, 3))]
    return f"Piecewise({', '.join(cases)}, ({text(rng, depth - 1)}, True))"


_MAKERS = (
    *(_sum, _sum, _product, _product, _quotient, _power, _function, _function, _function),
    *(_activation, _activation, _extreme, _where, _piecewise),
)


def sample(seed: int) -> tuple[str, str, str]:
    """A text, a variance and a mean."""
    rng = random.Random(seed)
    made = text(rng, rng.choice((1, 2, 2, 3, 3, 4)))
    return made, rng.choice(("1", "1", "1", "0.01", "4")), rng.choice(("0", "0", "0", "0.5"))


def outcome(made: str, q: str, mean: str) -> str:
    """``answer``, or the kind of the refusal. Anything else than a VarflowError is raised."""
    from varflow.errors import VarflowError
    from varflow.gain import gain

    try:
        numbers = gain(made, q=float(q), mean=float(mean)).numeric()
    except VarflowError as error:
        return f"{type(error).__name__}: {str(error.what).splitlines()[0]}"
    lost = [
        k for k in ("mean", "second_moment", "variance") if not math.isfinite(numbers[k] or 0.0)
    ]
    lost += [k for k, v in numbers.items() if v is not None and math.isnan(v)]
    return f"not finite: {', '.join(lost)}" if lost else "answer"


def _serve(pipe: Connection) -> None:
    outcome("relu", "1", "0")
    pipe.send("ready")
    while True:
        seed = pipe.recv()
        start = time.process_time()
        try:
            kind = outcome(*sample(seed))
        except BaseException as error:
            kind = f"BUG {type(error).__name__}: {str(error)[:80]}"
        pipe.send((kind, time.process_time() - start))


class _Worker:
    """One child process that answers seeds; started anew after one that did not end."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("fork")
        self.start()

    def start(self) -> None:
        self.pipe, child = self.context.Pipe()
        self.process = self.context.Process(target=_serve, args=(child,), daemon=True)
        self.process.start()
        self.pipe.recv()

    def ask(self, seed: int) -> tuple[str, float]:
        self.pipe.send(seed)
        if self.pipe.poll(PATIENCE):
            answer: tuple[str, float] = self.pipe.recv()
            return answer
        self.process.kill()
        self.process.join()
        self.start()
        return "BUG no end", PATIENCE


def measure(first: int, last: int, found: dict[str, Any], show: bool = False) -> dict[str, Any]:
    """The outcomes of seeds from ``first`` to before ``last``, added to those found before."""
    worker = _Worker()
    times, kinds, odd = list(found["times"]), Counter(found["outcomes"]), list(found["odd"])
    for seed in range(first, last):
        kind, seconds = worker.ask(seed)
        times.append(round(seconds, 2))
        kinds[_short(kind)] += 1
        if seconds > LIMIT or kind.startswith(("BUG", "not finite")):
            odd.append({"seed": seed, "seconds": round(seconds, 2), "kind": kind})
            odd[-1]["text"] = " ; ".join(sample(seed))
            if show:
                print(odd[-1], flush=True)
    worker.process.kill()
    return {"times": times, "outcomes": dict(kinds.most_common()), "odd": odd}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Count, CPU seconds and outcomes."""
    times = sorted(found["times"])
    count = len(times)
    seconds = {
        "mean": round(sum(times) / count, 4),
        "median": times[count // 2],
        "p99": times[int(0.99 * count)],
        "slowest": times[-1],
    }
    over = sum(t > LIMIT for t in times)
    rest = {k: found[k] for k in ("outcomes", "odd", "times")}
    return {"count": count, "cpu_seconds": seconds, "over_limit": over, **rest}


def _short(kind: str) -> str:
    """Kinds without the numbers and names of one text."""
    return " ".join(w for w in kind.split() if not any(c in w for c in "0123456789'*/"))[:90]


def main(count: int, target: Path) -> None:
    """Measure up to ``count`` texts, going on from what the result holds."""
    found: dict[str, Any] = {"times": [], "outcomes": {}, "odd": []}
    if target.exists():
        found = json.loads(target.read_text())
    while len(found["times"]) < count:
        done = len(found["times"])
        found = measure(done, min(done + 100, count), found, show=True)
        lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in summary(found).items()]
        target.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, RESULT)
