"""`python -m jielong` is the command `jielong`."""

from jielong.cli import main

main()
