"""What every layer checks of its arguments and its input, with the same words."""

from torch import Tensor


def check_eps(eps: float) -> None:
    """Raise `ValueError` unless `eps` is greater than 0."""
    if not eps > 0:
        raise ValueError(f"eps must be greater than 0, got {eps}; 1e-5 is the usual value")


def check_count(name: str, value: int, least: int) -> None:
    """Raise `TypeError` for what isn't a number of things, and `ValueError` for fewer than `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_num_features(num_features: int) -> None:
    """Raise `TypeError` or `ValueError` for what isn't a number of channels."""
    check_count("num_features", num_features, least=1)


def check_channels(input: Tensor, num_features: int, channel_dim: int = 1) -> None:
    """Raise `ValueError` or `TypeError` unless `input` is floating point with `num_features` channels in place."""
    if input.dim() < 2:
        raise ValueError(f"expected an input (N, C) or (N, C, *spatial), got shape {tuple(input.shape)}")
    if input.shape[channel_dim] != num_features:
        raise ValueError(
            f"expected {num_features} channels in dimension {channel_dim}, got shape {tuple(input.shape)}; build the "
            f"layer with num_features={input.shape[channel_dim]} or move the channels to dimension {channel_dim}"
        )
    if not input.is_floating_point():
        raise TypeError(f"expected a floating-point input, got {input.dtype}; convert it with .float()")
