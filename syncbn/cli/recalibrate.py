"""Recalibrate the running statistics of a finished run, into a new checkpoint.

Training data that knows data.augment is taken without augmentation, unless data.augment=true is given. No labels are
used.
"""

from dataclasses import dataclass
from pathlib import Path

from syncbn import cli
from syncbn.cli.arguments import OnRun, Parser
from syncbn.norm.core.options import Count, option
from syncbn.run.errors import user_mistakes


@dataclass
class Options(OnRun):
    """Options of `syncbn recalibrate`."""

    max_batches: Count | None = option(None, "training batches to use; all by default")
    output: Path | None = option(
        None, "the new checkpoint, which must not exist; checkpoints/recalibrated.ckpt by default"
    )


PARSER = Parser("syncbn recalibrate", __doc__, Options, overrides="overrides")


def main() -> None:
    """Read `run=<folder>` and write the new checkpoint."""
    PARSER.main(recalibrate)


def recalibrate(arguments: list[str]) -> Path:
    """Write a checkpoint with recalibrated statistics, and print the test accuracy before and after.

    Args:
        arguments: `run=<folder>`, and other options of `PARSER`.
    """
    with user_mistakes():
        options = PARSER.read(arguments)
        output = options.output or options.run / "checkpoints" / "recalibrated.ckpt"
        if output.exists():
            raise ValueError(f"{str(output)!r} exists and is not overwritten: give another name by output=<path>")
        chosen = any(override.startswith("data.augment=") for override in options.overrides)
        plain = {} if chosen else {"data.augment": False}

        from rich.progress import track

        from syncbn.launch.world import current_world
        from syncbn.policy import recalibrate as measure
        from syncbn.run import build
        from syncbn.run.finished import open_run
        from syncbn.run.screen import described_metrics
        from syncbn.training.checkpoint import AtomicCheckpointIO, load_checkpoint

        finished = open_run(options.run, options.checkpoint, options.data, options.overrides, plain)
        task = finished.built_task()
        trainer = build.build_trainer(finished.config, callbacks=[], loggers=[], world=current_world())
        before = trainer.test(task, finished.data, verbose=False)[0]
        loader = finished.train_loader()
        total = len(loader) if options.max_batches is None else min(options.max_batches, len(loader))
        measure(finished.net, track(loader, "recalibrating", total), max_batches=options.max_batches)
        checkpoint = load_checkpoint(finished.checkpoint)
    after = trainer.test(task, finished.data, verbose=False)[0]
    checkpoint["state_dict"] = {**checkpoint["state_dict"], **task.state_dict()}
    AtomicCheckpointIO().save_checkpoint(checkpoint, output)
    for when, metrics in (("before:", before), ("after:", after)):
        if {"test/acc", "test/loss"} <= metrics.keys():
            print(f"{when:<14} test accuracy {100 * metrics['test/acc']:.2f} %   test loss {metrics['test/loss']:.4f}")
        else:  # of a user's task
            print(f"{when:<14} {described_metrics(metrics)}")
    print(f"checkpoint:    {output}")
    return output


if __name__ == "__main__":
    cli.run("recalibrate")
