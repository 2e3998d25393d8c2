"""Test a claim of the literature on two CPU cores: do its runs and write its page.

<name> is {names}; or summary, the page of all results. The smoke size runs a step or a few of everything; its
figures mean nothing and aren't judged. The full size is as close to the source as the plan gets, for machines with
GPUs. Finished runs are read from the CSV file. The plan's claims must be committed before the first run.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from science.plan import PLANS, Scale, available_results, load_plan
from syncbn.cli.arguments import Parser
from syncbn.launch.leave import ends_at_once, leave_together
from syncbn.launch.relaunch import run_under_torchrun
from syncbn.launch.run_id import ensure_run_id
from syncbn.launch.world import World, current_world
from syncbn.norm.core.options import option, required
from syncbn.run.check import conf_dir
from syncbn.run.errors import user_mistakes

if TYPE_CHECKING:
    from science.runs import Trial


@dataclass
class Options:
    """Options of `scripts/reproduce.py`."""

    name: str = required("name of a file in science/plans")
    scale: Scale = option("small", "size of the runs")
    smoke: bool = option(False, "scale=smoke")
    output: Path | None = option(
        None, "folder for <name>.md, .png and .csv: docs/results, docs/results/full or outputs/results-smoke"
    )


PARSER = Parser(
    "python scripts/reproduce.py", __doc__.format(names=", ".join(available_results())), Options, words="name"
)


def main() -> None:
    """Read a result's name from the command line, do its runs and write its page."""
    world = current_world()
    with ends_at_once():
        PARSER.main(_main)
        leave_together(world)


def _main(arguments: list[str]) -> None:
    world = current_world()
    with user_mistakes():
        ensure_run_id()
        options = PARSER.read(arguments)
        scale: Scale = "smoke" if options.smoke else options.scale
        results = conf_dir().parent / "docs" / "results"
        usual = {"smoke": Path("outputs", "results-smoke"), "small": results, "full": results / "full"}[scale]
        output = options.output or usual
        if options.name == "summary":
            from science import summary

            print(f"page: {summary.write(output)}")
            return
        ranks = load_plan(options.name).ranks_of(scale)
        if world.launcher == "python" and ranks > 1:
            run_under_torchrun(ranks, sys.argv)
        if world.world_size != ranks:
            raise ValueError(
                f"{options.name} runs on {ranks} process(es), got {world.world_size}: leave the launcher out, the "
                "command starts them itself"
            )
    reproduce(options.name, output, world, scale)


def reproduce(name: str, output: Path, world: World, scale: Scale = "small") -> Path:
    """Do the missing runs of a result, and write its page; every rank calls it.

    Args:
        name: name of a file in `science/plans`.
        output: folder of the page, the picture and the records.
        world: rank of this process and number of ranks, as many as the result needs.
        scale: size of the runs.

    Returns:
        The page.
    """
    from science import page
    from science.history import commit_of_claims
    from science.records import Records
    from science.runs import carry_out, missing_trials, settings_of
    from syncbn.run.screen import quiet

    quiet()
    with user_mistakes():
        plan = load_plan(name)
        commit = "" if scale == "smoke" else commit_of_claims(plan, PLANS / f"{name}.yaml")
        settings = settings_of(plan, scale)
        records = Records(output / f"{name}.csv", plan.metrics(), settings, plan.claims_hash())
        runs = missing_trials(plan, records, scale)
    done = carry_out(plan, runs, records, settings, world, scale, commit)
    if world.rank > 0:
        for _ in done:
            pass
        return output / f"{name}.md"
    _follow(done, name, len(runs), len(records.rows))
    written = page.write(plan, records, output, scale)
    print(f"page: {written}")
    if scale == "smoke":
        print("smoke size: the figures mean nothing, and nothing is judged by them")
    return written


def _follow(done: "Iterator[tuple[Trial, float]]", name: str, count: int, before: int) -> None:
    """Iterate over the runs with a progress bar or, without a terminal, a line for each."""
    from rich.console import Console
    from rich.progress import track

    console = Console()
    if before:
        print(f"{before} run(s) are done already", flush=True)
    for number, (run, seconds) in enumerate(
        track(done, name, count, console=console, disable=not console.is_terminal), start=1
    ):
        if not console.is_terminal:
            print(f"{number}/{count} {run.cell.name}, seed {run.seed}: {seconds:.1f} s", flush=True)
