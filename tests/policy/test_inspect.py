"""Inspections measure correctly; each warning fires where it should and nowhere else."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import syncbn
from syncbn.models import resnet
from syncbn.policy import NormReport
from syncbn.policy.diagnose import CHECKS
from tests.docs.markdown import REPOSITORY
from tests.policy.nets import TwoStages, images, seeded
from tests.ranks import Ranks


def healthy(make: Callable[[], nn.Module] = TwoStages) -> nn.Module:
    """A network whose statistics are those of `data()`."""
    net = seeded(make)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias = None
    return syncbn.recalibrate(net, data()).eval()


def data() -> list[Tensor]:
    return [images(8, seed) for seed in range(3)]


def fired(report: NormReport) -> set[str]:
    return {warning.identifier for warning in report.warnings}


def test_the_measures_of_a_layer_are_those_of_its_outputs() -> None:
    net = seeded(TwoStages).double()
    batches = [x.double() for x in data()]
    before = copy.deepcopy(net.state_dict())
    row = syncbn.inspect(net, batches).rows[0]
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert net.training

    layer = net.stem[1]
    inputs = [net.stem[0](x).detach() for x in batches]
    everything = torch.cat(inputs).movedim(1, 0).flatten(1)
    mean, std = everything.mean(1), (everything.var(1, unbiased=False) + layer.eps).sqrt()
    running_std = (layer.running_var + layer.eps).sqrt()
    assert row.mean_distance == pytest.approx(float(((layer.running_mean - mean) / std).square().mean().sqrt()))
    assert row.std_ratio == pytest.approx(float((running_std / std).log().abs().mean().exp()))
    squares = []
    for x in inputs:
        in_training, in_evaluation = copy.deepcopy(layer).train()(x), copy.deepcopy(layer).eval()(x)
        squares.append((in_evaluation - in_training).square().mean().detach())
    gap = (torch.stack(squares).mean() / layer.weight.detach().square().mean()).sqrt()
    assert row.gap == pytest.approx(float(gap))
    assert (row.layer, row.kind, row.channels, row.samples) == ("stem.1", "BatchNorm2d", 4, 8 * 4 * 4)


@pytest.mark.parametrize("norm", ["batch", "sync", "cross_iteration"])
@pytest.mark.parametrize("make", [resnet.resnet18, resnet.resnet50], ids=lambda f: f.__name__)
def test_healthy_networks_are_silent(make: Any, norm: str) -> None:
    torch.manual_seed(0)
    net = syncbn.convert(make(num_classes=10, in_channels=2, stem="cifar", width=4), norm)
    batches = [torch.randn(32, 2, 16, 16) for _ in range(2)]
    syncbn.recalibrate(net, batches).eval()
    report = syncbn.inspect(net, batches, reference=batches, steps=100)
    assert not report.warnings, report.to_markdown()
    assert len(report.rows) == len([m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)])


def stale(net: Any) -> dict[str, Any]:
    net.stem[1].running_mean += 3
    return {"batches": data()}


def small_batches(net: Any) -> dict[str, Any]:
    return {"batches": [images(1)[:, :, :5, :5], images(1, 2)[:, :, :5, :5]]}


def dead(net: Any) -> dict[str, Any]:
    net.stem[1].weight.data[0] = 1e-6
    return {}


def constant(net: Any) -> dict[str, Any]:
    net.stem[1].running_var[1] = 1e-7
    return {}


def exploding(net: Any) -> dict[str, Any]:
    net.stem[1].running_var[1] = 1e9
    return {}


def not_a_number(net: Any) -> dict[str, Any]:
    net.stem[1].running_mean[1] = torch.nan
    return {}


def slow(net: Any) -> dict[str, Any]:
    net.stem[1].momentum = 0.01
    return {"steps": 100}


def biased(net: Any) -> dict[str, Any]:
    net.stem[0].bias = nn.Parameter(torch.zeros(4))
    return {"batches": data()}


def training(net: Any) -> dict[str, Any]:
    net.stem[1].train()
    return {}


def drifted(net: Any) -> dict[str, Any]:
    return {"batches": data(), "reference": [x + 6 for x in data()]}


@pytest.mark.parametrize(
    ("spoil", "identifiers"),
    [
        (stale, {"stale-statistics", "train-eval-gap"}),
        (small_batches, {"few-samples"}),
        (dead, {"dead-channels"}),
        (constant, {"dead-channels"}),
        (exploding, {"exploding-channels"}),
        (not_a_number, {"exploding-channels"}),
        (slow, {"slow-momentum"}),
        (biased, {"bias-before-norm"}),
        (training, {"training-mode"}),
        (drifted, {"domain-drift"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_warning_fires_where_it_should(spoil: Callable[[Any], dict[str, Any]], identifiers: set[str]) -> None:
    net = healthy()
    assert not syncbn.inspect(net, data(), steps=100).warnings
    report = syncbn.inspect(net, **spoil(net))
    if spoil is small_batches:  # two images also change the statistics
        assert identifiers <= fired(report)
    else:
        assert {w.identifier for w in report.warnings if w.layer == "stem.1"} == identifiers
        assert spoil is drifted or spoil is stale or {w.layer for w in report.warnings} == {"stem.1"}


def test_a_frozen_layer_in_training_mode_is_no_mistake() -> None:
    net = syncbn.freeze(healthy())
    net.stem[1].train()
    assert not syncbn.inspect(net).warnings


def test_a_convolution_in_a_plain_list_has_no_name_to_warn_of() -> None:
    class Hidden(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.BatchNorm2d(4))
            self.plain = [nn.Conv2d(3, 4, 1)]

        def forward(self, x: Tensor) -> Tensor:
            return self[0](self.plain[0](x))

    assert "bias-before-norm" not in fired(syncbn.inspect(Hidden().eval(), [torch.randn(4, 3, 5, 5)]))


def inspect_on_ranks(state: dict[str, Tensor], norm: str, spoil: bool) -> tuple[list[Any], set[str]]:
    net = TwoStages()
    net.stem[0].bias = None
    net.load_state_dict(state)
    syncbn.convert(net.eval(), norm)
    rank = dist.get_rank() if dist.is_initialized() else None
    if spoil:
        net.stem[1].running_mean += rank
    batches = [x if rank is None else x.split([5, 3])[rank] for x in data()]
    report = syncbn.inspect(net, batches)
    return [(row.layer, row.samples, row.mean_distance, row.std_ratio, row.gap) for row in report.rows], fired(report)


@pytest.mark.distributed
def test_unequal_ranks_measure_what_one_process_does(ranks: Callable[[int], Ranks]) -> None:
    state = healthy().state_dict()
    (rows, _), both = inspect_on_ranks(state, "sync", False), ranks(2).run(inspect_on_ranks, state, "sync", False)
    for got, warnings in both:
        assert not warnings
        for row, expected in zip(got, rows, strict=True):
            assert row[:2] == expected[:2]
            assert row[2:] == pytest.approx(expected[2:], rel=1e-5, abs=1e-6)
    local, _ = ranks(2).run(inspect_on_ranks, state, "batch", False)[0]
    assert local[0][1] == 5 * 4 * 4


@pytest.mark.distributed
def test_ranks_that_differ_are_told(ranks: Callable[[int], Ranks]) -> None:
    for _, warnings in ranks(2).run(inspect_on_ranks, healthy().state_dict(), "sync", True):
        assert "rank-divergence" in warnings


def test_the_report_as_tables_and_as_a_picture(tmp_path: Path) -> None:
    net = healthy()
    report = syncbn.inspect(net, **stale(net))
    markdown = report.to_markdown()
    assert markdown.count("\n| stem.1 | BatchNorm2d | 4 | 128 |") == 1
    assert "- [stale-statistics] stem.1: running statistics are" in markdown
    assert report.to_rich().row_count == 2
    assert report.to_wandb().data[1][0] == "body.1"
    report.plot(tmp_path / "plots" / "norms.png")
    assert min(matplotlib.image.imread(tmp_path / "plots" / "norms.png").shape[:2]) > 200
    with pytest.raises(ValueError, match="nothing to draw without batches"):
        syncbn.inspect(net).plot(tmp_path / "empty.png")


def test_every_warning_has_a_page() -> None:
    pages = {page.stem for page in (REPOSITORY / "docs" / "warnings").glob("*.md")} - {"README"}
    assert pages == set(CHECKS)
    for page in pages:
        assert (REPOSITORY / "docs" / "warnings" / f"{page}.md").read_text().startswith(f"# {page}\n")


def test_a_model_without_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="no batch normalization layer with running statistics"):
        syncbn.inspect(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="there are no batches"):
        syncbn.inspect(healthy(), [])
