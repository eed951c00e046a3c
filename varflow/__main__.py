"""``python -m varflow``: the command line."""

from varflow.cli import main

main()
