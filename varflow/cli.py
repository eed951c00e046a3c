"""The command line. stdout is data, stderr progress and hints; heavy imports happen inside the commands.

Exit status: 0 done (and verified); 1 a verification failed; 2 bad input or something unsupported;
3 inconclusive; 4 an import that could not be verified; 70 internal error; 130 and 143 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from varflow import cli_critical, cli_interrupt, collector
from varflow.cli_status import BAD_INPUT, DONE, INTERNAL, INTERRUPTED, TERMINATED

Graph = Annotated[str, typer.Argument(
    metavar="GRAPH", help="A graph file, or the name of a shipped graph (see: varflow list).")]
Sets = Annotated[list[str] | None, typer.Option(
    "--set", metavar="NAME=VALUE", help="A number for a symbol, as n=512 or p=1/10; repeatable.")]
Preserve = Annotated[str | None, typer.Option(
    metavar="POLICY", help="forward, backward, harmonic or geometric [default: the file's, or forward]")]
Growth = Annotated[str | None, typer.Option(
    metavar="EXPR", help="Bound the gain of the whole network, by one share for all branches.")]
Equations = Annotated[list[str] | None, typer.Option(
    "--equation", metavar="EQUATION", help='A condition of your own, as "q_y = 2*s_fc1"; repeatable.')]
Unknowns = Annotated[list[str] | None, typer.Option(
    "--unknown", metavar="s_NAME", help="What --equation determines [default: the scales it names]; repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="The variance of signal and gradient through any network at initialization: "
         "derived, solved for, verified by simulation, documented.",
    epilog="Exit status: 0 done (and verified), 1 a verification failed, 2 bad input or unsupported, "
           "3 inconclusive, 4 import unverified, 70 internal error, 130 and 143 interrupted.",
)


def _version(asked: bool) -> None:
    if asked:
        from varflow import __version__

        typer.echo(f"varflow {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                          help="Show the version.")] = False,
) -> None:
    """Options of every command."""


@app.command()
def derive(graph: Graph, set_: Sets = None, preserve: Preserve = None, growth: Growth = None,
           equation: Equations = None, unknown: Unknowns = None, json: Json = False) -> None:
    """Print the law of every node, forward and backward.

    Weights without a variance keep an unknown scale s_NAME, unless --preserve, --growth or --equation asks
    for the laws after solving for it.
    """
    from varflow import cli_report as report
    from varflow.cli_subject import Conditions, Subject

    conditions = Conditions(preserve, growth, equation or (), unknown or ())
    subject = Subject.load(graph, set_ or (), conditions, solve=conditions.given)
    report.derivation(subject, json)


@app.command()
def solve(graph: Graph, set_: Sets = None, preserve: Preserve = None, growth: Growth = None,
          equation: Equations = None, unknown: Unknowns = None, json: Json = False) -> None:
    """Print the initialization that preserves the signal."""
    from varflow import cli_report as report
    from varflow.cli_subject import Conditions, Subject

    conditions = Conditions(preserve, growth, equation or (), unknown or ())
    report.solution(Subject.load(graph, set_ or (), conditions, solve=True), json)


@app.command()
def verify(
    graph: Graph, set_: Sets = None, preserve: Preserve = None, growth: Growth = None,
    equation: Equations = None, unknown: Unknowns = None, json: Json = False,
    draws: Annotated[int | None, typer.Option(
        min=2, help="Independent draws of weights and inputs [default: 2000, fewer where they cost minutes].")] = None,
    max_draws: Annotated[int | None, typer.Option(
        min=2, help="Go on up to this many draws until all is decided, or --precision reached.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 0,
    delta: Annotated[float, typer.Option(help="Relative tolerance of a pass.")] = 0.02,
    precision: Annotated[float | None, typer.Option(
        help="Draw until every interval is this narrow, as a share of its value.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; no result depends on it.")] = None,
    method: Annotated[str, typer.Option(
        help="sampled: every weight drawn; collapsed: what Gaussian weights do; auto: the cheaper.")] = "auto",
    backend: Annotated[str, typer.Option(help="cpu, or cuda for a GPU (extra: cuda).")] = "cpu",
    max_time: Annotated[float | None, typer.Option(
        metavar="SECONDS", min=0, help="Stop drawing after this time; the verdict is on what was drawn.")] = None,
    store: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Keep the draws in this file while they are made.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what the store has.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print how each weight would be simulated, and stop.")] = False,
    output: Annotated[Path | None, typer.Option(
        "--output", "-o", metavar="FILE",
        help="File for the report too: what --json prints, and replay reads (.json).")] = None,
) -> None:
    """Simulate the network as it stands and test every formula against it.

    Unknown scales are solved for first.
    """
    from varflow import cli_verify
    from varflow.cli_subject import Conditions, Subject

    options = cli_verify.Options(
        draws, max_draws, seed, delta, precision, threads, method, max_time, store, resume, backend, output
    )
    cli_verify.check(options, plan)
    subject = Subject.load(graph, set_ or (), Conditions(preserve, growth, equation or (), unknown or ()))
    raise typer.Exit((cli_verify.plan if plan else cli_verify.run)(subject, options, json))


@app.command()
def replay(
    report: Annotated[str, typer.Argument(metavar="REPORT", help="What `varflow verify --json` printed, as a file.")],
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; no result depends on it.")] = None,
    json: Json = False,
) -> None:
    """Make the run of a report again and tell whether its numbers are the same."""
    from varflow import cli_replay

    raise typer.Exit(cli_replay.run(report, threads, json))


@app.command()
def export(
    graph: Graph, set_: Sets = None, preserve: Preserve = None, growth: Growth = None,
    equation: Equations = None, unknown: Unknowns = None, json: Json = False,
    output: Annotated[Path | None, typer.Option(
        "--output", "-o", help="File to write: .tex .pdf .md .json .html by suffix [default: GRAPH.tex]")] = None,
    check: Annotated[bool, typer.Option(
        "--verify", help="Simulate too (needs --set for every symbol), and include the verdicts.")] = False,
) -> None:
    """Write the derivation as a document.

    Unknown scales are solved for first.
    """
    from varflow import cli_verify
    from varflow.cli_subject import Conditions, Subject
    from varflow.export import check_target

    if output is not None:
        check_target(output)
    subject = Subject.load(graph, set_ or (), Conditions(preserve, growth, equation or (), unknown or ()))
    raise typer.Exit(cli_verify.export(subject, output, check, json))


@app.command()
def draw(graph: Graph, set_: Sets = None, preserve: Preserve = None, growth: Growth = None,
         equation: Equations = None, unknown: Unknowns = None, json: Json = False) -> None:
    """Draw the graph with its gains (not part of this version)."""
    from varflow.errors import MissingExtraError

    raise MissingExtraError("drawing is not part of this version", instead="varflow export GRAPH -o GRAPH.pdf")


@app.command(context_settings={"ignore_unknown_options": True})
def gain(
    activation: Annotated[str, typer.Argument(
        metavar="NAME|EXPR", help='A named activation, "leaky_relu(0.2)", "swiglu", or an expression of x.')],
    set_: Sets = None, json: Json = False,
    q: Annotated[str, typer.Option(help="Variance of the Gaussian argument.")] = "1",
    mean: Annotated[str, typer.Option(help="Mean of the Gaussian argument.")] = "0",
    output: Annotated[Path | None, typer.Option(
        "--output", "-o", help="File to write: .pdf .tex .md .json, or the maps as .png or .svg.")] = None,
    maps: Annotated[bool, typer.Option(
        "--maps", help="The maps of variance and correlation too, with their fixed points.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="The formulas as LaTeX, one a line.")] = False,
    weight_scale: Annotated[str | None, typer.Option(
        metavar="S", help="fan_in Var(W_ij) of the maps [default: 1/E f(z)^2, which keeps q = 1]")] = None,
    bias_variance: Annotated[str, typer.Option(metavar="B", help="Variance of the biases of the maps.")] = "0",
) -> None:
    """Print the moments of an activation of a Gaussian, and the gains that follow."""
    from varflow import cli_gain

    cli_gain.run(activation, q, mean, set_ or (), json=json, output=output, maps=maps, latex=latex,
                 weight_scale=weight_scale, bias_variance=bias_variance)


@app.command("list")
def list_(
    ops: Annotated[bool, typer.Option("--ops", help="Layers, and activations with their gains.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The tables as Markdown.")] = False,
    json: Json = False,
) -> None:
    """List the shipped graphs, or every layer and activation with its gains."""
    from varflow import cli_tables

    cli_tables.show(ops, markdown, json)


@app.command()
def demo(
    json: Json = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the document.")] = Path("varflow-demo"),
    draws: Annotated[int, typer.Option(min=2, help="Draws of each verification to begin with.")] = 256,
) -> None:
    """Derive, solve and verify published networks, and write one derivation as a document."""
    from varflow import cli_demo

    raise typer.Exit(cli_demo.run(output, draws, json))


@app.command()
def doctor(json: Json = False) -> None:
    """Tell what is installed, where results are cached, and what is missing for what."""
    from varflow import cli_doctor

    cli_doctor.run(json)


cli_critical.register(app)


def _say(text: str) -> None:
    printable = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    print(printable, file=sys.stderr, flush=True)


def _status_of(error: BaseException) -> int:
    from varflow.errors import VarflowError

    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    if isinstance(error, MemoryError):
        _say(f"error: there is not enough memory: {error}\n  instead: smaller sizes, or fewer samples")
        return BAD_INPUT
    if isinstance(error, (VarflowError, OSError)):
        _say(f"error: {error}")
        return BAD_INPUT
    _say(f"internal error: {type(error).__name__}: {error}\n"
         "  This is a defect of varflow. The same command with --debug shows where it happened.")
    return INTERNAL


def main() -> NoReturn:
    """The console script: run a command, turn every outcome into its exit status."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    collector.rarely()
    cli_interrupt.leave_in_order()
    try:
        app(["--debug", *arguments] if debug and arguments else arguments, prog_name="varflow")
        status = DONE
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else DONE
    except BaseException as error:
        if debug:
            import traceback

            traceback.print_exc()
        status = _status_of(error)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = _status_of(BrokenPipeError())
    if status in (INTERRUPTED, TERMINATED):
        cli_interrupt.say()
        sys.stderr.flush()
        os._exit(status)
    collector.leave()
    sys.exit(status)


if __name__ == "__main__":
    main()
