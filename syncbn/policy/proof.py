"""Proofs that a changed model computes the same: both run in float64 on the example and on random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from syncbn.norm.core import compat
from syncbn.norm.surgery.forward import (
    Example,
    Forward,
    copied,
    copied_example,
    devices_of,
    run,
    seeded,
    tensors_in,
    varied,
)
from syncbn.policy.layers import is_batch_norm

_TOLERANCE = 1e-9
# Tolerances for a model that doesn't run in float64, because of casts or kernels of its own.
_TOLERANCES = {torch.float64: _TOLERANCE, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1}
# Rounding that a network magnifies beyond this is taken for a difference.
_LARGEST_ROUNDING = 1e-5
# Limit of folded layers' outputs in bytes; if possible, samples are left out to stay below it.
_BUDGET = 2**29


class Folded(Protocol):
    """Names of a folded layer and of the layer that it is folded into."""

    @property
    def layer(self) -> str: ...

    @property
    def feeder(self) -> str | None: ...


def prove_fusion(
    model: nn.Module,
    folds: Iterable[Folded],
    change: Callable[[nn.Module], None],
    example_input: Example,
    forward: Forward | None,
    exact: bool = True,
) -> None:
    """Raise unless `change`, applied to a copy of `model`, preserves the outputs of the model and all folded layers.

    After each comparison the original continues with the changed model's output. So each layer is compared on the same
    input, rounding doesn't accumulate, and any other use of the tensors between a convolution and its norm shows up in
    later layers.

    Args:
        model: the original; it isn't changed.
        folds: layers to compare.
        change: function that changes a copy in place.
        example_input: see `syncbn.norm.surgery.forward.run`; `forward` likewise.
        forward: function that calls the model.
        exact: whether to compare in float64 if the model runs in it; else in its own precision.

    Raises:
        ValueError: the outputs differ, or the changed model raises; it names the layer.
    """
    folds = list(folds)
    rehearsal = Rehearsal.of(model, example_input, forward, exact)
    changed = copied(rehearsal.model)
    change(changed)
    for example in rehearsal.examples:
        comparison = _Comparison({fold.layer: fold.feeder for fold in folds}, rehearsal.tolerance)
        with _outputs_of(changed, list(comparison.feeders), comparison.keep):
            try:
                returned = rehearsal.run(changed, example)
            except Exception as error:
                raise ValueError(
                    f"fusing {comparison} would break this model: {type(error).__name__}: {error}; it is unchanged"
                ) from error
        with _outputs_of(rehearsal.model, list(comparison.feeders), comparison.compare):
            expected = rehearsal.run(rehearsal.model, example)
        rehearsal.compare(returned, expected, f"with {comparison} folded, the model would return something else")


class _Comparison:
    """Outputs of a changed model's folded layers, for comparison with the original."""

    def __init__(self, feeders: dict[str, str | None], tolerance: float) -> None:
        self.feeders = feeders
        self._tolerance = tolerance
        self._outputs: dict[str, Tensor] = {}

    def keep(self, layer: str, output: Tensor) -> None:
        """Store the changed model's output of a layer, before an in-place operation changes it."""
        self._outputs[layer] = output.clone()

    def compare(self, layer: str, output: Tensor) -> Tensor:
        """Compare the original's output of a layer, and return the changed model's to continue with."""
        difference = relative_difference(output, self._outputs.get(layer))
        if not difference <= self._tolerance:
            raise Difference(
                f"{layer}, folded into {self.feeders[layer]}, would return something else: it differs by "
                f"{difference:.1e} of its largest value; the model is unchanged"
            )
        return self._outputs.pop(layer)

    def __str__(self) -> str:
        names = list(self.feeders)
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@dataclass
class Rehearsal:
    """Copy of a model to try a change on: in float64, with random γ, β and statistics.

    Attributes:
        model: the copy, in evaluation mode.
        examples: the example, and one of random numbers if the model accepts it.
        tolerance: largest allowed difference, relative to the largest value.
    """

    model: nn.Module
    examples: list[Example]
    forward: Forward | None
    tolerance: float

    @classmethod
    def of(cls, model: nn.Module, example_input: Example, forward: Forward | None, exact: bool = True) -> Rehearsal:
        """Make a rehearsal that runs.

        Args:
            model: the original; it isn't changed.
            example_input: see `syncbn.norm.surgery.forward.run`; `forward` likewise.
            forward: function that calls the model.
            exact: whether to compare in float64 if the model runs in it; else in its own precision.
        """
        for rehearsal in _rehearsals(model, example_input, forward, exact):
            try:
                elements = rehearsal._randomize()
                break
            except Exception:  # a layer casts, or has a kernel only for its own precision
                continue
        else:
            rehearsal, elements = _rehearsal(model, example_input, forward, None), 0
        if elements * 8 > _BUDGET and (fewer := _fewer(rehearsal.examples[0])) is not None and rehearsal.runs(fewer):
            rehearsal.examples[0] = fewer
        other = varied(rehearsal.examples[0])
        if rehearsal.runs(other):
            rehearsal.examples.append(other)
        return rehearsal

    def runs(self, example: Example) -> bool:
        """Whether the model accepts an example; it may reject other values or fewer samples."""
        try:
            self.run(self.model, example)
        except Exception:  # a foreign model may raise anything
            return False
        return True

    def _randomize(self) -> int:
        """Give norms random γ, β and statistics; returns the number of elements that they normalize."""
        with _random_norms(self.model) as elements:
            self.run(self.model, self.examples[0])
        return sum(elements)

    def run(self, model: nn.Module, example: Example) -> Any:
        """Run a copy of the model reproducibly."""
        with torch.no_grad(), seeded(devices_of(model)), NoNoise():
            return run(model, copied_example(example), self.forward)

    def compare_with(self, model: nn.Module, returned: Any, example: Example, complaint: str) -> None:
        """Raise `ValueError` unless a model returns all tensors of a result, but for what rounding makes of them.

        A deep network may magnify rounding beyond the tolerance. So what differs by little is compared with what the
        model returns when its parameters are off by a few units of the last place.
        """
        expected = self.run(model, example)
        try:
            self.compare(returned, expected, complaint)
        except Difference:
            pairs = zip(tensors_in(self.run(_shaken(model), example)), tensors_in(expected), strict=True)
            rounding = max((relative_difference(a, b) for a, b in pairs), default=0.0)
            self.compare(returned, expected, complaint, max(self.tolerance, min(10 * rounding, _LARGEST_ROUNDING)))

    def compare(self, returned: Any, expected: Any, complaint: str, tolerance: float | None = None) -> None:
        """Raise `ValueError` unless all tensors in two results are equal, to the tolerance if none is given."""
        tolerance = self.tolerance if tolerance is None else tolerance
        mine, theirs = list(tensors_in(returned)), list(tensors_in(expected))
        if len(mine) != len(theirs):
            raise Difference(f"{complaint}: {len(mine)} tensors instead of {len(theirs)}; it is unchanged")
        for a, b in zip(mine, theirs, strict=True):
            if a.shape != b.shape:
                raise Difference(f"{complaint}: {tuple(a.shape)} instead of {tuple(b.shape)}; it is unchanged")
            if not (difference := relative_difference(a, b)) <= tolerance:
                raise Difference(
                    f"{complaint}: it differs by {difference:.1e} of its largest value; the model is unchanged"
                )


def _shaken(model: nn.Module) -> nn.Module:
    """A copy whose parameters are off by rounding."""
    shaken, numbers = copied(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in shaken.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=numbers, dtype=torch.float64, device="cpu").to(
                    parameter.device
                )
                units = 4 * torch.finfo(parameter.dtype).eps
                parameter.copy_(parameter * (1 + units * noise))
    return shaken


def relative_difference(a: Tensor, b: Tensor | None) -> float:
    """Largest difference of two tensors, relative to the largest value; infinite if their shapes differ."""
    if b is None or a.shape != b.shape:
        return float("inf")
    if a.numel() == 0:
        return 0.0
    if not (a.is_floating_point() and b.is_floating_point()):
        return 0.0 if torch.equal(a, b) else float("inf")
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    if same.all():
        return 0.0
    largest = b[b.isfinite()].abs().max() if b.isfinite().any() else b.new_zeros(())
    return float(((a - b).abs()[~same].max() / largest.clamp(min=1e-30)).nan_to_num(float("inf")))


def _rehearsals(model: nn.Module, example: Example, forward: Forward | None, exact: bool) -> Iterator[Rehearsal]:
    for dtype in (torch.float64, None) if exact else (None,):
        yield _rehearsal(model, example, forward, dtype)


def _rehearsal(model: nn.Module, example: Example, forward: Forward | None, dtype: torch.dtype | None) -> Rehearsal:
    """Make a rehearsal in a precision, or in the model's own."""
    copy, example = copied(model).eval(), copied_example(example)
    if dtype is not None:
        _to_double(copy)
        example = compat.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, example)
    else:
        dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
        dtype = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
    return Rehearsal(copy, [example], forward, _TOLERANCES.get(dtype, 0.1))


def _fewer(example: Example) -> Example | None:
    """Keep only two samples of several."""
    sizes = {tensor.shape[:1] for tensor in tensors_in(example)}
    if len(sizes) != 1 or sizes == {()} or next(iter(sizes))[0] <= 2:
        return None
    return compat.tree_map_only(Tensor, lambda tensor: tensor[:2], example)


class NoNoise(compat.TorchDispatchMode):
    """Replace random numbers by their expected value, since models of different sizes draw different numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        expected = _EXPECTED.get(func.overloadpacket.__name__)
        output = func(*args, **kwargs)
        if expected is not None and isinstance(output, Tensor):
            output.fill_(expected(args, kwargs))
        return output


def _probability(args: Any, kwargs: dict[str, Any]) -> float:
    given = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    return given if isinstance(given, float) else 0.5


# Operators that return noise or fill a tensor with it, with the noise's mean.
_EXPECTED: dict[str, Callable[[Any, dict[str, Any]], float]] = {
    "bernoulli_": _probability,
    **dict.fromkeys(("rand", "rand_like", "uniform_"), lambda args, kwargs: 0.5),
    **dict.fromkeys(("randn", "randn_like", "normal_"), lambda args, kwargs: 0.0),
}


class Difference(ValueError):
    """Difference between the outputs of two models."""


def _to_double(model: nn.Module) -> None:
    """Convert to float64, including tensors that are neither parameters nor buffers."""
    model.double()
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                vars(module)[name] = value.double()


@contextmanager
def _random_norms(model: nn.Module) -> Iterator[list[int]]:
    """Give batch norms random γ, β and statistics on their first call, scaled to their input.

    Yields the numbers of elements of these inputs.
    """
    elements: list[int] = []
    numbers = torch.Generator().manual_seed(0)
    waiting: dict[nn.Module, Tensor] = {}  # four numbers per channel, drawn before a dispatch mode could see it
    for module in model.modules():
        mean = getattr(module, "running_mean", None)
        if is_batch_norm(module) and isinstance(mean, Tensor) and mean.dim() == 1:
            waiting[module] = torch.randn(4, len(mean), generator=numbers, dtype=torch.float64, device="cpu").to(
                mean.device
            )

    def choose(layer: Any, args: Any) -> None:
        if layer not in waiting or not args or args[0].dim() < 2 or args[0].shape[1] != len(layer.running_mean):
            return
        noise = waiting.pop(layer)
        elements.append(args[0].numel())
        x = args[0].double().transpose(0, 1).flatten(1)
        var = x.var(dim=1, correction=0)
        var = torch.where(var > 1e-12, var, torch.ones_like(var))
        layer.running_mean.copy_(x.mean(dim=1) + noise[0] * var.sqrt())
        layer.running_var.copy_(var * (0.3 * noise[1]).exp())
        if isinstance(layer.weight, Tensor):
            layer.weight.data.copy_(noise[2].sign() * (0.5 * noise[2]).exp())
        if isinstance(layer.bias, Tensor):
            layer.bias.data.copy_(noise[3])

    handles = [module.register_forward_pre_hook(choose) for module in waiting]
    try:
        yield elements
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _outputs_of(model: nn.Module, names: list[str], see: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Call a function on the outputs of modules; it may return a replacement."""
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: see(name, output))
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
