"""Measures against independent computations."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.distributed as dist
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn

import syncbn
from science.measures.federated import KeepLocal
from science.measures.landscape import walk
from science.measures.mixture import mix_statistics
from science.measures.samples import frechet
from science.measures.slimming import prune_at_random
from science.measures.steps import ValidationCurve
from science.measures.sync_every import Messages, SyncEvery
from science.measures.training import fit
from syncbn.launch.world import World
from syncbn.models.cnn import CNN
from syncbn.run.compose import config_of
from tests.data.fashion_mnist import needs_fashion_mnist
from tests.ranks import Ranks
from tests.training import fits

TINY = (
    *("experiment=cnn_fashion", "model.width=4", "data.small=64", "data.batch_size=4", "trainer.max_epochs=1"),
    *("callbacks=none", "~logger", "trainer.enable_progress_bar=false", "trainer.limit_val_batches=0"),
    *("trainer.accelerator=cpu", "trainer.limit_train_batches=6", "threads=1"),
)


def test_frechet_distances_are_those_of_a_matrix_root() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(200, 5)), generator.normal(size=(300, 5)) @ generator.normal(size=(5, 5)) + 1
    of_a, of_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(of_a @ of_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(of_a + of_b - 2 * root)
    found = frechet(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(expected, rel=1e-9)
    assert frechet(torch.from_numpy(a), torch.from_numpy(a)) == pytest.approx(0, abs=1e-6)


def test_frechet_distances_of_degenerate_samples_are_finite() -> None:
    """A generator that has collapsed makes one image: covariance 0."""
    same, other = torch.ones(50, 3), torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    expected = float((other.double().mean(0) - 1).square().sum() + torch.cov(other.double().T).trace())
    assert frechet(same, other) == pytest.approx(expected)


@pytest.mark.parametrize("norm", ["batch", "sync"])
@pytest.mark.parametrize(("images", "prior"), [(1, 16.0), (4, 16.0), (8, 0.0)])
def test_mixed_statistics_are_weighted_by_images(norm: str, images: int, prior: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), syncbn.norm_layer(norm)(3))
    layer: Any = net[1]
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    layer.weight.data.normal_()
    net.requires_grad_(False)
    before = [layer.running_mean.clone(), layer.running_var.clone()]
    x = torch.randn(images, 1, 6, 6)
    found = mix_statistics(net, prior)(x)
    h, share = net[0](x), prior / (prior + images)
    mean = share * before[0] + (1 - share) * h.mean((0, 2, 3))
    var = share * before[1] + (1 - share) * h.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(found, F.batch_norm(h, mean, var, layer.weight, layer.bias))
    torch.testing.assert_close([layer.running_mean, layer.running_var], before, rtol=0, atol=0)


def test_channels_picked_at_random_leave_the_rest_as_it_was() -> None:
    torch.manual_seed(0)
    net, x = CNN("batch", width=8).eval(), torch.randn(2, 1, 28, 28)
    for layer in net.norms:
        nn.init.uniform_(layer.weight, 0.5, 1)
    by_seed = [prune_at_random(net, 0.5, x, seed) for seed in (0, 0, 1)]
    kept = [[set(layer.weight.tolist()) for layer in each.norms] for each in by_seed]
    assert kept[0] == kept[1] != kept[2]
    whole = [set(layer.weight.tolist()) for layer in net.norms]
    assert all(part <= every for part, every in zip(kept[0], whole, strict=True)), "scales that were there"
    by_scale = [set(layer.weight.tolist()) for layer in syncbn.prune(net, 0.5, x).norms]
    assert by_scale not in kept
    for each in kept:
        assert [len(part) for part in each] == [len(part) for part in by_scale]


def test_channels_picked_at_random_include_those_with_a_scale_of_0() -> None:
    torch.manual_seed(0)
    net, x = CNN("batch", width=8).eval(), torch.randn(2, 1, 28, 28)
    for layer in net.norms:
        nn.init.zeros_(layer.weight)
    first = net.convs[0].weight
    kept = {tuple(prune_at_random(net, 0.5, x, seed).convs[0].weight[:, 0, 0, 0].tolist()) for seed in range(4)}
    assert len(kept) > 1, "by the smallest scales they would be the same ones"
    assert all(set(each) < set(first[:, 0, 0, 0].tolist()) for each in kept)


def test_a_walk_is_that_of_the_loss_itself() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Linear(3, 4, bias=False).double(), torch.randn(8, 3).double(), torch.arange(8) % 4

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x @ weight.T, y)

    start = net.weight.detach().clone()
    gradient = torch.func.grad(loss)(start)
    points = [start - length * gradient for length in (0.5, 2.0)]
    losses = [float(loss(point)) for point in (start, *points)]
    change = max(float((torch.func.grad(loss)(point) - gradient).norm()) for point in points)
    found = walk(net, x, y, [0.5, 2.0])
    assert found == pytest.approx((max(losses) - min(losses), change, change / float(gradient.norm())))
    torch.testing.assert_close(net.weight, start, rtol=0, atol=0)


def test_times_of_a_curve_are_those_of_training_steps() -> None:
    curve: Any = ValidationCurve()
    curve.on_train_batch_start(None, None, None, 0)
    sum(i * i for i in range(100_000))
    curve.on_train_batch_end(None, None, None, None, 0)
    once = curve.seconds, curve.core_seconds
    sum(i * i for i in range(1_000_000))  # a validation
    assert (curve.seconds, curve.core_seconds) == once
    assert 0 < once[1] <= once[0] + 0.02


def _config(*overrides: str) -> tuple[DictConfig, World]:
    os.environ["SYNCBN_RUN_ID"] = "measures"
    rank, size = dist.get_rank(), dist.get_world_size()
    return config_of([*TINY, "trainer=ddp", *overrides]), World("torchrun", rank, rank, size, size, num_nodes=1)


def messages(every: int, size: int, folder: str) -> float:
    """Messages of a training of six steps."""
    with fits.launched():
        config, world = _config("norm=sync", f"output_root={folder}")
        with Messages() as counted:
            fit(config, world, [SyncEvery(every, size)])
        return counted.count


@needs_fashion_mnist
@pytest.mark.distributed
@pytest.mark.parametrize(("every", "size", "steps"), [(1, 2, 6), (2, 2, 3), (4, 2, 2), (0, 2, 0), (1, 1, 0)])
def test_norms_that_synchronize_send_a_message_forward_and_one_back(
    ranks: Callable[[int], Ranks], every: int, size: int, steps: int, tmp_path: Path
) -> None:
    """Four norms; those of other steps, or in groups of one, send none."""
    assert ranks(2).run(messages, every, size, str(tmp_path)) == [steps * 4 * 2] * 2


def federated(local: bool, folder: str) -> dict[str, list[list[float]]]:
    """Parameters and statistics of every rank after a training on classes of its own."""
    with fits.launched():
        config, world = _config(
            "norm=batch", "data.shard_by_class=true", "trainer.gradient_clip_val=null", f"output_root={folder}"
        )
        net: Any = fit(config, world, [KeepLocal()] if local else []).net
    norm = net.norms[1]
    parts = {"weights": net.convs[1].weight, "γ": norm.weight, "β": norm.bias, "mean": norm.running_mean}
    return {name: part.detach().flatten().tolist() for name, part in parts.items()}


@needs_fashion_mnist
@pytest.mark.distributed
@pytest.mark.parametrize("local", [False, True])
def test_clients_share_all_but_what_is_local(ranks: Callable[[int], Ranks], local: bool, tmp_path: Path) -> None:
    one, other = ranks(2).run(federated, local, str(tmp_path))
    equal = {name for name in one if one[name] == other[name]}
    assert equal == ({"weights"} if local else {"weights", "γ", "β"})
