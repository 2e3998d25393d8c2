"""Moved modules of version 0.1, which can still be imported from their old paths, for configs, pickles and users."""

import importlib
import sys
from types import ModuleType
from typing import Any

MOVED: dict[str, str | tuple[str, ...]] = {
    "syncbn.cli.build": "syncbn.run.build",
    "syncbn.cli.callbacks": "syncbn.training.callbacks.throughput",
    "syncbn.cli.command": "syncbn.cli.train",
    "syncbn.cli.errors": "syncbn.run.errors",
    "syncbn.cli.finished": "syncbn.run.finished",
    "syncbn.cli.launchers": "syncbn.run.launchers",
    "syncbn.cli.loggers": "syncbn.training.loggers",
    "syncbn.cli.output": "syncbn.run.screen",
    "syncbn.cli.overrides": "syncbn.run.compose",
    "syncbn.cli.stoppable": "syncbn.run.stoppable",
    "syncbn.config": "syncbn.run.check",
    "syncbn.config_schemas": "syncbn.run.options",
    "syncbn.launch.elastic": "syncbn.run.elastic",
    "syncbn.launch.resume": "syncbn.run.resume",
    "syncbn.norm.adapters": "syncbn.norm.surgery.adapters",
    "syncbn.norm.base": "syncbn.norm.core.tracking",
    "syncbn.norm.batch_free": tuple(f"syncbn.norm.{name}" for name in ("group", "layer", "instance", "rms", "none")),
    "syncbn.norm.checks": "syncbn.norm.core.checks",
    "syncbn.norm.compat": "syncbn.norm.core.compat",
    "syncbn.norm.convert": "syncbn.norm.surgery.convert",
    "syncbn.norm.deferred": "syncbn.norm.fusion.deferred",
    "syncbn.norm.dynamic": ("syncbn.norm.dynamic_tanh", "syncbn.norm.dynamic_erf"),
    "syncbn.norm.feeding": "syncbn.norm.surgery.feeding",
    "syncbn.norm.fused": "syncbn.norm.fusion.fused",
    "syncbn.norm.fusible": "syncbn.norm.surgery.fusible",
    "syncbn.norm.groups": "syncbn.norm.core.groups",
    "syncbn.norm.kernels.cpu": "syncbn.norm.kernels.aten_cpu",
    "syncbn.norm.kernels.cuda": "syncbn.norm.kernels.aten_cuda",
    "syncbn.norm.linear_maps": "syncbn.norm.core.linear_maps",
    "syncbn.norm.moments": "syncbn.norm.core.moments",
    "syncbn.norm.momentum": "syncbn.norm.surgery.momentum",
    "syncbn.norm.recomputed": "syncbn.norm.fusion.recomputed",
    "syncbn.norm.registry": "syncbn.norm.core.registry",
    "syncbn.norm.reparametrized": (
        "syncbn.norm.weight",
        "syncbn.norm.spectral",
        "syncbn.norm.core.reparametrizing",
    ),
    "syncbn.norm.running": "syncbn.norm.core.running",
    "syncbn.norm.select": "syncbn.norm.surgery.select",
    "syncbn.norm.trace": "syncbn.norm.surgery.forward",
    "syncbn.run_folder": ("syncbn.run.folder", "syncbn.run.trained"),
    "syncbn.schema": "syncbn.norm.core.options",
    "syncbn.training.gan": "syncbn.training.tasks.gan",
    "syncbn.training.gan_quality": "syncbn.training.tasks.gan_quality",
    "syncbn.training.segmentation": "syncbn.training.tasks.segmentation",
    "syncbn.training.task": "syncbn.training.tasks.classification",
}


class _Moved(ModuleType):
    """A module under its old path, which imports the new ones on access to a name."""

    def __getattr__(self, name: str) -> Any:
        homes = homes_of(self.__name__)
        if not name.startswith("__"):  # tools read these of every loaded module
            for home in homes:
                module = importlib.import_module(home)
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r}, now {' and '.join(homes)}, has no attribute {name!r}")


def homes_of(module: str) -> tuple[str, ...]:
    """Modules that have a module's contents now; itself if it hasn't moved."""
    new = MOVED.get(module, module)
    return (new,) if isinstance(new, str) else new


def renamed(target: str) -> str:
    """Current dotted name of one under a path of version 0.1; in the first module if its module was split."""
    old = next((old for old in MOVED if target.startswith(f"{old}.")), None)
    return target if old is None else homes_of(old)[0] + target.removeprefix(old)


def keep_old_paths() -> None:
    """Make all old paths importable."""
    for old in MOVED:
        sys.modules.setdefault(old, _Moved(old, f"Moved to `{'`, `'.join(homes_of(old))}`."))
