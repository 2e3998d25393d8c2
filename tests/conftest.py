"""Fixtures for all tests."""

import os
import sys
from collections.abc import Callable, Iterator

# The tests' ranks are two processes of one thread each; wandb and hydra must not use the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
from hypothesis import settings
from torch.distributed.run import get_args_parser

from tests.ranks import Ranks

_THREADS = int(os.environ["OMP_NUM_THREADS"].split(",")[0])

# An older torchrun takes port 29500 instead of a free one, which two of the tests' processes would do at the same time.
if get_args_parser().parse_args(["script"]).master_port is not None:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw99")[2:])  # the process that starts the workers is none
    os.environ["PET_MASTER_PORT"] = f"{29500 + worker}"

# No deadline: the first example of a test may load a library.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

pytest_plugins = ["tests.plugins.no_silent_skips"]


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[[int], Ranks]]:
    """`ranks(2)`: two gloo processes, started on first use and kept for the session."""
    pools: dict[int, Ranks] = {}

    def pool(world_size: int) -> Ranks:
        if world_size not in pools:
            pools[world_size] = Ranks(world_size)
        return pools[world_size]

    yield pool
    for started in pools.values():
        started.close()


@pytest.fixture(autouse=True)
def torchs_settings_end_with_their_test() -> Iterator[None]:
    """Undo `deterministic=True` of a Trainer and a run's number of threads, which would affect the tests after it."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].use_deterministic_algorithms(False)
        sys.modules["torch"].set_num_threads(_THREADS)


@pytest.fixture(autouse=True)
def wandbs_settings_end_with_their_test() -> Iterator[None]:
    """W&B reads its variables once a process, so a test that changes them would affect the tests after it."""
    yield
    if "wandb" in sys.modules and sys.modules["wandb"].sdk.wandb_setup._singleton is not None:
        sys.modules["wandb"].teardown()
