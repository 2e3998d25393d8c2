"""Tell stories until the time is over, and compare each run with the one that nothing happened to.

    python -m tests.soak minutes=60
    python -m tests.soak seed=17 stories=1
    python -m tests.soak "kinds=full disk,kill" stories=3
    python -m tests.soak short=true

`exchange=collective|one_shot` chooses how ranks sum, `keep=<folder>` where the folders of failed stories are kept. Each
story is a small file system of its own, in a mount namespace that ends with this program.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.soak import starts
from tests.soak.stories import KINDS, SHORT
from tests.soak.tell import Told, tell

_NAMESPACE = "SYNCBN_SOAK_NAMESPACE"
_OPTIONS = ("short", "minutes", "seed", "stories", "kinds", "exchange", "keep")


def main() -> int:
    """Tell the stories, and what came of them."""
    options = dict(word.split("=", 1) for word in sys.argv[1:])
    if unknown := options.keys() - set(_OPTIONS):
        raise SystemExit(f"no such option {sorted(unknown)}; there are {', '.join(_OPTIONS)}")
    if _NAMESPACE not in os.environ:
        environ = os.environ | {_NAMESPACE: "1", "OMP_NUM_THREADS": "1"}
        if exchange := options.get("exchange"):
            environ["SYNCBN_EXCHANGE"] = exchange
        unshare = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
        return subprocess.call([*unshare, sys.executable, "-m", "tests.soak", *sys.argv[1:]], env=environ)
    keep = Path(options.get("keep", tempfile.gettempdir())).absolute()
    until = time.monotonic() + 60 * float(options.get("minutes", "inf" if _is_counted(options) else "2"))
    starts.warm_up()
    tellings: list[Told] = []
    for number, kinds in _numbers(options):
        if time.monotonic() > until:
            break
        tellings.append(_tell(number, kinds, keep))
        print(tellings[-1], flush=True)
    return _summary(tellings)


def _is_counted(options: dict[str, str]) -> bool:
    return "stories" in options or "short" in options


def _numbers(options: dict[str, str]) -> Iterable[tuple[int, tuple[str, ...]]]:
    """Stories by number, and the kinds of events to have in each."""
    if options.get("short") == "true":
        return SHORT
    kinds = tuple(word for word in options.get("kinds", "").split(",") if word)
    if unknown := set(kinds) - set(KINDS):
        raise SystemExit(f"no such kind {sorted(unknown)}; there are {', '.join(KINDS)}")
    first = int(options.get("seed", random.SystemRandom().randrange(10**6)))
    print(f"seed={first}", flush=True)
    return ((number, kinds) for number in range(first, first + int(options.get("stories", 10**9))))


def _tell(number: int, kinds: tuple[str, ...], keep: Path) -> Told:
    """Tell a story; the folders of one that went wrong are kept."""
    root = tempfile.mkdtemp(prefix="syncbn-soak-")  # a forked start that exits would take a TemporaryDirectory with it
    try:
        told = tell(number, kinds, Path(root))
        if told.problem:
            kept = keep / f"soak-{number}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(root, kept, ignore=shutil.ignore_patterns("filler"))
            again = f"python -m tests.soak seed={number} stories=1" + (f" 'kinds={','.join(kinds)}'" if kinds else "")
            told.problem += f"\n    again: {again}\n    its folder: {kept}"
        subprocess.run(["umount", "--lazy", f"{root}/stopped"], check=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return told


def _summary(tellings: list[Told]) -> int:
    failed = [told for told in tellings if told.problem]
    equal = [told for told in tellings if told.compared and not told.problem]
    reasons = Counter(reason for told in tellings for reason in set(told.reasons))
    kinds = Counter(note for told in tellings for note in told.notes)
    print(f"{len(tellings)} runs: {len(equal)} equal bit for bit, {len(failed)} wrong, not compared {dict(reasons)}")
    for note, count in sorted(kinds.items()):
        print(f"    {count:4d} {note}")
    return int(bool(failed) or (len(equal) < 0.9 * len(tellings) and len(tellings) > 20))


if __name__ == "__main__":
    sys.exit(main())
