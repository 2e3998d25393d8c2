"""A process group for numbers and objects on the host."""

import torch.distributed as dist

_made: tuple[dist.ProcessGroup, dist.ProcessGroup] | None = None


def host_group() -> dist.ProcessGroup | None:
    """All ranks over gloo, beside whatever the gradients go by; None for a process on its own.

    Made at the first call, which all ranks must make at the same place.
    """
    global _made
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    everyone = dist.group.WORLD
    assert everyone is not None  # since it is initialized
    if _made is None or _made[0] is not everyone:
        _made = everyone, dist.new_group(backend="gloo")
    return _made[1]
