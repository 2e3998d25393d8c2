"""Accuracy of a trained network on shifted domains, adapted without labels by several methods."""

import functools
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

import syncbn
from science.measures.evaluation import accuracy, whole
from science.measures.mixture import mix_statistics
from science.measures.training import trained
from science.runs import Setting
from syncbn.data.base import Part
from syncbn.data.common_corruptions import KINDS
from syncbn.norm.core.options import suggest
from syncbn.policy import Tent
from syncbn.run import build

Batches = Sequence[tuple[Tensor, Tensor]]


def shift(setting: Setting) -> dict[str, float]:
    """Measure the accuracy on shifted test images, adapted by `method` in batches of `batch`.

    Methods:

    - "frozen": no adaptation.
    - "adabn": statistics of the domain's validation images.
    - "batch": each test batch by its own statistics.
    - "tent": likewise, and γ and β learn from the predictions' entropy.
    - "updated": running averages continue over the test batches with momentum 0.1, each evaluated after its update.
    - "mixed": a batch's statistics and the training's, which count as 16 images.

    With the option `corruptions`, `accuracy` is that on one domain. With `severity`, there is one for each of the
    fifteen common corruptions at this severity, by name, and `mean`; the network is adapted to each on its own.
    """
    method, batch = setting.options["method"], int(setting.options.get("batch", 128))
    if method not in _METHODS:
        raise ValueError(f"unknown method {method!r}; {suggest(method, _METHODS)}")
    severity = setting.options.get("severity")
    if severity is None:
        return {"accuracy": _adapted(setting, method, batch, setting.options.get("corruptions") or {})}
    found = {kind: _adapted(setting, method, batch, {kind: severity}) for kind in KINDS}
    return {**found, "mean": statistics.fmean(found.values())}


def _adapted(setting: Setting, method: str, batch: int, corruptions: dict[str, float]) -> float:
    net = trained(setting)
    limit = setting.config.trainer.get("limit_test_batches")
    config = OmegaConf.to_container(setting.config)
    assert isinstance(config, dict)
    config["data"].pop("seed", None)  # the order of training, which is no part of a domain
    key = json.dumps({"data": config["data"]}, sort_keys=True), json.dumps(corruptions, sort_keys=True)
    images, labels = _domain(*key, "test", limit * batch if isinstance(limit, int) else None)
    tests = list(zip(images.split(batch), labels.split(batch), strict=True))
    others = functools.partial(_domain, *key, "val", limit * 128 if isinstance(limit, int) else None)
    return accuracy(_METHODS[method](net, others), tests)


@functools.lru_cache(maxsize=64)
def _domain(data: str, corruptions: str, part: Part, limit: int | None) -> tuple[Tensor, Tensor]:
    """Images and labels of a part of a domain: corrupting them may take longer than classifying them."""
    built: Any = build.build_data(OmegaConf.create(json.loads(data)))
    built.corruptions = syncbn.data.Corruptions(json.loads(corruptions), len(built.labels))
    chunks = [whole(built, part, limit)] if limit else [_chunk(built, part, i) for i in range(_count(built, part))]
    return torch.cat([images for images, _ in chunks]), torch.cat([labels for _, labels in chunks])


def _count(data: Any, part: Part) -> int:
    return -(-data.num_samples(part) // 1000)


def _chunk(data: Any, part: Part, number: int) -> tuple[Tensor, Tensor]:
    last = min(1000 * (number + 1), data.num_samples(part))
    return data.fetch(part, list(range(1000 * number, last)), 0)


Adapt = Callable[[nn.Module, Callable[[], tuple[Tensor, Tensor]]], Callable[[Tensor], Tensor]]


def _frozen(net: nn.Module, others: Any) -> nn.Module:
    return net


def _adabn(net: nn.Module, others: Any) -> nn.Module:
    images, _ = others()
    return syncbn.adapt(net, images.split(128), method="adabn").eval()


def _batch(net: nn.Module, others: Any) -> nn.Module:
    return syncbn.adapt(net, method="batch")


def _tent(net: nn.Module, others: Any) -> Callable[[Tensor], Tensor]:
    return Tent(net, lr=1e-3)


def _mixed(net: nn.Module, others: Any) -> nn.Module:
    return mix_statistics(net, prior=16)


def _updated(net: nn.Module, others: Any) -> Callable[[Tensor], Tensor]:
    def predict(images: Tensor) -> Tensor:
        for layer in net.modules():  # all other modules stay in eval mode
            layer.training = hasattr(layer, "running_mean")
        net(images)
        return net.eval()(images)

    return predict


_METHODS: dict[str, Adapt] = {
    "frozen": _frozen,
    "adabn": _adabn,
    "batch": _batch,
    "tent": _tent,
    "updated": _updated,
    "mixed": _mixed,
}
