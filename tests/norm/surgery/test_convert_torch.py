"""`convert(model, "torch")` gives torch's own layers, whoever built the model, and every tool of torch takes them."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qat_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_qat_fx

import syncbn
from syncbn.models.resnet import resnet18
from syncbn.norm.core.capabilities import evaluates_as_batch_norm

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
PLAIN = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
# Norms that divide by running_mean and running_var in evaluation, and by nothing else.
BATCH_NORMS = [name for name in syncbn.available_norms() if evaluates_as_batch_norm(syncbn.norm_layer(name)(2))]


def image(dimensions: int, seed: int = 0) -> Tensor:
    return torch.randn(4, 3, *[5] * dimensions, generator=torch.Generator().manual_seed(seed))


def network(norm: Callable[[int], nn.Module], dimensions: int) -> nn.Sequential:
    """Norms after a convolution, after an activation, after pooling and after a linear layer."""
    torch.manual_seed(0)
    pool = getattr(nn, f"MaxPool{dimensions}d")(2)
    flat = [getattr(nn, f"AdaptiveAvgPool{dimensions}d")(1), nn.Flatten()]
    layers = [CONVOLUTIONS[dimensions](3, 4, 2), norm(4), nn.ReLU(), norm(4), pool, norm(4), *flat]
    return nn.Sequential(*layers, nn.Linear(4, 6), norm(6))


def used(model: nn.Module, dimensions: int) -> nn.Module:
    """With statistics, and γ and β, of their own."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor) and tensor.dim() == 1:
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return model


@pytest.mark.parametrize("name", [name for name in BATCH_NORMS if name != "moving_average"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("by", ["trace", "example"])
def test_a_model_that_was_built_with_a_batch_norm(name: str, dimensions: int, by: str) -> None:
    model = used(network(syncbn.norm_layer(name), dimensions), dimensions).eval()
    expected = model(image(dimensions))
    keys = list(network(nn.SyncBatchNorm, dimensions).state_dict())
    syncbn.convert(model, "torch", example_input=image(dimensions) if by == "example" else None)
    assert [type(model[place]) for place in (1, 3, 5, -1)] == [*[PLAIN[dimensions]] * 3, nn.BatchNorm1d]
    torch.testing.assert_close(model(image(dimensions)), expected)
    assert list(model.state_dict()) == keys
    assert not model[1].training


def test_a_moving_average_s_mean_is_that_of_centred_filters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), syncbn.norm_layer("moving_average", centre=False)(4)).eval()
    model[1].running_var.mul_(2)
    expected = model(image(2))
    torch.testing.assert_close(syncbn.convert(model, "torch")(image(2)), expected)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_torch_s_sync_batch_norm(dimensions: int) -> None:
    model = used(network(nn.SyncBatchNorm, dimensions), dimensions).eval()
    expected = model(image(dimensions))
    syncbn.convert(model, "torch")
    assert [type(model[place]) for place in (1, 3, 5, -1)] == [*[PLAIN[dimensions]] * 3, nn.BatchNorm1d]
    torch.testing.assert_close(model(image(dimensions)), expected)


def test_training_goes_on_as_torch_s() -> None:
    model = network(syncbn.norm_layer("sync", momentum=0.3, eps=0.01), 2)
    plain = network(functools.partial(syncbn.norm_layer("batch", momentum=0.3, eps=0.01)), 2)
    plain.load_state_dict(model.state_dict())
    parameters = list(model.parameters())
    syncbn.convert(model, "torch")
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    for seed in range(2):
        torch.testing.assert_close(model(image(2, seed)), plain(image(2, seed)))
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


def test_layers_that_were_converted_come_back_themselves() -> None:
    model = nn.Sequential(nn.BatchNorm3d(3), nn.ReLU(), nn.BatchNorm1d(3))
    before = list(model)
    syncbn.convert(syncbn.convert(model, "sync"), "torch")
    assert all(a is b for a, b in zip(model, before, strict=True))
    assert not any("conversion" in vars(layer) for layer in model)
    syncbn.convert(model, "torch")
    assert all(a is b for a, b in zip(model, before, strict=True))


def test_revert_gives_the_built_layers_back() -> None:
    model = network(syncbn.norm_layer("sync"), 2)
    before = model[1]
    syncbn.convert(model, "torch")
    model(image(2))
    mean = model[1].running_mean.clone()
    syncbn.revert(model)
    assert model[1] is before
    torch.testing.assert_close(before.running_mean, mean)


@pytest.mark.parametrize("flags", [(False, True), (True, False), (False, False)])
def test_layers_without_parameters_or_statistics(flags: tuple[bool, bool]) -> None:
    affine, tracks = flags
    norm = functools.partial(syncbn.SyncBatchNorm, affine=affine, track_running_stats=tracks)
    model = network(norm, 2)
    expected = copy.deepcopy(model)(image(2))
    syncbn.convert(model, "torch")
    torch.testing.assert_close(model(image(2)), expected)
    assert (model[1].weight is not None, model[1].running_mean is not None) == flags


def test_a_layer_without_a_bias() -> None:
    model = nn.Sequential(nn.Linear(3, 4), syncbn.SyncBatchNorm(4, bias=False))
    expected = copy.deepcopy(model)(torch.eye(3))
    torch.testing.assert_close(syncbn.convert(model, "torch")(torch.eye(3)), expected)
    assert model[1].bias is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_in_another_precision(dtype: torch.dtype) -> None:
    model = used(network(syncbn.norm_layer("sync"), 2), 2).to(dtype).eval()
    expected = model(image(2).to(dtype))
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype != torch.float64 else {}
    torch.testing.assert_close(syncbn.convert(model, "torch")(image(2).to(dtype)), expected, **tolerance)


class Untraceable(nn.Module):
    """Norms called with 4 dimensions, with 2 and with 3, with 4 and with 5, and never."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.flat = syncbn.SyncBatchNorm(3), syncbn.SyncBatchNorm(3)
        self.both, self.never = syncbn.SyncBatchNorm(3), nn.SyncBatchNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() == 0:
            return x
        y = self.flat(x.flatten(2)) + self.flat(x.mean([2, 3])).unsqueeze(-1)
        return self.image(x) + self.both(x) + self.both(x.unsqueeze(-1)).squeeze(-1) + y.view(x.shape)


def test_layers_that_nothing_tells_of_are_refused_all_at_once() -> None:
    model = Untraceable()
    with pytest.raises(ValueError, match="give an example_input") as refusal:
        syncbn.convert(model, "torch")
    assert all(name in str(refusal.value) for name in ("image:", "flat:", "both:", "never:"))
    with pytest.raises(ValueError, match="can't convert to 'torch'") as refusal:
        syncbn.convert(model, "torch", example_input=image(2))
    told = str(refusal.value)
    assert "never isn't called for this example_input" in told
    assert "both is called with (4, 3, 5, 5) and (4, 3, 5, 5, 1)" in told
    assert "image" not in told
    assert isinstance(model.image, syncbn.SyncBatchNorm)
    syncbn.convert(model, "torch", exclude=["both", "never"], example_input=image(2))
    assert [type(layer) for layer in (model.image, model.flat)] == [nn.BatchNorm2d, nn.BatchNorm1d]


@pytest.mark.parametrize("name", ["decorrelated", "switchable"])
def test_what_is_no_batch_norm_in_evaluation_is_refused(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), syncbn.norm_layer(name)(4))
    with pytest.raises(ValueError, match=r"1 \(\w+\) isn't a batch norm in evaluation"):
        syncbn.convert(model, "torch")


def test_a_layer_alone_needs_an_example() -> None:
    with pytest.raises(ValueError, match="give an example_input"):
        syncbn.convert(syncbn.SyncBatchNorm(3), "torch")
    assert type(syncbn.convert(syncbn.SyncBatchNorm(3), "torch", example_input=torch.randn(4, 3, 2))) is nn.BatchNorm1d


def test_options_are_refused() -> None:
    with pytest.raises(ValueError, match="torch's own layers have no option eps"):
        syncbn.convert(nn.Sequential(syncbn.SyncBatchNorm(3)), "torch", eps=0.1)


def test_norms_that_are_none_of_these_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), syncbn.norm_layer("rms")(4), syncbn.SyncBatchNorm(4))
    others = model[1], model[2]
    syncbn.convert(model, "torch", example_input=image(2))
    assert (model[1], model[2]) == others
    assert type(model[3]) is nn.BatchNorm2d


def traced(model: Any) -> Any:
    return torch.fx.symbolic_trace(model)


def scripted(model: Any) -> Any:
    return torch.jit.script(model)


def fused(model: Any) -> Any:
    from torch.fx.experimental.optimization import fuse

    return fuse(model)


def prepared(model: Any) -> Any:
    return prepare_qat_fx(copy.deepcopy(model).train(), get_default_qat_qconfig_mapping(), (image(2),)).eval()


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*deprecated", "ignore:.*torch.ao.quantization.*", "ignore:.*quant_min.*"
)
@pytest.mark.parametrize("tool", [traced, scripted, fused, prepared])
@pytest.mark.parametrize("build", ["ours", "torch's"])
def test_tools_of_torch_take_the_result(tool: Callable[[Any], Any], build: str) -> None:
    model = used(network(syncbn.norm_layer("sync") if build == "ours" else nn.SyncBatchNorm, 2), 2).eval()
    expected = model(image(2))
    result = tool(syncbn.convert(model, "torch"))
    if tool is prepared:  # it rounds, and makes norms a part of convolutions, for which it needs torch's
        assert "BnReLU" in str(result) or "ConvBn" in str(result)
        return
    torch.testing.assert_close(result(image(2)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_a_whole_resnet_by_trace() -> None:
    model = resnet18(norm="sync", num_classes=3).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    syncbn.convert(model, "torch", example_input=x)
    assert not [name for name, module in model.named_modules() if isinstance(module, syncbn.SyncBatchNorm)]
    torch.testing.assert_close(model(x), expected)


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's documentation describes it."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.eps = 1e-5
        for name, value in (("weight", 2.0), ("bias", 0.5), ("running_mean", 0.1), ("running_var", 3.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale.view(-1, 1, 1) + (self.bias - self.running_mean * scale).view(-1, 1, 1)


def test_other_packages_frozen_layers_know_their_dimensions() -> None:
    model = nn.Sequential(FrozenBatchNorm2d(3)).eval()
    expected = model(image(2))
    torch.testing.assert_close(syncbn.convert(model, "torch")(image(2)), expected)
    assert type(model[0]) is nn.BatchNorm2d
