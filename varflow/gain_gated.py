"""The gains of a function of several inputs, or with several outputs: gates, maxout, concatenated activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType

import sympy as sp

from varflow.activations import substitute
from varflow.binormal import Phi2, normal_cdf
from varflow.gain_fields import GainFields
from varflow.gated import GATED, NOISE, GatedCall
from varflow.laws.expectation import (
    GaussianExpectation,
    Normal,
    derivative,
    expect,
    has_jump,
)
from varflow.symbols import X, arg


def _slope_square(variable: sp.Symbol, f: sp.Expr) -> sp.Expr:
    return derivative(f, variable) ** 2


def _largest_kernel(count: int, c: sp.Symbol) -> sp.Expr:
    """E[M N] of the largest M, N of ``count`` standard normals each, paired by correlation c.

    One pair holds both (density phi2 Phi2^(k-1)), or two different pairs hold one each.
    """
    if count == 1:
        return c
    if count == 2:
        return c / 2 + (sp.sqrt(1 - c**2) + c * sp.asin(c)) / sp.pi
    z, u = sp.symbols("z u", real=True)
    both, spread = Phi2(z, u, c), sp.sqrt(1 - c**2)
    ends = normal_cdf((u - c * z) / spread) * normal_cdf((z - c * u) / spread)
    same = count * z * u * both ** (count - 1)
    apart = count * (count - 1) * z * u * both ** (count - 2) * ends
    return GaussianExpectation(same, (z, u), (1, c, 1)) + GaussianExpectation(apart, (z, u), (1, 0, 1))


@dataclass(frozen=True)
class GatedGain(GainFields):
    """Moments of f(x_1, ..., x_k) over independent x_i ~ N(mean, q), averaged over the output channels.

    ``derivative_second_moment`` is the total over inputs of E (df/dx_i)^2, so that ``chi`` keeps its meaning: the
    slope at 1 of the correlation map when all inputs correlate alike. With several outputs (crelu, concat_elu)
    moments are averages over output channels, as fan_in counts them, ``variance`` that of all channels together;
    ``total`` holds their sums over the outputs of one input. ``second_derivative_second_moment`` and
    ``dead_share`` belong to functions of one argument: None.
    """

    function: GatedCall
    input_variance: sp.Expr
    input_mean: sp.Expr

    def __reduce__(self) -> tuple[object, ...]:
        function = self.function.gated.name, self.function.values
        return _restored, (*function, self.input_variance, self.input_mean)

    @property
    def title(self) -> str:
        outputs = ", ".join(map(str, self.function.outputs))
        return f"{self.function}: {outputs}"

    @property
    def activation(self) -> sp.Expr:
        """The outputs: one expression in ``symbols.arg``, or a Tuple of several."""
        outputs = self.function.outputs
        return outputs[0] if len(outputs) == 1 else sp.Tuple(*outputs)

    @cached_property
    def mean(self) -> sp.Expr:
        return self._averaged(lambda f: f) if not self.function.gated.largest else self._largest(1)

    @cached_property
    def second_moment(self) -> sp.Expr:
        return self._averaged(lambda f: f**2) if not self.function.gated.largest else self._largest(2)

    @cached_property
    def derivative_second_moment(self) -> sp.Expr:
        if self.function.gated.largest:
            return sp.S.One
        return sp.Add(*self.derivative_second_moments)

    @cached_property
    def derivative_second_moments(self) -> tuple[sp.Expr, ...]:
        """E (df/dx_i)^2 for each input, averaged over outputs."""
        count = self.function.inputs
        if self.function.gated.largest:
            return (sp.Rational(1, count),) * count
        return tuple(self._averaged(partial(_slope_square, arg(i))) for i in range(count))

    @property
    def second_derivative_second_moment(self) -> None:
        return None

    @property
    def dead_share(self) -> None:
        return None

    @cached_property
    def has_jump(self) -> bool:
        if self.function.gated.largest:
            return False
        pairs = ((f, arg(i)) for f in self.function.outputs for i in range(self.function.inputs))
        return any(has_jump(f, x) for f, x in pairs)

    @cached_property
    def total(self) -> Mapping[str, sp.Expr]:
        """Moments summed over the outputs that share their inputs."""
        count = len(self.function.outputs)
        names = ("mean", "second_moment", "derivative_second_moment")
        return MappingProxyType({name: count * getattr(self, name) for name in names})

    @cached_property
    def kernel(self) -> sp.Expr | None:
        """E[f(u) f(v)], averaged over outputs, in ``varflow.maps.Q`` and ``C``: every pair u_i, v_i ~ N(0, Q) of
        correlation C, different inputs independent. None with noise."""
        from varflow.maps import C, Q

        if self.function.gated.largest:
            return Q * _largest_kernel(self.function.inputs, C)
        if self.function.noise:
            return None
        us = [arg(i) for i in range(self.function.inputs)]
        twins = {u: sp.Symbol(f"v_{i}", real=True) for i, u in enumerate(us)}
        pairs = set(twins.items()) | {(v, u) for u, v in twins.items()}

        def covariance(u: sp.Symbol, v: sp.Symbol) -> sp.Expr:
            return Q if u == v else Q * C if (u, v) in pairs else sp.S.Zero

        law = dict.fromkeys([*us, *twins.values()], Normal())
        outputs = self.function.outputs
        return sp.Add(*(expect(f * substitute(f, twins), law, covariance) for f in outputs)) / len(outputs)

    @cached_property
    def c_map(self) -> sp.Expr | None:
        """The uncentred correlation of the outputs, E[f(u) f(v)] / E[f^2], in ``varflow.maps.Q`` and ``C``, as
        ``kernel``; its slope at C = 1 is chi at zero mean. None with noise."""
        from varflow.maps import Q

        square = type(self)(self.function, Q, sp.S.Zero).second_moment
        return None if self.kernel is None else self.kernel / square

    def _averaged(self, moment: Callable[[sp.Expr], sp.Expr]) -> sp.Expr:
        outputs = self.function.outputs
        return sp.Add(*(self._expect(moment(f)) for f in outputs)) / len(outputs)

    def _expect(self, expr: sp.Expr) -> sp.Expr:
        xs = [arg(i) for i in range(self.function.inputs)]
        shifted = expr.xreplace({x: x + self.input_mean for x in xs}) if self.input_mean != 0 else expr
        law = dict.fromkeys(xs, Normal())
        found = expect(shifted, law, lambda u, v: self.input_variance if u == v else sp.S.Zero)
        return self._over_noise(found) if self.function.noise else found

    def _over_noise(self, expr: sp.Expr) -> sp.Expr:
        """E over the noise of a polynomial in it."""
        powers = sp.collect(sp.expand(expr), NOISE, evaluate=False)
        return sp.Add(*(f * self._noise_moment(power) for power, f in powers.items()))

    def _noise_moment(self, power: sp.Expr) -> sp.Expr:
        degree = sp.degree(power, NOISE)
        return self.function.noise[int(degree)] if degree else sp.S.One

    def _largest(self, power: int) -> sp.Expr:
        """E (m + sqrt(q) M)^power, M the largest of k standard Gaussians, whose density is k phi Phi^(k-1)."""
        q, m = self.input_variance, self.input_mean
        if power == 1:
            return m + sp.sqrt(q) * self._unit_moment(1)
        return m**2 + 2 * m * sp.sqrt(q) * self._unit_moment(1) + q * self._unit_moment(2)

    def _unit_moment(self, power: int) -> sp.Expr:
        count = self.function.inputs
        body = count * X**power * normal_cdf(X) ** (count - 1)
        return expect(body, {X: Normal()}, lambda u, v: sp.S.One)


def _restored(name: str, values: tuple[sp.Rational, ...], q: sp.Expr, mean: sp.Expr) -> GatedGain:
    """What a pickle stands for: the functions of the table are made there, not in the pickle."""
    return GatedGain(GatedCall(GATED[name], values), q, mean)
