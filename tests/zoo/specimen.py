"""A foreign network: built once, copied for each check, with helpers to run it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.networks.oracles.compare import WrongError, quiet
from tests.networks.outputs import tensors_of

BATCH = 4


class Specimen:
    """A network with random weights and matching statistics, in float64 if it runs in it.

    Attributes:
        base: the network, in evaluation mode; never changed.
        x: an input of `BATCH` samples.
        forward: how the network is called with it; with it alone when None.
        features: how `verify` calls it.
        tolerance: largest difference, relative to the largest value.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        shape: tuple[int, ...],
        forward: Callable[..., Any] | None = None,
        features: Callable[..., Any] | None = None,
    ) -> None:
        self._make, self.forward, self.features = make, forward, features or forward
        self.base = self._made().double()
        self.x = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.tolerance = 1e-7
        try:
            self._settle()
        except RuntimeError:  # it casts internally
            self.base, self.x, self.tolerance = self.base.float(), self.x.float(), 2e-3
            self._settle()

    def _settle(self) -> None:
        """Give norms approximately the input's statistics, and random scales: new ones are all equal, some 0."""
        numbers = torch.Generator().manual_seed(2)

        def near(layer: Any, args: Any) -> None:
            mean, var = moments(args[0], unbiased=False)
            noise = torch.randn(4, len(mean), generator=numbers, dtype=torch.float64).to(layer.running_mean.dtype)
            layer.running_mean.copy_(mean + 0.1 * noise[0] * var.sqrt())
            layer.running_var.copy_((var + 1e-3) * (0.1 * noise[1]).exp())
            if isinstance(layer.weight, nn.Parameter):
                layer.weight.data.copy_((0.3 * noise[2]).exp())
                layer.bias.data.copy_(0.1 * noise[3])

        with hooked(self.norms(self.base), near, before=True):
            self.run(self.base)

    def _made(self) -> nn.Module:
        torch.manual_seed(0)
        return self._make().eval()

    def made(self) -> nn.Module:
        """Build the network again, with the same parameters and buffers; libraries add hooks to one that runs."""
        model = self._made().to(self.x.dtype)
        model.load_state_dict(self.base.state_dict())
        return model

    def call(self, model: nn.Module, x: Tensor) -> list[Tensor]:
        """Call a network, for its floating-point tensors."""
        with quiet():
            outputs = tensors_of(model(x) if self.forward is None else self.forward(model, x))
        return [t for t in outputs if t.is_floating_point()]

    def copy(self) -> nn.Module:
        """Copy the network."""
        return copy.deepcopy(self.base)

    @staticmethod
    def norms(model: nn.Module) -> dict[str, Any]:
        """Batch norms with running statistics, recognized by attributes."""
        return {
            name: module
            for name, module in model.named_modules()
            if isinstance(getattr(module, "running_mean", None), Tensor) and hasattr(module, "eps")
        }

    def run(self, model: nn.Module, scale: float = 1.0) -> list[Tensor]:
        """Run a network without gradients, in its mode, with a fixed seed."""
        torch.manual_seed(0)
        with torch.no_grad():
            return [t.detach().clone() for t in self.call(model, scale * self.x)]

    def step(self, model: nn.Module, evaluating: tuple[str, ...] = ()) -> dict[str, dict[str, Tensor]]:
        """Outputs, gradients and buffers of a training step in which some layers, by name, evaluate."""
        model.train()
        for name in evaluating:
            model.get_submodule(name).eval()
        model.zero_grad()
        torch.manual_seed(0)
        outputs = self.call(model, self.x)
        loss: Any = sum(t.tanh().sum() for t in outputs if t.requires_grad)
        loss.backward()
        return {
            "outputs": {str(i): t.detach().clone() for i, t in enumerate(outputs)},
            "gradients": {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
            "buffers": {name: b.clone() for name, b in model.named_buffers()},
        }

    def same(self, found: nn.Module, expected: nn.Module, what: str) -> None:
        """Raise unless two networks return the same in evaluation, on inputs of several sizes."""
        expected.eval()
        for scale in (1.0, 5.0):
            right = self.run(expected, scale)
            noise = partial(self._run_shaken, expected, scale)
            self.compare(self.run(found.eval(), scale), right, what, noise=noise)

    def _run_shaken(self, model: nn.Module, scale: float) -> list[Tensor]:
        return self.run(self._shaken(model), scale)

    def _shaken(self, model: nn.Module) -> nn.Module:
        """A copy with parameters changed by rounding: a deep network may magnify it to a visible difference."""
        model, generator = copy.deepcopy(model), torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in model.parameters():
                if p.is_floating_point():
                    noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
                    p.mul_(1 + 16 * torch.finfo(p.dtype).eps * noise)
        return model

    def same_step(
        self, found: nn.Module, expected: nn.Module, what: str, evaluating: tuple[str, ...] = (), whole: bool = True
    ) -> None:
        """Raise unless a training step gives the same outputs, gradients and buffers.

        Args:
            found: network to judge.
            expected: correct network.
            what: description of the comparison, for the message.
            evaluating: names of layers of `expected` that evaluate.
            whole: whether both have the same parameters and buffers; else only common ones are compared.
        """
        shaken = self._shaken(expected)
        mine, right = self.step(found), self.step(expected, evaluating)

        def noise(part: str, names: list[str]) -> list[Tensor]:
            return [self.step(shaken, evaluating)[part][name] for name in names]

        for part, theirs in right.items():
            if whole and mine[part].keys() != theirs.keys():
                raise WrongError(f"{what}: {part} of other names")
            names = [name for name in theirs if name in mine[part]]
            # A gradient that is 0 but for rounding, of a bias before a norm, is compared with the others.
            largest = max((float(t.abs().max()) for t in theirs.values() if t.numel()), default=0.0)
            scale = None if part == "outputs" else largest
            both = [mine[part][name] for name in names], [theirs[name] for name in names]
            self.compare(*both, f"{what}: {part} of a step", scale, partial(noise, part, names))

    def compare(
        self,
        found: list[Tensor],
        expected: list[Tensor],
        what: str,
        scale: float | None = None,
        noise: Callable[[], list[Tensor]] | None = None,
    ) -> None:
        """Raise unless tensors are equal up to rounding.

        Args:
            found: result of the network to judge.
            expected: correct result.
            what: description of the comparison, for the message.
            scale: scale of relative differences; each tensor's largest value when None.
            noise: the correct result with rounding errors, by which it may differ more than by `tolerance`.
        """
        if [t.shape for t in found] != [t.shape for t in expected]:
            raise WrongError(f"{what}: other shapes")
        difference = _difference(found, expected, scale)
        if not difference <= self.tolerance and not (noise and difference <= _difference(noise(), expected, scale)):
            raise WrongError(f"{what}: off by {difference:.1e} of the largest value")


def _difference(found: list[Tensor], expected: list[Tensor], scale: float | None) -> float:
    """Largest difference, relative to the largest value of the tensor, or to `scale`; NaN counts as infinite."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if b.numel():
            largest = float(b.abs().max()) if scale is None else scale
            difference = float((a.double() - b.double()).abs().max()) / (largest + 1e-12)
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def moments(x: Tensor, unbiased: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of (N, C, ...)."""
    samples = x.detach().movedim(1, 0).flatten(1)
    return samples.mean(1), samples.var(1, unbiased=unbiased and samples.shape[1] > 1)


@contextmanager
def hooked(
    layers: dict[str, Any], see: Callable[..., Any], before: bool = False, named: bool = False
) -> Iterator[None]:
    """Call a function at each call of these layers: before it with the arguments, or after it with the output, too."""
    handles = []
    for name, layer in layers.items():
        register = layer.register_forward_pre_hook if before else layer.register_forward_hook
        if named:
            handles.append(register(lambda *given, name=name: see(name, *given)))
        else:
            handles.append(register(see))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def followers(model: nn.Module, run: Callable[[nn.Module], Any]) -> set[str]:
    """Norms that are called once and whose input is the unchanged output of a convolution or linear layer.

    Counted only by hooks on modules, independently of the recorder. The input may have another shape, as in LeViT.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    returned: list[tuple[Tensor, int]] = []
    calls: dict[str, list[bool]] = {}

    def note(name: str, layer: Any, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            returned.append((output, output._version))

    def ask(name: str, layer: Any, args: Any) -> None:
        x = args[0]
        found = any(
            (y.data_ptr(), y.numel(), y._version) == (x.data_ptr(), x.numel(), version) for y, version in returned
        )
        calls.setdefault(name, []).append(found)

    feeders = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    with hooked(feeders, note, named=True), hooked(Specimen.norms(model), ask, before=True, named=True):
        run(model)
    return {name for name, found in calls.items() if found == [True]}
