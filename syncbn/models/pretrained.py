"""Pretrained networks of timm and torchvision with another norm. Either package is imported on first use."""

import copy
import importlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from syncbn.models.common import Norm
from syncbn.models.pretrained_options import PretrainedOptions as Options
from syncbn.norm.core.messages import first_line
from syncbn.norm.core.options import suggest
from syncbn.norm.core.registry import unusual_options
from syncbn.norm.surgery.adapters import looks_like_batch_norm
from syncbn.norm.surgery.convert import convert

ImageSize = int | Sequence[int]


def from_timm(
    norm: Norm = "batch",
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: ImageSize = 224,
    architecture: str = Options.architecture,
    pretrained: bool = Options.pretrained,
) -> nn.Module:
    """Build a network of timm and convert its batch norms to `norm` with `syncbn.convert`.

    Input (N, in_channels, H, W), output (N, num_classes) logits. timm replaces the classifier where the number of
    classes differs, and adapts the first convolution to the number of channels. The norms keep their weights and
    statistics, and the network's eps and momentum unless `norm` sets others than its defaults.

    Args:
        norm: a name of `syncbn.available_norms()`, or `norm_layer(name, ...)`.
        num_classes: number of logits.
        in_channels: channels of the images.
        image_size: size of the images that the network is checked with, (height, width).
        architecture: one of `timm.list_models()`, with the weights' tag where there are several: "resnet18.a1_in1k".
        pretrained: download its weights once, from the Hugging Face hub.

    Raises:
        ModuleNotFoundError: timm isn't installed.
        ImportError: timm is installed, but can't be imported.
        ValueError: an unknown architecture; weights that can't be downloaded; a network without batch norms, or one
            that doesn't turn such images into logits; as `convert`.
    """
    timm = _imported("timm")
    _check_name(architecture.partition(".")[0], timm.list_models())
    with _fetching(architecture):
        model = timm.create_model(architecture, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels)
    return _with_norm(model, norm, num_classes, in_channels, image_size, architecture)


def from_torchvision(
    norm: Norm = "batch",
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: ImageSize = 224,
    architecture: str = Options.architecture,
    pretrained: bool = Options.pretrained,
) -> nn.Module:
    """Build a network of torchvision and convert its batch norms to `norm` with `syncbn.convert`.

    As `from_timm`. The classifier, the last linear layer, is replaced where the number of classes differs. For one
    channel, the filters of the first convolution are summed over the colors.

    Args:
        norm: a name of `syncbn.available_norms()`, or `norm_layer(name, ...)`.
        num_classes: number of logits.
        in_channels: channels of the images, 1 or 3.
        image_size: size of the images that the network is checked with, (height, width).
        architecture: one of `torchvision.models.list_models(torchvision.models)`.
        pretrained: download its default weights once, from pytorch.org.

    Raises:
        ModuleNotFoundError: torchvision isn't installed.
        ImportError: torchvision is installed, but can't be imported.
        ValueError: as `from_timm`; a number of channels other than 1 or 3.
    """
    models = _imported("torchvision.models")
    _check_name(architecture, models.list_models(module=models))
    if in_channels not in (1, 3):
        raise ValueError(f"in_channels must be 1 or 3 with torchvision's networks, got {in_channels}")
    with _fetching(architecture):
        model = models.get_model(architecture, weights="DEFAULT" if pretrained else None)
    _replace_last_linear(model, num_classes)
    if in_channels == 1:
        _sum_colors(model)
    return _with_norm(model, norm, num_classes, in_channels, image_size, architecture)


def _imported(name: str) -> Any:
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"model={package} needs {package} ({error}): pip install {package}") from error
    except (ImportError, RuntimeError) as error:  # a torchvision built for a different torch
        raise ImportError(
            f"model={package} can't import {package} ({error}); torchvision must be of the same build as torch "
            f"{torch.__version__}"
        ) from error


def _check_name(architecture: str, known: Iterable[str]) -> None:
    names = sorted(known)
    if architecture not in names:
        few = [name for name in names if name.startswith(architecture[:4])] or names
        raise ValueError(f"unknown architecture {architecture!r}; {suggest(architecture, few[:20])}, ...")


@contextmanager
def _fetching(architecture: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # no network, or an unknown tag
        raise ValueError(
            f"can't fetch the weights of {architecture} ({first_line(error)}); with a network they "
            "are fetched once for all; without weights: pretrained=False (model.pretrained=false), with those of a "
            "file: model.weights=<file> too"
        ) from error


def _with_norm(
    model: nn.Module, norm: Norm, num_classes: int, in_channels: int, image_size: ImageSize, architecture: str
) -> nn.Module:
    if not any(looks_like_batch_norm(module) for module in model.modules()):
        raise ValueError(f"{architecture} has no batch norm that another norm could take the place of; choose another")
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    _check_logits(model, (in_channels, *size), num_classes, architecture)
    name, options = unusual_options(norm)
    return convert(model, name, example_input=torch.zeros(1, in_channels, *size), **options)


def _check_logits(model: nn.Module, shape: tuple[int, ...], num_classes: int, architecture: str) -> None:
    """Check the output's shape with a forward pass in training mode, on the meta device."""
    copied = copy.deepcopy(model).to("meta").train()
    try:
        output = copied(torch.zeros(2, *shape, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:  # image too small, or a network for one size only
        raise ValueError(f"{architecture} doesn't take images {shape}: {first_line(error)}") from error
    if not isinstance(output, Tensor) or output.shape != (2, num_classes):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"{architecture} returns {got} for 2 images, not logits (2, {num_classes}); choose another")


def _replace_last_linear(model: nn.Module, num_classes: int) -> None:
    name, last = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    if last.out_features != num_classes:
        model.set_submodule(name, nn.Linear(last.in_features, num_classes, bias=last.bias is not None))


def _sum_colors(model: nn.Module) -> None:
    """Make the first convolution treat a grey image as one whose three channels are equal."""
    name, first = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    options: Any = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    grey = nn.Conv2d(1, first.out_channels, bias=first.bias is not None, **options)
    grey.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))
    grey.bias = first.bias
    model.set_submodule(name, grey)
