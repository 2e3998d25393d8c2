"""scripts/evaluate.py run=<folder>: the test metrics of a finished run, from its folder alone."""

from syncbn.cli import finished
from syncbn.run.errors import user_mistakes

USAGE = """\
Evaluate a finished run on its test set: python scripts/evaluate.py run=outputs/<run_id> [key=value] ...

run=<folder>          the run's folder
checkpoint=<path>     another checkpoint than checkpoints/best.ckpt
data=<choice>         other data than the run's: a choice of conf/data
key.key=value         anything of the run's config, for example data.eval_batch_size=64 or trainer.accelerator=cpu
"""


def main() -> None:
    """Read `run=<folder>` and print the run's test metrics."""
    finished.main(USAGE, evaluate)


def evaluate(arguments: list[str]) -> dict[str, float]:
    """Test metrics of the run, in one process: each test sample counts once.

    Args:
        arguments: `run=<folder>` and what `USAGE` says.
    """
    with user_mistakes():
        run = finished.open_run(finished.read_arguments(arguments, "evaluate"))

        from syncbn.launch.world import current_world
        from syncbn.run import build
        from syncbn.run import screen as output

        task = build.build_task(run.config, run.net, run.data)
        trainer = build.build_trainer(run.config, callbacks=[], loggers=[], world=current_world())
    metrics = {name: float(value) for name, value in trainer.test(task, run.data, verbose=False)[0].items()}
    print(f"\ncheckpoint:    {run.checkpoint}")
    output.print_results(metrics, run.folder)
    return metrics
