#!/usr/bin/env bash
# Builds a release, checks it and tags it: scripts/release.sh 0.2.0. With --check in front, everything but the tag.
#
# The tag is made where all of this holds: the tree is clean; pyproject.toml, __init__.py, CITATION.cff and CHANGELOG.md
# have the version; wheel and source distribution build and pass `twine check`; the wheel, installed apart from the
# checkout, computes what one process does, and its command trains. PYTHON=.venv/bin/python names the environment.
# Pushing the tag publishes it (.github/workflows/release.yml).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=$(cd "$(dirname "$(command -v "${PYTHON:-python3}")")" && pwd)/$(basename "${PYTHON:-python3}")

check=false
if [ "${1:-}" = --check ]; then check=true; shift; fi
version=${1:?the version, for example: scripts/release.sh 0.2.0}

fail() { echo "release.sh: $*" >&2; exit 1; }
$check || [ -z "$(git status --porcelain)" ] || fail "the tree isn't clean: commit first"
grep -q "^version = \"$version\"$" pyproject.toml || fail "pyproject.toml has another version than $version"
grep -q "^__version__ = \"$version\"$" syncbn/__init__.py || fail "syncbn/__init__.py has another version than $version"
grep -q "^version: $version$" CITATION.cff || fail "CITATION.cff has another version than $version"
grep -q "^## \[$version\]" CHANGELOG.md || fail "CHANGELOG.md has no section [$version]"

rm -rf dist
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"$PYTHON" -m venv "$tools/build"
"$tools/build/bin/pip" install --quiet --disable-pip-version-check "build>=1.2" "twine>=6"
"$tools/build/bin/python" -m build --outdir dist .
"$tools/build/bin/twine" check --strict dist/*

# Of this environment the wheel takes torch and the rest; of this checkout nothing.
"$tools/build/bin/pip" --python "$PYTHON" install --quiet --disable-pip-version-check --no-deps --target "$tools/user" dist/*.whl
cd "$tools"
export PYTHONPATH=$tools/user
cat > proof.py <<'PROOF'
import sys

import torch
from torch import nn

import syncbn

if __name__ == "__main__":
    model = syncbn.convert(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "sync")
    report = syncbn.verify(model, torch.randn(8, 4), ranks=2)
    assert report, report
    assert syncbn.__file__.startswith(sys.argv[1]), syncbn.__file__
    print(syncbn.__version__, report)
PROOF
"$PYTHON" proof.py "$tools"
"$PYTHON" -m syncbn train debug=fast trainer.accelerator=cpu run_id=release
cd - >/dev/null

if $check; then
    echo "checked: dist/ holds $version"
else
    git tag --annotate "v$version" --message "Version $version"
    echo "tagged v$version: git push origin v$version publishes it"
fi
