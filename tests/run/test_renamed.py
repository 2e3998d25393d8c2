"""A run whose folder is renamed while it runs: it ends in one line, and goes on under the new name."""

from pathlib import Path
from typing import Any

import pytest

from syncbn.launch.faults import Fault
from syncbn.run import folder as run_folder
from syncbn.training.callbacks import figures
from tests.run.here import RunHere, train
from tests.run.test_disks import RUN, assert_equal, whole

__all__ = ["whole"]


def before(owner: Any, name: str, action: Any, patch: pytest.MonkeyPatch) -> None:
    """Do something before the first call of a function."""
    function, calls = getattr(owner, name), []

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        if not calls:
            calls.append(1)
            action()
        return function(*arguments, **keywords)

    patch.setattr(owner, name, wrapped)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (run_folder, "replace_text"),
        (figures, "read_metrics"),
        (figures, "_save"),
        (figures, "draw_norm_statistics"),
        (figures, "draw_confusion_matrix"),
    ],
)
def test_nothing_is_made_under_the_old_name(
    tmp_path: Path, whole: RunHere, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCBN_LOCK_STALE_S", "1")  # the holder that couldn't give the folder back is this process
    old, new = tmp_path / "run", tmp_path / "new"
    with monkeypatch.context() as patch:
        before(owner, name, lambda: old.rename(new), patch)
        with pytest.raises(Fault, match="was removed or renamed"):
            train(tmp_path, "run", *RUN)
    assert not old.exists()
    assert_equal(train(tmp_path, "new", *RUN), whole)
