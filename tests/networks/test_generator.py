"""The generator: every kind occurs, every node runs, and norms called foldable are."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from tests.networks import KINDS, ROWS, build, generate, parse, random_spec
from tests.networks.oracles.compare import largest_difference, quiet, run
from tests.networks.outputs import tensors_of
from tests.networks.spec import Node, Spec

SEEDS = range(len(ROWS))


def test_each_row_is_a_kind_in_five_percent_of_five_hundred_networks() -> None:
    counts = Counter(kind for seed in range(500) for kind in random_spec(seed).kinds())
    assert len(ROWS) == 27
    assert {row: counts[row] for row in ROWS if counts[row] < 25} == {}
    assert not KINDS.keys() - Counter(kind for seed in range(3000) for kind in random_spec(seed).kinds()).keys()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_node_is_reached_trains_and_is_what_its_seed_says(seed: int) -> None:
    network = generate(seed)
    spec = network.description.spec
    nodes = {name: module for name, module in network.model.named_modules() if "kind" in vars(module)}
    assert Counter(module.kind for module in nodes.values()) == Counter(node.kind for node in spec.walk())
    reached: set[str] = set()
    for name, module in nodes.items():
        module.register_forward_hook(lambda m, args, y, name=name: reached.add(name))
    with quiet():
        outputs = run(network.model.eval(), network.example_input)
        assert all(bool(t.isfinite().all()) for t in outputs)
        assert nodes.keys() - reached == {name for name in nodes if _is_under_an_unused_branch(name, nodes)}
        again = build(parse(str(spec)))
        assert largest_difference(run(again.model.eval(), again.example_input), outputs) == 0
        sum(t.tanh().sum() for t in tensors_of(again.model.train()(*again.description.arguments(2)))).backward()
        for scale in (1.0, 20.0):
            run(network.model.eval(), network.description.arguments(1, batch=2, scale=scale))


def _is_under_an_unused_branch(name: str, nodes: dict[str, Any]) -> bool:
    return any(node.kind == "unused_branch" and name.startswith(f"{path}.auxiliary") for path, node in nodes.items())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_alone_depends_on_its_input(kind: str) -> None:
    """The output depends on the input, and most parameters have gradients."""
    dim = KINDS[kind].dims[-1]
    chains = ((Node("conv", 3), Node("norm", 4)),) * KINDS[kind].chains
    for seed in range(4):
        network = build(Spec(dim, (Node("conv", 1), Node(kind, seed, chains)), head="none"))
        with quiet():
            a, b = (run(network.model.eval(), network.description.arguments(i)) for i in (1, 2))
        assert largest_difference(a, b) > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_norms_called_foldable_can_be_folded_by_hand(seed: int) -> None:
    """Each follows a single layer; folding all of them at once changes nothing."""
    network, folded = generate(seed), generate(seed)
    names = set(network.description.foldable)
    feeders = _feeders(folded.model, folded.example_input, names)
    for name, feeder in feeders.items():
        norm = folded.model.get_submodule(name)
        scale = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight.detach()
        scale = scale * (norm.running_var + norm.eps).rsqrt()
        shift = -norm.running_mean * scale + (0 if norm.bias is None else norm.bias.detach())
        groups = getattr(feeder, "groups", 1)
        if getattr(feeder, "transposed", False):
            weight = feeder.weight.unflatten(0, (groups, -1)) * scale.view(groups, 1, -1, *(1 for _ in feeder.stride))
            feeder.weight.data = weight.detach().flatten(0, 1)
        else:
            feeder.weight.data.mul_(scale.view(-1, *(1 for _ in feeder.weight.shape[1:])))
        feeder.bias = nn.Parameter(shift if feeder.bias is None else feeder.bias.detach() * scale + shift)
        folded.model.set_submodule(name, nn.Identity())
    with quiet():
        for scale in (1.0, 20.0):
            arguments = network.description.arguments(3, scale=scale)
            expected = run(network.model.eval(), arguments)
            assert largest_difference(run(folded.model.eval(), arguments), expected) < 1e-9
    unreached = {name for name in names if name not in feeders}
    assert not unreached


def _feeders(model: nn.Module, arguments: Any, names: set[str]) -> dict[str, Any]:
    """Layers whose output is a norm's input, by the norm's name."""
    outputs: list[tuple[Any, Any]] = []
    found: dict[str, Any] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            handles.append(module.register_forward_hook(lambda m, args, y: outputs.append((y, m))))
        if name in names:

            def look(m: Any, args: Any, name: str = name) -> None:
                assert name not in found, f"{name} is called twice"
                storage = args[0].untyped_storage().data_ptr()
                (found[name],) = {layer for y, layer in outputs if y.untyped_storage().data_ptr() == storage}

            handles.append(module.register_forward_pre_hook(look))
    with quiet():
        run(model.eval(), arguments)
    for handle in handles:
        handle.remove()
    return found


def test_text_that_is_no_network_is_refused() -> None:
    assert parse("dim=1 head=conv: conv.1 residual.2(norm.3 | act.4)").nodes[1].chains[1] == (Node("act", 4),)
    for text in ("dim=2: conv", "colour=red: conv.1", "dim=2: conv.1)(", "dim=2: a.1 | b.2", "dim 2: conv.1"):
        with pytest.raises(ValueError, match="not a network"):
            parse(text)
