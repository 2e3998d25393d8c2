"""`python -m tests.networks`: see `tests/networks/command.py`."""

import sys

from tests.networks.command import main

sys.exit(main(sys.argv[1:]))
