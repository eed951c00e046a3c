"""What the derived laws of the measured graphs miss by more than the tolerance, and why.

``DEVIATIONS``: (graph, node, moment): evidence. Moments are mean, q and gq as in the records.
``DEFECTS``: graphs with laws that are wrong, and what is wrong; their tests are expected to fail, and fail where
they do not.
"""

from __future__ import annotations

DEVIATIONS: dict[tuple[str, str, str], str] = {}

DEFECTS: dict[str, str] = {
    "conv6001": "relu of a depthwise convolution is taken to be independent of what the convolution reads",
    "conv4006": "gradients of pooled and interpolated images, by the population",
    "conv12007": "profiles of different sizes meet in one formula: ValueError",
}
