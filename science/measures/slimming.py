"""Accuracy of a pruned network, before and after it is trained further."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

import syncbn
from science.measures.evaluation import accuracy, in_one_process, tested
from science.measures.training import fit, trained
from science.runs import Setting
from syncbn.norm.core.options import suggest
from syncbn.policy import plan_prune
from syncbn.policy.prune import cost_of
from syncbn.run import build


def slimming(setting: Setting) -> dict[str, float]:
    """Measure the config's network with the share `ratio` of its channels removed.

    Those with the smallest |γ|, `pick` = "scale", or as many of each layer at "random".

    - `parameters` and `flops`: relative to the whole network.
    - `pruned`: test accuracy at once; `tuned`: after as many more steps as the training had.
    """
    pick = setting.options.get("pick", "scale")
    if pick not in ("scale", "random"):
        raise ValueError(f"unknown pick {pick!r}; {suggest(pick, ('scale', 'random'))}")
    net, ratio = trained(setting), float(setting.options["ratio"])
    data = in_one_process(build.build_data(setting.config))
    example = torch.zeros(1, data.in_channels, *data.image_size)
    pruned = (
        syncbn.prune(net, ratio, example)
        if pick == "scale"
        else prune_at_random(net, ratio, example, setting.config.seed)
    )
    before, after = cost_of(net, example), cost_of(pruned, example)
    at_once = accuracy(pruned.eval(), tested(setting.config, data.test_dataloader()))
    tuned = fit(setting.config, setting.world, change=lambda _: pruned.train()).net.eval()
    return {
        "parameters": after.parameters / before.parameters,
        "flops": after.flops / before.flops,
        "pruned": at_once,
        "tuned": accuracy(tuned, tested(setting.config, data.test_dataloader())),
    }


def prune_at_random(net: nn.Module, ratio: float, example: Tensor, seed: int) -> nn.Module:
    """Return a copy of `net` as pruned as by `syncbn.prune`, with channels picked at random.

    Each layer loses as many channels as it does by |γ|. For networks in which no channel is shared by several norms.
    """
    marked = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for pruning in plan_prune(net, ratio, example):
            layer: Any = marked.get_submodule(pruning.layer)
            free = torch.tensor([i for i in range(pruning.channels) if i not in pruning.held])
            drawn = free[torch.randperm(len(free), generator=generator)[: len(pruning.removed)]]
            layer.weight.copy_(torch.where(layer.weight == 0, 1e-12, layer.weight))
            layer.weight[drawn] = 0  # the smallest there are
    return syncbn.prune(marked, ratio, example)
