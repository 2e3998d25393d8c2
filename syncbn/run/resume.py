"""`resume=auto|<path>|null`: the checkpoint that a run resumes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

LAST = Path("checkpoints", "last.ckpt")
_WORDS = ("auto", "last", "best", "hpc", "yes", "true", "must", "allow")  # Lightning's and W&B's


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read once and is complete.

    Attributes:
        path: path of the file.
        step: optimizer steps before it.
        logged_steps: first step that isn't logged yet; less than `step` with several optimizers per batch.
        epochs: number of epochs that have begun.
        instead_of: why it isn't the requested one.
        world_size: number of ranks that saved it.
        global_batch_size: samples of all ranks in a step; None if unknown.
        owed_row: row that loggers got after it was saved, unless the run was killed in between.
        monitors: metrics that callbacks use instead of their own monitor, as decided by `syncbn.training.Monitors`.
        shapes: shapes of its weights and buffers, by name.
    """

    path: Path
    step: int
    logged_steps: int
    epochs: int = 0
    instead_of: str | None = None
    world_size: int | None = None
    global_batch_size: int | None = None
    owed_row: Mapping[str, Any] | None = None
    monitors: Mapping[str, str | None] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def resume_from(resume: str | None, folder: Path) -> Checkpoint | None:
    """Find the checkpoint to resume from, or None to start a new run.

    Args:
        resume: "auto" for this run's last checkpoint, if any, or the one before if it is damaged; a path; or None.
        folder: folder of the run.

    Raises:
        ValueError: the path isn't a checkpoint, or is damaged; or `resume` is None, or another run's checkpoint, in the
            folder of an existing run, which a new one would overwrite.
    """
    last = folder / LAST
    if resume is None:
        if last.exists():
            raise ValueError(
                f"{str(folder)!r} holds a run already: add resume=auto to go on with it, or choose another run_id=..."
            )
        return None
    if resume == "auto":
        return _last_readable(last)
    if resume.lower() in _WORDS and not Path(resume).exists():
        raise ValueError(
            f"resume={resume}: resume=auto goes on with this run's last checkpoint, and any other is given by its "
            "path, resume=outputs/<run_id>/checkpoints/best.ckpt say"
        )
    path = Path(resume)
    if path.is_dir():
        inside = path / LAST if (path / LAST).exists() else path / LAST.name
        hint = f": give the file, {str(inside)!r}" if inside.exists() else ""
        raise ValueError(f"resume: {str(path)!r} is a folder, not a checkpoint{hint}")
    if last.exists() and not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{str(folder)!r} holds a run already, and {str(path)!r} is of another: add resume=auto to go on with "
            "the one there, or choose another run_id=..."
        )
    return _readable(path)


def _last_readable(last: Path) -> Checkpoint | None:
    from syncbn.training.checkpoint import previous  # imports torch

    if not last.exists() and not previous(last).exists():
        return None
    try:
        return _readable(last)
    except ValueError as error:
        if not previous(last).exists():
            raise
        return replace(_readable(previous(last)), instead_of=str(error))


def restore_last(checkpoint: Checkpoint, folder: Path) -> None:
    """Replace a run's last checkpoint that couldn't be read by the one to resume from instead.

    The next save would keep the damaged one as the previous, and a run that has nothing left to train saves none.
    """
    from syncbn.training.checkpoint import give_name

    if checkpoint.instead_of is not None:
        give_name(checkpoint.path, folder / LAST)


def remove_leftovers(folder: Path) -> None:
    """Remove what a start was writing when it was killed, or when its folder was renamed; none has its name yet."""
    for place in (folder, folder / LAST.parent):
        for path in place.glob(".*"):
            if path.suffix in (".tmp", ".link"):
                path.unlink(missing_ok=True)


def _readable(path: Path) -> Checkpoint:
    from syncbn.training.checkpoint import load_checkpoint  # imports torch

    try:
        checkpoint = load_checkpoint(path)
    except FileNotFoundError as error:
        raise ValueError(f"resume: {error}") from error
    if not {"state_dict", "optimizer_states", "loops", "global_step"} <= checkpoint.keys():
        raise ValueError(
            f"resume: {str(path)!r} is not a checkpoint of a training run (it has {', '.join(sorted(checkpoint))}); "
            "give one that scripts/train.py wrote"
        )
    ranks = checkpoint.get("ranks")  # ExactResume's
    weights = checkpoint["state_dict"]
    return Checkpoint(
        path,
        step=int(checkpoint["global_step"]),
        logged_steps=_logged_steps(checkpoint["loops"]["fit_loop"]),
        epochs=int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["total"]["started"]),
        world_size=None if ranks is None else len(ranks),
        global_batch_size=checkpoint.get("global_batch_size"),
        owed_row=checkpoint.get("owed_row"),  # training/owed_row's; those of 0.1 have none
        monitors=checkpoint.get("callbacks", {}).get("Monitors", {}).get("decided", {}),
        shapes={name: tuple(value.shape) for name, value in weights.items() if hasattr(value, "shape")},
    )


def _logged_steps(loop: Mapping[str, Any]) -> int:
    """Number of logged steps: Lightning counts a batch's step only after checkpoints are saved."""
    epochs = loop["epoch_progress"]["total"]
    return int(loop["epoch_loop.state_dict"]["_batches_that_stepped"]) + (epochs["processed"] < epochs["started"])
