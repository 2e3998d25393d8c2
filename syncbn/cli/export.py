"""scripts/export.py run=<folder>: a finished run's network, fused, as files that other programs read."""

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncbn.cli import finished
from syncbn.norm.core.options import suggest
from syncbn.run.errors import UserError, user_mistakes

if TYPE_CHECKING:
    from torch import Tensor, nn

USAGE = """\
Export a finished run for inference: python scripts/export.py run=outputs/<run_id> [key=value] ...

run=<folder>          the run's folder
checkpoint=<path>     another checkpoint than checkpoints/best.ckpt
format=<name>         safetensors: the weights; torch: a torch.export program; onnx; all (default)
output=<folder>       where to write model.safetensors, model.pt2 and model.onnx; <run>/export by default
key.key=value         anything of the run's config

Batch norms are folded into the convolutions before them. Every file is read back and compared with the network on
test images. Existing files are not overwritten.
"""
_FILES = {"safetensors": "model.safetensors", "torch": "model.pt2", "onnx": "model.onnx"}
_TOLERANCE = 1e-4  # of the largest logit, in float32


def main() -> None:
    """Read `run=<folder>` and write the files."""
    finished.main(USAGE, export)


def export(arguments: list[str]) -> list[Path]:
    """Write the run's network in each format, and print how far each file's logits are from the network's.

    Args:
        arguments: `run=<folder>` and what `USAGE` says.
    """
    with user_mistakes():
        read = finished.read_arguments(arguments, "export", ("format", "output"))
        chosen = read.options.get("format", "all")
        if chosen not in (*_FILES, "all"):
            raise ValueError(f"format={chosen}: no such format; {suggest(chosen, (*_FILES, 'all'))}")
        formats = list(_FILES) if chosen == "all" else [chosen]
        _check_packages(formats)
        folder = Path(read.options.get("output") or read.run / "export")
        paths = [folder / _FILES[name] for name in formats]
        if existing := [str(path) for path in paths if path.exists()]:
            raise ValueError(f"{', '.join(existing)} would be overwritten: give another folder by output=<folder>")
        run = finished.open_run(read)
    images = next(iter(run.data.test_dataloader()))[0]
    fused = _fused(run.net, images)
    folder.mkdir(parents=True, exist_ok=True)
    expected = run.net(images).detach()
    for name, path in zip(formats, paths, strict=True):
        difference = float((_WRITERS[name](fused, images, path) - expected).detach().abs().max())
        print(f"{name + ':':<14} {path}   largest difference of a logit: {difference:.1e}")
        if not difference <= _TOLERANCE * float(expected.abs().max()):
            raise UserError(f"{path} computes something else than the network; don't use it")
    return paths


def _fused(net: "nn.Module", images: "Tensor") -> Any:
    import warnings

    from syncbn.policy import fuse, plan_fusion

    plan = plan_fusion(net, images)
    left = [fusion for fusion in plan if fusion.reason]
    print(f"folded:        {len(plan) - len(left)} of {len(plan)} batch norms")
    for fusion in left:
        print(f"not folded:    {fusion.layer}: {fusion.reason}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # printed above
        return fuse(net, images)


def _write_weights(net: "nn.Module", images: "Tensor", path: Path) -> "Tensor":
    import copy

    from safetensors.torch import load_file, save_file

    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path)
    read = copy.deepcopy(net)
    read.load_state_dict(load_file(path))
    return read(images)


def _write_program(net: "nn.Module", images: "Tensor", path: Path) -> "Tensor":
    import torch

    torch.export.save(_program(net, images), path)
    return torch.export.load(path).module()(images)


def _write_onnx(net: "nn.Module", images: "Tensor", path: Path) -> "Tensor":
    import onnxruntime
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it says for each operator of torchvision that it lacks
    program = torch.onnx.export(_program(net, images), (), dynamo=True, verbose=False)
    assert program is not None
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(answer)


def _program(net: "nn.Module", images: "Tensor") -> Any:
    """The exported program, for batches of any size."""
    import torch

    return torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))


_WRITERS = {"safetensors": _write_weights, "torch": _write_program, "onnx": _write_onnx}


def _check_packages(formats: list[str]) -> None:
    needed = {"safetensors": ["safetensors"], "onnx": ["onnx", "onnxscript", "onnxruntime"]}
    packages = [package for name in formats for package in needed.get(name, [])]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f'{", ".join(missing)} not found: pip install "syncbn[export]", or choose format=torch, which needs none'
        )
