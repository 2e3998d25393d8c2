"""A layer's own process group stays its own through conversions, copies and files, among real ranks."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import syncbn
from syncbn.norm.core.groups import set_process_group
from tests.ranks import Ranks


def batch(rank: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def normalized(*batches: Tensor) -> Tensor:
    """What one process gets for the first of some batches, normalized together."""
    return nn.functional.batch_norm(torch.cat(batches), None, None, training=True)[: len(batches[0])]


def loaded(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def outputs(kind: str) -> dict[str, Tensor | str]:
    rank = dist.get_rank()
    pairs = [dist.new_group([0, 1]), dist.new_group([2])]
    group = pairs[rank // 2]
    if kind == "torch":
        model: Any = nn.Sequential(nn.SyncBatchNorm(3, process_group=group)).double()
    else:
        model = nn.Sequential(syncbn.SyncBatchNorm(3, process_group=group)).double()
    x, found = batch(rank), dict[str, Tensor | str]()
    syncbn.convert(model, "adaptive")
    found["converted"] = model(x)
    found["copied"] = copy.deepcopy(model)(x)
    found["converted again"] = syncbn.convert(copy.deepcopy(model), "sync")(x)
    found["there and back"] = syncbn.convert(syncbn.convert(copy.deepcopy(model), "group"), "sync")(x)
    twin = loaded(model)
    try:
        twin(x)
    except ValueError as error:
        found["loaded"] = str(error)
    for what in (lambda: syncbn.convert(loaded(model), "sync")(x), lambda: syncbn.revert(loaded(model))[0](x)):
        try:
            what()
        except ValueError as error:
            found[f"loaded {len(found)}"] = str(error)
    set_process_group(twin, group)
    found["given its group"] = twin(x)
    found["all ranks"] = syncbn.convert(copy.deepcopy(model), "sync", process_group=dist.group.WORLD)(x)
    reverted = syncbn.revert(twin)[0]
    assert reverted.process_group is group
    assert syncbn.revert(model)[0].process_group is group
    return {key: value.detach() if isinstance(value, Tensor) else value for key, value in found.items()}


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["torch", "ours"])
def test_a_group_is_kept(ranks: Callable[[int], Ranks], kind: str) -> None:
    x = [batch(rank) for rank in range(3)]
    own = [normalized(x[0], x[1]), normalized(x[1], x[0]), normalized(x[2])]
    world = [normalized(x[0], x[1], x[2]), normalized(x[1], x[0], x[2]), normalized(x[2], x[0], x[1])]
    for rank, found in enumerate(ranks(3).run(outputs, kind)):
        for key in ("converted", "copied", "converted again", "there and back", "given its group"):
            torch.testing.assert_close(found[key], own[rank], msg=lambda text, key=key: f"{key}: {text}")
        torch.testing.assert_close(found["all ranks"], world[rank])
        refused = [value for key, value in found.items() if key.startswith("loaded")]
        assert len(refused) == 3
        assert all("set_process_group" in text for text in refused)
