"""The phase diagram of an activation, drawn with matplotlib (the extra ``plot``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from varflow.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from varflow.criticality import Criticality

SUFFIXES = (".png", ".pdf", ".svg")
Span = tuple[float, float]


def draw(subject: Criticality, path: Path, sw: Span | None, sb: Span | None) -> Path:
    """Write the regions of order and chaos over (s_w, s_b), the critical line and point.

    Raises MissingExtraError without matplotlib, InputError for another suffix.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"cannot draw into {path.name}", instead=" ".join(SUFFIXES))
    figure, axes = _figure()
    line = (
        subject.line(np.geomspace(1e-6, 1e4, 801)) if not subject.obstacle else (np.array([]),) * 2
    )
    sw, sb = sw or _span(subject, line, 0), sb or _span(subject, line, 1)
    _regions(subject, axes, sw, sb)
    if subject.slopes is None:
        axes.plot(*line, color="black", linewidth=1.5, label=r"critical line, $\chi_1 = 1$")
    elif subject.point is not None:
        axes.axvline(float(subject.point.sw), color="black", linestyle=":", label=r"$\chi_1 = 1$")
    if subject.point is not None:
        label = f"critical point ({subject.kind})"
        axes.plot(
            [float(subject.point.sw)], [float(subject.point.sb)], "ko", clip_on=False, label=label
        )
    axes.set(xlim=sw, ylim=sb, xlabel=r"$\sigma_w^2$", ylabel=r"$\sigma_b^2$")
    axes.legend(loc="upper left", frameon=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    return path


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(
            "drawing needs matplotlib", instead='pip install "varflow[plot]"'
        ) from None
    figure = Figure(figsize=(5, 4))
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _span(subject: Criticality, line: tuple[Any, Any], axis: int) -> Span:
    """A range that shows the critical point, and the line from where it begins."""
    values = line[axis][np.isfinite(line[axis])]
    point = 0.0 if subject.point is None else float((subject.point.sw, subject.point.sb)[axis])
    low = point if point > 0 or not values.size else float(values.min())
    return (0.0, 2.5 * low if low > 1e-3 else 0.3)


def _regions(subject: Criticality, axes: Any, sw: Span, sb: Span) -> None:
    """Colour log chi_1 at the least fixed point q* of every (s_w, s_b)."""
    q = np.geomspace(1e-6, 1e4, 801)
    second, slope = subject.variances.second(q), subject.variances.slopes(q)
    weights, biases = np.linspace(max(sw[0], 1e-3), sw[1], 241), np.linspace(*sb, 201)
    chi = np.array([_row(w, biases, q, second, slope) for w in weights]).T
    shown = np.clip(np.log(np.ma.masked_invalid(chi)), -1, 1)
    drawn = axes.contourf(weights, biases, shown, levels=np.linspace(-1, 1, 21), cmap="coolwarm")
    axes.figure.colorbar(drawn, label=r"$\log \chi_1$: below 0 ordered, above 0 chaotic")


def _row(weight: float, biases: Any, q: Any, second: Any, slope: Any) -> Any:
    """chi_1 over s_b at one s_w: on this line q* belongs to s_b = q* - s_w E f^2; nan where there is none."""
    reached = np.maximum.accumulate(np.nan_to_num(q - weight * second, nan=-np.inf))
    first = np.searchsorted(reached, biases)
    chi = np.append(weight * slope, np.nan)
    return chi[first]
