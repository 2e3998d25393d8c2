"""Detectors: called with lists of images, and of targets in training; torchvision's operators if they are missing."""

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

_KEPT: list[Any] = []  # a library's definitions are removed with it


def detect(model: nn.Module, x: Tensor) -> Any:
    """Losses in training, and boxes in evaluation, of torchvision's detectors."""
    boxes = torch.tensor([[8.0, 8, 40, 40], [20, 10, 60, 50]], dtype=x.dtype)
    targets = [{"boxes": boxes + i, "labels": torch.tensor([1, 2])} for i in range(len(x))]
    return model(list(x), targets) if model.training else model(list(x))


def features(model: Any, x: Tensor) -> Any:
    """Features of a detector's backbone: its losses in training choose at random among a rank's boxes."""
    return model.backbone(x)


def declare_operators() -> None:
    """Declare torchvision's operators if its compiled library doesn't fit this build of torch, such as a CPU one.

    Importing torchvision requires them, and its detectors call `nms`, which is written in Python here.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", _nms, "CPU")
        _KEPT.append(library)
        importlib.import_module("torchvision")
        importlib.import_module("torchvision.extension")._has_ops = _has_operators


def _has_operators() -> bool:  # TorchScript compiles it
    return True


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep boxes, best first, that overlap no better one by more than a threshold."""
    left = scores.argsort(descending=True, stable=True)
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        low, high = boxes[left, :2].maximum(boxes[best, :2]), boxes[left, 2:].minimum(boxes[best, 2:])
        both = (high - low).clamp(min=0).prod(1)
        area, areas = ((b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes[best], boxes[left]))
        left = left[both / (area + areas - both) <= iou_threshold]
    return torch.tensor(kept, dtype=torch.int64)
