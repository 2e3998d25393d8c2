"""What the commands on a finished run share: `run=<folder>` and what may stand beside it."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncbn.norm.core.options import suggest
from syncbn.run.errors import UserError, fail

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule
    from omegaconf import DictConfig
    from torch import nn


@dataclass
class Arguments:
    """A command line: the run's folder, another checkpoint, the command's own options, and changes to the config."""

    run: Path
    checkpoint: Path | None = None
    options: dict[str, str] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)  # of groups: data=digits_shifted
    overrides: list[str] = field(default_factory=list)


@dataclass
class FinishedRun:
    """A run, opened: its config, data and trained network, in eval mode on the CPU."""

    folder: Path
    checkpoint: Path
    config: "DictConfig"
    data: "LightningDataModule"
    net: "nn.Module"


def main(usage: str, command: Callable[[list[str]], Any]) -> None:
    """Call `command` with the command line, or print the usage; a user's mistake is one line and exit code 2."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(usage)
        return
    try:
        command(arguments)
    except UserError as error:
        fail(str(error))


def read_arguments(arguments: list[str], script: str, options: tuple[str, ...] = ()) -> Arguments:
    """Take a command line apart.

    Args:
        arguments: `run=<folder>` and, beside it, `checkpoint=<path>`, the command's options, `data=<choice>`, and
            dotted keys of the run's config.
        script: the command's name, for messages.
        options: the keys that are the command's own.

    Raises:
        ValueError: no run, or a key without a dot that isn't one of these.
    """
    named: dict[str, str] = {}
    overrides = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"expected key=value, got {argument!r}; usage: scripts/{script}.py run=outputs/<run_id>")
        if "." in key:
            overrides.append(argument)
        elif key in ("run", "checkpoint", "data", *options):
            named[key] = value
        else:
            keys = ("run", "checkpoint", "data", *options)
            raise ValueError(f"{key}: no such key; {suggest(key, keys)}, or a dotted key of the run's config")
    if "run" not in named:
        raise ValueError(f"which run? scripts/{script}.py run=outputs/<run_id>")
    return Arguments(
        run=Path(named["run"]),
        checkpoint=Path(named["checkpoint"]) if "checkpoint" in named else None,
        options={key: named[key] for key in options if key in named},
        choices={"data": named["data"]} if "data" in named else {},
        overrides=overrides,
    )


def open_run(arguments: Arguments) -> FinishedRun:
    """The run of a command line, in one process.

    Raises:
        ValueError: the folder isn't one of a run, its config isn't one of ours, or its checkpoint is damaged.
    """
    from syncbn.run.folder import checkpoint_of, load_config, load_weights

    one_process = ["trainer.devices=1", "trainer.num_nodes=1", "trainer.strategy=auto"]
    groups = {group: _composed(group, choice) for group, choice in arguments.choices.items()}
    config = load_config(arguments.run, one_process + arguments.overrides, groups)
    checkpoint = arguments.checkpoint or checkpoint_of(arguments.run)

    from syncbn.run import build
    from syncbn.run import screen as output

    output.quiet()
    data = build.build_data(config)
    net = build.build_network(config, data, fetch_weights=False)
    load_weights(net, checkpoint)
    return FinishedRun(arguments.run, checkpoint, config, data, net.eval())


def positive_count(key: str, text: str) -> int:
    """A number of at least 1 from the command line.

    Raises:
        ValueError: it is none.
    """
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{key} must be a whole number of at least 1, got {text!r}")
    return int(text)


def _composed(group: str, choice: str) -> Any:
    """The config of `data=<choice>`, with interpolations left for the run's config."""
    from hydra import compose, initialize_config_dir

    from syncbn.run.check import conf_dir, unknown_choice
    from syncbn.run.compose import config_groups
    from syncbn.run.search_path import conf_dirs

    choices = config_groups(conf_dirs())[group]
    if choice not in choices:
        raise ValueError(unknown_choice(group, choice, choices))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Defaults list is missing `_self_`")  # a group, composed alone
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose(f"{group}/{choice}")[group]
