"""Process group for numbers and objects on the host."""

import torch.distributed as dist

_made: tuple[dist.ProcessGroup, dist.ProcessGroup] | None = None


def host_group() -> dist.ProcessGroup | None:
    """Group of all ranks over gloo, in addition to the gradients' backend; None for a single process.

    It is created at the first call, which all ranks must make at the same place.
    """
    global _made
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    everyone = dist.group.WORLD
    assert everyone is not None  # the default group exists
    if _made is None or _made[0] is not everyone:
        _made = everyone, dist.new_group(backend="gloo")
    return _made[1]
