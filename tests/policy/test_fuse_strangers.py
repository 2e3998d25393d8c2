"""Fusing networks in various styles: never wrong, never broken, and folded where possible."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import syncbn
from tests.policy import strangers
from tests.policy.pairs import PAIRS, in_the_shortcut
from tests.policy.strangers import Pair, images, results, seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.trace(_method)?` is deprecated"),
]


def fused_of(net: nn.Module, x: Any, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return syncbn.fuse(net, x, **options)


def check(net: nn.Module, fused: nn.Module) -> None:
    """Compare on numbers that the policy hasn't seen."""
    for seed in (5, 6):
        x = images(3, seed)
        torch.testing.assert_close(results(fused, x), results(net, x), rtol=1e-9, atol=1e-9)


def snapshot(net: nn.Module) -> list[Any]:
    hooks = [dict(value) for m in net.modules() for name, value in vars(m).items() if name.endswith("_hooks")]
    return [
        dict(net.named_modules()),
        hooks,
        {n: t.clone() for n, t in net.state_dict().items()},
        *map(type, net.modules()),
    ]


@pytest.mark.parametrize("example", [images(), torch.zeros(2, 3, 8, 8, dtype=torch.float64)], ids=["noise", "zeros"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_folded_or_left_with_the_reason(name: str, example: Tensor) -> None:
    make, expected = PAIRS[name]
    net = seeded(make)
    modules, hooks, state, *_ = snapshot(net)
    fused = fused_of(net, example)
    check(net, fused)
    after = snapshot(net)
    assert after[:2] == [modules, hooks]
    torch.testing.assert_close(after[2], state, rtol=0, atol=0)
    reason = {plan.layer: plan.reason for plan in syncbn.plan_fusion(net, example)}["norm"]
    assert (reason or "folded") == "folded" if expected == "folded" else expected in str(reason)
    assert (getattr(fused.norm, "running_mean", None) is None) == (expected == "folded")


@pytest.mark.parametrize(
    ("make", "folded", "norms"),
    [(strangers.resnet18, 20, 20), (strangers.vgg_bn, 8, 8), (strangers.Inception, 5, 6), (strangers.DenseNet, 4, 8)],
)
def test_networks_of_torchvision(make: Callable[[], nn.Module], folded: int, norms: int) -> None:
    """DenseNet: those that follow one convolution, the first norm of a layer follows a concatenation."""
    net = seeded(make)
    plan = syncbn.plan_fusion(net, images())
    assert len(plan) == norms
    assert sum(step.reason is None for step in plan) == folded
    check(net, fused_of(net, images()))


def test_an_activation_of_the_norm_stays_in_its_place() -> None:
    net = seeded(PAIRS["timm's norm"][0])
    fused = fused_of(net, images())
    assert [name for name, _ in fused.norm.named_children()] == ["drop", "act"]
    assert "norm.act.weight" in fused.state_dict()
    assert type(fused_of(seeded(PAIRS["activated norm"][0]), images()).norm) is nn.ReLU
    leaky = fused_of(seeded(PAIRS["leaky norm"][0]), images()).norm
    assert (type(leaky), leaky.negative_slope) == (nn.LeakyReLU, 0.3)


def test_linear_layers_over_tokens() -> None:
    """LeViT normalizes flattened tokens; others transpose them."""

    class Tokens(nn.Module):
        def __init__(self, transpose: bool) -> None:
            super().__init__()
            self.fc, self.norm, self.transpose = nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), transpose

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x[:, 0])
            return self.norm(y.transpose(1, 2)) if self.transpose else self.norm(y.flatten(0, 1)).reshape_as(y)

    for transpose in (False, True):
        net = seeded(lambda transpose=transpose: Tokens(transpose))
        fused = fused_of(net, images())
        assert isinstance(fused.norm, nn.Identity)
        check(net, fused)


class Between(nn.Module):
    """A linear layer over the rows of images, with its bias as torch adds it to strided inputs, and a norm after it."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor], bias: bool) -> None:
        super().__init__()
        self.fc, self.norm, self.between = nn.Linear(8, 6, bias=bias), nn.BatchNorm1d(6), between

    def forward(self, x: Tensor) -> Any:
        return self.between(self, self.fc(x[:, 0].transpose(1, 2)))


def added_twice(net: Any, y: Tensor) -> Tensor:
    return net.norm((y + net.fc.bias).transpose(1, 2))


def copied_and_returned(net: Any, y: Tensor) -> list[Tensor]:
    z = y.transpose(1, 2).contiguous()
    return [net.norm(z), z]


def copied_and_written(net: Any, y: Tensor) -> Tensor:
    z = y.transpose(1, 2).contiguous()
    z[:, :, 0] = 0
    return net.norm(z)


def half_of_a_copy(net: Any, y: Tensor) -> Tensor:
    return net.norm(y.transpose(1, 2).contiguous()[:, :, ::2])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("between", "folds"),
    [
        (lambda net, y: net.norm(y.transpose(1, 2)), True),
        (lambda net, y: net.norm(y.transpose(1, 2).contiguous()), True),
        (lambda net, y: net.norm(y.transpose(1, 2).contiguous().clone().unsqueeze(-1).squeeze(-1)), True),
        (lambda net, y: net.norm(y.reshape(-1, 6)), True),
        (lambda net, y: [net.norm(y.transpose(1, 2).contiguous()), y], False),
        (added_twice, False),
        (copied_and_returned, False),
        (copied_and_written, False),
        (half_of_a_copy, False),
    ],
    ids=["transposed", "copied", "twice", "rows", "source", "added", "returned", "written", "half"],
)
def test_copies_and_the_layers_own_bias_are_no_hindrance(between: Any, folds: bool, bias: bool) -> None:
    if between is added_twice and not bias:
        return
    net = seeded(lambda: Between(between, bias))
    fused = fused_of(net, images())
    assert isinstance(fused.norm, nn.Identity) == folds
    check(net, fused)


# --- how a model is called ------------------------------------------------------------------------------------------


class Detector(nn.Module):
    """As in torchvision: a list of images of any size, results as a list of dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.anchors: list[Tensor] = []

    def forward(self, images: list[Tensor], targets: Any = None) -> list[dict[str, Tensor]]:
        side = max(max(image.shape[-2:]) for image in images)
        batch = images[0].new_zeros(len(images), 3, side, side)
        for image, row in zip(images, batch, strict=True):
            row[:, : image.shape[-2], : image.shape[-1]].copy_(image)
        scores = self.norm(self.conv(batch)).flatten(1)
        best = scores.topk(3).indices
        return [{"scores": s[i], "labels": i} for s, i in zip(scores, best, strict=True)]


def test_lists_tuples_dictionaries_and_call_functions() -> None:
    pictures = [images(1)[0], images(1, seed=2)[0, :, :5]]
    net = seeded(Detector)
    for example in (pictures, (pictures,), (pictures, None), {"images": pictures}):
        assert isinstance(fused_of(net, example).norm, nn.Identity)
    fused = fused_of(net, {"batch": pictures}, forward=lambda model, example: model(example["batch"]))
    torch.testing.assert_close(results(fused, (pictures,)), results(net, (pictures,)), rtol=1e-9, atol=1e-9)
    plan = syncbn.plan_fusion(net, pictures, forward=lambda model, example: model(example))
    assert [step.reason for step in plan] == [None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_other_precisions(dtype: torch.dtype) -> None:
    net = seeded(lambda: Pair(in_the_shortcut)).to(dtype)
    fused = fused_of(net, images().to(dtype))
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(p.dtype == dtype for p in fused.parameters())


def test_a_folded_weight_that_would_overflow_stays() -> None:
    net = seeded(Pair).half()
    net.norm.running_var.zero_()
    net.norm.eps = 1e-12
    (step, _) = syncbn.plan_fusion(net, images().half())
    assert "the folded weights don't fit torch.float16" in str(step.reason)


def test_a_model_that_runs_in_its_own_precision_only() -> None:
    class Casts(Pair):
        def forward(self, x: Tensor) -> Tensor:
            assert self.conv.weight.dtype == torch.float32
            return super().forward(x.float())

    net = seeded(Casts).float()
    fused = fused_of(net, images().float())
    assert isinstance(fused.norm, nn.Identity)
    torch.testing.assert_close(results(fused, images()), results(net, images()), rtol=1e-4, atol=1e-4)


# --- refused --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_looked_into_is_refused_in_one_line() -> None:
    net = seeded(Pair)
    example = images()
    for model, message in (
        (torch.compile(net), r"is compiled: give the one inside, syncbn\.fuse\(model\._orig_mod"),
        (torch.jit.script(nn.Sequential(net.conv, net.norm)), r"is a ScriptModule.*torch\.jit\.script\(syncbn\.fuse"),
        (torch.jit.trace(nn.Sequential(net.conv, net.norm), example), "is a ScriptModule"),
        (nn.DataParallel(net), r"wrapped by DataParallel: give the one inside, syncbn\.fuse\(model\.module"),
    ):
        for policy in (syncbn.fuse, syncbn.plan_fusion):
            with pytest.raises(ValueError, match=message) as caught:
                policy(model, example)
            assert "\n" not in str(caught.value)


def ddp_message() -> str:
    with pytest.raises(ValueError, match="wrapped") as caught:
        syncbn.fuse(DistributedDataParallel(seeded(Pair).float()), images().float())
    return str(caught.value)


@pytest.mark.distributed
def test_a_wrapped_model_is_refused(ranks: Callable[[int], Any]) -> None:
    for message in ranks(2).run(ddp_message):
        assert "DistributedDataParallel: give the one inside, syncbn.fuse(model.module, ...)" in message


def test_parts_that_are_compiled_or_scripted_stay_as_they_are() -> None:
    net = seeded(Pair)
    part = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).double())
    model = nn.Sequential(
        torch.compile(net, backend="eager"), part, nn.DataParallel(nn.Conv2d(4, 4, 1).double())
    ).eval()
    reasons = {step.layer: step.reason for step in syncbn.plan_fusion(model, images())}
    assert reasons["0._orig_mod.norm"] is None
    assert "called 0 times" in str(reasons["1.1"])
    check(model, fused_of(model, images()))


# --- the proof ------------------------------------------------------------------------------------------------------


def test_a_path_that_the_example_does_not_take_is_found_by_other_numbers() -> None:
    """For either norm that the example takes, folding is wrong for other inputs."""

    def body(net: Any, x: Tensor) -> Tensor:
        y = net.conv(x)
        return net.norm(y) if x.std() > 1e-3 else net.norm2(y)

    net = seeded(lambda: Pair(body))
    state = copy.deepcopy(net.state_dict())
    example = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"norm2.*conv|with norm2 folded"):
        fused_of(net, example)
    torch.testing.assert_close(net.state_dict(), state, rtol=0, atol=0)


def test_what_would_break_is_refused_by_name() -> None:
    net = seeded(lambda: Pair(lambda net, x: net.norm(net.conv(x)) * len(next(net.norm.buffers()))))
    with pytest.raises(ValueError, match="fusing norm would break this model: StopIteration"):
        fused_of(net, images())
    assert isinstance(net.norm, nn.BatchNorm2d)


def test_a_wrong_folding_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from syncbn.policy import fold

    right = fold.folded

    def wrong(feeder: Any, layer: Any) -> tuple[Tensor, Tensor]:
        weight, bias = right(feeder, layer)
        bias[-1] += 1e-6  # of one channel, by a millionth
        return weight, bias

    monkeypatch.setattr(fold, "folded", wrong)
    net = seeded(strangers.resnet18)
    with pytest.raises(ValueError, match=r"1, folded into 0, would return something else: it differs by \d"):
        fused_of(net, images())


def test_a_side_use_that_only_the_proof_can_see_is_found() -> None:
    """A separate thread that returns Python numbers: no operator, no tensor."""
    import threading

    def body(net: Any, x: Tensor) -> Tensor:
        y = net.conv(x)
        found: list[float] = []
        thread = threading.Thread(target=lambda: found.append(y.abs().mean().item()))
        thread.start()
        thread.join()
        return net.norm(y) * found[0]

    with pytest.raises(ValueError, match="with norm folded, the model would return something else"):
        fused_of(seeded(lambda: Pair(body)), images())


def test_an_unstable_network_is_no_false_alarm() -> None:
    """Sorting by nearly equal scores, and a hundred layers: rounding doesn't accumulate in the comparison."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            units = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh()) for _ in range(60)]
            self.stem, self.units = nn.Conv2d(3, 4, 1), nn.Sequential(*units)

        def forward(self, x: Tensor) -> Tensor:
            y = self.units(100 * self.stem(x)).flatten(1)
            return y.gather(1, (y * 1e-13).sigmoid().argsort(1))

    net = seeded(Deep)
    assert len([m for m in fused_of(net, images()).modules() if isinstance(m, nn.Identity)]) == 60


def test_dropout_that_is_always_on_is_no_difference() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        return nn.functional.dropout(net.norm(net.conv(x))) + 0.1 * torch.randn(4, 8, 8, dtype=torch.float64)

    assert isinstance(fused_of(seeded(lambda: Pair(body)), images()).norm, nn.Identity)


@pytest.mark.parametrize(
    ("value", "reason"), [(-0.5, "running variance isn't positive"), (float("nan"), "aren't finite"), (0.0, None)]
)
def test_statistics_that_no_evaluation_can_use_are_said(value: float, reason: str | None) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    net[1].running_var[1] = value
    (fusion,) = syncbn.plan_fusion(net, torch.randn(2, 3, 8, 8))
    assert (fusion.reason is None) == (reason is None)
    assert (reason or "") in str(fusion.reason)


class Branching(nn.BatchNorm2d):
    """What it does depends on the largest of its numbers."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.abs() if y.max() > 2 else y


def test_a_norm_that_looks_at_its_numbers_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), Branching(8)).double().eval()
    for x in (torch.zeros(2, 3, 6, 6, dtype=torch.float64), 9 * torch.randn(2, 3, 6, 6, dtype=torch.float64)):
        with pytest.warns(UserWarning, match="the evaluation of Branching isn't"):
            fused = syncbn.fuse(net, x)
        assert torch.equal(fused(x), net(x))


def test_a_norm_that_is_compiled_by_itself_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)).eval()
    # Dynamo of torch 2.14 reads the input's `.grad`, which warns where the input is no leaf.
    net.requires_grad_(False)
    x = torch.randn(2, 3, 8, 8)
    expected = net(x)
    net[1] = torch.compile(net[1], backend="eager")
    with pytest.warns(UserWarning, match="1 of 2 batch norms can't be folded: 1._orig_mod: it is compiled by itself"):
        fused = syncbn.fuse(net, x)
    assert type(fused[3]) is nn.Identity
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)
