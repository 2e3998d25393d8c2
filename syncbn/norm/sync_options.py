"""Options of `sync`."""

from dataclasses import dataclass

from syncbn.norm.core.options import option
from syncbn.norm.core.shared_options import Memory, Synchronized, Tracking


@dataclass
class SyncBatchNormOptions(Synchronized, Tracking):
    """Batch normalization over the batches of all ranks: the same result as in one process, for any split."""

    fuse_activation: bool = option(
        False, "whether to compute a norm and the following activation, with or without a shortcut, as one function"
    )
    memory: Memory = option(
        "keep",
        "what that function saves for its gradient; recompute: less; invert: least, with model.activation=leaky_relu",
        refusal="unknown memory={value!r}; allowed: {allowed}",
    )
    overlap: bool = option(
        False,
        "whether the backward pass computes the weight gradients of the layers after a norm while its message is under "
        "way",
    )


OPTIONS = {"sync": SyncBatchNormOptions}
