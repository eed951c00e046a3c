"""solve: the initialization that preserves the signal, as formulas where they exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import sympy as sp

from varflow.calculus import derivative, over, tidy
from varflow.constants import number_of, shortened
from varflow.derive import Derivation, WeightLaw, derive
from varflow.errors import InputError, SolveError
from varflow.fields import closest
from varflow.laws.expectation import GaussianExpectation, Normal, compile_formula, expect
from varflow.laws.moments import Expansion, Moment, Quantity
from varflow.laws.part import Part
from varflow.network import Network
from varflow.ops.linear import weight_group
from varflow.policy import Segment, check_policy, compromise, feeds_maximum, leads, segments
from varflow.rebuild import scaled_variance
from varflow.roots import Root, solve_for, solve_system
from varflow.smallsignal import small_signal
from varflow.solve_conditions import conditions_of, far_ones, growth_of, shares_of, with_formulas
from varflow.solve_expansion import MOST, Solved
from varflow.symbols import X, arg
from varflow.trials import TRIALS, by_trials, constant_ratio, has_formula

GRADIENT = sp.Symbol("g", positive=True)
VARIANCE = sp.Symbol("v", positive=True)
BUDGET = sp.Symbol("beta", positive=True)
OPEN = "with numbers for the widths (network.bind) the true one is taken"
COUPLED = "the true one depends on scales that wait for this one"
UNKNOWN = "the gradient in front of it has no formula"


@dataclass(frozen=True)
class Answer:
    """How one unknown was determined: the condition, its answer, and whether that is a formula."""

    unknown: sp.Symbol
    condition: sp.Eq
    value: sp.Expr
    closed_form: bool
    note: str = ""


class Solution(Mapping[str, WeightLaw]):
    """Solved weights: ``s["fc1"].variance``; ``derivation`` is that of the solved network, ``unsolved`` the one with
    open scales.

    ``answers`` say how each unknown was determined, ``notes`` what a reader must know: compromises,
    approximations, other solutions.
    """

    def __init__(self, network: Network, preserve: str, answers: Sequence[Answer], unsolved: Derivation) -> None:
        self.network, self.preserve, self.answers, self.unsolved = network, preserve, tuple(answers), unsolved
        self.derivation = derive(network) if answers else unsolved
        far = far_ones((a.unknown, a.value) for a in answers)
        self.notes = tuple(dict.fromkeys([*(a.note for a in answers if a.note), *far]))

    @property
    def weights(self) -> dict[str, WeightLaw]:
        """All weights by name."""
        return self.derivation.weights

    @property
    def equations(self) -> tuple[tuple[sp.Symbol, sp.Eq, sp.Expr, bool], ...]:
        """(unknown, condition, answer, whether a formula) of everything solved for."""
        return tuple((a.unknown, a.condition, a.value, a.closed_form) for a in self.answers)

    def __getitem__(self, name: str) -> WeightLaw:
        for key, weight in self.weights.items():
            if name in (key, weight_group(key)):
                return weight
        raise InputError(f"no weight is called {name!r}", instead=closest(name, self.weights))

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def __repr__(self) -> str:
        found = ", ".join(str(a.unknown) for a in self.answers) or "nothing was unknown"
        return f"<Solution of {self.network.name!r}, preserve {self.preserve}: {found}>"

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(n)}</td><td>${sp.latex(w.variance)}$</td><td>${sp.latex(w.init_gain)}$</td></tr>"
            for n, w in self.weights.items())
        return f"<table><tr><th>weight</th><th>Var(W)</th><th>gain</th></tr>{rows}</table>"


class _Solver:
    """Goes through the weights in program order, each with its segment's condition."""

    def __init__(self, derivation: Derivation, policy: str, budgets: Mapping[str, sp.Expr], skip: set[sp.Symbol],
                 merged_budget: sp.Expr | None) -> None:
        self.d, self.policy, self.budgets, self.skip = derivation, policy, budgets, skip
        self.merged_budget = merged_budget
        self.table: dict[sp.Symbol, sp.Expr] = {}
        self.expansion = Solved(self.table)
        self.answers: list[Answer] = []

    def run(self) -> None:
        """Answer every unknown that is not left to the user's equations."""
        by_unknown: dict[sp.Symbol, list[Segment]] = {}
        for part in self.d.parts():
            for s in segments(part.program):
                unknown = part.program.weights[s.weight].unknown
                if unknown is not None and unknown not in self.skip:
                    by_unknown.setdefault(unknown, []).append(s)
            order = [u for u in by_unknown if u not in self.table]
            left = order
            while left:  # where gradients join, they know the weights behind: those wait for these
                late = [u for u in left if not self._solve(part, u, by_unknown[u])]
                if len(late) == len(left):
                    last = max(late, key=order.index)
                    late.remove(last)
                    if not self._solve(part, last, by_unknown[last], alone=True):
                        reached = part.gradient_ends(by_unknown[last][0]) is not None
                        why = "the gradient at its ends has no formula" if reached else "no cotangent reaches it"
                        raise SolveError(f"no condition determines {last}", why=why,
                                         instead='preserve="forward", its variance, or an equation')
                left = late[::-1]
            self.answers.sort(key=lambda a: order.index(a.unknown) if a.unknown in order else -1)

    def _solve(self, part: Part, unknown: sp.Symbol, uses: list[Segment], alone: bool = False) -> bool:
        """Whether a condition determines the unknown; ``alone``: one that knows nothing of other open scales."""
        budget = self._budget(unknown, uses)
        forward = backward = None
        if self.policy != "backward":
            forward = self._forward(part, unknown, uses, budget)
        if self.policy != "forward":
            backward = self._backward(part, unknown, uses, budget, alone)
        value = compromise(self.policy, forward and forward.value, backward and backward.value)
        main = forward or backward
        if value is None or main is None:
            return False
        note = " ".join(a.note for a in (forward, backward) if a and a.note)
        if self.policy in ("harmonic", "geometric"):
            note = f"{note} {unknown}: the {self.policy} mean of the forward and the backward answer.".strip()
        value = number_of(value) if value.has(sp.Float) and not value.free_symbols else value
        self.table[unknown] = shortened(value)
        self.expansion.settle(unknown)
        closed = all(a.closed_form for a in (forward, backward) if a) and not value.has(sp.Float)
        self.answers.append(Answer(unknown, main.condition, value, closed, note))
        return True

    def _budget(self, unknown: sp.Symbol, uses: list[Segment]) -> sp.Expr:
        if unknown.name[2:] in self.budgets:
            return self.budgets[unknown.name[2:]]
        if self.merged_budget is not None and uses[-1].merged:
            return self.merged_budget
        return sp.S.One

    # -- forward -------------------------------------------------------------------------------------

    def _second(self, part: Part, value: int) -> sp.Expr | None:
        return self._expand(part, part.second(value))

    def _expand(self, part: Part, quantity: Quantity | None) -> sp.Expr | None:
        if quantity is None:
            return None
        expr = self.expansion.of(quantity)
        return None if expr is None else expr.subs(self.table)

    def _forward(self, part: Part, unknown: sp.Symbol, uses: list[Segment], budget: sp.Expr) -> Answer:
        first = uses[0]
        shared = [u for u in uses if u.weight == first.weight]
        last = shared[-1] if self._chained(part, shared) else first
        start, end = self._second(part, first.start), self._second(part, last.end)
        if start is not None and end is not None and not self._saturates(part, first, budget):
            if not end.is_rational_function(unknown) and (start.free_symbols | end.free_symbols) - {unknown}:
                return self._forward_at_unit_signal(part, unknown, first, budget)
            root = solve_for(end, budget * start, unknown)
            if root.value is not None:
                return _answer(unknown, sp.Eq(end, budget * start, evaluate=False), root)
        if start is None and not self._saturates(part, first, budget):
            found = self._forward_of_any_signal(part, unknown, first, last, budget)
            if found is not None:
                return found
            found = self._forward_by_trials(part, unknown, first, last, budget)
            if found is not None:
                return found
            if part.activation(first) is not None:
                return self._forward_at_unit_signal(part, unknown, first, budget, "has no formula")
        return self._saturating(part, unknown, first, budget, start)

    def _forward_of_any_signal(self, part: Part, unknown: sp.Symbol, first: Segment, last: Segment,
                               budget: sp.Expr) -> Answer | None:
        """The forward condition with symbols for moments that have no formula; None unless the answer is the same for
        all of them."""
        start, end = part.second(first.start), part.second(last.end)
        if not isinstance(start, Moment) or end is None:
            return None
        for signals in ([start], [a for a in start.args if isinstance(a, Moment)]):
            found = self._forward_of_signals(signals, (start, end), unknown, budget)
            if found is not None:
                return found
        return None

    def _forward_of_signals(self, signals: list[Moment], ends: tuple[Quantity, Quantity], unknown: sp.Symbol,
                            budget: sp.Expr) -> Answer | None:
        expansion = Expansion()
        names = [sp.Symbol("q_in" if len(signals) == 1 else f"q_{m.node}", positive=True) for m in signals]
        for m, name in zip(signals, names, strict=True):
            expansion.seed(m, name)
        before, after = (expansion.of(q) for q in ends)
        if before is None or after is None:
            return None
        before, after = before.subs(self.table), tidy(after.subs(self.table))
        root = solve_for(after, budget * before, unknown)
        if root.value is None or root.value.free_symbols & set(names):
            return None
        condition = sp.Eq(after, budget * before, evaluate=False)
        which = ", ".join(map(str, names))
        return _answer(unknown, condition, root, f"{unknown}: the same for an input of any second moment {which}.")

    def _forward_by_trials(self, part: Part, unknown: sp.Symbol, first: Segment, last: Segment,
                           budget: sp.Expr) -> Answer | None:
        """The forward condition by numbers, where moments have no formula; None where they have no numbers."""
        start, end = part.second(first.start), part.second(last.end)
        root = None if start is None or end is None else by_trials(start, end, budget, unknown, self.table)
        if root is None:
            return None
        names = [f"q_{part.program.instructions[v].node}" for v in (first.start, last.end)]
        before, after = sp.Symbol(names[0], positive=True), sp.Function(names[1])(unknown)
        return _answer(unknown, sp.Eq(after, budget * before, evaluate=False), root,
                       f"{unknown}: by the numbers of both second moments, known to about three digits.")

    def _forward_at_unit_signal(self, part: Part, unknown: sp.Symbol, s: Segment, budget: sp.Expr,
                                why: str = "depends on open symbols") -> Answer:
        """The forward condition for an input of unit second moment, where the true one is not at hand."""
        f = part.activation(s)
        if f is None:
            raise SolveError(f"the forward condition for {unknown} has no closed solution",
                             instead="numbers for the symbols (network.bind), or its variance")
        second = _gaussian_mean(f**2).subs(VARIANCE, unknown)
        root = solve_for(second, budget, unknown)
        if root.value is None:
            raise SolveError(f"no value of {unknown} preserves the second moment", why=root.reason)
        note = f"{unknown}: solved for an input of unit second moment, since the true one {why}."
        return _answer(unknown, sp.Eq(second, budget, evaluate=False), root, note)

    @staticmethod
    def _saturates(part: Part, s: Segment, budget: sp.Expr) -> bool:
        """Whether no Gaussian pre-activation gives the activation a unit second moment (tanh, sigmoid, sin)."""
        f = part.activation(s)
        if f is None or f.is_polynomial(arg(0)):
            return False
        second, names = _gaussian_mean(f**2), sorted(f.free_symbols - {arg(0)}, key=str)
        trials = [{n: size if n.is_integer else other for n in names} for size, other in TRIALS] if names else [{}]
        roots = (solve_for(m, sp.S.One, VARIANCE) for m in (second, *(second.subs(t) for t in trials if t)))
        return all(root.value is None for root in roots)

    @staticmethod
    def _small_gain(part: Part, s: Segment) -> sp.Expr | None:
        """A in E f(z)^2 = A q and E f'(z)^2 = A at a small second moment q, both sides of a kink at 0 counted; None
        where the activation f has no such number, or f(0) is not 0."""
        f = part.activation(s)
        small = None if f is None else small_signal(f.subs(arg(0), X))
        if small is None or not small.vanishes or small.unit_slope.is_zero is not False:
            return None
        return small.unit_slope

    @staticmethod
    def _chained(part: Part, uses: list[Segment]) -> bool:
        """Whether every use of a shared weight but the first lies behind the one before it, on a path that nothing
        joins."""
        distinct = list({(u.start, u.product): u for u in uses}.values())
        return len(distinct) > 1 and not any(u.merged for u in uses) and all(
            leads(part.program, one.end, other.start) for one, other in pairwise(distinct))

    def _saturating(self, part: Part, unknown: sp.Symbol, s: Segment, budget: sp.Expr,
                    start: sp.Expr | None) -> Answer:
        """No scale preserves q through the activation: preserve small signals, else the pre-activation."""
        small = self._small_gain(part, s)
        if small is not None:
            note = (f"{unknown}: no scale preserves the second moment through the activation (it saturates); the "
                    "answer preserves small signals, f(x) ~ f'(0) x (Glorot and Bengio 2010).")
            return Answer(unknown, sp.Eq(unknown * small, budget, evaluate=False), budget / small, True, note)
        product = self._second(part, s.product)
        if start is None or product is None:
            raise SolveError(f"{unknown} cannot be solved for: its input's second moment has no formula",
                             instead=f"state the variance of {unknown.name[2:]!r}, or give an equation")
        root = solve_for(product, budget, unknown)
        if root.value is None:
            raise SolveError(f"no value of {unknown} gives its output second moment {budget}", why=root.reason,
                             instead=f"state the variance of {unknown.name[2:]!r}")
        note = (f"{unknown}: no scale preserves the second moment through the activation; the answer gives its "
                "pre-activation the second moment of a unit input (He et al. 2015, eq. 10).")
        return _answer(unknown, sp.Eq(product, budget, evaluate=False), root, note)

    # -- backward ------------------------------------------------------------------------------------

    def _backward(self, part: Part, unknown: sp.Symbol, uses: list[Segment], budget: sp.Expr,
                  alone: bool = False) -> Answer | None:
        s = uses[0]
        if part.gradient_ends(s) is None:
            return None
        ratio, small = self._gradient_ratio(part, s), self._small_gain(part, s)
        if small is not None and self._saturates(part, s, budget):
            ratio = tidy(part.back_factor(s) * small)
            note = f"{unknown}: small signals, f(x) ~ f'(0) x (Glorot and Bengio 2010)."
            return _answer(unknown, sp.Eq(ratio, budget, evaluate=False), solve_for(ratio, budget, unknown), note)
        if ratio is not None and self._open_scales(unknown) & ratio.free_symbols:
            return self._backward_at_unit_signal(part, unknown, s, budget, COUPLED) if alone else None
        if ratio is None:
            found = self._backward_by_trials(part, unknown, s, budget)
            if found is None and alone and part.activation(s) is not None and not feeds_maximum(part.program, s.end):
                return self._backward_at_unit_signal(part, unknown, s, budget, UNKNOWN)
            return found
        root = solve_for(ratio, budget, unknown)
        if root.value is not None:
            return _answer(unknown, sp.Eq(ratio, budget, evaluate=False), root)
        why = OPEN if ratio.free_symbols - {unknown} else f"the true one has no solution ({root.reason})"
        return self._backward_at_unit_signal(part, unknown, s, budget, why)

    def _open_scales(self, unknown: sp.Symbol) -> set[sp.Symbol]:
        """The scales that wait for their conditions, but for one."""
        return set(self.d.unknowns().values()) - self.table.keys() - {unknown}

    def _backward_by_trials(self, part: Part, unknown: sp.Symbol, s: Segment, budget: sp.Expr) -> Answer | None:
        """The backward condition by numbers, where the gradient at the segment's end has no formula (in front of a max
        pool): by the share of it that passes the activation where that is constant, else by trial values."""
        ends, factor = part.gradient_ends(s), part.back_factor(s)
        if ends is None or ends[0] is None or ends[1] is None:
            return None
        others, sizes = self._open_scales(unknown), set(self.d.network.symbols.values())
        share = constant_ratio(*ends, factor, {*sizes, *others, unknown}, self.table)
        if share is not None:
            note = f"{unknown}: the share {sp.N(share, 4)} of the gradient passes its activation, a number known to " \
                   "about three digits." if share.is_Float else ""
            condition = sp.Eq(share * factor, budget, evaluate=False)
            return Answer(unknown, condition, tidy(unknown * budget / (share * factor)), share.is_Rational, note)
        ones = dict.fromkeys(others, sp.S.One)
        if constant_ratio(*ends, sp.S.One, others, self.table | {unknown: sp.S.One}) is None:
            return None
        root = by_trials(*ends, budget, unknown, self.table | ones)
        if root is None:
            return None
        g = [sp.Function(f"g_{part.program.instructions[v].node}")(unknown) for v in (s.start, s.end)]
        rough = "" if all(map(has_formula, ends)) else ", known to about three digits"
        return _answer(unknown, sp.Eq(g[0], budget * g[1], evaluate=False), root,
                       f"{unknown}: by the numbers of both gradients{rough}.")

    def _backward_at_unit_signal(self, part: Part, unknown: sp.Symbol, s: Segment, budget: sp.Expr,
                                 why: str = OPEN) -> Answer:
        """The backward condition with E[f'^2] taken where the layer preserves a unit second moment."""
        f = part.activation(s)
        if f is None:
            raise SolveError(f"the backward condition for {unknown} has no closed solution",
                             instead="preserve=\"forward\", or numbers for the symbols (network.bind)")
        scale = solve_for(_gaussian_mean(f**2), sp.S.One, VARIANCE).value or sp.S.One
        slope = _gaussian_mean(derivative(f, arg(0)) ** 2).subs(VARIANCE, scale)
        if slope.free_symbols:
            names = ", ".join(sorted(map(str, slope.free_symbols)))
            raise SolveError(f"the backward condition for {unknown} has no closed solution and depends on {names}",
                             instead="numbers for them (network.bind)")
        chi = sp.Float(float(compile_formula(slope, ())()), 15)
        condition = part.back_factor(s) * chi
        note = (f"{unknown}: E[f'^2] = {sp.N(chi, 8)} is taken at pre-activation second moment "
                f"{sp.N(scale, 8)}, where the layer keeps a unit second moment (1 where none does); {why}.")
        return Answer(unknown, sp.Eq(condition, budget, evaluate=False), unknown * budget / condition, False, note)

    def _gradient_ratio(self, part: Part, s: Segment) -> sp.Expr | None:
        """Gradient second moment behind the weight over that at the segment's end."""
        at_end, through = part.gradient_ends(s) or (None, None)
        if through is None or at_end is None:
            return None
        seeded, plain = Solved(self.table, MOST), Solved(self.table, MOST)
        if isinstance(at_end, Moment):
            seeded.seed(at_end, GRADIENT)
        for expansion, end in ((seeded, GRADIENT if isinstance(at_end, Moment) else at_end), (plain, plain.of(at_end))):
            reached = expansion.of(through)
            if reached is None or end is None or end == 0:
                return None
            ratio = over(reached.subs(self.table), end.subs(self.table))
            if GRADIENT not in ratio.free_symbols:
                return None if _nested(ratio) or ratio.has(sp.nan, sp.zoo) else ratio
        return None


def _nested(expr: sp.Expr) -> bool:
    """Whether an integral stands in another's parameters: numbers come quicker moment by moment."""
    return any(a.has(GaussianExpectation) for e in expr.atoms(GaussianExpectation) for a in e.args)


@lru_cache(maxsize=256)
def _gaussian_mean(expr: sp.Expr) -> sp.Expr:
    """E[expr(z)], z ~ N(0, v)."""
    return expect(expr, {arg(0): Normal()}, lambda *_: VARIANCE)


def _answer(unknown: sp.Symbol, condition: sp.Eq, root: Root, note: str = "") -> Answer:
    assert root.value is not None
    others = f"{unknown}: the equation has other positive solutions, {', '.join(map(str, root.others))}; the " \
             "smallest is taken." if root.others else ""
    number = "" if root.closed_form else f"{unknown} = {sp.N(root.value, 10)}: a number, found from its equation."
    return Answer(unknown, condition, root.value, root.closed_form, " ".join(filter(None, (note, others, number))))


def solve(subject: Network | Derivation, preserve: str | None = None, *, budgets: Mapping[str, object] | None = None,
          growth: object = None, equations: Sequence[str | sp.Eq] = (), unknowns: Sequence[str] = ()) -> Solution:
    """The initialization of every weight whose variance was not given.

    ``preserve``: forward, backward, harmonic or geometric (see :mod:`varflow.policy`; default: the network's
    own). ``budgets`` maps a weight to the share of its input's second moment that its segment passes on (default
    1; 1/k for k summed branches). ``growth`` bounds the gain of the whole network: the weights that end branches
    get one common share, so that output over input is this. ``equations`` are conditions of the user's own, over the
    scales ``s_NAME``, other symbols, and ``q_NODE``, ``m_NODE``, ``g_NODE`` (second moment, mean, gradient second
    moment); they determine ``unknowns`` (default: the unknown scales they contain).
    Raises SolveError, with the reason, where conditions have no solution.
    """
    d = subject if isinstance(subject, Derivation) else derive(subject)
    network = d.network
    policy = check_policy(preserve or network.preserve)
    extra, targets = conditions_of(d, equations, unknowns)
    solver = _Solver(d, policy, shares_of(d, budgets), set(targets), BUDGET if growth is not None else None)
    solver.run()
    if growth is not None:
        _bound_growth(solver, growth_of(network.scalar(growth, "growth")))
    if extra:
        solver.answers += _solve_equations(d, extra, targets, solver.table)
    return Solution(_solved_network(network, solver.answers), policy, solver.answers, d)


def _solved_network(network: Network, answers: Sequence[Answer]) -> Network:
    variances = {a.unknown.name[2:]: scaled_variance(a.value) for a in answers if a.unknown.name.startswith("s_")}
    table = {a.unknown: a.value for a in answers if a.unknown in network.symbols.values()}
    return network.substitute(table, variances)


def _bound_growth(solver: _Solver, growth: sp.Expr) -> None:
    """Determine the common share of branch ends so that the whole network's gain is ``growth``."""
    d = solver.d
    out = d.program.outputs[-1]
    total, first = (solver._second(d.main, v) for v in (out, d.program.inputs[0]))
    if total is None or first is None or not total.has(BUDGET):
        raise SolveError("the gain of the network does not depend on a branch that ends in an unknown weight",
                         why="growth sets the share of summed branches", instead="equations=[...] for other conditions")
    root = solve_for(total, growth * first, BUDGET)
    if root.value is None:
        raise SolveError(f"no share of the branches gives a total growth of {growth}", why=root.reason)
    condition = sp.Eq(total / first, growth, evaluate=False)
    note = f"each branch passes on the share beta = {root.value} of its input, so that the whole grows by {growth}."
    solver.answers[:] = [
        Answer(a.unknown, a.condition, a.value.subs(BUDGET, root.value), a.closed_form and root.closed_form, a.note)
        for a in solver.answers]
    solver.answers.append(Answer(BUDGET, condition, root.value, root.closed_form, note))
    for unknown in solver.table:
        solver.table[unknown] = solver.table[unknown].subs(BUDGET, root.value)


def _solve_equations(d: Derivation, equations: Sequence[sp.Eq], targets: list[sp.Symbol],
                     table: dict[sp.Symbol, sp.Expr]) -> list[Answer]:
    conditions = [with_formulas(d, e) for e in equations]
    conditions = [sp.Eq(e.lhs.subs(table), e.rhs.subs(table), evaluate=False) for e in conditions]
    roots = solve_system(conditions, targets)
    return [_answer(u, e, r) for u, e, r in zip(targets, equations, roots, strict=True)]
