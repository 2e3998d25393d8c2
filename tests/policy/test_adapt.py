"""Adaptation against the definitions: statistics of the domain, of the batch, and the gradient of the entropy."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import syncbn
from syncbn.policy import Tent, use_batch_statistics, use_running_statistics
from tests.policy.nets import TwoStages, images, seeded
from tests.ranks import Ranks


def by_batch_statistics(net: TwoStages, affine: list[Tensor], x: Tensor) -> Tensor:
    """Logits when norms use batch statistics, by functional operations; affine is γ1 β1 γ2 β2."""
    y = F.conv2d(x, net.stem[0].weight, net.stem[0].bias)
    y = F.batch_norm(y, None, None, affine[0], affine[1], training=True).relu()
    y = F.conv2d(y, net.body[0].weight)
    y = F.batch_norm(y, None, None, affine[2], affine[3], training=True).relu()
    return F.linear(y.mean((2, 3)), net.head.weight, net.head.bias)


def affine_of(net: TwoStages) -> list[Tensor]:
    return [p.detach().clone() for layer in (net.stem[1], net.body[1]) for p in (layer.weight, layer.bias)]


def tent_by_definition(
    net: TwoStages, batches: list[Tensor], lr: float, steps: int
) -> tuple[list[Tensor], list[Tensor]]:
    """γ and β after Tent, and the logits that it predicts."""
    affine = [p.requires_grad_() for p in affine_of(net)]
    optimizer = torch.optim.Adam(affine, lr)
    predicted = []
    for x in batches:
        for step in range(steps):
            logits = by_batch_statistics(net, affine, x)
            if step == 0:
                predicted.append(logits.detach())
            optimizer.zero_grad()
            torch.distributions.Categorical(logits=logits).entropy().mean().backward(inputs=affine)
            optimizer.step()
    return [p.detach() for p in affine], predicted


NORMS = pytest.mark.parametrize("norm", [nn.BatchNorm2d, syncbn.SyncBatchNorm])


def test_adabn_takes_the_statistics_of_the_new_domain() -> None:
    net, twin = seeded(TwoStages), seeded(TwoStages)
    domain = [0.4 * images(5) + 0.5, 0.4 * images(3, seed=2) + 0.5]
    assert syncbn.adapt(net, domain) is net
    syncbn.recalibrate(twin, domain)
    torch.testing.assert_close(net.state_dict(), twin.state_dict())


@NORMS
def test_batch_statistics_in_evaluation(norm: Callable[[int], nn.Module]) -> None:
    net = seeded(lambda: TwoStages(norm)).eval()
    before = copy.deepcopy(net.state_dict())
    plain = net(images(4))
    syncbn.adapt(net, method="batch")
    syncbn.adapt(net, method="batch")  # twice is once
    expected = by_batch_statistics(net, affine_of(net), images(4))
    for model in (net, copy.deepcopy(net), net.train()):
        torch.testing.assert_close(model(images(4)), expected)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)

    use_running_statistics(net)
    assert torch.equal(net.eval()(images(4)), plain)
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in net.modules())


def test_batch_statistics_of_some_layers() -> None:
    net = syncbn.freeze(seeded(TwoStages), include="stem.*").eval()
    use_batch_statistics(net)
    y = net.body[0](seeded(TwoStages).eval().stem(images(4)))
    torch.testing.assert_close(net.body[1](y), F.batch_norm(y, None, None, *affine_of(net)[2:], training=True))


@NORMS
@pytest.mark.parametrize("steps", [1, 3])
def test_tent_follows_the_gradient_of_the_entropy(norm: Callable[[int], nn.Module], steps: int) -> None:
    net = seeded(lambda: TwoStages(norm)).double().train()
    batches = [images(4, seed).double() for seed in range(3)]
    expected, predicted = tent_by_definition(net, batches, lr=0.02, steps=steps)
    before = copy.deepcopy(net)

    tent = Tent(net, lr=0.02, steps=steps)
    torch.testing.assert_close([tent(x) for x in batches], predicted)

    torch.testing.assert_close(affine_of(net), expected)
    for name in ("stem.0.weight", "head.weight", "stem.1.running_mean", "body.1.num_batches_tracked"):
        assert torch.equal(net.state_dict()[name], before.state_dict()[name]), name
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(module.training for module in net.modules())

    torch.testing.assert_close(affine_of(syncbn.adapt(before, batches, method="tent", lr=0.02, steps=steps)), expected)


def test_reset_and_episodes_go_back_to_the_start() -> None:
    net = seeded(TwoStages).double()
    original = affine_of(net)
    batches = [images(4, seed).double() for seed in range(3)]
    tent = Tent(net, lr=0.02)
    first = [tent(x) for x in batches]
    assert not torch.equal(affine_of(net)[0], original[0])
    tent.reset()
    assert all(map(torch.equal, affine_of(net), original))
    torch.testing.assert_close([tent(x) for x in batches], first)

    tent.reset()
    episodic = Tent(net, lr=0.02, episodic=True)
    for x in batches:
        torch.testing.assert_close(episodic(x), by_batch_statistics(net, original, x))
    expected, _ = tent_by_definition(seeded(TwoStages).double(), batches[-1:], lr=0.02, steps=1)
    torch.testing.assert_close(affine_of(net), expected)


def test_tent_leaves_frozen_parameters_alone() -> None:
    net = syncbn.freeze(seeded(TwoStages), stats=False, affine=True, include="stem.*")
    before = affine_of(net)
    syncbn.adapt(net, [images(4)], method="tent", lr=0.1)
    after = affine_of(net)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[2], before[2])


def adapt_on_ranks(method: str, sizes: list[list[int]]) -> dict[str, Any]:
    net = seeded(lambda: TwoStages(syncbn.SyncBatchNorm)).double()
    rank = dist.get_rank() if dist.is_initialized() else None
    batches = []
    for seed, shares in enumerate(sizes):
        x = images(sum(shares), seed).double()
        batches.append(x if rank is None else x.split(shares)[rank])
    syncbn.adapt(net, batches, method=method, **({"lr": 0.02, "steps": 2} if method == "tent" else {}))
    with torch.no_grad():
        logits = net.eval()(batches[-1])
    return {"state": dict(net.state_dict()), "logits": logits}


@pytest.mark.distributed
@pytest.mark.parametrize("method", ["adabn", "batch", "tent"])
def test_unequal_ranks_adapt_as_one_process_does(ranks: Callable[[int], Ranks], method: str) -> None:
    sizes = [[3, 1], [0, 4], [2, 5]]
    single = adapt_on_ranks(method, sizes)
    results = ranks(2).run(adapt_on_ranks, method, sizes)
    for rank in results:
        torch.testing.assert_close(rank["state"], single["state"], rtol=1e-9, atol=1e-11)
    logits = torch.cat([rank["logits"] for rank in results])
    torch.testing.assert_close(logits, single["logits"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "tnet"}, "did you mean 'tent'"),
        ({"method": "adabn", "lr": 1.0}, "method 'adabn' has no option 'lr'"),
        ({"method": "tent", "momentum": 1.0}, "no option 'momentum'; allowed: lr, steps"),
        ({"method": "tent", "lr": 0.0}, "lr must be greater than 0"),
        ({"method": "tent", "steps": 0}, "steps must be at least 1"),
        ({"method": "tent", "batches": None}, "needs batches"),
        ({"method": "tent", "batches": []}, "there are no batches"),
    ],
)
def test_a_mistake_says_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        syncbn.adapt(seeded(TwoStages), **{"batches": [images(4)], **options})


def test_nothing_to_adapt_is_refused() -> None:
    with pytest.raises(ValueError, match="no batch normalization layer to adapt"):
        syncbn.adapt(TwoStages(lambda channels: nn.GroupNorm(1, channels)), method="batch")
    with pytest.raises(ValueError, match="all of them are frozen"):
        syncbn.adapt(syncbn.freeze(seeded(TwoStages)), method="batch")
    with pytest.raises(ValueError, match="no layer has a trainable"):
        Tent(syncbn.freeze(seeded(TwoStages), stats=False, affine=True))


@pytest.mark.parametrize("norm", ["cross_iteration", "ghost", "batch_renorm", "learnable_momentum", "frozen"])
def test_layers_that_go_by_more_than_their_batch_are_refused(norm: str) -> None:
    net = syncbn.convert(seeded(TwoStages), norm)
    for method in ("batch", "tent"):
        with pytest.raises(ValueError, match=r"stem\.1 is a .* which doesn't normalize by its batch alone"):
            syncbn.adapt(net, [images(4)], method=method)
