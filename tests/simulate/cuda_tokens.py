"""The CUDA kernels of attention by themselves, on shapes around their tiles: against sums in float64.

``python -m tests.simulate.cuda_tokens`` runs small shapes in numba's simulator and prints the largest deviation of
each kernel and what a softmax makes of extreme rows, as JSON; the hardware tests call `deviations` on a GPU.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NamedTuple

if __name__ == "__main__":
    os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import sympy as sp
from numpy.typing import NDArray

from varflow.program import Blend, Scores, Softmax, SoftmaxBackward
from varflow.simulate.cuda_attention import Tokens, attended
from varflow.simulate.cuda_device import empty, sent

Values = NDArray[np.float32]
DRAWS, SAMPLES = 2, 2


class Sizes(NamedTuple):
    """Queries, tokens, heads, channels of a head."""

    places: int
    tokens: int
    heads: int
    size: int


SMALL = (Sizes(1, 1, 1, 1), Sizes(5, 7, 2, 3), Sizes(9, 6, 1, 5), Sizes(2, 3, 3, 1))
LARGE = (
    Sizes(64, 64, 2, 64), Sizes(130, 70, 3, 72), Sizes(1, 257, 2, 8), Sizes(200, 3000, 1, 16), Sizes(8, 8, 4, 64),
    Sizes(65, 129, 2, 1),
)  # fmt: skip
EXTREME = ([1e30, 0.0, -1e30, 5.0], [3e38] * 4, [np.nan, 0.0, 0.0, 0.0], [0.0, np.inf, 0.0, 0.0])


def values(rng: np.random.Generator, places: int, channels: int) -> Values:
    return rng.standard_normal((DRAWS, SAMPLES * places, channels)).astype(np.float32)


def run(primitive: Any, shape: tuple[int, ...], *args: Values) -> Values:
    """A kernel's value, of ``shape``."""
    y = empty(int(np.prod(shape)))
    tokens = [Tokens(sent(x), x.shape[1] // SAMPLES, x.shape[2]) for x in args]
    attended(primitive, y, tokens, shape[0], SAMPLES)
    found: Values = y.copy_to_host()[: int(np.prod(shape))].reshape(shape)
    return found


def by_head(x: Values, heads: int) -> NDArray[np.float64]:
    """(draw, sample, place, head, entry)."""
    return x.astype(np.float64).reshape(DRAWS, SAMPLES, x.shape[1] // SAMPLES, heads, x.shape[2] // heads)


def off(found: Values, expected: NDArray[np.float64]) -> float:
    """The largest deviation, in units of the root mean square."""
    scale = float(np.sqrt(np.mean(expected**2)))
    return float(np.max(np.abs(found.reshape(expected.shape) - expected))) / (scale or 1.0)


def softmax(x: NDArray[np.float64], causal: bool) -> NDArray[np.float64]:
    seen = np.tril(np.ones((x.shape[2], x.shape[4]), bool))[:, None, :]
    y = np.exp(x - x.max(axis=4, keepdims=True)) * (seen if causal else 1.0)
    y /= y.sum(axis=4, keepdims=True)
    return np.asarray(y, np.float64)


def deviations(s: Sizes) -> dict[str, float]:
    """Every kernel on random values."""
    rng = np.random.default_rng(s.places)
    q, d = (values(rng, s.places, s.heads * s.size) for _ in range(2))
    k, v = (values(rng, s.tokens, s.heads * s.size) for _ in range(2))
    w, dw = (values(rng, s.places, s.heads * s.tokens) for _ in range(2))
    heads = sp.Integer(s.heads)
    q_, d_, k_, v_, w_, dw_ = (by_head(x, s.heads) for x in (q, d, k, v, w, dw))
    found = {"scores": off(run(Scores(heads), w.shape, q, k), np.einsum("nspac,nsrac->nspar", q_, k_))}
    found["blend"] = off(run(Blend(heads), q.shape, w, v), np.einsum("nspar,nsrac->nspac", w_, v_))
    back = run(Blend(heads, transpose=True), v.shape, w, d)
    found["transposed blend"] = off(back, np.einsum("nspar,nspac->nsrac", w_, d_))
    for causal in (False, True):
        found[f"softmax, causal {causal}"] = off(run(Softmax(heads, causal), w.shape, w), softmax(w_, causal))
    slope = w_ * (dw_ - (w_ * dw_).sum(axis=4, keepdims=True))
    found["softmax backward"] = off(run(SoftmaxBackward(Softmax(heads)), w.shape, w, dw), slope)
    return found


def extremes() -> list[list[str]]:
    """What a softmax makes of rows of huge, equal and undefined logits."""
    x = np.tile(np.array(EXTREME, np.float32), (DRAWS, SAMPLES, 1))
    found: Values = run(Softmax(sp.S.One), x.shape, x)[1, -len(EXTREME) :]
    return [[str(float(entry)) for entry in row] for row in found]


def main() -> None:
    sys.setswitchinterval(5e-4)
    worst = {str(tuple(s)): deviations(s) for s in SMALL}
    with np.errstate(all="ignore"):
        print(json.dumps({"worst": worst, "extremes": extremes()}))


if __name__ == "__main__":
    main()
