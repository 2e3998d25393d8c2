"""The judge detects deliberately wrong policies, and accepts correct ones."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import syncbn
from tests.networks import KINDS, build, parse, random_spec
from tests.networks.command import POLICIES, main
from tests.networks.maker import Block, Maker, width_of
from tests.networks.oracles import fuse as fuse_oracle
from tests.networks.oracles.compare import WrongError
from tests.networks.oracles.fuse import judge_fuse
from tests.networks.oracles.prune import judge_prune, kept
from tests.networks.oracles.verdict import Facts, RefusedError, judge, policy
from tests.networks.registry import Kind
from tests.networks.shrink import shrink
from tests.networks.spec import Node, Spec


def naive_fuse(model: nn.Module, example_input: Any) -> nn.Module:
    """Fold each batch norm into the layer registered before it, ignoring the network's forward."""
    fused = copy.deepcopy(model).eval()
    before: Any = None
    for name, layer in list(fused.named_modules()):
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and before is not None and layer.affine:
            factors = (layer.weight * (layer.running_var + layer.eps).rsqrt()).detach()
            bias = 0 if before.bias is None else before.bias.detach()
            shift = layer.bias.detach() + (bias - layer.running_mean) * factors
            before.weight.data.mul_(factors.view(-1, *(1 for _ in before.weight.shape[1:])))
            before.bias = nn.Parameter(shift)
            fused.set_submodule(name, nn.Identity())
        before = layer if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) else None
    return fused


@pytest.fixture
def fuse_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Replace `syncbn.fuse` by a function to judge, which has no plan."""

    def replace(function: Any) -> None:
        monkeypatch.setattr(syncbn, "fuse", function)
        monkeypatch.setattr(fuse_oracle, "check_plan", lambda *args: None)

    return replace


def test_a_right_policy_is_right(fuse_as: Callable[[Any], None]) -> None:
    spec = parse("dim=2 output=tuple: inplace_activation.1 residual.2(inplace_activation.3)")
    fuse_as(naive_fuse)
    outcome = judge(spec, judge_fuse)
    assert (outcome.verdict, outcome.message) == ("right", "")
    assert outcome.facts.possible >= outcome.facts.done >= 1
    fuse_as(lambda model, example: copy.deepcopy(model).eval())
    assert judge(spec, judge_fuse).facts == Facts(outcome.facts.possible, 0)


@pytest.mark.parametrize(
    "kind",
    [
        "written_slice",
        "forward_hook",
        "scripted_function",
        "activating_norm",
        "activating_conv",
        "half_normed",
        "detached",
        "shared_weight_two_norms",
    ],
)
def test_folding_without_looking_is_wrong(fuse_as: Callable[[Any], None], kind: str) -> None:
    fuse_as(naive_fuse)
    assert "wrong" in {judge(Spec(2, (Node(kind, seed),)), judge_fuse).verdict for seed in range(6)}


def test_what_else_is_wrong_or_a_crash(fuse_as: Callable[[Any], None]) -> None:
    spec = parse("dim=1: conv.1 norm.2")

    def in_place(model: nn.Module, example: Any) -> nn.Module:
        return model.eval()

    def training(model: nn.Module, example: Any) -> nn.Module:
        return copy.deepcopy(model).train()

    def raising(error: Exception) -> Callable[..., nn.Module]:
        def raises(model: nn.Module, example: Any) -> nn.Module:
            raise error

        return raises

    def breaking(model: nn.Module, example: Any) -> nn.Module:
        fused = naive_fuse(model, example)
        fused.register_full_backward_hook(lambda *args: 1 / 0)
        return fused

    for function, verdict, message in (
        (in_place, "wrong", "the original's modules have changed"),
        (training, "wrong", "in training mode"),
        (raising(KeyError("weight")), "crashed", "KeyError"),
        (raising(ValueError("not one of ours")), "crashed", "ValueError: not one of ours"),
        (breaking, "crashed", "ZeroDivisionError"),
    ):
        fuse_as(function)
        outcome = judge(spec, judge_fuse)
        assert outcome.verdict == verdict, function
        assert message in outcome.message


def test_a_refusal_is_a_line_that_the_package_raises() -> None:
    net = build(random_spec(0)).model
    with pytest.raises(RefusedError, match="ratio must be"), policy():
        syncbn.prune(net, 2.0, torch.zeros(1))
    with pytest.raises(ValueError, match="zip"), policy():
        list(zip([1], [1, 2], strict=True))


def pruned_by_hand(keep: torch.Tensor) -> Callable[..., nn.Module]:
    """Remove channels from a convolution, its norm and the layer that reads them, in a network of one node."""

    def prune(model: nn.Module, ratio: float, example_input: Any) -> nn.Module:
        pruned: Any = copy.deepcopy(model)
        node = pruned.body[0]
        node.conv.weight = nn.Parameter(node.conv.weight.detach()[keep])
        if node.conv.bias is not None:
            node.conv.bias = nn.Parameter(node.conv.bias.detach()[keep])
        node.conv.out_channels = node.norm.num_features = node.out.in_channels = len(keep)
        for name in ("running_mean", "running_var"):
            setattr(node.norm, name, getattr(node.norm, name)[keep])
        node.norm.weight, node.norm.bias = (nn.Parameter(p.detach()[keep]) for p in (node.norm.weight, node.norm.bias))
        node.out.weight = nn.Parameter(node.out.weight.detach()[:, keep])
        return pruned

    return prune


# `powers` is 0 at 0, `plus_one` isn't: there, the channels' constants are missing.
@pytest.mark.parametrize(("kind", "verdict"), [("powers", "right"), ("plus_one", "wrong")])
def test_pruning_by_hand(kind: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [Spec(2, (Node(kind, seed),)) for seed in range(40)]
    specs = [s for s in specs if getattr(build(s).model.body[0].norm, "weight", None) is not None]
    monkeypatch.setattr(syncbn, "prune", pruned_by_hand(torch.tensor([0, 2, 3])))
    assert {judge(spec, judge_prune).verdict for spec in specs[:8]} == {verdict}


def test_a_channel_that_something_else_reads_is_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With γ = β = 0, a sum over channels is correct without one; with masks before the weights it isn't."""

    def summed(m: Maker) -> nn.Module:
        def run(self: Any, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.conv(x))
            return self.out(y) + y.sum(1, keepdim=True)

        layer = m.conv()
        return Block(run, conv=layer, norm=m.norm(layer, affine=True), out=m.conv(of=width_of(layer)))

    monkeypatch.setitem(KINDS, "summed", Kind(summed, (2,), None, 0, False, None))
    monkeypatch.setattr(syncbn, "prune", pruned_by_hand(torch.tensor([0, 2, 3])))
    outcome = judge(parse("dim=2: summed.1"), judge_prune)
    assert outcome.verdict == "wrong"
    assert "with masks" in outcome.message


def test_shrinking_leaves_what_fails() -> None:
    def oracle(spec: Spec) -> Facts:
        build(spec)
        kinds = [node.kind for node in spec.walk()]
        if "dropout" in kinds and kinds.index("dropout") < len(kinds) - 1 and "prelu" in kinds:
            raise WrongError("dropout before something, and prelu")
        return Facts()

    text = "dim=2 output=list inputs=two: conv.1 residual.2(norm.3 checkpointed.4(dropout.5 conv.6)) conv.7 prelu.8"
    spec, outcome = shrink(parse(text), oracle)
    assert outcome.verdict == "wrong"
    assert spec == parse("dim=2 output=plain inputs=one: dropout.5 prelu.8")


def test_the_command(capsys: pytest.CaptureFixture[str], fuse_as: Callable[[Any], None]) -> None:
    assert main(["policy=nothing"]) == 2
    assert main(["inspect", "count=3"]) == 2
    assert "usage" in capsys.readouterr().err
    fuse_as(naive_fuse)
    assert main(["policy=fuse", "network=dim=2: half_normed.1"]) == 1
    assert main(["policy=fuse", "network=dim=2: inplace_activation.1"]) == 0
    capsys.readouterr()
    assert main(["policy=fuse", "count=8", "seed=50", "shrink=1"]) == 1
    printed = capsys.readouterr().out
    assert '    python -m tests.networks policy=fuse network="dim=' in printed
    assert "*written_slice" in printed
    assert {"fuse", "prune", "sync", "group", "frozen", "cross_iteration", "recalibrate", "inspect"} < set(POLICIES)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_what_a_smaller_weight_has_kept_is_read_from_its_values(groups: int, transposed: bool) -> None:
    """Indices of rows and columns, which may differ between groups."""
    cls: Any = nn.ConvTranspose1d if transposed else nn.Conv1d
    torch.manual_seed(0)
    large, small = cls(8, 12, 3, groups=groups), cls(2 * groups, 3 * groups, 3, groups=groups)
    inputs = torch.stack([torch.randperm(8 // groups)[:2].sort().values for _ in range(groups)])
    outputs = torch.stack([torch.randperm(12 // groups)[:3].sort().values for _ in range(groups)])
    by_group = large.weight.detach().unflatten(0, (groups, -1))
    rows, columns = (inputs, outputs) if transposed else (outputs, inputs)
    parts = [by_group[g][rows[g]][:, columns[g]] for g in range(groups)]
    small.weight = nn.Parameter(torch.cat(parts))
    found = kept(small, large)
    assert found is not None
    mask, order = found
    assert mask.nonzero().flatten().tolist() == [g * 8 // groups + int(i) for g in range(groups) for i in inputs[g]]
    assert order.tolist() == [g * 12 // groups + int(i) for g in range(groups) for i in outputs[g]]
    small.weight.data[0, 0, 0] += 1
    assert kept(small, large) is None
