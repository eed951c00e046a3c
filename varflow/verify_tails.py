"""Intervals for means of skewed numbers: corrected for skewness, on a log scale for nearly log-normal ones, or none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from varflow.simulate.statistics import Summary

TAIL_LIMIT = 0.5
"""Largest size of the skewness correction of a tail probability, in units of that probability's logarithm."""
SKEW_LIMIT = 0.15
"""Largest skewness of the mean of all draws."""
LOG_SHAPE = 0.15
"""Largest skewness and excess kurtosis of logarithms that are taken for nearly normal."""
SEEN = 10
"""Draws that have to be expected where the bulk of a log-normal mean ends."""


@dataclass(frozen=True)
class Estimate:
    """Of a mean: ``error`` its standard error, ``third`` what makes its studentized value skewed (the third central
    moment of the mean, for a mean of draws), ``bias`` a bound of its systematic error, ``log_scale`` whether it comes
    from logarithms."""

    value: float
    error: float
    third: float = 0.0
    bias: float = 0.0
    log_scale: bool = False

    def times(self, factor: float) -> Estimate:
        """The estimate of a multiple."""
        size = abs(factor)
        return Estimate(factor * self.value, size * self.error, factor**3 * self.third, size * self.bias,
                        self.log_scale)

    def plus(self, other: Estimate) -> Estimate:
        """The estimate of a sum, from independent draws."""
        return Estimate(self.value + other.value, math.hypot(self.error, other.error), self.third + other.third,
                        self.bias + other.bias, self.log_scale or other.log_scale)

    def interval(self, t: float) -> tuple[float, float]:
        """Between the quantiles -t and t of the studentized value, made symmetric by Hall's transformation
        (Hall 1992, "On the removal of skewness by transformation"); widened by the bias."""
        low, high = (_skewed(z, self.skewness) for z in (-t, t))
        return self.value - high * self.error - self.bias, self.value - low * self.error + self.bias

    @property
    def skewness(self) -> float:
        """What Hall's transformation takes away."""
        return self.third / self.error**3 if self.error else 0.0

    def power(self, t: float, above: float, below: float) -> float:
        """The least probability that the interval at quantile t ends less than ``above`` over the truth, or starts less
        than ``below`` under it: the studentized value is as skewed as the interval takes it to be."""
        if not self.error:
            return 1.0
        bias, low, high = self.bias / self.error, _skewed(-t, self.skewness), _skewed(t, self.skewness)
        ends = (above / self.error - bias, -low, self.skewness), (below / self.error - bias, high, -self.skewness)
        return min(_reached(*end) for end in ends)


def _reached(room: float, reach: float, skew: float) -> float:
    """Probability that a studentized mean of that skewness is below room - reach. The room is in units of the sample's
    standard error, which varies with the mean (their covariance is skew / 2): the less of two approximations, one
    good where this is seldom, the other where it is often."""
    seldom = _straight(room - reach, skew)
    often = (room - reach) / math.sqrt(max(1 + reach * skew + 0.375 * (reach * skew) ** 2, 0.1))
    return min(_beyond(-seldom), _beyond(-often))


def _straight(x: float, skew: float) -> float:
    """The quantile of a symmetric law at which the studentized mean, of that skewness, is x: undoes `_skewed`."""
    return x if abs(skew) < 1e-6 else skew / 6 + ((1 + skew * x / 3) ** 3 - 1) / skew


def _skewed(z: float, skew: float) -> float:
    """Where the studentized mean, of that skewness, has the quantile that a symmetric one has at z."""
    if abs(skew) < 1e-6:
        return z
    return 3 / skew * (math.cbrt(1 + skew * (z - skew / 6)) - 1)


def tail_size(s: Summary) -> float:
    """Skewness of the draws' second moments: the sample's, or that of the log-normal law with the variance of
    their logarithms, whichever is larger (a sample of heavy tails understates its own)."""
    growth = math.exp(min(s.log_variance, 50.0))
    return max(abs(s.skewness), (growth + 2) * math.sqrt(max(growth - 1, 0.0)))


def draws_for(s: Summary, t: float) -> float:
    """Draws from which on the mean's interval at quantile t holds what it promises."""
    skewness = tail_size(s)
    return max(skewness * t**3 / 6 / TAIL_LIMIT, skewness / SKEW_LIMIT) ** 2


def plain(s: Summary) -> Estimate:
    """The mean over draws."""
    third = s.skewness * s.second_moment_variance**1.5 / s.draws**2
    return Estimate(s.second_moment, s.standard_error, third)


def logarithmic(s: Summary) -> Estimate | None:
    """The mean of a nearly log-normal law from the cumulants of the logarithm; None where the law is not that.

    log E[q] = k1 + k2/2 + k3/6 + k4/24 + ...: the third term is the correction for not being quite log-normal (which
    a deep network of finite width never is: each layer adds to all cumulants), the fourth, with twice its standard
    error, the bound of what is left out. The law has to look normal that far, no draw may be zero, and the draws must
    reach where E[q] comes from: around k1 + k2, two standard deviations and more.
    """
    v, n = s.log_variance, s.draws
    if s.zeros or not v > 0 or not _looks_normal(s, v) or n * _beyond(math.sqrt(v) + 2) < SEEN:
        return None
    value = math.exp(min(s.log_mean + v / 2 + s.log_third / 6, 700.0))
    error = math.sqrt((v + v**2 / 2 + v**3 / 6) / n)
    third = (3 * v**2 + 2 * v**3) / (2 * n**2) + 1.5 * error**4
    bias = (abs(s.log_fourth) + 2 * math.sqrt(24 * v**4 / n)) / 24
    return Estimate(value, value * error, value**3 * third, value * bias, log_scale=True)


def _looks_normal(s: Summary, v: float) -> bool:
    n = s.draws
    skewness, kurtosis = abs(s.log_third) / v**1.5, abs(s.log_fourth) / v**2
    return skewness + 2 * math.sqrt(6 / n) < LOG_SHAPE and kurtosis + 2 * math.sqrt(24 / n) < LOG_SHAPE


def _beyond(z: float) -> float:
    """Probability that a standard normal number is larger."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def estimate(s: Summary, t: float) -> tuple[Estimate, float]:
    """The estimate of a mean that supports an interval at quantile t, and 0; or the plain one, and how many draws
    would support it."""
    needed = draws_for(s, t)
    if needed <= s.draws:
        return plain(s), 0.0
    other = logarithmic(s)
    return (plain(s), needed) if other is None else (other, 0.0)
