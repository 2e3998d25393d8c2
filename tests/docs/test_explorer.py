"""The functions of docs/explorer.html against PyTorch and this package's layers."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

import syncbn
from syncbn.norm.core.momentum import from_keras
from tests.docs.explorer import call, carried, expected

pytestmark = pytest.mark.usefixtures("float64")
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # both sides compute in float64


@pytest.mark.parametrize(
    ("function", "norm", "ours"),
    [
        ("batchNorm", "BN", None),
        ("syncBatchNorm", "SyncBN", "sync"),
        ("groupNorm", "GN", "group"),
        ("layerNorm", "LN", "layer"),
        ("instanceNorm", "IN", "instance"),
        ("rmsNorm", "RMS", "rms"),
    ],
)
def test_norms_are_those_of_pytorch(functions: Any, function: str, norm: str, ours: str | None) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        pick = random.Random(seed)
        groups = pick.choice([1, 2, 3])
        samples, channels, length = pick.randint(2, 6), groups * pick.randint(1, 3), pick.randint(2, 5)
        first = pick.randint(0, samples) if norm == "SyncBN" else samples // 2  # a rank may have nothing
        splits = [first, samples - first]
        x = pick.choice([0.01, 1, 100]) * torch.randn(samples, channels, length) + pick.choice([0, 30])
        eps = 10 ** pick.uniform(-8, 0)
        gamma, beta = torch.randn(channels), torch.zeros(channels) if norm == "RMS" else torch.randn(channels)

        options = {"splits": splits, "groups": groups, "eps": eps, "gamma": gamma.tolist(), "beta": beta.tolist()}
        y = torch.tensor(call(functions, function, x.tolist(), options))
        torch.testing.assert_close(y, expected(norm, x, splits, groups, eps, gamma, beta), **CLOSE)
        if ours is not None:
            extra = {"groups": groups} if ours == "group" else {}
            layer = syncbn.norm_layer(ours, eps=eps, **extra)(channels).double()
            layer.load_state_dict({"weight": gamma} if norm == "RMS" else {"weight": gamma, "bias": beta}, strict=False)
            torch.testing.assert_close(y, layer(x).detach(), **CLOSE)


def test_options_have_the_defaults_of_pytorch(functions: Any) -> None:
    x = torch.randn(3, 4, 2)
    plain = torch.tensor(call(functions, "batchNorm", x.tolist()))
    torch.testing.assert_close(plain, F.batch_norm(x, None, None, training=True), **CLOSE)


def test_cross_iteration_is_that_of_this_package(functions: Any) -> None:
    for seed in range(10):
        torch.manual_seed(seed)
        steps = [(torch.randn(5, 3, 4) + 1, 1 + 0.5 * float(torch.randn(()))) for _ in range(1 + seed)]
        (x, today), splits = steps[-1], [2, 3]
        earlier = [{"inputs": inputs.tolist(), "theta": theta} for inputs, theta in steps[:-1]]
        options = {"splits": splits, "earlier": earlier, "theta": today, "eps": 1e-3}
        y = torch.tensor(call(functions, "crossIterationBatchNorm", (today * x).tolist(), options))
        torch.testing.assert_close(y, carried(steps, splits, 1e-3), **CLOSE)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.37, 1.0, None])
def test_running_statistics_are_those_of_pytorch(functions: Any, momentum: float | None) -> None:
    torch.manual_seed(1)
    norm = nn.BatchNorm1d(1, momentum=momentum)
    batches = [2 * torch.randn(size, 1) + 3 for size in (2, 5, 3, 40)]
    history = call(functions, "history", [batch.flatten().tolist() for batch in batches], momentum)
    for batch, running in zip(batches, history, strict=True):
        norm(batch)
        assert running["mean"] == pytest.approx(norm.running_mean.item(), abs=1e-12)
        assert running["var"] == pytest.approx(norm.running_var.item(), abs=1e-12)


def test_evaluation_is_that_of_pytorch(functions: Any) -> None:
    torch.manual_seed(2)
    x, mean, var, gamma, beta = torch.randn(4, 3, 5), torch.randn(3), torch.rand(3), torch.randn(3), torch.randn(3)
    running, options = {"mean": mean.tolist(), "var": var.tolist()}, {"eps": 1e-3, "gamma": gamma.tolist()}
    y = torch.tensor(call(functions, "evaluate", x.tolist(), running, {**options, "beta": beta.tolist()}))
    torch.testing.assert_close(y, F.batch_norm(x, mean, var, gamma, beta, eps=1e-3), **CLOSE)


def test_momentum_of_keras_is_that_of_this_package(functions: Any) -> None:
    for keras in (0.0, 0.9, 0.99, 1.0):
        assert call(functions, "kerasMomentum", keras) == from_keras(keras)


def test_moments_of_draws_are_those_of_normal_numbers(functions: Any) -> None:
    size, ranks, count = 3, 4, 500
    script = "([seed, n]) => { const draw = syncbn.normals(seed); return Array.from({length: n}, draw); }"
    values = np.array(functions.evaluate(script, [7, count * ranks * size]))
    assert stats.kstest(values, "norm").pvalue > 0.01
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 4 / math.sqrt(len(values))

    drawn = call(functions, "draws", {"size": size, "ranks": ranks, "count": count, "seed": 7})
    batches = torch.from_numpy(values).reshape(count, ranks, size)
    for name, batch in (("alone", batches[:, 0]), ("together", batches.flatten(1))):
        found = {key: torch.tensor([one[key] for one in drawn[name]]) for key in ("mean", "var", "first")}
        torch.testing.assert_close(found["mean"], batch.mean(1), **CLOSE)
        torch.testing.assert_close(found["var"], batch.var(1, correction=0), **CLOSE)
        torch.testing.assert_close(found["first"], F.layer_norm(batch, batch.shape[1:])[:, 0], **CLOSE)


def test_a_histogram_counts_every_value_once(functions: Any) -> None:
    values = torch.randn(1000) * 2
    counts = call(functions, "histogram", values.tolist(), -2, 2, 20)
    assert counts == np.histogram(values.clamp(-2, 2 - 1e-12), 20, (-2, 2))[0].tolist()
