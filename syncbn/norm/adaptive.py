"""Batch normalization with running statistics for each of several domains and a shared scale and shift."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn

from syncbn.norm.adaptive_options import AdaptiveBatchNormOptions as Options
from syncbn.norm.core.arguments import check_arguments
from syncbn.norm.core.registry import register
from syncbn.norm.core.shared_options import Shared
from syncbn.norm.sync import SyncBatchNorm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Buffers of the current domain's statistics, and buffers with a row for each domain.
_ROWS = {"running_mean": "domain_mean", "running_var": "domain_var", "num_batches_tracked": "domain_batches"}


@register("adaptive", options=Options)
class AdaptiveBatchNorm(SyncBatchNorm):
    """Synchronized batch normalization with running statistics for each domain and shared γ and β.

    It computes what `SyncBatchNorm` does. running_mean, running_var and num_batches_tracked are those of the current
    domain; those of other domains are neither read nor updated. A layer starts in domain 0. `set_domain(model, i)` sets
    the domain of all layers of a model, `with domain(model, i):` sets it temporarily, and `layer(x, domain=i)` for one
    call. All ranks must be in the same domain, since their samples are normalized together. A backward pass that
    recomputes an evaluation (activation checkpointing) must run in the domain of the forward pass.

    `state_dict` also has domain_mean, domain_var (domains, C) and domain_batches (domains,), which loading uses. From a
    checkpoint of `torch.nn.BatchNorm2d`, and from a layer that `syncbn.convert` replaces, every domain gets the same
    statistics. `syncbn.revert` keeps those of the current domain.

    Args:
        num_features: C of an input (N, C, *).
        domains: number of domains, at least 1.
        eps: added to the variance; greater than 0.
        momentum: weight of the new batch in its domain's running statistics, in [0, 1]; None for the mean of all.
        affine: whether there are γ (`weight`) and β (`bias`).
        process_group: the ranks to synchronize over; all of them when None.
        bias: whether an affine layer has β.
        device: device of parameters and buffers.
        dtype: dtype of the parameters.
        shared: options of every layer with running statistics, see `syncbn.norm.core.shared_options.Shared`.

    Shape:
        input (N, C, *), of a floating-point dtype; output the same.
        mask (N, *), bool: only samples where it is True count; elsewhere output and gradient are 0.

    Raises:
        ValueError, TypeError: as `SyncBatchNorm`; a number of domains below 1, or an unknown domain.

    Source: Li et al., Adaptive Batch Normalization for practical domain adaptation, Pattern Recognition 2018,
        https://arxiv.org/abs/1603.04779.
    """

    evaluates_as_batch_norm = True

    def __init__(
        self,
        num_features: int,
        domains: int = Options.domains,
        eps: float = Options.eps,
        momentum: float | None = Options.momentum,
        affine: bool = Options.affine,
        process_group: ProcessGroup | None = None,
        bias: bool = Options.bias,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        check_arguments(Options, locals())
        super().__init__(num_features, eps, momentum, affine, True, process_group, bias, device, dtype, **shared)
        self.domains = domains
        self._domain = 0
        for name, rows in _ROWS.items():
            self.register_buffer(rows, torch.stack([self.get_buffer(name)] * domains))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Reset γ to 1, β to 0, and the running statistics of all domains."""
        super().reset_parameters()
        for name, rows in _ROWS.items():
            if rows in self._buffers:  # the base's constructor comes before them
                self.get_buffer(rows).copy_(self.get_buffer(name))

    @property
    def domain(self) -> int:
        """The current domain."""
        return self._domain

    @torch.no_grad()
    def set_domain(self, domain: int) -> None:
        """Store the current domain's statistics and continue with those of `domain`."""
        self.check_domain(domain)
        if domain != self._domain:
            self._put_away()
            self._domain = domain
            self._take_out()

    def check_domain(self, domain: int) -> None:
        """Raise `ValueError` for an unknown domain."""
        if isinstance(domain, bool) or not isinstance(domain, int) or not 0 <= domain < self.domains:
            raise ValueError(f"the domain must be one of 0 to {self.domains - 1}, got {domain!r}")

    def forward(self, input: Tensor, mask: Tensor | None = None, domain: int | None = None) -> Tensor:
        if domain is None:
            return super().forward(input, mask)
        before = self._domain
        self.set_domain(domain)
        try:
            return super().forward(input, mask)
        finally:
            self.set_domain(before)

    @torch.no_grad()
    def adopt(self, old: nn.Module) -> None:
        for name, rows in _ROWS.items():
            self.get_buffer(rows).copy_(self.get_buffer(name))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, domains={self.domains}"

    def _put_away(self) -> None:
        for name, rows in _ROWS.items():
            self.get_buffer(rows)[self._domain].copy_(self.get_buffer(name))

    def _take_out(self) -> None:
        for name, rows in _ROWS.items():
            self.get_buffer(name).copy_(self.get_buffer(rows)[self._domain])

    @torch.no_grad()
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._put_away()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    @torch.no_grad()
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if not any(f"{prefix}{rows}" in state_dict for rows in _ROWS.values()):
            state_dict = dict(state_dict)
            for name, rows in _ROWS.items():
                if prefix + name in state_dict:
                    state_dict[prefix + rows] = torch.stack([state_dict[prefix + name]] * self.domains)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._take_out()


def set_domain(model: nn.Module, domain: int) -> None:
    """Set the domain of every `AdaptiveBatchNorm` of a model.

    Raises:
        ValueError: no such layer, or one without this domain; no layer is changed then.
    """
    layers = _layers(model)
    for layer in layers:
        layer.check_domain(domain)
    for layer in layers:
        layer.set_domain(domain)


@contextlib.contextmanager
def domain(model: nn.Module, domain: int) -> Iterator[None]:
    """Set the domain of every `AdaptiveBatchNorm` temporarily: `with domain(model, 1): ...`.

    Raises:
        ValueError: as `set_domain`.
    """
    before = [(layer, layer.domain) for layer in _layers(model)]
    set_domain(model, domain)
    try:
        yield
    finally:
        for layer, was in before:
            layer.set_domain(was)


def _layers(model: nn.Module) -> list[AdaptiveBatchNorm]:
    layers = [module for module in model.modules() if isinstance(module, AdaptiveBatchNorm)]
    if not layers:
        raise ValueError("the model has no layer with domains; make some with syncbn.convert(model, 'adaptive')")
    return layers
