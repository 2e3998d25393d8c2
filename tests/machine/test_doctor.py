"""The doctor finds and reports problems, without private data."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

import syncbn
from syncbn.cli import doctor as command
from syncbn.machine import proof
from syncbn.machine.doctor import _first_node, doctor
from syncbn.machine.forecast import network
from syncbn.machine.report import DoctorReport, Finding, scrub
from syncbn.norm.core.exchange import communicating_group
from tests.ranks import Ranks

WITHOUT_THE_TRAINER = """
import sys
for name in ("lightning", "hydra", "omegaconf", "torchmetrics", "wandb", "sklearn", "matplotlib", "rich", "scipy"):
    sys.modules[name] = None
sys.argv = ["syncbn", "doctor", "seconds=50"]
from syncbn.cli import main
main()
"""


class Unsynchronized(syncbn.SyncBatchNorm):
    def communicating_group(self) -> None:
        return None


class ForgetsAnEmptyRank(syncbn.SyncBatchNorm):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(input, mask) if len(input) else input * self.weight.sum()


class CountsTwice(syncbn.SyncBatchNorm):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            super().forward(input, mask)
        return super().forward(input, mask)


@contextmanager
def layer(kind: type[syncbn.SyncBatchNorm]) -> Iterator[None]:
    before, proof.SyncBatchNorm = proof.SyncBatchNorm, kind
    try:
        yield
    finally:
        proof.SyncBatchNorm = before


def findings(kind: type[syncbn.SyncBatchNorm], time_left: float, *names: str) -> list[Finding]:
    assert communicating_group(None) is not None
    with layer(kind), pytest.MonkeyPatch.context() as patch:
        chosen = [case for case in proof.cases() if case.name in names]
        patch.setattr(proof, "cases", lambda: chosen)
        return list(proof.prove("here", torch.device("cpu"), time.monotonic() + time_left))


@pytest.mark.distributed
@pytest.mark.slow
def test_all_is_well_here_and_the_report_names_nobody(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_THE_TRAINER]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)

    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "doctor.json").read_text()
    found = json.loads(text)
    assert found["ok"]
    assert found["verdict"].startswith("exact here")
    assert len(found["proof"]) == len(list(proof.cases()))
    assert not [case for case in found["proof"] if case["problem"]]
    assert {"python", "torch", "syncbn"} <= found["versions"].keys()
    for private in (socket.gethostname(), str(Path.home()) + "/", str(Path(syncbn.__file__).parent), os.getcwd()):
        assert private not in text + done.stdout


@pytest.mark.distributed
@pytest.mark.slow
def test_under_torchrun_the_launchers_ranks_are_compared(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3"]
    command = [*launcher, "-m", "syncbn", "doctor", "seconds=40", "output=three.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("**exact here") == 1, "rank 0 speaks for all"
    found = json.loads((tmp_path / "three.json").read_text())
    assert {case["place"] for case in found["proof"]} == {"cpu, 3 rank(s), gloo"}


def test_a_misspelt_option_is_answered(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "syncbn", "doctor", "modle=resnet50"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: modle: no such key; did you mean 'model'?")


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (Unsynchronized, "fp32, contiguous, unequal ranks"),
        (Unsynchronized, "bf16, channels last, unequal ranks"),
        (Unsynchronized, "fp64, second derivatives"),
        (CountsTwice, "fp32, checkpointed"),
    ],
)
def test_a_layer_that_is_wrong_is_found(
    ranks: Callable[[int], Ranks], kind: type[syncbn.SyncBatchNorm], case: str
) -> None:
    for found in ranks(2).run(findings, kind, 60.0, case):
        assert [finding.name for finding in found if finding.problem] == [case]


@pytest.mark.distributed
def test_every_case_is_right_on_three_ranks(ranks: Callable[[int], Ranks]) -> None:
    names = [case.name for case in proof.cases() if "compiled" not in case.name]
    for found in ranks(3).run(findings, syncbn.SyncBatchNorm, 60.0, *names):
        assert [finding.name for finding in found] == names
        assert not [finding for finding in found if finding.problem or finding.error is None]


@pytest.mark.distributed
def test_a_case_without_time_is_skipped_on_all_ranks_and_not_counted_as_right(ranks: Callable[[int], Ranks]) -> None:
    for found in ranks(2).run(findings, syncbn.SyncBatchNorm, -1.0, "fp32, contiguous, unequal ranks"):
        assert [finding.skipped for finding in found] == ["no time left"]
        report = DoctorReport({}, [], {}, proof=found)
        assert not report.ok
        assert report.verdict == "nothing was compared here (1 skipped)"


def test_a_problem_is_the_verdict() -> None:
    right = Finding("cpu", "a", 1e-7, 1e-4, 0.1)
    wrong = Finding("cpu", "b", 0.3, 1e-4, 0.1, problem="differs")
    assert DoctorReport({}, [], {}, proof=[right]).ok
    report = DoctorReport({}, [], {}, proof=[right, wrong])
    assert not report.ok
    assert report.verdict == "1 of 2 cases are wrong here, first b on cpu: differs"
    assert "**differs**" in report.to_markdown()


def test_paths_and_names_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "login-07")
    monkeypatch.setenv("USER", "ada")
    text = scrub("login-07: g++ failed for ada: /home/ada/.cache/syncbn/native.cpp:3: error; see https://a.org/b/c")
    assert text == "<name>: g++ failed for <name>: <path>/native.cpp:3: error; see https://a.org/b/c"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node[3-5,9]", "node3"), ("a,b", "a"), ("login1", "login1"), ("n[007-009]", "n007"), ("x1,y[2-3]", "x1")],
)
def test_ranks_of_srun_meet_on_the_first_node(nodes: str, first: str) -> None:
    assert _first_node({"SLURM_STEP_NODELIST": nodes}) == first


def test_a_mistake_is_told_before_anything_runs() -> None:
    with pytest.raises(ValueError, match=r"model=resnet5: no such network; did you mean 'resnet50'\?"):
        doctor(model="resnet5")
    with pytest.raises(ValueError, match="ranks must be at least 1, got 0"):
        doctor(ranks=0)
    assert network("resnet50") is not None


def test_a_report_that_can_not_be_written_is_told_before_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for output, message in ((".", "output=.: that is a folder; give a file's name"), ("file/r.json", "File exists:")):
        monkeypatch.setattr(sys, "argv", ["syncbn", f"output={output}"])
        with pytest.raises(SystemExit, match="2"):
            command.PARSER.main(command.examine)
        assert capsys.readouterr().err.startswith(f"error: {message}")
