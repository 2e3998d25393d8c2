"""Requirements of every registered norm: saving, copies, precisions, compilation, ranks."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import syncbn
from syncbn.norm.core import compat
from syncbn.norm.core.options import defaults
from syncbn.norm.core.registry import known_options, norm_options
from syncbn.norm.surgery.feeding import attach_norms
from tests.ranks import Ranks

C = 8

# Options that a norm needs for 8 channels, or to show its behaviour within a few steps.
OPTIONS: dict[str, dict[str, Any]] = {
    "batch_renorm": {"start_step": 0, "r_max_step": 2, "d_max_step": 2},
    "group": {"groups": 2},
    "moving_average": {"window": 3, "warmup": 2, "r_start": 2},
    "decorrelated": {"group_size": 4},
    "ghost": {"ghost_batch_size": 2},
}

# At most two.
NOT_IN_ONE_GRAPH = {"cross_iteration": "it looks at what Python saw of the convolution; its graph breaks there"}
if not compat.COMPILED_BACKWARD_WRITES:
    NOT_IN_ONE_GRAPH["moving_average"] = "its backward pass updates averages"

# By definition, two ranks' training differs from one process with both batches.
MOMENTS_OF_A_RANK = {"batch", "ghost"}

# By definition, the backward pass isn't the derivative of the forward pass.
OTHER_GRADIENT = {"moving_average"}

every_norm = pytest.mark.parametrize("name", syncbn.available_norms())


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A convolution from 3 to 8 channels, and the norm."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, C, 2), syncbn.norm_layer(name, **OPTIONS.get(name, {}))(C))
    attach_norms(model)
    return model.to(dtype)


def images(seed: int, samples: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 3, 4, 4, generator=generator, dtype=torch.float64).to(dtype)


def loss_of(y: Tensor) -> Tensor:
    """A mean over samples whose gradient is bounded and differs from value to value."""
    y = y.float() if y.dtype == torch.bfloat16 else y
    phase = torch.arange(y[0].numel(), dtype=y.dtype).view(y.shape[1:])
    return torch.sin(y + phase).sum([1, 2, 3]).mean()


def train(model: Callable[[Tensor], Tensor], *batches: Tensor) -> list[Tensor]:
    """Forward and backward for each batch, with no step between; the outputs."""
    outputs = []
    for x in batches:
        y = model(x)
        loss_of(y).backward()
        outputs.append(y.detach())
    return outputs


def trained(name: str, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A model after three steps, so that all of its state has changed."""
    model = build(name, dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for seed in range(3):
        optimizer.zero_grad()
        train(model, images(seed, dtype=dtype))
        optimizer.step()
    optimizer.zero_grad()
    return model


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@every_norm
def test_evaluation_takes_each_sample_by_itself_and_changes_nothing(name: str) -> None:
    model = trained(name).eval()
    before = copy.deepcopy(model.state_dict())
    x = images(5)
    y = model(x)
    torch.testing.assert_close(model(x[1:2]), y[1:2])
    assert_same(model.state_dict(), before)
    loss_of(y).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_norm
def test_a_checkpoint_is_all_of_a_model(name: str) -> None:
    model, file = trained(name), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = build(name, seed=1)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert_same(train(loaded, images(6), images(7)), train(model, images(6), images(7)))
    assert_same(gradients(loaded), gradients(model))
    assert_same(loaded.state_dict(), model.state_dict())
    assert_same(loaded.eval()(images(8)), model.eval()(images(8)))


def by_pickle(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


@every_norm
@pytest.mark.parametrize("copier", [copy.deepcopy, by_pickle])
def test_a_copy_trains_alone_and_alike(name: str, copier: Callable[[nn.Module], nn.Module]) -> None:
    model = trained(name)
    if copier is by_pickle and any(map(parametrize.is_parametrized, model)):
        with pytest.raises(RuntimeError, match="state_dict"):  # torch's rule for what it parametrizes
            copier(model)
        model = nn.Sequential(model[1])
        assert repr(copier(model)) == repr(model)
        return
    twin, before = copier(model), copy.deepcopy(model.state_dict())
    outputs = train(twin, images(6), images(7))
    assert_same(model.state_dict(), before)
    assert all(p.grad is None for p in model.parameters())
    assert_same(train(model, images(6), images(7)), outputs)
    assert_same(model.state_dict(), twin.state_dict())


@every_norm
def test_reset_parameters_gives_a_new_layer(name: str) -> None:
    """After `to_empty`, which leaves what was in memory, and to train a network anew."""
    model, new = trained(name), build(name)
    for each in (*model[1].parameters(), *model[1].buffers()):
        each.data.fill_(77)
    for module in model[1].modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for kind in ("named_parameters", "named_buffers"):
        actual, expected = (dict(getattr(each[1], kind)()) for each in (model, new))
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    model[0].load_state_dict(new[0].state_dict())
    torch.testing.assert_close(train(model, images(5), images(6)), train(new, images(5), images(6)))


@every_norm
def test_a_layer_without_memory_takes_that_of_a_checkpoint(name: str) -> None:
    model = trained(name)
    with torch.device("meta"):
        empty = build(name)
    empty.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert not any(buffer.is_meta for buffer in empty.buffers())
    torch.testing.assert_close(train(empty, images(5), images(6)), train(model, images(5), images(6)))


@every_norm
@pytest.mark.parametrize(("parameter", "neutral"), [("weight", 1.0), ("bias", 0.0)])
def test_a_parameter_that_is_taken_away(name: str, parameter: str, neutral: float) -> None:
    """The other one still acts."""
    model = trained(name)
    if getattr(model[1], parameter, None) is None:
        return  # it has none
    twin = copy.deepcopy(model)
    nn.init.constant_(getattr(twin[1], parameter), neutral)
    setattr(model[1], parameter, None)
    for training in (True, False):
        torch.testing.assert_close(model.train(training)(images(5)), twin.train(training)(images(5)))


@every_norm
def test_under_autocast_statistics_and_gradients_are_float32(name: str) -> None:
    model, reference = trained(name), trained(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(images(6))
    loss_of(y).backward()
    expected = train(reference, images(6))[0]
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    assert {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    got, expected = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (model, reference))
    assert (got - expected).norm() < 0.2 * expected.norm()


@every_norm
def test_a_half_model_keeps_its_statistics_in_float32(name: str) -> None:
    model, reference = trained(name).bfloat16(), trained(name)
    affine = ("weight", "bias")  # of a frozen layer
    statistics = {key: buffer for key, buffer in model[1].named_buffers() if key not in affine}
    assert not any(buffer.dtype == torch.bfloat16 for buffer in statistics.values())
    assert_same(statistics, {key: reference[1].get_buffer(key) for key in statistics})
    for mode in (True, False):
        y = model.train(mode)(images(6).bfloat16())
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), reference.train(mode)(images(6)), rtol=0.06, atol=0.06)
    loss_of(y).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())


@every_norm
def test_channels_last_stays(name: str) -> None:
    model, reference = trained(name), trained(name)
    model.to(memory_format=torch.channels_last)
    between = {}
    model[0].register_forward_hook(lambda _, args, y: between.update(y=y))
    x, dy = images(6), torch.randn(4, C, 3, 3)
    for mode in (True, False):
        y = model.train(mode)(x.contiguous(memory_format=torch.channels_last))
        (dx,) = torch.autograd.grad(y, between["y"], dy.contiguous(memory_format=torch.channels_last))
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert dx.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, reference.train(mode)(x), rtol=1e-4, atol=1e-5)


def compiled(model: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    torch.compiler.reset()
    return torch.compile(model, backend="aot_eager", fullgraph=name not in NOT_IN_ONE_GRAPH)


@every_norm
def test_a_compiled_model_equals_the_eager_one(name: str) -> None:
    model, reference = trained(name, torch.float64), trained(name, torch.float64)
    batches = [images(seed, dtype=torch.float64) for seed in (6, 7)]
    forward = compiled(model, name)
    torch.testing.assert_close(train(forward, *batches), train(reference, *batches))
    torch.testing.assert_close(gradients(model), gradients(reference))
    torch.testing.assert_close(model.state_dict(), reference.state_dict())
    model.eval(), reference.eval()
    torch.testing.assert_close(forward(batches[0]), reference(batches[0]))


def test_few_norms_are_left_out_of_the_graphs() -> None:
    assert len(NOT_IN_ONE_GRAPH) <= 2
    assert NOT_IN_ONE_GRAPH.keys() | MOMENTS_OF_A_RANK | OTHER_GRADIENT <= set(syncbn.available_norms())


@pytest.mark.slow
def test_inductor_makes_one_graph_of_all_of_them() -> None:
    """A convolution and a norm for every name, one after the other, so that Inductor starts once."""
    # Inductor hands torch's own weight_norm a channels-last weight there, which it refuses.
    left_out = {*NOT_IN_ONE_GRAPH, *(["weight"] if torch.__version__ < "2.11" else [])}

    def chain() -> nn.Sequential:
        torch.manual_seed(0)
        parts = [build(name) for name in syncbn.available_norms() if name not in left_out]
        return nn.Sequential(*(nn.Sequential(nn.ConvTranspose2d(C, 3, 2), part) for part in parts)).double()

    model, reference = chain(), chain()
    x = torch.randn(4, C, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.compiler.reset()
    forward = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(train(forward, x), train(reference, x))
    torch.testing.assert_close(gradients(model), gradients(reference))
    torch.testing.assert_close(model.state_dict(), reference.state_dict())


def ten_steps(name: str, rank: int, samples: int) -> dict[str, Any]:
    """Train on rows [rank·samples, (rank + 1)·samples) of each step's batch of 6; parameters and buffers after it."""
    model = build(name, dtype=torch.float64)
    layers = DistributedDataParallel(model, **compat.ddp_without_buffers()) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step in range(10):
        optimizer.zero_grad()
        train(layers, images(step, 6, torch.float64)[rank * samples :][:samples])
        optimizer.step()
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def ten_steps_on_rank(name: str) -> dict[str, Any]:
    state = ten_steps(name, dist.get_rank(), samples=3)
    return {key: value.detach() for key, value in state.items()}


@pytest.mark.distributed
@every_norm
def test_ranks_stay_equal_and_equal_one_process(name: str, ranks: Callable[[int], Ranks]) -> None:
    first, second = ranks(2).run(ten_steps_on_rank, name)
    parameters = [key for key, _ in build(name).named_parameters()]
    for key in parameters if name in MOMENTS_OF_A_RANK else first:
        assert_same(first[key], second[key])
    one_process = ten_steps(name, 0, samples=6)
    assert first.keys() == one_process.keys()
    if name not in MOMENTS_OF_A_RANK:
        torch.testing.assert_close(first, {key: value.detach() for key, value in one_process.items()})


@every_norm
def test_gradients_are_derivatives(name: str) -> None:
    if name in OTHER_GRADIENT:
        return  # the layer's own test compares them with what they should be
    model = build(name, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model[1].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    names = [key for key, _ in model[1].named_parameters()]

    def outputs(x: Tensor, *parameters: Tensor) -> Tensor:
        fresh = copy.deepcopy(model)  # every call from the same state
        values = {f"1.{key}": value for key, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(fresh, values, (x,))[:, :3]

    for mode in (True, False):
        model.train(mode)
        x = images(0, 2, torch.float64)[..., :3, :2].contiguous().requires_grad_()
        parameters = [p.detach().clone().requires_grad_() for p in model[1].parameters()]
        assert torch.autograd.gradcheck(outputs, (x, *parameters), fast_mode=True)


@every_norm
def test_accumulated_gradients_are_the_sum(name: str) -> None:
    together, apart = trained(name), trained(name)
    train(together, images(6), images(7, 5))
    total: dict[str, Tensor] = {}
    for x in (images(6), images(7, 5)):
        train(apart, x)
        for key, parameter in apart.named_parameters():
            assert parameter.grad is not None
            total[key] = total.get(key, 0) + parameter.grad
        apart.zero_grad()
    assert_same(gradients(together), total)
    assert_same(together.state_dict(), apart.state_dict())


@every_norm
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_pass_gives_the_same_gradients_and_counts_once(name: str, reentrant: bool) -> None:
    model, reference = trained(name), trained(name)
    batches = [images(6).requires_grad_(), images(7).requires_grad_()]
    outputs = train(lambda x: checkpoint(model, x, use_reentrant=reentrant), *batches)
    torch.testing.assert_close(outputs, train(reference, *batches))
    torch.testing.assert_close(gradients(model), gradients(reference))
    torch.testing.assert_close(model.state_dict(), reference.state_dict())


EXTREMES = {
    "no variance": torch.full((4, 3, 4, 4), 3.0),
    "zeros": torch.zeros(4, 3, 4, 4),
    "far from zero": images(6) + 1e4,
    "tiny": images(6) * 1e-20,
    "large": images(6) * 1e9,
    "one sample": images(6, 1),
    "one value": images(6, 1)[..., :2, :2],
}


@every_norm
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extreme_inputs_give_finite_numbers_or_a_clear_error(name: str, extreme: str) -> None:
    model, x = trained(name), EXTREMES[extreme].clone().requires_grad_()
    message = ""
    try:
        y = model(x)
    except ValueError as error:
        message = str(error)
    if message:
        assert extreme in ("one sample", "one value"), message
        assert "sample" in message or "more than 1 value per channel" in message
        return
    loss_of(y).backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers())
    assert model.eval()(images(8)).isfinite().all()


# Values other than the default, where none follows from the default's type.
OTHER_VALUES = {
    ("sync", "memory"): "recompute",
    ("batch_renorm", "start_step"): 1,
    ("group", "groups"): 4,
    ("decorrelated", "group_size"): 2,
    ("dynamic_tanh", "channel_dim"): -1,
    ("dynamic_erf", "channel_dim"): -1,
}

# Options required by another one.
COMPANIONS = {("sync", "memory"): {"fuse_activation": True}}


def other_value(name: str, option: str, default: Any) -> Any:
    if (name, option) in OTHER_VALUES:
        return OTHER_VALUES[name, option]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return default / 2 or 0.5
    raise AssertionError(f"give {(name, option)} a value in OTHER_VALUES, which isn't {default!r}")


@every_norm
def test_the_repr_shows_the_number_of_channels_and_the_options(name: str) -> None:
    options, build_layer = OPTIONS.get(name, {}), syncbn.norm_layer
    if name != "none":  # torch's Identity has no channels
        assert f"({C}, " in repr(build_layer(name, **options)(C))
    for option in set(norm_options(name)) - {"process_group", "device", "dtype", "keras_momentum"}:
        value = other_value(name, option, defaults(known_options()[name])[option])
        chosen = {**options, **COMPANIONS.get((name, option), {}), option: value}
        assert f"{option}={value!r}" in repr(build_layer(name, **chosen)(C))
