"""Models that compute the same on ranks pass; others fail, with the first layer that differs and the reason."""

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import syncbn
from syncbn.policy.chance import WithoutChance
from syncbn.policy.verify import _uneven, mean_square
from tests.policy.nets import TwoStages, images, seeded

pytestmark = pytest.mark.distributed


def weighted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return syncbn.mean_over_ranks(F.cross_entropy(model(batch[0]), batch[1], reduction="none"))


def unweighted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def sync_twice() -> nn.Module:
    return TwoStages(syncbn.SyncBatchNorm, again=True)


class Centered(nn.Module):
    """Subtracts the mean of its rank's batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


class Slow(nn.Module):
    """Takes a minute on a rank of two samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(60 if len(x) == 2 else 0)
        return self.layer(x)


class Descriptors(nn.Module):
    """Returns vectors of length 1, like networks for patch descriptors."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), syncbn.SyncBatchNorm(8), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.layers(x))


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 3:
            raise RuntimeError("too few for me")
        return self.layer(x)


class Chance(nn.Module):
    """Draws random numbers in most ways that networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 8, 3), syncbn.SyncBatchNorm(8), nn.RReLU(), nn.Dropout2d(0.5))
        self.rnn = nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
        self.mean, self.spread = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = syncbn.SyncBatchNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.stem(x), 0.5, self.training).flatten(2).transpose(1, 2)
        y = F.alpha_dropout(self.rnn(y)[0], 0.2, self.training)
        y = y + self.attention(y, y, y, need_weights=False)[0].div(0.7) * (0.7 + torch.rand(len(y), 1, 1)).floor()
        y = y * torch.empty(len(y), 1, 1).bernoulli_(0.6) / 0.6
        if random.random() < 0.5:  # layers dropped by Python
            y = y.tanh()
        y = y.mean(1)
        y = self.mean(y) + self.spread(y) * torch.randn_like(y)
        return self.norm(y) * F.gumbel_softmax(y, hard=False)


class MixUp(nn.Module):
    """Mixes each sample with another one of its rank."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.7 * x + 0.3 * x[torch.randperm(len(x))]


def labeled(count: int) -> tuple[Tensor, Tensor]:
    return images(count), torch.arange(count) % 3


@pytest.mark.parametrize(("ranks", "again"), [(2, False), (3, True)], ids=["once", "twice a forward"])
def test_a_converted_model_is_one_process(ranks: int, again: bool) -> None:
    net = syncbn.convert(seeded(lambda: TwoStages(again=again)), "sync")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    report = syncbn.verify(net, labeled(8), ranks, loss=weighted)
    assert report, str(report)
    assert sum(report.sizes) == 8
    assert len(set(report.sizes)) > 1
    assert max(report.forward, report.gradients, report.statistics) < 1e-12
    assert "samples are one process" in str(report)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    assert not any(m._forward_hooks for m in net.modules())


def test_an_unconverted_layer_is_named() -> None:
    net = syncbn.convert(seeded(TwoStages), "sync", include="stem.*")
    report = syncbn.verify(net, images(7))
    assert not report
    assert report.layer == "body.1"
    assert "it is a BatchNorm2d that takes its rank's batch alone: model = syncbn.convert" in str(report)
    assert report.forward > 1e-3


def test_a_loss_that_is_not_weighted_is_told() -> None:
    report = syncbn.verify(seeded(lambda: TwoStages(syncbn.SyncBatchNorm)), labeled(7), loss=unweighted)
    assert not report
    assert "the loss isn't weighted" in str(report)
    assert report.forward < 1e-12 < 1e-4 < report.gradients


def test_other_layers_that_mix_samples_are_named() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), Centered(), nn.ReLU())
    report = syncbn.verify(net, images(5))
    assert report.layer == "1"
    assert "Centered computes something of a sample from the other samples" in str(report.reason)


def test_random_numbers_do_not_differ_and_eval_layers_stay() -> None:
    net = nn.Sequential(seeded(Chance), nn.Dropout(0.5), nn.BatchNorm1d(8).eval())
    states = torch.get_rng_state(), random.getstate()
    report = syncbn.verify(net, images(5))
    assert report, str(report)
    assert net[1].training
    assert (random.getstate(), torch.equal(torch.get_rng_state(), states[0])) == (states[1], True)


def test_outputs_that_are_not_finite_are_told() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), syncbn.SyncBatchNorm(3))
    net[0].weight.data[1] = float("nan")
    report = syncbn.verify(net, images(5))
    assert (report.layer, bool(report)) == ("0", False)
    assert "isn't finite in one process either" in str(report.reason)


def test_a_model_that_returns_losses_needs_one_to_be_told() -> None:
    net = nn.Linear(2, 3)
    for returned in ({"loss": torch.ones(())}, torch.ones(()), {"boxes": torch.ones(2, 4, dtype=torch.int64)}):
        with pytest.raises(ValueError, match="returns no features of samples"):
            mean_square(net, torch.ones(5, 2), forward=lambda model, batch, returned=returned: returned)


def test_a_random_choice_of_samples_is_told() -> None:
    report = syncbn.verify(nn.Sequential(nn.Conv2d(2, 3, 3), MixUp()), images(5))
    assert report.layer == "1"
    assert "MixUp computes something of a sample from the other samples" in str(report.reason)
    assert "or draws other random numbers there (randperm)" in str(report.reason)


def test_chance_is_replaced_by_its_mean() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    with WithoutChance() as chance:
        for dropout in (F.dropout, torch.feature_dropout, torch.dropout):
            assert torch.equal(dropout(x, 0.25, True), x)
        y = F.rrelu(x, 0.2, 0.6, training=True)
        inplace = F.rrelu(x.clone(), 0.2, 0.6, training=True, inplace=True)
        kept = torch.empty(5, dtype=torch.bool).bernoulli_(0.9)
        draws = [
            torch.normal(2.0, torch.full((3,), 2.0)),
            torch.randint(4, 9, (3,)),
            torch.bernoulli(torch.ones(2) / 4),
        ]
        y.sum().backward()
    assert torch.equal(y, F.leaky_relu(x, 0.4))
    assert torch.equal(inplace, y)
    assert torch.equal(x.grad, torch.where(x > 0, 1.0, 0.4))
    assert kept.all()
    assert [draw.unique().tolist() for draw in draws] == [[3.0], [4], [0.25]]
    assert chance.drawn == []


def test_ranks_that_do_not_answer_end_in_a_timeout() -> None:
    with pytest.raises(TimeoutError, match="within 8 s: do all run the same layers"):
        syncbn.verify(Slow(), torch.ones(5, 6), timeout_s=8)


@pytest.mark.parametrize(
    ("model", "batch", "options", "message"),
    [
        (TwoStages(), images(2), {}, "need a batch of more than 2 samples to split unevenly, got 2"),
        (TwoStages(), images(4), {"ranks": 1}, "ranks must be at least 2, got 1"),
        (TwoStages(), (images(4), torch.zeros(3)), {}, r"one number of samples, got \[3, 4\]"),
        (TwoStages(), images(4), {"loss": lambda model, batch: model(batch).sum()}, "can't be sent to another process"),
        (Failing(), torch.ones(5, 6), {}, "the step fails on rank 0: RuntimeError: too few for me"),
    ],
    ids=["samples", "ranks", "lengths", "lambda", "failing"],
)
def test_what_cannot_be_verified_says_why(model: Any, batch: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        syncbn.verify(model, batch, **options)


def test_a_script_without_a_main_guard_is_told_to_have_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, syncbn\nsyncbn.verify(torch.nn.Sequential(syncbn.SyncBatchNorm(2)), torch.randn(5, 2))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert 'call verify below `if __name__ == "__main__":`' in done.stderr


@pytest.mark.parametrize(("count", "ranks"), [(3, 2), (8, 2), (9, 3), (17, 5)])
def test_shares_are_uneven_and_whole(count: int, ranks: int) -> None:
    sizes = _uneven(count, ranks)
    assert sum(sizes) == count
    assert len(sizes) == ranks
    assert min(sizes) >= 1
    assert len(set(sizes)) > 1


def test_a_network_that_normalizes_its_output_has_gradients_to_compare() -> None:
    report = syncbn.verify(seeded(Descriptors), torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    assert report, str(report)
