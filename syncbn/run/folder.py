"""Reading and writing of run folders. Heavy imports happen on use."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncbn.launch.files import replace_text
from syncbn.launch.secrets import redacted

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

_CONFIG = Path(".hydra", "config.yaml")
_CHECKPOINTS = Path("checkpoints")


def write_config(folder: Path, config: "DictConfig", hydra_config: Any) -> None:
    """Write what Hydra would to a run's folder: the config with interpolations, Hydra's own, and the overrides.

    Without secrets: interpolations of environment variables are kept, and literal keys left out.
    """
    from omegaconf import OmegaConf

    place = (folder / _CONFIG).parent
    place.mkdir(exist_ok=True)
    parts = {"config": config, "hydra": {"hydra": hydra_config}, "overrides": hydra_config.overrides.task}
    for name, node in parts.items():
        container = redacted(OmegaConf.to_container(OmegaConf.create(node)))
        replace_text(place / f"{name}.yaml", OmegaConf.to_yaml(OmegaConf.create(container)))
    sweep = folder.parent / "multirun.yaml"  # which Hydra has written, for the whole sweep
    if sweep.is_file() and redacted(text := sweep.read_text(encoding="utf-8")) != text:
        replace_text(sweep, redacted(text))


def load_run(folder: str | Path) -> tuple["nn.Module", "DictConfig"]:
    """Load the trained network of a run, in eval mode on the CPU, and the run's config.

    It is the best checkpoint by validation loss; the last one where there is no best. A task of one's own that trains
    no network of the config is the network itself.

    Args:
        folder: folder of a run, possibly moved; for a sweep one of its numbered folders.

    Raises:
        ValueError: the folder isn't one of a run, its config isn't one of ours, or its checkpoint is damaged.
        TypeError: it is no path.
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder must be the path of a run's folder, got a {type(folder).__name__}")
    folder = Path(folder)
    config = load_config(folder)
    from syncbn.run.trained import open_trained

    return open_trained(config, checkpoint_of(folder)).net, config


def load_config(
    folder: Path, overrides: list[str] | None = None, groups: Mapping[str, Any] | None = None
) -> "DictConfig":
    """Load the config of a run with the folder's current path, checked like a command line's.

    Args:
        folder: folder of the run.
        overrides: overrides `key.key=value` of the run's config.
        groups: groups that replace the run's, by name.

    Raises:
        ValueError: there is no config, or it is invalid.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException, UnsupportedInterpolationType
    from yaml import YAMLError

    from syncbn.run.check import config_mistakes, import_guests

    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r}; give a run folder, for example outputs/<run_id>{_others(folder)}")
    if not (folder / _CONFIG).is_file():
        jobs = sorted(str(child) for child in folder.iterdir() if (child / _CONFIG).is_file())
        hint = f"it is a sweep, give one of its jobs: {', '.join(jobs)}" if jobs else f"it has no {_CONFIG}"
        raise ValueError(f"{str(folder)!r} is not the folder of a run: {hint}")
    try:
        config = OmegaConf.load(folder / _CONFIG)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        where = str(folder / _CONFIG)
        raise ValueError(
            f"{where!r} can't be read: {' '.join(str(error).split())}; restore it, or train again"
        ) from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"{str(folder / _CONFIG)!r} holds a list, not a config")
    folder = folder.resolve()
    config.run_id, config.output_root, config.paths = folder.name, str(folder.parent), {"output_dir": str(folder)}
    for group, node in (groups or {}).items():
        config[group] = node
    config.merge_with_dotlist(overrides or [])
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except UnsupportedInterpolationType:  # a resolver that a user's package registers
        import_guests()
        plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    if found := config_mistakes({str(key): value for key, value in plain.items()}):
        raise ValueError("\n".join(found))
    return config


def checkpoint_of(folder: Path) -> Path:
    """Path of a run's best checkpoint, else its last.

    Raises:
        ValueError: there is neither.
    """
    for name in ("best.ckpt", "last.ckpt"):
        if (path := folder / _CHECKPOINTS / name).is_file():
            return path
    others = sorted(path.name for path in (folder / _CHECKPOINTS).glob("*.ckpt"))
    hint = f"name one by checkpoint=, of {', '.join(others)}" if others else "the run hasn't saved one yet"
    raise ValueError(f"{str(folder)!r} has no {_CHECKPOINTS}/best.ckpt or last.ckpt: {hint}")


def _others(folder: Path) -> str:
    runs = sorted(config.parent.parent.name for config in folder.parent.glob(f"*/{_CONFIG}"))
    return f"; runs there: {', '.join(runs)}" if runs else ""


def git_commit() -> str | None:
    """Commit of the repository that contains this code or, otherwise, the current folder; None if neither is in one."""
    for place in (Path(__file__).parent, Path.cwd()):
        try:
            answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=place, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return answer.stdout.strip()
    return None
