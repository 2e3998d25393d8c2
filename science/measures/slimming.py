"""A trained network without its least important channels, before and after it is trained further."""

import torch

import syncbn
from science.measures.evaluation import accuracy, in_one_process
from science.measures.training import fit, trained
from science.runs import Setting
from syncbn.policy.prune import cost_of
from syncbn.run import build


def slimming(setting: Setting) -> dict[str, float]:
    """The network of the config with the part `ratio` of its channels removed.

    - `parameters`: as a share of the whole network's; `flops` likewise.
    - `pruned`: test accuracy at once; `tuned`: after as many steps again as the training had.
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
