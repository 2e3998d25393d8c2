"""What isn't a dense tensor of floating-point numbers, given to each norm and to `mean_over_ranks`."""

import traceback
from typing import Any

import pytest
import torch

import syncbn

X = torch.randn(2, 8, 3)
WRONG = {
    "list": X.tolist(),
    "None": None,
    "array": X.numpy(),
    "int": X.long(),
    "bool": X.bool(),
    "complex": X.to(torch.complex64),
    "float8": X.to(torch.float8_e4m3fn),
    "sparse": X.to_sparse(),
    "nested": torch.nested.nested_tensor([X[0], X[1]], layout=torch.jagged),
}

OTHERS = ("group", "instance", "layer", "none", "spectral", "weight")  # torch's layers, and those that take any input


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", [name for name in syncbn.available_norms() if name not in OTHERS])
def test_an_input_of_another_kind_is_refused(name: str, kind: str) -> None:
    layer = syncbn.norm_layer(name)(8)
    with pytest.raises((TypeError, ValueError)) as refused:
        layer(WRONG[kind])
    where = traceback.extract_tb(refused.value.__traceback__)[-1]
    assert (where.line or "").startswith("raise "), f"{refused.value} at {where.filename}:{where.lineno}"


@pytest.mark.parametrize("mask", [[True, True], 1, torch.ones(2, 3)])
@pytest.mark.parametrize("name", ["sync", "switchable", "decorrelated"])
def test_a_mask_of_another_kind_is_refused(name: str, mask: Any) -> None:
    with pytest.raises(TypeError, match=r"mask must be a bool tensor \(True = counts\), got "):
        syncbn.norm_layer(name)(8)(X, mask=mask)


@pytest.mark.parametrize("values", [X.long(), X.bool(), [1.0, 2.0], 3.0, None])
def test_a_loss_is_a_tensor_of_floating_point_numbers(values: Any) -> None:
    """The mean of integers would be rounded to one."""
    with pytest.raises(TypeError, match="values must be a tensor with the loss of each sample"):
        syncbn.mean_over_ranks(values)


def test_paths_are_paths() -> None:
    from syncbn.models import load_weights

    model = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"got a dict|got a OrderedDict; of a state_dict, model.load_state_dict"):
        load_weights(model, model.state_dict())
    with pytest.raises(TypeError, match="folder must be the path of a run's folder, got a Linear"):
        syncbn.load_run(model)
