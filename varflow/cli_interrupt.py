"""SIGINT and SIGTERM: the first ends a command in good order, the next at once; either way it is said how to go on."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from varflow.cli_status import INTERRUPTED, TERMINATED

STATUS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
_said: list[str] = []


def leave_at_once() -> None:
    """From now on a signal ends the process: nothing has been begun."""
    _said.clear()
    _handle(_at_once)


def leave_in_order() -> None:
    """From now on the first signal is KeyboardInterrupt or SystemExit, the next ends the process."""
    _said.clear()
    _handle(_in_order)


def say(found: str = "interrupted") -> None:
    """Say once what there is, and the command that goes on, where draws are kept."""
    if _said:
        return
    again = resuming(sys.argv[1:])
    _said.append(found)
    text = f"{found}; to go on:\n{again}" if again else found
    printable = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    os.write(2, f"{printable}\n".encode(errors="backslashreplace"))


def resuming(arguments: Sequence[str]) -> str:
    """The command that goes on with an interrupted one; empty where nothing is kept."""
    kept = any(a == "--store" or a.startswith("--store=") for a in arguments)
    if "verify" not in arguments or not kept or "--plan" in arguments:
        return ""
    return shlex.join(["varflow", *arguments, *(() if "--resume" in arguments else ("--resume",))])


def _handle(handler: Callable[[int, Any], NoReturn]) -> None:
    for number in STATUS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _at_once(number: int, frame: Any) -> NoReturn:
    say()
    os._exit(STATUS[signal.Signals(number)])


def _in_order(number: int, frame: Any) -> NoReturn:
    _handle(_at_once)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(TERMINATED)
