"""`python -m cluster` is `larimar`."""

from cluster.cli import main

main()
