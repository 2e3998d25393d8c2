"""Hydra's flags and plugins with `syncbn train`, as real commands: their output and their runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Finished

TINY = ("model=mlp", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1")

# A sweeper that asks for one job after the other and gets each result, like Optuna's.
SWEEPER = """
from dataclasses import dataclass
from pathlib import Path
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

@dataclass
class Conf:
    _target_: str = "hydra_plugins.descending.Descending"
    seed: int | None = None

ConfigStore.instance().store(group="hydra/sweeper", name="descending", node=Conf, provider="test")

class Descending(Sweeper):
    def __init__(self, seed):
        pass
    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.config = config
    def sweep(self, arguments):
        plain = [word for word in arguments if "interval" not in word]
        told = []
        for number, rate in enumerate((0.1, 0.01)):
            (job,) = self.launcher.launch([[*plain, f"optimizer.lr={rate}"]], initial_job_idx=number)
            told.append(job.return_value)
        Path(self.config.hydra.sweep.dir, "told.txt").write_text(" ".join(map(str, told)))
"""


def syncbn(folder: Path, *words: str, **environ: str) -> Finished:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SYNCBN_", "COMP_"))}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **environ}
    command = [sys.executable, "-m", "syncbn", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    return Finished(folder, done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("norm=group --cfg job -p norm", "name: group\ngroups: auto\n"),
        ("--norm=group -c job -p norm", "name: group\ngroups: auto\n"),
        ("norm=group --info searchpath", "| main "),
        ("norm=group -i defaults", "| norm/group "),
        ("--info defaults-tree", "norm: sync"),
        ("--info plugins", "BasicSweeper"),
        ("--cfg hydra -p hydra.run", "dir: ${output_root}/${run_id}"),
        ("--help", "norm: adaptive, batch"),
        ("--hydra-help", "--multirun,-m : Run multiple jobs"),
        ("--version", "Hydra 1.3"),
        ("-sc install=bash", "complete -o nospace"),
    ],
)
def test_a_flag_shows_something_and_runs_nothing(tmp_path: Path, words: str, shown: str) -> None:
    done = syncbn(tmp_path, "train", *words.split())
    assert done.code == 0, done.err
    assert shown in done.out
    assert done.err == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["norm=snyc --help", "norm=snyc -c job", "norm=snyc --info", "-m norm=snyc,sync"])
def test_a_mistake_beside_a_flag_is_answered(tmp_path: Path, words: str) -> None:
    done = syncbn(tmp_path, "train", *words.split())
    assert done.code == 2
    assert "did you mean 'sync'?" in done.err
    assert done.err.count("\n") == 1


def test_a_pickle_is_not_run_again(tmp_path: Path) -> None:
    done = syncbn(tmp_path, "train", "--experimental-rerun", "config.pickle")
    assert done.code == 2
    assert "--config-path outputs/<run_id>/.hydra --config-name config" in done.err


@pytest.mark.slow
@pytest.mark.distributed
def test_flags_behind_overrides_run_and_a_runs_config_is_given_again(tmp_path: Path) -> None:
    """A sweep, flag in the middle; W&B's spelling, on two ranks; and the config of a run as the primary one."""
    (tmp_path / "more" / "norm").mkdir(parents=True)
    (tmp_path / "more" / "norm" / "two.yaml").write_text("defaults: [group, _self_]\ngroups: 2\n")
    words = ["--trainer=ddp", "norm=layer,two", "-m", "--run_id=sweep", "--config-dir", "more", "tags+=[x]"]
    done = syncbn(tmp_path, "train", *TINY, "callbacks=checkpoint", "test=false", *words)
    assert done.code == 0, done.err
    jobs = [tmp_path / "outputs" / "sweep" / number for number in ("0", "1")]
    assert all((job / "checkpoints" / "last.ckpt").is_file() for job in jobs)
    assert done.out.count("processes:     2 on cpu") == 2
    assert "groups: 2" in (jobs[1] / ".hydra" / "config.yaml").read_text()
    assert "- x\n" in (jobs[1] / ".hydra" / "config.yaml").read_text()

    given = ["--config-path", "outputs/sweep/1/.hydra", "-cn", "config", "run_id=again", "hydra.job.chdir=true"]
    done = syncbn(tmp_path, "train", *given, "model.weights=outputs/sweep/1/checkpoints/last.ckpt")
    assert done.code == 0, done.err
    assert "norm=group" in done.out
    assert "weights:       " in done.out  # read from where the command was typed, too
    assert f"run folder:    {tmp_path / 'outputs' / 'again'}" in done.out  # not ".", where the job works
    assert (tmp_path / "outputs" / "again" / "checkpoints" / "last.ckpt").is_file()
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"sweep", "again"}  # none named by the clock


@pytest.mark.slow
def test_a_sweeper_is_told_what_each_job_came_to(tmp_path: Path) -> None:
    (tmp_path / "plugins" / "hydra_plugins").mkdir(parents=True)
    (tmp_path / "plugins" / "hydra_plugins" / "descending.py").write_text(SWEEPER)
    environ = {"PYTHONPATH": str(tmp_path / "plugins")}
    words = ["-m", "hydra/sweeper=descending", "optimizer.lr=interval(0,1)", "test=false", "callbacks=none", *TINY]

    done = syncbn(tmp_path, "train", *words, "run_id=default", **environ)

    assert done.code == 0, done.err
    folder = tmp_path / "outputs" / "default"
    told = [float(text) for text in (folder / "told.txt").read_text().split()]
    assert told == pytest.approx([_last(folder / number / "metrics.csv", "val/loss") for number in ("0", "1")])

    wrong = syncbn(tmp_path, "train", *words, "optimized_metric=val/los", **environ)
    assert wrong.code == 2
    assert "optimized_metric=val/los: no such metric; did you mean 'val/loss'?" in wrong.err
    ranks = syncbn(tmp_path, "train", *words, "trainer=ddp", **environ)
    assert ranks.code == 2
    assert "each of 2 ranks draws the values of a job by itself: add hydra.sweeper.seed=<n>" in ranks.err


def _last(metrics: Path, name: str) -> float:
    head, *rows = metrics.read_text().splitlines()
    column = head.split(",").index(name)
    return float([row.split(",")[column] for row in rows if row.split(",")[column]][-1])


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("syncbn ev", "evaluate"),
        ("syncbn train norm=gr", "norm=group"),
        ("syncbn train -m norm=group norm.gr", "norm.groups="),
        ("syncbn evaluate run", ""),
    ],
)
def test_the_shell_completes_commands_and_overrides(tmp_path: Path, line: str, answer: str) -> None:
    done = syncbn(tmp_path, "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert (done.code, done.out.strip()) == (0, answer)


def test_an_empty_variable_for_the_output_root_is_an_unset_one(tmp_path: Path) -> None:
    done = syncbn(tmp_path, "train", "run_id=42", "train=false", "test=false", *TINY, SYNCBN_OUTPUT_ROOT="")
    assert done.code == 0, done.err
    assert (tmp_path / "outputs" / "42" / ".hydra" / "config.yaml").is_file()
