"""Which convolution a cross-iteration BN is attached to, and why some layers go without."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import syncbn
from syncbn.norm import CrossIterationBatchNorm
from tests.norm.test_cross_iteration import pair, slots_of, train


class Awkward(nn.Module):
    """A module with all ways in which a norm lacks its own convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.good_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.shared, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.functional, self.after_functional = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.after_sum, self.at_input, self.after_pool = (nn.BatchNorm2d(3) for _ in range(3))
        self.twice_conv, self.twice = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.pool, self.unused = nn.MaxPool2d(1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.good_norm(self.good(self.at_input(x)))
        x = self.second(self.shared(self.first(self.shared(x))))
        x = self.after_functional(nn.functional.conv2d(x, self.functional.weight))
        x = self.after_pool(self.pool(self.after_sum(x + 1)))
        return self.twice(self.twice(self.twice_conv(x)))


@pytest.mark.parametrize("by_forward", [False, True])
def test_convert_attaches_what_it_can_and_lists_the_rest_with_the_reason(by_forward: bool) -> None:
    example = {"example_input": torch.randn(2, 3, 4, 4)} if by_forward else {}
    with pytest.warns(UserWarning, match="go without a convolution|doesn't reach") as caught:
        model = syncbn.convert(Awkward(), "cross_iteration", window=4, **example)
    said, *others = [str(warning.message) for warning in caught]
    assert said.startswith("8 of 9 layers go without a convolution")
    assert [other.split(":")[0] for other in others] == ["example_input doesn't reach unused"] * by_forward
    reasons = {
        "at_input": "no module's output" if by_forward else "the model's input",
        "first": "the Conv2d before it is called 2 times",
        "second": "the Conv2d before it is called 2 times",
        "after_functional": "no module's output" if by_forward else "conv2d()",
        "after_sum": "no module's output" if by_forward else "add()",
        "after_pool": "comes from a MaxPool2d",
        "twice": "it is called 2 times",
        "unused": "it is called 0 times",
    }
    for name, reason in reasons.items():
        (entry,) = [part for part in said.split("; ") if f"{name}: " in part]
        assert reason in entry
    assert "no window since" in repr(model.after_sum)
    for _ in range(2):
        model(torch.randn(2, 3, 4, 4)).sum().backward()
    assert slots_of(model.good_norm) == 2
    assert slots_of(model.after_sum) == 0


class _OtherInTraining(nn.Module):
    """Has a dropout between a convolution and its norm, and a norm that evaluation skips before one that it doesn't."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dropout, self.dropped = nn.Conv2d(3, 4, 1), nn.Dropout2d(0.2), nn.BatchNorm2d(4)
        self.second, self.skipped, self.after = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.third, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.dropped(self.dropout(self.first(x))))
        return self.last(self.third(self.after(self.skipped(x) if self.training else x)))


def test_layers_are_attached_as_training_calls_them() -> None:
    with pytest.warns(UserWarning, match="go without a convolution|doesn't reach skipped") as caught:
        model = syncbn.convert(_OtherInTraining(), "cross_iteration", window=4, example_input=torch.randn(2, 3, 4, 4))
    assert re.search(r"^2 of 4 .*: dropped: its input comes .*; after: its input comes from a", str(caught[0].message))
    for _ in range(2):
        model(torch.randn(2, 3, 4, 4)).sum().backward()
    assert [slots_of(layer) for layer in (model.skipped, model.last, model.dropped)] == [2, 2, 0]


def test_a_model_that_cannot_be_traced_needs_an_example() -> None:
    class Branches(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    def fresh() -> nn.Module:
        return Branches(nn.Conv2d(3, 4, 1), nn.Identity(), nn.BatchNorm2d(4)).eval()

    with pytest.raises(ValueError, match="example_input"):
        syncbn.convert(model := fresh(), "cross_iteration")
    assert type(model[2]) is nn.BatchNorm2d, "a refused conversion leaves the model as it was"
    converted = syncbn.convert(fresh(), "cross_iteration", example_input=torch.ones(1, 3, 2, 2))
    assert not converted.training
    converted.train()(torch.ones(2, 3, 2, 2))


def test_revert_and_reconversion_leave_no_hook() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    syncbn.convert(model, "cross_iteration", window=2)
    syncbn.convert(model, "cross_iteration", window=3)
    assert len(model[0]._forward_hooks) == 1
    train(model, range(3))
    syncbn.convert(model, "sync")
    assert len(model[0]._forward_hooks) == 0
    syncbn.convert(model, "cross_iteration")
    assert type(syncbn.revert(model)[1]) is nn.BatchNorm2d
    assert len(model[0]._forward_hooks) == 0


BAD = [
    (lambda: CrossIterationBatchNorm(4, window=0), ValueError, "window must be at least 1, got 0"),
    (lambda: CrossIterationBatchNorm(4, window=2.0), TypeError, "window must be an int"),
    (lambda: CrossIterationBatchNorm(4, burn_in=-1), ValueError, "burn_in must be at least 0"),
    (lambda: CrossIterationBatchNorm(4)(torch.randn(2, 4, 3, 3)), ValueError, "norm.attach"),
    (lambda: CrossIterationBatchNorm(4).attach(nn.ReLU()), TypeError, "Conv2d.*got ReLU"),
    (lambda: CrossIterationBatchNorm(4).attach(nn.Conv2d(3, 5, 1)), ValueError, "normalizes 4 channels"),
    (lambda: pair(nn.Conv2d(3, 4, 1))[1](torch.randn(2, 4, 3, 3)), ValueError, "isn't what the attached layer"),
    (
        lambda: pair(nn.Conv2d(3, 4, 1))[1](torch.randn(2, 4, 3, 3), torch.ones(2, 3, 3, dtype=torch.bool)),
        NotImplementedError,
        "no mask",
    ),
    (lambda: pair(nn.Linear(3, 4))[0](torch.randn(2, 4, 3)), ValueError, r"takes \(N, C\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_mistakes_are_named(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
