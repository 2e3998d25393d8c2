"""Memory that ResNet-50's forward pass keeps for the backward pass, by mode, counted in two ways."""

import gc

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.rows import Row, counted
from syncbn.models.resnet import resnet50
from syncbn.norm import norm_layer

IMAGES = 2
PIXELS = 224
PEER = "nn.BatchNorm2d, ReLU in place"
# Upper limits of each mode's memory relative to separate layers.
LIMITS = {"ReLU, recompute": 0.82, "LeakyReLU, invert": 0.6, "checkpoint_blocks": 0.45}


def measure() -> list[Row]:
    """Compare each mode with separate layers: bytes that autograd saves, and bytes that stay allocated."""
    area = f"kept for the backward pass, ResNet-50, {IMAGES} images of {PIXELS}²"
    images = torch.randn(IMAGES, 3, PIXELS, PIXELS)
    peer = network(PEER)
    saved, allocated = saved_megabytes(peer, images), allocated_megabytes(peer, images)
    rows = []
    for mode in (*LIMITS, "checkpoint_blocks, recompute"):
        net = network(mode)
        limit = LIMITS.get(mode)
        rows.append(counted(area, mode, PEER, "MB", saved_megabytes(net, images), saved, limit))
        ours = allocated_megabytes(net, images)
        rows.append(counted(area, f"{mode}, by the allocator", PEER, "MB", ours, allocated, limit))
    return rows


def network(mode: str) -> nn.Module:
    """ResNet-50 in training mode, in one of the modes of `LIMITS` or as the peer."""
    torch.manual_seed(0)
    fused = {memory: norm_layer("sync", fuse_activation=True, memory=memory) for memory in ("recompute", "invert")}
    if mode == "ReLU, recompute":
        return resnet50(fused["recompute"])
    if mode == "LeakyReLU, invert":
        return resnet50(fused["invert"], activation="leaky_relu")
    if mode == "checkpoint_blocks, recompute":
        return resnet50(fused["recompute"], checkpoint_blocks=True)
    net = resnet50(nn.BatchNorm2d, checkpoint_blocks=mode == "checkpoint_blocks")
    for module in net.modules():
        if hasattr(module, "activate"):
            module.activate = F.relu_
    return net


def saved_megabytes(net: nn.Module, images: Tensor) -> float:
    """Size of the tensors that autograd saves in a forward pass: each storage once, without parameters and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.detach()  # kept alive, so that its address isn't reused
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        net(images)
    return sum(tensor.untyped_storage().nbytes() for at, tensor in saved.items() if at not in own) / 1e6


def allocated_megabytes(net: nn.Module, images: Tensor) -> float:
    """Size of allocations minus frees in a forward pass, without the input."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        output = net(images)
    del output
    return sum(event.self_cpu_memory_usage for event in seen.key_averages()) / 1e6
