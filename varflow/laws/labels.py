"""Labels of a Gaussian expectation: what it assumes, and at which width it holds."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import sympy as sp

from varflow.calculus import symbols_in
from varflow.laws import moments as mo
from varflow.laws.blocks import index_of, parts
from varflow.laws.distributions import Distribution
from varflow.laws.moments import Moment, Quantity
from varflow.laws.numeric import vectorized
from varflow.laws.split import Term, polynomial_in
from varflow.laws.templates import template
from varflow.laws.variables import (
    BlockChoice,
    Instance,
    MaskEntry,
    Noise,
    Product,
    SphereEntry,
    Variable,
)
from varflow.symbols import arg, positive_slot

SCALES = "formulas take samples that skip different branches, of different scales, for one Gaussian"
_PLACES = np.array([-3.0, -1.0, -0.4, 0.3, 0.9, 2.5])
_scaled: WeakKeyDictionary[Variable, bool] = WeakKeyDictionary()


def assumptions_of(expr: sp.Expr, indices: list[int], args: tuple[Instance, ...]) -> frozenset[str]:
    """Beyond two moments an input's distribution matters: it is taken as Gaussian."""
    inputs = {i: v for i in indices if isinstance(v := args[i].variable, Noise) and v.kind == "input"}
    nonlinear = any(not polynomial_in(expr, arg(i)) or sp.degree(expr, arg(i)) > 2 for i in inputs)
    scales = {SCALES} if mixes_scales(expr, indices, args) else set()
    return frozenset({f"the entries of {v.node} are Gaussian" for v in inputs.values() if nonlinear} | scales)


def degree_of(found: sp.Expr, expr: sp.Expr, kinds: tuple[Distribution, ...],
            matrix: tuple[tuple[sp.Expr, ...], ...], args: list[Instance], given: list[Quantity]) -> int:
    """Degree in the covariances of what is not a plain source, and in coefficients; covariances that are numbers
    here fluctuate all the same."""
    settled = [isinstance(a.variable, Noise | MaskEntry | SphereEntry) for a in args]
    size = range(len(args))
    loose = {matrix[i][j] for i in size for j in size if not (settled[i] and settled[j])} - {sp.S.Zero}
    numbers = sorted((x for x in loose if x.is_Number), key=str)
    symbols = {n: positive_slot(1000 + k) for k, n in enumerate(numbers)}
    if symbols:
        lifted = tuple(tuple(symbols.get(x, x) for x in row) for row in matrix)
        found = template(expr, kinds, lifted)
    unknowns = {symbols.get(x, x) for x in loose}
    unknowns |= {mo.place(i, q) for i, q in enumerate(given) if isinstance(q, Moment) and q.degree}
    return mo.degree_in(found, tuple(sorted(unknowns, key=str)))


def exactness_of(expr: sp.Expr, indices: list[int], args: tuple[Instance, ...]) -> str:
    """Non-normal weights give Gaussians only as widths grow, masks of whole samples never; two moments do not
    notice."""
    symbols = [arg(i) for i in indices]
    if expr.is_polynomial(*symbols) and sp.Poly(expr, *symbols).total_degree() <= 2:
        return "exact"
    if mixes_scales(expr, indices, args):
        return "closure"
    products = [args[i].variable for i in indices]
    return "exact" if all(getattr(v, "normal", True) for v in products) else "wide"


def mixes_scales(expr: sp.Expr, indices: list[int], args: tuple[Instance, ...]) -> bool:
    """Whether a function of Gaussian values sees more of them than a variance that is a mean over masks of samples: the
    mean of f(sqrt(v) z) over v is that at the mean of v for f of degree 0 or 2 only."""
    if not any(_of_masked_samples(args[i].variable) for i in indices if args[i].variable.gaussian):
        return False
    if all(sp.degree(expr, arg(i)) <= 2 if expr.is_polynomial(arg(i)) else False for i in indices):
        return False
    if len(indices) > 1 or symbols_in(expr) - {arg(indices[0])}:
        return True
    f = vectorized(expr, (arg(indices[0]),))
    once, twice = (np.broadcast_to(f(x), _PLACES.shape) for x in (_PLACES, 2 * _PLACES))
    return not (np.allclose(twice, once) or np.allclose(twice, 4 * once))


def _of_masked_samples(v: Variable) -> bool:
    """Whether a mask of whole samples is in what a variable is made of."""
    stack = [v]
    while stack:
        u = stack[-1]
        inner = [x.variable for x in parts(u)]
        inner += [b.law.variable for b in u.operand if b.law] if isinstance(u, Product) else []
        missing = [w for w in inner if w not in _scaled]
        if missing:
            stack += missing
            continue
        own = isinstance(u, MaskEntry) and u.per_sample
        _scaled[u] = own or any(_scaled[w] for w in inner)
        stack.pop()
    return _scaled[v]


def beside_an_input(indices: list[int], args: tuple[Instance, ...]) -> bool:
    """Whether an input's own entry stands beside other forward values: W x depends a little on every x_i."""
    variables = [args[i].variable for i in indices]
    inputs = [isinstance(v, Noise) and v.kind == "input" for v in variables]
    return any(inputs) and not all(inputs) and not any(v.backward for v in variables)


def excluded(term: Term, args: tuple[Instance, ...]) -> bool:
    """Whether two different blocks are chosen at once for one coordinate."""
    chosen: dict[object, int] = {}
    for symbol, _ in term.functions:
        a = args[index_of(symbol)]
        if isinstance(a.variable, BlockChoice):
            key = (a.variable.group, a.moves)
            if chosen.setdefault(key, a.variable.index) != a.variable.index:
                return True
    return False
