"""Blocks and variables taken apart: common blocks, coefficients, what a variable is made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import sympy as sp

from varflow.calculus import difference, rename, symbols_in
from varflow.laws.distributions import NoFormula
from varflow.laws.moments import Quantity
from varflow.laws.shared import ChannelSum
from varflow.laws.variables import (
    ANYWHERE,
    Attended,
    Blended,
    Block,
    BlockChoice,
    Blocks,
    Composite,
    Depthwise,
    GaussianSum,
    Instance,
    Inverse,
    Largest,
    MaskEntry,
    Mixed,
    Move,
    Noise,
    Normed,
    Opaque,
    PositionAverage,
    Product,
    SampleMean,
    SphereEntry,
    Standardized,
    Variable,
    Win,
)
from varflow.symbols import arg


@cache
def coefficient(i: int) -> sp.Symbol:
    """The i-th coefficient (a moment or a parameter) of a composite's expression."""
    return sp.Symbol(f"k_{i}", real=True)


def with_parameters(expr: sp.Expr, coefficients: Sequence[Quantity]) -> tuple[sp.Expr, tuple[Quantity, ...]]:
    """A composite's expression with its parameters (symbols of the network) as further coefficients."""
    own = {coefficient(i) for i in range(len(coefficients))}
    free = sorted((s for s in symbols_in(expr) if s not in own and not is_argument(s)), key=str)
    table = tuple((s, coefficient(len(coefficients) + i)) for i, s in enumerate(free))
    return rename(expr, table), (*coefficients, *free)


@cache
def is_argument(symbol: sp.Symbol) -> bool:
    """Whether a symbol is one of the arguments of a composite's expression."""
    return bool(symbol.name.startswith("a_") and symbol.name[2:].isdigit() and symbol == arg(int(symbol.name[2:])))


@cache
def arguments(count: int) -> frozenset[sp.Symbol]:
    return frozenset(arg(i) for i in range(count))


def refine(*values: Blocks) -> list[tuple[sp.Expr, tuple[Instance | None, ...]]]:
    """Common blocks of several values: (size, the law of each there).

    Raises NoFormula where symbolic boundaries cannot be put in order.
    """
    if all(len(v) == 1 for v in values) and all(v[0].size == values[0][0].size for v in values):
        return [(values[0][0].size, tuple(v[0].law for v in values))]
    result = []
    queues = [list(v) for v in values]
    while all(queues):
        heads = [q[0].size for q in queues]
        size = _least(heads)
        result.append((size, tuple(q[0].law for q in queues)))
        for q in queues:
            rest = difference(q[0].size, size)
            if rest == 0:
                q.pop(0)
            else:
                q[0] = Block(rest, q[0].law)
    return result


def _least(sizes: Sequence[sp.Expr]) -> sp.Expr:
    best = sizes[0]
    for s in sizes[1:]:
        gap = difference(best, s)
        if gap.is_positive:
            best = s
        elif gap != 0 and not gap.is_negative:
            raise NoFormula(f"blocks of {best} and {s} channels cannot be put in order")
    return best


def fresh(x: Instance, y: Instance) -> bool:
    """Whether x is a source of its own, drawn after y: nothing older depends on it."""
    return drawn_after(x.variable, y.variable)


def drawn_after(v: Variable, older: Variable) -> bool:
    """Whether a variable is a source of its own, drawn after the other one."""
    if v.born <= older.born:
        return False
    return v.alone if isinstance(v, Product) else isinstance(v, (Noise, MaskEntry))


def parts(v: Variable) -> tuple[Instance, ...]:
    """What a variable is made of; nothing for a basic one."""
    match v:
        case Composite(args=args):
            return args
        case Opaque(roots=roots):
            return roots
        case GaussianSum(terms=terms):
            return tuple(t for _, t in terms)
        case Largest(of=of, weight_args=beside) if of is not None:
            return (of, *beside)
        case (SampleMean(of=of) | PositionAverage(of=of) | SphereEntry(of=of) | Mixed(of=of)
              | Depthwise(of=of) | Normed(of=of) | Standardized(of=of) | Inverse(of=of)) if of is not None:
            return (of,)
        case Win(of=of) if of is not None:
            return (of, v.entry)
        case Attended() | Blended():
            return within_attention(v)
    return ()


def within_attention(v: Attended | Blended) -> tuple[Instance, ...]:
    """The logits, and what is mixed."""
    inner = (v.logits, v.slope) if isinstance(v, Attended) else (v.weights, v.of)
    return tuple(x for x in inner if x is not None)


def rooted(v: Variable) -> tuple[bool, tuple[Instance, ...]]:
    """Whether a variable is one of its roots, and what has the others."""
    match v:
        case Composite(args=children) | Opaque(roots=children):
            return False, children
        case (PositionAverage(of=of) | SampleMean(of=of) | Mixed(of=of)) if of is not None and not v.gaussian:
            return False, (of,)
        case Largest(of=of, weight_args=beside) if of is not None:
            return False, (of, *beside)
        case Depthwise(of=of) if of is not None:
            return True, (of,)
        case (Standardized(of=of) | Inverse(of=of)) if of is not None:
            return False, (of,)
        case Win(of=of) if of is not None:
            return False, (of, v.entry)
        case Attended() | Blended():
            return False, within_attention(v)
    return True, ()


def family(v: Variable) -> object:
    match v:
        case Product(weight=weight, transpose=transpose, backward=backward):
            return (weight, transpose, backward)
        case BlockChoice(group=group):
            return ("choice", group)
        case Depthwise():
            return ("depthwise", v.weight)
    return v.born


def index_of(symbol: sp.Symbol) -> int:
    return int(symbol.name[2:])


def apart(x: Instance, y: Instance) -> bool:
    """Whether the parts of two Gaussian values were moved differently since they were drawn: no coordinate of one is
    made of the same draws as that of the other."""
    one, two = _origins(x), _origins(y)
    return not one & two and not any(ANYWHERE in moves for moves in one | two)


def _origins(x: Instance) -> frozenset[tuple[Move, ...]]:
    v = x.variable
    if isinstance(v, GaussianSum):
        return frozenset[tuple[Move, ...]]().union(*(_origins(carried(t, x)) for _, t in v.terms))
    return _origins(carried(v.of, x)) if isinstance(v, Mixed) and v.of is not None else frozenset({x.moves})


def carried(inner: Instance, outer: Instance) -> Instance:
    """``inner``, an argument of a variable, at the coordinate and place of the variable's instance."""
    result = inner
    for move in () if isinstance(inner.variable, ChannelSum) else outer.moves:
        result = result.moved(move)
    return Instance(result.variable, result.moves, True) if outer.there and not result.there else result
