"""`python -m syncbn` is `syncbn`."""

from syncbn.cli import main

main()
