"""Accuracy of a trained network on a shifted domain, adapted without labels by several methods."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import syncbn
from science.measures.evaluation import accuracy, in_one_process
from science.measures.training import trained
from science.runs import Setting
from syncbn.norm.core.options import suggest
from syncbn.policy import Tent
from syncbn.run import build


def shift(setting: Setting) -> dict[str, float]:
    """Measure `accuracy` on the test images of the domain `corruptions`, adapted by `method` in batches of `batch`.

    Methods: "frozen" (no adaptation), "adabn" (statistics of the domain's training images), "updated" (running averages
    continue over the test batches with momentum 0.1, each evaluated after its update), "batch" (each batch by its own
    statistics), "tent".
    """
    method, batch = setting.options["method"], int(setting.options.get("batch", 128))
    if method not in _METHODS:
        raise ValueError(f"unknown method {method!r}; {suggest(method, _METHODS)}")
    net = trained(setting)
    domain = in_one_process(build.build_data(setting.config), batch)
    domain.corruptions = syncbn.data.Corruptions(setting.options.get("corruptions") or {}, len(domain.labels))
    return {"accuracy": accuracy(_METHODS[method](net, domain), domain.test_dataloader())}


def _frozen(net: nn.Module, domain: Any) -> nn.Module:
    return net


def _adabn(net: nn.Module, domain: Any) -> nn.Module:
    return syncbn.adapt(net, in_one_process(domain).train_dataloader(), method="adabn").eval()


def _batch(net: nn.Module, domain: Any) -> nn.Module:
    return syncbn.adapt(net, method="batch")


def _tent(net: nn.Module, domain: Any) -> Callable[[Tensor], Tensor]:
    return Tent(net, lr=1e-3)


def _updated(net: nn.Module, domain: Any) -> Callable[[Tensor], Tensor]:
    def predict(images: Tensor) -> Tensor:
        for layer in net.modules():  # all other modules stay in eval mode
            layer.training = hasattr(layer, "running_mean")
        net(images)
        return net.eval()(images)

    return predict


_METHODS: dict[str, Callable[[nn.Module, Any], Callable[[Tensor], Tensor]]] = {
    "frozen": _frozen,
    "adabn": _adabn,
    "updated": _updated,
    "batch": _batch,
    "tent": _tent,
}
