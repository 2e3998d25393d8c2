"""Changed options of a resumed run, compared with its folder's config before anything is written.

Changes that a checkpoint supports are applied and reported. Others, such as a different network, are refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncbn.launch.secrets import redacted
from syncbn.moved import renamed
from syncbn.norm.core.options import default_of, option_fields, shown
from syncbn.run.described import options_at
from syncbn.run.network import SIZES
from syncbn.run.resume import Checkpoint

_MISSING = object()
_UNSAID = (
    *("resume", "run_id", "output_root", "paths", "threads"),
    *("tags", "task_name", "train", "test", "optimized_metric"),
)
_FREE_OF_THE_STATE = {
    "norm": ("sync_group",),
    "model": ("weights", "weights_key", "pretrained"),  # initial weights
    "data": (
        *("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "eval_batch_size", "root", "folder"),
        *("data_dir", "cache_dir", "download", "batch_size"),  # ranks keep the run's global batches
    ),
}
_SIZES = tuple(f"model.{name}" for name in SIZES)  # null is the data's size, which a folder may have written out
_SUCCESSORS = ("syncbn.training.BestCheckpoint", "syncbn.training.LastCheckpoint")  # in conf/, for Lightning's
_FINETUNE = ("FreezeNorm", "GradualUnfreezing", "TrainOnly")  # they determine the optimizer's parameters


@dataclass(frozen=True)
class Change:
    """A key whose value differs from the run folder's.

    Attributes:
        key: dotted name.
        before: value in the folder; None if the key is missing there.
        now: value for the resumed run.
    """

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        if isinstance(self.before, Mapping) or isinstance(self.now, Mapping):
            return f"{self.key} {'left out' if self.now is None else 'added'}"
        return f"{self.key} {shown(self.before)} -> {shown(self.now)}"


def changes_since(checkpoint: Checkpoint, config: Mapping[str, Any]) -> list[Change]:
    """Find changes from the config of a checkpoint's folder; empty if there is no config.

    Args:
        checkpoint: checkpoint to resume from.
        config: composed and resolved config.

    Raises:
        ValueError: a change that the checkpoint doesn't support.
    """
    before = _stored(checkpoint.path.parent.parent)
    if before is None:
        return []
    found = list(_differences(_in_folder_of(config, before), redacted(dict(config))))
    if refused := [change for change in found if _is_of_the_state(change, before, config)]:
        change = next((change for change in refused if change.key.endswith(("_target_", ".name"))), refused[0])
        others = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise ValueError(
            f"resume: {change.key} was {shown(change.before)} and is {shown(change.now)}{others}, which the run's "
            f"checkpoint can't follow: give the options it was started with, or start another run (run_id=<name>)"
        )
    return found


def _stored(folder: Path) -> Mapping[str, Any] | None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        config = OmegaConf.load(folder / ".hydra" / "config.yaml")
        plain = OmegaConf.to_container(config, resolve=True)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException):
        return None  # the checkpoint itself decides whether it fits
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else None


def _in_folder_of(config: Mapping[str, Any], before: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored config with the paths of its run folder, which may have been moved, as those of this one."""
    was, now = ((side.get("paths") or {}).get("output_dir") for side in (before, config))
    if not was or not now or was == now:
        return before

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: moved(item) for key, item in value.items()}
        if isinstance(value, list):
            return [moved(item) for item in value]
        is_inside = isinstance(value, str) and (value == was or value.startswith(f"{was}/"))
        return now + value[len(was) :] if is_inside else value

    return {key: value if key == "paths" else moved(value) for key, value in before.items()}


def _differences(before: Any, now: Any, key: str = "") -> Iterator[Change]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys((*before, *now)):
            if key or name not in _UNSAID:
                sides = _known(before, name, key), _known(now, name, key)
                yield from _differences(*sides, f"{key}.{name}" if key else str(name))
    elif not (_same(before, now) or (key in _SIZES and (_is_unsaid(before) or _is_unsaid(now)))):
        yield Change(key, *(None if side is _MISSING else side for side in (before, now)))


def _known(node: Mapping[str, Any], name: str, where: str) -> Any:
    """Value of a config, or the default of a key that older versions didn't write."""
    if name in node:
        return node[name]
    schema = options_at(where, node) if where else None
    defaults = {field.name: default_of(field) for field in option_fields(schema)} if schema else {}
    return defaults.get(name, _MISSING)


def _same(before: Any, now: Any) -> bool:
    if isinstance(before, str) and isinstance(now, str):
        succeeded = before.endswith(".ModelCheckpoint") and now in _SUCCESSORS
        return before == now or renamed(before) == renamed(now) or succeeded
    if _is_unsaid(before) and _is_unsaid(now):
        return True
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(map(_same, before, now))
    return bool(before == now)


def _is_unsaid(value: Any) -> bool:
    return value is None or value is _MISSING


def _is_of_the_state(change: Change, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    group, _, rest = change.key.partition(".")
    if group in ("norm", "model", "data"):
        return rest.partition(".")[0] not in _FREE_OF_THE_STATE[group]
    if group == "callbacks":
        name = rest.partition(".")[0]
        nodes: Sequence[Any] = [(side.get("callbacks") or {}).get(name) or {} for side in (before, now)]
        return any(str(node.get("_target_")).endswith(_FINETUNE) for node in nodes)
    return change.key in ("seed", "optimizer", "scheduler", "task") or (
        group in ("optimizer", "scheduler", "task") and rest.endswith("_target_")
    )


def options_of(changes: Sequence[Change], group: str) -> dict[str, Change]:
    """Changes of a group's own options, by their names in it, without parts that are added or removed as a whole."""
    prefix = f"{group}."
    return {
        change.key.removeprefix(prefix): change
        for change in changes
        if change.key.startswith(prefix) and not change.key.endswith("_target_")
    }
