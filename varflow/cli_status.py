"""Exit statuses of the command line."""

from __future__ import annotations

DONE = 0
FAILED = 1
BAD_INPUT = 2
INCONCLUSIVE = 3
UNVERIFIED_IMPORT = 4
INTERNAL = 70
INTERRUPTED = 130
TERMINATED = 143

OF_VERDICT = {"pass": DONE, "fail": FAILED, "inconclusive": INCONCLUSIVE}
