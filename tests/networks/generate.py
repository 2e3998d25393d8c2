"""Random networks: `generate(seed)` makes one, and `build` makes the network of a Spec."""

import functools
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.networks import kinds
from tests.networks.maker import Maker
from tests.networks.outputs import OUTPUT_ROWS, OUTPUTS
from tests.networks.registry import KINDS
from tests.networks.spec import Node, Spec

assert kinds.__all__  # importing it registers the kinds

CHANNELS = 3  # of an input
SIZES: dict[int, tuple[int, ...]] = {0: (), 1: (10,), 2: (8, 8), 3: (6, 6, 6)}
ROWS = (*sorted(name for name, kind in KINDS.items() if kind.row), *(f"output_{name}" for name in OUTPUT_ROWS))


@dataclass(frozen=True)
class Description:
    """Properties of a network that are known by construction.

    Attributes:
        spec: spec that it was built from; `parse` reads `str(spec)`.
        kinds: number of nodes of each kind.
        foldable: names of the norms that can be folded into the preceding layer.
        removable: names of the norms that channels can be removed from.
    """

    spec: Spec
    kinds: Counter[str]
    foldable: list[str]
    removable: list[str]

    def arguments(self, seed: int, batch: int = 3, scale: float = 1.0) -> tuple[Any, ...]:
        """Make random arguments of the network."""
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, CHANNELS, *SIZES[self.spec.dim])

        def draw() -> Tensor:
            return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

        return {"one": lambda: (draw(),), "two": lambda: (draw(), draw()), "scalar": lambda: (draw(), 0.5)}[
            self.spec.inputs
        ]()

    def __str__(self) -> str:
        return str(self.spec)


class Network(NamedTuple):
    """A network of float64 in training mode, its arguments, and its description."""

    model: nn.Module
    example_input: tuple[Any, ...]
    description: Description


def generate(seed: int) -> Network:
    """Generate the random network of a seed."""
    return build(random_spec(seed))


class Root(nn.Module):
    """A generated network."""

    def __init__(self, spec: Spec, body: nn.ModuleList, head: nn.Module) -> None:
        super().__init__()
        self.inputs, self.output, self.tap = spec.inputs, spec.output, _tap(spec)
        self.body, self.head = body, head

    def forward(self, x: Tensor, other: Any = None) -> Any:
        if self.inputs == "two":
            x = torch.cat([x, other], dim=1)
        elif self.inputs == "scalar":
            x = x * other
        values = [x]
        for node in self.body:
            values.append(node(values[-1]))
        return OUTPUTS[self.output](self.head(values[-1]), values[self.tap])


def _tap(spec: Spec) -> int:
    """Number of nodes before the features that are returned, too."""
    return max(len(spec.nodes) - spec.tap, 0)


def build(spec: Spec) -> Network:
    """Build a network; equal specs give equal networks.

    Raises:
        DoesNotFitError: a node can't follow another one.
    """
    with _float64(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maker = Maker(CHANNELS * (2 if spec.inputs == "two" else 1), SIZES[spec.dim], spec.norms == "fresh")
        body = nn.ModuleList(maker.nodes(spec.nodes, None if spec.output == "plain" else _tap(spec)))
        torch.manual_seed(spec.seed)
        model = Root(spec, body, _head(spec, maker))
        with torch.no_grad():  # new layers shrink features until only β is left
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(2)
    names = {module: name for name, module in model.named_modules()}
    foldable, removable = ([names[norm] for norm in norms] for norms in (maker.foldable, maker.removable))
    description = Description(spec, spec.kinds(), foldable, removable)
    return Network(model, _example(spec, description), description)


def _head(spec: Spec, maker: Maker) -> nn.Module:
    maker.rng = random.Random(spec.seed)
    if spec.head == "none":
        return nn.Identity()
    if spec.head == "conv" or maker.dim == 0:
        return maker.conv(5)
    axes = tuple(range(2, 2 + maker.dim))
    return nn.Sequential(_Mean(axes), nn.Linear(maker.channels, 5))


class _Mean(nn.Module):
    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axes)


def _example(spec: Spec, description: Description) -> tuple[Any, ...]:
    arguments = description.arguments(seed=spec.seed)
    fill = {"normal": lambda x: x, "zeros": torch.zeros_like, "ones": torch.ones_like}[spec.example]
    return tuple(fill(x) if isinstance(x, Tensor) else x for x in arguments)


@contextmanager
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def random_spec(seed: int) -> Spec:
    """Make a random spec of three to eight nodes and their inner ones, including one of ROWS in turn."""
    rng = random.Random(seed)
    row = ROWS[seed % len(ROWS)]
    dims = KINDS[row].dims if row in KINDS else tuple(_FREQUENCY)
    possible = [dim for dim in _FREQUENCY if dim in dims or 0 in dims]
    dim = rng.choices(possible, [_FREQUENCY[d] for d in possible])[0]
    nodes = [_node(rng, dim) for _ in range(rng.randint(2, 4))]
    features: list[Node] = []
    if dim and (rng.random() < 0.5 or dim not in dims):
        features = [_node(rng, 0) for _ in range(rng.randint(1, 2))]
    tap = rng.randrange(3)
    if row in KINDS:
        chosen = nodes if dim in dims and (not features or 0 not in dims or rng.random() < 0.7) else features
        chosen.insert(rng.randint(0, len(chosen)), _node(rng, dim if chosen is nodes else 0, kind=row))
    elif rng.random() < 0.5:  # a layer's output before its norm is also returned
        chosen, tap = features or nodes, 1
        chosen += [_node(rng, 0 if features else dim, kind=kind) for kind in ("conv", "norm")]
    if features:
        features.insert(0, Node("to_features", rng.randrange(1000)))
    output = row.removeprefix("output_")
    if row in KINDS:
        output = rng.choice(list(OUTPUTS)) if rng.random() < 0.4 else "plain"
    fresh = rng.random() < 0.15
    return Spec(
        dim=dim,
        nodes=(*nodes, *features),
        head=rng.choices(["linear", "conv", "none"], [4, 2, 1])[0],
        output=output,
        inputs=rng.choices(["one", "two", "scalar"], [8, 1, 1])[0],
        example="zeros" if fresh else rng.choices(["normal", "zeros", "ones"], [7, 2, 1])[0],
        norms="fresh" if fresh else "random",
        seed=rng.randrange(1000),
        tap=tap,
    )


_FREQUENCY = {0: 2, 1: 3, 2: 8, 3: 1}


def _node(rng: random.Random, dim: int, depth: int = 0, kind: str | None = None) -> Node:
    """Choose a node for features with `dim` dimensions after (N, C)."""
    kind = kind or rng.choices(*_choice(dim, depth))[0]
    seed = rng.randrange(1000)
    chains = tuple(
        tuple(_node(rng, dim, depth + 1) for _ in range(rng.randint(1, 2))) for _ in range(KINDS[kind].chains)
    )
    return Node(kind, seed, chains)


@functools.cache
def _choice(dim: int, depth: int) -> tuple[list[str], list[int]]:
    """Kinds that fit, and their weights."""
    named = sorted(KINDS.items())  # a seed's network doesn't depend on the files that kinds are in
    fitting = [name for name, k in named if dim in k.dims and k.after is None and (depth < 2 or not k.chains)]
    return fitting, [
        5 if name in ("conv", "norm") else 3 if KINDS[name].chains else 1 + KINDS[name].row for name in fitting
    ]
