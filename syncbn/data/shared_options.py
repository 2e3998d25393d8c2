"""Options shared by data modules, each declared once."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, Natural, option


@dataclass
class GlobalBatches:
    """Options of every `GlobalBatchDataModule`."""

    batch_size: Count = option(32, "training samples of one rank in a step")
    eval_batch_size: Count = option(128, "samples of one rank in a validation or test step")
    seed: Natural = option(0, "seed of sample order and augmentation")
    split_seed: Natural = option(0, "seed of the split: the test set is the same for every `seed`")
    drop_last: bool = option(False, "whether to leave out the last training batch of an epoch when it isn't full")


@dataclass
class OfClasses(GlobalBatches):
    """Options of data modules with one class per sample."""

    shard_by_class: bool = option(
        False, "whether each rank trains only on its own classes: rank r of W on the classes r, r + W and so on"
    )
