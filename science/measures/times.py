"""Processor time of a training step with each of several norms, measured in turns."""

import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from science.measures.evaluation import in_one_process
from science.runs import Setting
from syncbn.run import build

STEPS = 5  # consecutive steps of a norm in its turn


def times(setting: Setting) -> dict[str, float]:
    """Measure milliseconds of a core for a step (forward, backward, update) with each of the option `norms`, by name.

    It is this process's time on one thread, without that of other programs. The norms take turns for `rounds` rounds,
    so that other load on the machine affects all alike. The result is the median round; the first round warms up and
    isn't counted.
    """
    torch.set_num_threads(1)
    turns = {name: _turn(setting, name) for name in setting.options["norms"]}
    found: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(int(setting.options["rounds"]) + 1):
        for name, turn in turns.items():
            seconds = turn()
            if number:
                found[name].append(1000 * seconds)
    return {name: statistics.median(milliseconds) for name, milliseconds in found.items()}


def _turn(setting: Setting, norm: str) -> Callable[[], float]:
    """Make a function that trains for a few steps and returns the seconds of one."""
    torch.manual_seed(setting.config.seed)
    config = copy.deepcopy(setting.config)
    config.norm = {"name": norm}
    data = build.build_data(config)
    net = build.build_network(config, data).train()
    images, labels = next(iter(in_one_process(data, config.data.batch_size).train_dataloader()))
    optimizer = torch.optim.AdamW(net.parameters())

    def turn() -> float:
        started = time.process_time()
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
        return (time.process_time() - started) / STEPS

    return turn
