"""Match the keys of a file of weights with those of a network, and adapt the two layers that depend on the data."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Names that wrap a whole model: DistributedDataParallel's and AveragedModel's, and those of tasks.
_AROUND = ("module.", "model.", "net.")
# Names that may stand anywhere in a key: of compiled, sharded and checkpointed parts. No module is called so by hand.
_WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_COUNTER = "num_batches_tracked"


def matched(state: Mapping[str, Any], own: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Name a file's tensors as the network does.

    Prefixes that wrap a model are taken off only where more of the keys fit without them, so that a network with an
    attribute `net` reads its own file.

    Args:
        state: of the file.
        own: keys of the network.

    Returns:
        The tensors by the network's keys, as far as it has them, and what was done, in words.

    Raises:
        ValueError: several prefixes fit equally well, with other numbers under each.
    """
    said = []
    if (averaged := state.get("n_averaged")) is not None and averaged.numel() == 1:
        state = {key: value for key, value in state.items() if key != "n_averaged"}
        said.append(f"an average of {int(averaged)} models")
    named = {_plain(key): key for key in own}
    plain = {_plain(key): value for key, value in state.items()}
    fits = {prefix: _fits(plain, prefix, named) for prefix in _prefixes(plain)}
    prefix, *others = sorted(fits, key=lambda each: (-fits[each], len(each)))
    inside = _inside(plain, prefix)
    for other in others:
        if 0 < fits[other] == fits[prefix] and not _equal(inside, _inside(plain, other), named):
            raise ValueError(
                f"keys of the network are in the file under {prefix!r} and under {other!r}, with other numbers: save "
                "one of the two alone, and load that"
            )
    if prefix:
        said.append(f"prefix {prefix!r} taken off")
    if outside := [key for key in plain if not key.startswith(prefix)]:
        said.append(f"left out, beside {prefix!r}: {listed(outside)}")
    return {named.get(key, key): value for key, value in inside.items()}, said


def _plain(key: str) -> str:
    for name in _WITHIN:
        key = key.replace(name, "")
    return key


def _prefixes(keys: Iterable[str]) -> list[str]:
    found = {""}
    for key in keys:
        prefix = ""
        while around := next((name for name in _AROUND if key.startswith(prefix + name)), None):
            prefix += around
            found.add(prefix)
    return sorted(found)


def _inside(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _equal(a: Mapping[str, Any], b: Mapping[str, Any], keys: Iterable[str]) -> bool:
    pairs = [(a[key], b[key]) for key in keys if isinstance(a.get(key), Tensor) and isinstance(b.get(key), Tensor)]
    return all(x.shape == y.shape and bool((x == y).all()) for x, y in pairs)


def _fits(state: Mapping[str, Tensor], prefix: str, own: Mapping[str, str]) -> int:
    return sum(key.startswith(prefix) and key.removeprefix(prefix) in own for key in state)


def prefix_between(loaded: Iterable[str], own: Iterable[str]) -> str | None:
    """Say what stands before the keys of one side and not of the other; None where the keys differ otherwise."""
    loaded, own = set(loaded), {key for key in own if not key.endswith(_COUNTER)}
    for longer, shorter, sentence in (
        (loaded, own, "its keys begin with {0!r}, the network's don't: save or pass the part under {0!r}"),
        (own, loaded, "the network's keys begin with {0!r}, the file's don't: load into that part of the network"),
    ):
        first = min(shorter, default="")
        ends = [key for key in longer if key.endswith(f".{first}")]
        for prefix in (key.removesuffix(first) for key in ends):
            cut = {key.removeprefix(prefix) for key in longer if key.startswith(prefix)}
            if len(cut & shorter) > len(shorter) / 2:
                return sentence.format(prefix)
    return None


def listed(keys: list[str], most: int = 5) -> str:
    """Return the first few keys, and how many more there are."""
    more = len(keys) - most
    return ", ".join(keys[:most]) + (f" and {more} more" if more > 0 else "")


def counters_as_scalars(loaded: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give `num_batches_tracked` of shape (1,) the shape (), and leave it out where the network counts nothing."""
    found = {}
    for key, value in loaded.items():
        if key.endswith(_COUNTER) and value.numel() == 1:
            mean = key.removesuffix(_COUNTER) + "running_mean"
            if key in own:
                found[key] = value.reshape(own[key].shape)
            elif mean not in own:
                found[key] = value
        else:
            found[key] = value
    return found


def missing(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> list[str]:
    """Return the keys that the file lacks. One that shares its memory with a key that is there isn't missing.

    Files from before torch 0.4.1 have no num_batches_tracked; the network's own zeros are kept.
    """
    there = {_memory(own[key]) for key in loaded if key in own}
    return [key for key in own if key not in loaded and not key.endswith(_COUNTER) and _memory(own[key]) not in there]


def _memory(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    # Tensors without elements all lie at 0.
    return (tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() else (-id(tensor), ())


def new_heads(model: nn.Module, own: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> list[str]:
    """Return the keys of the layers that stay new, as the file has another number of classes.

    These are the layer that the model's attribute `head` names, else its last with weights, and others (auxiliary
    classifiers) that differ by the same two numbers.
    """
    apart = {key: (len(loaded[key]), len(own[key])) for key in own if key in loaded and _in_classes(own, loaded, key)}
    named = getattr(model, "head", None)
    head = named if isinstance(named, str) else _last(model)
    counts = {pair for key, pair in apart.items() if key.startswith(f"{head}.")}
    return [key for key, pair in apart.items() if counts == {pair}]


def _in_classes(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor], key: str) -> bool:
    mine, others = own[key].shape, loaded[key].shape
    return mine != others and mine[1:] == others[1:] and 0 < len(mine) == len(others)


def _last(model: nn.Module) -> str | None:
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, *_CONVOLUTIONS))]
    return layers[-1] if layers else None


def adapted_stem(
    model: nn.Module, own: Mapping[str, Tensor], loaded: dict[str, Tensor]
) -> tuple[dict[str, Tensor], str | None]:
    """Fit the first convolution's weight to another number of channels, and say so.

    For one channel, the weights of the file's channels are summed: a grey image gives what it gave as three equal
    channels. For more, they are repeated and scaled by (channels in the file) / (channels here), which keeps the size
    of the output (Wightman's timm does the same).
    """
    first = next(
        (name for name, module in model.named_modules() if isinstance(module, _CONVOLUTIONS) and module.groups == 1),
        None,
    )
    key = f"{first}.weight"
    if first is None or key not in own or key not in loaded:
        return loaded, None
    mine, others = own[key].shape, loaded[key].shape
    if mine == others or len(mine) != len(others) or mine[0] != others[0] or mine[2:] != others[2:]:
        return loaded, None
    weight = loaded[key]
    if mine[1] == 1:
        weight = weight.sum(1, keepdim=True)
    else:
        repeats = -(-mine[1] // others[1])
        weight = torch.cat([weight] * repeats, 1)[:, : mine[1]] * (others[1] / mine[1])
    return {**loaded, key: weight}, f"{key} adapted from {others[1]} to {mine[1]} channels"
