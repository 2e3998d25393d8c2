"""Activation checkpointing."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from tests.norm.fusion import overlap_steps as steps
from tests.norm.fusion.overlap_scenarios.registry import scenario
from tests.norm.fusion.overlap_steps import Make, several_steps


class Checkpointed(steps.Net):
    """The blocks are computed again in the backward pass."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm(self.stem(x)), 0.1)
        for block in self.blocks:
            y = checkpoint(block, y, use_reentrant=self.reentrant)
        return self.fc(checkpoint(lambda y: y.mean((2, 3)), y, use_reentrant=self.reentrant))


class Reentrant(Checkpointed):
    """The old way."""

    reentrant = True


class CheckpointedLayers(steps.Net):
    """Layers are repeated without their norms, and the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.stem, x, use_reentrant=False)
        y = checkpoint(self.norm, y, use_reentrant=False)
        y = self.blocks(y)
        return checkpoint(self.fc, y.mean((2, 3)), use_reentrant=False)


@scenario()
def checkpointed(make: Make) -> list[Tensor]:
    return several_steps(make(Checkpointed))


@scenario(fuse_activation=True, memory="recompute")
def checkpointed_recompute(make: Make) -> list[Tensor]:
    return several_steps(make(Checkpointed))


@scenario(hidden=None)
def checkpointed_reentrant(make: Make) -> list[Tensor]:
    return several_steps(make(Reentrant))


@scenario()
def checkpointed_layers(make: Make) -> list[Tensor]:
    return several_steps(make(CheckpointedLayers))


class HalfBlocks(nn.Module):
    """The message of a repeated half-precision pass comes while the weight gradient of a float32 layer waits."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 4, 3), norm(4))
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = checkpoint(self.blocks, x, use_reentrant=False)
        return self.fc(y.float().flatten(1))


@scenario(hidden=None)
def checkpointed_under_autocast(make: Make) -> list[Tensor]:
    return several_steps(make(HalfBlocks))


def _save_convolutions(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_one = operation is torch.ops.aten.convolution.default
    return CheckpointPolicy.MUST_SAVE if is_one else CheckpointPolicy.PREFER_RECOMPUTE


class SelectiveBlocks(steps.Net):
    """A mode answers for the operations of the repeated pass."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm(self.stem(x)), 0.1)
        contexts = partial(create_selective_checkpoint_contexts, _save_convolutions)
        return self.fc(checkpoint(self.blocks, y, use_reentrant=False, context_fn=contexts).mean((2, 3)))


@scenario()
def checkpointed_selectively(make: Make) -> list[Tensor]:
    return several_steps(make(SelectiveBlocks))
