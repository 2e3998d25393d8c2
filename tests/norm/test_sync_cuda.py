"""On a GPU: the same results, no wait of the host for the device, and capture in a CUDA graph."""

import copy

import pytest
import torch
import torch.distributed as dist

import syncbn
from syncbn.norm.core.kernels import candidates
from tests.norm import oracle
from tests.norm.test_sync import random_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@pytest.fixture(autouse=True, params=["aten", "triton"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set the kernels as SYNCBN_KERNELS would."""
    monkeypatch.setattr("syncbn.norm.core.kernels._FASTEST", candidates(request.param))
    return request.param


@pytest.fixture
def group(tmp_path):
    """A one-rank NCCL group whose collectives are really sent, by overriding the layer's check."""
    dist.init_process_group("nccl", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [[6], [6, 9], [6, 5, 4], [6, 3, 4, 2]])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_oracle(shape: list[int], channels_last: bool, dtype: torch.dtype, masked: bool) -> None:
    batch = random_batch(0, shape, [7], dtype=dtype, channels_last=channels_last)
    if masked:
        batch.mask = torch.rand(7, *shape[1:]) < 0.7
    x, dy, mask = batch.share(0)
    layer = syncbn.SyncBatchNorm(6, dtype=torch.float64 if dtype == torch.float64 else None).cuda()
    layer.weight.data.copy_(batch.weight)
    layer.bias.data.copy_(batch.bias)
    x = x.cuda().requires_grad_()
    y = layer(x, None if mask is None else mask.cuda())
    y.backward(dy.cuda())
    expected = oracle.training_step(x.cpu(), dy, layer.weight.cpu(), layer.bias.cpu(), mask)
    got = (y, x.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var)
    for actual, target in zip(got, expected, strict=True):
        size = max(1.0, target.abs().max().item())
        torch.testing.assert_close(actual.double().cpu(), target, rtol=0, atol=TOLERANCE[dtype] * size)


def test_the_same_bits_every_time(kernels: str) -> None:
    x, dy = torch.randn(2, 16, 96, 33, 35, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    layer = syncbn.SyncBatchNorm(96).cuda()

    def step() -> tuple[torch.Tensor, ...]:
        y = layer(x)
        return (y, *torch.autograd.grad(y, (x, layer.weight, layer.bias), dy))

    first = step()
    for _ in range(5):
        torch.testing.assert_close(step(), first, rtol=0, atol=0)


def test_the_host_never_waits() -> None:
    layer = syncbn.SyncBatchNorm(6, momentum=None).cuda()
    x = torch.randn(4, 6, 5, 5, device="cuda", requires_grad=True)
    mask = torch.rand(4, 5, 5, device="cuda") < 0.5
    layer(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
        layer(x, mask).sum().backward()
        torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_capture_in_a_graph(group: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncbn.norm.sync.communicating_group", lambda _: group)
    layer = syncbn.SyncBatchNorm(6).cuda()
    eager = copy.deepcopy(layer)
    x = torch.randn(4, 6, 5, 5, device="cuda", requires_grad=True)
    dy = torch.randn_like(x)

    def step(module: torch.nn.Module) -> tuple[torch.Tensor, ...]:
        y = module(x)
        return (y, *torch.autograd.grad(y, (x, module.weight, module.bias), dy))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(layer)
    torch.cuda.current_stream().wait_stream(stream)
    layer.load_state_dict(eager.state_dict())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(layer)
    layer.load_state_dict(eager.state_dict())
    for _ in range(2):
        with torch.no_grad():
            x.normal_()
        graph.replay()
        torch.testing.assert_close(captured, step(eager))
    torch.testing.assert_close(layer.state_dict(), eager.state_dict())
