"""The files of slurm/, submitted to a real SLURM as a user would."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from syncbn.run.resume import LAST
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.distributed]

SHORT = (
    "experiment=digits",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=1",
    "callbacks=checkpoint",
    "model.width=4",
)


def submit(cluster: Cluster, folder: Path, *arguments: str, **environ: str) -> str:
    """Run `sbatch arguments` in `folder`, with this Python in the PATH; returns the job's id."""
    done = subprocess.run(
        ["sbatch", "--parsable", *arguments],
        cwd=folder,
        env={**in_reach(cluster.environ), **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def in_reach(environ: dict[str, str]) -> dict[str, str]:
    """Environment of a user whose `python` is this one."""
    inherited = {key: value for key, value in environ.items() if not key.startswith(("SYNCBN_", "SLURM_JOB"))}
    bin_folder = Path(sys.executable).parent
    return {
        **inherited,
        "PATH": f"{bin_folder}:{inherited['PATH']}",
        "VIRTUAL_ENV": str(bin_folder.parent),
        "OMP_NUM_THREADS": "1",
    }


def log(folder: Path, job: str) -> str:
    return (folder / f"slurm-{job}.log").read_text()


def test_one_task_a_rank_on_two_nodes(cluster: Cluster, checkout: Path) -> None:
    script = ("--nodes=2", "--ntasks-per-node=1", "slurm/train.sbatch")
    job = submit(cluster, checkout, *script, *SHORT, "norm=layer")
    assert cluster.wait(job) == "COMPLETED", log(checkout, job)
    output = log(checkout, job)
    assert "norm=layer" in output
    assert "processes:     2 on cpu" in output
    assert output.count("test accuracy:") == 1
    assert [run.name for run in (checkout / "outputs").iterdir()] == [f"slurm-{job}"]


def test_torchrun_on_two_nodes_of_two_ranks(cluster: Cluster, checkout: Path) -> None:
    job = submit(cluster, checkout, "--nodes=2", "slurm/torchrun.sbatch", *SHORT, RANKS_PER_NODE="2")
    assert cluster.wait(job) == "COMPLETED", log(checkout, job)
    output = log(checkout, job)
    assert "processes:     4 on cpu" in output
    assert output.count("test accuracy:") == 1
    assert [run.name for run in (checkout / "outputs").iterdir()] == [f"slurm-{job}"]


@pytest.mark.parametrize("script", ["slurm/train.sbatch", "slurm/torchrun.sbatch"])
def test_a_job_whose_time_is_over_is_queued_again_and_goes_on(cluster: Cluster, checkout: Path, script: str) -> None:
    """Two ranks on one node. The signal is sent by hand, since SLURM's time limits are in minutes."""
    longer = [argument for argument in SHORT if "limit_train" not in argument]
    options = ("trainer.max_epochs=2", "callbacks=[checkpoint,lr_monitor]", "trainer.log_every_n_steps=1")
    job = submit(cluster, checkout, script, *longer, *options)
    run = checkout / "outputs" / f"slurm-{job}"
    deadline = time.monotonic() + 120
    while len(rows(run)) < 5:
        assert time.monotonic() < deadline, log(checkout, job)
        assert cluster.state(job) in ("PENDING", "RUNNING"), log(checkout, job)
        time.sleep(0.05)
    cluster.run("scancel", "--signal=USR1", job)
    assert cluster.wait(job) == "COMPLETED", log(checkout, job)

    output = log(checkout, job)
    assert cluster.restarts(job) == 1
    (step,) = re.findall(r"stopped by SIGUSR1 in epoch \d at step (\d+)", output)
    assert f"SLURM starts job {job} again" in output
    assert f"resumed:       after step {step}" in output
    assert [path.name for path in (checkout / "outputs").iterdir()] == [run.name]
    steps = [int(row["step"]) for row in rows(run) if row["lr-SGD/pg1"]]
    assert steps == list(range(34 // 2 * 2))  # of 2 epochs of 17 batches: each once
    assert (run / LAST).is_file()


def rows(run: Path) -> list[dict[str, str]]:
    path = run / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_array_is_a_run_for_each_line(cluster: Cluster, checkout: Path) -> None:
    (checkout / "runs.txt").write_text("norm=sync seed=1\nnorm=group norm.groups=4\n")
    job = submit(cluster, checkout, "--array=1-2", "slurm/array.sbatch", "runs.txt", *SHORT)
    assert {cluster.wait(f"{job}_{task}") for task in (1, 2)} == {"COMPLETED"}
    assert sorted(run.name for run in (checkout / "outputs").iterdir()) == [f"slurm-{job}-1", f"slurm-{job}-2"]
    assert "norm=sync" in log(checkout, f"{job}_1")
    assert "norm=group" in log(checkout, f"{job}_2")


def test_a_sweep_from_the_login_node_is_a_job_for_each_of_its_runs(cluster: Cluster, checkout: Path) -> None:
    """launcher=slurm, jobs over two nodes: one is requeued and resumes, the other fails; the command waits for both."""
    arguments = [*SHORT, "trainer=ddp", "norm=group", "norm.groups=4,3", "run_id=sweep", "test=false"]
    arguments += ["trainer.limit_train_batches=30", "data.batch_size=16", "trainer.log_every_n_steps=1"]
    arguments += ["callbacks=[checkpoint,lr_monitor]", "launcher=slurm", "hydra.launcher.nodes=2"]
    sweep = checkout / "outputs" / "sweep"
    with subprocess.Popen(
        [sys.executable, "scripts/train.py", *arguments],
        cwd=checkout,
        env=in_reach(cluster.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as login:
        deadline = time.monotonic() + 120
        while len(rows(sweep / "0")) < 3:
            assert login.poll() is None, login.communicate()
            assert time.monotonic() < deadline, [file.read_text() for file in sweep.rglob("*.out")]
            time.sleep(0.05)
        (job,) = {folder.name.partition("_")[0] for folder in (sweep / ".submitit").glob("*_0")}
        cluster.run("scancel", "--signal=USR1", f"{job}_0")
        out, err = login.communicate(timeout=200)
    assert login.returncode == 1
    assert "launcher=slurm: 2 job(s) of 2 rank(s) each" in out
    assert "a job ended with exit code 2; its log is in outputs/sweep/.submitit" in err
    assert "error: 1 of 2 job(s) failed: 1 in " in err.splitlines()[-1]

    assert [cluster.wait(f"{job}_{task}") for task in (0, 1)] == ["COMPLETED", "FAILED"]
    assert [cluster.restarts(f"{job}_{task}") for task in (0, 1)] == [1, 0]
    assert sorted(run.name for run in sweep.iterdir() if run.is_dir()) == [".submitit", "0"]
    logs = [(sweep / ".submitit" / f"{job}_{task}" / f"{job}_{task}_0_log.out").read_text() for task in (0, 1)]
    (step,) = re.findall(r"stopped by SIGUSR1 in epoch \d at step (\d+)", logs[0])
    assert f"resumed:       after step {step}" in logs[0]
    assert logs[0].count("processes:     2 on cpu") == 2
    assert [int(row["step"]) for row in rows(sweep / "0") if row["lr-SGD/pg1"]] == list(range(30))
    assert "groups must divide the 4 channels, got 3" in logs[1]


def test_a_job_that_fails_says_why_and_is_not_queued_again(cluster: Cluster, checkout: Path) -> None:
    job = submit(cluster, checkout, "slurm/train.sbatch", "norm=snyc")
    assert cluster.wait(job) == "FAILED"
    assert "norm=snyc: no such choice; did you mean 'sync'?" in log(checkout, job)
    assert cluster.restarts(job) == 0
    assert not (checkout / "outputs").exists()


def test_from_elsewhere_it_says_where_to_submit_from(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "slurm").symlink_to(Path(__file__).parents[2] / "slurm")
    job = submit(cluster, tmp_path, "slurm/train.sbatch")
    assert cluster.wait(job) == "FAILED"
    assert "submit from the repository's folder" in log(tmp_path, job)


def test_interactive_runs_in_the_terminal(cluster: Cluster, checkout: Path) -> None:
    command = ["slurm/interactive.sh", "--nodes=1", "--", *SHORT, "test=false"]
    done = subprocess.run(
        command, cwd=checkout, env=in_reach(cluster.environ), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "processes:     2 on cpu" in done.stdout
    (run,) = (checkout / "outputs").iterdir()
    assert re.fullmatch(r"slurm-\d+-\d+", run.name)


def srun(
    cluster: Cluster, folder: Path, *arguments: str, within: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run scripts/train.py by srun alone, without a batch script, or in an allocation."""
    tasks = tuple(argument for argument in arguments if argument.startswith("--"))
    command = [
        *within,
        "srun",
        *tasks,
        sys.executable,
        "scripts/train.py",
        *SHORT,
        *arguments[len(tasks) :],
        "test=false",
    ]
    return subprocess.run(
        command, cwd=folder, env=in_reach(cluster.environ), capture_output=True, text=True, timeout=200, check=False
    )


def test_one_task_where_two_were_asked_for_is_refused_in_one_line_that_ends_the_matter(
    cluster: Cluster, checkout: Path
) -> None:
    # Newer SLURMs queue a job of --ntasks=1 --ntasks-per-node=2 for ever.
    allocation = ("salloc", "--ntasks=2", "--ntasks-per-node=2")
    refused = srun(cluster, checkout, "--ntasks=1", "trainer=ddp", within=allocation)
    assert refused.returncode == 2
    (line,) = [line for line in refused.stderr.splitlines() if "error:" in line and not line.startswith("srun:")]
    assert "start as many, srun --ntasks=2, or say that 1 is meant, trainer.devices=1" in line
    assert not (checkout / "outputs").exists()
    one = srun(cluster, checkout, "--ntasks=1", "trainer=ddp", "trainer.devices=1", within=allocation)
    assert one.returncode == 0, one.stderr
    assert "processes:     1 on cpu" in one.stdout
    two = srun(cluster, checkout, "--ntasks=2", "trainer=ddp")  # without --ntasks-per-node, which Lightning asks for
    assert two.returncode == 0, two.stderr
    assert "processes:     2 on cpu" in two.stdout


def test_the_doctor_compares_the_ranks_of_srun(cluster: Cluster, checkout: Path) -> None:
    """One rank on each of two nodes."""
    command = ["srun", "--ntasks=2", "--nodes=2", sys.executable, "-m", "syncbn", "doctor", "seconds=40"]
    done = subprocess.run(
        command, cwd=checkout, env=in_reach(cluster.environ), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("**exact here") == 1, "rank 0 speaks for both"
    report = json.loads((checkout / "doctor.json").read_text())
    assert {case["place"] for case in report["proof"]} == {"cpu, 2 rank(s), gloo"}


def test_each_file_is_a_shell_script_without_mistakes() -> None:
    for path in (Path(__file__).parents[2] / "slurm").iterdir():
        if path.suffix != ".md":
            subprocess.run(["bash", "-n", str(path)], check=True)
            assert "node1" not in path.read_text()
    assert os.access(Path(__file__).parents[2] / "slurm" / "interactive.sh", os.X_OK)


def test_a_project_that_init_wrote_trains_on_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    subprocess.run(["syncbn", "init", "my_shapes"], cwd=tmp_path, env=in_reach(cluster.environ), check=True)
    project = tmp_path / "my_shapes"
    short = ("trainer.accelerator=cpu", "trainer.max_epochs=1", "data.num_train=150", "norm=pixel")
    job = submit(cluster, project, "--nodes=2", "--ntasks-per-node=1", "train.sbatch", *short)
    assert cluster.wait(job) == "COMPLETED", log(project, job)
    output = log(project, job)
    assert "norm=pixel in the place of 3 batch norm(s)" in output
    assert "processes:     2 on cpu" in output
    assert output.count("test accuracy:") == 1
