"""Two policies on one model, in either order: their combined effect, or the second's refusal."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import syncbn
from syncbn.policy import Tent, use_running_statistics
from tests.policy.nets import TwoStages, images, seeded

Change = Callable[[nn.Module], Any]


def logits_net(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """Network from images to logits, with statistics of its data."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)
            self.norm = norm(4)
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))

    net = seeded(Net)
    for seed in range(3):
        net(images(8, seed=seed))
    return net.eval()


def statistics(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items() if "running" in key}


def adapted(net: nn.Module) -> nn.Module:
    return syncbn.adapt(net, method="batch")


def recalibrated(net: nn.Module) -> nn.Module:
    return syncbn.recalibrate(net, [images(8, seed=9)])


def normalized_by_batch(net: Any, x: Tensor) -> bool:
    y = net.conv(x)
    expected = nn.functional.batch_norm(y, None, None, net.norm.weight, net.norm.bias, training=True)
    return torch.allclose(net.norm(y), expected, atol=1e-5)


def test_recalibrating_an_adapted_model_measures_what_it_goes_back_to() -> None:
    net, plain = logits_net(), logits_net()
    recalibrated(adapted(net))
    recalibrated(plain)
    torch.testing.assert_close(statistics(net), statistics(plain))
    assert normalized_by_batch(net, images(4))
    x = images(4)
    torch.testing.assert_close(use_running_statistics(net)(x), plain(x))


def test_adapting_a_recalibrated_model_normalizes_by_the_batch() -> None:
    assert normalized_by_batch(adapted(recalibrated(logits_net())), images(4))


def test_freezing_an_adapted_layer_is_refused_and_says_what_to_do() -> None:
    net = adapted(logits_net())
    with pytest.raises(
        ValueError,
        match=r"norm normalizes by the batch it gets .*use_running_statistics\(model\) first",
    ):
        syncbn.freeze(net)
    syncbn.freeze(net, stats=False, affine=True)
    assert normalized_by_batch(net, images(4))
    syncbn.freeze(use_running_statistics(net))
    assert not normalized_by_batch(net.train(), images(4))


def test_adapting_a_frozen_layer_is_refused() -> None:
    net = syncbn.freeze(logits_net())
    with pytest.raises(ValueError, match="all of them are frozen"):
        adapted(net)
    with pytest.raises(ValueError, match=r"1 are frozen, syncbn\.unfreeze them first"):
        recalibrated(net)


def test_a_tent_whose_model_was_frozen_or_sent_back_refuses() -> None:
    net = logits_net()
    tent = Tent(net)
    tent(images(4))
    use_running_statistics(net)
    with pytest.raises(ValueError, match=r"no longer normalizes by its batch .* make a new Tent"):
        tent(images(4))
    tent = Tent(net)
    syncbn.freeze(net, stats=False, affine=True)
    with pytest.raises(ValueError, match="no longer require a gradient"):
        tent(images(4))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, syncbn.SyncBatchNorm])
def test_converting_an_adapted_model_keeps_what_it_does(norm: Callable[[int], nn.Module]) -> None:
    net = adapted(logits_net(norm))
    x = images(4)
    before = net(x)
    for name in ("sync", "batch"):
        torch.testing.assert_close(syncbn.convert(copy.deepcopy(net), name)(x), before)
    torch.testing.assert_close(syncbn.revert(syncbn.convert(net, "sync"))(x), before)


def test_an_adapted_norm_is_not_folded() -> None:
    net = adapted(logits_net())
    x = images(4)
    with pytest.warns(UserWarning, match=r"norm: it normalizes by the batch it gets \(syncbn\.adapt\)"):
        fused = syncbn.fuse(net, x)
    torch.testing.assert_close(fused(x), net(x))


def test_fusing_a_frozen_model_folds_it() -> None:
    net = syncbn.freeze(logits_net())
    x = images(4)
    fused = syncbn.fuse(net, x)
    torch.testing.assert_close(fused(x), net(x))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


def lightnings_reset(net: nn.Module) -> None:
    """Reset statistics as StochasticWeightAveraging does before recalibration."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean = torch.zeros_like(module.running_mean)
            module.running_var = torch.ones_like(module.running_var)
            module.momentum = None
            module.num_batches_tracked *= 0


def modules_reset(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()


@pytest.mark.parametrize("copied", [lambda n: n, copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, syncbn.SyncBatchNorm])
@pytest.mark.parametrize(
    "reset",
    [lambda net: update_bn([images(8, seed=5)], net), lightnings_reset, modules_reset],
    ids=["update_bn", "Lightning", "reset_running_stats"],
)
def test_frozen_statistics_stay_what_they_are(
    reset: Change, norm: Callable[[int], nn.Module], copied: Callable[[nn.Module], nn.Module]
) -> None:
    net = copied(syncbn.freeze(seeded(lambda: TwoStages(norm)), include="stem.*"))
    measured = {key: torch.rand_like(value) + 0.5 for key, value in statistics(net).items()}
    net.load_state_dict(measured, strict=False)
    net.train()(images(4))
    reset(net)
    net(images(4))
    after = statistics(net)
    frozen = [key for key in after if key.startswith("stem.")]
    assert frozen
    torch.testing.assert_close({k: after[k] for k in frozen}, {k: measured[k] for k in frozen})
    assert all(not torch.equal(after[key], measured[key]) for key in after if key not in frozen)


@pytest.mark.parametrize("smaller", [syncbn.fuse, lambda net, x: syncbn.prune(net, 0.5, x)], ids=["fuse", "prune"])
def test_a_reset_is_undone_in_what_fuse_and_prune_copy(smaller: Callable[[nn.Module, Tensor], nn.Module]) -> None:
    net, x = syncbn.freeze(logits_net()), images(4)
    expected = smaller(net, x)(x)
    modules_reset(net)
    torch.testing.assert_close(smaller(net, x)(x), expected)


def test_frozen_statistics_of_a_pruned_network_stay_what_they_are() -> None:
    pruned: Any = syncbn.prune(syncbn.freeze(logits_net()), 0.5, images(4))
    measured = pruned.norm.running_mean.clone()
    update_bn([images(8, seed=5)], pruned)
    pruned(images(4))
    assert len(measured) == 2
    assert torch.equal(pruned.norm.running_mean, measured)


def test_a_reset_is_undone_in_what_is_saved_and_a_checkpoint_is_not_a_reset() -> None:
    net = syncbn.freeze(logits_net())
    before = statistics(net)
    modules_reset(net)
    torch.testing.assert_close(statistics(net), before)
    others = {key: value + 1 for key, value in before.items()}
    net.load_state_dict({**net.state_dict(), **others})
    modules_reset(net)
    torch.testing.assert_close(statistics(net), others)
    modules_reset(syncbn.unfreeze(net))
    assert not statistics(net)["norm.running_mean"].any()


def test_statistics_switched_off_are_back_when_frozen() -> None:
    net = logits_net()
    x = images(4)
    expected = net(x)
    net.norm.track_running_stats = False
    torch.testing.assert_close(syncbn.freeze(net).train()(x), expected)
