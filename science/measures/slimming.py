"""Accuracy of a pruned network, before and after it is trained further."""

import torch

import syncbn
from science.measures.evaluation import accuracy, in_one_process
from science.measures.training import fit, trained
from science.runs import Setting
from syncbn.policy.prune import cost_of
from syncbn.run import build


def slimming(setting: Setting) -> dict[str, float]:
    """Measure the config's network with the share `ratio` of its channels removed.

    - `parameters` and `flops`: relative to the whole network.
    - `pruned`: test accuracy at once; `tuned`: after as many more steps as the training had.
    """
    net = trained(setting)
    data = in_one_process(build.build_data(setting.config))
    example = torch.zeros(1, data.in_channels, *data.image_size)
    pruned = syncbn.prune(net, float(setting.options["ratio"]), example)
    before, after = cost_of(net, example), cost_of(pruned, example)
    at_once = accuracy(pruned.eval(), data.test_dataloader())
    tuned = fit(setting.config, setting.world, change=lambda _: pruned.train()).net.eval()
    return {
        "parameters": after.parameters / before.parameters,
        "flops": after.flops / before.flops,
        "pruned": at_once,
        "tuned": accuracy(tuned, data.test_dataloader()),
    }
