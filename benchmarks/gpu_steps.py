"""Whole training steps on a GPU under AMP, compared with cuDNN's batch norm and torch's SyncBatchNorm.

`python -m benchmarks.gpu_steps [compiled|graphs]`. Uses one GPU and a group of one rank, in which both our and torch's
layers send their messages.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu import Accompanied, TorchAccompanied, one_rank
from benchmarks.rows import Row, markdown, paired
from syncbn.models.dcgan import DCGAN
from syncbn.models.resnet import resnet50

IMAGES = 64
REPEATS = 9
KINDS: dict[str, Callable[[int], nn.Module]] = {
    "SyncBatchNorm, a group of one rank": Accompanied,
    "nn.BatchNorm2d (cuDNN)": nn.BatchNorm2d,
    "torch.nn.SyncBatchNorm": TorchAccompanied,
}
Run = Callable[[], object]


def measure(how: str) -> list[Row]:
    """Measure ResNet-50 and, without compilation or capture, DCGAN."""
    with one_rank():
        if how == "compiled":
            return _rows("ResNet-50, compiled", lambda norm: _resnet(norm, compiled=True), ours_and_cudnn=True)
        if how == "graphs":
            return _rows("ResNet-50 in a CUDA graph", lambda norm: _captured(_resnet(norm)), ours_and_cudnn=True)
        return [*_rows("ResNet-50", _resnet), *_rows("DCGAN, 64 x 64", _dcgan)]


def _rows(network: str, build: Callable[[Callable[[int], nn.Module]], Run], ours_and_cudnn: bool = False) -> list[Row]:
    kinds = dict(list(KINDS.items())[:2]) if ours_and_cudnn else KINDS
    runs = {name: build(kind) for name, kind in kinds.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-3, REPEATS):  # the first ones compile and warm up
        for turn in range(len(runs)):
            name = list(runs)[(repeat + turn) % len(runs)]
            elapsed = _milliseconds(runs[name])
            if repeat >= 0:
                times[name].append(elapsed)
    ours, *others = times
    area = f"{network}, {IMAGES} images, bf16 AMP, channels last, {torch.cuda.get_device_name()}"
    return [paired(area, ours, other, "ms", list(zip(times[ours], times[other], strict=True))) for other in others]


def _resnet(norm: Callable[[int], nn.Module], compiled: bool = False) -> Run:
    torch.manual_seed(0)
    net: nn.Module = resnet50(norm).cuda().to(memory_format=torch.channels_last)
    images = torch.randn(IMAGES, 3, 224, 224, device="cuda").contiguous(memory_format=torch.channels_last)
    labels = torch.arange(IMAGES, device="cuda")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    call = torch.compile(net) if compiled else net

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(call(images), labels)
        loss.backward()
        optimizer.step()

    return step


def _dcgan(norm: Callable[[int], nn.Module]) -> Run:
    torch.manual_seed(0)
    net = DCGAN(norm=norm, in_channels=3, image_size=64).cuda()
    images = torch.randn(IMAGES, 3, 64, 64, device="cuda")
    noise = torch.randn(IMAGES, net.latent_size, device="cuda")

    def step() -> None:
        net.zero_grad(set_to_none=False)
        with torch.autocast("cuda", torch.bfloat16):
            fake: Tensor = net.generator(noise)
            scores = net.discriminator(images).mean() - net.discriminator(fake).mean()
        scores.float().backward()

    return step


def _captured(step: Run) -> Run:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _milliseconds(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def main(arguments: list[str]) -> None:
    """Print the rows."""
    if not torch.cuda.is_available():
        print("benchmarks.gpu_steps needs a CUDA GPU, and torch finds none", file=sys.stderr)
        sys.exit(2)
    print(markdown(measure(arguments[0] if arguments else "eager")))


if __name__ == "__main__":
    main(sys.argv[1:])
