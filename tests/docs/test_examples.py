"""Every file of examples/ runs, at toy size, and prints what it should."""

import re
import sys
from pathlib import Path

import pytest

from tests.docs.commands import RUN_WITH, for_this_torch, outcome
from tests.docs.markdown import REPOSITORY, blocks

EXAMPLES = REPOSITORY / "examples"
# What each prints, with the numbers that it is judged by, and their bounds.
PRINTED = {
    "accelerate_loop": (r"2 processes, (\d+) steps", [(4, 4)]),
    "adabn_serving": (r"another camera: ([\d.]+) % before, ([\d.]+) % after", [(0, 70), (80, 100)]),
    "ddp": (r"", []),
    "detection": (r"step 0: loss ([\d.]+)\nstep 29: loss ([\d.]+)", [(0.5, 9), (0, 0.5)]),
    "fsdp2": (r"a checkpoint of (\d+) tensors; mean of bn1: (-?[\d.]+)", [(122, 122), (-1, 1)]),
    "gan_gradient_penalty": (r"gradient penalty: ([\d.]+) at first, ([\d.]+) after 50 steps", [(0.5, 1), (0, 0.5)]),
    "lightning_fit": (r"", []),
    "segmentation": (r"right pixels: ([\d.]+) %", [(90, 100)]),
    "transformers_trainer": (r"2 processes, (\d+) steps", [(4, 4)]),
}
ELSEWHERE = {"timm_loop"}  # needs torchvision of the same build as torch: `make zoo` runs it


def test_every_example_is_run_and_listed() -> None:
    files = {file.stem for file in EXAMPLES.glob("*.py")}
    assert files == {*PRINTED, *ELSEWHERE}
    listed = re.findall(
        r"\]\(\.\./\.\./examples/(\w+)\.(?:py|ipynb)\)", (REPOSITORY / "docs" / "guides" / "examples.md").read_text()
    )
    assert sorted(listed) == sorted([*files, "convert_inspect_fuse"])


@pytest.mark.distributed
@pytest.mark.parametrize("name", PRINTED)
def test_an_example(name: str, tmp_path: Path) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    named = RUN_WITH.match(text)
    assert named is not None
    assert named["file"] == f"{name}.py"
    (tmp_path / named["file"]).write_text(for_this_torch(text))
    printed, errors = outcome(named["command"], tmp_path)
    assert "Exception ignored" not in errors
    pattern, bounds = PRINTED[name]
    found = re.search(pattern, printed)
    assert found, printed
    for number, (low, high) in zip(found.groups(), bounds, strict=True):
        assert low <= float(number) <= high, found[0]


def test_the_example_of_timm_says_how_it_is_run() -> None:
    named = RUN_WITH.match((EXAMPLES / "timm_loop.py").read_text())
    assert named is not None
    assert (
        "torchrun --nproc-per-node 2 -m tests.zoo.example examples/timm_loop.py"
        in (REPOSITORY / "Makefile").read_text()
    )


@pytest.mark.parametrize(("guide", "example"), [("layer", "ddp"), ("lightning", "lightning_fit")])
def test_the_guides_show_the_examples(guide: str, example: str) -> None:
    text = (EXAMPLES / f"{example}.py").read_text()
    assert text in [block.text for block in blocks((REPOSITORY / "docs" / "guides" / f"{guide}.md").read_text())]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel", reason='needs ipykernel: pip install -e ".[dev]"')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    kernel = tmp_path / "kernels" / "this"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(f'{{"argv": {command}, "display_name": "this"}}'.replace("'", '"'))
    notebook = nbformat.read(EXAMPLES / "convert_inspect_fuse.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # stored without outputs, so that changes are read
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="this", resources={"metadata": {"path": tmp_path}}
    ).execute()
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "equal to rounding: True" in "".join(printed)
