"""A fused network returns the same as the network in evaluation, norm by norm."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

import syncbn
from syncbn.policy import plan_fusion
from tests.networks.generate import build
from tests.networks.oracles.compare import (
    WrongError,
    check_equal,
    check_unchanged,
    check_usable,
    example,
    is_copyable,
    probes,
    run,
    same_results,
    shaken,
    snapshot,
)
from tests.networks.oracles.verdict import Facts, policy
from tests.networks.spec import Spec


def judge_fuse(spec: Spec) -> Facts:
    """Fuse a network and compare it with the same one, built again, in float64 and eval mode."""
    network, reference = build(spec), build(spec).model.eval()
    model, description = network.model, network.description
    copyable, before = is_copyable(model), snapshot(model)
    with policy():
        fused = syncbn.fuse(model, example(network))
    check_unchanged(model, before)
    if any(module.training for module in fused.modules() if hasattr(module, "running_mean")):
        raise WrongError("a norm of the fused network is in training mode")
    same_results(fused, reference, description, "fused and original")
    folded = [name for name in before["modules"] if _is_folded(name, reference, fused)]
    check_plan(model, example(network), set(folded))
    _same_norms(fused, reference, folded, next(probes(description)))
    check_usable(copy.deepcopy(fused) if copyable else fused, description, copyable, train=False)
    return Facts(len(description.foldable), len(set(folded) & set(description.foldable)))


def check_plan(model: nn.Module, example_input: Any, folded: set[str]) -> None:
    """Raise unless `plan_fusion` names the norms that `fuse` folded."""
    with policy():
        planned = {fusion.layer for fusion in plan_fusion(model, example_input) if fusion.reason is None}
    if planned != folded:
        raise WrongError(f"plan_fusion and fuse disagree about {sorted(planned ^ folded)}")


def _is_folded(name: str, reference: nn.Module, fused: nn.Module) -> bool:
    if not isinstance(getattr(reference.get_submodule(name), "running_mean", None), Tensor):
        return False
    try:
        return getattr(fused.get_submodule(name), "running_mean", None) is None
    except AttributeError:
        return True


def _same_norms(fused: nn.Module, reference: nn.Module, names: list[str], arguments: tuple[Any, ...]) -> None:
    """Raise unless the replacement of each folded norm returns the same as the norm."""
    expected = _outputs(reference, names, arguments)
    for name, found in _outputs(fused, names, arguments).items():
        if len(found) == len(expected[name]):
            check_equal(found, expected[name], shaken_outputs(reference, name, arguments), f"the norm {name}")


def shaken_outputs(model: nn.Module, name: str, arguments: tuple[Any, ...]) -> Any:
    """As `shaken`, for layers in the network."""
    seen: list[Tensor] = []

    def noise() -> list[Tensor]:
        handle = model.get_submodule(name).register_forward_hook(lambda m, args, y: seen.append(y.detach().clone()))
        shaken(model, arguments)()
        handle.remove()
        return seen

    return noise


def _outputs(model: nn.Module, names: list[str], arguments: tuple[Any, ...]) -> dict[str, list[Tensor]]:
    """Outputs of each of these layers, in order of calls."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = []
    for name in names:
        try:
            layer = model.get_submodule(name)
        except AttributeError:
            continue

        def note(module: nn.Module, args: Any, y: Tensor, name: str = name) -> None:
            seen[name].append(y.detach().clone())  # a copy, since an in-place activation may follow

        handles.append(layer.register_forward_hook(note))
    with torch.no_grad():
        run(model, arguments)
    for handle in handles:
        handle.remove()
    return seen
