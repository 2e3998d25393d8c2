"""What the oracles share: comparing results, and finding out whether a network can still be used."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.networks.generate import Description, Network
from tests.networks.outputs import tensors_of

TOLERANCE = 1e-9  # relative to the largest value


class WrongError(Exception):
    """A policy's result isn't the right one."""


def run(model: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Every tensor that a network returns, without gradients; dropout is the same for each network."""
    torch.manual_seed(0)
    with torch.no_grad():
        return [t.detach().clone() for t in tensors_of(model(*arguments))]


def example(network: Network) -> Any:
    """The example input as the policies take it."""
    return network.example_input[0] if len(network.example_input) == 1 else network.example_input


def probes(description: Description) -> Iterator[tuple[Any, ...]]:
    """Arguments of several sizes and scales, so that activations are on both of their sides."""
    for seed, batch, scale in ((1, 3, 1.0), (2, 2, 20.0), (3, 4, 0.1)):
        yield description.arguments(100 + seed, batch, scale)


def check_equal(
    found: list[Tensor],
    expected: list[Tensor],
    noise: Callable[[], list[Tensor]],
    what: str,
    scale: float | None = None,
) -> None:
    """Raise unless the tensors are equal to TOLERANCE.

    Args:
        found: of the network to judge.
        expected: of the reference.
        noise: what the reference returns after a relative change of 1e-12 of each parameter; a larger difference than
            ten times the one it makes can't be rounding.
        what: what was compared, for the message.
        scale: what differences are relative to; each tensor's largest value when None.
    """
    if [t.shape for t in found] != [t.shape for t in expected]:
        raise WrongError(f"{what}: shapes {[tuple(t.shape) for t in found]} != {[tuple(t.shape) for t in expected]}")
    worst = largest_difference(found, expected, scale)
    if not worst <= TOLERANCE:
        rounding = largest_difference(noise(), expected, scale)
        if not worst <= 10 * rounding:
            raise WrongError(f"{what}: relative difference {worst:.1e}")


def largest_difference(found: list[Tensor], expected: list[Tensor], largest: float | None = None) -> float:
    """The largest difference of any two values, relative to the largest of the tensor, or to `largest`."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if b.numel() and b.is_floating_point():
            scale = (float(b.abs().max()) if largest is None else largest) + 1e-12
            difference = float((a - b).abs().max()) / scale
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def shaken(model: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], list[Tensor]]:
    """What a network returns when its parameters are off by 1e-12."""

    def noise() -> list[Tensor]:
        before = {p: p.detach().clone() for p in model.parameters()}
        generator = torch.Generator().manual_seed(0)
        try:
            with torch.no_grad():
                for p in before:
                    p.mul_(1 + 1e-12 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
            return run(model, arguments)
        finally:
            with torch.no_grad():
                for p, value in before.items():
                    p.copy_(value)

    return noise


def same_results(found: nn.Module, reference: nn.Module, description: Description, what: str) -> None:
    """Raise unless two networks return the same for all probes, and for the example again and again."""
    for arguments in probes(description):
        expected = run(reference, arguments)
        check_equal(run(found, arguments), expected, shaken(reference, arguments), what)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """What a policy that returns a copy has to leave alone."""
    state = {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
    modules = {name: (type(m), m.training, number_of_hooks(m)) for name, m in model.named_modules()}
    return {"state": state, "modules": modules}


def check_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    """Raise if a network isn't what `snapshot` saw."""
    now = snapshot(model)
    if now["modules"] != before["modules"]:
        changed = [name for name, facts in before["modules"].items() if now["modules"].get(name) != facts]
        raise WrongError(f"the original's modules have changed: {changed}")
    same = now["state"].keys() == before["state"].keys() and all(
        torch.equal(now["state"][name], value) for name, value in before["state"].items()
    )
    if not same:
        raise WrongError("the original's parameters or buffers have changed")


def number_of_hooks(module: nn.Module) -> int:
    """How many hooks of any kind a module has."""
    return sum(len(value) for name, value in vars(module).items() if name.endswith("_hooks") and value is not None)


def check_usable(model: nn.Module, description: Description, copyable: bool, train: bool) -> None:
    """Let a network do what people do next; whatever it raises is a crash.

    Args:
        model: what a policy returned.
        description: for its arguments.
        copyable: whether the original can be copied; some hooks of torch don't allow it.
        train: whether to train, or to go backward in evaluation only.
    """
    evaluated = run(model.eval(), description.arguments(7, 2))
    if copyable:
        twin = copy.deepcopy(model)
        twin.load_state_dict(copy.deepcopy(model.state_dict()))
        if largest_difference(run(twin, description.arguments(7, 2)), evaluated) > 0:
            raise WrongError("a copy with the same state_dict returns something else")
    optimizer = torch.optim.SGD([*model.parameters(), torch.zeros(1)], lr=1e-3)  # there may be no parameters
    for _ in range(2):
        model.train(train)
        optimizer.zero_grad()
        loss = sum(t.tanh().sum() for t in tensors_of(model(*description.arguments(8, 3))))
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.backward()
            optimizer.step()
    run(model.eval(), description.arguments(9, 4))


def is_copyable(model: nn.Module) -> bool:
    """Whether deepcopy accepts a network, and the copy can be trained; that of a scripted module can't."""
    try:
        return all(parameter.is_leaf for parameter in copy.deepcopy(model).parameters())
    except RuntimeError:
        return False


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings are the policies' way to list what they leave."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
