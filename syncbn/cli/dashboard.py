"""Create a W&B workspace view with the panels that a run fills.

Without a login, or with WANDB_MODE=offline, nothing is sent: the view is checked, shown and written to a file. Needs
pip install "syncbn[dashboard]".
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from syncbn import cli
from syncbn.cli.arguments import Parser
from syncbn.norm.core.options import option
from syncbn.run.errors import UserError, user_mistakes

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NEEDS = ("wandb",)
_STEP = "trainer/global_step"  # W&B's own step starts again at 0 in each piece of a resumed run


@dataclass
class Options:
    """Options of `syncbn dashboard`."""

    entity: str | None = option(None, "W&B's user or team; $WANDB_ENTITY where it isn't given")
    project: str | None = option(None, "W&B's project; $WANDB_PROJECT or syncbn where it isn't given")
    name: str = option("syncbn", "name of the view")
    output: Path = option(Path("dashboard.json"), "file for the view, where it isn't sent")


PARSER = Parser("syncbn dashboard", __doc__, Options)


def main() -> None:
    """Read the command line, and send or write the view."""
    PARSER.main(dashboard)


def dashboard(arguments: list[str]) -> "Workspace":
    """Send the view to W&B and print its address, or print what it has and write it to a file.

    Args:
        arguments: options of `PARSER`.
    """
    with user_mistakes():
        options = PARSER.read(arguments)
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError('wandb_workspaces isn\'t installed: pip install "syncbn[dashboard]"')
    from syncbn.training.loggers import is_offline

    offline = is_offline()
    entity = options.entity or os.environ.get("WANDB_ENTITY")
    if entity is None and not offline:
        raise UserError("entity: missing, W&B's user or team: syncbn dashboard entity=<name>, or export WANDB_ENTITY")
    project = options.project or os.environ.get("WANDB_PROJECT", "syncbn")
    view = workspace(entity or "entity", project, options.name)
    for section in view.sections:
        titles = (getattr(panel, "title", None) or type(panel).__name__ for panel in section.panels)
        print(f"{section.name + ':':<10} {', '.join(titles)}")
    if offline:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        spec = view._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1)
        options.output.write_text(f"{spec}\n", encoding="utf-8")
        print(
            f"not sent, since W&B is offline: {options.output}; to send it: wandb login, syncbn dashboard entity=<name>"
        )
    else:
        view.save()
        print(f"view: {view.url}")
    return view


def workspace(entity: str, project: str, name: str) -> "Workspace":
    """Build the view. wandb-workspaces checks each panel."""
    import wandb_workspaces.reports.v2 as panels
    from wandb_workspaces.workspaces import Section, Workspace

    def curves(title: str, *metrics: str, regex: str | None = None) -> panels.LinePlot:
        return panels.LinePlot(title=title, x=_STEP, y=list(metrics), metric_regex=regex)

    training = [
        curves("loss", "train/loss", "val/loss"),
        curves("accuracy", "train/acc", "val/acc"),
        curves("learning rate", regex="lr-.*"),
        panels.ScalarChart(title="test accuracy", metric="test/acc"),
        panels.ScalarChart(title="test loss", metric="test/loss"),
    ]
    norms = [  # callbacks=[default,norm_monitor]
        curves("gap between training and evaluation", regex="norm/.*/gap"),
        curves("running mean from the batch's", regex="norm/.*/mean_distance"),
        curves("running deviation over the batch's", regex="norm/.*/std_ratio"),
        curves("dead channels", regex="norm/.*/dead"),
        panels.MediaBrowser(title="report and histograms", media_keys=["norm_report"]),
    ]
    runs = [
        panels.MediaBrowser(title="predictions", media_keys=["predictions"]),
        curves("share of time waiting for data", "loader/wait_share"),
        panels.RunComparer(diff_only="split"),
    ]
    sections = {"training": training, "norms": norms, "runs": runs}
    opened = [Section(name=title, panels=shown, is_open=True) for title, shown in sections.items()]
    return Workspace(entity=entity, project=project, name=name, sections=opened)


if __name__ == "__main__":
    cli.run("dashboard")
