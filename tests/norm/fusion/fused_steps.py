"""Training steps of a norm, optional shortcut, activation and convolution on a rank's share, and their oracle."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import syncbn
from tests.norm import oracle


@dataclass
class Case:
    """A whole batch, each rank's number of samples, and the computation."""

    sizes: list[int]
    memory: str | None  # None: separate layers
    slope: float = 0.0
    shortcut: str = "none"  # "identity", or "norm": with its own norm
    dtype: torch.dtype = torch.float64
    channels_last: bool = False
    masked: bool = False
    how: str = "eager"
    seed: int = 0
    tensors: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        n = sum(self.sizes)
        sign = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]).double()
        self.tensors = {
            "x": 2 * random(n, 5, 4, 3) + random(1, 5, 1, 1),
            "shortcut": random(n, 5, 4, 3),
            "dy": random(n, 2, 4, 3),
            "weight": (random(5).abs() + 0.3) * sign,
            "bias": random(5),
            "conv": random(2, 5, 3, 3) / 4,
            "mask": random(n, 4, 3) > -1,
        }
        # The layers' input is exact in their dtype.
        self.tensors = {k: t if t.dtype == torch.bool else t.to(self.dtype).double() for k, t in self.tensors.items()}

    def share(self, rank: int) -> dict[str, Tensor]:
        rows = slice(sum(self.sizes[:rank]), sum(self.sizes[: rank + 1]))
        return {name: self.tensors[name][rows] for name in ("x", "shortcut", "dy", "mask")}


NAMES = ("y", "dx", "dshortcut", "dweight", "dbias", "dconv", "running_mean", "running_var")


def expected(case: Case) -> dict[str, Tensor]:
    """Expected results in float64, in one process, by the formula and autograd."""
    t = {name: tensor.clone() for name, tensor in case.tensors.items()}
    mask = t.pop("mask") if case.masked else None
    leaves = {name: t[name].requires_grad_() for name in ("x", "shortcut", "weight", "bias", "conv")}
    z = oracle.normalize(t["x"], t["weight"], t["bias"], mask=mask)
    if case.shortcut == "identity":
        z = z + t["shortcut"]
    elif case.shortcut == "norm":
        z = z + oracle.normalize(t["shortcut"], torch.ones(5).double(), torch.zeros(5).double())
    y = F.conv2d(torch.where(z > 0, z, case.slope * z), t["conv"], padding=1)
    grads = torch.autograd.grad((y * t["dy"]).sum(), list(leaves.values()), allow_unused=True)
    step = oracle.training_step(t["x"], torch.zeros_like(t["x"]), t["weight"], t["bias"], mask)
    return dict(zip(NAMES, (y.detach(), *grads, step.running_mean, step.running_var), strict=True))


def step(case: Case) -> dict[str, Any]:
    """Results of the layers on this rank's share."""
    share = case.share(dist.get_rank() if dist.is_initialized() else 0)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    x, shortcut = (
        share[name].to(case.dtype).contiguous(memory_format=layout).requires_grad_() for name in ("x", "shortcut")
    )
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    options = {} if case.memory is None else {"fuse_activation": True, "memory": case.memory}
    norm, other = (syncbn.SyncBatchNorm(5, **options).to(wide) for _ in range(2))
    norm.weight.data.copy_(case.tensors["weight"])
    norm.bias.data.copy_(case.tensors["bias"])
    conv = nn.Conv2d(5, 2, 3, padding=1, bias=False).to(case.dtype)
    conv.weight.data.copy_(case.tensors["conv"])

    def block(x: Tensor, shortcut: Tensor) -> Tensor:
        z = norm(x, share["mask"]) if case.masked else norm(x)
        if case.shortcut == "identity":
            z = z + shortcut
        elif case.shortcut == "norm":
            z = z + other(shortcut)
        return conv(F.relu(z) if case.slope == 0 else F.leaky_relu(z, case.slope))

    if case.how == "compiled":
        torch.compiler.reset()
        run = torch.compile(block, fullgraph=True, backend="aot_eager")
    elif case.how == "eager":
        run = block
    else:
        run = lambda *args: checkpoint(block, *args, use_reentrant=case.how == "reentrant")  # noqa: E731
    y = run(x, shortcut)
    y.backward(share["dy"].to(case.dtype))
    found = (y.detach(), x.grad, shortcut.grad, norm.weight.grad, norm.bias.grad, conv.weight.grad)
    assert norm.num_batches_tracked.item() == 1
    return dict(zip(NAMES, (*found, norm.running_mean, norm.running_var), strict=True))


def joined(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the ranks' steps as one process's."""
    first = ranks[0]
    for other in ranks[1:]:
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(other[name], first[name], rtol=0, atol=0)
    whole = {name: torch.cat([rank[name] for rank in ranks]) for name in ("y", "dx")}
    if first["dshortcut"] is not None:
        whole["dshortcut"] = torch.cat([rank["dshortcut"] for rank in ranks])
    sums = {name: sum(rank[name] for rank in ranks) for name in ("dweight", "dbias", "dconv")}
    return first | whole | sums


def assert_equal(got: dict[str, Any], target: dict[str, Any], tolerance: float) -> None:
    """Compare within `tolerance`, relative to the largest number of a tensor or 1."""
    for name, expected_value in target.items():
        if expected_value is None:
            assert got[name] is None, name
            continue
        size = max(1.0, expected_value.abs().max().item())
        error = (got[name].double() - expected_value).abs().max().item()
        assert error <= tolerance * size, f"{name}: off by {error:.2g}, largest {size:.2g}"
