"""A converted network computes what its new norms define and keeps hooks, keys and layers; reverting restores it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import syncbn
from syncbn.norm.frozen import FrozenBatchNorm
from tests.networks.generate import Description, Network, build
from tests.networks.oracles.compare import (
    WrongError,
    check_equal,
    check_usable,
    is_copyable,
    number_of_hooks,
    run,
    same_results,
)
from tests.networks.oracles.verdict import Facts, RefusedError, policy
from tests.networks.outputs import tensors_of
from tests.networks.spec import Spec


def judge_sync(spec: Spec) -> Facts:
    """In one process a synchronized norm is a batch norm, including outputs, gradients and buffers in training."""
    if _repeats_what_it_reads(spec):
        return Facts()
    network, reference = build(spec), build(spec).model
    converted = convert_norms(network, "sync")
    _check_kept(converted, reference)
    same_results(converted.eval(), reference.eval(), network.description, "converted and original in evaluation")
    same_step(converted, reference, network.description, "converted and original")
    _check_reverted(syncbn.revert(converted), reference, network.description)
    return Facts()


def judge_frozen(spec: Spec) -> Facts:
    """A frozen norm is a norm in evaluation mode, in any mode of the network."""
    if "functional_call" in spec.kinds():  # the network itself counts on γ and β being parameters
        return Facts()
    network, reference = build(spec), build(spec).model
    converted = convert_norms(network, "frozen")
    frozen = [name for name, m in converted.named_modules() if isinstance(m, FrozenBatchNorm)]
    same_results(converted.eval(), reference.eval(), network.description, "converted and original in evaluation")
    same_step(converted, reference, network.description, "converted and original with norms in eval mode", frozen)
    _check_reverted(syncbn.revert(converted), reference, network.description)
    return Facts()


def judge_cross_iteration(spec: Spec) -> Facts:
    """In evaluation and during burn-in it is a batch norm; with a window it must run, or refuse by name."""
    if _repeats_what_it_reads(spec):
        return Facts()
    spec = replace(spec, inputs="one")
    for burn_in in (1000, 0):
        network, reference = build(spec), build(spec).model
        options = {"window": 3, "burn_in": burn_in, "example_input": network.example_input[0]}
        converted = convert_norms(network, "cross_iteration", **options)
        same_results(converted.eval(), reference.eval(), network.description, "converted and original in evaluation")
        with policy():  # it can't follow what a checkpoint repeats out of order, and says so
            if burn_in:
                same_step(converted, reference, network.description, "burning in and original")
            check_usable(converted, network.description, is_copyable(converted), train=True)
        _check_reverted(syncbn.revert(converted), reference, network.description, compare=False)
    return Facts()


def judge_group(spec: Spec) -> Facts:
    """Each converted layer equals torch.nn.functional.group_norm of its input."""
    if _READERS & spec.kinds().keys():  # the network itself asks its norms for statistics, which these don't have
        return Facts()
    network, reference = build(spec), build(spec).model
    try:
        converted = convert_norms(network, "group")
    except RefusedError:  # 32 groups may not divide the channels; one group always does
        network = build(spec)
        converted = convert_norms(network, "group", groups=1)
    calls: list[tuple[Any, Tensor, Tensor]] = []
    handles = []
    for module in converted.modules():
        if isinstance(module, nn.GroupNorm):

            def note(m: nn.Module, args: Any, y: Tensor) -> None:
                if isinstance(m, nn.GroupNorm):  # and not the old layer, which shares these hooks
                    calls.append((m, args[0].detach().clone(), y.detach().clone()))

            handles.append(module.register_forward_hook(note, prepend=True))
    run(converted.train(), network.description.arguments(1))
    for handle in handles:
        handle.remove()
    for layer, x, y in calls:
        activation = getattr(layer, "act", nn.Identity())
        expected = activation(F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)).detach()
        check_equal([y], [expected], lambda expected=expected: [expected], "a group norm")
    check_usable(converted, network.description, is_copyable(converted), train=True)
    _check_reverted(syncbn.revert(converted), reference, network.description, compare=False)
    return Facts()


_READERS = {"functional_norm", "norm_read_by_python", "functional_call"}


def _repeats_what_it_reads(spec: Spec) -> bool:
    """Whether torch's own norms are wrong there: a checkpoint repeats what reads statistics that have moved since."""
    return {"checkpointed", "norm_read_by_python"} <= spec.kinds().keys()


def convert_norms(network: Network, name: str, **options: Any) -> nn.Module:
    """Convert the norms of a network; those refused for their class are excluded, if there are others."""
    of_frozen_class = [n for n, m in network.model.named_modules() if type(m).__name__ == "FrozenBatchNorm2d"]
    custom = [n for n, m in network.model.named_modules() if is_norm(m) and not _is_usual(m)]
    try:
        with policy():
            return syncbn.convert(network.model, name, exclude=of_frozen_class or None, **options)
    except RefusedError:
        if not custom:
            raise
    with policy():
        return syncbn.convert(network.model, name, exclude=custom, **options)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm, by its attributes."""
    return hasattr(module, "running_mean") and not isinstance(module, nn.modules.instancenorm._InstanceNorm)


def _is_usual(module: nn.Module) -> bool:
    return type(module).__module__.split(".")[0] in ("torch", "syncbn") and module.track_running_stats


def _check_kept(converted: nn.Module, reference: nn.Module) -> None:
    """Raise unless keys, hooks and modes are those of the original."""
    if list(converted.state_dict()) != list(reference.state_dict()):
        raise WrongError("the keys of the state_dict have changed")
    for name, module in reference.named_modules():
        now = converted.get_submodule(name)
        if number_of_hooks(now) != number_of_hooks(module) or now.training != module.training:
            raise WrongError(f"the hooks or the mode of {name} aren't what they were")


def _check_reverted(reverted: nn.Module, reference: nn.Module, description: Description, compare: bool = True) -> None:
    """Raise unless the network has its layers again, with their current state."""
    if _classes(reverted) != _classes(reference):
        raise WrongError("reverting doesn't give the original's layers back")
    for name, module in reference.named_modules():
        if number_of_hooks(reverted.get_submodule(name)) != number_of_hooks(module):
            raise WrongError(f"the hooks of {name} are lost after reverting")
    if compare:
        same_results(reverted.eval(), reference.eval(), description, "reverted and original in evaluation")
        same_step(reverted, reference, description, "reverted and original")


def _classes(model: nn.Module) -> list[tuple[str, str]]:
    """Names of modules and of their classes; parametrizations create a new class each time."""
    return [(name, type(module).__qualname__) for name, module in model.named_modules()]


def same_step(
    found: nn.Module, reference: nn.Module, description: Description, what: str, frozen: list[str] | None = None
) -> None:
    """Raise unless a step of training gives the same outputs, gradients and buffers.

    Args:
        found: network to judge.
        reference: correct network.
        description: description of the network, for its arguments.
        what: description of the comparison, for the message.
        frozen: names of norms of the reference in evaluation mode; their parameters may have no gradients.
    """
    arguments, state = description.arguments(50), copy.deepcopy(reference.state_dict())
    expected = _step(reference, arguments, frozen or [])
    results = _step(found, arguments, [])
    for part in expected:
        mine, right = results[part], expected[part]
        if frozen:
            right = {name: value for name, value in right.items() if name in mine}
            mine = {name: value for name, value in mine.items() if name in right}
        if mine.keys() != right.keys():
            raise WrongError(f"{what}: {part} of {sorted(mine.keys() ^ right.keys())}")

        def noise(part: str = part, names: Any = tuple(right)) -> list[Tensor]:
            with _state_kept(reference), torch.no_grad():
                reference.load_state_dict(state)
                for p in reference.parameters():
                    p.mul_(1 + 1e-12 * torch.randn_like(p))
                with torch.enable_grad():
                    again = _step(reference, arguments, frozen or [])[part]
            return [again[name] for name in names]

        # A gradient that is 0 but for rounding, of a bias before a norm, is compared with the others.
        scale = max((float(t.abs().max()) for t in right.values()), default=0.0) if part == "gradients" else None
        check_equal([mine[name] for name in right], list(right.values()), noise, f"{what}: {part} of a step", scale)


@contextmanager
def _state_kept(model: nn.Module) -> Iterator[None]:
    state = copy.deepcopy(model.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(state)


def _step(model: nn.Module, arguments: tuple[Any, ...], frozen: list[str]) -> dict[str, dict[str, Tensor]]:
    model.train()
    for name in frozen:
        model.get_submodule(name).eval()
    model.zero_grad()
    torch.manual_seed(0)
    outputs = tensors_of(model(*arguments))
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    loss: Any = sum(t.tanh().sum() for t in outputs)
    if loss.requires_grad:
        loss.backward()
    with torch.no_grad():  # torch's norms count a batch twice that activation checkpointing repeats
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return {
        "outputs": {str(i): t.detach().clone() for i, t in enumerate(outputs)},
        "gradients": {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        "buffers": buffers,
    }


CONVERSIONS: dict[str, Callable[[Spec], Facts]] = {
    "sync": judge_sync,
    "frozen": judge_frozen,
    "cross_iteration": judge_cross_iteration,
    "group": judge_group,
}
