"""One prediction against draws: interval, verdict, power (DESIGN: "What a verification is")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from varflow.simulate.statistics import Summary
from varflow.verify_student import quantile
from varflow.verify_tails import Estimate, estimate, tail_size

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
ZERO_TOLERANCE = 1e-6
"""What counts as zero where zero is predicted, as a share of the second moment of what the value is made of."""
FALLS = 0.6
"""What is at most so much of itself at widths four times as large may be of order 1/n, which falls to a quarter."""
FLOAT32_RANGE = (1e-72, 1e72)
"""Second moments outside it come from entries that float32 cannot hold."""
LEAST_DRAWS = 8
WIDER, WIDE_LIMIT, WIDE_SKEWNESS = 2.0, 0.5, 2.0
"""Skewed means: quantile t is widened to 2 t where the mean's skewness times t is at most a half, and a draw's at most
that of an exponential law. Then 2 t is far out even for them: a tail of exp(-(2 t)^2 / 2 + skewness (2 t)^3 / 6) is
below exp(-t^2 / 2) up to a skewness of 9 / (8 t)."""
WIDE = "skewed between draws: an interval of twice the width"
BENT = 3.5
"""Standard errors of a bend over the widths from which on it takes the blame for a prediction that looks refuted."""
STRAIGHT = math.erf(BENT / math.sqrt(2))
"""Probability that errors which are what they should be do not look bent like that."""
LOG_SCALE = "heavy tails between draws: taken on a log scale, as of a nearly log-normal law"


@dataclass(frozen=True)
class Prediction:
    """A second moment as the theory gives it; ``error`` is the standard error of a number that is itself
    measured by a population, ``closure_error`` the stated relative error of a closure, ``order`` up to which power of
    1/n what finite widths add to a limit is extrapolated, ``errors`` relative ones of the numbers at each width, where
    they are measured one by one, ``scale`` the second moment beside which zero is zero, ``narrow`` whether the
    narrowest width is below those at which one more power of 1/n can be left out unseen, ``reason`` why there is no
    finite number."""

    value: float
    exactness: str = "exact"
    error: float = 0.0
    closure_error: float | None = None
    order: int = 1
    errors: tuple[float, ...] = ()
    scale: float = 1.0
    narrow: bool = False
    reason: str = ""

    def over(self, weights: Sequence[float]) -> float:
        """The standard error that the numbers give to a sum over widths with these weights."""
        if len(self.errors) != len(weights):
            return abs(sum(weights)) * self.error
        return abs(self.value) * math.hypot(*(w * e for w, e in zip(weights, self.errors, strict=True)))

    def times(self, factor: float) -> Prediction:
        """The prediction of so many times the moment."""
        return self if factor == 1 else replace(self, value=self.value * factor, error=self.error * factor)


@dataclass(frozen=True)
class Reading:
    """A simulated second moment at one width: ``factor`` times the stated one; ``predicted`` is the formula at
    that width. ``given`` is the same moment averaged over the layer's own weights in every draw, where that is
    known."""

    factor: float
    summary: Summary
    predicted: float
    given: Summary | None = None


@dataclass(frozen=True)
class Check:
    """One node and direction: ``estimate`` and its interval ``ci`` against ``predicted``.

    ``draws_needed`` is the number of draws that would settle an inconclusive check (None: no number would, or
    none is needed), ``power`` the probability that these draws refute a formula off by 2 delta, ``rejects``
    whether they do: formulas larger and smaller by 2 delta both fail on this interval.
    """

    predicted: float
    estimate: float
    ci: tuple[float, float]
    verdict: str
    exactness: str = "exact"
    draws: int = 0
    note: str = ""
    draws_needed: int | None = None
    power: float | None = None
    rejects: bool | None = None
    supported: bool = True
    """Whether the draws are enough for the interval to hold."""

    @property
    def relative_width(self) -> float:
        """Half the interval over the prediction; inf where either is not a number."""
        half = (self.ci[1] - self.ci[0]) / 2
        return half / abs(self.predicted) if self.predicted and math.isfinite(half) else math.inf


def decide(ci: tuple[float, float], predicted: float, delta: float) -> str:
    """pass: all of the interval within predicted (1 +- delta); fail: all of it outside; else inconclusive."""
    low, high = sorted((predicted * (1 - delta), predicted * (1 + delta)))
    if low <= ci[0] and ci[1] <= high:
        return PASS
    return FAIL if ci[1] < low or ci[0] > high else INCONCLUSIVE


def overall(verdicts: Sequence[str]) -> str:
    """fail if any fails, else inconclusive if any is (or there is none), else pass."""
    if FAIL in verdicts:
        return FAIL
    return PASS if verdicts and INCONCLUSIVE not in verdicts else INCONCLUSIVE


def limit_weights(factors: Sequence[float], order: int = 1) -> tuple[float, ...]:
    """Weights of the least-squares a in a + b/n, or in a polynomial of that ``order`` in 1/n (of less where there are
    no more widths), over widths proportional to ``factors``; of one width, itself."""
    x = 1 / np.asarray(factors, dtype=np.float64)
    powers = np.vander(x, min(order + 1, len(x)), increasing=True)
    return tuple(float(w) for w in np.linalg.pinv(powers)[0])


def limit_draws(
    factors: Sequence[float], most: float = 4.0, slope: float = 1.5, order: int = 1
) -> tuple[float, ...]:
    """Draws at each width for one at the widest: the least work for the variance of the limit, where the root of a
    draw's cost times its variance falls with ``slope`` (1.5: cost n^2, variance 1/n). Between 1 and ``most``."""
    weights = limit_weights(factors, order)
    worth = [abs(w) * f**-slope for w, f in zip(weights, factors, strict=True)]
    return tuple(min(max(x / worth[-1], 1.0), most) for x in worth)


@dataclass(frozen=True)
class Judge:
    """The rules of one verification: tolerance ``delta`` and the error probability of a single check."""

    delta: float
    alpha: float

    def check(self, prediction: Prediction, readings: Sequence[Reading]) -> Check:
        """The verdict on one prediction; ``readings`` at one width, or at several for a limit.

        Moments averaged over a layer's own weights vary less and have the same expectation: they are taken where
        the interval of what was drawn holds their mean.
        """
        drawn = self._check(prediction, readings)
        averaged = [replace(r, summary=r.given, given=None) for r in readings if r.given is not None]
        if not averaged or len(averaged) < len(readings):
            return drawn
        found = self._check(prediction, averaged)
        return found if drawn.ci[0] <= found.estimate <= drawn.ci[1] else drawn

    def _check(self, prediction: Prediction, readings: Sequence[Reading]) -> Check:
        p = prediction.value
        draws = min(r.summary.draws for r in readings) if readings else 0
        blank = Check(p, math.nan, (math.nan, math.nan), INCONCLUSIVE, prediction.exactness, draws)
        if prediction.exactness in ("measured", "underived"):
            return replace(blank, note=f"{prediction.exactness}: {prediction.reason or 'there is no formula to test'}")
        if not math.isfinite(p):
            return self._infinite(blank, readings, prediction.reason)
        if draws < LEAST_DRAWS:
            return replace(blank, note="too few draws for an interval", draws_needed=LEAST_DRAWS)
        if p == 0:
            return self._zero(blank, readings, ZERO_TOLERANCE * prediction.scale)
        if not FLOAT32_RANGE[0] < abs(p) < FLOAT32_RANGE[1]:
            return replace(blank, note="entries of this size do not fit float32")
        return self._judged(blank, prediction, readings)

    @staticmethod
    def _infinite(blank: Check, readings: Sequence[Reading], why: str = "") -> Check:
        reason = "infinite" if blank.predicted == math.inf else "infinite or undefined here"
        note = f"the prediction is {reason}{f' ({why})' if why else ''}: no number of draws can confirm it"
        estimate = readings[-1].summary.second_moment if readings else math.nan
        return replace(blank, estimate=estimate, note=note)

    def _zero(self, blank: Check, readings: Sequence[Reading], tolerance: float) -> Check:
        """Zero at the widest of the widths; what falls with the width may be zero in the limit."""
        s = readings[-1].summary
        half = quantile(self.alpha, s.draws - 1) * s.standard_error
        ci = (s.second_moment - half, s.second_moment + half)
        if not math.isfinite(half):
            return replace(blank, note="a value is not finite")
        inside = ci[0] >= -tolerance and ci[1] <= tolerance
        verdict = PASS if inside else FAIL if ci[0] > tolerance else INCONCLUSIVE
        found = replace(blank, estimate=s.second_moment, ci=ci, verdict=verdict)
        if verdict == FAIL and ci[1] < FALLS * readings[0].summary.second_moment:
            note = "not zero at these widths, and less the wider they are, as a limit of zero is"
            return replace(found, verdict=INCONCLUSIVE, note=note)
        return found

    def _judged(self, blank: Check, prediction: Prediction, readings: Sequence[Reading]) -> Check:
        p, draws = prediction.value, blank.draws
        t = quantile(self.alpha, draws - 1)
        weights = limit_weights([r.factor for r in readings], prediction.order)
        found, needed = zip(*(estimate(r.summary, t) for r in readings), strict=True)
        whole = Estimate(0.0, prediction.over(weights))
        prediction = replace(prediction, error=whole.error)
        for w, r, one in zip(weights, readings, found, strict=True):
            whole = whole.plus(one.times(w * p / r.predicted))
        if not math.isfinite(whole.value) or not math.isfinite(whole.error):
            return replace(blank, estimate=whole.value, note="a value is not finite in float32")
        tolerance = max(self.delta, prediction.closure_error or 0.0)
        found_at = partial(self._decided, blank, prediction, whole, tolerance)
        if not max(needed):
            return self._of_limit(found_at(t), t, readings, prediction)
        sizes = [(tail_size(r.summary), math.sqrt(r.summary.draws)) for r in readings]
        wide = all(s <= WIDE_SKEWNESS and s * t <= WIDE_LIMIT * root for s, root in sizes)
        if wide and (check := found_at(WIDER * t)).verdict != INCONCLUSIVE:
            return self._of_limit(replace(check, note=WIDE), t, readings, prediction)
        return self._heavy(found_at(t), max(needed), readings)

    def _decided(self, blank: Check, prediction: Prediction, whole: Estimate, tolerance: float, t: float) -> Check:
        """The verdict of an interval at quantile t."""
        p, edge = prediction.value, tolerance * abs(prediction.value)
        ci, width = whole.interval(t), t + (whole.bias / whole.error if whole.error else 0.0)
        wrong = [decide(ci, p * (1 + k * tolerance), tolerance) for k in (-2, 2)]
        check = replace(
            blank, estimate=whole.value, ci=ci, verdict=decide(ci, p, tolerance), rejects=wrong == [FAIL, FAIL],
            power=whole.power(t, (1 - 2 * tolerance) * edge, (1 + 2 * tolerance) * edge),
            note=LOG_SCALE * whole.log_scale,
        )  # fmt: skip
        if check.verdict != INCONCLUSIVE:
            return check
        sampling = math.sqrt(max(whole.error**2 - prediction.error**2, 0.0))
        return self._needed(check, tolerance, width, sampling, prediction.error)

    @staticmethod
    def _heavy(check: Check, needed: float, readings: Sequence[Reading]) -> Check:
        """The check, made inconclusive: the draws cannot support an interval."""
        skewness = max(tail_size(r.summary) for r in readings)
        note = f"heavy tails between draws (skewness {skewness:.2g}): too few draws for an interval"
        least = max(math.ceil(min(needed, 1e15)), check.draws_needed or 0)
        return replace(check, verdict=INCONCLUSIVE, note=note, rejects=False, power=0.0, draws_needed=least,
                       supported=False)

    def _of_limit(self, check: Check, t: float, readings: Sequence[Reading], prediction: Prediction) -> Check:
        """The check, made inconclusive where the widths are too small for a + b/n: a bend over them is there for sure,
        or it is likely and without it the prediction would not be refuted. At ``narrow`` widths a bend need not be
        seen: a prediction is refuted where every bend within its interval leaves it refuted."""
        p, (bend, error) = prediction.value, curvature(readings, prediction)
        if not bend:
            return check
        if abs(bend) > t * error and abs(bend) > self.delta * abs(p) / 2:
            return self._bent(check, prediction.order)
        check = replace(check, power=STRAIGHT * (check.power or 0.0))
        if abs(bend) <= BENT * error and not prediction.narrow:
            return check
        half = (t if prediction.narrow else 1.0) * error
        bowed = (check.estimate + bend - half, check.estimate + bend + half)
        if check.verdict == FAIL and decide(bowed, p, self.delta) != FAIL:
            return self._bent(check, prediction.order)
        wrong = [decide(bowed, p * (1 + k * self.delta), self.delta) for k in (-2, 2)]
        rejects = bool(check.rejects) and wrong == [FAIL, FAIL]
        if not prediction.narrow:
            return replace(check, rejects=rejects)
        room = (1 - 2 * self.delta) * self.delta * abs(p), (1 + 2 * self.delta) * self.delta * abs(p)
        return replace(check, rejects=rejects, power=min(check.power or 0.0, Estimate(p, error).power(t, *room)))

    @staticmethod
    def _bent(check: Check, order: int) -> Check:
        form = "b/n" if order == 1 else "b/f + c/f^2 (f times the heads)"
        note = f"the error at these widths is not {form}: the limit cannot be extrapolated; use larger widths"
        return replace(check, verdict=INCONCLUSIVE, note=note, rejects=False, power=0.0, draws_needed=None)

    @staticmethod
    def _needed(check: Check, tolerance: float, t: float, sampling: float, error: float) -> Check:
        """How many draws would settle it: an interval that fits between the estimate and the tolerance's edge."""
        edge = tolerance * abs(check.predicted)
        room = max(abs(edge - abs(check.estimate - check.predicted)), edge / 4)
        left = (room / t) ** 2 - error**2
        if left <= 0:
            return replace(check, note="the predicted number, a population's, is not precise enough")
        return replace(check, draws_needed=math.ceil(check.draws * sampling**2 / left))


def curvature(readings: Sequence[Reading], prediction: Prediction) -> tuple[float, float]:
    """How far one more power of 1/n, through as many widths as it takes, moves the extrapolated limit, and its standard
    error; zero where there are not as many."""
    p, order = prediction.value, prediction.order
    if len(readings) != order + 2:
        return 0.0, 0.0
    factors = [r.factor for r in readings]
    weights = [b - a for a, b in zip(*(limit_weights(factors, k) for k in (order, order + 1)), strict=True)]
    terms = [(w * p / r.predicted, r.summary) for w, r in zip(weights, readings, strict=True)]
    bend = sum(w * s.second_moment for w, s in terms)
    return float(bend), math.hypot(prediction.over(weights), *(w * s.standard_error for w, s in terms))
