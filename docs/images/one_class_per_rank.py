"""Draws docs/images/one_class_per_rank.png: python docs/images/one_class_per_rank.py (some minutes on two cores).

Ten ranks learn the digits, and each of them sees one digit only. The same training in one process, on the union of
the ranks' batches, is what it should be. Runs in float64 from the same weights over the same samples: that one, ten
ranks with SyncBatchNorm, and ten ranks with BatchNorm2d, each normalizing by its own batch. The last is evaluated with
the running statistics of rank 0, which is what a checkpoint holds, and with their average over ranks.
"""

import copy
import multiprocessing
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from syncbn.models.resnet import resnet18
from syncbn.norm.core import compat

PICTURE = Path(__file__).with_suffix(".png")
PER_CLASS = 8  # samples of a step


class Digits(NamedTuple):
    """Training images by class, and the test images, in float64."""

    train: list[Tensor]
    images: Tensor
    labels: Tensor


class Curve(NamedTuple):
    """Accuracy on the test digits and their logits, at each of the steps where a run was evaluated."""

    steps: list[int]
    accuracy: list[float]
    logits: list[Tensor]


def load(classes: int) -> Digits:
    from syncbn.data import DigitsDataModule  # imports Lightning, which the ranks can do without

    data = DigitsDataModule()
    images, labels = data.images.double(), data.labels
    test = data.test_indices[labels[data.test_indices] < classes]
    train = [images[data.train_indices[labels[data.train_indices] == c]] for c in range(classes)]
    return Digits(train, images[test], labels[test])


def train(norm: str, data: Digits, steps: int, every: int, average: bool = False) -> Curve:
    """Train one rank's network: among R ranks, rank r sees class r. `average` is the one of `evaluate`."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    classes = len(data.train)
    torch.manual_seed(0)
    net: nn.Module = resnet18(norm, num_classes=classes, in_channels=1, stem="cifar", width=8).double()
    model = net if ranks == 1 else DistributedDataParallel(net, **compat.ddp_without_buffers())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)

    curve = Curve([], [], [])
    order = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        drawn = [images[torch.randperm(len(images), generator=order)[:PER_CLASS]] for images in data.train]
        labels = torch.arange(classes).repeat_interleave(PER_CLASS).view(classes, PER_CLASS)[rank::ranks].flatten()
        optimizer.zero_grad()
        F.cross_entropy(model(torch.cat(drawn[rank::ranks])), labels).backward()
        optimizer.step()
        if step % every == 0:
            logits = evaluate(net, data.images, average)
            curve.steps.append(step)
            curve.accuracy.append((logits.argmax(1) == data.labels).double().mean().item())
            curve.logits.append(logits)
    return curve


@torch.no_grad()
def evaluate(net: nn.Module, images: Tensor, average: bool) -> Tensor:
    """Logits by the running statistics of this rank or of the average rank."""
    net = copy.deepcopy(net).eval()
    if average:
        for buffer in net.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer.div_(dist.get_world_size()))
    return net(images)


def train_on_ranks(norm: str, data: Digits, steps: int, every: int, average: bool = False) -> Curve:
    """The same with a process for each class; the curve of rank 0."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        torch.save(tuple(data), Path(folder, "data.pt"))
        work = (len(data.train), Path(folder), norm, steps, every, average)
        ranks = [context.Process(target=_rank, args=(rank, *work)) for rank in range(len(data.train))]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            raise RuntimeError(f"a rank failed, exit codes: {[process.exitcode for process in ranks]}")
        return Curve(*torch.load(Path(folder, "curve.pt"), weights_only=True))


def _rank(rank: int, ranks: int, folder: Path, norm: str, steps: int, every: int, average: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), ranks), rank=rank, world_size=ranks)
    data = Digits(*torch.load(folder / "data.pt", weights_only=True))
    curve = train(norm, data, steps, every, average)
    if rank == 0:
        torch.save(tuple(curve), folder / "curve.pt")
    dist.destroy_process_group()


def difference(curve: Curve, reference: Curve) -> list[float]:
    """max |logits - reference's| over max |reference's|, at each evaluation."""
    pairs = zip(curve.logits, reference.logits, strict=True)
    return [((got - expected).abs().max() / expected.abs().max()).item() for got, expected in pairs]


def measure(classes: int = 10, steps: int = 120, every: int = 5) -> list[Curve]:
    """The run in one process, then the runs on ranks in the order of the picture's legend."""
    data = load(classes)
    return [
        train("batch", data, steps, every),
        train_on_ranks("sync", data, steps, every),
        train_on_ranks("batch", data, steps, every, average=True),
        train_on_ranks("batch", data, steps, every),
    ]


def draw(curves: list[Curve], path: Path) -> None:
    """Accuracy on the left, distance from the run in one process on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = [
        "one process, all digits",
        "10 ranks, SyncBatchNorm",
        "10 ranks, BatchNorm2d, averaged statistics",
        "10 ranks, BatchNorm2d, rank 0's statistics",
    ]
    styles = [{"color": "0.8", "lw": 7}, {"color": "tab:blue"}, {"color": "tab:red"}, {"color": "tab:red", "ls": ":"}]
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for curve, label, style in zip(curves, labels, styles, strict=True):
        left.plot(curve.steps, [100 * value for value in curve.accuracy], label=label, **style)
        if curve is not curves[0]:
            right.semilogy(curve.steps, difference(curve, curves[0]), **style)
    left.set(xlabel="step", ylabel="%", title="Test accuracy; each rank sees one digit", ylim=(0, 102))
    right.set(xlabel="step", ylabel="relative", title="Difference of outputs from one process (float64)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    torch.set_num_threads(1)
    curves = measure()
    draw(curves, PICTURE)
    for curve in curves:
        print(f"test accuracy {100 * curve.accuracy[-1]:.1f} % after {curve.steps[-1]} steps")
    for curve in curves[1:]:
        print(f"relative difference from one process: at most {max(difference(curve, curves[0])):.1e}")
