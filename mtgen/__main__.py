"""`python -m mtgen`: the same as the command `mtgen`."""

from mtgen.cli import main

main()
