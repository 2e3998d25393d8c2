"""Batches of any shape: dicts, lists of images with targets, single samples, and functions that call the model."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import syncbn
from syncbn.policy import Tent
from tests.policy.nets import images


class Detector(nn.Module):
    """Takes lists of images of several sizes, like torchvision's detectors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pictures: list[Tensor], targets: Any = None) -> dict[str, Tensor]:
        side = max(max(p.shape[1:]) for p in pictures)
        padded = [nn.functional.pad(p, (0, side - p.shape[2], 0, side - p.shape[1])) for p in pictures]
        return {"features": self.norm(self.conv(torch.stack(padded))).flatten(1)[:, :6]}


class Encoder(nn.Module):
    """Takes keyword arguments, like transformers' models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, features: Tensor, *, mask: Tensor | None = None) -> Tensor:
        y = self.embed(features)
        return self.norm(y if mask is None else y * mask[:, None])


def scenes(*sizes: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    pictures = [torch.rand(2, side, side + 1, generator=torch.Generator().manual_seed(side)) for side in sizes]
    return pictures, [{"boxes": torch.zeros(i, 4)} for i in range(len(sizes))]


def rows(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return {"features": torch.randn(count, 5, generator=generator), "mask": torch.ones(count)}


def expected(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    stacked = torch.cat(values).double()
    return stacked.mean(0).float(), stacked.var(0).float()


def test_lists_of_images_with_targets() -> None:
    net = Detector()
    batches = [scenes(4, 6), scenes(5, 3, 4)]
    seen: list[Tensor] = []
    hook = net.norm.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach().transpose(0, 1).flatten(1).T)
    )
    syncbn.recalibrate(net, batches)
    hook.remove()
    torch.testing.assert_close((net.norm.running_mean, net.norm.running_var), expected(seen))
    assert syncbn.inspect(net, batches).rows[0].samples
    assert syncbn.verify(syncbn.convert(net, "sync"), scenes(4, 6, 4, 6, 6))
    pictures = (scenes(6, 6)[0],)
    torch.testing.assert_close(syncbn.fuse(net, pictures)(*pictures), net.eval()(*pictures))


def test_dicts_are_keyword_arguments() -> None:
    net = Encoder()
    batches = [rows(4), rows(7)]
    syncbn.recalibrate(net, batches)
    values = [net.embed(batch["features"]).detach() for batch in batches]
    torch.testing.assert_close((net.norm.running_mean, net.norm.running_var), expected(values))
    assert syncbn.inspect(net, batches).rows[0].samples == 7
    assert syncbn.verify(syncbn.convert(net, "sync"), rows(7))
    assert Tent(net)(rows(4)).shape == (4, 3)


def test_a_dict_beside_labels_is_the_input() -> None:
    net = Encoder()
    syncbn.recalibrate(net, [(rows(4), torch.zeros(4))])
    assert net.norm.running_mean.any()


def forward(model: nn.Module, batch: Any) -> Tensor:
    return model(batch["image"])


def test_a_function_says_how_the_model_is_called() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Flatten())
    batches = [{"image": images(4), "label": torch.zeros(4)}]
    syncbn.recalibrate(net, batches, forward=forward)
    other = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Flatten())
    other.load_state_dict(net.state_dict())
    syncbn.recalibrate(other, [images(4)])
    torch.testing.assert_close(net.state_dict(), other.state_dict())
    assert syncbn.inspect(net, batches, forward=forward).rows
    assert syncbn.verify(syncbn.convert(net, "sync"), {"image": images(7), "label": torch.zeros(7)}, forward=forward)
    assert Tent(net, forward=forward)(batches[0]).shape == (4, 3 * 36)
    syncbn.adapt(net, batches, method="tent", forward=forward)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": 1}, r"Sequential takes input; the batch has 'image': give forward=lambda"),
        ("path.png", "got str; say how the model is called with forward="),
        ([["path.png"], [3]], "got list of list; say how"),
        ((), "got tuple; say how"),
        (None, "got NoneType; say how"),
    ],
)
@pytest.mark.parametrize("policy", [syncbn.recalibrate, syncbn.inspect])
def test_what_no_model_takes_is_refused(policy: Any, batch: Any, message: str) -> None:
    net = nn.Sequential(nn.BatchNorm2d(2))
    with pytest.raises(TypeError, match=message):
        policy(net, [batch])


def test_a_last_batch_of_one_sample_is_skipped_and_said() -> None:
    net, other = Encoder(), Encoder()
    other.load_state_dict(net.state_dict())
    with pytest.warns(UserWarning, match="a batch of one sample is skipped"):
        syncbn.recalibrate(net, [rows(6), rows(1)])
    syncbn.recalibrate(other, [rows(6)])
    torch.testing.assert_close(net.norm.running_var, other.norm.running_var)
    with pytest.warns(UserWarning, match="a batch of one sample is skipped"):
        syncbn.adapt(net, [rows(6), rows(1)], method="tent")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        Tent(other)(rows(1))


def logits(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), norm, nn.ReLU(), nn.Linear(4, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tent_in_half_precision_learns_as_in_float32(dtype: torch.dtype) -> None:
    half, single = logits(nn.BatchNorm1d(4)).to(dtype), logits(nn.BatchNorm1d(4)).to(dtype).float()
    batches = [torch.randn(16, 5, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(20)]
    syncbn.adapt(half, batches, method="tent", lr=2e-4)
    syncbn.adapt(single, [b.float() for b in batches], method="tent", lr=2e-4)
    # Twenty steps of 2e-4, each below the resolution of bfloat16 at 1.
    torch.testing.assert_close(half[1].bias.float(), single[1].bias, rtol=0.1, atol=1e-3)
    assert half[1].weight.isfinite().all()


@pytest.mark.parametrize("method", ["adapt", "call"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_tent_refuses_what_is_not_finite_and_changes_nothing(method: str, bad: float) -> None:
    net = logits(nn.BatchNorm1d(4)).eval()
    good, wrong = torch.randn(8, 5), torch.full((8, 5), bad)
    before, y = {k: v.clone() for k, v in net.state_dict().items()}, net(good)
    if method == "adapt":
        with pytest.raises(ValueError, match="entropy isn't finite"):
            syncbn.adapt(net, [good, wrong], method="tent", lr=0.1)
        torch.testing.assert_close(net(good), y)
    else:
        tent = Tent(net, lr=0.1)
        tent(good)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        with pytest.raises(ValueError, match="entropy isn't finite"):
            tent(wrong)
    torch.testing.assert_close(net.state_dict(), before)


def test_tent_of_a_batch_that_fails_leaves_the_model_as_it_was() -> None:
    net = logits(nn.BatchNorm1d(4)).eval()
    before, y = {k: v.clone() for k, v in net.state_dict().items()}, net(torch.ones(2, 5))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        syncbn.adapt(net, [torch.randn(8, 5), torch.randn(8, 6)], method="tent", lr=0.1)
    torch.testing.assert_close(net.state_dict(), before)
    torch.testing.assert_close(net(torch.ones(2, 5)), y)


def test_tent_says_what_logits_are() -> None:
    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = logits(nn.BatchNorm1d(4))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(x)}

    with pytest.raises(ValueError, match=r"logits \(N, classes, \*\), got a dict; take them .* with forward="):
        Tent(Output())(torch.randn(4, 5))
    assert Tent(Output(), forward=lambda model, batch: model(batch)["logits"])(torch.randn(4, 5)).shape == (4, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tent_takes_no_probabilities_for_logits(dtype: torch.dtype) -> None:
    net, x = logits(nn.BatchNorm1d(4)).to(dtype), torch.randn(6, 5, dtype=dtype)
    ends = {"softmax": nn.Sequential(net, nn.Softmax(1)), "log_softmax": nn.Sequential(net, nn.LogSoftmax(1))}
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"returns probabilities, .* give forward=lambda model, batch: model\(batch\)"):
        syncbn.adapt(ends["softmax"], [x], method="tent")
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    syncbn.adapt(ends["log_softmax"], [x], method="tent", lr=0.1)
    torch.testing.assert_close(
        syncbn.adapt(logits(nn.BatchNorm1d(4)).to(dtype), [x], method="tent", lr=0.1).state_dict(), net.state_dict()
    )


@pytest.mark.parametrize("reentrant", [False, True])
def test_tent_says_what_no_gradient_reaches(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = logits(nn.BatchNorm1d(4))
            self.first = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(checkpoint(self.first, x.requires_grad_(), use_reentrant=reentrant))

    net = Checkpointed()
    syncbn.adapt(net, method="batch")
    with torch.no_grad():
        net(torch.randn(6, 5))  # an evaluation is no step
    batches = [torch.randn(6, 5), torch.randn(6, 5)]
    if reentrant:
        with pytest.warns(UserWarning, match="γ and β of 1 of 2 layers aren't learned.*use_reentrant=False") as told:
            syncbn.adapt(net, batches, method="tent")
        assert len(told) == 1
    else:
        syncbn.adapt(net, batches, method="tent")
    assert torch.equal(net.first[1].weight, torch.ones(5)) == reentrant
