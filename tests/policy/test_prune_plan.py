"""Pruning: the plan, calls of the model, refusals, and the proof."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syncbn
from syncbn.policy.proof import Difference, Rehearsal
from tests.policy.pruned import Net
from tests.policy.strangers import images, seeded


def test_the_plan_names_what_goes_and_what_holds() -> None:
    net = seeded(lambda: nn.Sequential(Net(F.relu), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Softmax(1)))
    net[0].norm.weight.data = torch.tensor([3, -0.1, 5, 0.2, 4, 2, -0.3, 1], dtype=torch.float64)
    first, second = syncbn.plan_prune(net, 0.4, images())
    assert (first.layer, first.channels, first.removed, first.held) == ("0.norm", 8, (1, 3, 6), {})
    assert (second.layer, second.removed) == ("2", ())
    assert second.held == dict.fromkeys(range(6), "_softmax in 3")
    assert syncbn.plan_prune(net, 0.0, images())[0].removed == ()


def test_lists_dictionaries_and_call_functions() -> None:
    net = seeded(Net)
    expected = syncbn.plan_prune(net, 0.5, images())
    for example in ((images(),), {"x": images()}):
        assert syncbn.plan_prune(net, 0.5, example) == expected
    call = lambda model, batch: model(batch["image"])  # noqa: E731
    assert syncbn.plan_prune(net, 0.5, {"image": images()}, forward=call) == expected
    pruned = syncbn.prune(net, 0.5, {"image": images()}, forward=call)
    cost = syncbn.policy.cost_of(pruned, {"image": images()}, forward=call)
    assert cost.flops < syncbn.policy.cost_of(net, images()).flops


def test_what_cannot_be_looked_into_is_refused() -> None:
    net = seeded(Net)
    for model in (
        torch.compile(net),
        nn.DataParallel(net),
        torch.jit.script(nn.Sequential(net.conv, net.norm, net.out)),
    ):
        for policy in (syncbn.prune, syncbn.plan_prune):
            with pytest.raises(ValueError, match=r"syncbn\.prune\(model") as caught:
                policy(model, 0.5, images())
            assert "\n" not in str(caught.value)


def test_scripted_parts_stay_whole() -> None:
    part = torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()).double())

    class Scripted(Net):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.norm2 = part, nn.BatchNorm2d(8)

        def between(self, x: Tensor) -> Tensor:
            return F.relu(self.norm2(self.part(F.relu(x))))

    first, second = syncbn.plan_prune(seeded(Scripted), 0.5, images())
    assert len(first.held) == len(second.held) == 8


# --- the proof ------------------------------------------------------------------------------------------------------


def test_a_fault_is_found_and_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat softmax as a function of each channel: the proof finds and names it."""
    from syncbn.policy.pruning import rules

    monkeypatch.setitem(rules._RULES, "_softmax", rules.positions.over_last(0))
    net = seeded(lambda: Net(lambda x: x.softmax(1)))
    (step,) = syncbn.plan_prune(net, 0.5, images())
    assert len(step.held) == 8
    assert all("_softmax" in reason or "convolution in out" in reason for reason in step.held.values())


def test_a_fault_that_no_channel_explains_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from syncbn.policy.pruning.shrink import Removal

    right = Removal.shrink

    def wrong(self: Any, model: nn.Module) -> None:
        right(self, model)
        model.out.bias.data[0] += 1

    monkeypatch.setattr(Removal, "shrink", wrong)
    net = seeded(Net)
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"no channel can be removed|pruning would change what this model computes"):
        syncbn.prune(net, 0.5, images())
    torch.testing.assert_close(net.state_dict(), state, rtol=0, atol=0)


def test_memory_whose_size_follows_that_of_channels_is_not_to_blame() -> None:
    """Circular padding makes an empty tensor of its input's size; the later view of a fixed size fails."""

    class Circular(Net):
        def __init__(self) -> None:
            super().__init__()
            self.round, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(8)

        def between(self, x: Tensor) -> Tensor:
            y = F.relu(self.norm2(self.round(F.relu(x))))
            return y.view(y.shape[0], 4, 2, *y.shape[2:]).flatten(1, 2)

    first, second = syncbn.plan_prune(seeded(Circular), 0.5, images())
    assert len(first.removed) > 0
    assert first.held == {}
    assert all("view" in reason for reason in second.held.values())
    assert len(second.held) == 8


def test_rounding_that_a_network_magnifies_is_no_difference() -> None:
    """The same sums in another order: their rounding shows, and isn't one; a wrong bias is found."""

    class Magnifies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(1e8 * self.fc(x))

    torch.manual_seed(0)
    net, x = Magnifies(), torch.randn(5, 64, dtype=torch.float64)
    weight, bias = net.fc.weight.detach(), net.fc.bias.detach()
    rehearsal = Rehearsal(net, [x], None, 1e-9)
    halves = x[:, :32] @ weight[:, :32].t() + (x[:, 32:] @ weight[:, 32:].t() + bias)
    with pytest.raises(Difference):
        rehearsal.compare(torch.sin(1e8 * halves), rehearsal.run(net, x), "in another order")
    rehearsal.compare_with(net, torch.sin(1e8 * halves), x, "in another order")
    with pytest.raises(Difference, match="off by a bias"):
        rehearsal.compare_with(net, torch.sin(1e8 * (halves + 1e-12)), x, "off by a bias")


class _WithMore(nn.Module):
    """A network with a branch for inputs of another kind, and a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Net()
        self.other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
        self.spare = nn.Parameter(torch.ones(4))
        self.again = self.body

    def forward(self, x: Tensor, other: bool = False) -> Tensor:
        return self.other(x) if other else self.again(x)


def test_modules_that_the_example_does_not_reach_are_named() -> None:
    net = seeded(_WithMore)
    with pytest.warns(UserWarning, match="doesn't reach other: their sizes stay"):
        pruned = syncbn.prune(net, 0.5, images())
    assert len(pruned.body.norm.weight) < len(net.body.norm.weight)
    assert pruned.again is pruned.body
    torch.testing.assert_close(pruned(images(), other=True), net(images(), other=True))

    def both(model: nn.Module, x: Tensor) -> Any:
        return model(x), model(x, other=True)

    syncbn.prune(net, 0.5, images(), forward=both)
