"""Check by git that a plan's claims were committed before its runs."""

import subprocess
from pathlib import Path

from science.plan import Plan, parse_plan

UNVERSIONED = "unversioned"  # without git, or without a history that contains the plan


def commit_of_claims(plan: Plan, path: Path) -> str:
    """Commit that introduced the current claims of the plan in `path`; UNVERSIONED outside git.

    Raises:
        ValueError: the claims aren't committed.
    """
    commits = _git(path, "log", "--format=%H", "--", path.name)
    if commits is None or not commits.split():
        if commits is not None and _git(path, "rev-parse", "HEAD"):
            raise _not_committed(path)
        return UNVERSIONED
    found = None
    for commit in commits.split():
        if claims_at(commit, path) != plan.claims_hash():
            break
        found = commit
    if found is None:
        raise _not_committed(path)
    return found[:12]


def claims_at(commit: str, path: Path) -> str | None:
    """Hash of a plan's claims in a commit; None if the commit is unknown or has no such plan."""
    text = _git(path, "show", f"{commit}:./{path.name}")
    if text is None:
        return None
    try:
        return parse_plan(text, path).claims_hash()
    except ValueError:  # a plan in an older format
        return None


def _not_committed(path: Path) -> ValueError:
    return ValueError(
        f"the claims in {path} aren't committed as they are: claims come before runs, so `git commit` the plan first "
        "(smoke=true tries it without)"
    )


def _git(path: Path, *arguments: str) -> str | None:
    """Output of git in the plan's folder; None if it fails or isn't installed."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=path.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout
