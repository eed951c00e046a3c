"""Gaussian moments and kernels as numbers: varflow against scipy.integrate, and against neural-tangents.

python benchmarks/kernels.py              scipy: speed ratio and agreement
python benchmarks/kernels.py kernels.npz  compares with closed forms written by the command below
python benchmarks/kernels.py --write kernels.npz   (in an environment with neural-tangents)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

VARIANCES = np.array([1e-4, 0.3, 1.0, 7.0, 1e4])
CORRELATIONS = np.array([-0.999, -0.5, 0.0, 0.3, 0.9, 0.99, 0.99999, 1.0])


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What ``run`` returns, and its processor time in seconds, the best of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        result = run()
        times.append(time.process_time() - start)
    return result, min(times)


def functions() -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """Expressions in x, and the same as functions of floats."""
    import sympy as sp
    from scipy.special import expit

    from varflow.activations import ACTIVATIONS
    from varflow.symbols import X

    return {
        "tanh": (sp.tanh(X), np.tanh),
        "silu": (ACTIVATIONS["silu"].at(), lambda x: x * expit(x)),
        "mish": (ACTIVATIONS["mish"].at(), lambda x: x * np.tanh(np.logaddexp(0, x))),
        "relu": (ACTIVATIONS["relu"].at(), lambda x: max(x, 0.0)),
        "hardtanh": (ACTIVATIONS["hardtanh"].at(), lambda x: min(max(x, -1.0), 1.0)),
    }


def moments() -> None:
    from scipy.integrate import quad

    from varflow.laws.grids import gaussian_moment

    print("E f^2       scipy quad, ms   varflow, ms   10,000 variances, s   largest difference")
    for name, (f, number) in functions().items():

        def one(q: float, number: Callable[[Any], Any] = number) -> float:
            density = 1 / np.sqrt(2 * np.pi)
            inside = lambda z: number(np.sqrt(q) * z) ** 2 * np.exp(-z * z / 2) * density  # noqa: E731
            return float(quad(inside, -13, 13, epsabs=0, epsrel=1e-11, limit=400)[0])

        want, slow = timed(lambda one=one: np.array([one(q) for q in VARIANCES]))
        got, quick = timed(lambda f=f: np.array([gaussian_moment(f**2, q) for q in VARIANCES]))
        _, grid = timed(lambda f=f: gaussian_moment(f**2, np.geomspace(1e-4, 1e4, 10_000)))
        n = len(VARIANCES)
        gap = np.max(np.abs(got / want - 1))
        print(f"{name:10} {1e3 * slow / n:12.2f} {1e3 * quick / n:14.2f} {grid:16.2f} {gap:20.1e}")


def kernels() -> None:
    from scipy.integrate import dblquad

    from varflow.laws.grids import gaussian_kernel, gaussian_moment

    print(
        "E f(u) f(v)   scipy dblquad, ms   varflow, ms   100 x 100 (q, c), s   pairs of 10,000 q, s   difference"
    )
    rng = np.random.default_rng(0)
    q1, q2 = 10 ** rng.uniform(-2, 2, (2, 10_000))
    r = rng.uniform(-1, 1, 10_000)
    for name, (f, number) in functions().items():

        def one(c: float, number: Callable[[Any], Any] = number) -> float:
            s = np.sqrt(1 - c * c)
            inside = lambda w, z: number(z) * number(c * z + s * w) * np.exp(-(z * z + w * w) / 2)  # noqa: E731
            return float(dblquad(inside, -9, 9, -9, 9, epsabs=1e-9, epsrel=1e-9)[0]) / (2 * np.pi)

        start = time.process_time()
        want = one(0.6)
        slow = time.process_time() - start
        got, quick = timed(lambda f=f: float(gaussian_kernel(f, f, 1.0, 1.0, 0.6)))
        grid = np.geomspace(1e-2, 1e2, 100)[:, None], np.linspace(-1, 1, 100)
        _, many = timed(lambda f=f, grid=grid: gaussian_kernel(f, f, grid[0], grid[0], grid[1]))
        _, mixed = timed(lambda f=f: gaussian_kernel(f, f, q1, q2, r))
        gap = abs(got - want) / float(gaussian_moment(f**2, 1.0))
        print(
            f"{name:10} {1e3 * slow:17.0f} {1e3 * quick:15.2f} {many:17.2f} {mixed:21.2f} {gap:17.1e}"
        )


def expressions() -> dict[str, Any]:
    """What neural-tangents calls Relu, Erf, Gelu, Sin, Gaussian and Hermite (degree 3), in x."""
    import sympy as sp

    from varflow.symbols import X

    return {
        "relu": sp.Max(X, 0),
        "erf": sp.erf(X),
        "gelu": X * (1 + sp.erf(X / sp.sqrt(2))) / 2,
        "sin": sp.sin(X),
        "gaussian": sp.exp(-(X**2)),
        "hermite": (X**3 - 3 * X) / sp.sqrt(6),
    }


def compare(path: str) -> None:
    """Against kernels that ``--write`` saved."""
    from varflow.laws.grids import gaussian_kernel, gaussian_moment

    theirs = np.load(path)
    print("E f(u) f(v)   largest difference from neural-tangents, of sqrt(E f^2 E f^2)")
    for name, f in expressions().items():
        if name in theirs:
            rows = theirs["q"] == 1 if name == "hermite" else theirs["q"] > 0  # theirs is for q = 1
            q = theirs["q"][rows]
            got = gaussian_kernel(f, f, q[:, None], q[:, None], theirs["r"])
            scale = gaussian_moment(f**2, q)[:, None]
            print(f"{name:10} {np.max(np.abs(got - theirs[name][rows]) / scale):20.1e}")


def write(path: str) -> None:
    """Closed forms of neural-tangents, float64, at every variance and correlation."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    from neural_tangents import stax

    layers = {
        "relu": stax.Relu(), "erf": stax.Erf(), "gelu": stax.Gelu(), "sin": stax.Sin(),
        "gaussian": stax.Gaussian(), "hermite": stax.Hermite(3),
    }  # fmt: skip
    out: dict[str, Any] = {}
    for name, layer in layers.items():
        kernel = stax.serial(stax.Dense(1), layer)[2]
        table = np.empty((len(VARIANCES), len(CORRELATIONS)))
        for i, q in enumerate(VARIANCES):
            for j, c in enumerate(CORRELATIONS):
                x = jnp.array([[np.sqrt(q), 0.0]]) * np.sqrt(2)
                y = jnp.array([[c, np.sqrt(1 - c * c)]]) * np.sqrt(2 * q)
                table[i, j] = kernel(x, y, get="nngp")[0, 0]
        out[name] = table
    np.savez(path, q=VARIANCES, r=CORRELATIONS, **out)


if __name__ == "__main__":
    if "--write" in sys.argv:
        write(sys.argv[sys.argv.index("--write") + 1])
    elif len(sys.argv) > 1:
        compare(sys.argv[1])
    else:
        moments()
        kernels()
