"""scripts/evaluate.py run=<folder>: the test metrics of a finished run, from its folder alone."""

import sys
from pathlib import Path

from syncbn.cli.errors import UserError, fail, user_mistakes

USAGE = """\
Evaluate a finished run on its test set: python scripts/evaluate.py run=outputs/<run_id> [key=value] ...

run=<folder>          the run's folder
checkpoint=<path>     another checkpoint than checkpoints/best.ckpt
key=value             anything of the run's config, for example data.eval_batch_size=64 or trainer.accelerator=cpu
"""


def main() -> None:
    """Read `run=<folder>` and print the run's test metrics."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return
    try:
        evaluate(arguments)
    except UserError as error:
        fail(str(error))


def evaluate(arguments: list[str]) -> dict[str, float]:
    """Test metrics of the run, in one process: each test sample counts once.

    Args:
        arguments: `run=<folder>`, optionally `checkpoint=<path>`, and overrides of the run's config.
    """
    with user_mistakes():
        folder, checkpoint, overrides = _read(arguments)

        from syncbn.run_folder import checkpoint_of, load_config, load_weights

        one_process = ["trainer.devices=1", "trainer.num_nodes=1", "trainer.strategy=auto"]
        config = load_config(folder, one_process + overrides)
        checkpoint = checkpoint or checkpoint_of(folder)

        from syncbn.cli import build, output
        from syncbn.launch.world import current_world

        output.quiet()
        data = build.build_data(config)
        net = build.build_network(config, data)
        load_weights(net, checkpoint)
        task = build.build_task(config, net, data)
        trainer = build.build_trainer(config, callbacks=[], loggers=[], world=current_world())
    metrics = {name: float(value) for name, value in trainer.test(task, data, verbose=False)[0].items()}
    print(f"\ncheckpoint:    {checkpoint}")
    output.print_results(metrics, folder)
    return metrics


def _read(arguments: list[str]) -> tuple[Path, Path | None, list[str]]:
    named, overrides = {}, []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"expected key=value, got {argument!r}; usage: scripts/evaluate.py run=outputs/<run_id>")
        if key in ("run", "checkpoint"):
            named[key] = Path(value)
        else:
            overrides.append(argument)
    if "run" not in named:
        raise ValueError("which run? scripts/evaluate.py run=outputs/<run_id>")
    return named["run"], named.get("checkpoint"), overrides
