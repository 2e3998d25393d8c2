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
        "timeout of collectives in seconds, for an unresponsive network; a dead rank is noticed at once",
        refusal="timeout_s must be positive seconds, got {value}",
    )
    process_group_backend: Literal["gloo", "nccl"] | None = option(None, "null: gloo on the CPU, nccl on GPUs")
    start_method: Literal["popen", "spawn", "fork", "forkserver"] = option(
        "popen", "how ranks are started without a launcher; spawn: from within the process, as notebooks need"
    )
    unequal_batches: Policy = option(
        "fail",
        "with unequal numbers of batches: fail, or train with empty batches on ranks that have none left",
    )
    batch_scheduling: bool = option(
        True,
        "whether gloo ranks run under SCHED_BATCH; false: if other programs or the loader's workers compete for the "
        "processors",
    )
    gradient_as_bucket_view: bool = option(
        True, "whether gradients are views of DDP's buckets, and not copied into them"
    )
    find_unused_parameters: bool = option(False, "whether a backward pass may leave parameters unused")
    static_graph: bool = option(False, "whether every step uses the same parameters, in the same order")


OPTIONS = {"ddp": DDPOptions}
