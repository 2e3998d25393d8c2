"""Export a finished run's fused network to files for other programs.

Batch norms are folded into the convolutions before them. safetensors holds the weights, torch a torch.export program.
Every file is read back and compared with the network on test images. Existing files are not overwritten.
"""

import importlib.util
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from syncbn import cli
from syncbn.cli.arguments import OnRun, Parser
from syncbn.norm.core.options import option
from syncbn.run.errors import UserError, user_mistakes

if TYPE_CHECKING:
    from torch import Tensor, nn

_FILES = {"safetensors": "model.safetensors", "torch": "model.pt2", "onnx": "model.onnx"}
_TOLERANCE = 1e-4  # relative to the largest logit, in float32


@dataclass
class Options(OnRun):
    """Options of `syncbn export`."""

    format: Literal["safetensors", "torch", "onnx", "all"] = option("all", "file format to write")
    output: Path | None = option(
        None, "folder for model.safetensors, model.pt2 and model.onnx; <run>/export by default"
    )


PARSER = Parser("syncbn export", __doc__, Options, overrides="overrides")


def main() -> None:
    """Read `run=<folder>` and write the files."""
    PARSER.main(export)


def export(arguments: list[str]) -> list[Path]:
    """Write the run's network in each format, and print each file's largest difference of logits from the network.

    Args:
        arguments: `run=<folder>`, and other options of `PARSER`.
    """
    with user_mistakes():
        options = PARSER.read(arguments)
        formats: list[str] = list(_FILES) if options.format == "all" else [options.format]
        _check_packages(formats)
        folder = options.output or options.run / "export"
        paths = [folder / _FILES[name] for name in formats]
        if existing := [str(path) for path in paths if path.exists()]:
            raise ValueError(f"{', '.join(existing)} would be overwritten: give another folder by output=<folder>")

        from syncbn.run.finished import open_run

        finished = open_run(options.run, options.checkpoint, options.data, options.overrides)
    images = finished.images()
    fused = _fused(finished.net, images)
    folder.mkdir(parents=True, exist_ok=True)
    expected = finished.net(images).detach()
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
    with warnings.catch_warnings():  # of older versions of torch, about how they read the file
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        return torch.export.load(path).module()(images)


def _write_onnx(net: "nn.Module", images: "Tensor", path: Path) -> "Tensor":
    import onnxruntime
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about each operator of torchvision it lacks
    program = torch.onnx.export(_program(net, images), (), dynamo=True, verbose=False)
    assert program is not None
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(answer)


def _program(net: "nn.Module", images: "Tensor") -> Any:
    """Export a program for batches of any size."""
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


if __name__ == "__main__":
    cli.run("export")
