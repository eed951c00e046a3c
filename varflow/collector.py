"""The garbage collector, told once for all how seldom to look: nothing that is imported or derived becomes garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

OF_A_COMMAND, OF_A_DERIVATION = 1_000_000, 100_000
"""New objects between two searches for cycles: of a process that is ours, and while we derive in another's."""


def rarely(objects: int = OF_A_COMMAND) -> None:
    """From now on search after so many new objects at least; a collector that is switched off stays so."""
    first, *others = gc.get_threshold()
    if first:
        gc.set_threshold(max(first, objects), *others)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Search rarely, and afterwards as before: every 700 objects it takes a fifth of a derivation's time."""
    before = gc.get_threshold()
    rarely(OF_A_DERIVATION)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def leave() -> None:
    """What there is stays as it is until the process ends, which then need not be searched for garbage again."""
    gc.freeze()
