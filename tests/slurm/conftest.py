"""The cluster, started once, and a folder to submit from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, why_not

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running SLURM; tests are skipped, with the reason, if it can't be started."""
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the repository for sbatch, with its own logs and outputs."""
    for name in ("scripts", "slurm"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path
