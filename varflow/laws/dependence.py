"""Which variables may depend on each other: the sources they are made of, and the places along which they vary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from varflow.laws.attention import blends, varies_in_attention
from varflow.laws.blocks import apart, carried, family, fresh, parts, rooted
from varflow.laws.distributions import NoFormula
from varflow.laws.moments import Formula
from varflow.laws.shared import ChannelSum, weights_within
from varflow.laws.variables import (
    ANYWHERE,
    SAME,
    BlockChoice,
    Composite,
    Depthwise,
    GaussianSum,
    Instance,
    Inverse,
    Largest,
    MaskEntry,
    Mixed,
    Noise,
    Normed,
    Opaque,
    PositionAverage,
    Product,
    SampleMean,
    SphereEntry,
    Standardized,
    Variable,
    View,
    view_of,
)
from varflow.window import Window


@dataclass
class Dependence(ABC):
    """Dependence of variables, found once each; ``profiles``: places of an image are told apart."""

    profiles: bool = False
    _roots: dict[Variable, tuple[Instance, ...]] = field(default_factory=dict)
    _moved_roots: dict[Any, tuple[Instance, ...]] = field(default_factory=dict)
    _root_bits: dict[Instance, list[tuple[Instance, int]]] = field(default_factory=dict)
    _depends: dict[Any, bool] = field(default_factory=dict)
    _varies: dict[tuple[Variable, bool], bool] = field(default_factory=dict)
    _bits: dict[object, int] = field(default_factory=dict)
    _family_sets: dict[Variable, int] = field(default_factory=dict)
    _backward_bits: int = 0
    _mixtures: dict[Variable, bool] = field(default_factory=dict)
    _blends: dict[Variable, bool] = field(default_factory=dict)
    mixes_tokens: bool = False

    @abstractmethod
    def covariance(self, x: Instance, y: Instance, view: View) -> Formula:
        """Covariance of two Gaussian variables, ``y`` at the other place of the view."""

    def roots(self, x: Instance) -> tuple[Instance, ...]:
        """The basic variables an instance depends on."""
        if not x.moves and not x.there:
            return self._own_roots(x.variable)
        key = (x.variable, x.moves, x.there)
        if key not in self._moved_roots:
            self._moved_roots[key] = tuple(carried(r, x) for r in self._own_roots(x.variable))
        return self._moved_roots[key]

    def _own_roots(self, v: Variable) -> tuple[Instance, ...]:
        if v not in self._roots:
            itself, children = rooted(v)
            inner = dict.fromkeys(r for c in children for r in self.roots(c))
            self._roots[v] = (Instance(v), *inner) if itself else tuple(inner)
        return self._roots[v]

    def varies(self, v: Variable, sample: bool) -> bool:
        """Whether a variable differs between samples (or, if not ``sample``, between positions)."""
        key = (v, sample)
        if key not in self._varies:
            self._varies[key] = self._find_varies(v, sample)
        return self._varies[key]

    def differs(self, x: Instance, sample: bool) -> bool:
        """Whether an instance differs between samples, or positions: those made of channels always do."""
        return (x.dealt and not sample) or self.varies(x.variable, sample)

    def _find_varies(self, v: Variable, sample: bool) -> bool:
        match v:
            case Noise(kind=kind, placed=placed):
                return kind != "bias" and (sample or placed)
            case MaskEntry(per_sample=per_sample, placed=placed):
                return sample or (placed and not per_sample)
            case BlockChoice() | Inverse():
                return False
            case SampleMean(of=of, channels=channels) if of is not None and channels is not None:
                return sample and self.differs(of, sample)
            case SampleMean(of=of, count=count) if of is not None:
                return not sample and count == 1 and self.differs(of, sample)
            case PositionAverage(of=of) if of is not None:
                return sample and self.differs(of, sample)
            case Mixed(of=of, mix=mix) if of is not None and mix is not None:
                mean = mix.normalized and not mix.transpose
                return self.differs(of, sample) or not (sample or mean or self._even(
                    mix.window, mix.transpose, len(set(mix.coefficients)) == 1))
            case Mixed(of=of) | Largest(of=of) | Depthwise(twin=of) | Standardized(of=of) if of is not None:
                return self.differs(of, sample)
            case Product(window=Window() as w, transpose=transpose) if not sample and not self._even(w, transpose):
                return True
            case Normed(of=of) if of is not None:
                return self.differs(of, sample)
            case SphereEntry(of=of) if of is not None:
                return sample or self.differs(of, sample)
            case Product(operand=operand) | ChannelSum(operand=operand):
                return any(b.law is not None and self.differs(b.law, sample) for b in operand)
            case GaussianSum(terms=terms):
                return any(self.differs(t, sample) for _, t in terms)
            case Composite(args=args):
                return any(self.differs(a, sample) for a in args)
            case Opaque(roots=roots):
                return any(self.differs(a, sample) for a in roots)
        return varies_in_attention(self, v, sample)

    def _even(self, w: Window, transpose: bool, alike: bool = True) -> bool:
        """Whether a window makes a value that is the same at all positions of one that is (its taps ``alike``); far
        from borders it does."""
        return not self.profiles or (w.covers_evenly and alike if transpose else w.uniform)

    def _reduced(self, view: View, x: Instance, y: Instance) -> View:
        """The view as far as both instances vary along it."""
        return view_of(view.position and self.differs(x, False) and self.differs(y, False),
                       view.sample and self.differs(x, True) and self.differs(y, True))

    def _view_of(self, x: Instance, y: Instance, view: View) -> View:
        return view if x.there != y.there else SAME

    def dependent(self, x: Instance, y: Instance, view: View) -> bool:
        """Whether two instances may depend on each other; ``view`` is where ``there`` is."""
        shared = self._families(x.variable) & self._families(y.variable)
        if not shared or fresh(x, y) or fresh(y, x):
            return False
        between = self._view_of(x, y, view)
        near = self.profiles and self._overlaps(x.variable) and self._overlaps(y.variable)
        if between.position and (near or (self.mixes_tokens and any(blends(z.variable, self._blends) for z in (x, y)))):
            here = View(False, between.sample)
            return any(self._touching(x, y, shared, w) for w in (between, here))
        return self._touching(x, y, shared, between)

    def _overlaps(self, v: Variable) -> bool:
        """Whether a variable is made of mixtures of positions, which neighbours may share."""
        if v not in self._mixtures:
            self._mixtures[v] = isinstance(v, Mixed) or any(self._overlaps(x.variable) for x in parts(v))
        return self._mixtures[v]

    def _touching(self, x: Instance, y: Instance, shared: int, between: View) -> bool:
        if (found := self._depends.get((x, y, between))) is None:
            mine, others = ([(r, bits) for r, bits in self._rooted_in(i) if bits & shared] for i in (x, y))
            found = any(i & j and self._roots_dependent(a, b, between) for a, i in mine for b, j in others)
            self._depends[x, y, between] = found
        return found

    def _rooted_in(self, x: Instance) -> list[tuple[Instance, int]]:
        """The basic variables of an instance at the own place, with the bits of their families."""
        x = x.at(False) if x.there else x
        if x not in self._root_bits:
            self._root_bits[x] = [(r, self._families(r.variable)) for r in self.roots(x)]
        return self._root_bits[x]

    def _families(self, v: Variable) -> int:
        """A bit for every source or (weight, orientation, direction) that a variable is made of."""
        if v not in self._family_sets:
            inner = parts(v)
            own = not inner or isinstance(v, Depthwise)
            bits = 1 << self._bits.setdefault(family(v), len(self._bits)) if own else 0
            self._backward_bits |= bits if v.backward else 0
            operand = v.operand if isinstance(v, ChannelSum) else ()
            for x in (*inner, *(b.law for b in operand if b.law is not None)):
                bits |= self._families(x.variable)
            if isinstance(v, ChannelSum) and v.backward:
                for name in self._weights_of(v):
                    for transpose in (False, True):
                        bits |= 1 << self._bits.setdefault((name, transpose, True), len(self._bits))
            self._family_sets[v] = bits
        return self._family_sets[v]

    def _roots_dependent(self, a: Instance, b: Instance, view: View) -> bool:
        key = (a.variable, a.moves, b.variable, b.moves, view.position, view.sample)
        if (found := self._depends.get(key)) is None:
            found = self._depends[key] = self._find_dependent(a, b, view)
        return found

    def _find_dependent(self, a: Instance, b: Instance, view: View) -> bool:
        u, v = a.variable, b.variable
        if isinstance(u, BlockChoice) and isinstance(v, BlockChoice):
            return u.group == v.group and a.moves == b.moves
        if isinstance(u, ChannelSum) or isinstance(v, ChannelSum):
            return u.backward == v.backward and self._sums_dependent(a, b, view)
        moved = a.moves != b.moves and ANYWHERE not in (*a.moves, *b.moves)
        if moved and apart(a, b):
            return isinstance(u, MaskEntry) and u is v and u.per_sample and self._reduced(view, a, a).same
        if isinstance(u, MaskEntry) or isinstance(v, MaskEntry):
            return u is v and self._reduced(view, a, b).same
        if isinstance(u, SphereEntry) or isinstance(v, SphereEntry):
            return self._sphere_dependent(u, v, view)
        if isinstance(u, Depthwise) or isinstance(v, Depthwise):
            return isinstance(u, Depthwise) and isinstance(v, Depthwise) and u.weight == v.weight
        if u.backward != v.backward:
            return False
        try:
            anywhere = ANYWHERE in (*a.moves, *b.moves)
            return not self.covariance(*((Instance(u), Instance(v)) if anywhere else (a, b)), view).is_zero
        except NoFormula:
            return True

    def _sums_dependent(self, a: Instance, b: Instance, view: View) -> bool:
        """Whether sums over channels (or one and a value) share a source in any channel; a gradient W^T d and a sum
        that W has a say in do."""
        for one, other in ((a.variable, b.variable), (b.variable, a.variable)):
            if isinstance(one, ChannelSum) and one.backward and isinstance(other, Product):
                return other.weight in self._weights_of(one)
        left, right = (
            [Instance(r.variable) for o in x.variable.operand if o.law is not None for r in self.roots(o.law)]
            if isinstance(x.variable, ChannelSum) else [Instance(x.variable)] for x in (a, b)
        )  # fmt: skip
        return any(self._roots_dependent(p, q, view) for p in left for q in right)

    @staticmethod
    def _weights_of(v: ChannelSum) -> set[str]:
        return set().union(*(weights_within(o.law) for o in v.operand if o.law is not None))

    def _sphere_dependent(self, u: Variable, v: Variable, view: View) -> bool:
        base = [x.of.variable if isinstance(x, SphereEntry) and x.of else x for x in (u, v)]
        if not all(b.gaussian for b in base) or base[0].backward != base[1].backward:
            return False
        views = (view, View(view.position, True), View(view.position, False))
        return any(not self.covariance(Instance(base[0]), Instance(base[1]), w).is_zero for w in views)
