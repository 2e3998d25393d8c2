"""The policies inside the caller's modes, and on models that have no values yet."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import syncbn
from syncbn import policy


def net() -> nn.Module:
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    second = (nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    model = nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                nn.init.normal_(tensor)
    return model


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(5, 3, 9, 9, dtype=dtype, generator=torch.Generator().manual_seed(1))


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "another default device": partial(torch.device, "meta"),
    "deterministic": deterministic,
}


def fused(model: nn.Module, x: Tensor) -> nn.Module:
    return syncbn.fuse(model, x)


def pruned(model: nn.Module, x: Tensor) -> nn.Module:
    return syncbn.prune(model, 0.5, x)


@pytest.mark.parametrize("change", [fused, pruned])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_folded_and_removed_is_the_same_in_any_mode(
    change: Callable[[nn.Module, Tensor], nn.Module], mode: str
) -> None:
    model, x = net(), images()
    expected = change(model, x)
    with MODES[mode]():
        found = change(model, x)
    assert str(found) == str(expected)
    torch.testing.assert_close(found.state_dict(), expected.state_dict())
    found.train()(images()).sum().backward()


def test_nothing_is_left_unfolded_in_inference_mode() -> None:
    with torch.inference_mode():
        plan = syncbn.plan_fusion(net(), torch.randn(2, 3, 9, 9))
    assert [step.reason for step in plan] == [None, None]


@pytest.mark.parametrize("mode", ["inference_mode", "no_grad"])
def test_tent_learns_in_a_mode_without_gradients(mode: str) -> None:
    alone, inside = net().eval(), net().eval()
    syncbn.adapt(alone, [images()], method="tent", lr=0.01)
    with MODES[mode]():
        syncbn.adapt(inside, [images().clone()], method="tent", lr=0.01)
    assert not torch.equal(alone.get_parameter("1.weight"), net().get_parameter("1.weight"))
    torch.testing.assert_close(dict(inside.named_parameters()), dict(alone.named_parameters()), rtol=0, atol=0)


def test_one_logit_has_no_entropy() -> None:
    model = nn.Sequential(net(), nn.Linear(4, 1)).eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"\(5, 1\) have one class.*pad"):
        syncbn.adapt(model, [images()], method="tent")
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    syncbn.adapt(model, [images()], method="tent", forward=lambda model, batch: nn.functional.pad(model(batch), (0, 1)))


@pytest.mark.parametrize("kind", ["meta", "lazy"])
@pytest.mark.parametrize(
    "function",
    [
        fused,
        pruned,
        syncbn.plan_fusion,
        lambda model, x: syncbn.recalibrate(model, [x]),
        lambda model, x: syncbn.adapt(model, [x]),
        lambda model, x: syncbn.inspect(model, [x]),
        syncbn.verify,
    ],
    ids=["fuse", "prune", "plan_fusion", "recalibrate", "adapt", "inspect", "verify"],
)
def test_a_model_without_values_is_refused(function: Callable[..., Any], kind: str) -> None:
    with torch.device("meta"):
        model = net()
    if kind == "lazy":
        model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match=r"weight (is on the meta device|has no shape yet)"):
        function(model, images())


@pytest.mark.parametrize("function", [fused, pruned, policy.cost_of])
def test_a_batch_with_labels_is_no_example(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="of a batch \\(images, labels\\) give the images"):
        function(net(), (images(), torch.zeros(5)))
    with pytest.raises(TypeError, match="a dict its keywords"):
        function(net(), {"image": images()})


def test_steps_of_a_training_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        syncbn.inspect(net(), steps=0)
