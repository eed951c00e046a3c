"""Masks of whole samples in a population: it is made given masks, and averaged over them, so that the statistics of a
sample are those of its own masks."""

from __future__ import annotations

from itertools import product

import numpy as np

from varflow.program import Mask, Program, Standardize

COUNTED, DRAWN = 3, 16
"""Masks all combinations of which are counted, and how many combinations are drawn where there are more."""

DROPPED = 1e-9
"""What stands for a mask of zero, so that no variance is."""


def masks_of(program: Program) -> list[Mask]:
    """The masks of whole samples, where nothing normalizes over samples, which would need all kinds in one batch."""
    batched = any(isinstance(p := step.primitive, Standardize) and p.axis == "sample" for step in program)
    found = (step.primitive for step in program)
    return [] if batched else list(dict.fromkeys(p for p in found if isinstance(p, Mask) and p.per_sample))


def kinds(masks: list[Mask], seed: tuple[int, ...]) -> list[tuple[dict[Mask, float], float]]:
    """Zeros and ones with their weights: all combinations of few masks; of many some, with the right share of ones of
    each on average."""
    keep = np.array([float(m.keep) for m in masks])
    if len(masks) <= COUNTED:
        kept = np.array(list(product((1.0, 0.0), repeat=len(masks)))).reshape(2 ** len(masks), len(masks))
        chances = np.where(kept == 1, keep, 1 - keep).prod(axis=1)
    else:
        rng = np.random.default_rng((*seed, len(masks)))
        ones = np.floor(keep * DRAWN + rng.random(len(masks)))
        kept = rng.permuted((np.arange(DRAWN) < ones[:, None]).astype(np.float64), axis=1).T
        chances = np.full(DRAWN, 1 / DRAWN)
    small = np.maximum(kept, DROPPED)
    return [(dict(zip(masks, row, strict=True)), float(c)) for row, c in zip(small, chances, strict=True) if c]
