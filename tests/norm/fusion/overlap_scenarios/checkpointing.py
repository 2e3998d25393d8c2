"""Activation checkpointing."""

from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

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
