"""A run from top to bottom: check the config, build what it describes, fit and test.

`train` does all of it, for `syncbn train`. The science and the benchmarks use its parts: `prepare`, `fit`, `test`.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import nn

from syncbn.launch import stop
from syncbn.launch.relaunch import threads_of_a_rank
from syncbn.launch.secrets import learn, redacted
from syncbn.launch.world import World
from syncbn.norm.core.options import suggest
from syncbn.run import build, screen, start, tasks
from syncbn.run.changes import Change, changes_since
from syncbn.run.check import config_mistakes, inside
from syncbn.run.compose import plain
from syncbn.run.errors import UserError, disk_faults, lightnings_refusals, user_mistakes
from syncbn.run.facts import DataFacts
from syncbn.run.folder import git_commit, write_config
from syncbn.run.lock import acquire, holder_of_run, wait_for_rank_0
from syncbn.run.resume import Checkpoint, remove_leftovers, restore_last, resume_from
from syncbn.run.stoppable import ends_with_its_peers, stoppable
from syncbn.run.targets import import_targets
from syncbn.training import ChecksFolder, owed_row
from syncbn.training.loggers import RunFolderCSVLogger, finish, log_config


@dataclass(frozen=True)
class Run:
    """The built parts of a run.

    Attributes:
        config: config of the run.
        data: DataModule.
        net: network of the task, or the task itself.
        task: LightningModule.
        trainer: Trainer with callbacks and loggers.
        loggers: loggers of the trainer.
        checkpoint: checkpoint to resume from.
        weights: description of the network's initial weights.
        changes: options changed since the checkpoint.
    """

    config: DictConfig
    data: Any
    net: nn.Module
    task: LightningModule
    trainer: Trainer
    loggers: list[Logger]
    checkpoint: Checkpoint | None = None
    weights: str | None = None
    changes: Sequence[Change] = ()


def train(config: DictConfig, world: World, hydra: DictConfig) -> float | None:
    """Do one run, from its config to the test metrics, in its folder and on the screen.

    Args:
        config: composed config, with the run's folder in `paths.output_dir`.
        world: rank of this process and number of ranks.
        hydra: Hydra's own config, to store in the folder.

    Returns:
        The metric that `optimized_metric` names.

    Raises:
        UserError: a user's mistake, before the run has written anything.
        Fault: a fault that ends all ranks.
    """
    stop.obey()
    screen.quiet()
    _check_folder(config)
    learn(plain(config))
    sys.argv[1:] = redacted(sys.argv[1:])  # W&B records them

    folder = Path(config.paths.output_dir)
    with disk_faults(), ends_with_its_peers():
        if world.rank:
            wait_for_rank_0(folder)
        lock = None if world.rank else acquire(folder)
        check = lock.check if lock else None
        try:
            return _train(config, world, hydra, check)
        except FileNotFoundError:
            check() if check else holder_of_run(folder)  # it may be gone
            raise
        finally:
            if lock:
                lock.release()


def _train(
    config: DictConfig, world: World, hydra: DictConfig, check: Callable[[], None] | None = None
) -> float | None:
    run = prepare(config, world, check=check)
    if run.trainer.is_global_zero:
        _begin(run, hydra)
    training = fit(run) if config.train else None
    tested = test(run) if config.test and start.has_test(run.task, run.data) else {}
    metrics = logged(run) | tested
    if run.trainer.is_global_zero:
        finish(run.loggers)
        screen.print_results(tested, Path(config.paths.output_dir), training)
    return _objective(config.get("optimized_metric"), metrics, world)


def prepare(
    config: DictConfig,
    world: World,
    *,
    data: Any = None,
    callbacks: Sequence[Callback] = (),
    change: Callable[[nn.Module], nn.Module] | None = None,
    check: Callable[[], None] | None = None,
) -> Run:
    """Check a config and build what it describes, with all random numbers from its seed.

    Args:
        config: composed config; its batch size is adapted if the run resumes on another number of ranks.
        world: rank of this process and number of ranks.
        data: data module to use instead of the config's.
        callbacks: callbacks in addition to the config's.
        change: maps the config's network to the one to train.
        check: called before each write to the run's folder; raises if another start has overtaken it.

    Raises:
        UserError: the config is invalid or inconsistent.
    """
    if found := config_mistakes(plain(config)):  # for example a sweeper's values, which no earlier check has seen
        raise UserError("\n       ".join(found))
    torch.set_num_threads(threads_of_a_rank(config.threads, world))
    import_targets(plain(config))  # before the seed, since a user's module may set one of its own
    seed_everything(config.seed, workers=True, verbose=False)
    with user_mistakes():
        checkpoint = resume_from(config.resume, Path(config.paths.output_dir))
        changes = changes_since(checkpoint, plain(config)) if checkpoint else []
        data = build.build_data(config) if data is None else data
        loggers = build.build_loggers(config)
        named = build.named_callbacks(config, loggers)
        every = [*build.build_callbacks(config, loggers, named), *callbacks]
        every = every if check is None else [ChecksFolder(check), *every]
        every += build.changed_options(config, changes, named)
        trainer = build.build_trainer(config, every, loggers, world)
        data.trainer = trainer  # a DataModule may use it, for its rank
        facts, net, weights = DataFacts(data), None, None
        if tasks.asks_for_network(config):
            fetched = not (checkpoint or config.model.get("weights"))
            net = build.build_network(config, data, fetch_weights=fetched, facts=facts)
            weights = None if checkpoint else build.load_pretrained(config, net)
            net = net if change is None else change(net)
        task = build.build_task(config, net, data, facts=facts)
        start.take_up(trainer, checkpoint)
        if config.train:
            start.fit_batches_to_ranks(config, data, trainer, checkpoint)
        start.check_start(config, task, data, trainer, facts=facts)
        start.check_fits(config, task, checkpoint)
    return Run(config, data, task if net is None else net, task, trainer, loggers, checkpoint, weights, changes)


def fit(run: Run) -> str:
    """Train; returns a description of the outcome."""
    started = time.monotonic()
    with lightnings_refusals(), stoppable(run.trainer), start.past_its_end(run.trainer, run.checkpoint):
        run.trainer.fit(run.task, run.data, ckpt_path=run.checkpoint.path if run.checkpoint else None)
    if run.checkpoint and run.trainer.global_step == run.checkpoint.step:
        start.stand_at_the_end(run.trainer, run.checkpoint)
    return screen.describe_training(
        run.trainer, time.monotonic() - started, run.checkpoint.step if run.checkpoint else 0
    )


def test(run: Run) -> dict[str, float]:
    """Compute metrics of the test set by the best checkpoint or the current network."""
    with stoppable(run.trainer):
        tested = run.trainer.test(run.task, run.data, ckpt_path=_to_test(run.trainer, run.checkpoint), verbose=False)
    return {name: float(value) for part in tested for name, value in part.items()}  # no part without a batch


def _check_folder(config: DictConfig) -> None:
    """Check that hydra.run.dir and hydra.sweep, unchecked so far, are in the output root."""
    if not inside(config.paths.output_dir, config.output_root):
        raise UserError(
            f"the run's folder {config.paths.output_dir!r} is outside of output_root={config.output_root}; leave "
            "hydra.run.dir and hydra.sweep as they are, and set output_root=<folder>"
        )


def _begin(run: Run, hydra: DictConfig) -> None:
    """Write the run's folder; only called if the run can start, so that a refused run changes no existing folder."""
    config, folder = run.config, Path(run.config.paths.output_dir)
    remove_leftovers(folder)
    write_config(folder, config, hydra)
    if run.checkpoint:
        restore_last(run.checkpoint, folder)
    screen.print_start(config, run.net, run.trainer, folder, run.checkpoint, run.weights, run.changes)
    for logger in run.loggers:
        log_config(logger, redacted(plain(config)), git_commit())
        if config.train and isinstance(logger, RunFolderCSVLogger):
            if run.checkpoint:
                logger.cut_at(run.checkpoint.logged_steps)
            elif config.resume == "auto":  # a start that ended before its first checkpoint has left rows
                logger.cut_at(0)
    if (
        config.train and run.checkpoint and inside(str(run.checkpoint.path), str(folder))
    ):  # of another run: its rows aren't here
        owed_row.pay(run.loggers, run.checkpoint.owed_row)


def logged(run: Run) -> dict[str, float]:
    """Last values of the metrics that the training and the validation logged."""
    return {name: float(value) for name, value in run.trainer.callback_metrics.items()}


def _to_test(trainer: Trainer, resumed: Checkpoint | None) -> str | Path | None:
    """Checkpoint to test: the best of this fit; without a fit, the one to resume from; otherwise None."""
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if best or trainer.fit_loop.total_batch_idx >= 0 or not resumed:
        return best or None
    return resumed.path


def _objective(name: str | None, metrics: dict[str, float], world: World) -> float | None:
    """Metric for a sweeper, equal on all ranks: one that isn't reduced over ranks is the first rank's."""
    if name is not None and name not in metrics:
        raise UserError(f"optimized_metric={name}: no such metric; {suggest(name, metrics)}")
    found = [metrics.get(name or "val/loss")]
    if world.world_size > 1 and dist.is_initialized():
        dist.broadcast_object_list(found)
    return found[0]
