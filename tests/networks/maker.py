"""Builder of a network's nodes: layers that fit the features so far, and a record of foldable norms."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import syncbn
from tests.networks.registry import KINDS
from tests.networks.spec import Node

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_PADDINGS: list[dict[str, Any]] = [
    {},
    {"padding_mode": "circular"},
    {"padding_mode": "replicate"},
    {"padding": "same"},
    {"dilation": 2},
]
NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Block(nn.Module):
    """Named parts (layers, parameters, values), and a function `run(self, x)` over them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Maker:
    """Makes layers for features of `channels` and `space`, the sizes of the dimensions after (N, C).

    Attributes:
        rng: random choices of the nodes.
        foldable: norms that are foldable by construction: the preceding layer is a convolution or linear layer without
            hooks, called once, whose output is used only by the norm.
        removable: norms with a scale whose channels are removable by construction: between two such layers, with only
            functions around them that act on each channel separately and map 0 to 0.
    """

    def __init__(self, channels: int, space: tuple[int, ...], fresh: bool) -> None:
        self.channels = channels
        self.space = space
        self.fresh = fresh
        self.rng = random.Random(0)
        self.foldable: list[nn.Module] = []
        self.removable: list[nn.Module] = []
        self._node = Node("", 0)
        self._repeated = False

    @property
    def dim(self) -> int:
        """Number of dimensions after (N, C)."""
        return len(self.space)

    @property
    def along(self) -> tuple[int, ...]:
        """Shape after C of a tensor with one number per channel."""
        return (1,) * self.dim

    def width(self) -> int:
        """Choose an even number of channels."""
        return self.rng.choice([4, 6, 8])

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return self.rng.random() < probability

    def conv(self, out: int | None = None, of: int | None = None, cls: Any = None, **options: Any) -> Any:
        """Make a convolution that keeps the sizes, or a linear layer if there are none; random unless specified."""
        of, out = of or self.channels, out or self.width()
        options.setdefault("bias", self.chance(0.5))
        if self.dim == 0:
            for name in ("kernel_size", "groups"):
                options.pop(name, None)
            return (cls or nn.Linear)(of, out, **options)
        kernel = options.pop("kernel_size", self.rng.choice([1, 3]))
        if not options.keys() & {"padding", "padding_mode", "stride"}:
            options |= self.rng.choices(_PADDINGS, [16, 1, 1, 1, 1])[0]
        options.setdefault("padding", kernel // 2 * options.get("dilation", 1))
        return (cls or CONVOLUTIONS[self.dim])(of, out, kernel, **options)

    def norm(self, of: Any = None, cls: Any = None, **options: Any) -> Any:
        """Make a batch norm over a layer's output, or a number of channels, with random statistics and options."""
        if cls is None:
            cls = self.rng.choices([NORMS[self.dim], syncbn.SyncBatchNorm, nn.SyncBatchNorm], [8, 1, 1])[0]
        options.setdefault("affine", self.chance(0.9))
        if options["affine"] and "bias" not in options and issubclass(cls, NORMS[self.dim]) and self.chance(0.05):
            options["bias"] = False
        options.setdefault("eps", self.rng.choice([1e-5, 1e-3]))
        options.setdefault("momentum", self.rng.choice([0.1, 0.1, 0.03, None]))
        bias = options.pop("bias", True)
        layer = cls(width_of(of) if isinstance(of, nn.Module) else of or self.channels, **options)
        if not bias:
            layer.register_parameter("bias", None)  # as by `bias=False`, which torch's norms know since 2.12
        return layer if self.fresh else randomized(layer)

    def pair(self, out: int | None = None, of: int | None = None, **options: Any) -> tuple[Any, Any]:
        """Make a layer and a norm after it, which is foldable if the caller runs both once in sequence."""
        layer = self.conv(out, of, **options)
        return layer, self.fold(self.norm(layer))

    def unit(self, out: int | None = None, of: int | None = None, **options: Any) -> nn.Sequential:
        """Make a layer, a foldable norm and an activation."""
        return nn.Sequential(*self.pair(out, of, **options), self.act())

    def fold(self, norm: Any) -> Any:
        """Record that a norm is foldable."""
        if not self._repeated:
            self.foldable.append(norm)
        return norm

    def removed(self, *norms: Any) -> None:
        """Record that norms are removable."""
        if not self._repeated:
            self.removable += [norm for norm in norms if norm.affine]

    def act(self, inplace: bool = False) -> nn.Module:
        """Make an activation that is 0 at 0."""
        if inplace:
            return self.rng.choice([nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.ReLU6])(inplace=True)
        return self.rng.choice([nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.ELU, nn.Hardswish, nn.Identity])()

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Make norms inside this context not foldable: they are called more than once, or seen from elsewhere."""
        before, self._repeated = self._repeated, True
        try:
            yield
        finally:
            self._repeated = before

    def chain(self, index: int = 0) -> nn.Module:
        """Make the nodes inside this one, in some container; `channels` and `space` are those after them."""
        rng, node = self.rng, self._node
        modules = self.nodes(node.chains[index])
        self.rng, self._node = rng, node
        return _contained(modules, rng.randrange(4))

    def nodes(self, nodes: tuple[Node, ...], seen: int | None = None) -> list[nn.Module]:
        """Make a module for each node, in order; the features before the node `seen` are also used elsewhere."""
        made = []
        for i, node in enumerate(nodes):
            module = self._made(node)
            if node.kind == "norm" and i != seen and i and nodes[i - 1].kind == "conv":
                self.fold(module)
            made.append(module)
        return made

    def _made(self, node: Node) -> nn.Module:
        kind = KINDS[node.kind]
        if self.dim not in kind.dims:
            raise DoesNotFitError(f"{node.kind} isn't for (N, C, {self.dim} more)")
        self.rng, self._node = random.Random(node.seed), node
        torch.manual_seed(node.seed)
        shape = (self.channels, *self.space)
        module = kind.make(self)
        module.kind = node.kind  # distinguishes nodes from their parts
        with torch.no_grad():
            y = module.eval()(torch.zeros(2, *shape))
        module.train()
        self.channels, self.space = y.shape[1], tuple(y.shape[2:])
        return module


class DoesNotFitError(Exception):
    """A node doesn't fit at its place."""


def width_of(layer: Any) -> int:
    """Number of output channels of a layer."""
    return layer.out_channels if hasattr(layer, "out_channels") else layer.out_features


def randomized(norm: Any) -> Any:
    """Randomize a norm's statistics, scales and shifts, as after training; scales of both signs, none near 0."""
    if norm.running_mean is not None:
        norm.running_mean.normal_(0, 0.5)
        norm.running_var.uniform_(0.5, 2)
    if norm.weight is not None:
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5).mul_(torch.randint(0, 2, norm.weight.shape) * 2 - 1)
            if len(norm.weight) > 2 and torch.rand(()) < 0.1:
                norm.weight[0] = 0  # as after an L1 penalty, or in zero-initialized blocks
            if norm.bias is not None:
                norm.bias.normal_(0, 0.5)
    return norm


def _contained(modules: list[nn.Module], style: int) -> nn.Module:
    """Put the modules, in sequence, in one of the usual containers."""
    if style == 0:
        return nn.Sequential(*modules)
    if style == 1:

        def over_list(self: Any, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

        return Block(over_list, layers=nn.ModuleList(modules))
    if style == 2:

        def over_dict(self: Any, x: Tensor) -> Tensor:
            for layer in self.layers.values():
                x = layer(x)
            return x

        return Block(over_dict, layers=nn.ModuleDict({f"layer{i}": m for i, m in enumerate(modules)}))

    def over_names(self: Any, x: Tensor) -> Tensor:
        for name in self.names:
            x = getattr(self, name)(x)
        return x

    names = [f"part{i}" for i in range(len(modules))]
    return Block(over_names, names=names, **dict(zip(names, modules, strict=True)))
