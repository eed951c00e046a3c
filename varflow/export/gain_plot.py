"""The maps of an activation as a figure; needs matplotlib, the extra ``plot``."""

from __future__ import annotations

import io
from itertools import zip_longest
from typing import Any

import numpy as np

from varflow.errors import InputError, MissingExtraError
from varflow.fixed_points import FixedPoint
from varflow.gain_report import GainReport, formula_text, readable

DARK, LIGHT, ACCENT = "#1f3b5c", "#9aa5b1", "#c2562d"
KINDS = {"stable": ACCENT, "unstable": "white", "marginal": "#e8c9a0"}
TITLE = 90
"""Characters of an activation that the title shows."""


def figure(report: GainReport) -> Any:
    """The variance map and the correlation map with their fixed points, a matplotlib Figure.

    Raises MissingExtraError without matplotlib, InputError for what has no maps in numbers.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib is not installed", why="figures are drawn by it",
                                instead='pip install "varflow[plot]", or a path that ends in .tex or .md') from None
    if report.maps is None or not report.followed:
        raise InputError(f"{report.gain.title} has no maps to draw", why="maps need one argument and numbers",
                         instead="varflow gain NAME -o NAME.md")
    fig = Figure(figsize=(9.0, 4.4), layout="constrained")
    left, right = fig.subplots(1, 2)
    _variances(left, report)
    _correlations(right, report)
    text = report.name or f"f(x) = {formula_text(readable(report.maps.activation))}"
    fig.suptitle(text if len(text) <= TITLE else text[: TITLE - 1] + "…", fontsize=10, parse_math=False)
    return fig


def image(report: GainReport, kind: str) -> bytes:
    """The figure as a file of a kind that matplotlib writes: png, pdf, svg."""
    out = io.BytesIO()
    figure(report).savefig(out, format=kind, dpi=150)
    return out.getvalue()


def _variances(axes: Any, report: GainReport) -> None:
    maps = report.maps
    assert maps is not None
    points = [s.variance for s in report.settled]
    top = 1.6 * max([1.0, *(p.value for p in points if p.value < 50)])
    q = np.linspace(top / 400, top, 200)
    s, b = maps.scales
    _map(axes, q, maps.next_variance(q), f"s = {s:.5g}, b = {b:.5g}")
    if maps.fixed_points.every:
        axes.text(0.04, 0.8, "every q is kept", transform=axes.transAxes, color=ACCENT)
    else:
        _mark(axes, [p for p in maps.fixed_points if p.value <= top], "q*")
    axes.set(xlabel="q", ylabel="q'", xlim=(0, top), ylim=(0, None), title="variance of the argument")


def _correlations(axes: Any, report: GainReport) -> None:
    maps = report.maps
    assert maps is not None
    shown = [s for s in report.settled if s.variance.stability != "unstable"] or list(report.settled)
    axes.set(xlabel="c", ylabel="c'", xlim=(-1.04, 1.04), ylim=(-1.04, 1.04), title="correlation of two arguments")
    if not shown:
        axes.plot([-1, 1], [-1, 1], color=LIGHT, lw=1, ls="--")
        axes.text(0, 0, "no fixed point q*", ha="center", color=ACCENT)
        return
    q = shown[-1].variance.value
    c = np.concatenate([np.linspace(-1, 0.9, 96), np.linspace(0.9, 1, 41)[1:]])
    _map(axes, c, maps.next_correlation(c, q), f"q = {q:.5g}, slope at 1: {shown[-1].chi:.5g}")
    if shown[-1].correlations.every:
        axes.text(0.04, 0.8, "every c is kept", transform=axes.transAxes, color=ACCENT)
    _mark(axes, list(shown[-1].correlations), "c*")


def _map(axes: Any, x: Any, y: Any, label: str) -> None:
    axes.plot(x, x, color=LIGHT, lw=1, ls="--")
    axes.plot(x, y, color=DARK, lw=2, label=label)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _mark(axes: Any, points: list[FixedPoint], name: str) -> None:
    """Circles on the diagonal; filled where stable. Labels below it, above it near the right edge."""
    low, high = axes.get_xlim()
    for p, following in zip_longest(points, points[1:]):
        place = (p.value - low) / (high - low)
        offset, sides = ((9, 2), ("left", "bottom")) if place < 0.1 else ((9, -4), ("left", "top"))
        if place > 0.75:
            offset, sides = (-11, 0), ("right", "center")
        if following is not None and following.value - p.value < 0.1 * (high - low):
            offset, sides = (6, -40), ("right", "top")
        axes.plot([p.value], [p.value], "o", ms=8, mec=ACCENT, mfc=KINDS[p.stability], clip_on=False, zorder=3)
        axes.annotate(f"{name} = {p.value:.4g}\n{p.stability}", (p.value, p.value), xytext=offset, fontsize=8,
                      textcoords="offset points", ha=sides[0], va=sides[1])
