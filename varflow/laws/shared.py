"""One random number in every channel: what a constant weight makes of a value (rank one, all units identical)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import sympy as sp

from varflow.laws.moments import Formula
from varflow.laws.variables import (
    Blocks,
    Composite,
    GaussianSum,
    Instance,
    MaskEntry,
    Noise,
    Normed,
    Opaque,
    PositionAverage,
    Product,
    SphereEntry,
    Variable,
)
from varflow.symbols import arg


@dataclass(eq=False)
class ChannelSum(Variable):
    """``factor`` times the centred sum of all channels of ``operand``: one random number, the same in every channel,
    Gaussian as channels grow. It does not average out: what depends on it is a mixture over it.

    ``exactness`` is that of its second moment."""

    weight: str = ""
    factor: sp.Expr = sp.S.One
    operand: Blocks = ()
    exactness: str = "exact"
    gaussian = True
    normal = False


def identical(f: Formula, node: str, weight: str) -> Formula:
    """The formula with the symmetry named that it rests on."""
    words = f"all units of {node} are identical: {weight} is constant, of rank one"
    return replace(f, assumptions=f.assumptions | {words})


def made_of(v: Variable) -> tuple[Instance, ...]:
    """What a variable is an expression of; nothing for a source, a product or a sum over channels."""
    match v:
        case Composite(args=args):
            return args
        case Opaque(roots=roots):
            return roots
        case GaussianSum(terms=terms):
            return tuple(t for _, t in terms)
    of = getattr(v, "of", None)
    return (of,) if isinstance(of, Instance) else ()


def basics(x: Instance) -> Iterator[Instance]:
    """The sources, products and sums over channels that an instance is made of, where it stands."""
    inner = made_of(x.variable)
    if not inner:
        if not isinstance(x.variable, Composite):
            yield x
        return
    for a in inner:
        for b in basics(a):
            yield Instance(b.variable, b.moves + x.moves, b.there or x.there)


def holds_sum(x: Instance | None) -> bool:
    """Whether a value depends on a number that all channels share."""
    return x is not None and any(isinstance(b.variable, ChannelSum) for b in basics(x))


def is_shared(x: Instance | None) -> bool:
    """Whether a value is the same in every channel."""
    return x is not None and all(isinstance(b.variable, ChannelSum) for b in basics(x))


def entangled(x: Instance | None) -> bool:
    """Whether a value is linear in something random of a variance that itself depends on a shared number."""
    if x is None:
        return False
    inner = [b.variable for b in basics(x)]
    return any(isinstance(v, Product | ChannelSum) and v.backward
               and any(holds_sum(b.law) or entangled(b.law) for b in v.operand) for v in inner)


def weights_within(x: Instance) -> set[str]:
    """Names of the weights in a value, also in what its products are products of."""
    found: set[str] = set()
    stack = [x]
    while stack:
        for b in basics(stack.pop()):
            if isinstance(b.variable, Product):
                found.add(b.variable.weight)
                stack += [o.law for o in b.variable.operand if o.law is not None]
    return found


def parity(v: Variable) -> int:
    """1 for even, -1 for odd, when all symmetric sources of a channel change sign; 0 for neither."""
    match v:
        case ChannelSum() | MaskEntry():
            return 1
        case GaussianSum(terms=terms):
            return -1 if all(parity(t.variable) == -1 for _, t in terms) else 0
        case Noise() | Product():
            return -1
        case Composite(expr=expr, args=args):
            signs = [parity(a.variable) for a in args]
            flipped = expr.xreplace({arg(i): -arg(i) for i, s in enumerate(signs) if s == -1})
            if 0 in signs:
                return 0
            return 1 if flipped == expr else -1 if sp.expand(flipped + expr) == 0 else 0
        case PositionAverage(of=of) | SphereEntry(of=of) | Normed(of=of) if of is not None:
            return parity(of.variable)
    return 0
