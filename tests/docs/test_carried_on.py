"""Files for maintainers: workflows, forms, the citation, the release script."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docs.markdown import REPOSITORY

GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_runs_what_exists(file: Any) -> None:
    workflow = yaml.safe_load(file.read_text())
    assert workflow["name"] == file.stem
    assert workflow[True]  # YAML 1.1 reads the key `on` so
    assert "permissions" in workflow
    for step in steps(workflow):
        assert len({"uses", "run"} & set(step)) == 1
        assert re.fullmatch(r"[\w-]+/[\w-]+@[\w./]+", step.get("uses", "a/b@c"))
        for word in shlex.split(step.get("run", "")):
            if word.startswith(("scripts/", ".ci/", "tests/")):
                assert (REPOSITORY / word).exists(), word
            for extras in re.findall(r"^\.\[(.*)\]$", word):
                assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), word
        if step.get("run", "").startswith("make "):
            target = step["run"].split()[1]
            assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE), target


def test_the_matrix_has_every_python_and_the_pinned_torch() -> None:
    workflow = yaml.safe_load((GITHUB / "workflows" / "tests.yml").read_text())
    matrix = workflow["jobs"]["versions"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert PROJECT["requires-python"] == ">=3.11"
    (pinned,) = re.findall(r"^torch==(.*)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    versions = {*matrix["torch"], *(row["torch"] for row in matrix["include"])}
    (lowest,) = re.findall(r"^torch>=(.*)$", "\n".join(PROJECT["dependencies"]), re.MULTILINE)
    assert {pinned, f"{lowest}.0"} <= versions


def test_the_matrix_installs_all_that_its_tests_import() -> None:
    """With CI=true, which GitHub sets, a test that is skipped for want of a package is a failure."""
    workflow = yaml.safe_load((GITHUB / "workflows" / "tests.yml").read_text())
    *_, install, run = (shlex.split(step["run"]) for step in workflow["jobs"]["versions"]["steps"] if "run" in step)
    (extras,) = (word[2:-1].split(",") for word in install if word.startswith(".["))
    wanted = [Requirement(word) for word in install if re.search("[<>=]=", word)]
    wanted += [Requirement(line) for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    installed = {"syncbn", "torch"}
    while wanted:
        one = wanted.pop()
        if one.name == "syncbn":
            wanted += [Requirement(line) for extra in one.extras for line in PROJECT["optional-dependencies"][extra]]
        elif one.name not in installed:
            installed.add(canonicalize_name(one.name))
            wanted += [more for line in metadata.requires(one.name) or () if applies(more := Requirement(line))]
    homes = metadata.packages_distributions()
    for folder in (word for word in run if word.startswith("tests/")):
        for file in (REPOSITORY / folder).rglob("*.py"):
            for name in imported(ast.parse(file.read_text())) - {"tests", *sys.stdlib_module_names}:
                assert {canonicalize_name(home) for home in homes[name]} & installed, f"{file.name} imports {name}"


def applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def imported(module: ast.Module) -> set[str]:
    """What a module imports when it is imported, or is skipped without."""
    names = [alias.name for node in module.body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in module.body if isinstance(node, ast.ImportFrom)]
    names += re.findall(r"(?m)^(?:\w+ = )?pytest\.importorskip\(\"(\w+)\"", ast.unparse(module).replace("'", '"'))
    return {name.partition(".")[0] for name in names}


def test_publishing_needs_no_token() -> None:
    workflow = yaml.safe_load((GITHUB / "workflows" / "release.yml").read_text())
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    assert workflow["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    for file in WORKFLOWS:
        assert not re.search(r"secrets\.|password", file.read_text()), file.name


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_an_issue_form(name: str) -> None:
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert {"name", "description", "body"} == set(form)
    for field in form["body"]:
        assert field["type"] == "textarea"
        assert field["id"]
        assert field["attributes"]["label"]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(citation)
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]


def test_compromised_releases_of_lightning_are_excluded() -> None:
    (lightning,) = PROJECT["optional-dependencies"]["lightning"]
    assert {"!=2.6.2", "!=2.6.3"} <= set(lightning.removeprefix("lightning").split(","))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check", "9.9.9"], "pyproject.toml has another version than 9.9.9"),
        ([], "the version, for example"),
    ],
)
def test_a_release_that_is_not_ready_is_refused(arguments: list[str], message: str) -> None:
    script = REPOSITORY / "scripts" / "release.sh"
    done = subprocess.run(["bash", str(script), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert message in done.stderr
