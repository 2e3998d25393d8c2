"""Helpers shared by the oracles: comparison of results, and checks that a network is still usable."""

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
    """A policy's result is wrong."""


def run(model: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Run a network without gradients, with a fixed seed for dropout; returns all its tensors."""
    torch.manual_seed(0)
    with torch.no_grad():
        return [t.detach().clone() for t in tensors_of(model(*arguments))]


def example(network: Network) -> Any:
    """Example input in the policies' form."""
    return network.example_input[0] if len(network.example_input) == 1 else network.example_input


def probes(description: Description) -> Iterator[tuple[Any, ...]]:
    """Arguments of several sizes and scales, which reach both sides of activations."""
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
        found: result of the network to judge.
        expected: result of the reference.
        noise: result of the reference after a relative change of 1e-12 of each parameter, another one each time;
            differences larger than ten times its effect can't be rounding.
        what: description of the comparison, for the message.
        scale: scale of relative differences; each tensor's largest value when None.
    """
    if [t.shape for t in found] != [t.shape for t in expected]:
        raise WrongError(f"{what}: shapes {[tuple(t.shape) for t in found]} != {[tuple(t.shape) for t in expected]}")
    worst = largest_difference(found, expected, scale)
    if not worst <= TOLERANCE:
        rounding = max(largest_difference(noise(), expected, scale) for _ in range(3))
        if not worst <= 10 * rounding:
            raise WrongError(f"{what}: relative difference {worst:.1e}")


def largest_difference(found: list[Tensor], expected: list[Tensor], largest: float | None = None) -> float:
    """Largest difference of two values, relative to the largest of the tensor, or to `largest`."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if b.numel() and b.is_floating_point():
            scale = (float(b.abs().max()) if largest is None else largest) + 1e-12
            difference = float((a - b).abs().max()) / scale
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def shaken(model: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], list[Tensor]]:
    """Result of a network with parameters changed by a relative 1e-12."""
    generator = torch.Generator().manual_seed(0)

    def noise() -> list[Tensor]:
        before = {p: p.detach().clone() for p in model.parameters()}
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
    """Raise unless two networks return the same for all probes, and for the example repeatedly."""
    for arguments in probes(description):
        expected = run(reference, arguments)
        check_equal(run(found, arguments), expected, shaken(reference, arguments), what)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Snapshot of everything that a policy that returns a copy must not change."""
    state = {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
    modules = {name: (type(m), m.training, number_of_hooks(m)) for name, m in model.named_modules()}
    return {"state": state, "modules": modules}


def check_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    """Raise if a network differs from its `snapshot`."""
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
    """Number of hooks of any kind of a module."""
    return sum(len(value) for name, value in vars(module).items() if name.endswith("_hooks") and value is not None)


def check_usable(model: nn.Module, description: Description, copyable: bool, train: bool) -> None:
    """Use a network as people would; any exception is a crash.

    Args:
        model: result of a policy.
        description: description of the network, for its arguments.
        copyable: whether the original can be copied; some hooks of torch prevent it.
        train: whether to train, or only to run backward in evaluation.
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
    """Whether a network can be deep-copied and the copy trained; copies of scripted modules can't."""
    try:
        return all(parameter.is_leaf for parameter in copy.deepcopy(model).parameters())
    except RuntimeError:
        return False


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings, by which policies list what they skip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
