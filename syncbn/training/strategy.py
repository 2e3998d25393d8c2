"""DistributedDataParallel strategy with this project's settings."""

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
    """Make Lightning's `DDPStrategy` with one broadcast of buffers, at the start, and a timeout of minutes.

    DDP's default overwrites every rank's buffers by rank 0's at each forward. Synchronized statistics are equal without
    it, and a rank's own state would be lost.

    Args:
        timeout_s: seconds after which a collective without a response raises. A dead rank is noticed at once, by the
            closed connection; this is for an unresponsive network.
        process_group_backend: "gloo" or "nccl"; None for nccl on GPUs and gloo on CPU.
        start_method: "popen" starts the script again for each device, unless torchrun or srun have started the ranks;
            "spawn" starts the ranks from within the process, as notebooks need.
        unequal_batches: for ranks with unequal numbers of training batches: "fail" at once or, if the numbers are
            unknown, at the first batch that some rank lacks; or "train" with empty batches on ranks that have none
            left, which requires a loss like `syncbn.mean_over_ranks`.
        batch_scheduling: whether gloo ranks run under Linux's SCHED_BATCH, which makes their messages several times
            faster, but slower if other programs or the loader's workers compete for the processors.
        gradient_as_bucket_view: whether gradients are views of DDP's buckets instead of copies.
        options: further arguments of `torch.nn.parallel.DistributedDataParallel`, as `find_unused_parameters=True`.

    Raises:
        ValueError: a timeout that isn't positive, or an unknown value of unequal_batches.
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
    """DDP strategy that leaves no rank behind: when a script that started copies of itself ("popen") raises, they end.

    torch ends spawned ranks, and torchrun and srun end theirs.
    """

    grace_s = 5.0  # wait for messages of ranks that lost their peers, which raise within 2 seconds

    def __init__(self, unequal_batches: Policy, batch_scheduling: bool, **options: Any) -> None:
        super().__init__(**options)
        self.unequal_batches = unequal_batches
        self.batch_scheduling = batch_scheduling

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        if self._start_method != "popen":
            self._launcher = _SpawnedRanks(self, start_method=self._start_method)

    def setup_distributed(self) -> None:
        """Set the scheduling policy before gloo's threads start."""
        if self.batch_scheduling and self._get_process_group_backend() == "gloo":
            let_threads_finish()
        super().setup_distributed()

    def configure_ddp(self) -> None:
        """Find unused parameters with manual optimization, such as a GAN's, whose backward passes use only some."""
        if self.lightning_module is not None and not self.lightning_module.automatic_optimization:
            self._ddp_kwargs["find_unused_parameters"] = True
        assert self.model is not None
        compat.broadcast_buffers(self.model)
        super().configure_ddp()

    def process_dataloader(self, dataloader: object) -> object:
        """Make the training batches end on all ranks together."""
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
    """Launcher of spawned ranks that end like those of scripts."""

    def _wrapping_function(self, *args: Any, **kwargs: Any) -> None:
        with ends_at_once():
            super()._wrapping_function(*args, **kwargs)
