"""What the derived laws of the measured graphs miss by more than the tolerance, and why.

``DEVIATIONS``: (graph, node, moment): evidence. Moments are mean, q and gq as in the records.
``DEFECTS``: graphs with laws that are wrong, and what is wrong; their tests are expected to fail, and fail where
they do not.
"""

from __future__ import annotations

_TWICE = ("moments of two functions of one maximum over a window count its density twice: "
          "max_pool(x) + leaky_relu(max_pool(x)) has q 6.18, not 13.2")
_BORDER = ("a moment that the population measures enters the profile as its average over positions: what zero padding "
           "and pooling borders do together is lost; the same at n = 256")
_UNEQUAL = "maxima over entries of unequal variances at borders: the profile of 1/variance behind them"

DEVIATIONS: dict[tuple[str, str, str], str] = {}

DEFECTS: dict[str, str] = {
    "conv6001": "relu of a depthwise convolution is taken to be independent of what the convolution reads",
    "conv7005": _BORDER,
    "conv21000": _BORDER,
    "conv4006": "gradients of pooled and interpolated images, by the population",
    "conv12007": "profiles of different sizes meet in one formula: ValueError",
    "conv13009": _TWICE,
    "conv14011": "instance norm of an instance norm: the variance is 1 exactly, E[1/variance] is taken as that of "
                 "Gaussian entries; 0.0402 at n = 256 too",
    "conv15000": _UNEQUAL,
    "conv27009": _UNEQUAL,
}
