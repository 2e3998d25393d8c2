"""Text of docs/scaling.md around the tables."""

from collections.abc import Sequence

from benchmarks.scaling import tables
from benchmarks.scaling.measure import BLOCKS, CALLS, ROUNDS, Timing
from benchmarks.scaling.model import Costs
from benchmarks.scaling.on_paper import ON_PAPER
from syncbn.machine.scaling import (
    RESNET50_IMAGES_A_SECOND,
    SLOWEST,
    Kind,
    StepSeconds,
    nccl_seconds,
    resnet50_step,
    step_cost,
)

PAGE = """\
# What synchronization costs

`python scripts/scaling.py` has measured, fitted and written everything on this page; change it in
`benchmarks/scaling/page.py`. The figures are in [measured.csv](scaling/measured.csv) and
[predicted.csv](scaling/predicted.csv).

In a training step each synchronized norm of C channels sends 2C + 1 float64 numbers forward and 2C backward, each in
one all-reduce. The other design, that of `torch.nn.SyncBatchNorm`, gathers 2C + 1 float32 numbers of every rank
forward, and all-reduces 2C backward. Messages are short: what counts is how often a rank waits for another.

## Measured: gloo, 2 to 16 ranks on one machine

{machine}

The time of a call is the first quartile of {blocks} blocks of {calls} calls, spread over the run. The sum over the 53
norms of a ResNet-50, forward and backward:

{designs}

A ring gathers in half as many steps as it reduces, so that among few ranks gathering is the faster. What each rank
receives grows with their number, though, and between nodes there are better ways to reduce than a ring; see below.

![Measured times of both collectives and the model's lines](scaling/collectives.png)

**What belongs to this machine.** {cores} cores carry up to 16 ranks, which take turns in every step of a collective.
Ranks are spread evenly over the cores and scheduled by `{scheduling}`{scheduling_note}. The figures say how the
collectives grow with ranks and bytes. They don't say how fast gloo is on a machine with a core for each rank.

## The model

With p ranks, a message of m bytes a rank and k cores,

    seconds = max(1, p / k) · (base + steps · latency + traffic · per byte)

    all-reduce:  steps = 2(p - 1)   traffic = 2(p - 1)/p · m
    all-gather:  steps = p - 1      traffic = (p - 1) · m

as in Thakur, Rabenseifner & Gropp, *Optimization of Collective Communication Operations in MPICH* (2005), times the
turns that ranks on one core take. Fitted by least squares of relative errors to every second message size on 2, 4 and 8
ranks:

{costs}

What the fit hasn't seen, 16 ranks among it, is to be within 20 % of the model:

{errors}

## Predicted: ResNet-50 on GPUs

The same form with NCCL's parameters, which are published: those by which it chooses its algorithms
([tuning.cc](https://github.com/NVIDIA/nccl/blob/b6475625fbcaa2c3c0e50eed2fa1255d7514d4a2/src/graph/tuning.cc)), for its
low-latency protocol.

| | tree | ring |
|---|--:|--:|
| a call | 6.8 µs | 6.6 µs |
| a step by NVLink | 0.6 µs | 0.6 µs |
| a step over the network, InfiniBand for example | 5.0 µs | 2.7 µs |

By the tree, an all-reduce takes 2(g - 1) steps within nodes of g = 8 GPUs and 2·log2(nodes) between them; it goes by a
ring where that is faster. An all-gather is a ring, with as many steps as GPUs. The bandwidth, 6.1 GB/s by the log in
[NVIDIA/nccl#1453](https://github.com/NVIDIA/nccl/issues/1453), hardly matters.

**The interval.** Its lower end is NCCL's own model. In the log just named, 2 nodes of 8 H100, an all-reduce of 4,096
bytes took 75.4 µs where that model says 25.9, which the log's author calls poor: the upper end is {slowest:.1f} times
the lower one, and the middle their geometric mean. Shares are of a step at {rate:,} images/s, one A100 in mixed
precision at 256 images ([NVIDIA's ResNet50 v1.5][dle]). Smaller batches are slower by the image, so that their shares
are smaller than stated.

{gpus}

![Predicted milliseconds a step over the number of GPUs](scaling/gpus.png)

**With overlap.** `norm.overlap=true` computes the weight gradients of the layers after a norm while the norm's backward
message is under way ([0020](decisions/0020-overlap.md)). With T_k seconds for the message of norm k and W_k for those
weight gradients,

    seconds = Σ forward messages + Σ max(0, T_k - W_k)

The forward messages stay: what comes after a norm needs its output. W_k is a layer's share of the network's
multiplications, of a third of the time that convolutions take, of which half the step is assumed; the rest goes to what
waits for memory. Shares of a step with overlap are in two columns of the table. The message is assumed to take nothing
from the kernels beside it. The formula was compared with steps whose messages are delayed by a given time, on CPU:
`python -m benchmarks overlap`.

**What isn't in it.** Ranks that wait for the slowest one; the host, where it doesn't run ahead of the GPU; kernels that
differ from cuDNN's; other traffic. All of them make synchronization dearer: these are the costs of its messages alone.
NCCL's newer algorithms (NVLS, PAT) make it cheaper. No GPU of ours was compared with it.

{on_paper}

[dle]: https://github.com/NVIDIA/DeepLearningExamples/tree/master/PyTorch/Classification/ConvNets/resnet50v1.5

## Beside published measurements

{published}

- 8 GPUs of one node: the model says {node} ms a step for the messages of 53 norms, gathered. In detectron2 SyncBN took
  15 ms more than GN with the same head, and 110 ms more than frozen norms with a smaller head. Most of that isn't
  messages: a frozen norm has no statistics and no backward pass of them.
- Two nodes instead of one: the model says {two} ms more, {share} % of a ResNet-50 step of 64 images. Composer saw 5 %
  for another network and an unknown step.
- The last two rows are of all costs together, and above what a model of messages explains: {layer} ms for 100 gathers
  of 2,048 channels, where the layers took seconds.

## Which `process_group`

Batch normalization needs some 32 images: Wu & He, [Group Normalization](https://arxiv.org/abs/1803.08494) (2018),
table 2, have an error of ResNet-50 of 23.6 % with 32 images a group, 23.7 with 16, 24.8 with 8, 27.3 with 4 and 34.7
with 2. More images cost messages and gain little. So take the smallest group with 32 images, and at least a node, where
messages are cheap:

{enough}

Milliseconds are those of ResNet-50's 53 norms, whatever the images. From the other side, the largest group whose
messages cost at most a share of the step, at the upper end of the interval:

{budget}

A group of 1 means that even two GPUs may cost more than that share.
"""

SCHEDULING_NOTES = {
    "SCHED_FIFO": ", so that one with something to do runs at once and other programs wait",
    "SCHED_BATCH": ", and compete with other programs; for root they would run ahead, and times be steadier",
}


def page(
    timings: Sequence[Timing],
    unseen: Sequence[Timing],
    costs: dict[Kind, Costs],
    channels: Sequence[int],
    machine: str,
    cores: int,
    scheduling: str,
) -> str:
    """Format the page from the measurements, the fit and the channels of ResNet-50's norms."""
    node, two_nodes = (step_cost("gather", gpus, channels) for gpus in (8, 16))
    more = StepSeconds(two_nodes.low - node.low)
    return PAGE.format(
        machine=machine,
        blocks=ROUNDS * BLOCKS,
        calls=CALLS,
        designs=tables.designs_table(timings, channels),
        cores=cores,
        scheduling=scheduling,
        scheduling_note=SCHEDULING_NOTES[scheduling],
        costs=tables.costs_table(costs),
        errors=tables.errors_table(costs, unseen, cores),
        slowest=SLOWEST,
        rate=RESNET50_IMAGES_A_SECOND,
        gpus=tables.gpus_table(channels),
        on_paper=ON_PAPER,
        published=tables.published_table(),
        node=_to(node),
        two=_to(more),
        share=f"{100 * more.low / resnet50_step(64):.0f} to {100 * more.high / resnet50_step(64):.0f}",
        layer=_to(StepSeconds(100 * nccl_seconds("all_gather", 8, 4 * (2 * 2048 + 1)))),
        enough=tables.enough_table(channels),
        budget=tables.budget_table(channels),
    )


def _to(cost: StepSeconds) -> str:
    return f"{1e3 * cost.low:.1f} to {1e3 * cost.high:.1f}"
