"""Composition of a command line's configs as in Hydra, with errors reported before anything runs."""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException, UnsupportedInterpolationType
from yaml import YAMLError

from syncbn.norm.core.options import suggest
from syncbn.run.check import (
    REQUIRED_GROUPS,
    conf_dir,
    config_mistakes,
    import_guests,
    unknown_choice,
)
from syncbn.run.command_line import CommandLine, with_overrides
from syncbn.run.errors import UserError
from syncbn.run.keys import check_key
from syncbn.run.overrides import is_hydras, job_lists, literal, parse, refuse_sweeps, values
from syncbn.run.search_path import ProjectConf
from syncbn.run.store import store_options

Groups = Mapping[str, list[str]]
SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"  # Hydra's own, over the product of values

# For the checks here, and for Hydra's own run after them.
Plugins.instance().register(ProjectConf)
store_options()


class PerhapsAGuests(UserError):
    """An unknown choice of `norm=`, or an unknown resolver, which a user's package may register."""


@dataclass(frozen=True)
class Jobs:
    """Jobs of a command line.

    Attributes:
        line: the command line, with extended lists (`key+=[...]`) written out, which Hydra 1.3 doesn't support.
        configs: resolved and checked configs, one per job.
        hydra: Hydra's own config, of the first job.
        is_sweep: whether Hydra runs several jobs: by -m, a launcher, or a config.
    """

    line: CommandLine
    configs: list[dict[str, Any]]
    hydra: DictConfig
    is_sweep: bool


def checked_configs(line: CommandLine) -> list[dict[str, Any]]:
    """Compose the resolved configs of a command line.

    Raises:
        UserError: as `jobs_of`.
    """
    return jobs_of(line).configs


def config_of(overrides: Sequence[str]) -> DictConfig:
    """Compose the config of one run, with interpolations, as Hydra would pass it; `fit.prepare` checks it.

    Raises:
        UserError: an override names something unknown.
    """
    with _hydra(line := CommandLine(overrides)):
        config = _composed(overrides, line, _groups(line))
    with open_dict(config):
        del config["hydra"]
    return config


def choice_of(group: str, choice: str) -> DictConfig:
    """Compose one choice of a group alone; interpolations are left for a whole config."""
    with warnings.catch_warnings(), _hydra(CommandLine(())):
        warnings.filterwarnings("ignore", message=".*Defaults list is missing `_self_`")
        composed: DictConfig = OmegaConf.select(
            compose(f"{group}/{choice}"), f"{group}/{choice}".rpartition("/")[0].replace("/", ".")
        )
        return composed


def jobs_of(line: CommandLine) -> Jobs:
    """Compose and check every job of a command line.

    Raises:
        UserError: an invalid group, choice, key or value in any job.
    """
    try:
        return _jobs_of(line)
    except PerhapsAGuests:  # users' packages are imported only then, since they may need torch
        import_guests()
        store_options()
    return _jobs_of(line)


def _jobs_of(line: CommandLine) -> Jobs:
    with _hydra(line):
        groups = _groups(line)
        line = _with_lists_extended(line, groups)
        overrides = parse(line.overrides)
        ours = [o for o in overrides if not is_hydras(o)]
        hydras = [str(o.input_line) for o in overrides if is_hydras(o)]
        _check_choices(overrides, groups)
        first = _composed([*job_lists(ours)[0], *hydras], line, groups)
        hydra = first.hydra
        is_sweep = line.multirun or hydra.mode is RunMode.MULTIRUN
        if not is_sweep:
            refuse_sweeps(ours)
            return Jobs(line, [_checked(first)], hydra, is_sweep)
        jobs = job_lists([*parse(_params(hydra)), *ours], each_alone=hydra.sweeper._target_ != SWEEPER)
        configs = [_checked(_composed([*job, *hydras], line, groups)) for job in jobs]
    return Jobs(line, configs, hydra, is_sweep)


_SUBMITIT = '"syncbn[slurm]"'
_EXTENDS = re.compile(r"(?P<key>[\w./]+)\+=(?P<value>.*)", re.DOTALL)


def config_groups() -> dict[str, list[str]]:
    """Config groups, without Hydra's own, and their choices."""
    with _hydra(line := CommandLine(())):
        return {group: choices for group, choices in _groups(line).items() if not group.startswith("hydra")}


def choices_of(group: str, groups: Groups) -> list[str]:
    """Choices of a group, those in its folders included: `ablation/wide` of `experiment`."""
    nested = [
        (other.removeprefix(f"{group}/"), names) for other, names in groups.items() if other.startswith(f"{group}/")
    ]
    return [*groups.get(group, ()), *(f"{folder}/{name}" for folder, names in nested for name in names)]


@contextmanager
def _hydra(line: CommandLine) -> Iterator[None]:
    """Initialize Hydra with the search path of the command line."""
    path = line.config_path or str(conf_dir())
    package = path.removeprefix("pkg://").replace("/", ".")
    place = initialize_config_module(package, version_base="1.3") if path.startswith("pkg://") else None
    with place or initialize_config_dir(path, version_base="1.3"):
        if line.config_dir:
            loader: Any = GlobalHydra.instance().config_loader()
            where = SearchPathQuery(provider="schema")
            loader.get_search_path().prepend("command-line", f"file://{line.config_dir}", where)
            loader.repository.initialize_sources(loader.get_search_path())
        yield


def _groups(line: CommandLine) -> dict[str, list[str]]:
    """All groups and their choices, including Hydra's own.

    Raises:
        UserError: a location of `hydra.searchpath`, or the primary config, doesn't exist.
    """
    loader: Any = GlobalHydra.instance().config_loader()
    places = [text for text in line.overrides if text.lstrip("+").startswith("hydra.searchpath=")]
    parse(places)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for a missing location; reported below
        try:
            _, repository = loader._parse_overrides_and_create_caching_repo(line.config_name, places)
        except HydraException as error:
            raise UserError(f"{error}; write hydra.searchpath=[<folder>,pkg://<package>]") from error
    for source in repository.get_sources():
        if not source.available():
            raise UserError(f"hydra.searchpath: there is no folder or package {source.scheme()}://{source.path}")
    name = line.config_name.removesuffix(".yaml")
    if not repository.config_exists(name):
        names = [name for name in repository.get_group_options("", ObjectType.CONFIG) if not name.startswith("_")]
        raise UserError(f"--config-name {name}: no such config; {suggest(name, names)}")
    found: dict[str, list[str]] = {}
    left = [""]
    while left:
        above = left.pop()
        for child in repository.get_group_options(above, ObjectType.GROUP):
            group = f"{above}/{child}" if above else child
            found[group] = repository.get_group_options(group, ObjectType.CONFIG)
            left.append(group)
    return {group: choices for group, choices in found.items() if choices}


def _with_lists_extended(line: CommandLine, groups: Groups) -> CommandLine:
    """Rewrite `tags+=[x]` as `tags=[dev,x]`, with the list that the other overrides result in."""
    found = [match for text in line.overrides if (match := _EXTENDS.fullmatch(text))]
    if not found:
        return line
    left = [text for text in line.overrides if not _EXTENDS.fullmatch(text)]
    others = parse(left)
    hydras = [str(o.input_line) for o in others if is_hydras(o)]
    jobs = job_lists([o for o in others if not is_hydras(o)])
    configs = [_composed([*job, *hydras], line, groups) for job in jobs]
    more: dict[str, list[Any]] = {}
    for match in found:
        more.setdefault(match["key"], []).extend(_items(match))
    written = [_extended(key, items, configs, groups) for key, items in more.items()]
    kept = [text for text in left if text.partition("=")[0] not in more]
    return with_overrides(line, [*kept, *written])


def _items(match: re.Match[str]) -> list[Any]:
    (override,) = parse([f"{match['key']}={match['value']}"])
    value = values(override) if override.is_sweep_override() else override.value()
    return value if isinstance(value, list) else [value]


def _extended(key: str, more: list[Any], configs: Iterable[DictConfig], groups: Groups) -> str:
    lists = [_list_at(key, config, groups) for config in configs]
    if not all(isinstance(found, list) for found in lists):
        raise UserError(f"{key}+=...: {key} is no list")
    if any(found != lists[0] for found in lists):
        raise UserError(f"{key}+=...: {key} isn't the same in all jobs of the sweep; write {key}=[...] in full")
    return f"{key}=[{','.join(map(literal, [*lists[0], *more]))}]"


def _list_at(key: str, config: DictConfig, groups: Groups) -> Any:
    """List at a key; for a group, its choices."""
    if key in groups:
        choice = config.hydra.runtime.choices[key]
        return [choice] if isinstance(choice, str) else OmegaConf.to_container(OmegaConf.create(choice or []))
    found = OmegaConf.select(config, key)
    return OmegaConf.to_container(found, resolve=False) if OmegaConf.is_list(found) else None


def _check_choices(overrides: Iterable[Override], groups: Groups) -> None:
    for override in overrides:
        group = override.key_or_group
        if group not in groups:
            continue
        if group in REQUIRED_GROUPS and (override.is_delete() or None in values(override)):
            raise UserError(f"{override.input_line}: a run needs a {group}; choose one: {', '.join(groups[group])}")
        if override.is_delete():
            continue
        none = [word for word in (None, False, "none") if word not in groups[group]]
        if any(value in none for value in values(override)) and not group.startswith("hydra/"):
            raise UserError(f"{override.input_line}: to go without, write ~{group}")
        for value in values(override):
            for choice in value if isinstance(value, list) else [value]:
                known = choices_of(group, groups)
                if choice is not None and str(choice).removesuffix(".yaml") not in known:
                    kind = PerhapsAGuests if group == "norm" else UserError
                    raise kind(unknown_choice(group, str(choice), known) + _plugin(group, str(choice)))


def _plugin(group: str, choice: str) -> str:
    """End of the message if a package might provide the choice."""
    if group not in ("hydra/launcher", "hydra/sweeper"):
        return ""
    name = _SUBMITIT if choice.startswith("submitit") else f"hydra-{choice}-{group.removeprefix('hydra/')}"
    return f"; a plugin's is there once it is installed: pip install {name}"


def _params(hydra: DictConfig) -> list[str]:
    """Sweep parameters of a config: `hydra.sweeper.params`."""
    sweeper = OmegaConf.to_container(hydra.sweeper)
    assert isinstance(sweeper, dict)
    params = sweeper.get("params") or {}
    return [f"{key}={value}" for key, value in params.items()]


def _composed(overrides: Sequence[str], line: CommandLine, groups: Groups) -> DictConfig:
    """Compose a job's overrides, with Hydra's own config under `hydra`.

    Raises:
        UserError: an override that names something unknown, with the known names.
    """
    try:
        return compose(line.config_name, overrides=list(overrides), return_hydra_config=True)
    except YAMLError as error:
        raise UserError(" ".join(str(error).split())) from error
    except HydraException as error:
        if "hydra/launcher/submitit" in str(error):
            raise UserError(f"launcher=slurm and launcher=local need a package: pip install {_SUBMITIT}") from error
        _explain(overrides, line, groups)
        causes = [error, error.__cause__] if isinstance(error.__cause__, OmegaConfBaseException) else [error]
        kind = PerhapsAGuests if str(getattr(error, "missing_cfg_file", "")).startswith("norm/") else UserError
        told = ": ".join(str(cause).strip().splitlines()[0] for cause in causes)
        if re.search(r"'\w+@(experiment|debug)\.", told):
            told += " The file's first line must be: # @package _global_"
        raise kind(told) from error


def _explain(overrides: Sequence[str], line: CommandLine, groups: Groups) -> None:
    """Find the duplicate group or unknown key that makes the composition fail, from the chosen groups only.

    Raises:
        UserError: one was found.
    """
    parsed = parse(overrides)
    for override in parsed:
        if override.key_or_group in groups and override.is_add():
            raise UserError(f"{override.input_line}: leave the + out, {override.key_or_group} is there already")
    chosen = [text for text, o in zip(overrides, parsed, strict=True) if o.key_or_group in groups]
    others = [o for o in parsed if o.key_or_group not in groups]
    places = [str(o.input_line) for o in others if o.key_or_group == "hydra.searchpath"]
    if not others or len(chosen) + len(places) == len(parsed):
        return
    base = _composed([*places, *chosen], line, groups)
    for override in others:
        if override.is_add() and _is_there(override.key_or_group, base):
            raise UserError(f"{override.input_line}: leave the + out, {override.key_or_group} is there already")
        if not override.is_force_add() and not override.is_add():
            check_key(override.key_or_group, base, groups)


def _is_there(key: str, config: DictConfig) -> bool:
    above, _, name = key.rpartition(".")
    return name in ((OmegaConf.select(config, above) if above else config) or ())


def _checked(composed: DictConfig) -> dict[str, Any]:
    config = composed.copy()
    with open_dict(config), _hydras_resolver(config):
        del config["hydra"]
        try:
            values = plain(config)
        except OmegaConfBaseException as error:
            raise UserError(str(error).splitlines()[0]) from error
    if found := config_mistakes(values):
        raise UserError("\n       ".join(found))
    return values


@contextmanager
def _hydras_resolver(composed: DictConfig) -> Iterator[None]:
    """Resolve `${hydra:runtime.output_dir}` and the like before Hydra runs the job."""
    instance: Any = HydraConfig.instance()
    before, with_folder = instance.cfg, composed.copy()
    with open_dict(with_folder):
        with_folder.hydra.job.num, with_folder.hydra.job.id = 0, "0"
        with_folder.hydra.runtime.output_dir = with_folder.hydra.run.dir
    try:
        instance.cfg = with_folder
        yield
    finally:
        instance.cfg = before


def plain(config: DictConfig) -> dict[str, Any]:
    """A config as plain, resolved Python values."""
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        kind = PerhapsAGuests if isinstance(error, UnsupportedInterpolationType) else UserError
        raise kind(f"{error.full_key}: {str(error.msg or error).splitlines()[0]}") from error
    if not isinstance(container, dict):
        raise UserError("the config is a list, not keys and values")
    return {str(key): value for key, value in container.items()}
