"""`python -m tests.zoo`: checks each network in its own process; writes docs/zoo.csv and docs/zoo.md."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch

from tests.zoo.architectures import architectures
from tests.zoo.checks import CHECKS
from tests.zoo.table import ROWS, page, read_rows, write_row

TIMEOUT_S = 1800


def main(arguments: list[str]) -> int:
    """`[jobs=1] [checks=fuse,prune] [name=GLOB]`: whatever has no cell in docs/zoo.csv yet, or all of a name again."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    checks = given["checks"].split(",") if "checks" in given else list(CHECKS)
    strange = {*given} - {"jobs", "name", "checks"} or {*checks} - {*CHECKS}
    if strange or any("=" not in argument for argument in arguments):
        print(f"usage: python -m tests.zoo {main.__doc__}\nchecks: {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    known, lock = architectures(), threading.Lock()
    again = given.get("name", "")

    def run(name: str) -> None:
        begin = time.perf_counter()
        with lock:
            old = _row(name)
        todo = [check for check in checks if again or not old.get(check)]
        if not todo or not fnmatch(name, again or "*"):
            return
        row = _in_a_process(name, known[name].library, todo)
        with lock:
            write_row({**_row(name), **row}, list(known))
        bad = {check: row[check] for check in todo if row[check] != "right"}
        print(f"{name}: {time.perf_counter() - begin:.0f} s {bad or ''}", flush=True)

    with ThreadPoolExecutor(int(given.get("jobs", 1))) as pool:
        list(pool.map(run, known))
    rows = read_rows()
    ROWS.with_suffix(".md").write_text(page(rows))
    print(ROWS.with_suffix(".md").read_text().split("\n\n")[2])
    return int(any((row[check] or "").startswith(("wrong", "crashed")) for row in rows for check in CHECKS))


def _row(name: str) -> dict[str, str]:
    return next((row for row in read_rows() if row["name"] == name), {})


def _in_a_process(name: str, library: str, checks: list[str]) -> dict[str, str]:
    """Row of a network; one that ends the process, or takes too long, has crashed."""
    command = [sys.executable, "-m", "tests.zoo.one", name, *checks]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        if found.returncode == 0:
            return {key: str(value) for key, value in json.loads(found.stdout.splitlines()[-1]).items()}
        reason = [*found.stderr.strip().splitlines()[-1:], f"exit {found.returncode}"][0]
    except subprocess.TimeoutExpired:
        reason = f"takes more than {TIMEOUT_S} s"
    return {"name": name, "library": library, **dict.fromkeys(checks, f"crashed: {reason}")}
