"""The benchmarks' peers compute what they claim."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers import AllGatherBatchNorm, JacobianBatchNorm, copy_least, evaluate, train_epoch, with_jacobians
from benchmarks.rows import counted, paired
from syncbn.data import DigitsDataModule
from syncbn.models.resnet import resnet18
from syncbn.training import ClassificationTask
from syncbn.training.optim import parameter_groups
from syncbn.training.schedule import cosine_with_warmup
from tests.norm import oracle
from tests.training.fits import launched
from tests.training.fits import trainer as fitting


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gathered_step(rank_x: list[Tensor], rank_dy: list[Tensor]) -> tuple[Tensor, ...]:
    rank = torch.distributed.get_rank()
    x, dy = rank_x[rank].requires_grad_(), rank_dy[rank]
    layer = AllGatherBatchNorm(x.shape[1]).double()
    y = layer(x)
    y.backward(dy)
    return y.detach(), x.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var


@pytest.mark.distributed
def test_all_gather_is_one_process(ranks) -> None:
    x, dy = images(7, 3, 4, 5), images(7, 3, 4, 5, seed=1)
    expected = oracle.training_step(x, dy, torch.ones(3), torch.zeros(3))
    answers = ranks(2).run(gathered_step, list(x.split([5, 2])), list(dy.split([5, 2])))
    y, dx, dweight, dbias, *running = zip(*answers, strict=True)
    torch.testing.assert_close(torch.cat(y), expected.y)
    torch.testing.assert_close(torch.cat(dx), expected.dx)
    torch.testing.assert_close(sum(dweight), expected.dweight)
    torch.testing.assert_close(sum(dbias), expected.dbias)
    torch.testing.assert_close(running[0][0], expected.running_mean)
    torch.testing.assert_close(running[1][0], expected.running_var)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_floor_reads_and_writes_everything(channels_last: bool) -> None:
    tensors = [images(2, 3, 4, 5, seed=seed) for seed in range(4)]
    if channels_last:
        tensors = [tensor.contiguous(memory_format=torch.channels_last) for tensor in tensors]
    x, dy, y, dx = tensors
    copy_least(x, dy, y, dx)
    assert torch.equal(y, x)
    assert torch.equal(dx, x + dy)


def statistics_of(filters: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.nn.functional.conv2d(x, filters, padding=1)
    return y.mean((0, 2, 3)), y.square().mean((0, 2, 3))


def test_jacobians_are_the_papers_formula() -> None:
    conv = nn.Conv2d(2, 3, 3, padding=1, bias=False).double()
    layer = JacobianBatchNorm(conv, window=3).double()
    batches = [images(4, 2, 5, 5, seed=seed) for seed in range(4)]
    seen = []
    for x in batches:
        y = conv(x)
        out = layer(y)
        seen.append((x, conv.weight.detach().clone()))
        mean, squares = [], []
        for old_x, old_filters in seen[-3:]:
            value = statistics_of(old_filters, old_x)
            jacobian = torch.autograd.functional.jacobian(partial(statistics_of, x=old_x), old_filters)
            change = conv.weight.detach() - old_filters
            mu, nu = (v + torch.einsum("cdijk,dijk->c", j, change) for v, j in zip(value, jacobian, strict=True))
            mean.append(mu)
            squares.append(torch.maximum(nu, mu.square()))
        mean, squares = torch.stack(mean).mean(0), torch.stack(squares).mean(0)
        std = (squares - mean.square() + layer.eps).sqrt()
        torch.testing.assert_close(out, (y - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))
        torch.optim.SGD(conv.parameters(), lr=0.05).step()
        with torch.no_grad():
            conv.weight.add_(images(*conv.weight.shape, seed=9), alpha=0.01)
    assert len(layer.slots) == 2


def test_every_norm_of_a_resnet_gets_its_convolution() -> None:
    net = with_jacobians(resnet18("batch", stem="cifar", width=4))
    layers = [module for module in net.modules() if isinstance(module, JacobianBatchNorm)]
    assert len(layers) == 20
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert len({id(layer.conv[0]) for layer in layers}) == 20
    net(torch.randn(2, 3, 32, 32)).sum().backward()


def plain_epochs() -> tuple[dict[str, Tensor], float]:
    torch.manual_seed(0)
    data = DigitsDataModule(batch_size=64)
    net = DistributedDataParallel(resnet18("sync", stem="cifar", width=4, in_channels=1, num_classes=10))
    loader = data.train_dataloader()
    optimizer = torch.optim.SGD(parameter_groups(net), lr=0.01, momentum=0.9)
    scheduler = cosine_with_warmup(optimizer, total_steps=2 * len(loader))
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        train_epoch(net, loader, optimizer, scheduler, clip=5.0)
    return net.module.state_dict(), evaluate(net, data.test_dataloader())


@pytest.mark.distributed
def test_the_plain_loop_trains_what_the_trainer_does(ranks) -> None:
    (weights, accuracy), *_ = ranks(1).run(plain_epochs)
    torch.manual_seed(0)
    net = resnet18("sync", stem="cifar", width=4, in_channels=1, num_classes=10)
    task = ClassificationTask(net, partial(torch.optim.SGD, lr=0.01, momentum=0.9), cosine_with_warmup)
    data = DigitsDataModule(batch_size=64)
    with launched():
        trainer = fitting(max_epochs=2, gradient_clip_val=5.0, limit_val_batches=0)
        trainer.fit(task, data)
        tested = trainer.test(task, data, verbose=False)[0]
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-4)
    assert tested["test/acc"] == pytest.approx(accuracy, abs=1e-3)


def test_rows_judge_by_the_median_of_paired_ratios() -> None:
    row = paired("area", "ours", "theirs", "ms", [(2.0, 1.0), (3.0, 2.0), (40.0, 40.0)], limit=1.5)
    assert (row.ours, row.theirs, row.ratio) == (3.0, 2.0, 1.5)
    assert row.low == 1.25
    assert row.high == 1.75
    assert row.verdict == "met"
    assert counted("area", "ours", "theirs", "MB", 9, 10, limit=0.89).verdict == "MISSED"
    assert counted("area", "ours", "theirs", "MB", 9, 10).verdict == ""
