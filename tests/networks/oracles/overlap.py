"""Steps whose messages hide behind weight gradients have the same bits as steps without, on one rank of two.

The other rank is imagined: it always sends what this one sends, and its part comes when this rank waits for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from syncbn.norm.core import exchange
from tests.networks.generate import Description, build
from tests.networks.oracles.compare import WrongError
from tests.networks.oracles.convert import convert_norms
from tests.networks.oracles.verdict import Facts
from tests.networks.outputs import tensors_of
from tests.networks.spec import Spec

STEPS = 3  # the first one learns the order of the layers


def judge_overlap(spec: Spec) -> Facts:
    """Outputs, gradients and buffers of some steps, bit by bit; done is the number of messages with hidden work."""
    description = build(spec).description
    with _twin() as twin:
        expected, messages = _steps(_converted(spec, overlap=False), description), twin.messages
        found = _steps(_converted(spec, overlap=True), description)
    for number, (mine, right) in enumerate(zip(found, expected, strict=True)):
        if mine.keys() != right.keys():
            raise WrongError(f"step {number}: {sorted(mine.keys() ^ right.keys())}")
        for name, tensor in right.items():
            if not torch.equal(mine[name].nan_to_num(), tensor.nan_to_num()):
                raise WrongError(f"step {number}: {name} differs")
    if twin.messages != 2 * messages:
        raise WrongError(f"{messages} messages, and {twin.messages - messages} with overlap")
    return Facts(possible=messages, done=twin.hidden)


class Twin:
    """An exchange with a rank whose buffers are always the same as this one's.

    Attributes:
        messages: their number.
        hidden: number of those that were under way while this rank worked.
    """

    name = "twin"

    def __init__(self) -> None:
        self.messages, self.hidden = 0, 0

    def sum(self, buffer: Tensor) -> None:
        """See `Exchange`."""
        self.messages += 1
        buffer.mul_(2)

    def send(self, buffer: Tensor) -> exchange.Pending:
        """See `Exchange`. Until `wait` the buffer has no numbers."""
        self.messages += 1
        self.hidden += 1
        sent = buffer.clone()
        buffer.fill_(float("nan"))

        class Pending:
            def wait(self) -> None:
                buffer.copy_(2 * sent)

        return Pending()


@contextmanager
def _twin() -> Iterator[Twin]:
    """A group of two ranks; memory that isn't written yet has NaN."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        group = dist.group.WORLD
        assert group is not None
        twin = Twin()
        exchange.use(twin, group)
        yield twin
    finally:
        torch.use_deterministic_algorithms(False)
        dist.destroy_process_group()


def _converted(spec: Spec, *, overlap: bool) -> nn.Module:
    return convert_norms(build(spec), "sync", overlap=overlap)


def _steps(model: nn.Module, description: Description) -> list[dict[str, Tensor]]:
    """Numbers after each step of training on another batch."""
    optimizer = torch.optim.SGD([*model.parameters(), torch.zeros(1)], lr=1e-3)
    model.train()
    found: list[dict[str, Tensor]] = []
    for number in range(STEPS):
        torch.manual_seed(number)
        optimizer.zero_grad()
        outputs = tensors_of(model(*description.arguments(50 + number)))
        loss: Any = sum(t.tanh().sum() for t in outputs)
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        grads = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        named = {f"output {place}": output for place, output in enumerate(outputs)} | grads | dict(model.state_dict())
        found.append({name: t.detach().clone() for name, t in named.items() if isinstance(t, Tensor)})
    return found
