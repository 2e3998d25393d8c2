"""Helpers shared by measures: batches of one part of the data, and the accuracy on them."""

import copy
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from syncbn.data.base import Part

BATCH = 128


def in_one_process(data: Any, batch_size: int = BATCH) -> Any:
    """Build the data module for this process only, with all classes and batches of `batch_size`."""
    alone = copy.copy(data)
    alone.trainer = None
    alone.shard_by_class = False
    alone.batch_size = alone.eval_batch_size = batch_size
    return alone


def whole(data: Any, part: Part, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Load all images and labels of a part, or the first `limit`."""
    return data.fetch(part, list(range(min(data.num_samples(part), limit or data.num_samples(part)))), 0)


def tested(config: DictConfig, loader: Iterable[tuple[Tensor, Tensor]]) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches of a test loader: all, or the config's `trainer.limit_test_batches` if that is a number of batches."""
    limit = config.trainer.get("limit_test_batches")
    return itertools.islice(loader, limit) if isinstance(limit, int) else loader


@torch.no_grad()
def accuracy(predict: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of samples whose largest logit is that of their label."""
    right = [(predict(images).argmax(dim=1) == labels).float() for images, labels in batches]
    return float(torch.cat(right).mean())


def has_running_statistics(net: nn.Module) -> bool:
    """Whether any layer evaluates with running statistics."""
    return any(name.endswith("running_mean") for name, _ in net.named_buffers())
