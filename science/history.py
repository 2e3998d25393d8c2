"""Whether a plan's claims were there before its runs, by git."""

import subprocess
from pathlib import Path

from science.plan import Plan, parse_plan

UNVERSIONED = "unversioned"  # where there is no git, or no history that holds the plan


def commit_of_claims(plan: Plan, path: Path) -> str:
    """The commit that brought the claims of the plan in `path` as they are now; UNVERSIONED outside of git.

    Raises:
        ValueError: they aren't committed.
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
    """The hash of a plan's claims in a commit; None where it isn't known here, or has no such plan."""
    text = _git(path, "show", f"{commit}:./{path.name}")
    if text is None:
        return None
    try:
        return parse_plan(text, path).claims_hash()
    except ValueError:  # a plan of another time
        return None


def _not_committed(path: Path) -> ValueError:
    return ValueError(
        f"the claims in {path} aren't committed as they are: claims come before runs, so `git commit` the plan first "
        "(smoke=true tries it without)"
    )


def _git(path: Path, *arguments: str) -> str | None:
    """What git says in the plan's folder; None where it fails or isn't there."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=path.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout
