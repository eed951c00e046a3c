"""``python -m varflow`` and the console script: the command line, whose imports can be interrupted."""

from __future__ import annotations

from typing import NoReturn

from varflow import cli_interrupt


def main() -> NoReturn:
    """Import the command line and run it."""
    cli_interrupt.leave_at_once()
    from varflow.cli import main as run

    run()


if __name__ == "__main__":
    main()
