"""What the derived laws of the measured graphs miss by more than the tolerance, and why.

``DEVIATIONS``: (graph, node, moment): evidence. Moments are mean, q and gq as in the records.
``DEFECTS``: graphs with laws that are wrong, and what is wrong; their tests are expected to fail, and fail where
they do not.
"""

from __future__ import annotations

DEVIATIONS: dict[tuple[str, str, str], str] = {}

DEFECTS: dict[str, str] = {}
