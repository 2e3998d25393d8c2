"""Evaluate a finished run on its test set; needs only its folder."""

from syncbn import cli
from syncbn.cli.arguments import OnRun, Parser
from syncbn.run.errors import user_mistakes

PARSER = Parser("syncbn evaluate", __doc__, OnRun, overrides="overrides")


def main() -> None:
    """Read `run=<folder>` and print the run's test metrics."""
    PARSER.main(evaluate)


def evaluate(arguments: list[str]) -> dict[str, float]:
    """Compute the run's test metrics in one process, so that each test sample counts once.

    Args:
        arguments: `run=<folder>`, and other options of `PARSER`.
    """
    with user_mistakes():
        options = PARSER.read(arguments)

        from syncbn.launch.world import current_world
        from syncbn.run import build, screen, start
        from syncbn.run.finished import open_run

        finished = open_run(options.run, options.checkpoint, options.data, options.overrides, calls=False)
        task = finished.built_task()
        if not start.has_test(task, finished.data):
            raise ValueError(
                f"{type(task).__name__} has no test_step, or {type(finished.data).__name__} no test_dataloader: there "
                "is no test to evaluate by"
            )
        trainer = build.build_trainer(finished.config, callbacks=[], loggers=[], world=current_world())
    tested = trainer.test(task, finished.data, verbose=False)  # no part without a batch
    metrics = {name: float(value) for part in tested for name, value in part.items()}
    print(f"\ncheckpoint:    {finished.checkpoint}")
    screen.print_results(metrics, finished.folder)
    return metrics


if __name__ == "__main__":
    cli.run("evaluate")
