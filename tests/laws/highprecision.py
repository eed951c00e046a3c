"""Closed forms against integrals in fifty digits, at random parameters.

``python tests/laws/highprecision.py [POINTS]`` checks every closed form at POINTS points (default 20; pairs at
a quarter of them), going on where an earlier run stopped, and writes the largest relative differences to
``results/highprecision.json``; remove that to begin again. The default test suite takes one point of each.
One variable: composite Gauss-Legendre panels split at the kinks, doubled until thirty digits agree. Pairs:
E[f(u) E[g(v) | u]], the inner expectation a checked form of one variable.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import mpmath as mp
import sympy as sp

from varflow.laws.expectation import GaussianExpectation, Normal, derivative, expect

RESULT = Path(__file__).parent / "results" / "highprecision.json"
DIGITS, NODES = 50, 40
x, u, v = sp.symbols("x u v", real=True)
m = sp.Symbol("m", real=True)
q, q1, q2, a, b = sp.symbols("q q1 q2 a b", positive=True)
c = sp.Symbol("c", real=True)
PAIR = {(u, u): q1, (u, v): c, (v, u): c, (v, v): q2}
Point = dict[sp.Symbol, sp.Rational]


def pw(*cases: Any) -> sp.Expr:
    """A Piecewise."""
    return sp.Piecewise(*cases)


def relu(z: sp.Expr) -> sp.Expr:
    return pw((z, z > 0), (0, True))


def gelu(z: sp.Expr) -> sp.Expr:
    return z * (1 + sp.erf(z / sp.sqrt(2))) / 2


HARDSIGMOID = pw((0, x <= -3), (x / 6 + sp.Rational(1, 2), x < 3), (1, True))
LINEAR, CUBIC = 2 * x - a, x**3 - a * x**2 + b
# name: (function of x, its kinks)
ONE: dict[str, tuple[sp.Expr, tuple[sp.Expr | int, ...]]] = {
    "relu": (relu(x), (0,)),
    "leaky_relu": (pw((x, x > 0), (a * x, True)), (0,)),
    "relu6": (pw((0, x <= 0), (x, x < 6), (6, True)), (0, 6)),
    "elu": (pw((x, x > 0), (a * (sp.exp(x) - 1), True)), (0,)),
    "celu": (pw((x, x > 0), (a * (sp.exp(x / a) - 1), True)), (0,)),
    "selu": (b * pw((x, x > 0), (a * (sp.exp(x) - 1), True)), (0,)),
    "gelu": (gelu(x), ()),
    "erf": (sp.erf(x), ()),
    "erf_scaled": (sp.erf(a * x), ()),
    "sin": (sp.sin(x), ()),
    "cos": (sp.cos(x), ()),
    "siren": (sp.sin(3 * a * x), ()),
    "snake": (x + sp.sin(a * x) ** 2 / a, ()),
    "gaussian": (sp.exp(-(x**2)), ()),
    "gaussian_scaled": (sp.exp(-a * x**2 + b * x), ()),
    "exp": (sp.exp(x), ()),
    "exp_scaled": (sp.exp(a * x / 2), ()),
    "abs": (sp.Abs(x), (0,)),
    "sign": (sp.sign(x), (0,)),
    "step": (sp.Heaviside(x), (0,)),
    "relu_squared": (relu(x) ** 2, (0,)),
    "relu_cubed": (relu(x) ** 3, (0,)),
    "relu_fifth": (relu(x) ** 5, (0,)),
    "hardtanh": (pw((-a, x < -a), (x, x < b), (b, True)), (-a, b)),
    "hardswish": (x * HARDSIGMOID, (-3, 3)),
    "hardsigmoid": (HARDSIGMOID, (-3, 3)),
    "hardshrink": (pw((x, x > a), (x, x < -a), (0, True)), (-a, a)),
    "softshrink": (pw((x - a, x > a), (x + a, x < -a), (0, True)), (-a, a)),
    "threshold": (pw((x, x > a), (b, True)), (a,)),
    "polynomial": (CUBIC, ()),
    "piecewise_polynomial": (pw((CUBIC, x < -1), (LINEAR, x < 2), (x**2, True)), (-1, 2)),
    "exp_piece": (pw((x * sp.exp(a * x), x < 1), (sp.exp(-b * x), True)), (1,)),
    "quadratic_piece": (pw((sp.exp(-a * x**2), x < 1), (x**2 * sp.exp(-x), True)), (1,)),
    "exp_erf": (x * sp.exp(a * x / 2) * sp.erf(x), ()),
    "gelu_exp": (gelu(x) * sp.exp(-(x**2) / 2), ()),
    "sin_power": (x**2 * sp.sin(a * x + b), ()),
    "sin_exp": (sp.exp(x / 2) * sp.cos(a * x), ()),
    "sinh": (sp.sinh(a * x / 2), ()),
    "abs_decay": (sp.exp(-a * sp.Abs(x)), (0,)),
    "bent_identity": ((sp.sqrt(x**2 + 1) - 1) / 2 + x, ()),
    "squareplus": ((x + sp.sqrt(x**2 + b)) / 2, ()),
    "rational": (x**2 / (a + b * x**2) ** 2, ()),
    "relu_sin": (relu(x) * sp.sin(a * x), (0,)),
    "sin_or_linear": (pw((sp.sin(x), x > 0), (x, True)), (0,)),
    "half_snake": (pw((x + sp.sin(a * x) ** 2 / a, x > 0), (x, True)), (0,)),
    "cut_cos_gaussian": (pw((sp.cos(3 * x) * sp.exp(-(x**2) / 3), x > b), (0, True)), (b,)),
    "window_cos": (pw((x * sp.cos(2 * x + a), sp.Abs(x) < b), (sp.exp(x / 2), True)), (-b, b)),
    "exp_sin_piece": (pw((sp.exp(a * x) * sp.sin(x), x < 0), (sp.sin(x), True)), (0,)),
    "step_erf": (pw((sp.erf(x), x > b), (x, True)), (b,)),
    "two_erf": (sp.erf(x) * sp.erf(2 * x - a), ()),
    "cubic_gelu": (x**2 * gelu(x), ()),
}
USES: dict[str, Callable[[sp.Expr], sp.Expr]] = {
    "mean": lambda f: f,
    "square": lambda f: f**2,
    "slope": lambda f: derivative(f, x) ** 2,
    "curvature": lambda f: derivative(derivative(f, x), x) ** 2,
}
CENTRED = ("bent_identity", "squareplus", "rational")
"""Only at mean zero: elsewhere these have no closed form (the others: products of two erf, Owen's T)."""


@lru_cache(maxsize=512)
def one(f: sp.Expr, centred: bool = False) -> sp.Expr:
    """E f(x), x ~ N(m, q)."""
    body = f if centred else f.xreplace({x: x + m})
    return expect(body, {x: Normal()}, lambda s, t: q)


def closed_one(f: sp.Expr, name: str) -> tuple[sp.Expr, bool]:
    """The closed form, and whether it is for mean zero alone."""
    if name not in CENTRED:
        value = one(f)
        if not value.has(GaussianExpectation):
            return value, False
    return one(f, True), True


def two(f: sp.Expr) -> sp.Expr:
    """E f(u, v) of a zero-mean pair with variances q1, q2 and covariance c."""
    return expect(f, {u: Normal(), v: Normal()}, lambda s, t: PAIR[s, t])


def at_border(f: sp.Expr, sign: int) -> sp.Expr:
    """E f(u, v) of variances q and correlation +-1, stated as such."""
    return expect(f, {u: Normal(), v: Normal()}, lambda s, t: q if s == t else sign * q)


def number(formula: sp.Expr, point: Point) -> mp.mpf:
    """A formula to DIGITS digits."""
    with mp.workdps(DIGITS):
        return mp.mpf(str(sp.N(formula.subs(point), DIGITS, maxn=4000)))


@lru_cache(maxsize=4)
def legendre(n: int) -> list[tuple[mp.mpf, mp.mpf]]:
    """Nodes and weights on [-1, 1]."""
    with mp.workdps(DIGITS + 15):
        rule = []
        for k in range(1, n + 1):
            z = mp.cos(mp.pi * (k - mp.mpf(1) / 4) / (n + mp.mpf(1) / 2))
            for _ in range(12):
                old, value = mp.mpf(1), z
                for j in range(2, n + 1):
                    old, value = value, ((2 * j - 1) * z * value - (j - 1) * old) / j
                slope = n * (z * value - old) / (z * z - 1)
                z -= value / slope
            rule.append((z, 2 / ((1 - z * z) * slope**2)))
        return rule


def panels(f: Callable[[mp.mpf], mp.mpf], edges: list[mp.mpf], parts: int) -> mp.mpf:
    total = mp.mpf(0)
    for low, high in pairwise(edges):
        half = (high - low) / (2 * parts)
        for k in range(parts):
            middle = low + (2 * k + 1) * half
            total += half * sum(w * f(middle + half * z) for z, w in legendre(NODES))
    return total


def integral(f: sp.Expr, variance: sp.Rational, mean: sp.Rational, kinks: list[mp.mpf]) -> mp.mpf:
    """E f(x), x ~ N(mean, variance), to thirty digits and more."""
    with mp.workdps(DIGITS):
        body = sp.lambdify(x, f, "mpmath")
        s2, centre = mp.mpf(variance.p) / variance.q, mp.mpf(mean.p) / mean.q
        s = mp.sqrt(s2)

        def weighted(z: mp.mpf) -> mp.mpf:
            return body(z) * mp.exp(-((z - centre) ** 2) / (2 * s2))

        low, high = centre - 17 * s, centre + 17 * s
        inside = [k for k in kinks if low < k < high]
        edges = sorted({low, high, *[centre + k * s for k in (-8, -4, -2, 0, 2, 4, 8)], *inside})
        parts, last = 1, None
        while True:
            value = panels(weighted, edges, parts) / mp.sqrt(2 * mp.pi * s2)
            if last is not None and abs(value - last) <= mp.mpf(10) ** -32 * abs(value):
                return value
            if parts > 32 or (last is not None and abs(value) < mp.mpf(10) ** -40):
                return value
            parts, last = 2 * parts, value


def point_of(rng: random.Random) -> Point:
    """Random parameters: variances from 1/20 to 5."""

    def spread(low: float, high: float) -> sp.Rational:
        return sp.Rational(round(1000 * low * (high / low) ** rng.random()), 1000)

    return {
        q: spread(0.05, 5),
        a: spread(0.2, 1.2),
        b: spread(0.3, 2),
        m: sp.Rational(rng.randint(-1500, 1500), 1000),
    }


def difference(got: mp.mpf, want: mp.mpf) -> float:
    """Relative, or absolute where both vanish."""
    with mp.workdps(DIGITS):
        scale = abs(want) if abs(want) > mp.mpf(10) ** -35 else mp.mpf(1)
        return float(abs(got - want) / scale)


def check_one(name: str, use: str, seed: int) -> float | None:
    """The relative difference of a closed form from its integral; None if there is no closed form."""
    f, kinks = ONE[name]
    body = USES[use](f)
    formula, centred = closed_one(body, name)
    if formula.has(GaussianExpectation):
        return None
    point = point_of(random.Random(f"{name} {use} {seed}"))
    if centred:
        point[m] = sp.Integer(0)
    with mp.workdps(DIGITS):
        places = [mp.mpf(str(sp.N(sp.sympify(k).subs(point), DIGITS))) for k in kinks]
    want = integral(
        body.subs({k: w for k, w in point.items() if k != x}), point[q], point[m], places
    )
    return difference(number(formula, point), want)


SLOPED = {"relu": relu, "abs": sp.Abs, "leaky": lambda z: pw((z, z > 0), (z / 5, True))}
SMOOTH = {"gelu": gelu, "erf": sp.erf, "sin": sp.sin, "cos": sp.cos, "exp": lambda z: sp.exp(z / 2)}
OTHERS = {
    "gaussian": lambda z: sp.exp(-(z**2)),
    "sign": sp.sign,
    "step": sp.Heaviside,
    "relu_squared": lambda z: relu(z) ** 2,
    "relu_cubed": lambda z: relu(z) ** 3,
    "cubic": lambda z: z**3 - z,
    "selu_like": lambda z: pw((z, z > 0), (sp.exp(z) - 1, True)),
}
SHIFTED = {
    "hardtanh": lambda z: pw((-1, z < -1), (z, z < 2), (2, True)),
    "relu6": lambda z: pw((0, z <= 0), (z, z < 6), (6, True)),
    "hardswish": lambda z: z * HARDSIGMOID.xreplace({x: z}),
    "softshrink": lambda z: pw((z - 1, z > 1), (z + 1, z < -1), (0, True)),
    "relu_less_one": lambda z: relu(z - 1),
    "box": lambda z: pw((0, z < -1), (1, z < 1), (0, True)),
    "gelu_shifted": lambda z: (1 + sp.erf((z - 1) / sp.sqrt(2))) / 2,
}
"""Kinks or centres away from zero: their kernels hold the distribution function of two normals."""
KINKS = {"hardtanh": (-1, 2), "relu6": (0, 6), "hardswish": (-3, 3), "softshrink": (-1, 1), "box": (-1, 1),
         "relu_less_one": (1,)}
FUNCTIONS: dict[str, Callable[[sp.Expr], sp.Expr]] = {**SLOPED, **SMOOTH, **OTHERS, **SHIFTED}
PAIRS = (
    *((n, n) for n in (*SLOPED, *SMOOTH, "gaussian", "sign", "step", "relu_squared", "relu_cubed")),
    *(("relu", "sign"), ("relu", "step"), ("relu", "erf"), ("relu", "gelu"), ("relu", "exp")),
    *(("sign", "erf"), ("gelu", "exp"), ("sin", "exp"), ("gaussian", "erf"), ("step", "gelu")),
    *(("relu_cubed", "abs"), ("cubic", "relu"), ("cubic", "gelu"), ("cos", "gaussian")),
    *(("relu", "gaussian"), ("abs", "erf"), ("cubic", "cubic"), ("exp", "step")),
    *((n, n) for n in SHIFTED),
    *(("relu", "relu6"), ("hardtanh", "sign"), ("softshrink", "relu_less_one"), ("box", "gelu_shifted")),
)


def pair_point(rng: random.Random) -> Point:
    first = point_of(rng)[q] / 2 + sp.Rational(1, 10)
    second = point_of(rng)[q] / 2 + sp.Rational(1, 10)
    r = sp.Rational(rng.randint(-850, 850), 1000)
    bound = sp.Rational(str(round(float(sp.sqrt(first * second)), 6)))
    return {q1: first, q2: second, c: r * bound}


def conditional(f: sp.Expr, g: sp.Expr, point: Point, kinks: tuple[int, ...] = (0,)) -> mp.mpf:
    """E[f(u) E[g(v) | u]] as one integral over u, split at the kinks of f."""
    inner = one(g.xreplace({v: x})).subs(
        {m: point[c] / point[q1] * x, q: point[q2] - point[c] ** 2 / point[q1]}
    )
    return integral(f.xreplace({u: x}) * inner, point[q1], sp.Integer(0), [mp.mpf(k) for k in kinks])


def check_pair(first: str, second: str, seed: int) -> float:
    """A kernel against the conditional integral."""
    f, g = FUNCTIONS[first](u), FUNCTIONS[second](v)
    point = pair_point(random.Random(f"{first} {second} {seed}"))
    return difference(number(two(f * g), point), conditional(f, g, point, KINKS.get(first, (0,))))


def check_limits(first: str, second: str, seed: int) -> float:
    """At c = 0 the product of means; at c = +-q the expectation of one variable."""
    f, g = FUNCTIONS[first], FUNCTIONS[second]
    kernel, shifted = two(f(u) * g(v)), not SHIFTED.keys().isdisjoint((first, second))
    point = pair_point(random.Random(f"{first} {second} {seed}"))
    variance = point[q1]
    means = one(f(x)).subs(m, 0).subs(q, variance) * one(g(x)).subs(m, 0).subs(q, point[q2])
    worst = difference(number(kernel, {**point, c: sp.Integer(0)}), number(means, {}))
    for s in (1, -1):
        got = number(at_border(f(u) * g(v), s) if shifted else kernel, {q: variance, q1: variance, q2: variance,
                                                                       c: s * variance})
        want = number(one(f(x) * g(s * x), True), {q: variance})
        worst = max(worst, difference(got, want))
    return worst


def check_price(first: str, second: str, seed: int) -> float:
    """dE/dc of the closed form against E of the derivatives, densities at jumps included."""
    f, g = FUNCTIONS[first](u), FUNCTIONS[second](v)
    point = pair_point(random.Random(f"{first} {second} {seed}"))
    price = GaussianExpectation(f * g, (u, v), (q1, c, q2)).diff(c)
    open_ = {g: closed(g) for g in price.atoms(GaussianExpectation)}
    return difference(number(two(f * g).diff(c), point), number(price.xreplace(open_), point))


def closed(expectation: GaussianExpectation) -> sp.Expr:
    """The same expectation, its closed form asked for."""
    names, law = expectation.variables, expectation.covariance
    table = {(names[0], names[0]): law[0], (names[-1], names[-1]): law[-1]}
    every = {z: Normal() for z in names}
    return expect(expectation.integrand, every, lambda s, t: table.get((s, t), law[len(law) // 2]))


def measure(seed: int, found: dict[str, Any]) -> dict[str, Any]:
    """The largest relative differences of every form so far, one more point of each; pairs at every fourth."""
    single, pairs = dict(found["one_variable"]), dict(found["pairs"])
    missing = set(found["no_closed_form"])
    for name in ONE:
        for use in USES:
            error = None if f"{name} {use}" in missing else check_one(name, use, seed)
            if error is None:
                missing.add(f"{name} {use}")
            else:
                single[f"{name} {use}"] = max(error, single.get(f"{name} {use}", 0.0))
    for f, g in PAIRS if seed % 4 == 0 else ():
        errors = [check(f, g, seed) for check in (check_pair, check_limits, check_price)]
        pairs[f"{f} {g}"] = max(*errors, pairs.get(f"{f} {g}", 0.0))
    return {
        "points": seed + 1,
        "one_variable": single,
        "no_closed_form": sorted(missing),
        "pairs": pairs,
    }


def main(points: int) -> None:
    """Go on from the results there are, up to so many points."""
    found: dict[str, Any] = {"points": 0, "one_variable": {}, "no_closed_form": [], "pairs": {}}
    if RESULT.exists():
        found = json.loads(RESULT.read_text())
    for seed in range(found["points"], points):
        found = measure(seed, found)
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
        print(
            seed + 1, max(found["one_variable"].values()), max(found["pairs"].values()), flush=True
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
