"""Hydra's ConfigStore: the declared options of all that a config may name.

`conf/norm/group.yaml` begins with `defaults: [/hydra/options/norm/group@_here_, _self_]`: the options of
`syncbn/norm/group_options.py`, with their defaults; `conf/model/vit.yaml` names `/hydra/options/syncbn.models.vit.vit`.
They are in the group `hydra/`, which `--help` doesn't list. A norm without a file in `conf/`, such as another
package's, is a choice of `norm=` automatically.
"""

import re
from dataclasses import MISSING

from hydra.core.config_store import ConfigStore

from syncbn.norm.core.options import Partial, default_of, option_fields
from syncbn.norm.core.registry import known_options
from syncbn.run.check import conf_dir
from syncbn.run.described import described_targets

_HIDDEN = "hydra/options"
_MISSING = "???"  # must be set by the config or the user


def store_options() -> None:
    """Store all options for Hydra; called when `syncbn.run.compose` is imported, and after users' packages are."""
    for name, options in known_options().items():
        if not re.fullmatch(r"[\w-]+", name):  # usable only from code: not a valid name in Hydra
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
