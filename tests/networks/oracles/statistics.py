"""Running statistics: recalibrated, inspected and frozen, against all samples at once in float64."""

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

import syncbn
from tests.networks.generate import Network, build
from tests.networks.oracles.compare import WrongError, check_unchanged, run, same_results, snapshot
from tests.networks.oracles.convert import is_norm, same_step
from tests.networks.oracles.verdict import Facts, policy
from tests.networks.spec import Spec


def judge_recalibrate(spec: Spec) -> Facts:
    """Recalibrated statistics are the mean and unbiased variance of a layer's inputs in training mode.

    Those of instance normalization are averages of its samples' moments; a layer that never moves them keeps its own.
    """
    network, reference = _single_input(spec), _single_input(spec)
    batches = [network.description.arguments(60 + i, batch)[0] for i, batch in enumerate((4, 3))]
    with policy():
        syncbn.recalibrate(network.model, batches)
    seen = _inputs(reference, batches, train=True)
    for name, values in seen.items():
        layer = network.model.get_submodule(name)
        if values and hasattr(layer, "momentum"):
            mean, variance = _moments_of_samples(values) if isinstance(layer, _InstanceNorm) else _moments(values)
            _close(layer.running_mean, mean, f"running_mean of {name}")
            _close(layer.running_var, variance, f"running_var of {name}")
            reference.model.get_submodule(name).running_mean.copy_(mean)
            reference.model.get_submodule(name).running_var.copy_(variance)
    if [m.training for m in network.model.modules()] != [m.training for m in _single_input(spec).model.modules()]:
        raise WrongError("the modes have changed")
    same_results(network.model.eval(), reference.model.eval(), network.description, "recalibrated and by hand")
    return Facts()


def judge_inspect(spec: Spec) -> Facts:
    """Inspection measures the distances of running statistics from those of all batches, and changes nothing."""
    network, reference = _single_input(spec), _single_input(spec)
    batches = [network.description.arguments(60 + i, batch)[0] for i, batch in enumerate((4, 3))]
    before = snapshot(network.model)
    with policy():
        report = syncbn.inspect(network.model, batches)
    check_unchanged(network.model, before)
    rows = {row.layer: row for row in report.rows}
    for name, values in _inputs(reference, batches, train=False).items():
        row, layer = rows.get(name), reference.model.get_submodule(name)
        if row is None and hasattr(layer, "momentum") and not isinstance(layer, _InstanceNorm):
            raise WrongError(f"{name} isn't in the report")
        if not values or row is None:  # a norm that never updates its statistics has none
            continue
        mean, variance = _moments(values, unbiased=False)
        deviation = (variance + layer.eps).sqrt()
        ratio = (layer.running_var + layer.eps).sqrt() / deviation
        distance = (layer.running_mean - mean) / deviation
        _close(row.mean_distance, distance.square().mean().sqrt(), f"distance of {name}")
        _close(row.std_ratio, ratio.log().abs().mean().exp(), f"std_ratio of {name}")
        if row.channels != len(mean):
            raise WrongError(f"{name} has {len(mean)} channels, the report says {row.channels}")
    return Facts()


def judge_freeze(spec: Spec) -> Facts:
    """Frozen norms evaluate in training, with unchanged statistics; `unfreeze` undoes it.

    A call that passes by a layer's hooks is told when the model is saved.
    """
    network, reference = build(spec), build(spec).model
    model, description = network.model, network.description
    norms = [n for n, m in model.named_modules() if isinstance(getattr(m, "running_mean", None), Tensor)]
    without = [n for n, m in model.named_modules() if is_norm(m) and n not in norms]
    with policy():
        syncbn.freeze(model, affine=spec.seed % 2 == 0, exclude=without or None)
    frozen = norms if spec.seed % 2 else [*norms]
    try:
        same_step(model, reference, description, "frozen and original with norms in eval mode", frozen)
    except WrongError:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.state_dict()
        if any("is frozen, but its running statistics were trained" in str(warning.message) for warning in caught):
            return Facts()
        raise
    with policy():
        syncbn.unfreeze(model)
    same_step(model, reference, description, "unfrozen and original")
    return Facts()


def _single_input(spec: Spec) -> Network:
    return build(replace(spec, inputs="one"))


def _inputs(network: Network, batches: list[Tensor], train: bool) -> dict[str, list[Tensor]]:
    """Inputs of each norm with statistics, by name; the norms train or evaluate, everything else evaluates."""
    network.model.eval()
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for name, layer in network.model.named_modules():
        if (is_norm(layer) or isinstance(layer, _InstanceNorm)) and isinstance(layer.running_mean, Tensor):
            seen[name] = []
            layer.training = train

            def note(module: nn.Module, args: Any, name: str = name) -> None:
                seen[name].append(args[0].detach().clone())

            handles.append(layer.register_forward_pre_hook(note))
    for batch in batches:
        run(network.model, (batch,))
    for handle in handles:
        handle.remove()
    return seen


def _moments(values: list[Tensor], unbiased: bool = True) -> tuple[Tensor, Tensor]:
    samples = torch.cat([x.movedim(1, 0).flatten(1) for x in values], dim=1)
    return samples.mean(1), samples.var(1, unbiased=unbiased)


def _moments_of_samples(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    samples = torch.cat([torch.stack([x.flatten(2).mean(2), x.flatten(2).var(2)]) for x in values], dim=1)
    mean, variance = samples.mean(1)
    return mean, variance


def _close(found: Any, expected: Tensor, what: str) -> None:
    found = torch.as_tensor(found, dtype=torch.float64)
    difference = float((found - expected).abs().max()) / (1 + float(expected.abs().max()))
    if not difference <= 1e-9:
        raise WrongError(f"{what}: off by {difference:.1e}")
