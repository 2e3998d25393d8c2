"""List the options of norms, networks, data sets and all other choices.

`syncbn options` lists all groups and their choices; `syncbn options norm=group model=vit` lists the options of these
choices, with allowed values, values there, defaults and a description.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from syncbn import cli
from syncbn.cli.arguments import Parser
from syncbn.norm.core.options import option, suggest
from syncbn.norm.core.registry import known_options
from syncbn.run.errors import user_mistakes

NEEDS = ("hydra",)
_BESIDE = ("experiment", "debug", "finetune", "launcher", "wandb")  # presets of other groups' options


@dataclass
class Options:
    """Options of `syncbn options`."""

    choices: list[str] = option([], "choices of groups, such as norm=group; by default all are listed")


PARSER = Parser("syncbn options", __doc__, Options, words="choices")


def main() -> None:
    """Print the options of the choices that the command line names."""
    PARSER.main(lambda words: print(listing(words)))


def listing(words: list[str]) -> str:
    """Options of the given choices; without any, all groups and their choices.

    Args:
        words: any number of `group=choice`.
    """
    with user_mistakes():
        groups = _groups()
        norms = {word.removeprefix("norm=") for word in words if word.startswith("norm=")}
        if not words or norms - set(known_options()):
            groups = _with_guests()  # may need torch
        if not words:
            return _all(groups)
        return "\n\n".join(_one(word, groups) for word in words)


def _groups() -> dict[str, list[str]]:
    from syncbn.run.compose import config_groups

    return {group: names for group, names in config_groups().items() if group not in _BESIDE}


def _with_guests() -> dict[str, list[str]]:
    """Groups with the norms of the project's packages."""
    from syncbn.run.check import import_guests
    from syncbn.run.store import store_options

    import_guests()
    store_options()
    return _groups()


def _all(groups: Mapping[str, list[str]]) -> str:
    width = max(map(len, groups))
    lines = [f"{group:<{width}}  {', '.join(groups[group])}" for group in sorted(groups)]
    return "\n".join([*lines, "", "syncbn options norm=group lists the options of a choice, and where they stand."])


def _one(word: str, groups: Mapping[str, list[str]]) -> str:
    from omegaconf import OmegaConf

    from syncbn.run.check import unknown_choice
    from syncbn.run.compose import choice_of
    from syncbn.run.describe import as_text, summary_of

    group, equals, choice = word.partition("=")
    if group not in groups:
        raise ValueError(f"{word}: expected group=choice, norm=group say; {suggest(group, groups)}")
    if not equals:
        raise ValueError(f"{word}: which one? {group}={f', {group}='.join(groups[group])}")
    if choice not in groups[group]:
        raise ValueError(unknown_choice(group, choice, groups[group]))
    node = OmegaConf.to_container(choice_of(group, choice), resolve=False)
    described = list(_described(node, group))
    if not described:
        return f"{word} has no options that are declared here"
    parts = [f"{where}: {summary_of(options)}\n{as_text(options, values)}" for where, values, options in described]
    return f"{word}\n\n" + "\n\n".join(parts)


def _described(node: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any], type]]:
    """All parts of a composed choice with declared options: key, values and options."""
    from syncbn.run.described import options_at

    if not isinstance(node, dict):
        return
    if (options := options_at(where, node)) is not None:
        yield where, node, options
    for key, child in node.items():
        yield from _described(child, f"{where}.{key}")


if __name__ == "__main__":
    cli.run("options")
