"""Gradients that are computed while a message is under way are those of torch, bit by bit, whatever else goes on."""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from syncbn.norm.core import compat
from tests.norm.fusion import overlap_steps as steps
from tests.norm.fusion.overlap_steps import Make, grads, images, make, step, watched
from tests.ranks import Ranks

pytestmark = pytest.mark.distributed

SCENARIOS: dict[str, tuple[Callable[..., list[Tensor]], bool | None, dict[str, Any]]] = {}


def scenario(hidden: bool | None = True, **options: Any) -> Callable[[Any], Any]:
    """Compare what the function returns with and without overlap."""

    def add(function: Any) -> Any:
        SCENARIOS[function.__name__] = (function, hidden, options)
        return function

    return add


def compare_on_rank(name: str) -> None:
    function, hidden, options = SCENARIOS[name]
    steps.compare(function, hidden=hidden, **options)


def order_on_rank() -> list[list[str]]:
    seen = []
    for overlap in (True, False):
        model = make(
            overlap,
            lambda norm: nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.Conv2d(4, 4, 3), norm(4), nn.Conv2d(4, 2, 3)),
        )
        step(model, 0)
        loss = model(images(1)).sum()
        with watched() as events:
            loss.backward()
        seen.append(events.seen)
    return seen


def test_the_message_is_under_way_while_the_weight_gradient_is_computed(ranks: Callable[[int], Ranks]) -> None:
    with_overlap, without = ranks(2).run(order_on_rank)[0]
    assert with_overlap == [*2 * ["dx", "send", "dW", "wait"], "dW"]
    assert without == [*2 * ["dx", "dW", "sum"], "dW"]


# --- the same steps, otherwise than usual ---------------------------------------------------------------------------


@scenario()
def plain(make: Make) -> list[Tensor]:
    model = make()
    return [grad for number in range(3) for grad in step(model, number)]


@scenario(fuse_activation=True)
def fused_keep(make: Make) -> list[Tensor]:
    return plain(make)


@scenario(fuse_activation=True, memory="recompute")
def fused_recompute(make: Make) -> list[Tensor]:
    return plain(make)


@scenario(fuse_activation=True, memory="invert")
def fused_invert(make: Make) -> list[Tensor]:
    return plain(make)


@scenario()
def in_float64(make: Make) -> list[Tensor]:
    model = make().double()
    for number in range(2):
        model.zero_grad()
        model(images(number).double()).square().sum().backward()
    return grads(model)


@scenario()
def channels_last(make: Make) -> list[Tensor]:
    model = make().to(memory_format=torch.channels_last)
    for number in range(2):
        model.zero_grad()
        model(images(number).to(memory_format=torch.channels_last)).square().sum().backward()
    return grads(model)


@scenario()
def autocast(make: Make) -> list[Tensor]:
    model, found = make(), []
    for number in range(3):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = model(images(number))
        y.float().square().sum().backward()
        found += grads(model)
    return found


@scenario()
def in_bfloat16(make: Make) -> list[Tensor]:
    model = make().to(torch.bfloat16)
    for number in range(2):
        model.zero_grad()
        model(images(number).bfloat16()).square().sum().backward()
    return grads(model)


@scenario()
def accumulated(make: Make) -> list[Tensor]:
    model = make()
    for number in range(4):
        model(images(number)).square().sum().backward()
    return grads(model)


@scenario()
def two_forwards_one_backward(make: Make) -> list[Tensor]:
    model, found = make(), []
    for number in range(3):
        model.zero_grad()
        (model(images(number)) * model(images(number + 10))).sum().backward()
        found += grads(model)
    return found


@scenario()
def unequal_and_empty_ranks(make: Make) -> list[Tensor]:
    model = make()
    for number in range(2):
        model.zero_grad()
        model(images(number, 5 * dist.get_rank())).square().sum().backward()
    return grads(model)


@scenario()
def an_optimizer(make: Make) -> list[Tensor]:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for number in range(3):
        step(model, number)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@scenario()
def an_optimizer_within_the_backward_pass(make: Make) -> list[Tensor]:
    model = make()

    def update(p: Any) -> None:
        p.data.sub_(p.grad, alpha=0.01)

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(update)
    for number in range(3):
        step(model, number)
    return [p.detach() for p in model.parameters()]


@scenario()
def evaluation_between(make: Make) -> list[Tensor]:
    model, found = make(), []
    for number in range(3):
        found += step(model, number)
        model.eval()
        with torch.no_grad():
            found.append(model(images(number)))
        found += step(model, number)
        model.train()
    return found


@scenario()
def offloaded(make: Make) -> list[Tensor]:
    model = make()
    for number in range(2):
        model.zero_grad()
        with save_on_cpu():
            loss = model(images(number)).square().sum()
        loss.backward()
    return grads(model)


# --- other layers ---------------------------------------------------------------------------------------------------

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "grouped": lambda: nn.Conv2d(4, 8, 3, groups=2, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1),
    "dilated": lambda: nn.Conv2d(4, 6, 3, dilation=2, stride=(1, 2)),
    "same": lambda: nn.Conv2d(4, 6, (3, 5), padding="same"),
    "same on two sides": lambda: nn.Conv2d(4, 6, 4, padding="same"),
    "valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2),
    "linear 4d": lambda: nn.Linear(8, 5),
    "linear without bias": lambda: nn.Linear(8, 5, bias=False),
}


def layer_steps(make: Make, layer: Callable[[], nn.Module]) -> list[Tensor]:
    model = make(lambda norm: nn.Sequential(nn.Conv2d(3, 4, 1), norm(4), nn.ReLU(), layer()))
    return [grad for number in range(2) for grad in step(model, number)]


def layer_on_rank(name: str, options: dict[str, Any]) -> None:
    warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
    steps.compare(layer_steps, LAYERS[name], hidden=None, **options)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("options", [{}, {"fuse_activation": True, "memory": "recompute"}], ids=["plain", "recompute"])
def test_layers(ranks: Callable[[int], Ranks], name: str, options: dict[str, Any]) -> None:
    ranks(2).run(layer_on_rank, name, options)


@scenario()
def one_dimension(make: Make) -> list[Tensor]:
    model = make(
        lambda norm: nn.Sequential(nn.Conv1d(3, 4, 3), norm(4), nn.ConvTranspose1d(4, 4, 3), norm(4), nn.Linear(64, 2))
    )
    for number in range(2):
        model.zero_grad()
        model(images(number).flatten(2)).square().sum().backward()
    return grads(model)


@scenario()
def three_dimensions(make: Make) -> list[Tensor]:
    model = make(
        lambda norm: nn.Sequential(nn.Conv3d(1, 4, 2), norm(4), nn.ConvTranspose3d(4, 2, 2), nn.Conv3d(2, 2, 1))
    )
    for number in range(2):
        model.zero_grad()
        model(images(number).unsqueeze(1)).square().sum().backward()
    return grads(model)


class Rows(nn.Module):
    """Linear layers with norms between them."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(192, 192) for _ in range(3))
        self.norms = nn.ModuleList(norm(192) for _ in range(2))
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = norm(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](x.flatten(1))
        for norm, layer in zip(self.norms, self.layers[1:], strict=True):
            y = layer(norm(y))
        return self.last(self.conv(y.view_as(x)))


@scenario()
def rows(make: Make) -> list[Tensor]:
    model = make(Rows)
    return [grad for number in range(2) for grad in step(model, number)]


# --- the same layer several times -----------------------------------------------------------------------------------


class Shared(nn.Module):
    """One convolution after three norms, and twice after the last; one norm twice."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList(norm(3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm in (*self.norms, self.norms[0]):
            x = self.conv(norm(x).relu())
        return self.conv(x)


@scenario()
def shared(make: Make) -> list[Tensor]:
    model = make(Shared)
    return [grad for number in range(3) for grad in step(model, number)]


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.convs[1].weight = self.convs[0].weight
        self.norms = nn.ModuleList(norm(3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(norm(x))
        return x


@scenario()
def tied(make: Make) -> list[Tensor]:
    model = make(Tied)
    return [grad for number in range(2) for grad in step(model, number)]


class Turning(nn.Module):
    """Another order at each call."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(norm(3) for _ in range(3))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for number in range(self.calls % 2 + 1, 3):
            place = (number + self.calls) % 3
            x = self.convs[place](self.norms[number](x))
        return x


@scenario()
def turning(make: Make) -> list[Tensor]:
    model = make(Turning)
    return [grad for number in range(7) for grad in step(model, number)]


# --- checkpointing --------------------------------------------------------------------------------------------------


class Checkpointed(steps.Net):
    """The blocks are computed again in the backward pass."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm(self.stem(x)), 0.1)
        for block in self.blocks:
            y = checkpoint(block, y, use_reentrant=self.reentrant)
        return self.fc(checkpoint(lambda y: y.mean((2, 3)), y, use_reentrant=self.reentrant))


class Reentrant(Checkpointed):
    """The old way."""

    reentrant = True


class CheckpointedLayers(steps.Net):
    """Layers are repeated without their norms, and the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.stem, x, use_reentrant=False)
        y = checkpoint(self.norm, y, use_reentrant=False)
        y = self.blocks(y)
        return checkpoint(self.fc, y.mean((2, 3)), use_reentrant=False)


def _steps(model: nn.Module, count: int = 3) -> list[Tensor]:
    return [grad for number in range(count) for grad in step(model, number)]


@scenario()
def checkpointed(make: Make) -> list[Tensor]:
    return _steps(make(Checkpointed))


@scenario(fuse_activation=True, memory="recompute")
def checkpointed_recompute(make: Make) -> list[Tensor]:
    return _steps(make(Checkpointed))


@scenario(hidden=None)
def checkpointed_reentrant(make: Make) -> list[Tensor]:
    return _steps(make(Reentrant))


@scenario()
def checkpointed_layers(make: Make) -> list[Tensor]:
    return _steps(make(CheckpointedLayers))


# --- backward passes of other kinds ---------------------------------------------------------------------------------


@scenario()
def gradient_of_the_input(make: Make) -> list[Tensor]:
    model, found = make(), []
    for number in range(2):
        x = images(number).requires_grad_()
        found += [*torch.autograd.grad(model(x).square().sum(), x), *step(model, number)]
    return found


@scenario()
def gradients_of_some_weights(make: Make) -> list[Tensor]:
    model: Any = make()
    step(model, 0)
    loss = model(images(1)).square().sum()
    found = [*torch.autograd.grad(loss, [model.fc.weight, model.blocks[0].conv2.weight], retain_graph=True)]
    loss.backward(inputs=[model.blocks[1].conv1.weight, model.stem.bias], retain_graph=True)
    loss.backward()
    return [*found, *grads(model)]


@scenario()
def a_graph_twice(make: Make) -> list[Tensor]:
    model = make()
    step(model, 0)
    loss = model(images(1)).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return grads(model)


@scenario(hidden=None)
def gradient_penalty(make: Make) -> list[Tensor]:
    model, found = make(), []
    for number in range(3):
        model.zero_grad()
        x = images(number).requires_grad_()
        loss = model(x).square().sum()
        (dx,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + dx.square().sum()).backward()
        found += grads(model)
    return found


@scenario(hidden=None)
def penalty_on_weights(make: Make) -> list[Tensor]:
    model, found = make(), []
    for number in range(3):
        model.zero_grad()
        loss = model(images(number)).square().mean()
        first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        (loss + torch.stack([grad.square().sum() for grad in first]).sum()).backward()
        found += [grad.detach() for grad in first] + grads(model)
    return found


class Failing(torch.autograd.Function):
    """The identity, whose gradient fails."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        raise ArithmeticError("on purpose")


@scenario()
def an_error_in_the_backward_pass(make: Make) -> list[Tensor]:
    model: Any = make()
    _steps(model, 1)
    model.zero_grad()
    y = Failing.apply(model.blocks[0](F.leaky_relu(model.norm(model.stem(images(5))), 0.1)))
    loss = model.fc(model.blocks[1](y).mean((2, 3))).sum()
    with pytest.raises(ArithmeticError):
        loss.backward()
    return _steps(model, 2)


@scenario()
def an_error_in_the_forward_pass(make: Make) -> list[Tensor]:
    model: Any = make()
    found = _steps(model, 1)
    with pytest.raises(RuntimeError):
        model.fc(model.blocks(F.leaky_relu(model.norm(model.stem(images(1))), 0.1)))
    with pytest.raises(RuntimeError):
        model.blocks[1].conv1(images(1))
    return found + _steps(model, 2)


@scenario()
def a_backward_pass_within(make: Make) -> list[Tensor]:
    model, other, found = make(), make(), []
    for number in range(3):
        for module in (model, other):
            module.zero_grad()
        x = images(number).requires_grad_()

        def inner(_: Tensor, number: int = number) -> None:
            with torch.enable_grad():
                other(images(number)).square().sum().backward()

        x.register_hook(inner)
        model(x).square().sum().backward()
        found += grads(model) + grads(other)
    return found


@scenario(hidden=False)
def anomaly_mode(make: Make) -> list[Tensor]:
    with warnings.catch_warnings(action="ignore"), torch.autograd.detect_anomaly(check_nan=True):
        return _steps(make())


@scenario(hidden=None)
def on_another_thread(make: Make) -> list[Tensor]:
    model = make()
    found = _steps(model, 2)
    for _ in range(2):
        thread = threading.Thread(target=lambda: found.extend(_steps(model, 2)))
        thread.start()
        thread.join()
    return found + _steps(model, 1)


# --- weights that something else happens to -------------------------------------------------------------------------


@scenario()
def frozen_weights(make: Make) -> list[Tensor]:
    model: Any = make()
    found = _steps(model, 2)
    model.blocks[0].conv1.weight.requires_grad_(False)
    model.fc.bias.requires_grad_(False)
    found += _steps(model, 2)
    model.blocks[0].conv1.weight.requires_grad_(True)
    model.fc.weight.requires_grad_(False)
    return found + _steps(model, 2)


@scenario()
def parametrized(make: Make) -> list[Tensor]:
    model: Any = make()
    found = _steps(model, 1)
    parametrizations.weight_norm(model.blocks[0].conv1)
    prune.l1_unstructured(model.blocks[0].conv2, "weight", 0.5)
    torch.manual_seed(0)
    parametrizations.spectral_norm(model.blocks[1].conv1)
    return found + _steps(model, 3)


@scenario()
def hooks_that_change_weights(make: Make) -> list[Tensor]:
    model: Any = make()

    def clip(module: Any, args: Any) -> None:
        with torch.no_grad():
            module.weight.clamp_(-0.1, 0.1)

    def replace(module: Any, args: Any) -> None:
        module.weight.data = module.weight.data * 0.9

    model.blocks[0].conv1.register_forward_pre_hook(clip)
    model.blocks[1].conv1.register_forward_pre_hook(replace)
    return _steps(model, 3)


@scenario()
def new_weights(make: Make) -> list[Tensor]:
    model: Any = make()
    found = _steps(model, 2)
    model.blocks[0].conv1.weight = nn.Parameter(model.blocks[0].conv1.weight.detach() * 2)
    model.blocks[1].conv1.weight.data = model.blocks[1].conv1.weight.data * 2
    return found + _steps(model, 2)


@scenario(hidden=False)
def assigned(make: Make) -> list[Tensor]:
    model = make()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return _steps(model, 2)


@scenario(hidden=None)
def called_with_other_weights(make: Make) -> list[Tensor]:
    model = make()
    found = _steps(model, 2)
    other = {name: (p * 1.1).detach().requires_grad_() for name, p in model.named_parameters()}
    y = torch.func.functional_call(model, other, (images(3),))
    return [*found, *torch.autograd.grad(y.square().sum(), list(other.values())), *_steps(model, 1)]


# --- hooks that look --------------------------------------------------------------------------------------------------


@scenario()
def hooks_on_weights_and_layers(make: Make) -> list[Tensor]:
    model: Any = make()
    conv = model.blocks[1].conv1
    found: list[list[Tensor]] = [[] for _ in range(5)]  # of each hook; the weight's are called later with overlap
    conv.weight.register_hook(lambda grad: found[0].append(grad.clone()))
    conv.weight.register_post_accumulate_grad_hook(lambda p: found[1].append(p.grad.clone()))
    conv.register_full_backward_hook(lambda module, dx, dy: found[2].extend([dx[0].clone(), dy[0].clone()]))
    conv.register_forward_pre_hook(lambda module, args: found[3].extend([args[0].detach(), module.weight.detach()]))
    conv.register_forward_hook(lambda module, args, output: found[4].extend([args[0].detach(), output.detach()]))
    return [*_steps(model, 2), *(tensor for tensors in found for tensor in tensors)]


@scenario()
def hooks_on_nodes(make: Make) -> list[Tensor]:
    model: Any = make()
    found: list[Tensor] = []

    def keep(grads: Any, *_: Any) -> None:
        found.extend(grad.clone() for grad in grads if grad is not None)

    def watch(module: Any, args: Any, output: Tensor) -> None:
        output.grad_fn.register_hook(keep)

    def watch_weight(module: Any, args: Any, output: Tensor) -> None:
        for node, _ in output.grad_fn.next_functions:
            if "HandOn" in type(node).__name__:
                node.register_prehook(lambda grads: found.extend(grad.clone() for grad in grads if grad is not None))

    model.blocks[0].conv1.register_forward_hook(watch)
    result = _steps(model, 2)
    count = len(found)
    model.blocks[0].conv2.register_forward_hook(watch_weight)
    result += _steps(model, 2)
    assert not any(tensor.isnan().any() for tensor in found)
    return [*result, *found[:count]]


# --- wrappers -------------------------------------------------------------------------------------------------------


@scenario(hidden=False)
def fully_sharded(make: Make) -> list[Tensor]:
    model: Any = make()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    found = []
    for number in range(3):
        model.set_reshard_after_backward(number != 1)
        model.zero_grad()
        model(images(number)).square().sum().backward()
        if number != 1:
            found += [p.grad.to_local().clone() for p in model.parameters()]
    return found


@scenario(hidden=None)
def compiled(make: Make) -> list[Tensor]:
    torch.compiler.reset()
    model: Any = make()
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    for number in range(2):
        model.zero_grad()
        run(images(number)).square().sum().backward()
    return grads(model)


@scenario(hidden=None)
def a_compiled_region(make: Make) -> list[Tensor]:
    torch.compiler.reset()
    model: Any = make()
    model.blocks[0].compile(backend="aot_eager", fullgraph=True)
    with warnings.catch_warnings(action="ignore"):  # torch's own, of a graph's input that is no leaf
        return _steps(model, 3)


# --- DistributedDataParallel ----------------------------------------------------------------------------------------

DDP = {
    "buckets": {"bucket_cap_mb": 0.001},
    "views": {"gradient_as_bucket_view": True},
    "static": {"static_graph": True, "bucket_cap_mb": 0.001},
    "unused": {"find_unused_parameters": True, "gradient_as_bucket_view": True},
}


def ddp_steps(make: Make, options: dict[str, Any], accumulate: bool) -> list[Tensor]:
    model = DistributedDataParallel(make(), **compat.ddp_without_buffers(), **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for number in range(4):
        if accumulate:
            with model.no_sync():
                model(images(number + 10)).square().sum().backward()
        model(images(number)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in model.parameters()]


def ddp_on_rank(name: str, accumulate: bool) -> None:
    steps.compare(ddp_steps, DDP[name], accumulate)


@pytest.mark.parametrize(("name", "accumulate"), [*((name, False) for name in DDP), ("views", True), ("unused", True)])
def test_ddp(ranks: Callable[[int], Ranks], name: str, accumulate: bool) -> None:
    ranks(2).run(ddp_on_rank, name, accumulate)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_same_bits(ranks: Callable[[int], Ranks], name: str) -> None:
    ranks(2).run(compare_on_rank, name)
