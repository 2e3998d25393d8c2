"""Text of docs/scaling.md on what the exchange in one step and hidden messages would be on GPUs."""

ON_PAPER = """\
### The same two ideas on GPUs, on paper

*One step among the GPUs of a node.* An exchange in one step needs memory that peers can read, which
`torch.distributed._symmetric_memory` gives GPUs that are joined by NVLink. The Triton reduction has two stages: a
kernel writes partial sums, and a second one adds them up, channel by channel. The second could read the peers' sums
beside its own and add all of them in float64 in the order of the ranks: no kernel more, and the same bits on every
rank. Among 8 GPUs each reads 7·16·C bytes, 229 kB for 2,048 channels, half a microsecond at the 450 GB/s that NVLink
has one way on an H100. What costs is the barrier before it. A published comparison on one node has 21.8 µs for NCCL's
all-reduce of 8 KiB, 16.4 µs for torch's one-shot kernel and 10.8 µs for one in Triton
([symm-mem-recipes#3](https://github.com/yifuwang/symm-mem-recipes/pull/3)). By these figures one step takes half of
the time of NCCL's; of the 3.0 ms of a ResNet-50 step on 8 GPUs, 1.5 ms would remain. Between nodes there is no such
memory: nodes would still be joined by a collective, of one GPU of each.

*NCCL's own kernels for symmetric memory don't take our messages.* Since 2.27 they have up to 9 times less latency for
short messages
([NVIDIA](https://developer.nvidia.com/blog/enabling-fast-inference-and-resilient-training-with-nccl-2-27)), for "32
bit floating point types and smaller", without a network ([release
notes](https://github.com/NVIDIA/nccl/releases/tag/v2.27.3-1)); a float64 message goes by the older kernels without a
word (`ty != ncclFloat64`, quoted in [NVIDIA/nccl#2018](https://github.com/NVIDIA/nccl/issues/2018)). torch's
multimem kernels take float32 and bfloat16 ([pytorch#169035](https://github.com/pytorch/pytorch/issues/169035)
asks for others).

*Pairs of float32 aren't float64.* A float64 number fits into two float32 numbers, in as many bytes, up to their
smaller range. But a sum of pairs adds the upper parts in float32 and rounds them at every step, by up to 6e-8 of the
sum; the lower parts don't know of it. The sum is a float32 sum, and E[x²] - E[x]² loses what
[0004](decisions/0004-sums-in-float64.md) is there to keep. Exact parts need room for the carry: with p ranks, 24 -
log2(p) bits each, that is 3 parts of 21 bits for 8 ranks and 5 of 12 bits for 4,096, of one exponent that all ranks
agree on first, by another message. So 12 to 20 bytes in the place of 8, and twice the latency. Messages that are read
and added in float64 by a kernel of our own, as above, need none of this.

*Hidden messages.* An asynchronous all-reduce runs on NCCL's stream, and the weight gradients on the stream of the
backward pass: `overlap=true` needs nothing else there. What the host does for each layer, some tens of microseconds,
counts where the GPU waits for it, as with small batches; CUDA graphs take it away. No GPU has been measured."""
