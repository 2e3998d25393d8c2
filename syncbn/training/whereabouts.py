"""Position of a thread from its Python stack: its layer, and whether it waits for other ranks."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
import torch.distributed as dist
from torch import nn

from syncbn.norm.core import exchange

_TORCH = str(Path(torch.__file__).parent)
_LIGHTNING = str(Path(lightning.__file__).parent)
_DDP = f"{_TORCH}/nn/parallel/distributed.py"
_COLLECTIVES = (f"{_TORCH}/distributed/", _DDP)
_EXCHANGE = str(Path(exchange.__file__).with_name("one_shot.py"))
_OPERATORS = f"{_TORCH}/_ops.py"
_ENGINE = f"{_TORCH}/autograd/graph.py"
_FETCHERS = f"{_LIGHTNING}/pytorch/loops/fetchers.py"
_COMPILERS = (f"{_TORCH}/_dynamo/convert_frame.py", f"{_TORCH}/_inductor/compile_fx.py")
_DEBUGGERS = ("/bdb.py", "/pdb.py")


@dataclass(frozen=True)
class Place:
    """Position of a thread.

    Attributes:
        text: continuation of a sentence that begins with "rank 1".
        waits: whether it waits for other ranks.
        slow: whether its activity may take minutes: loading a batch, saving a checkpoint, compiling.
        debugged: whether it is in a debugger.
    """

    text: str
    waits: bool = False
    slow: bool = False
    debugged: bool = False


def place_of(thread: int, model: nn.Module) -> Place:
    """Find the position of a thread by its identifier; layers have their names in `model`.

    Nothing is recorded while the model runs: everything is read from the stack on demand.
    """
    frames = list(_frames(sys._current_frames().get(thread)))
    files = [frame.f_code.co_filename for frame in frames]
    if not frames:
        return Place("has ended")
    if any(file.endswith(_DEBUGGERS) for file in files):
        return Place("is in the debugger", debugged=True)
    if collective := _collective(frames):
        return Place(f"waits in {_layer(frames, model) or collective}", waits=True)
    line = _own_line(frames)
    if any(file in _COMPILERS for file in files):
        return Place(f"compiles{line}", slow=True)
    if _FETCHERS in files:
        return Place(f"loads a batch{line}", slow=True)
    if any(frame.f_code.co_name == "save_checkpoint" for frame in frames):
        return Place(f"saves a checkpoint{line}", slow=True)
    if layer := _layer(frames, model):
        return Place(f"is in {layer}{line}")
    return Place(f"is{line.removeprefix(',')}" if line else "is somewhere in PyTorch or Lightning")


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Frames from innermost to outermost, without those in which Python calls an operator."""
    while frame is not None:
        if frame.f_code.co_filename != _OPERATORS:
            yield frame
        frame = frame.f_back


def _collective(frames: list[FrameType]) -> str | None:
    """Collective that the innermost frame waits for, if any."""
    innermost = frames[0]
    if innermost.f_code.co_filename == _ENGINE:  # C++ runs below
        return "a backward pass, for DDP's reduction of the gradients"
    if innermost.f_code.co_filename == _DDP:
        return "DDP, before a forward pass"
    if innermost.f_code.co_filename == _EXCHANGE:
        return "a sum over ranks"
    if not innermost.f_code.co_filename.startswith(_COLLECTIVES):
        return f"a collective, at {_code(innermost)}" if _has_work(innermost) else None
    depth = next((i for i, f in enumerate(frames) if not f.f_code.co_filename.startswith(_COLLECTIVES)), len(frames))
    names = [frame.f_code.co_name for frame in frames[:depth] if frame.f_code.co_name != "wrapper"]
    caller = f", called by {_code(frames[depth])}" if depth < len(frames) else ""
    return f"torch.distributed's {names[-1] if names else 'communication'}{caller}"


def _has_work(frame: FrameType) -> bool:
    """Whether the frame has an asynchronous collective that it waits for in C++."""
    values = [*frame.f_locals.values(), *getattr(frame.f_locals.get("self"), "__dict__", {}).values()]
    return any(isinstance(value, dist.Work) for value in values)


def _layer(frames: list[FrameType], model: nn.Module) -> str | None:
    """Innermost layer whose forward or backward pass the frames are in."""
    names = {id(module): (name, module) for name, module in model.named_modules() if name}
    for frame in frames:
        owner = frame.f_locals.get("self")
        if id(owner) in names:
            name, module = names[id(owner)]
            return f"the forward pass of {name} ({type(module).__name__})"
        node = frame.f_locals.get("ctx")
        if hasattr(node, "next_functions"):
            name = _owner_of_parameters(node, model)
            return f"the backward pass of {name or f'a layer without parameters ({type(node).__name__})'}"
    return None


def _owner_of_parameters(node: Any, model: nn.Module) -> str | None:
    """Layer whose parameters, possibly in another dtype, are inputs of an autograd node."""
    owners = {
        id(parameter): f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        for parameter in module.parameters(recurse=False)
    }
    inputs = [function for function, _ in node.next_functions if function is not None]
    casts = [f for cast in inputs if cast.name().startswith("ToCopy") for f, _ in cast.next_functions if f is not None]
    variables = [getattr(function, "variable", None) for function in [*inputs, *casts]]
    return next((owners[id(variable)] for variable in variables if id(variable) in owners), None)


def _own_line(frames: list[FrameType]) -> str:
    """Innermost line that isn't PyTorch's or Lightning's."""
    for frame in frames:
        if not frame.f_code.co_filename.startswith((_TORCH, _LIGHTNING, "<")):
            return f", at {_code(frame)}"
    return ""


def _code(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
