"""The options that data modules share, each declared once."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, Natural, option


@dataclass
class GlobalBatches:
    """Of every `GlobalBatchDataModule`."""

    batch_size: Count = option(32, "training samples of one rank in a step")
    eval_batch_size: Count = option(128, "samples of one rank in a validation or test step")
    seed: Natural = option(0, "of order and augmentation")
    split_seed: Natural = option(0, "of the split: the test set is the same for every seed")
    drop_last: bool = option(False, "whether the last training batch of an epoch is left out when it isn't full")


@dataclass
class OfClasses(GlobalBatches):
    """Of data modules whose samples have a class each."""

    shard_by_class: bool = option(
        False, "whether each rank trains on its own classes alone: rank r of W on the classes r, r + W and so on"
    )
