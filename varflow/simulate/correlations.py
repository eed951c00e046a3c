"""What makes the independent entries of an input correlated between positions and between samples.

Its covariance has three eigenspaces: differences of positions, differences of samples, and the mean.
"""

from __future__ import annotations

import math

from varflow.errors import InputError
from varflow.program import Input
from varflow.simulate.sizes import number


def eigenvalue_roots(law: Input, samples: int, positions: int) -> tuple[float, float, float] | None:
    """What differences of positions, differences of samples and the mean of independent entries are multiplied by to
    correlate them; None where they stay independent.

    Raises InputError for correlations that are no covariance.
    """
    within = number(law.position_correlation, "position_correlation") if positions > 1 else 1.0
    across = number(law.sample_correlation, "sample_correlation") if samples > 1 else within
    if (positions == 1 or within == 0.0) and (samples == 1 or across == 0.0):
        return None
    apart = 1 - within
    between = apart + positions * (within - across)
    together = apart + positions * within + positions * (samples - 1) * across
    if samples == 1:
        between, together = 0.0, apart + positions * within
    if min(apart, between, together) < -1e-12:
        raise InputError(
            f"input {law.name!r}: correlations {law.position_correlation} between positions and "
            f"{law.sample_correlation} between samples are no covariance", instead="larger correlations",
        )  # fmt: skip
    return math.sqrt(max(apart, 0.0)), math.sqrt(max(between, 0.0)), math.sqrt(max(together, 0.0))
