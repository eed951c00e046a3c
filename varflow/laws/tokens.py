"""Reading attention: the laws of logits, of softmax weights and of what they mix."""

from __future__ import annotations

import sympy as sp

from varflow.calculus import quotient
from varflow.laws import moments as mo
from varflow.laws.attention import OF_LOGITS, blends
from varflow.laws.given import coefficient_formula
from varflow.laws.making import Reading, there
from varflow.laws.moments import Formula
from varflow.laws.variables import (
    POSITION,
    SAME,
    Attended,
    Blended,
    Blocks,
    Composite,
    GaussianSum,
    Instance,
    Logit,
    Variable,
)
from varflow.program import Blend, Instruction, Scores, Softmax, SoftmaxBackward
from varflow.symbols import arg


class Attention(Reading):
    """Laws of attention, where tokens are exchangeable."""

    def _attention(self, step: Instruction, args: list[Blocks]) -> Blocks:
        laws = [b.law for blocks in args for b in blocks]
        if laws == [None]:
            return self._one(self._uniform(step))
        if any(len(blocks) == 1 and blocks[0].law is None for blocks in args):
            return self._one(None)
        if any(len(blocks) > 1 for blocks in args) or None in laws or self.laws.profiles:
            return self._one(self._of_all_tokens(*laws))
        found = self._law_in_attention(step, [x for x in laws if x is not None])
        return self._one(self._of_all_tokens(*laws) if found is None else found)

    def _of_all_tokens(self, *of: Instance | None) -> Instance:
        """A value without a formula that depends on all tokens."""
        self.laws.mixes_tokens = True
        return self._unknown(*of, mixed=True)

    def _law_in_attention(self, step: Instruction, args: list[Instance]) -> Instance | None:
        match step.primitive:
            case Scores(heads=heads):
                return self._scores(quotient(self.program.shape(step.args[0]).channels, heads), args[0], args[1])
            case Softmax(heads=heads, causal=False):
                return self._softmax(quotient(step.shape.channels, heads), args[0])
            case SoftmaxBackward():
                return self._softmax_gradient(args[0], args[1])
            case Blend(transpose=transpose):
                return self._blend(args[0], args[1], transpose)
        return None

    def _uniform(self, step: Instruction) -> Instance:
        """The softmax of zeros."""
        if isinstance(step.primitive, Softmax) and not step.primitive.causal:
            return self._make(Attended, scale=sp.S.Zero, tokens=quotient(step.shape.channels, step.primitive.heads))
        return self._of_all_tokens()

    def _scores(self, width: sp.Expr, q: Instance, k: Instance) -> Instance | None:
        """Inner products of values that have no channel in common."""
        if self._tied(q, k) or not (self.laws.mean(q).is_zero or self.laws.mean(k).is_zero):
            return None
        return self._make(Logit, queries=q, keys=k, width=width)

    def _tied(self, x: Instance, y: Instance) -> bool:
        """Whether values depend on each other within a token or between two, or lie on a grid with neighbours."""
        laws = self.laws
        near = any(laws._overlaps(z.variable) for z in (x, y))
        return near or laws.dependent(x, y, SAME) or laws.dependent(x, there(y), POSITION)

    def _softmax(self, tokens: sp.Expr, logits: Instance) -> Instance | None:
        scale, inner = unscaled(self.laws.formula, logits)
        if not isinstance(inner.variable, Logit) or inner.moves or inner.variable.backward:
            return None
        return self._make(Attended, logits=inner, scale=self.laws.quantity(scale, "k"), tokens=tokens)

    def _softmax_gradient(self, weights: Instance, slope: Instance) -> Instance | None:
        a, d = weights.variable, slope.variable
        if not isinstance(a, Attended) or not isinstance(d, Logit) or weights.moves or slope.moves:
            return None
        return self._make(Attended, logits=a.logits, scale=a.scale, tokens=a.tokens, slope=slope)

    def _blend(self, weights: Instance, of: Instance, transpose: bool) -> Instance | None:
        factor, base = unscaled(self.laws.formula, weights)
        inner: Instance | None = base
        if not isinstance(base.variable, Attended):
            factor, inner = mo.ONE, self._free(weights)
        if inner is None or inner.moves or self.laws._overlaps(of.variable):
            return None
        if self.laws.dependent(inner, of, SAME) or self.laws.dependent(inner, there(of), POSITION):
            return None
        places = self.program.shape(self.step.args[0]).places
        self.laws.mixes_tokens = True
        return self._make(Blended, weights=inner, factor=self.laws.quantity(factor, "k"), of=of, transpose=transpose,
                          places=places)


    def _free(self, weights: Instance) -> Instance | None:
        """Weights that are independent of each other and have no mean (the gradient of logits that a linear layer
        reads) in the form of a softmax's gradient."""
        known: dict[Variable, bool] = {}
        if weights.moves or blends(weights.variable, known, OF_LOGITS) or not self.laws.mean(weights).is_zero:
            return None
        primitive = self.step.primitive
        assert isinstance(primitive, Blend)
        tokens = quotient(self.program.shape(self.step.args[0]).channels, primitive.heads)
        return self._make(Attended, slope=weights, tokens=tokens)


def unscaled(formula: object, x: Instance) -> tuple[Formula, Instance]:
    """(c, y) of a multiple c y."""
    assert callable(formula)
    v = x.variable
    match v:
        case GaussianSum(terms=((c, inner),)):
            deeper, base = unscaled(formula, inner)
            return mo.product(formula(c), deeper), Instance(base.variable, base.moves + x.moves, x.there)
        case Composite(expr=expr, args=(inner,), coefficients=coefficients):
            slope = sp.expand(expr).coeff(arg(0))
            if sp.expand(expr - slope * arg(0)) == 0 and slope != 0:
                deeper, base = unscaled(formula, inner)
                factor = mo.product(coefficient_formula(slope, coefficients), deeper)
                return factor, Instance(base.variable, base.moves + x.moves, x.there)
    return mo.ONE, x
