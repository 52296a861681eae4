"""`python -m normwright`: the command line."""

from normwright.cli import main

main()
