"""The layers. Importing this package registers them all."""

from varflow.ops import (
    attention,
    conv,
    gate,
    layout,
    linear,
    norm,
    pointwise,
    pool,
    resample,
    stochastic,
)
from varflow.ops.base import OPS, Lemma, Op

__all__ = ["OPS", "Lemma", "Op", "attention", "conv", "gate", "layout", "linear", "norm", "pointwise", "pool",
           "resample", "stochastic"]
