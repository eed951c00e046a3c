"""The layers. Importing this package registers them all."""

from varflow.ops import layout, linear, norm, pointwise, stochastic
from varflow.ops.base import OPS, Lemma, Op

__all__ = ["OPS", "Lemma", "Op", "layout", "linear", "norm", "pointwise", "stochastic"]
