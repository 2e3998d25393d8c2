"""Keys of a command line that the config doesn't have, and the answer to them."""

from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from syncbn.norm.core.options import suggest
from syncbn.run.check import norms_with
from syncbn.run.errors import UserError

# Names of other command lines, and ours.
_ELSEWHERE = {
    **dict.fromkeys(("ckpt_path", "resume_from", "resume_from_checkpoint"), "resume=<path>, or resume=auto"),
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("gpus", "num_gpus", "devices"), "trainer.devices"),
    **dict.fromkeys(("lr", "learning_rate"), "optimizer.lr"),
    **dict.fromkeys(("batch_size", "num_workers"), "data.batch_size and data.num_workers"),
    "logger.wandb.mode": "logger.wandb.offline=true, or the variable WANDB_MODE",
    "logger.wandb.name": "the variable WANDB_NAME, or run_id",
    "logger.wandb.id": "run_id",
    **{name: f"trainer.{name}" for name in ("max_steps", "max_time", "precision", "strategy", "num_nodes")},
}


def check_key(key: str, base: DictConfig, groups: Mapping[str, list[str]]) -> None:
    """Check a dotted key of a command line.

    Args:
        key: the key.
        base: the composed config.
        groups: choices of each group.

    Raises:
        UserError: the config doesn't have it; with the first part that is missing.
    """
    node: Any = base
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not OmegaConf.is_dict(node):  # a list, or a value replaced by another type: checked by the schema
            return
        if part not in node:
            raise UserError(_unknown_key(parts[:depth], part, list(node), groups))
        node = node[part]


def _unknown_key(above: list[str], part: str, names: list[str], groups: Mapping[str, list[str]]) -> str:
    if not above:
        allowed = {*names, *(group for group in groups if not group.startswith("hydra"))} - {"paths", "hydra"}
        return f"{part}: no such group or key; {_named_elsewhere(part) or suggest(part, allowed)}"
    where = ".".join(above)
    settable = [name for name in names if not name.startswith("_") and (where, name) != ("norm", "name")]
    owners = norms_with(part) if where == "norm" else ""
    hint = _named_elsewhere(part, where, groups.get(where, ()) if where in ("logger", "callbacks") else ())
    return f"{where}.{part}: no such key; {hint or suggest(part, settable)}{owners}"


def _named_elsewhere(key: str, where: str = "", choices: Iterable[str] = ()) -> str:
    """End of a message about a key that is ours elsewhere, or another program's; empty for other keys.

    Args:
        key: the unknown key.
        where: dotted name of what hasn't it.
        choices: of the group `where`.
    """
    if key in choices:
        return f"add {where}={key}" if where == "logger" else f"add it to {where}=[...]"
    home = _ELSEWHERE.get(f"{where}.{key}") or _ELSEWHERE.get(key, "")
    return "" if home in ("", f"{where}.{key}") else f"here it is {home}"
