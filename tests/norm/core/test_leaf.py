"""Tools that read a model's code: `torch.fx` takes every norm as a whole, TorchScript traces it or says what to do."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qat_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_qat_fx

import syncbn
from syncbn.norm.core.attachable import Attachable
from tests.norm.test_every_norm import build, every_norm, images, trained

pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore:.*torch.jit.*deprecated",
    "ignore:.*torch.ao.quantization.*",
    "ignore:.*quant_min.*",
)

# Layers whose `forward` is torch's, which can be traced and scripted as it is.
OF_TORCH = {"none", "group", "instance", "layer"}


@every_norm
def test_a_symbolic_trace_computes_the_same_in_both_modes(name: str) -> None:
    model = build(name)
    traced = torch.fx.symbolic_trace(model)
    if name not in OF_TORCH:
        assert traced.get_submodule("1") is model[1]
    for training in (False, True):
        graph, plain = copy.deepcopy(traced).train(training), copy.deepcopy(model).train(training)
        torch.testing.assert_close(graph(images(1)), plain(images(1)))


class Activated(syncbn.SyncBatchNorm):
    """A subclass with a forward of its own, which must be a leaf as a whole."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.relu(super().forward(input, mask))


class Sharpened(Activated):
    """Its subclass, without one."""


@pytest.mark.parametrize("kind", [Activated, Sharpened])
def test_a_subclass_is_a_leaf_as_a_whole(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), kind(4), nn.Sigmoid())
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1", "2"]
    torch.testing.assert_close(traced(images(0)), copy.deepcopy(model)(images(0)))


def test_a_mask_is_an_argument_of_the_leaf() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = syncbn.SyncBatchNorm(3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.norm(x, mask=mask)

    x, mask = torch.randn(6, 3), torch.tensor([True, True, False, True, True, False])
    net = Net()
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x, mask), copy.deepcopy(net)(x, mask))


def test_an_activation_of_timm_is_part_of_the_leaf() -> None:
    class BatchNormAct2d(nn.BatchNorm2d):
        def __init__(self, num_features: int) -> None:
            super().__init__(num_features)
            self.drop, self.act = nn.Identity(), nn.Softplus()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.drop(super().forward(x)))

    model = syncbn.convert(nn.Sequential(BatchNormAct2d(3)), "sync")
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images(0)), copy.deepcopy(model)(images(0)))


@pytest.mark.parametrize(
    "name", [name for name in syncbn.available_norms() if not isinstance(build(name)[1], Attachable)]
)
def test_quantization_aware_training_leaves_the_norm_in_the_graph(name: str) -> None:
    """Others act on the convolution before them, which torch puts another one in the place of, or refuses to."""
    model = build(name).train()
    prepared: Any = prepare_qat_fx(model, get_default_qat_qconfig_mapping(), (images(0),))
    assert prepared(images(1)).shape == (4, 8, 3, 3)


@every_norm
def test_evaluation_is_traced_for_batches_and_images_of_any_size(name: str) -> None:
    model = trained(name).eval()
    traced = torch.jit.trace(model, images(0), check_trace=False)
    x = torch.cat([images(1), images(2), images(3)])[:, :, :, :3].clone()
    torch.testing.assert_close(traced(x), model(x))


@every_norm
def test_script_says_what_works_instead(name: str) -> None:
    layer = build(name)[1].eval()
    if name not in OF_TORCH:
        with pytest.raises(NotImplementedError, match=r"torch.jit.trace\(model.eval\(\), example_input\)"):
            torch.jit.script(nn.Sequential(nn.ReLU(), layer))
        return
    x = torch.randn(4, 8, 3, 3)
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))


SAMPLES = {0: torch.export.Dim("samples", min=2, max=500)}


@every_norm
@pytest.mark.parametrize("training", [False, True])
def test_an_export_takes_batches_of_any_size(name: str, training: bool) -> None:
    model = build(name) if training else trained(name)
    model.train(training)
    if name == "cross_iteration" and training:
        with pytest.raises(NotImplementedError, match="a graph holds no window"):
            torch.export.export(model, (images(0),), dynamic_shapes=(SAMPLES,), strict=False)
        return
    program = torch.export.export(copy.deepcopy(model), (images(0),), dynamic_shapes=(SAMPLES,), strict=False)
    exported = program.module()
    for batch in (images(1, samples=7), images(2, samples=40)):
        torch.testing.assert_close(exported(batch), model(batch), rtol=1e-4, atol=1e-5)
    expected = dict(model.named_buffers())
    for key, value in exported.named_buffers():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 32])
@pytest.mark.parametrize("shape", [(5,), (5, 4), (5, 4, 2)])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", ["export", "trace"])
def test_ghost_batches_in_a_graph_are_those_of_the_loop(
    size: int, shape: tuple[int, ...], momentum: float | None, kind: str
) -> None:
    """Far from 0, where sums that aren't taken about the data would cancel."""
    generator = torch.Generator().manual_seed(0)

    def batch(samples: int) -> Tensor:
        return torch.randn(samples, *shape, generator=generator, dtype=torch.float64) + 1e4

    layer = syncbn.norm_layer("ghost", ghost_batch_size=size, momentum=momentum)(5).double()
    if kind == "export":
        program = torch.export.export(copy.deepcopy(layer), (batch(9),), dynamic_shapes=(SAMPLES,), strict=False)
        graph: Any = program.module()
    else:
        graph = torch.jit.trace(copy.deepcopy(layer), batch(9), check_trace=False)
        graph.load_state_dict(layer.state_dict())
    for samples in (6, 12, 38):
        x = batch(samples)
        torch.testing.assert_close(graph(x), layer(x))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(graph, name), getattr(layer, name))
