"""`elastic=keep|refuse`: resuming with a different number of ranks than the checkpoint's."""

from typing import Literal

from syncbn.run.resume import Checkpoint


def batch_size_of_a_rank(
    batch_size: int | None, world_size: int, checkpoint: Checkpoint | None, elastic: Literal["keep", "refuse"]
) -> int | None:
    """Samples of one rank in a step: `batch_size`, unless the number of ranks has changed since the checkpoint.

    A resumed run keeps its batch size, whatever its command line says. With another number of ranks, "keep" divides the
    checkpoint's global batch by the current number of ranks. This preserves the schedule, the position in the epoch and
    the effect of the learning rate.

    Args:
        batch_size: batch size of the data; None if it has none.
        world_size: current number of ranks.
        checkpoint: checkpoint to resume from.
        elastic: "keep", or "refuse" to resume.

    Raises:
        ValueError: "refuse", or a global batch that is unknown or can't be divided equally.
    """
    if checkpoint is None or checkpoint.world_size is None:
        return batch_size
    whole = checkpoint.global_batch_size
    if checkpoint.world_size == world_size:  # a position in an epoch refers to batches of this size
        return batch_size if whole is None or batch_size is None else whole // world_size
    changed = f"the checkpoint is of {checkpoint.world_size} rank(s), and there are {world_size}"
    if elastic == "refuse":
        raise ValueError(
            f"{changed}: start {checkpoint.world_size}, or take elastic=keep, which keeps the global batch size"
        )
    if batch_size is None or whole is None:
        raise ValueError(
            f"{changed}, and its data doesn't say how large a global batch was (it has no batch_size): start "
            f"{checkpoint.world_size}"
        )
    share, rest = divmod(whole, world_size)
    if rest:
        raise ValueError(
            f"{changed}, which can't share its global batch of {whole} samples equally: start a "
            "number of ranks that divides it"
        )
    return share
