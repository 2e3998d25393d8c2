"""Checks of each conversion and policy on a network."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import syncbn
from tests.networks.oracles.compare import WrongError, check_unchanged, snapshot
from tests.networks.oracles.prune import check_sizes, tell_scales_apart, zero_removed
from tests.networks.oracles.verdict import Facts, policy
from tests.zoo.specimen import Specimen, followers, hooked, moments

Check = Callable[[Specimen], Facts]


def sync(s: Specimen) -> Facts:
    """In one process, outputs and a training step are unchanged."""
    converted = _converted(s, "sync")
    s.same(converted, s.base, "converted to sync")
    s.same_step(converted, s.copy(), "converted to sync")
    return Facts()


def batch(s: Specimen) -> Facts:
    """With our plain batch norms, outputs and a training step are unchanged."""
    converted = _converted(s, "batch")
    s.same(converted, s.base, "converted to batch")
    s.same_step(converted, s.copy(), "converted to batch")
    return Facts()


def plain(s: Specimen) -> Facts:
    """With torch's own norms again, outputs and a training step are unchanged.

    From our synchronized norms, and from torch's SyncBatchNorm, whose dimensions only a forward pass tells.
    """
    models = {"our SyncBatchNorm": _converted(s, "sync")}
    if {type(layer) for layer in s.norms(s.base).values()} <= {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}:
        models["torch's SyncBatchNorm"] = nn.SyncBatchNorm.convert_sync_batchnorm(s.copy())
    for name, model in models.items():
        with policy():
            converted = syncbn.convert(model, "torch", example_input=s.x, forward=s.forward)
        if _classes(converted) != _classes(s.base):
            raise WrongError(f"{name} converted to torch doesn't give the layers back")
        s.same(converted, s.base, f"{name} converted to torch")
        s.same_step(converted, s.copy(), f"{name} converted to torch")
    return Facts()


def group(s: Specimen) -> Facts:
    """Group norms train, and reverting restores the network."""
    converted = _converted(s, "group")
    _trains(s, converted)
    _reverted(s, converted)
    return Facts()


def cross_iteration(s: Specimen) -> Facts:
    """During burn-in a step is unchanged; with a window it trains."""
    converted = _converted(s, "cross_iteration", burn_in=1000, example_input=s.x, forward=s.forward)
    s.same(converted, s.base, "converted to cross_iteration")
    s.same_step(converted, s.copy(), "burning in")
    windowed = _converted(s, "cross_iteration", window=3, burn_in=0, example_input=s.x, forward=s.forward)
    _trains(s, windowed)
    _reverted(s, windowed)
    return Facts()


def frozen(s: Specimen) -> Facts:
    """Norms evaluate in any mode."""
    converted = _converted(s, "frozen")
    s.same(converted, s.base, "converted to frozen")
    s.same_step(converted, s.copy(), "converted to frozen", tuple(s.norms(s.base)), whole=False)
    return Facts()


def revert(s: Specimen) -> Facts:
    """The old classes are restored, with the state after a training step of the new layers."""
    converted, expected = _converted(s, "sync"), s.copy()
    s.step(converted)
    s.step(expected)
    with policy():
        reverted = syncbn.revert(converted)
    if _classes(reverted) != _classes(s.base):
        raise WrongError("reverting doesn't give the layers back")
    s.same(reverted, expected, "reverted after a step")
    return Facts()


def state_dict(s: Specimen) -> Facts:
    """State dicts of the network and of the converted one load into each other, strictly."""
    converted, other = _converted(s, "sync"), s.copy()
    s.step(converted)
    if list(converted.state_dict()) != list(s.base.state_dict()):
        raise WrongError("other keys")
    other.load_state_dict(converted.state_dict())
    s.same(other, converted, "the state_dict of the converted network")
    converted.load_state_dict(s.base.state_dict())
    s.same(converted, s.base, "the network's own state_dict")
    return Facts()


def fuse(s: Specimen) -> Facts:
    """The result equals the network's evaluation; counts folded norms after a convolution or linear layer."""
    model, before = s.copy(), snapshot(s.base)
    with policy():
        fused = syncbn.fuse(model, s.x, forward=s.forward)
    check_unchanged(model, before)
    s.same(fused, s.base, "fused")
    left, following = s.norms(fused), followers(s.copy(), s.run)
    return Facts(len(following), len(following - left.keys()))


def prune(s: Specimen) -> Facts:
    """The result equals the network with γ and β of the removed channels set to 0, and is trainable."""
    model = s.copy()
    tell_scales_apart(model)
    silent, before = copy.deepcopy(model), snapshot(model)
    with policy():
        pruned = syncbn.prune(model, 0.3, s.x, forward=s.forward)
    check_unchanged(model, before)
    zero_removed(silent, pruned)
    s.same(pruned, silent, "pruned and with γ = β = 0")
    check_sizes(pruned)
    _trains(s, pruned)
    widths = [sum(len(norm.running_mean) for norm in s.norms(m).values()) for m in (model, pruned)]
    return Facts(widths[0], widths[0] - widths[1])


def freeze(s: Specimen) -> Facts:
    """Frozen norms evaluate in training; unfrozen ones train as before."""
    model = s.copy()
    with policy():
        syncbn.freeze(model)
    s.same_step(model, s.copy(), "frozen", tuple(s.norms(s.base)))
    model.load_state_dict(s.base.state_dict())
    with policy():
        syncbn.unfreeze(model)
    s.same_step(model, s.copy(), "unfrozen")
    return Facts()


def recalibrate(s: Specimen) -> Facts:
    """Running statistics are the mean and unbiased variance of each norm's input while the norms train."""
    model = s.copy()
    with policy():
        syncbn.recalibrate(model, [s.x], forward=s.forward)
    for name, (mean, var) in _seen(s, train=True).items():
        layer = model.get_submodule(name)
        s.compare([layer.running_mean, layer.running_var], [mean, var], f"statistics of {name}", float(var.max()) + 1)
    return Facts()


def inspect(s: Specimen) -> Facts:
    """Nothing changes; the distance of each norm's statistics from the batch's is correct."""
    model, before = s.copy(), snapshot(s.base)
    with policy():
        report = syncbn.inspect(model, [s.x], forward=s.forward)
    check_unchanged(model, before)
    rows = {row.layer: row for row in report.rows}
    for name, (mean, var) in _seen(s, train=False).items():
        layer: Any = model.get_submodule(name)
        distance = ((layer.running_mean - mean) / (var + layer.eps).sqrt()).square().mean().sqrt()
        if rows[name].channels != len(mean):
            raise WrongError(f"the report says that {name} has {rows[name].channels} channels")
        s.compare([torch.as_tensor(rows[name].mean_distance)], [distance], f"distance of {name}", float(distance) + 1)
    return Facts()


def verify(s: Specimen) -> Facts:
    """Two ranks with synchronized norms equal one process.

    Of two and four samples: torch's gradients for a batch of one aren't always those of a sample in a larger batch
    (timm's efficientvit_m0 in float64 is off by 0.7, without any norm of ours).
    """
    model = s.made()  # libraries put hooks on a network that has run, which no other process can be given
    with policy():
        model = syncbn.convert(model, "sync").train()
        report = syncbn.verify(model, torch.cat([s.x, -s.x[:2]]), forward=s.features, timeout_s=600)
    if not report:
        raise WrongError(str(report))
    return Facts()


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        sync,
        batch,
        group,
        cross_iteration,
        frozen,
        plain,
        revert,
        state_dict,
        fuse,
        prune,
        freeze,
        recalibrate,
        inspect,
        verify,
    )
}


def _converted(s: Specimen, name: str, **options: Any) -> nn.Module:
    with policy():
        return syncbn.convert(s.copy(), name, **options)


def _classes(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules()]


def _trains(s: Specimen, model: nn.Module) -> None:
    """Raise unless two training steps and an evaluation after them work, with finite numbers."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(2):
        for part in s.step(model).values():
            if not all(bool(t.isfinite().all()) for t in part.values()):
                raise WrongError("training gives numbers that aren't finite")
        optimizer.step()
    s.run(model.eval())


def _reverted(s: Specimen, converted: nn.Module) -> None:
    with policy():
        reverted = syncbn.revert(converted)
    if _classes(reverted) != _classes(s.base):
        raise WrongError("reverting doesn't give the layers back")
    s.run(reverted.eval())


def _seen(s: Specimen, train: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """Moments of each norm's input, if it is called once; the norms train or evaluate, everything else evaluates."""
    model, seen = s.copy().eval(), {}
    calls: dict[str, int] = {}

    def note(name: str, layer: nn.Module, args: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        seen[name] = moments(args[0], unbiased=train)

    norms = s.norms(model)
    for layer in norms.values():
        layer.train(train)
    with hooked(norms, note, before=True, named=True):
        s.run(model)
    return {name: found for name, found in seen.items() if calls[name] == 1}
