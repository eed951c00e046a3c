"""Gains of random activation texts: each must be answered, or refused in one clear error, at once.

``python tests/laws/random_activations.py [COUNT [WORKERS]]`` measures COUNT texts (default 10,000) in WORKERS
processes, going on where an earlier run stopped, and writes ``results/random_activations.json`` beside this
file. Every text runs through ``varflow.gain`` in a worker process, so that one without an end is seen, counted
and stopped; times are CPU seconds of that process. Slow ones are measured once more at the end, each in a process of
its own, and the lesser time counts: what else runs on a machine lengthens them. Every fiftieth answer, E f and
E f^2, is compared with adaptive Clenshaw-Curtis panels in mpmath, which know nothing of the engine.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from varflow.activations import ACTIVATIONS
from varflow.grammar import FUNCTIONS

RESULT = Path(__file__).parent / "results" / "random_activations.json"
LIMIT = 2.0
PATIENCE = 120.0
CHECKED, AGREED = 50, 1e-10
"""Every how manieth answer is compared with mpmath, and how close it must be, in units of E abs(f^k)."""
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


def by_mpmath(made: str, q: str, mean: str, power: int) -> tuple[float, float, float]:
    """E f^power, E abs(f^power) and an estimate of the error, by panels halved where they are rough."""
    import mpmath as mp
    import sympy as sp

    from varflow.expressions import parse_activation
    from varflow.symbols import X

    f = sp.lambdify(X, parse_activation(made), "mpmath")
    sigma, centre = mp.sqrt(mp.mpf(q)), mp.mpf(mean)

    def integrand(z: Any) -> Any:
        return mp.re(f(centre + sigma * z)) ** power * mp.npdf(z)

    def panel(a: Any, b: Any) -> tuple[Any, Any]:
        half, middle = (b - a) / 2, (a + b) / 2
        values = [w * integrand(middle + half * x) for x, w in nodes]
        return half * mp.fsum(values), half * mp.fsum(map(abs, values))

    with mp.workdps(25):
        nodes = _clenshaw_curtis(16)
        borders = [mp.mpf(k) / 2 + mp.mpf(1) / 37 for k in range(-40, 41)]
        rough = [(a, b, *panel(a, b)) for a, b in pairwise(borders)]
        total = size = error = mp.mpf(0)
        for level in range(46):
            scale = size + mp.fsum(p[3] for p in rough)
            halves: list[Any] = []
            for a, b, value, _ in rough:
                middle = (a + b) / 2
                left, right = (a, middle, *panel(a, middle)), (middle, b, *panel(middle, b))
                gap = abs(left[2] + right[2] - value)
                if gap < 1e-14 * scale or level == 45 or len(halves) > 160:
                    total += left[2] + right[2]
                    size, error = size + left[3] + right[3], error + gap
                else:
                    halves += [left, right]
            rough = halves
    return float(total), float(size), float(error)


def _clenshaw_curtis(n: int) -> list[tuple[Any, Any]]:
    """Nodes and weights of the even rule n on [-1, 1]; it sees jumps beside its ends (Clenshaw and Curtis 1960)."""
    import mpmath as mp

    def weight(k: int) -> Any:
        waves = [mp.cos(2 * j * k * mp.pi / n) / (4 * j * j - 1) for j in range(1, n // 2 + 1)]
        return (1 if k in (0, n) else 2) * (1 - 2 * mp.fsum(waves) + waves[-1]) / n

    return [(mp.cos(k * mp.pi / n), weight(k)) for k in range(n + 1)]


def gap(made: str, q: str, mean: str) -> float | None:
    """How far E f and E f^2 are from mpmath's, in units of E abs(f^k); None where those are not sure themselves."""
    from varflow.gain import gain

    found = gain(made, q=float(q), mean=float(mean)).numeric()
    gaps = []
    for power, key in ((1, "mean"), (2, "second_moment")):
        want, size, error = by_mpmath(made, q, mean, power)
        if not math.isfinite(size) or error > AGREED / 10 * size:
            return None
        gaps.append(abs((found[key] or 0.0) - want) / (size or 1.0))
    return max(gaps)


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
        if seed % CHECKED == 0 and kind == "answer":
            pipe.send(_checked(seed))


def _checked(seed: int) -> str:
    """How the answer compares with mpmath's."""
    try:
        far = gap(*sample(seed))
    except Exception as error:
        return f"mpmath has no value: {type(error).__name__}"
    if far is None:
        return "mpmath is not sure"
    return "agrees with mpmath" if far <= AGREED else f"differs from mpmath by {far:.1e}"


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

    def ask(self, seed: int) -> tuple[str, float, str]:
        """The outcome, its CPU seconds, and the comparison (empty: none)."""
        self.pipe.send(seed)
        if not self.pipe.poll(PATIENCE):
            self.stop()
            self.start()
            return "BUG no end", PATIENCE, ""
        kind, seconds = self.pipe.recv()
        if seed % CHECKED or kind != "answer":
            return kind, seconds, ""
        if not self.pipe.poll(PATIENCE):
            self.stop()
            self.start()
            return kind, seconds, "mpmath has no end"
        return kind, seconds, self.pipe.recv()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def measure(
    first: int, last: int, found: dict[str, Any], workers: list[_Worker] | None = None
) -> dict[str, Any]:
    """The outcomes of seeds from ``first`` to before ``last``, added to those found before."""
    own = workers is None
    crew = [_Worker()] if workers is None else workers
    with ThreadPoolExecutor(len(crew)) as pool:
        parts = list(
            pool.map(lambda k: [crew[k].ask(s) for s in range(first + k, last, len(crew))], range(len(crew)))
        )
    asked = [parts[k % len(crew)][k // len(crew)] for k in range(last - first)]
    for worker in crew if own else []:
        worker.stop()
    times, odd = list(found["times"]), list(found["odd"])
    kinds, checks = Counter(found["outcomes"]), Counter(found.get("checks", {}))
    for seed, (kind, seconds, check) in zip(range(first, last), asked, strict=True):
        times.append(round(seconds, 2))
        kinds[_short(kind)] += 1
        checks[_short(check)] += bool(check)
        if seconds > LIMIT or kind.startswith(("BUG", "not finite")) or check.startswith("differs"):
            odd.append({"seed": seed, "seconds": round(seconds, 2), "kind": check or kind})
            odd[-1]["text"] = " ; ".join(sample(seed))
    checks = Counter({k: n for k, n in checks.items() if n})
    return {"times": times, "outcomes": dict(kinds.most_common()), "checks": dict(checks), "odd": odd}


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
    kept = ("outcomes", "checks", "odd", "measured_again", "times")
    rest = {k: found[k] for k in kept if k in found}
    return {"count": count, "cpu_seconds": seconds, "over_limit": over, **rest}


def measure_again(found: dict[str, Any]) -> dict[str, Any]:
    """The times of slow texts, replaced where they are shorter in a process of their own."""
    times = list(found["times"])
    slow = [seed for seed, seconds in enumerate(times) if seconds > LIMIT / 2]
    for seed in slow:
        worker = _Worker()
        times[seed] = min(times[seed], round(worker.ask(seed)[1], 2))
        worker.stop()
    odd = [{**o, "seconds": times[o["seed"]]} for o in found["odd"]]
    odd = [o for o in odd if o["seconds"] > LIMIT or o["kind"].startswith(("BUG", "not finite", "differs"))]
    return {**found, "times": times, "odd": odd, "measured_again": slow}


def _write(found: dict[str, Any], target: Path) -> None:
    lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in summary(found).items()]
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _short(kind: str) -> str:
    """Kinds without the numbers and names of one text."""
    return " ".join(w for w in kind.split() if not any(c in w for c in "0123456789'*/"))[:90]


def main(count: int, target: Path, processes: int = 1) -> None:
    """Measure up to ``count`` texts, going on from what the result holds."""
    found: dict[str, Any] = {"times": [], "outcomes": {}, "checks": {}, "odd": []}
    if target.exists():
        found = json.loads(target.read_text())
    workers = [_Worker() for _ in range(processes)]
    while len(found["times"]) < count:
        done, known = len(found["times"]), len(found["odd"])
        found = measure(done, min(done + 100, count), found, workers)
        _write(found, target)
        print(len(found["times"]), *found["odd"][known:], sep="\n", flush=True)
    for worker in workers:
        worker.stop()
    _write(measure_again(found), target)


if __name__ == "__main__":
    given = [int(a) for a in sys.argv[1:]]
    main(given[0] if given else 10_000, RESULT, given[1] if len(given) > 1 else 1)
