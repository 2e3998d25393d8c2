"""Hydra's search path: the project's `conf/`, if there is a project, then ours."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from syncbn.run.check import conf_dir
from syncbn.run.project import find_project


def conf_dirs() -> list[Path]:
    """Config folders in search order: a project's config replaces ours of the same name."""
    project = find_project()
    return [*([project.conf] if project and project.conf else []), conf_dir()]


class ProjectConf(SearchPathPlugin):
    """Adds the project's `conf/` before ours; has no effect on other programs that use Hydra."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if any(element.path.removeprefix("file://") == str(conf_dir()) for element in search_path.get_path()):
            for folder in conf_dirs()[:-1]:
                search_path.prepend("syncbn-project", f"file://{folder}", anchor="main")
