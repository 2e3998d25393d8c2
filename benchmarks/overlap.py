"""Training steps of ResNet-50 whose messages take a given time, with and without overlap, on two ranks.

Each message is delayed, forward and backward, by `benchmarks.delayed`. What a step takes longer than one without delay
is communication that is exposed: without overlap the delay of 106 messages, less what ranks would have waited for each
other anyway. The prediction of a step with overlap is that without delay, plus the delays of the forward pass,
and of each backward message what is longer than the weight gradients of the layers after its norm
(`syncbn.machine.scaling.exposed`).
"""

import statistics
import time

import torch
import torch.distributed as dist

from benchmarks.ddp_step import DDPStep
from benchmarks.delayed import Delayed, world
from benchmarks.hiding import Layer, layers_after_norms
from benchmarks.ranks import on_ranks
from benchmarks.rows import Row, counted, paired
from syncbn.machine.scaling import exposed
from syncbn.models.resnet import resnet50
from syncbn.norm.core.exchange import exchange_for, use
from syncbn.norm.core.registry import norm_layer

IMAGES = 8
REPEATS = 5
DELAYS_MS = (0, 2, 10, 50)
LIMITS = {2: 0.6, 10: 0.6}  # of exposed communication with overlap, relative to that without
TOLERANCE = 1.2  # of the model's error, as a factor


def measure() -> list[Row]:
    """Time steps with and without overlap in turns, for each delay."""
    times, hiding = on_ranks(_times)
    area = f"training step of ResNet-50, {IMAGES} images of 224×224 a rank, 2 ranks of 1 thread, delayed messages"
    free = [statistics.median(values) for values in zip(*times[0], strict=True)]
    rows = [paired(area, "no delay, overlap=True", "overlap=False", "ms", times[0], 1.02)]
    for delay in DELAYS_MS[1:]:
        pairs = [(ours - free[0], theirs - free[1]) for ours, theirs in times[delay]]
        what = f"exposed communication, {delay} ms a message, overlap=True"
        rows.append(paired(area, what, "overlap=False", "ms", pairs, LIMITS.get(delay)))
        modelled = free[0] + delay * len(hiding) + 1e3 * exposed([1e-3 * delay] * len(hiding), hiding)
        found = statistics.median(ours for ours, _ in times[delay])
        off = max(found / modelled, modelled / found)
        rows.append(counted(area, f"the step, {delay} ms: its error as a factor", "the model", "", off, 1.0, TOLERANCE))
    return rows


def _times() -> tuple[dict[int, list[tuple[float, float]]], list[float]]:
    """Milliseconds of steps by delay, (with overlap, without) for each repeat; and the seconds that hide a message."""
    hiding = [sum(_weight_gradient_seconds(layer) for layer in layers) for layers in layers_after_norms(IMAGES)[1:]]
    inner = exchange_for(world(), torch.zeros(1, dtype=torch.float64))
    nets = [_step(True), _step(False)]
    images, labels = torch.randn(IMAGES, 3, 224, 224), torch.arange(IMAGES)
    found: dict[int, list[tuple[float, float]]] = {}
    for net in nets:  # the first step finds out the order
        net.milliseconds(images, labels)
    for delay in DELAYS_MS:
        use(Delayed(inner, 1e-3 * delay), world())
        found[delay] = []
        for repeat in range(REPEATS):
            order = nets if repeat % 2 else nets[::-1]
            milliseconds = {net: net.milliseconds(images, labels) for net in order}
            found[delay].append((milliseconds[nets[0]], milliseconds[nets[1]]))
    use(inner, world())
    return found, hiding


def _step(overlap: bool) -> DDPStep:
    torch.manual_seed(0)
    return DDPStep(resnet50(norm_layer("sync", overlap=overlap)))


def _weight_gradient_seconds(layer: Layer) -> float:
    """Median of three, on all ranks at once as in a step."""
    module = layer.module
    x, dy = torch.randn(layer.input_shape), torch.randn(layer.output_shape)
    weight = torch.randn(module.weight.shape, requires_grad=True)
    if x.dim() == 2:
        y = torch.nn.functional.linear(x, weight)
    else:
        y = torch.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
    seconds = []
    for _ in range(3):
        dist.barrier()
        start = time.perf_counter()
        torch.autograd.grad(y, weight, dy, retain_graph=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
