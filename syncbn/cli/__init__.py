"""The commands behind scripts/: one file each."""

import importlib
import importlib.util
import os
import sys

from syncbn.launch.secrets import guard_the_screen
from syncbn.run.errors import fail

_NEEDED = ("hydra", "lightning", "torchmetrics", "sklearn", "matplotlib", "rich")


def run(command: str, package: str = "syncbn.cli") -> None:
    """Run `<package>.<command>`, or say which packages it lacks."""
    guard_the_screen()
    sys.path[:] = [place for place in sys.path if not _is_scripts(place)]
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        fail(f'scripts need the trainer\'s packages ({", ".join(missing)} not found): pip install "syncbn[train]"')
    importlib.import_module(f"{package}.{command}").main()


def _is_scripts(place: str) -> bool:
    """Whether Python looks for modules beside the script: scripts/inspect.py would be taken for its own `inspect`."""
    return os.path.isfile(os.path.join(place, "inspect.py")) and os.path.isfile(os.path.join(place, "recalibrate.py"))
