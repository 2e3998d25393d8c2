"""Building of the network: one that takes `norm=`, or any other, whose batch norms are converted."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from syncbn.models import load_weights
from syncbn.norm import convert, norm_layer
from syncbn.norm.core.attachable import Attachable
from syncbn.norm.core.options import defaults
from syncbn.norm.core.registry import NormFactory, known_options, unusual_options
from syncbn.norm.surgery.adapters import looks_like_batch_norm
from syncbn.norm.surgery.exchanged import original_of
from syncbn.norm.surgery.forward import modes_kept
from syncbn.run.construct import asks_for, construct, is_number, parameters_of
from syncbn.run.facts import DataFacts
from syncbn.run.targets import users_line

SIZES = ("num_classes", "in_channels", "image_size")
_NOT_OPTIONS = ("name", "sync_group", "include", "exclude")  # keys of a norm's config that aren't layer options


def build_network(
    config: DictConfig, data: LightningDataModule, *, fetch_weights: bool = True, facts: DataFacts | None = None
) -> nn.Module:
    """Build the network of `config.model` with the norm of `config.norm`, for the data's images and classes.

    A network that takes `norm=` is built with it. For any other, the batch norms that `norm.include` and `norm.exclude`
    select are converted. It gets those of the sizes `num_classes`, `in_channels` and `image_size` that it has as
    parameters: from the config, else from the data, and then they are recorded in the config for the run's folder.

    Without `fetch_weights`, pretrained networks of other packages are built without weights, which come from a
    checkpoint.

    Raises:
        ValueError: a required size that is unknown; `include` or `exclude` for a network that takes `norm=`; as
            `convert`.
    """
    asked = parameters_of("model", config.model)
    model = DictConfig(OmegaConf.to_container(config.model, resolve=True))
    if not _has_weights_of_its_own(config):
        for key in ("weights", "weights_key"):  # `load_pretrained` reads them
            model.pop(key, None)
    if not fetch_weights:
        for key in ("pretrained", "weights"):
            if model.get(key):
                model[key] = False if key == "pretrained" else None
    facts = facts or DataFacts(data)
    sizes = _sizes(config, model, asked, facts)
    if takes_norm(config):
        if chosen := [f"norm.{key}" for key in ("include", "exclude") if config.norm.get(key) is not None]:
            raise ValueError(
                f"{' and '.join(chosen)} choose among the batch norms of a finished network, and {model._target_} "
                "makes its own from norm=: leave them out"
            )
        return construct("model", model, norm=norm_of(config), **sizes)
    net: nn.Module = construct("model", model, **sizes)
    if any(map(is_lazy, net.parameters())):
        output_width(net, facts)  # initializes lazy layers
    return convert_norms(net, config, facts)


def norm_of(config: DictConfig) -> NormFactory:
    """Function of `config.norm` from the number of channels to a layer."""
    options = {key: value for key, value in config.norm.items() if key not in _NOT_OPTIONS}
    usual = defaults(known_options()[config.norm.name])
    if options.get("keras_momentum") is not None and options.get("momentum") == usual["momentum"]:
        del options["momentum"]  # the default; an explicit one together with keras_momentum is refused
    return norm_layer(config.norm.name, **OmegaConf.to_container(OmegaConf.create(options)))  # type: ignore[arg-type]


def takes_norm(config: DictConfig) -> bool:
    """Whether the network's function takes our `norm=`, and the config doesn't set it to something else."""
    return asks_for("norm", "model", config.model)


def convert_norms(net: nn.Module, config: DictConfig, facts: DataFacts) -> nn.Module:
    """Convert the batch norms of a finished network, if it has any, to the norm of `config.norm`.

    They keep their eps and momentum unless the config sets non-default ones.
    """
    include, exclude = (_globs(config, key) for key in ("include", "exclude"))
    if include is None and exclude is None and not any(looks_like_batch_norm(module) for module in net.modules()):
        return net
    norm = norm_of(config)
    name, options = unusual_options(norm)
    needs_example = options.get("fuse_activation") or isinstance(norm(8), Attachable)
    example = facts.example if needs_example else None
    return convert(net, name, include=include, exclude=exclude, example_input=example, **options)


def name_of(config: DictConfig, net: nn.Module) -> str:
    """Name of the network's function, or the class of a task that is its own network."""
    return type(net).__name__ if isinstance(net, LightningModule) else str(config.model._target_).rpartition(".")[2]


def described_norm(config: DictConfig, net: nn.Module) -> str:
    """Describe the norm of a network, and its use in a network that doesn't take one."""
    norm = f"norm={config.norm.name}"
    if asks_for("norm", *(("task", config.task) if isinstance(net, LightningModule) else ("model", config.model))):
        return norm
    converted = sum(original_of(module) is not None for module in net.modules())
    if converted:
        return f"{norm} in the place of {converted} batch norm(s)"
    return f"no batch norm, so that {norm} changes nothing"


def output_width(net: nn.Module, facts: DataFacts) -> int | None:
    """Size of the second dimension of a network's output, K of logits (N, K, ...); None without one.

    Raises:
        ValueError: the network can't take the data's inputs.
    """
    example = facts.example
    if example is None:
        return None
    try:
        with isolate_rng(), modes_kept(net), torch.no_grad():
            output = net.eval()(example)
    except Exception as error:
        raise ValueError(
            f"{type(net).__name__} can't take inputs {tuple(example.shape)}, as the data has them: "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else error}{users_line(error)}"
        ) from error
    return output.shape[1] if isinstance(output, Tensor) and output.dim() > 1 else None


def load_pretrained(config: DictConfig, net: nn.Module) -> str | None:
    """Load the weights file `config.model.weights`, if any, into `net`; returns a description.

    Raises:
        ValueError: `model.weights_key` without a file; as `load_weights`.
    """
    if _has_weights_of_its_own(config):
        return None
    path, key = config.model.get("weights"), config.model.get("weights_key")
    if path is None and key is not None:
        raise ValueError(f"model.weights_key={key} chooses in a file of weights: add model.weights=<file>")
    if path is None:
        return None
    try:
        return load_weights(net, path, key=key)
    except ValueError as error:
        text = str(error)
        told = "key=" in text or (key is not None and repr(key) in text)
        raise ValueError(text + ", which is model.weights_key=<name> in a config" * told) from error


def is_ours(config: DictConfig) -> bool:
    """Whether the network is one of this package."""
    return str(config.model._target_).startswith("syncbn.")


def _has_weights_of_its_own(config: DictConfig) -> bool:
    return "weights" in parameters_of("model", config.model) and not is_ours(config)


def _sizes(
    config: DictConfig, model: DictConfig, asked: Mapping[str, inspect.Parameter], facts: DataFacts
) -> dict[str, Any]:
    sizes = {}
    for name in SIZES:
        passed_on = is_ours(config) and name != "image_size" and _takes_more(asked)
        if name not in asked and not passed_on:
            continue
        value = model.get(name)
        if value is None and (value := getattr(facts, name)) is not None and not is_ours(config):
            with open_dict(config):
                config.model[name] = list(value) if isinstance(value, tuple) else value
        if value is not None:
            sizes[name] = image_size_for(asked.get(name), value) if name == "image_size" else value
        elif asked[name].default is inspect.Parameter.empty:
            raise ValueError(
                f"{model._target_} asks for {name}, which neither {type(facts.data).__name__} nor its first batch "
                f"says: add +model.{name}=<number>"
            )
    return sizes


def image_size_for(parameter: inspect.Parameter | None, size: Any) -> Any:
    """Height and width as a parameter takes them: (height, width), or one number if that is what it asks for.

    Raises:
        ValueError: it asks for one number, and the images aren't square.
    """
    if size is None or isinstance(size, int):
        return size
    if parameter is None or not is_number(parameter):
        return tuple(size)
    if len(set(size)) > 1:
        raise ValueError(
            f"image_size is one number here, and the data's images have {' x '.join(map(str, size))}: give it one, "
            "+model.image_size=<number> say, or let it take (height, width)"
        )
    return size[0]


def _takes_more(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _globs(config: DictConfig, key: str) -> str | list[str] | None:
    value = config.norm.get(key)
    return value if value is None or isinstance(value, str) else list(value)
