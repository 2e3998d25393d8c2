"""deploy/: Ray on this machine, the TrainJob by its published schema, and its command under its runtime's settings."""

import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.docs.markdown import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
SHORT = "model.width=8 trainer.max_epochs=1 trainer.limit_train_batches=2 trainer.accelerator=cpu callbacks=checkpoint"
pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", **more}


def test_ray_trains_on_two_workers(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='needs ray: pip install -e ".[dev]"')
    command = [sys.executable, str(DEPLOY / "ray_train.py"), "2", "norm=sync", "run_id=ray", *SHORT.split()]
    with tempfile.TemporaryDirectory() as short:  # Ray's sockets are in it, and their paths may have 107 bytes
        more = environment(RAY_USAGE_STATS_ENABLED="0", RAY_TMPDIR=short)
        done = subprocess.run(command, cwd=tmp_path, env=more, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "outputs" / "ray"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert (run / "exchange.csv").is_file()  # the norms of two ranks have summed
    assert [folder.name for folder in (tmp_path / "outputs").iterdir()] == ["ray"]


def train_job() -> dict:
    return yaml.safe_load((DEPLOY / "trainjob.yaml").read_text())


def test_the_train_job_follows_its_published_schema() -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason='needs it: pip install -e ".[dev]"')
    job = train_job()
    read = models.TrainerV1alpha1TrainJob.from_dict(job)
    assert read.to_dict() == job  # a key that the schema hasn't would be lost
    wrong = train_job()
    wrong["spec"]["trainer"]["numNodes"] = "two"
    with pytest.raises(ValueError, match="numNodes"):
        models.TrainerV1alpha1TrainJob.from_dict(wrong)


def test_the_command_of_the_train_job_trains_under_the_settings_of_its_runtime(tmp_path: Path) -> None:
    trainer = train_job()["spec"]["trainer"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pods = []
    for node in range(trainer["numNodes"]):
        given = {variable["name"]: variable["value"] for variable in trainer["env"]}
        given |= {"SYNCBN_OUTPUT_ROOT": str(tmp_path)}
        given |= {"PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"])}
        given |= {"PET_NODE_RANK": str(node), "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
        command = [*trainer["command"], *trainer["args"], *SHORT.split()]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        pods.append(subprocess.Popen(command, cwd=tmp_path, env=environment(**given), text=True, **pipe))
    for pod in pods:
        printed, _ = pod.communicate(timeout=250)
        assert pod.returncode == 0, printed
    assert (tmp_path / given["SYNCBN_RUN_ID"] / "checkpoints" / "last.ckpt").is_file()


def test_the_dockerfile_copies_what_exists_and_installs_an_extra_of_the_project() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    instructions = [shlex.split(line, comments=True) for line in lines if re.match(r"[A-Z]+ ", line)]
    assert instructions[0][0] == "FROM"
    for words in instructions:
        if words[0] == "COPY":
            assert all((REPOSITORY / source).exists() for source in words[1:-1]), words
    copied = {source for words in instructions if words[0] == "COPY" for source in words[1:-1]}
    wheel = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {"pyproject.toml", *wheel["packages"], *wheel["force-include"]} <= copied
    assert any("/src[train]" in words for words in instructions)
    assert ["USER", "trainer"] in instructions
