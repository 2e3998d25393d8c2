"""Where Hydra looks for configs: in the project's `conf/`, where there is a project, and then in ours."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from syncbn.run.check import conf_dir
from syncbn.run.project import find_project


def conf_dirs() -> list[Path]:
    """The folders of configs, the first one first: what the project has under a name of ours takes its place."""
    project = find_project()
    return [*([project.conf] if project and project.conf else []), conf_dir()]


class ProjectConf(SearchPathPlugin):
    """Puts the project's `conf/` before ours, and leaves other programs that use Hydra alone."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if any(element.path.removeprefix("file://") == str(conf_dir()) for element in search_path.get_path()):
            for folder in conf_dirs()[:-1]:
                search_path.prepend("syncbn-project", f"file://{folder}", anchor="main")
