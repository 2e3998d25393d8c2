"""Reads a command line as Hydra will, and answers mistakes in it with the allowed names, before anything runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from syncbn.norm.core.options import suggest
from syncbn.norm.core.registry import known_options
from syncbn.run.check import REQUIRED_GROUPS, conf_dir, config_mistakes, import_guests, norms_with, unknown_choice
from syncbn.run.errors import UserError
from syncbn.run.search_path import conf_dirs
from syncbn.run.store import store_options

store_options()


class UnknownNorm(UserError):
    """A choice of `norm=` that isn't known yet."""


@dataclass(frozen=True)
class CommandLine:
    """The arguments of a Hydra command that matter to the check."""

    overrides: Sequence[str]
    multirun: bool = False
    config_name: str = "train"
    extra_dirs: tuple[Path, ...] = field(default=())


def checked_configs(line: CommandLine) -> list[dict[str, Any]]:
    """The resolved configs that a command line stands for: one, or one a job of a sweep.

    Raises:
        UserError: a group, choice, key or value that isn't allowed, in any job.
    """
    try:
        return _checked_configs(line)
    except UnknownNorm:  # it may be one of the user's packages, which are imported for that alone: they may need torch
        import_guests()
        store_options()
    return _checked_configs(line)


def _checked_configs(line: CommandLine) -> list[dict[str, Any]]:
    groups = config_groups([*conf_dirs(), *line.extra_dirs])
    ours = [o for o in _parse(line.overrides) if not _is_hydras(o)]
    if not is_sweep(line):
        _refuse_sweeps(ours)
    _check_choices(ours, groups)
    jobs = _jobs(ours) if is_sweep(line) else [[str(o.input_line) for o in ours]]
    return [_checked(job, groups, line) for job in jobs]


def is_sweep(line: CommandLine) -> bool:
    """Whether Hydra goes through jobs: -m, or a launcher, which is given one job or several."""
    return line.multirun or any(
        (o.key_or_group == "hydra.mode" and str(o.value()) == "MULTIRUN")
        or (o.key_or_group == "launcher" and not o.is_delete() and _values(o) != [None])
        for o in _parse(line.overrides)
    )


def launcher_config(line: CommandLine) -> DictConfig:
    """Hydra's own config of what runs a sweep's jobs, for the first of them.

    Raises:
        UserError: a key of `hydra.launcher` that it doesn't have.
    """
    overrides = _parse(line.overrides)
    choices = [*_jobs([o for o in overrides if not _is_hydras(o)])[0]]
    choices += [str(o.input_line) for o in overrides if o.key_or_group == "hydra/launcher"]
    base = composed(choices, line, with_hydra=True)
    settings = [o for o in overrides if o.key_or_group.startswith("hydra.")]
    for override in settings:
        if override.key_or_group.startswith("hydra.launcher.") and not override.is_force_add():
            _check_key(override.key_or_group, base, {})
    return composed([*choices, *(str(o.input_line) for o in settings)], line, with_hydra=True)


def _is_hydras(override: Override) -> bool:
    return override.key_or_group.startswith(("hydra.", "hydra/"))


def config_groups(folders: Iterable[Path]) -> dict[str, list[str]]:
    """The groups in folders of configs and their choices; every registered norm is one."""
    groups: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.rglob("*.yaml"):
            group = file.parent.relative_to(folder).as_posix()
            if group != "." and not group.startswith("hydra"):
                groups.setdefault(group, set()).add(file.stem)
    groups.setdefault("norm", set()).update(known_options())
    return {group: sorted(choices) for group, choices in groups.items()}


def _parse(overrides: Sequence[str]) -> list[Override]:
    parsed = []
    for override in overrides:
        try:
            parsed.append(OverridesParser.create().parse_override(override))
        except HydraException as error:
            raise UserError(
                f"can't read {override!r}; write group=choice or key=value, and quote what holds commas, spaces or "
                f"brackets: 'key=\"a, b\"' ({str(error).splitlines()[0]})"
            ) from error
    return parsed


def _refuse_sweeps(overrides: Iterable[Override]) -> None:
    for override in overrides:
        if override.is_sweep_override():
            raise UserError(f"{override.input_line} is a sweep of several values: add -m to run them all")


def _check_choices(overrides: Iterable[Override], groups: Mapping[str, list[str]]) -> None:
    for override in overrides:
        group = override.key_or_group
        if group not in groups:
            continue
        if group in REQUIRED_GROUPS and (override.is_delete() or None in _values(override)):
            raise UserError(f"{override.input_line}: a run needs a {group}; choose one: {', '.join(groups[group])}")
        if override.is_delete():
            continue
        if None in _values(override):
            raise UserError(f"{override.input_line}: to go without, write ~{group}")
        for value in _values(override):
            for choice in value if isinstance(value, list) else [value]:
                if str(choice) not in groups[group]:
                    error = UnknownNorm if group == "norm" else UserError
                    raise error(unknown_choice(group, str(choice), groups[group]))


def _values(override: Override) -> list[Any]:
    if override.is_discrete_sweep():
        return [text.strip("'\"") for text in override.sweep_string_iterator()]
    return [] if override.is_sweep_override() else [override.value()]


def _jobs(overrides: list[Override]) -> list[list[str]]:
    """Each job's overrides; what only another sweeper understands (`interval(0, 1)`) is checked when its job starts."""
    plain = [o for o in overrides if o.is_discrete_sweep() or not o.is_sweep_override()]
    (jobs,) = BasicSweeper.split_arguments(plain, max_batch_size=None)
    return [list(job) for job in jobs]


def _checked(overrides: Sequence[str], groups: Mapping[str, list[str]], line: CommandLine) -> dict[str, Any]:
    parsed = _parse(overrides)
    chosen = [text for text, o in zip(overrides, parsed, strict=True) if o.key_or_group in groups]
    base = composed(chosen, line)
    for override in parsed:
        if override.key_or_group not in groups and not override.is_force_add() and not override.is_add():
            _check_key(override.key_or_group, base, groups)
    try:
        config = plain(composed(overrides, line))
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    if found := config_mistakes(config):
        raise UserError("\n       ".join(found))
    return config


def plain(config: DictConfig) -> dict[str, Any]:
    """A config as plain, resolved Python values."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if not isinstance(container, dict):
        raise UserError("the config is a list, not keys and values")
    return {str(key): value for key, value in container.items()}


def composed(overrides: Sequence[str], line: CommandLine, *, with_hydra: bool = False) -> DictConfig:
    """What Hydra makes of overrides, over the line's config and its folders of configs."""
    places = ",".join(f"file://{folder}" for folder in line.extra_dirs)
    search = [f"hydra.searchpath=[{places}]"] if places else []
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose(line.config_name, overrides=[*search, *overrides], return_hydra_config=with_hydra)
    except HydraException as error:
        causes = [error, error.__cause__] if isinstance(error.__cause__, OmegaConfBaseException) else [error]
        kind = UnknownNorm if str(getattr(error, "missing_cfg_file", "")).startswith("norm/") else UserError
        raise kind(": ".join(str(cause).strip().splitlines()[0] for cause in causes)) from error


def _check_key(key: str, base: DictConfig, groups: Mapping[str, list[str]]) -> None:
    """Refuse the first part of a dotted key that the composed config doesn't have."""
    node: Any = base
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not OmegaConf.is_dict(node):  # a list, or a value that the override gives another shape: the schema judges
            return
        if part not in node:
            raise UserError(_unknown_key(parts[:depth], part, list(node), base, groups))
        node = node[part]


def _unknown_key(
    above: list[str], part: str, names: list[str], base: DictConfig, groups: Mapping[str, list[str]]
) -> str:
    if not above:
        return f"{part}: no such group or key; {suggest(part, {*names, *groups} - {'paths'})}"
    where = ".".join(above)
    settable = [name for name in names if not name.startswith("_") and (where, name) != ("norm", "name")]
    owners = norms_with(part) if where == "norm" else ""
    return f"{where}.{part}: no such key; {suggest(part, settable)}{owners}"
