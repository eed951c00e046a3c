"""The commands ``critical`` and ``normalize``: one activation in a deep network, and one made to fit it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from varflow.criticality import Criticality, CriticalPoint
    from varflow.meanfield import Phase
    from varflow.tailor import Normalization

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME|EXPR", help='A named activation, "elu(0.5)", or an expression of x.'
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
PASS_ON = {"ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add both commands to the application."""
    app.command(context_settings=PASS_ON)(critical)
    app.command(context_settings=PASS_ON)(normalize)


def critical(
    activation: Name,
    sw: Annotated[
        str | None,
        typer.Option(
            "--sw", help="fan_in Var(W): with --sb, the phase there; alone, the line there."
        ),
    ] = None,
    sb: Annotated[
        str | None,
        typer.Option("--sb", help="Var(b): with --sw, the phase there; alone, the line there."),
    ] = None,
    q: Annotated[
        str | None, typer.Option("--q", help="A fixed point q*: the critical line there.")
    ] = None,
    dropout: Annotated[
        str, typer.Option("--dropout", help="Rate at which entries of f(x) are dropped.")
    ] = "0",
    json: Json = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Draw the phase diagram: .png .pdf .svg (extra: plot)."
        ),
    ] = None,
) -> None:
    """Print the critical initialization of an activation, its class, and depth scales."""
    from varflow.criticality import criticality
    from varflow.onevariable import exact

    subject = criticality(activation, exact(dropout))
    _require_one(subject, q, sb, sw)
    line = _on_line(subject, q, sb, sw)
    phase = subject.phase(sw, sb or "0") if sw is not None and line is None else None
    if output is not None:
        subject.plot(output)
    if json:
        _emit_json(subject, line, phase)
        return
    _print(subject, line, phase)


def _require_one(subject: Criticality, q: str | None, sb: str | None, sw: str | None) -> None:
    """Raise InputError for options that would not be followed."""
    from varflow.errors import InputError

    if q is not None and (sb is not None or sw is not None):
        raise InputError("--q stands alone", why="it picks a point of the critical line, whose --sw and --sb follow",
                         instead="--q, --sw or --sb for a point of the line; --sw and --sb for the phase there")
    if subject.keep != 1 and sw is None and (q is not None or sb is not None):
        raise InputError("there is no critical line", why=subject.obstacle, instead="--sw with --sb: the phase there")


def _on_line(
    subject: Criticality, q: str | None, sb: str | None, sw: str | None
) -> CriticalPoint | None:
    """The point of the critical line that one of the options picks, if just one was given."""
    given = {k: v for k, v in {"q": q, "sb": sb, "sw": sw}.items() if v is not None}
    if len(given) != 1 or subject.keep != 1:
        return None
    return subject.at(**given)


def _emit_json(subject: Criticality, line: CriticalPoint | None, phase: Phase | None) -> None:
    from varflow.cli_print import SCHEMA, emit_json

    emit_json(
        {
            "schema": SCHEMA,
            **subject.to_dict(),
            "line": None if line is None else line.to_dict(),
            "at": None if phase is None else phase.to_dict(),
        }
    )


def _print(subject: Criticality, line: CriticalPoint | None, phase: Phase | None) -> None:
    from varflow.cli_print import Cell, emit, hint, table, text_of

    columns = ["", "q*", "s_w = fan_in Var W", "s_b = Var b", "dq'/dq", "q*"]
    rows: list[list[Cell]] = [_row("critical", p) for p in subject.points]
    rows += [_row("on the line", line)] if line is not None else []
    emit(f"f(x) = {text_of(subject.activation)}: {subject.kind} ({subject.reason})")
    if rows:
        emit(table(columns, rows))
    if phase is not None:
        emit(table(["", "value"], _phase_rows(phase), f"phase: {phase.name}"))
    elif line is None:
        point = "" if subject.obstacle else "a point of the critical line: --q, --sb or --sw; "
        hint(f"{point}the phase anywhere: --sw and --sb")


def _row(label: str, p: CriticalPoint) -> list[Any]:
    return [label, "any" if p.q is None else p.q, p.sw, p.sb, p.chi_parallel, p.stability]


def _phase_rows(phase: Phase) -> list[list[Any]]:
    names = {
        "q": "q*, variance of a pre-activation",
        "c": "c*, correlation of two inputs",
        "chi_1": "chi_1, gain of gradients per layer",
        "chi_parallel": "dq'/dq",
        "c_slope": "slope of the correlation map at c*",
        "xi_q": "depth scale of the variance",
        "xi_c": "depth scale of correlations",
        "xi_gradient": "depth scale of gradients",
    }
    return [[label, getattr(phase, name)] for name, label in names.items()]


def normalize(
    activation: Name,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            "--condition", "-c", metavar="NAME=VALUE", help='As "mean=0" or "y**4 = 3"; repeatable.'
        ),
    ] = None,
    free: Annotated[
        str,
        typer.Option(
            "--free", help="Constants to find: of a, b, c, d and the activation's parameters."
        ),
    ] = "",
    fixed: Annotated[
        list[str] | None,
        typer.Option(
            "--fixed", metavar="NAME=VALUE", help="A constant of given value; repeatable."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="standard, second_moment, gaussian_poincare, dks or tat."),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option("--depth", min=1, help="Layers of the network that network_... speaks of."),
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="What dks or tat aims at.")] = None,
    q: Annotated[str, typer.Option("--q", help="Variance of the Gaussian argument.")] = "1",
    json: Json = False,
) -> None:
    """Find constants of a*f(b*x + c) + d (or of f) that meet conditions on moments and maps.

    Conditions: mean, second_moment, variance, derivative_mean, derivative_second_moment,
    second_derivative_second_moment, q_slope, c_0, c_slope_0, c_slope_1, c_curvature_1, network_c_0, network_slope,
    network_curvature, or an expression in y, dy, ddy and x whose expectation is meant.
    """
    from varflow.errors import InputError
    from varflow.tailor import normalize as solve

    if condition and recipe:
        raise InputError("--condition and --recipe exclude each other")
    conditions = _pairs(condition or [], "--condition", "mean=0") if condition else recipe or "standard"
    found = solve(
        activation,
        *([free] if free else []),
        conditions=conditions,
        q=q,
        fixed=_pairs(fixed or [], "--fixed", "a=1"),
        network=depth,
        target=target,
    )
    _show(found, json)


def _pairs(texts: Sequence[str], option: str, example: str) -> dict[str, str]:
    """``NAME=VALUE`` texts; the last equals sign divides."""
    from varflow.errors import InputError

    made: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.rpartition("="))
        if not name or not equals or not value:
            raise InputError(f"{option} {text!r} is not NAME=VALUE", instead=f"{option} {example}")
        if name in made:
            raise InputError(f"{option} gives {name!r} twice")
        made[name] = value
    return made


def _show(found: Normalization, json: bool) -> None:
    from varflow.cli_print import SCHEMA, emit, emit_json, printable, table, text_of

    if json:
        emit_json({"schema": SCHEMA, **found.to_dict()})
        return
    for k, answer in enumerate(found.solutions):
        shown = [
            (n, v if answer.closed_form else None, f"{float(v):.12g}") for n, v in answer.items()
        ]
        emit(f"y = {text_of(answer.function)}" + (f" (solution {k + 1})" if k else ""))
        emit(table(["constant", "formula", "value"], shown))
    emit(*map(printable, found.notes))
    worst = max(found.residuals.values())
    emit(f"conditions met to {worst:.1e}")
