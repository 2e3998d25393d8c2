"""Oracles for docs/explorer.html, and helpers to operate its widgets."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syncbn


def call(page: Any, function: str, *arguments: Any) -> Any:
    """Call one of the page's functions."""
    return page.evaluate("([name, args]) => syncbn[name](...args)", [function, list(arguments)])


def local_batch_norm(x: Tensor, splits: list[int], **options: Any) -> Tensor:
    """Batch normalization of each rank's samples."""
    return torch.cat(
        [F.batch_norm(part, None, None, training=True, **options) for part in x.split(splits) if len(part)]
    )


def per_channel(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return y * weight[:, None] + bias[:, None]


def expected(norm: str, x: Tensor, splits: list[int], groups: int, eps: float, gamma: Tensor, beta: Tensor) -> Tensor:
    """PyTorch's result for a batch (N, C, L)."""
    affine: dict[str, Any] = {"weight": gamma, "bias": beta, "eps": eps}
    match norm:
        case "BN":
            return local_batch_norm(x, splits, **affine)
        case "SyncBN":
            return F.batch_norm(x, None, None, training=True, **affine)
        case "GN":
            return F.group_norm(x, groups, **affine)
        case "LN":
            return per_channel(F.layer_norm(x, x.shape[1:], eps=eps), gamma, beta)
        case "IN":
            return F.instance_norm(x, **affine)
        case "RMS":
            return F.rms_norm(x.mT, x.shape[1:2], gamma, eps).mT
    raise KeyError(norm)


def carried(steps: list[tuple[Tensor, float]], splits: list[int], eps: float) -> Tensor:
    """This package's CBN of each rank, after a channel-wise convolution whose weight is set at each step."""
    outputs = []
    for rank in range(len(splits)):
        channels = steps[0][0].shape[1]
        conv = nn.Conv1d(channels, channels, 1, groups=channels, bias=False)
        norm = syncbn.CrossIterationBatchNorm(channels, window=len(steps), sync=False, eps=eps)
        norm.attach(conv)
        norm.double()
        for x, weight in steps:
            nn.init.constant_(conv.weight, weight)
            output = norm(conv(x.split(splits)[rank]))
        outputs.append(output.detach())
    return torch.cat(outputs)


def slide(page: Any, **values: float) -> None:
    """Move sliders by their ids."""
    for name, value in values.items():
        page.locator(f"#{name}").fill(str(value))


def shown(page: Any, root: str) -> dict[str, float]:
    """Unrounded values of the numbers in an element; checks that the text is their rounding."""
    script = "all => all.map(e => ({name: e.dataset.is, value: e.dataset.value, text: e.textContent}))"
    numbers = {}
    for item in page.locator(f"{root} [data-is]").evaluate_all(script):
        value = numbers[item["name"]] = float(item["value"])
        if math.isnan(value):
            assert item["text"] == "–"
        else:
            assert written(item["text"]) == pytest.approx(value, rel=0.06, abs=0.00501)
    return numbers


def written(text: str) -> float:
    """A number as the page writes it: −1.25, (−1.25), 10⁻⁵ or 2.5·10⁻⁶."""
    match = re.fullmatch(r"\(?(?P<digits>−?[\d.]+?)?(?:(?:·|^)10(?P<power>[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?\)?", text)
    assert match is not None, text
    power = (match["power"] or "0").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    return float((match["digits"] or "1").replace("−", "-")) * 10.0 ** int(power)
