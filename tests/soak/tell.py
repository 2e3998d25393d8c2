"""One story: a run that nothing happens to, the same run with its events, and what differs at their ends."""

import random
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.data.image_files import write_images
from tests.soak.compare import difference
from tests.soak.events import Place, Wrong, check_words, happen
from tests.soak.starts import end_all, start
from tests.soak.stories import Story, story

_DISK = "24m"


@dataclass
class Told:
    """What came of a story.

    Attributes:
        story: the story.
        compared: whether the two runs were compared bit for bit.
        problem: what went wrong.
        reasons: documented reasons for not comparing.
        notes: what came of each event.
        seconds: time that it took.
    """

    story: Story
    compared: bool = False
    problem: str = ""
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        outcome = f"WRONG: {self.problem}" if self.problem else "equal" if self.compared else f"{self.reasons}"
        return f"seed={self.story.number} {self.story}\n    {self.notes}, {self.seconds:.0f} s: {outcome}"


def tell(number: int, kinds: tuple[str, ...], root: Path) -> Told:
    """Tell a story in a folder."""
    began, told = time.monotonic(), Told(story(number, kinds))
    for name in ("whole", "stopped"):
        (root / name).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(root / "stopped")], check=True)
    try:
        _tell(told, root)
    except (Wrong, OSError) as error:  # a time-out, or a fault of the soak's own: the other stories are told
        told.problem = f"{type(error).__name__}: {error}"
    finally:
        for name in ("whole", "stopped"):
            end_all(root / name)
    told.seconds = time.monotonic() - began
    return told


def _tell(told: Told, root: Path) -> None:
    words = told.story.words
    if "data=image_folder" in words:
        write_images(root / "images", 60)
    began = time.monotonic()
    one = start((*words, "run_id=run"), root / "whole", root / "whole.log", cold=False)
    if (code := one.wait()) == 2:
        told.reasons.append(f"refused: {one.said().strip().splitlines()[-1]}")
        return
    if code or "Traceback" in one.said():
        raise Wrong(f"the uninterrupted run ended with {code}: {one.said()[-2500:]}")
    whole = root / "whole" / "outputs" / "run"
    rows = (whole / "metrics.csv").read_bytes().count(b"\n")
    draw = random.Random(told.story.number)
    place = Place(root / "stopped", root / "stopped.log", time.monotonic() - began, rows, draw, words)
    told.notes, told.reasons = place.notes, place.reasons
    for event in told.story.events:
        happen(event, place, told.story)
    last = place.begin()
    if code := last.wait():
        raise Wrong(f"the last start ended with {code}: {last.said()[-2500:]}")
    check_words(last, "the last start")
    if left := [path.name for path in place.run.rglob(".*.tmp")]:
        raise Wrong(f"files are left: {left}")
    if not told.reasons:
        told.compared = True
        reference = place.run.with_name("whole") if place.changed else whole
        told.problem = difference(reference, place.run, validated_more=place.validated_more) or ""
