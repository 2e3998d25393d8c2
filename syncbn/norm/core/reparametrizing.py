"""Base of the layers that normalize the preceding layer's weights instead of their input."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from syncbn.norm.core.attachable import check_feeder
from syncbn.norm.core.checks import check_channels, check_num_features
from syncbn.norm.core.leaf import Leaf


class Reparametrizing(nn.Module):
    """A layer that parametrizes the weight of the preceding convolution or linear layer."""

    num_features: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._feeder: list[Any] = []  # in a list, since a submodule would be in `state_dict` twice

    @property
    def is_attached(self) -> bool:
        """Whether a layer's weight is parametrized."""
        return bool(self._feeder)

    def attach(self, feeder: nn.Module) -> None:
        """Parametrize the weight of `feeder`, the preceding convolution or linear layer.

        Raises:
            TypeError: `feeder` is neither a convolution nor linear.
            ValueError: its number of channels differs, or its weight is parametrized already.
        """
        check_feeder(feeder, self.num_features)
        self.detach()
        if parametrize.is_parametrized(feeder, "weight"):
            raise ValueError(
                f"the weight of {feeder} is parametrized already; a layer that feeds two norms is normalized once, so "
                "exclude one of them, or call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first"
            )
        self._parametrize(feeder)
        self._feeder.append(feeder)

    def detach(self) -> None:
        """Remove the parametrization."""
        for feeder in self._feeder:
            if parametrize.is_parametrized(feeder, "weight"):
                self._restore(feeder)
                for name in [name for name in feeder._parameters if name != "weight"]:  # restores the original order
                    feeder._parameters[name] = feeder._parameters.pop(name)
        self._feeder.clear()

    def _parametrize(self, feeder: Any) -> None:
        raise NotImplementedError

    def _restore(self, feeder: Any) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_feeder": []}  # torch can't pickle parametrized layers

    def __deepcopy__(self, memo: dict[int, Any]) -> Reparametrizing:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


class Reparametrized(Leaf, Reparametrizing):
    """Replacement of a norm whose preceding layer has a normalized weight: the identity plus β."""

    def __init__(self, num_features: int, bias: bool) -> None:
        num_features = check_num_features(num_features)
        super().__init__()
        self.num_features = num_features
        self.bias = nn.Parameter(torch.empty(num_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset β to 0; the weight is that of the layer before."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        check_channels(input, self.num_features)
        if self.training and not self._feeder:
            raise ValueError(
                "this layer normalizes the weights of the layer before it, which it doesn't know: call "
                "norm.attach(conv), or syncbn.norm.surgery.feeding.attach_norms(model), as syncbn.convert does"
            )
        if self.bias is None:
            return input
        return (input + self.bias.view(-1, *[1] * (input.dim() - 2))).to(input.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}, bias={self.bias is not None}"
