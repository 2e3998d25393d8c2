"""Recurrent networks with normalized gates (Cooijmans et al., ICLR 2017), for padded sequences of any length."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syncbn.models.common import Norm, check_images, check_sizes
from syncbn.models.recurrent_options import RecurrentOptions as Options
from syncbn.norm.core import compat
from syncbn.norm.core.attachable import Attachable
from syncbn.norm.core.capabilities import synchronizes, takes_step
from syncbn.norm.core.exchange import communicating_group, largest_over_ranks
from syncbn.norm.core.registry import has_bias, norm_layer

State = tuple[Tensor, ...]


class _Recurrent(nn.Module):
    """Base of LSTM and GRU: the two linear maps, their norms, and the loop over a padded batch."""

    def __init__(self, input_size: int, hidden_size: int, norm: Norm, gates: int) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        norm = norm_layer(norm)
        width = gates * hidden_size
        bias = not has_bias(norm, width)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.from_input = nn.Linear(input_size, width, bias=bias)
        self.input_norm = _checked(norm(width))
        self.from_hidden = nn.Linear(hidden_size, width, bias=bias)
        self.hidden_norm = _checked(norm(width))
        nn.init.orthogonal_(self.from_hidden.weight)

    def initial_state(self, samples: Tensor) -> State:
        """State before the first step: h, then any others, each (N, hidden_size)."""
        raise NotImplementedError

    def next_state(self, x: Tensor, state: State, step: int, mask: Tensor | None) -> State:
        """State after a step with inputs x (N, input_size); undefined for samples that `mask` (N,) excludes."""
        raise NotImplementedError

    def walk(self, input: Tensor, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Run all steps: h after each (N, T, hidden_size), 0 after a sequence's end, and each sequence's last state."""
        _check_sequences(input, lengths, self.input_size)
        length = input.shape[1]
        input, masks = self._padded(input, lengths)
        state = self.initial_state(input)
        outputs = []
        for step, x in enumerate(input.unbind(1)):
            if masks is None:
                state = self.next_state(x, state, step, None)
                outputs.append(state[0])
            else:
                new, going_on = self.next_state(x, state, step, masks[:, step]), masks[:, step, None]
                state = tuple(torch.where(going_on, n, s) for n, s in zip(new, state, strict=True))
                outputs.append(torch.where(going_on, state[0], 0))
        output = torch.stack(outputs, dim=1)
        if len(outputs) > length:  # more steps than this rank needs: other ranks' backward passes wait for it
            output = output[:, :length] + 0 * output[:, length:].sum()
        return output, state

    def _padded(self, input: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Zero the input after each sequence's end and pad it to the longest of all ranks; with the mask (N, T)."""
        longest = length = input.shape[1]
        norm: Any = self.input_norm
        if self.training and synchronizes(norm):
            longest = largest_over_ranks(length, input.device, communicating_group(norm.process_group))
        if lengths is None and longest == length:
            return input, None
        if lengths is None:
            lengths = torch.full((len(input),), length)
        masks = torch.arange(longest, device=input.device) < lengths.to(input.device)[:, None]
        return torch.where(masks[..., None], F.pad(input, (0, 0, 0, longest - length)), 0), masks


class LSTM(_Recurrent):
    """LSTM layer with norms of the input's part, of the recurrent part, and of the cell.

        i, f, g, o = norm(W_x x_t) + norm(W_h h_{t-1})
        c_t = σ(f) · c_{t-1} + σ(i) · tanh(g),  h_t = σ(o) · tanh(norm(c_t))

    The linear maps have biases where the norm has none: with `norm="none"` it is `torch.nn.LSTM`, gates in its order.
    With `norm="recurrent"`, training uses batch statistics of each time step over all ranks, and evaluation running
    ones; the other norms see one sample at a time. Values after the end of a sequence, NaN included, affect no output,
    statistic or gradient. Ranks may have batches of different lengths, or none.

    Args:
        input_size: features of the input of a step.
        hidden_size: features of h and c.
        norm: "recurrent", "none", a norm over single samples ("layer", "rms", "group", ...), or a function of the
            number of features; see `syncbn.norm_layer`.

    Shape:
        input (N, T, input_size) of a floating-point dtype; lengths (N,), integers from 0 to T, or None where all are T.
        Returns h after each step (N, T, hidden_size), 0 where a sequence has ended, and the last (h, c) of each
        sequence, (N, hidden_size) both. The dtypes are the input's.

    Raises:
        ValueError: a size below 1; a norm whose statistics all steps would share, or that changes the weights before
            it; an input or lengths of the wrong shape or range (the range of lengths is checked only on the CPU).
        TypeError: an input that isn't floating point, lengths that aren't integers.

    Source: Cooijmans et al., Recurrent Batch Normalization, ICLR 2017, https://arxiv.org/abs/1603.09025; with layer
        normalization: Ba et al., 2016, https://arxiv.org/abs/1607.06450.
    """

    def __init__(self, input_size: int, hidden_size: int, norm: Norm = "recurrent") -> None:
        super().__init__(input_size, hidden_size, norm, gates=4)
        self.cell_norm = _checked(norm_layer(norm)(hidden_size))

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, (h, c) = self.walk(input, lengths)
        return output, (h, c)

    def initial_state(self, samples: Tensor) -> State:
        zeros = samples.new_zeros(len(samples), self.hidden_size)
        return zeros, zeros

    def next_state(self, x: Tensor, state: State, step: int, mask: Tensor | None) -> State:
        h, c = state
        gates = _normalized(self.input_norm, self.from_input(x), step, mask)
        gates = gates + _normalized(self.hidden_norm, self.from_hidden(h), step, mask)
        i, f, g, o = gates.chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * _normalized(self.cell_norm, c, step, mask).tanh(), c


class GRU(_Recurrent):
    """GRU layer with norms of the input's part and of the recurrent part.

        r, z, n = norm(W_x x_t),  r', z', n' = norm(W_h h_{t-1})
        h_t = (1 - σ(z + z')) · tanh(n + σ(r + r') · n') + σ(z + z') · h_{t-1}

    With `norm="none"` it is `torch.nn.GRU`, gates in its order. Without a cell, it returns h after each step and the
    last h; otherwise it is as `LSTM`.
    """

    def __init__(self, input_size: int, hidden_size: int, norm: Norm = "recurrent") -> None:
        super().__init__(input_size, hidden_size, norm, gates=3)

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, (h,) = self.walk(input, lengths)
        return output, h

    def initial_state(self, samples: Tensor) -> State:
        return (samples.new_zeros(len(samples), self.hidden_size),)

    def next_state(self, x: Tensor, state: State, step: int, mask: Tensor | None) -> State:
        (h,) = state
        r, z, n = _normalized(self.input_norm, self.from_input(x), step, mask).chunk(3, dim=1)
        r_h, z_h, n_h = _normalized(self.hidden_norm, self.from_hidden(h), step, mask).chunk(3, dim=1)
        new = (n + (r + r_h).sigmoid() * n_h).tanh()
        keep = (z + z_h).sigmoid()
        return ((1 - keep) * new + keep * h,)


class RowClassifier(nn.Module):
    """Image classifier that reads the rows as a sequence and classifies h after the last row.

    Input (N, in_channels, H, W) of a floating dtype, output (N, num_classes) logits.

    Args:
        layer: `LSTM` or `GRU`.
        norm: norm of the recurrent layer.
        num_classes: number of logits.
        in_channels: channels of the images.
        image_size: pixels along a side, or (H, W); the input of a step is a row of W pixels.
        hidden_size: features of the recurrent layer.

    Raises:
        ValueError, TypeError: as `LSTM`; images of the wrong shape or of an integer dtype.
    """

    def __init__(
        self,
        layer: type[LSTM | GRU],
        norm: Norm,
        num_classes: int,
        in_channels: int,
        image_size: int | Sequence[int],
        hidden_size: int,
    ) -> None:
        super().__init__()
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        check_sizes(num_classes=num_classes, in_channels=in_channels, image_size=min(self.image_size))
        self.in_channels = in_channels
        self.rnn = layer(in_channels * self.image_size[1], hidden_size, norm)
        self.fc = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_channels)
        if tuple(x.shape[2:]) != self.image_size:
            raise ValueError(f"expected images of {self.image_size} pixels, got {tuple(x.shape)}; give image_size=")
        rows = x.transpose(1, 2).flatten(2)
        output, _ = self.rnn(rows)
        return self.fc(output[:, -1])


def lstm(
    norm: Norm = "recurrent",
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 8,
    hidden_size: int = Options.hidden_size,
) -> RowClassifier:
    """A `RowClassifier` over an `LSTM`."""
    return RowClassifier(LSTM, norm, num_classes, in_channels, image_size, hidden_size)


def gru(
    norm: Norm = "recurrent",
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 8,
    hidden_size: int = Options.hidden_size,
) -> RowClassifier:
    """A `RowClassifier` over a `GRU`."""
    return RowClassifier(GRU, norm, num_classes, in_channels, image_size, hidden_size)


def _normalized(norm: nn.Module, x: Tensor, step: int, mask: Tensor | None) -> Tensor:
    return norm(x, step, mask) if takes_step(norm) else norm(x)


def _checked(norm: nn.Module) -> nn.Module:
    """Return the norm, after checking that it is correct inside a recurrent network."""
    allowed = "take norm=recurrent, norm=none, or one that normalizes each sample by itself, as norm=layer"
    if isinstance(norm, compat.BatchNormBase) and not takes_step(norm):
        raise ValueError(f"all time steps would share the running statistics of {norm}; {allowed}")
    if isinstance(norm, Attachable):
        raise ValueError(f"{norm} acts on the layer before it, which is called at every time step; {allowed}")
    return norm


def _check_sequences(input: Tensor, lengths: Tensor | None, input_size: int) -> None:
    if input.dim() != 3 or input.shape[2] != input_size or input.shape[1] == 0:
        raise ValueError(f"expected an input (N, T, {input_size}) with T at least 1, got shape {tuple(input.shape)}")
    if not input.is_floating_point():
        raise TypeError(f"expected a floating-point input, got {input.dtype}; convert it with .float()")
    if lengths is None:
        return
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.shape != input.shape[:1]:
        raise ValueError(f"lengths must have shape (N,) = {tuple(input.shape[:1])}, got {tuple(lengths.shape)}")
    if lengths.device.type == "cpu" and len(lengths) and not 0 <= lengths.min() <= lengths.max() <= input.shape[1]:
        raise ValueError(f"lengths must be from 0 to T = {input.shape[1]}, got {lengths.tolist()}")
