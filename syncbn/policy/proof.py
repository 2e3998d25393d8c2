"""Proofs that a changed model computes what it did: the two run side by side, in float64, on other numbers too."""

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
# Of a model that doesn't run in float64: it does its own casts, or has kernels of its own.
_TOLERANCES = {torch.float64: _TOLERANCE, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1}
# Samples beyond these bytes of folded layers' outputs are left out, where the model allows it.
_BUDGET = 2**29


class Folded(Protocol):
    """The name of a layer that is folded, and of what it is folded into."""

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
    """Raise unless `change`, done to a copy of `model`, leaves what every folded layer and the model return.

    The original runs with the changed model's outputs in the place of its own folded layers', once they are compared:
    so each layer is compared on the same input, no rounding is carried on, and whatever else reads the tensors between
    a convolution and its norm shows in what comes later.

    Args:
        model: stays as it is.
        folds: the layers to compare.
        change: changes a copy in place.
        example_input: see `syncbn.norm.surgery.forward.run`; `forward` likewise.
        forward: how to call the model.
        exact: in float64, if the model runs in it; else in its own precision.

    Raises:
        ValueError: something differs, or the changed model raises; it names the layer.
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
    """The outputs of folded layers of a changed model, to be compared with those of the original."""

    def __init__(self, feeders: dict[str, str | None], tolerance: float) -> None:
        self.feeders = feeders
        self._tolerance = tolerance
        self._outputs: dict[str, Tensor] = {}

    def keep(self, layer: str, output: Tensor) -> None:
        """Note what the changed model's layer returned, before something works on it in place."""
        self._outputs[layer] = output.clone()

    def compare(self, layer: str, output: Tensor) -> Tensor:
        """Compare what the original's layer returned, and go on with the other one."""
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
    """A copy of a model on which a change is tried: in float64, with γ, β and statistics of its own.

    Attributes:
        model: in evaluation mode.
        examples: the example, and another one of random numbers, if the model takes it.
        tolerance: the largest difference, as a part of the largest value.
    """

    model: nn.Module
    examples: list[Example]
    forward: Forward | None
    tolerance: float

    @classmethod
    def of(cls, model: nn.Module, example_input: Example, forward: Forward | None, exact: bool = True) -> Rehearsal:
        """One that runs.

        Args:
            model: stays as it is.
            example_input: see `syncbn.norm.surgery.forward.run`; `forward` likewise.
            forward: how to call the model.
            exact: in float64, if the model runs in it; else in its own precision.
        """
        for rehearsal in _rehearsals(model, example_input, forward, exact):
            try:
                elements = rehearsal._randomize()
                break
            except Exception:  # a layer that casts, or has a kernel for its own precision alone
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
        """Whether the model takes an example: other numbers, or fewer samples, aren't always welcome."""
        try:
            self.run(self.model, example)
        except Exception:  # whatever a stranger's model may raise
            return False
        return True

    def _randomize(self) -> int:
        """Give norms other γ, β and statistics; the number of elements that they normalize."""
        with _random_norms(self.model) as elements:
            self.run(self.model, self.examples[0])
        return sum(elements)

    def run(self, model: nn.Module, example: Example) -> Any:
        """What a copy of the model returns; it is reproducible."""
        with torch.no_grad(), seeded(devices_of(model)), NoNoise():
            return run(model, copied_example(example), self.forward)

    def compare(self, returned: Any, expected: Any, complaint: str) -> None:
        """Raise `ValueError` unless all tensors in two results are equal."""
        mine, theirs = list(tensors_in(returned)), list(tensors_in(expected))
        if len(mine) != len(theirs):
            raise Difference(f"{complaint}: {len(mine)} tensors instead of {len(theirs)}; it is unchanged")
        for a, b in zip(mine, theirs, strict=True):
            if a.shape != b.shape:
                raise Difference(f"{complaint}: {tuple(a.shape)} instead of {tuple(b.shape)}; it is unchanged")
            if not (difference := relative_difference(a, b)) <= self.tolerance:
                raise Difference(
                    f"{complaint}: it differs by {difference:.1e} of its largest value; the model is unchanged"
                )


def relative_difference(a: Tensor, b: Tensor | None) -> float:
    """The largest difference of two tensors as a part of the largest value; infinite for tensors of other shapes."""
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
    """In a precision, or in the model's own."""
    copy, example = copied(model).eval(), copied_example(example)
    if dtype is not None:
        _to_double(copy)
        example = compat.pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, example)
    else:
        dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
        dtype = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
    return Rehearsal(copy, [example], forward, _TOLERANCES.get(dtype, 0.1))


def _fewer(example: Example) -> Example | None:
    """Two of several samples."""
    sizes = {tensor.shape[:1] for tensor in tensors_in(example)}
    if len(sizes) != 1 or sizes == {()} or next(iter(sizes))[0] <= 2:
        return None
    return compat.pytree.tree_map_only(Tensor, lambda tensor: tensor[:2], example)


class NoNoise(compat.TorchDispatchMode):
    """Gives random numbers their expected value: two models of different sizes draw different ones."""

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


# Operators that return noise, or fill a tensor with it, and its mean.
_EXPECTED: dict[str, Callable[[Any, dict[str, Any]], float]] = {
    "bernoulli_": _probability,
    **dict.fromkeys(("rand", "rand_like", "uniform_"), lambda args, kwargs: 0.5),
    **dict.fromkeys(("randn", "randn_like", "normal_"), lambda args, kwargs: 0.0),
}


class Difference(ValueError):
    """Two models compute different things."""


def _to_double(model: nn.Module) -> None:
    """In float64, tensors that are neither parameters nor buffers included."""
    model.double()
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                vars(module)[name] = value.double()


@contextmanager
def _random_norms(model: nn.Module) -> Iterator[list[int]]:
    """Let batch norms choose random γ, β and statistics when they are first called, of the size of their input.

    Yields the numbers of elements of these.
    """
    elements: list[int] = []
    numbers = torch.Generator().manual_seed(0)
    waiting: dict[nn.Module, Tensor] = {}  # four numbers a channel, made before there is a mode to see it
    for module in model.modules():
        mean = getattr(module, "running_mean", None)
        if is_batch_norm(module) and isinstance(mean, Tensor) and mean.dim() == 1:
            waiting[module] = torch.randn(4, len(mean), generator=numbers, dtype=torch.float64).to(mean.device)

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
    """Show what modules return to a function, which may return something to go on with."""
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: see(name, output))
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
