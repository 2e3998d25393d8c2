"""scripts/reproduce.py <name>: a claim of the literature, tested on two CPU cores."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from syncbn.launch.leave import ends_at_once, leave_together
from syncbn.launch.relaunch import run_under_torchrun
from syncbn.launch.run_id import ensure_run_id
from syncbn.launch.world import World, current_world
from syncbn.norm.core.options import suggest
from syncbn.run.check import conf_dir
from syncbn.run.errors import UserError, fail, user_mistakes

if TYPE_CHECKING:
    from science.runs import Run

USAGE = """\
Test a claim of the literature: python scripts/reproduce.py <name> [smoke=true] [output=<folder>]

<name>                a file of science/plans: {names}
smoke=true            a few steps of two seeds: everything runs, the figures mean nothing
output=<folder>       where <name>.md, .png and .csv go: docs/results, and outputs/results-smoke for the smoke size

Finished runs are in the CSV file and aren't done again. To write the page of all results: scripts/reproduce.py summary
"""


def main() -> None:
    """Read a name from the command line, do its runs and write its page."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        from science.plan import available_results

        print(USAGE.format(names=", ".join(available_results())))
        return
    world = current_world()
    with ends_at_once():
        try:
            _main(arguments, world)
        except UserError as error:
            fail(str(error), prints=world.rank == 0, after_others=world.rank > 0)
        leave_together(world)


def _main(arguments: list[str], world: World) -> None:
    with user_mistakes():
        from science.plan import load_plan
        from science.runs import ranks_of

        ensure_run_id()
        name, smoke, output = _read(arguments)
        if name == "summary":
            from science import summary

            print(f"page: {summary.write(output)}")
            return
        ranks = ranks_of(load_plan(name), smoke)
        if world.launcher == "python" and ranks > 1:
            run_under_torchrun(ranks)
        if world.world_size != ranks:
            raise ValueError(
                f"{name} runs on {ranks} process(es), got {world.world_size}: leave the launcher out, the command "
                "starts them itself"
            )
    reproduce(name, output, world, smoke)


def reproduce(name: str, output: Path, world: World, smoke: bool = False) -> Path:
    """Do the runs of a result that aren't done, and write its page. Every rank calls it.

    Args:
        name: a file of `science/plans`.
        output: the folder of the page, the picture and the records.
        world: this process among the ranks, as many as the result asks for.
        smoke: the smoke size.

    Returns:
        The page.
    """
    from science import page
    from science.plan import load_plan
    from science.records import Records
    from science.runs import carry_out, missing_runs, settings_of
    from syncbn.run.screen import quiet

    quiet()
    with user_mistakes():
        plan = load_plan(name)
        settings = settings_of(plan, smoke)
        records = Records(output / f"{name}.csv", plan.metrics(), settings)
        runs = missing_runs(plan, records, smoke)
    done = carry_out(plan, runs, records, settings, world)
    if world.rank > 0:
        for _ in done:
            pass
        return output / f"{name}.md"
    _follow(done, name, len(runs), len(records.rows))
    written = page.write(plan, records, output, smoke)
    print(f"page: {written}")
    return written


def _follow(done: "Iterator[tuple[Run, float]]", name: str, count: int, before: int) -> None:
    """Go through the runs with a progress bar or, where nobody watches, a line for each."""
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


def _read(arguments: list[str]) -> tuple[str, bool, Path]:
    """The name, whether it is the smoke size, and the folder."""
    names = [argument for argument in arguments if "=" not in argument]
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    for key in options:
        if key not in ("smoke", "output"):
            raise ValueError(f"{key}: no such key; {suggest(key, ('smoke', 'output'))}")
    if options.get("smoke", "false") not in ("true", "false"):
        raise ValueError(f"smoke is true or false, got {options['smoke']!r}")
    if len(names) != 1:
        raise ValueError(f"give one name, got {len(names)}: scripts/reproduce.py <name>, or --help for the names")
    smoke = options.get("smoke") == "true"
    usual = Path("outputs", "results-smoke") if smoke else conf_dir().parent / "docs" / "results"
    return names[0], smoke, Path(options.get("output") or usual)
