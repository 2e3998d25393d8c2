"""Networks of kornia, which is installed with the test suite; and detection of errors."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import syncbn
from tests.networks.oracles.verdict import judge
from tests.zoo.architectures import architectures
from tests.zoo.checks import CHECKS
from tests.zoo.one import examine
from tests.zoo.specimen import Specimen, followers

NAMES = ("kornia HardNet", "kornia XFeat", "kornia LoFTR backbone")
REFUSED = {
    ("kornia HardNet", "prune"): "no channel can be removed",  # its norms have no scale
    ("kornia XFeat", "prune"): "no channel can be removed",
    ("kornia XFeat", "plain"): "fine_matcher.1 isn't called for this example_input",
}


@cache
def specimen(name: str) -> Specimen:
    architecture = architectures()[name]
    return Specimen(architecture.make, architecture.shape, architecture.forward, architecture.features)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", [check for check in CHECKS if check != "verify"])
def test_a_network_of_kornia(name: str, check: str) -> None:
    outcome = judge(specimen(name), CHECKS[check])
    reason = REFUSED.get((name, check))
    assert outcome.verdict == ("right" if reason is None else "refused"), outcome
    assert (reason or "") in outcome.message
    if check == "fuse":
        assert outcome.facts.done == outcome.facts.possible > 0


@pytest.mark.distributed
def test_a_row_of_a_network_on_two_ranks() -> None:
    row = examine(architectures()[NAMES[0]], ["fuse", "verify"])
    assert (row["verify"], row["fuse"], row["norms"], row["folded"], row["following"]) == ("right", "right", *"777")


def test_what_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: nn.Module, *args: Any, **options: Any) -> nn.Module:
        changed: Any = copy.deepcopy(model).eval()
        changed.layer3_outconv.weight.data[0] *= 1 + 1e-5
        return changed

    def raises(model: nn.Module, *args: Any) -> nn.Module:
        raise ValueError("not a refusal of ours")

    network = specimen(NAMES[2])
    for name in ("fuse", "convert"):
        monkeypatch.setattr(syncbn, name, wrong)
    for check in ("fuse", "sync", "frozen", "plain"):
        assert judge(network, CHECKS[check]).verdict == "wrong", check
    monkeypatch.setattr(syncbn, "fuse", raises)
    assert judge(network, CHECKS["fuse"]).verdict == "crashed"
    for name, how in (("freeze", lambda model: None), ("recalibrate", lambda model, batches, **options: model)):
        monkeypatch.setattr(syncbn, name, how)
        assert judge(network, CHECKS[name]).verdict == "wrong", name


def test_followers_are_norms_of_the_untouched_output_of_one_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)
            self.a, self.b, self.c, self.d = (nn.BatchNorm2d(4) for _ in range(4))
            self.e = nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(self.conv(x))  # follows
            z = self.c(self.b(y + 1))  # b and c don't
            written = self.conv(x)
            written[:, 0] = 0
            z = self.d(written) + z  # nor does d
            tokens = self.fc(z.flatten(2).transpose(1, 2))
            return self.e(tokens.flatten(0, 1))  # follows, in another shape

    assert followers(Net(), lambda net: net(torch.randn(2, 3, 5, 5))) == {"a", "e"}
