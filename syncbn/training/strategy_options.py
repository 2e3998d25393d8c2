"""Options of DistributedDataParallel."""

from dataclasses import dataclass
from typing import Literal

from syncbn.norm.core.options import Positive, option

Policy = Literal["fail", "train"]


@dataclass
class DDPOptions:
    """DistributedDataParallel, with one broadcast of buffers and a timeout of minutes."""

    timeout_s: Positive = option(
        300.0,
        "seconds after which a network that falls silent is given up; a rank that dies is noticed at once",
        refusal="timeout_s must be positive seconds, got {value}",
    )
    process_group_backend: Literal["gloo", "nccl"] | None = option(None, "null: gloo on the CPU, nccl on GPUs")
    start_method: Literal["popen", "spawn", "fork", "forkserver"] = option(
        "popen", "how ranks are started where no launcher does; spawn: from within the process, as a notebook needs"
    )
    unequal_batches: Policy = option(
        "fail",
        "what ranks with unequal numbers of batches do; train: those that have none left take part with empty ones",
    )
    batch_scheduling: bool = option(
        True,
        "whether ranks that talk by gloo run under SCHED_BATCH; false: where other programs, or workers of the loader, "
        "want the same processors",
    )
    gradient_as_bucket_view: bool = option(
        True, "whether gradients are views of DDP's buckets, and not copied into them"
    )
    find_unused_parameters: bool = option(False, "whether a backward pass may leave parameters out")
    static_graph: bool = option(False, "whether every step uses the same parameters, in the same order")


OPTIONS = {"ddp": DDPOptions}
