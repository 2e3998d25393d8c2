"""Takes scripts/, the running script's folder, off the path of modules: its inspect.py shadows the standard library's.

Imported before anything that imports `inspect`, as `traceback` does from Python 3.14 on.
"""

import os
import sys


def _is_scripts(place: str) -> bool:
    return os.path.isfile(os.path.join(place, "inspect.py")) and os.path.isfile(os.path.join(place, "recalibrate.py"))


sys.path[:] = [place for place in sys.path if not _is_scripts(place)]
