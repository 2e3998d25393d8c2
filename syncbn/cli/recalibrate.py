"""scripts/recalibrate.py run=<folder>: running statistics measured anew, as a new checkpoint."""

from pathlib import Path

from syncbn.cli import finished
from syncbn.run.errors import user_mistakes

USAGE = """\
Measure the running statistics of a run anew: python scripts/recalibrate.py run=outputs/<run_id> [key=value] ...

run=<folder>          the run's folder
data=<choice>         the domain to measure them on, a choice of conf/data; the run's own data by default
checkpoint=<path>     another checkpoint than checkpoints/best.ckpt
max_batches=<n>       training batches to use; all by default
output=<path>         the new checkpoint, which must not exist; checkpoints/recalibrated.ckpt by default
key.key=value         anything of the run's config, for example data.batch_size=64

Training data is taken without augmentation unless you add data.augment=true. No labels are used.
"""
_OPTIONS = ("max_batches", "output")


def main() -> None:
    """Read `run=<folder>` and write the new checkpoint."""
    finished.main(USAGE, recalibrate)


def recalibrate(arguments: list[str]) -> Path:
    """Write a checkpoint with new running statistics, and print the test accuracy before and after.

    Args:
        arguments: `run=<folder>` and what `USAGE` says.
    """
    with user_mistakes():
        read = finished.read_arguments(arguments, "recalibrate", _OPTIONS)
        max_batches = None
        if "max_batches" in read.options:
            max_batches = finished.positive_count("max_batches", read.options["max_batches"])
        output = Path(read.options.get("output") or read.run / "checkpoints" / "recalibrated.ckpt")
        if output.exists():
            raise ValueError(f"{str(output)!r} exists and is not overwritten: give another name by output=<path>")
        if not any(override.startswith("data.augment=") for override in read.overrides):
            read.overrides.append("data.augment=false")
        run = finished.open_run(read)

        from rich.progress import track

        from syncbn.launch.world import current_world
        from syncbn.policy import recalibrate as measure
        from syncbn.run import build
        from syncbn.training.checkpoint import AtomicCheckpointIO, load_checkpoint

        task = build.build_task(run.config, run.net, run.data)
        trainer = build.build_trainer(run.config, callbacks=[], loggers=[], world=current_world())
        before = trainer.test(task, run.data, verbose=False)[0]
        loader = run.data.train_dataloader()
        total = len(loader) if max_batches is None else min(max_batches, len(loader))
        measure(run.net, track(loader, "recalibrating", total), max_batches=max_batches)
        checkpoint = load_checkpoint(run.checkpoint)
    after = trainer.test(task, run.data, verbose=False)[0]
    checkpoint["state_dict"] = {**checkpoint["state_dict"], **task.state_dict()}
    AtomicCheckpointIO().save_checkpoint(checkpoint, output)
    for when, metrics in (("before:", before), ("after:", after)):
        accuracy, loss = 100 * metrics["test/acc"], metrics["test/loss"]
        print(f"{when:<14} test accuracy {accuracy:.2f} %   test loss {loss:.4f}")
    print(f"checkpoint:    {output}")
    return output
