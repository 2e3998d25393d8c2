"""`python -m tests.zoo`: see `tests/zoo/command.py`."""

import sys

from tests.zoo.command import main

sys.exit(main(sys.argv[1:]))
