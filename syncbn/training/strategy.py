"""DistributedDataParallel as this project wants it."""

import subprocess
from datetime import timedelta
from typing import Any, Literal

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher

from syncbn.launch.leave import ends_at_once
from syncbn.launch.scheduling import let_threads_finish
from syncbn.norm.core import compat
from syncbn.norm.core.arguments import check_arguments
from syncbn.training import unequal
from syncbn.training.strategy_options import DDPOptions as Options
from syncbn.training.strategy_options import Policy


def ddp(
    timeout_s: float = Options.timeout_s,
    process_group_backend: str | None = Options.process_group_backend,
    start_method: Literal["popen", "spawn", "fork", "forkserver"] = Options.start_method,
    unequal_batches: Policy = Options.unequal_batches,
    batch_scheduling: bool = Options.batch_scheduling,
    gradient_as_bucket_view: bool = Options.gradient_as_bucket_view,
    **options: Any,
) -> DDPStrategy:
    """Lightning's `DDPStrategy`, with buffers sent once, at the start, and a time-out of minutes.

    DDP's default overwrites every rank's buffers by rank 0's at each forward. Synchronized statistics are equal without
    it, and what a rank holds of its own would be lost.

    Args:
        timeout_s: seconds after which a collective without an answer raises. A rank that dies is noticed at once,
            by the closed connection; this is for a network that falls silent.
        process_group_backend: "gloo" or "nccl"; None is nccl on GPUs and gloo on CPU.
        start_method: "popen" starts the script again for each device; torchrun and srun, where they launched us, start
            the ranks themselves; "spawn" starts the ranks from within the process, as a notebook needs.
        unequal_batches: where ranks have unequal numbers of training batches: "fail" at once, or, where the numbers
            aren't known, at the first batch that isn't there on every rank; or "train" on, with empty batches for the
            ranks that have none left, which takes a loss like `syncbn.mean_over_ranks`.
        batch_scheduling: whether ranks that talk by gloo run under Linux's SCHED_BATCH, which makes their messages
            several times faster, and slower where other programs or workers of the loader want the same processors.
        gradient_as_bucket_view: whether gradients are views of DDP's buckets, and not copied into them.
        options: further arguments of `torch.nn.parallel.DistributedDataParallel`, `find_unused_parameters=True` say.

    Raises:
        ValueError: a time-out that isn't positive, or an unknown word for unequal batches.
    """
    check_arguments(Options, locals())
    return _DDPStrategy(
        unequal_batches=unequal_batches,
        batch_scheduling=batch_scheduling,
        timeout=timedelta(seconds=timeout_s),
        process_group_backend=process_group_backend,
        start_method=start_method,
        gradient_as_bucket_view=gradient_as_bucket_view,
        **{**compat.ddp_without_buffers(), **options},
    )


class _DDPStrategy(DDPStrategy):
    """Leaves no rank behind: when the script that started copies of itself ("popen") raises, they go too.

    Spawned ranks are ended by torch, and those of torchrun and srun by their launcher.
    """

    grace_s = 5.0  # a rank that lost its peers raises by itself within 2 seconds; its own message is worth the wait

    def __init__(self, unequal_batches: Policy, batch_scheduling: bool, **options: Any) -> None:
        super().__init__(**options)
        self.unequal_batches = unequal_batches
        self.batch_scheduling = batch_scheduling

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        if self._start_method != "popen":
            self._launcher = _SpawnedRanks(self, start_method=self._start_method)

    def setup_distributed(self) -> None:
        """gloo's threads are started here."""
        if self.batch_scheduling and self._get_process_group_backend() == "gloo":
            let_threads_finish()
        super().setup_distributed()

    def configure_ddp(self) -> None:
        """A module that optimizes by hand, a GAN's say, leaves out parts of its parameters in each backward pass."""
        if self.lightning_module is not None and not self.lightning_module.automatic_optimization:
            self._ddp_kwargs["find_unused_parameters"] = True
        assert self.model is not None
        compat.broadcast_buffers(self.model)
        super().configure_ddp()

    def process_dataloader(self, dataloader: object) -> object:
        """Let the training batches end on all ranks together."""
        assert self.lightning_module is not None
        trainer: Any = self.lightning_module.trainer
        loop = trainer.fit_loop
        for_training = trainer.state.fn == "fit" and (loop._combined_loader is None or loop._should_reload_train_dl)
        return unequal.over_ranks(dataloader, self.unequal_batches) if for_training else dataloader

    def on_exception(self, exception: BaseException) -> None:
        super().on_exception(exception)
        if not isinstance(self.launcher, _SubprocessScriptLauncher):
            return
        for child in self.launcher.procs:  # empty under torchrun and srun
            try:
                child.wait(self.grace_s)
            except subprocess.TimeoutExpired:
                child.kill()


class _SpawnedRanks(_MultiProcessingLauncher):
    """Spawned ranks that end as those of scripts do."""

    def _wrapping_function(self, *args: Any, **kwargs: Any) -> None:
        with ends_at_once():
            super()._wrapping_function(*args, **kwargs)
