"""Which sampled weights are drawn once and kept for a draw, and which programs become tapes.

A weight that is used often costs less when it is kept than when its numbers are made in every use. A program whose
every step a tape knows has all of its weights kept, if they are small enough together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from varflow.program import (
    Bias,
    Concat,
    Contract,
    Cotangent,
    Embed,
    Input,
    Instruction,
    Mask,
    Pointwise,
    Program,
    Slice,
)
from varflow.simulate.windows import is_plain

if TYPE_CHECKING:
    from varflow.simulate.collapsed import Choice, Use

KEPT_BYTES = 2**26
"""Bytes that the kept weights of a draw may take together."""
OFTEN = 3
"""Uses from which on a weight is kept in any program."""


def may_be_kept(program: Program, uses: Sequence[Use], name: str) -> bool:
    """Whether a weight is one plain matrix whose uses are products with vectors."""
    w = program.weights[name]
    return is_plain(w) and w.distribution != "orthogonal" and not any(u.windowed or u.groups > 1 for u in uses)


def size_of(use: Use) -> int:
    """Bytes of the matrix."""
    return 4 * use.inner * use.outer


def kept(program: Program, samples: int, choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """The choices with ``kept`` where a sampled weight is; those that are used most come first."""
    sampled = [c for c in choices.values() if not c.collapse and may_be_kept(program, c.uses, c.weight)]
    together = sum(size_of(c.uses[0]) for c in sampled) <= KEPT_BYTES
    others = {n for n, c in choices.items() if not c.collapse} - {c.weight for c in sampled}
    all_of_them = together and not others and all(on_tape(program, samples, choices, step) for step in program)
    found, room = dict(choices), KEPT_BYTES
    for choice in sorted(sampled, key=lambda c: (-len(c.uses), c.weight)):
        if size_of(choice.uses[0]) <= room and (all_of_them or len(choice.uses) >= OFTEN):
            room -= size_of(choice.uses[0])
            found[choice.weight] = replace(choice, kept=True)
    return found


def on_tape(program: Program, samples: int, choices: Mapping[str, Choice], step: Instruction) -> bool:
    """Whether a tape knows a step, if the weight of a product is collapsed or kept."""
    match step.primitive:
        case Cotangent() | Bias() | Pointwise():
            return True
        case Input(position_correlation=within, sample_correlation=across):
            alone = (step.shape.places == 1 or within == 0) and (samples == 1 or across == 0)
            return alone or (samples == 1 and step.shape.places == 1)
        case Mask(per_sample=per_sample):
            return not per_sample or bool(step.shape.places == 1)
        case Concat() | Slice() | Embed():
            return not any(isinstance(program.instructions[a].primitive, Bias | Mask) for a in step.args)
        case Contract(weight=name):
            source = program.instructions[step.args[0]].primitive
            return may_be_kept(program, choices[name].uses, name) and not isinstance(source, Bias | Mask)
    return False


def is_tape(program: Program, samples: int, choices: Mapping[str, Choice]) -> bool:
    """Whether a tape knows all steps of a program. This depends on the program and the samples alone, not on what is
    measured."""
    used = {s.primitive.weight for s in program if isinstance(s.primitive, Contract)}
    ready = all(choices[name].collapse or choices[name].kept for name in used)
    return ready and all(on_tape(program, samples, choices, step) for step in program)
