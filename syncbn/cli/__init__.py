"""The commands behind scripts/: one file each."""

import importlib
import importlib.util

from syncbn.cli.errors import fail

_NEEDED = ("hydra", "lightning", "torchmetrics", "sklearn", "matplotlib", "rich")


def run(command: str) -> None:
    """Run `syncbn.cli.<command>`, or say which packages it lacks."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        fail(f'scripts need the trainer\'s packages ({", ".join(missing)} not found): pip install "syncbn[train]"')
    importlib.import_module(f"syncbn.cli.{command}").main()
