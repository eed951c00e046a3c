"""What the first `varflow verify` of a process costs when its kernels are on disk: processor time of the whole command.

Each command runs as a process of its own, in turns with `import sympy`, whose time says how fast the machine is just
then; the first turn compiles and is left out. The smallest of the turns counts.

    python benchmarks/first_use.py [--turns 4] [GRAPH --set n=256 ...]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence

COMMANDS = (("graphs/mlp_relu.yaml", "--set", "n=256"), ("graphs/residual_block.yaml", "--set", "n=256"))


def seconds(command: Sequence[str], settings: dict[str, str]) -> float:
    """Processor time of a process, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   check=False)  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=4)
    options, given = parser.parse_known_args()
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for arguments in [given] if given else COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            settings |= {"NUMBA_CACHE_DIR": folder, "PYTHONPYCACHEPREFIX": folder, "OPENBLAS_NUM_THREADS": "1"}
            command = ["-m", "varflow.cli", "verify", *arguments]
            cold = seconds(command, settings)
            times = [(seconds(["-c", "import sympy"], settings), seconds(command, settings))
                     for _ in range(options.turns)]  # fmt: skip
        sympy, warm = (min(column) for column in zip(*times[1:] or times, strict=True))
        ratio = f"{warm / sympy:.1f} times import sympy ({sympy:.2f} s)"
        print(*arguments, f"cold {cold:.1f} s, warm {warm:.2f} s, {ratio}")


if __name__ == "__main__":
    main()
