"""`elastic=keep|refuse`: a run that goes on with another number of ranks than its checkpoint was saved by."""

from typing import Literal

from syncbn.run.resume import Checkpoint


def batch_size_of_a_rank(
    batch_size: int | None, world_size: int, checkpoint: Checkpoint | None, elastic: Literal["keep", "refuse"]
) -> int | None:
    """The samples of one rank in a step: `batch_size`, unless the number of ranks has changed since the checkpoint.

    Then "keep" keeps the global batches of the run, and so the schedule, the place in the epoch and what a learning
    rate means: the checkpoint's global batch, divided by the ranks there are.

    Args:
        batch_size: what the data says; None where it has no such size.
        world_size: the ranks there are.
        checkpoint: what the run goes on from.
        elastic: "keep", or "refuse" to go on at all.

    Raises:
        ValueError: "refuse", or a global batch that isn't known, or that the ranks can't share equally.
    """
    if checkpoint is None or checkpoint.world_size in (None, world_size):
        return batch_size
    changed = f"the checkpoint is of {checkpoint.world_size} rank(s), and there are {world_size}"
    if elastic == "refuse":
        raise ValueError(
            f"{changed}: start {checkpoint.world_size}, or take elastic=keep, which keeps the global batch size"
        )
    if batch_size is None or checkpoint.global_batch_size is None:
        raise ValueError(
            f"{changed}, and its data doesn't say how large a global batch was (it has no batch_size): start "
            f"{checkpoint.world_size}"
        )
    share, rest = divmod(checkpoint.global_batch_size, world_size)
    if rest:
        raise ValueError(
            f"{changed}, which can't share its global batch of {checkpoint.global_batch_size} samples equally: start a "
            "number of ranks that divides it"
        )
    return share
