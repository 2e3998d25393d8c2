"""Base of layers that normalize by running statistics in training too."""

from typing import Any

import torch
from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.core.moments import Moments


class RunningNorm(nn.Module):
    """Mixin of layers whose training output depends on earlier batches.

    A forward pass changes the state that it depends on, so recomputation by activation checkpointing would get a
    different output. `as_first_seen` restores the values of the last forward pass; recomputation of an earlier one is
    refused.

    The layer's additional state (`own_state`, names of parameters and buffers) is missing from a checkpoint of
    `torch.nn.BatchNorm2d`, which still loads and leaves that state unchanged.
    """

    num_features: int
    own_state: tuple[str, ...] = ()

    def remember(self, count: int, device: torch.device | str | None) -> None:
        """Allocate `count` numbers per channel for the last forward pass; called once, by the constructor."""
        first_seen = torch.zeros(1 + count, self.num_features, device=device)
        self.register_buffer("_first_seen", first_seen, persistent=False)

    def reset_parameters(self) -> None:
        """Reset all parameters and statistics, and the layer's additional state."""
        super().reset_parameters()  # type: ignore[misc]  # the layer's
        if "_first_seen" in self._buffers:  # the base's constructor comes before it
            nn.init.zeros_(self.get_buffer("_first_seen"))
            self.reset_own_state()

    def reset_own_state(self) -> None:
        """Give `own_state` its initial values."""
        raise NotImplementedError

    def as_first_seen(self, moments: Moments, values: Tensor) -> Tensor:
        """Return `values` (remembered, C) or, in a recomputed forward pass, their first values. A constant.

        Args:
            moments: moments of the batch, which identify it.
            values: values that the output depends on and that the forward pass changes.
        """
        remember = torch.ops.syncbn.as_first_seen if torch.compiler.is_compiling() else _as_first_seen
        first_seen = self.get_buffer("_first_seen")
        return remember(first_seen, moments.mean.detach().to(first_seen.dtype), values.detach().to(first_seen.dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        own = {f"{prefix}{name}": getattr(self, name) for name in self.own_state}
        if not own.keys() & state_dict.keys():
            state_dict = {**state_dict, **own}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        first_seen, loaded = self.get_buffer("_first_seen"), self._buffers.get("running_mean")
        if first_seen.is_meta and loaded is not None and not loaded.is_meta:  # assign=True gives it no memory
            self._buffers["_first_seen"] = torch.zeros_like(first_seen, device=loaded.device)


def _as_first_seen(first_seen: Tensor, mean: Tensor, values: Tensor) -> Tensor:
    if compat.in_backward():
        if not torch.allclose(first_seen[0], mean, rtol=1e-5, atol=1e-6, equal_nan=True):
            raise NotImplementedError(
                "activation checkpointing repeats a forward pass that isn't this layer's last, and its running "
                "statistics have moved on: call backward after each forward, or leave this norm out of the "
                "checkpointed part"
            )
        return first_seen[1:].clone()
    first_seen.copy_(torch.cat([mean.unsqueeze(0), values]))
    return values.clone()


# An operator, so that a compiled layer checks for a backward pass when the graph runs: see tracking.py.
_OPERATOR = torch.library.custom_op("syncbn::as_first_seen", _as_first_seen, mutates_args=("first_seen",))


@_OPERATOR.register_fake
def _(first_seen: Tensor, mean: Tensor, values: Tensor) -> Tensor:
    return torch.empty_like(values)
