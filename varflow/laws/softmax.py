"""Moments of softmax rows over Gaussian logits: sympy functions that are integrals, and their numbers.

Rows a and b are softmaxes over T logits l_i and l'_i, independent from i to i, of variance v and correlation r. With
1/S^k = int x^(k-1) e^(-x S) dx / (k-1)! each moment is an integral over one variable (one row) or two, of products of
n_ij(x, y) = E[(x e^l)^i (y e^l')^j e^(-x e^l - y e^l')]: E sum a b = T int int n_11 n_00^(T-1) dx/x dy/y, and so on.
On logarithmic scales the integrands are analytic in a strip and fall off at both ends, where the trapezoidal rule
converges exponentially (Trefethen and Weideman 2014, SIAM Review 56, theorem 5.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.laws.distributions import Inaccurate

Array = npt.NDArray[np.float64]
STEP = 0.25
"""Distance of points: the strip is pi/2 wide on both sides, so that the error is about exp(-pi^2 / 0.25)."""
PER_SIGMA, REACH = 0.7, 9.0
"""Distance of points of a Gaussian in its standard deviations, and how far they go."""
FAR = 40.0
LARGEST_VARIANCE = 500.0


class SoftmaxMoment(sp.Function):  # type: ignore[misc]
    """A moment of two softmax rows: (v, r, T), the variance of a logit, its correlation between the rows, and the
    number of logits. Real, between 0 and 1."""

    nargs = 3
    moment: Callable[[float, float, float], float]

    def _eval_is_extended_real(self) -> bool:
        return True

    def _eval_is_finite(self) -> bool:
        return True

    def _eval_evalf(self, prec: int) -> sp.Expr | None:
        if not all(a.is_number for a in self.args):
            return None
        return sp.Float(type(self).by_numpy(*(float(a) for a in self.args)))

    @classmethod
    def by_numpy(cls, v: Any, r: Any, tokens: Any) -> Any:
        """The moment of arrays, to about 1e-11."""
        run = np.vectorize(lambda *x: cls.moment(*(float(n) for n in x)), otypes=[float])
        return run(v, r, tokens)[()]

    def _rows(self, printer: Any) -> tuple[str, str]:
        """The law of the rows in LaTeX; whether there is one or two."""
        v, r, tokens = (printer._print(a) for a in self.args)
        if self.args[1] == 1:
            return rf"a=\mathrm{{softmax}}(l),\; l\sim\mathcal{{N}}\left(0,{v}\,I_{{{tokens}}}\right)", "one"
        return (rf"a=\mathrm{{softmax}}(l),\; b=\mathrm{{softmax}}(l'),\; l,l'\sim\mathcal{{N}}\left(0,{v}\,"
                rf"I_{{{tokens}}}\right),\; \mathrm{{corr}}(l_i,l'_i)={r}"), "two"

    def _latex(self, printer: Any, exp: Any = None) -> str:
        law, rows = self._rows(printer)
        text = rf"\mathbb{{E}}_{{{law}}}\left[{self.summed[rows]}\right]"
        return text if exp is None else rf"\left({text}\right)^{{{exp}}}"

    summed: dict[str, str]


class SoftmaxOverlap(SoftmaxMoment):
    """E sum_i a_i b_i; of one row (r = 1) the expected sum of squares, 1/T where logits vanish."""

    summed = {"one": r"\sum_i a_i^2", "two": r"\sum_i a_i b_i"}

    @classmethod
    def eval(cls, v: sp.Expr, r: sp.Expr, tokens: sp.Expr) -> sp.Expr | None:
        """Uniform rows, or rows that are independent, share 1/T."""
        return 1 / tokens if v == 0 or r == 0 or tokens == 1 else None

    def _eval_is_positive(self) -> bool:
        return True

    def _sympystr(self, printer: Any) -> str:
        v, r, tokens = (printer._print(a) for a in self.args)
        return f"overlap({v}, {tokens})" if r == "1" else f"overlap({v}, {r}, {tokens})"

    @staticmethod
    def moment(v: float, r: float, tokens: float) -> float:
        """See the class."""
        return moments(v, r, tokens)[0]


class SoftmaxResponse(SoftmaxMoment):
    """E tr(J_a J_b), J_a = diag(a) - a a^T the softmax's derivative: sum a b - sum a^2 b - sum a b^2 + (sum a b)^2."""

    summed = {
        "one": r"\sum_i a_i^2 - 2\sum_i a_i^3 + \left(\sum_i a_i^2\right)^2",
        "two": r"\sum_i a_i b_i - \sum_i a_i b_i (a_i + b_i) + \left(\sum_i a_i b_i\right)^2",
    }

    @classmethod
    def eval(cls, v: sp.Expr, r: sp.Expr, tokens: sp.Expr) -> sp.Expr | None:
        """(T - 1)/T^2 of uniform rows."""
        return (tokens - 1) / tokens**2 if v == 0 or tokens == 1 else None

    def _eval_is_nonnegative(self) -> bool | None:
        return True if self.args[1] == 1 else None

    def _sympystr(self, printer: Any) -> str:
        v, r, tokens = (printer._print(a) for a in self.args)
        return f"response({v}, {tokens})" if r == "1" else f"response({v}, {r}, {tokens})"

    @staticmethod
    def moment(v: float, r: float, tokens: float) -> float:
        """See the class."""
        return moments(v, r, tokens)[1]


Compile = Callable[[sp.Expr, Sequence[sp.Symbol]], Callable[..., Any]]


def with_softmax(expr: sp.Expr, symbols: tuple[sp.Symbol, ...], compiled: Compile) -> Callable[..., Any]:
    """A formula with such moments in it as a function of arrays; ``compiled`` does the rest of it."""
    found = sorted(expr.atoms(SoftmaxMoment), key=sp.default_sort_key)
    outer = [m for m in found if not any(m is not o and o.has(m) for o in found)]
    names = tuple(sp.Dummy(f"S{k}", real=True) for k in range(len(outer)))
    rest = compiled(expr.xreplace(dict(zip(outer, names, strict=True))), (*symbols, *names))
    parts = [(type(m), [compiled(a, symbols) for a in m.args]) for m in outer]

    def formula(*values: Any) -> Any:
        numbers = [kind.by_numpy(*(a(*values) for a in args)) for kind, args in parts]
        return rest(*values, *numbers)

    return formula


@lru_cache(maxsize=65536)
def moments(v: float, r: float, tokens: float) -> tuple[float, float]:
    """(E sum a b, E tr(J_a J_b)). Raises Inaccurate for a variance beyond LARGEST_VARIANCE."""
    if not (np.isfinite(v) and np.isfinite(r) and np.isfinite(tokens)):
        return np.nan, np.nan
    v, r = max(v, 0.0), float(np.clip(r, -1.0, 1.0))
    if tokens <= 1 or v == 0:
        return 1 / tokens, (tokens - 1) / tokens**2
    if v > LARGEST_VARIANCE:
        raise Inaccurate(f"a softmax over logits of variance {v:.4g}", why="nearly all rows are one hot",
                         instead=f"logits of a variance up to {LARGEST_VARIANCE:.0f}")
    return _one_row(v, tokens) if r > 1 - 1e-12 else _two_rows(v, r, tokens)


def _bumps(u: Array, highest: int) -> list[Array]:
    """e^(i u) exp(-e^u) for i from 0 to ``highest``; the first less 1."""
    grown = np.exp(np.minimum(u, 7.0))
    fall = np.exp(-grown)
    return [np.expm1(-grown), *(grown**i * fall for i in range(1, highest + 1))]


def _gaussian(sigma: float, step: float = np.inf) -> tuple[Array, Array]:
    """Points and weights of the trapezoidal rule for N(0, sigma^2)."""
    if sigma == 0:
        return np.zeros(1), np.ones(1)
    h = min(STEP, PER_SIGMA * sigma, step)
    count = int(np.ceil(REACH * sigma / h))
    z = h * np.arange(-count, count + 1)
    w = np.exp(-((z / sigma) ** 2) / 2)
    return np.asarray(z), np.asarray(w / w.sum())


def _averaged(t: Array, sigma: float, highest: int) -> list[Array]:
    """E of the bumps at t + N(0, sigma^2)."""
    z, w = _gaussian(sigma)
    found = [np.empty(t.shape) for _ in range(highest + 1)]
    flat, piece = t.ravel(), max(1, 2**21 // len(z))
    for first in range(0, flat.size, piece):
        part = _bumps(flat[first : first + piece, None] + z, highest)
        for whole, values in zip(found, part, strict=True):
            whole.ravel()[first : first + piece] = values @ w
    return found


def _scale(v: float, tokens: float) -> Array:
    """log x: what 1/sum e^l can be, with tails below 1e-16 left out."""
    sigma = np.sqrt(v)
    low = -(FAR + 2 * np.log(tokens) + min(v / 2, REACH * sigma))
    return np.asarray(np.arange(low, REACH * sigma + 5.0, STEP))


def _log(less_one: Array) -> Array:
    """log(1 + x), x at least -1 but for rounding."""
    return np.asarray(np.log1p(np.maximum(less_one, -1 + 1e-16)))


def _at_both(t: Array, z: Array, sigma: float) -> list[Array]:
    """The averaged bumps at every t + z; on one grid where both have the same steps."""
    if len(z) < 2 or not np.isclose(z[1] - z[0], STEP, rtol=1e-12):
        return _averaged(t[:, None] + z, sigma, 2)
    grid = t[0] + z[0] + STEP * np.arange(len(t) + len(z) - 1)
    return [np.lib.stride_tricks.sliding_window_view(x, len(z)) for x in _averaged(grid, sigma, 2)]


def _one_row(v: float, tokens: float) -> tuple[float, float]:
    t = _scale(v, tokens)
    n = _averaged(t, np.sqrt(v), 4)
    none = _log(n[0])
    others, rest = np.exp((tokens - 1) * none), np.exp((tokens - 2) * none)
    squares = STEP * tokens * float(n[2] @ others)
    cubes = STEP * tokens * float(n[3] @ others) / 2
    pairs = STEP * tokens * (float(n[4] @ others) + (tokens - 1) * float(n[2] ** 2 @ rest)) / 6
    return squares, squares - 2 * cubes + pairs


def _two_rows(v: float, r: float, tokens: float) -> tuple[float, float]:
    t = _scale(v, tokens)
    z, w = _gaussian(np.sqrt(abs(r) * v))
    own = np.sqrt((1 - abs(r)) * v)
    left = _at_both(t, z, own)
    right = left if r >= 0 else [x[:, ::-1] for x in left]
    alone = [x @ w for x in left]

    def both(i: int, j: int) -> Array:
        return np.asarray((left[i] * w) @ right[j].T)

    none = _log(both(0, 0) + alone[0][:, None] + alone[0])
    others, rest = np.exp((tokens - 1) * none), np.exp((tokens - 2) * none)
    area = STEP * STEP * tokens
    n11 = both(1, 1)
    overlap = area * float((n11 * others).sum())
    cubes = area * float((both(2, 1) * others).sum())
    pairs = area * float((both(2, 2) * others + (tokens - 1) * n11**2 * rest).sum())
    return overlap, overlap - 2 * cubes + pairs
