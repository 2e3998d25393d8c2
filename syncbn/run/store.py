"""What Hydra composes beside the files of `conf/`: the declared options of all that a config may name.

`conf/norm/group.yaml` begins with `defaults: [/hydra/options/norm/group@_here_, _self_]`: the options of
`syncbn/norm/group_options.py`, with their defaults; `conf/model/vit.yaml` names `/hydra/options/syncbn.models.vit.vit`.
They are a group of `hydra/`, which `--help` doesn't list. A norm without a file there, of another package say, is a
choice of `norm=` by itself.
"""

import re
from dataclasses import MISSING

from hydra.core.config_store import ConfigStore

from syncbn.norm.core.options import Partial, default_of, option_fields
from syncbn.norm.core.registry import known_options
from syncbn.run.check import conf_dir
from syncbn.run.described import described_targets

_HIDDEN = "hydra/options"
_MISSING = "???"  # what the config, or the user, must say


def store_options() -> None:
    """Let Hydra find every option; `syncbn.run.compose` does so when it is imported, and when guests have been."""
    for name, options in known_options().items():
        if not re.fullmatch(r"[\w-]+", name):  # for code alone: Hydra couldn't be told it
            continue
        _store(f"{_HIDDEN}/norm", name, options, name=name)
        if not (conf_dir() / "norm" / f"{name}.yaml").is_file():
            _store("norm", name, options, name=name)
    for target, options in described_targets().items():
        _store(_HIDDEN, target, options, _target_=target)


def _store(group: str, entry: str, options: type, **named: str) -> None:
    values = {field.name: default_of(field) for field in option_fields(options)}
    said = {key: _MISSING if value is MISSING else value for key, value in values.items()}
    if issubclass(options, Partial):
        said["_partial_"] = True
    ConfigStore.instance().store(entry, {**named, **said}, group=group, provider="syncbn")
