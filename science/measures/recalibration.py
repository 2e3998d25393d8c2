"""Accuracy of a trained network before and after recalibration of its running statistics."""

import syncbn
from science.measures.evaluation import accuracy, has_running_statistics, in_one_process, tested
from science.measures.training import fit
from science.runs import Setting


def recalibration(setting: Setting) -> dict[str, float]:
    """Measure the test accuracy of the first rank's network by the statistics it uses.

    - `running`: the running statistics of its training, as in a checkpoint.
    - `recalibrated`: statistics of the training set of all classes, in batches of 128; `running` if it has none.
    - `train`: accuracy on the training set after recalibration.
    """
    fitted = fit(setting.config, setting.world)
    data, net = in_one_process(fitted.data), fitted.net.eval()
    found = {"running": accuracy(net, tested(setting.config, data.test_dataloader()))}
    if has_running_statistics(net):
        syncbn.recalibrate(net, data.train_dataloader())
    found["recalibrated"] = accuracy(net, tested(setting.config, data.test_dataloader()))
    found["train"] = accuracy(net, data.train_dataloader())
    return found
