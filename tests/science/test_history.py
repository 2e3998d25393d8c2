"""The commit that introduced a plan's claims, in test repositories."""

import subprocess
from pathlib import Path

import pytest

from science.history import UNVERSIONED, claims_at, commit_of_claims
from tests.science.plans import write_plan


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "x")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "README").write_text("x")
    commit(tmp_path)
    (tmp_path / "plans").mkdir()
    return tmp_path


def test_it_is_the_first_commit_since_which_the_claims_are_the_same(repository: Path) -> None:
    path = repository / "plans" / "small.yaml"
    write_plan(path, {"claims.0.margin": 0.1})
    before = commit(repository)
    plan = write_plan(path)
    first = commit(repository)
    assert commit_of_claims(plan, path) == first[:12]
    plan = write_plan(path, {"title": "Other words", "reading": "It was so."})
    commit(repository)
    (repository / "README").write_text("y")
    commit(repository)
    assert commit_of_claims(plan, path) == first[:12], "words may change"
    assert claims_at(first, path) == plan.claims_hash()
    assert claims_at(before, path) not in (None, plan.claims_hash())


@pytest.mark.parametrize(
    "change",
    [
        {"claims.0.margin": 0.01},
        {"claims.0.relation": "<"},
        {"claims.0.text": "another claim"},
        {"claims.0.scale": "ratio"},
        {"seeds": 6},
        {"first_seed": 100},
    ],
)
def test_claims_that_are_not_committed_as_they_are_are_refused(repository: Path, change: dict[str, object]) -> None:
    path = repository / "plans" / "small.yaml"
    with pytest.raises(ValueError, match=r"aren't committed as they are.*git commit"):
        commit_of_claims(write_plan(path), path)
    commit(repository)
    with pytest.raises(ValueError, match="aren't committed as they are"):
        commit_of_claims(write_plan(path, change), path)


def test_claims_that_come_back_count_from_when_they_did(repository: Path) -> None:
    path = repository / "plans" / "small.yaml"
    write_plan(path)
    commit(repository)
    write_plan(path, {"claims.0.margin": 0.1})
    commit(repository)
    plan = write_plan(path)
    assert commit(repository)[:12] == commit_of_claims(plan, path)


def test_a_plan_of_another_time_has_other_claims(repository: Path) -> None:
    path = repository / "plans" / "small.yaml"
    path.write_text("claims: of another form\n")
    old = commit(repository)
    plan = write_plan(path)
    assert commit(repository)[:12] == commit_of_claims(plan, path)
    assert claims_at(old, path) is None
    assert claims_at("0" * 40, path) is None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    path = tmp_path / "small.yaml"
    assert commit_of_claims(write_plan(path), path) == UNVERSIONED
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of_claims(write_plan(path), path) == UNVERSIONED
