"""scripts/train.py: one training run, or with -m several, from `conf/train.yaml`."""

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from syncbn.cli.command import run_with_hydra
from syncbn.launch import stop
from syncbn.launch.leave import ends_at_once
from syncbn.launch.secrets import learn, redacted
from syncbn.launch.world import World
from syncbn.run.check import inside
from syncbn.run.compose import plain
from syncbn.run.folder import write_config

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from syncbn.run.resume import Checkpoint


def main() -> None:
    """Check the command line, then train."""
    with ends_at_once():
        stop.install()
        run_with_hydra(train, "train")


def train(config: DictConfig, world: World) -> None:
    """One run, from its config to the accuracy on the test set."""
    import torch
    from hydra.core.hydra_config import HydraConfig
    from lightning.pytorch import seed_everything

    from syncbn.launch.relaunch import threads_of_a_rank
    from syncbn.run import build
    from syncbn.run import screen as output
    from syncbn.run.errors import lightnings_refusals, user_mistakes
    from syncbn.run.resume import resume_from
    from syncbn.run.stoppable import stoppable
    from syncbn.training.loggers import RunFolderCSVLogger, finish, log_config

    stop.obey()
    output.quiet()
    hydra_config = HydraConfig.get()
    _name_the_job(config, hydra_config)
    folder = Path(config.paths.output_dir)
    learn(plain(config))
    sys.argv[1:] = redacted(sys.argv[1:])  # W&B notes them
    torch.set_num_threads(threads_of_a_rank(config.threads, world))
    seed_everything(config.seed, workers=True, verbose=False)

    with user_mistakes():
        _check_folder(config)
        checkpoint = resume_from(config.resume, folder)
        data = build.build_data(config)
        net = build.build_network(config, data, fetch_weights=not (checkpoint or config.model.get("weights")))
        weights = None if checkpoint else build.load_pretrained(config, net)
        task = build.build_task(config, net, data)
        loggers = build.build_loggers(config)
        callbacks = build.build_callbacks(config, loggers, task)
        trainer = build.build_trainer(config, callbacks, loggers, world)
        if config.train:
            build.fit_batches_to_ranks(config, data, trainer, checkpoint)
        build.check_start(config, task, data, trainer)

    # Only a run that can start leaves a folder: one refused above must not touch the config of a run that is there.
    if trainer.is_global_zero:
        write_config(folder, config, hydra_config)
        output.print_start(config, net, trainer, folder, checkpoint, weights)
        for logger in loggers:
            log_config(logger, redacted(plain(config)), _git_commit())
    training = None
    if config.train:
        for logger in loggers:
            if checkpoint and isinstance(logger, RunFolderCSVLogger):
                logger.cut_at(checkpoint.logged_steps)
        started = time.monotonic()
        with lightnings_refusals(), stoppable(trainer):
            trainer.fit(task, data, ckpt_path=checkpoint.path if checkpoint else None)
        training = output.describe_training(trainer, time.monotonic() - started, checkpoint.step if checkpoint else 0)
    metrics: dict[str, Any] = dict(trainer.callback_metrics)
    if config.test:
        with stoppable(trainer):
            metrics |= trainer.test(task, data, ckpt_path=_to_test(trainer, checkpoint), verbose=False)[0]
    if trainer.is_global_zero:
        finish(loggers)
        output.print_results(metrics, folder, training)


def _name_the_job(config: DictConfig, hydra_config: Any) -> None:
    """Give a job of a sweep its numbered folder and an id of its own."""
    config.paths.output_dir = hydra_config.runtime.output_dir
    if hydra_config.mode.name == "MULTIRUN":
        config.run_id = f"{config.run_id}-{hydra_config.job.num}"


def _check_folder(config: DictConfig) -> None:
    """hydra.run.dir and hydra.sweep, which the check of the config didn't see, don't lead out of the output root."""
    if not inside(config.paths.output_dir, config.output_root):
        raise ValueError(
            f"the run's folder {config.paths.output_dir!r} is outside of output_root={config.output_root}; leave "
            "hydra.run.dir and hydra.sweep as they are, and set output_root=<folder>"
        )


def _to_test(trainer: "Trainer", resumed: "Checkpoint | None") -> str | Path | None:
    """The best checkpoint of this fit; else, without a fit, the one to resume from; else the network as it is."""
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if best or trainer.fit_loop.total_batch_idx >= 0 or not resumed:
        return best or None
    return resumed.path


def _git_commit() -> str | None:
    """The commit of the repository that this code, or else the user, is in; None where neither is in one."""
    for place in (Path(__file__).parent, Path.cwd()):
        try:
            answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=place, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return answer.stdout.strip()
    return None
