"""What attention makes of moments: logits, softmax weights, blends of values, and their gradients.

Heads and the channels of a head are many. A logit is a sum over channels, Gaussian; E[l_pr l_p'r'] is the width times
the squared scale times E[q_p q_p'] E[k_r k_r'] (Hron et al. 2020, arXiv:2006.10540). A softmax does not see what the
logits of a row have in common, so that a row is the softmax of independent logits of variance v, the squared scale
times the width times q_Q (q_K - c_K), and two rows correlate by c_Q/q_Q. With weights w (rows that sum to R = 1; their
gradients, rows that sum to R = 0), values of second moment q and covariance c between tokens have

    E y_p y_p' = R^2 c + (q - c) E sum_r w_pr w_p'r,

and brought back by the transpose sum_pp' E[w_pr w_p'r] E[d_p d_p'], divided evenly. Overlaps E sum_r w_pr w_p'r are
integrals (`softmax`). Weights that are independent of each other (gradients of logits that a linear layer reads) mix
values to q E sum_r w_pr w_p'r. Tokens are exchangeable; a value is mixed with weights that none of its channels decides
alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import sympy as sp

from varflow.calculus import quotient
from varflow.laws import moments as mo
from varflow.laws.blocks import parts
from varflow.laws.distributions import NoFormula
from varflow.laws.moments import Formula
from varflow.laws.softmax import SoftmaxOverlap, SoftmaxResponse
from varflow.laws.variables import (
    POSITION,
    SAME,
    Attended,
    Blended,
    Instance,
    Logit,
    Opaque,
    Variable,
    View,
)

if TYPE_CHECKING:
    from varflow.laws.covariances import Covariances
    from varflow.laws.dependence import Dependence
    from varflow.laws.joint import Laws

OF_TOKENS = (Attended, Blended)
OF_LOGITS = (Logit, Attended, Blended)
MANY = "attention: heads, and the channels of a head, are many"
_ROW = mo.part(0) ** 2 * mo.part(1) * mo.part(2) * (mo.part(3) - mo.part(4))
_OVERLAP, _RESPONSE = (f(mo.part(0), mo.part(1), mo.part(2)) for f in (SoftmaxOverlap, SoftmaxResponse))
_BLEND = mo.part(0) * mo.part(1) + (mo.part(2) - mo.part(1)) * mo.part(3)
_GATHERED = mo.part(4) / mo.part(5) * (mo.part(0) * mo.part(1) + (mo.part(4) - 1) * mo.part(2) * mo.part(3))
_SPREAD = (mo.part(0) * mo.part(4) * (mo.part(1) + (mo.part(4) - 1) * mo.part(2)) - mo.part(5) * mo.part(3)) / (
    mo.part(5) * (mo.part(5) - 1))


def varies_in_attention(laws: Dependence, v: Variable, sample: bool) -> bool:
    """Whether a part of attention differs between samples (or, if not ``sample``, between positions)."""
    match v:
        case Logit(queries=Instance() as queries, keys=Instance() as keys):
            return laws.differs(queries, sample) or (sample and laws.differs(keys, sample))
        case Attended(logits=Instance() as logits, slope=slope):
            inner = [logits, *([] if slope is None else [slope])]
            return any(laws.differs(x, sample) for x in inner)
        case Blended(weights=Instance() as weights, of=Instance() as of, transpose=transpose):
            own = laws.differs(weights, sample) or (sample and laws.differs(of, sample))
            return own or (transpose and not sample)
    return True


def blends(v: Variable, known: dict[Variable, bool], kinds: tuple[type[Variable], ...] = (Blended,)) -> bool:
    """Whether a variable is made of mixed values (or others of ``kinds``), which depend on all tokens; ``known`` is
    kept between calls."""
    if v not in known:
        mixed = isinstance(v, kinds) or (isinstance(v, Opaque) and v.mixed)
        known[v] = mixed or any(blends(x.variable, known, kinds) for x in parts(v))
    return known[v]


def is_free(v: Attended) -> bool:
    """Whether weights are independent of each other: no gradients of a softmax, whose rows sum to zero."""
    return v.slope is not None and not isinstance(v.slope.variable, Logit)


def logit_covariance(laws: Covariances, u: Variable, v: Variable, view: View) -> Formula:
    """Covariance of two logits of one key token, of queries at two places; zero of anything else."""
    if not isinstance(u, Logit) or not isinstance(v, Logit):
        return mo.ZERO
    assert u.queries is not None and u.keys is not None and v.queries is not None and v.keys is not None
    if u.backward == v.backward and u is not v:
        same = u.width == v.width and not (laws.dependent(u.queries, v.keys, SAME) or laws.dependent(
            v.queries, u.keys, SAME))
        if not same:
            raise NoFormula("logits of other heads, or of queries that are keys elsewhere", v.node)
    queries = _pair(laws, u.queries, v.queries, view)
    keys = _pair(laws, u.keys, v.keys, View(False, view.sample))
    return _many(mo.product(mo.constant(u.width), queries, keys))


def _pair(laws: Covariances, x: Instance, y: Instance, view: View) -> Formula:
    return laws.pair(x, y.at(not view.same), view)


def _many(f: Formula) -> Formula:
    return f if f.is_zero else replace(f, exactness=mo.weakest(mo.EXACTNESS, (f.exactness, "wide")),
                                       assumptions=f.assumptions | {MANY})


def apart(laws: Laws, x: Instance, y: Instance, sample: bool) -> Formula:
    """What tokens do not have in common: E[x y] at one token less that at two."""
    here, other = (_pair(laws, x, y, View(p, sample)) for p in (False, True))
    return here if other.is_zero else mo.combine(mo.part(0) - mo.part(1), [here, other])


def row_variance(laws: Laws, v: Attended) -> Formula:
    """The variance of a logit less what its row has in common."""
    if v.logits is None:
        return mo.ZERO
    logit = _logit(v)
    assert logit.queries is not None and logit.keys is not None
    parts = [laws.formula(v.scale), mo.constant(logit.width), laws.second(logit.queries), laws.second(logit.keys),
             _pair(laws, logit.keys, logit.keys, POSITION)]
    return laws.formula(laws.quantity(mo.combine(_ROW, parts), "r", v.node))


def row_correlation(laws: Laws, v: Attended, view: View) -> Formula:
    """The correlation of two rows of logits, less what each has in common."""
    if view.same or v.logits is None:
        return mo.ONE
    logit = _logit(v)
    assert logit.queries is not None and logit.keys is not None
    queries = _pair(laws, logit.queries, logit.queries, view)
    below = [laws.second(logit.queries)]
    if view.sample:
        queries = mo.product(queries, apart(laws, logit.keys, logit.keys, True))
        below.append(apart(laws, logit.keys, logit.keys, False))
    if queries.is_zero:
        return mo.ZERO
    found = mo.combine(mo.part(0) / mo.part(1), [queries, mo.product(*below)])
    return laws.formula(laws.quantity(found, "r", v.node))


def _logit(v: Attended) -> Logit:
    assert v.logits is not None and isinstance(v.logits.variable, Logit)
    return v.logits.variable


def overlap(laws: Laws, v: Attended, view: View) -> Formula:
    """E sum_r w_pr w_p'r over the tokens r, of weights or of their gradients."""
    if v.slope is not None and is_free(v):
        return mo.product(mo.constant(v.tokens), _pair(laws, v.slope, v.slope, view))
    shape = _OVERLAP if v.slope is None else _RESPONSE
    rows = [row_variance(laws, v), row_correlation(laws, v, view), mo.constant(v.tokens)]
    found = replace(mo.combine(shape, rows), tier="quadrature")
    if found.template.is_Number or not found.template.has(SoftmaxOverlap, SoftmaxResponse):
        found = replace(found, tier="closed")
    if v.slope is not None:
        slope = v.slope.variable
        assert isinstance(slope, Logit) and slope.queries is not None and slope.keys is not None
        queries = _pair(laws, slope.queries, slope.queries, view)
        if queries.is_zero:
            return mo.ZERO
        found = mo.product(mo.constant(slope.width), queries, apart(laws, slope.keys, slope.keys, view.sample), found)
    return _many(found)


def mean_in_attention(laws: Laws, v: Variable) -> Formula:
    """E of a weight, 1/T, or of a mixed value."""
    if isinstance(v, Attended):
        return mo.ZERO if v.slope is not None else mo.constant(quotient(sp.S.One, v.tokens))
    assert isinstance(v, Blended) and v.of is not None
    w = _weights(v)
    if w.slope is not None:
        return mo.ZERO
    share = quotient(v.places, w.tokens) if v.transpose else sp.S.One
    return mo.product(laws.formula(v.factor), mo.constant(share), laws.mean(v.of))


def _weights(v: Blended) -> Attended:
    assert v.weights is not None and isinstance(v.weights.variable, Attended)
    return v.weights.variable


def pair_in_attention(laws: Laws, x: Instance, y: Instance, view: View) -> Formula:
    """E[x y] of weights or of mixed values; of a mixed value and one that is not. Raises NoFormula."""
    u, v = x.variable, y.variable
    if isinstance(u, Attended):
        if u is v and x.moves == y.moves:
            return mo.combine(mo.part(0) / mo.part(1), [overlap(laws, u, view), mo.constant(u.tokens)])
        raise NoFormula("attention weights beside what they depend on", u.node)
    assert isinstance(u, Blended)
    if isinstance(v, Blended):
        if u.weights != v.weights or u.transpose != v.transpose:
            raise NoFormula("values mixed by two attentions that depend on each other", v.node)
        return _mixed(laws, u, v, x, y, view)
    if isinstance(v, Attended):
        raise NoFormula("attention weights beside what they mix", v.node)
    return _beside(laws, u, x, y, view)


def _mixed(laws: Laws, u: Blended, v: Blended, x: Instance, y: Instance, view: View) -> Formula:
    """E of two values mixed by the same weights."""
    assert u.of is not None and v.of is not None
    a, b, w = Instance(u.of.variable, u.of.moves + x.moves), Instance(v.of.variable, v.of.moves + y.moves), _weights(u)
    scale = mo.product(laws.formula(u.factor), laws.formula(v.factor))
    here, other = (_pair(laws, a, b, View(p, view.sample)) for p in (False, True))
    if here.is_zero and other.is_zero:
        return mo.ZERO
    kept = mo.ONE if w.slope is None else mo.ZERO
    if is_free(w) and u.transpose and view.position:
        return mo.ZERO
    if not u.transpose and is_free(w):
        return _many(mo.product(scale, here, overlap(laws, w, view)))
    if not u.transpose:
        parts = [kept, other, here, overlap(laws, w, view)]
        return _many(mo.product(scale, mo.combine(_BLEND, parts)))
    sizes = [mo.constant(u.places), mo.constant(w.tokens)]
    overlaps = [overlap(laws, w, View(p, view.sample)) for p in (False, True)]
    own = mo.combine(_GATHERED, [here, overlaps[0], other, overlaps[1], *sizes])
    if view.position:
        own = mo.combine(_SPREAD, [kept, here, other, laws.formula(laws.quantity(own, node=u.node, backward=True)),
                                   *sizes])
    return _many(mo.product(scale, own))


def _beside(laws: Laws, u: Blended, x: Instance, y: Instance, view: View) -> Formula:
    """E of a mixed value and another one: every token has weight 1/T on average."""
    assert u.of is not None
    w = _weights(u)
    if w.slope is not None:
        return mo.ZERO
    if u.places != w.tokens or (laws.dependent(Instance(w), y, SAME)):
        raise NoFormula("a value beside one that is mixed from other tokens, or by it", u.node)
    of = Instance(u.of.variable, u.of.moves + x.moves)
    here, other = (_pair(laws, of, y.at(False), View(p, view.sample)) for p in (False, True))
    shape = (mo.part(0) + (mo.part(2) - 1) * mo.part(1)) / mo.part(2)
    return _many(mo.product(laws.formula(u.factor), mo.combine(shape, [here, other, mo.constant(w.tokens)])))
