"""Row of one network: `python -m tests.zoo.one NAME CHECK ...`. The processes of `verify` import this module."""

import importlib.metadata
import json
import re
import sys
import time

import torch

from tests.networks.oracles.verdict import Facts, Outcome, judge
from tests.zoo.architectures import Architecture, architectures
from tests.zoo.checks import CHECKS
from tests.zoo.detectors import declare_operators
from tests.zoo.specimen import Specimen

declare_operators()

_LONGEST = 160  # characters of a reason: lists of layers are truncated


def examine(architecture: Architecture, checks: list[str]) -> dict[str, str]:
    """Make the row of a network."""
    torch.set_num_threads(1)
    specimen = Specimen(architecture.make, architecture.shape, architecture.forward, architecture.features)
    row = {
        "library": architecture.library,
        "version": importlib.metadata.version(architecture.library).partition("+")[0],
        "torch": torch.__version__.partition("+")[0],
        "name": architecture.name,
        "norms": str(len(specimen.norms(specimen.base))),
    }
    for check in checks:
        begin = time.perf_counter()
        outcome = judge(specimen, CHECKS[check])
        print(f"{check}: {time.perf_counter() - begin:.1f} s {outcome}", file=sys.stderr, flush=True)
        row[check] = _told(outcome)
        row |= _counted(check, outcome.facts)
    return row


def _counted(check: str, facts: Facts) -> dict[str, str]:
    names = {"fuse": ("following", "folded"), "prune": ("channels", "removed")}.get(check)
    return dict(zip(names, map(str, (facts.possible, facts.done)), strict=True)) if names else {}


def _told(outcome: Outcome) -> str:
    if outcome.verdict == "right":
        return "right"
    reason = re.sub(r"\s+", " ", outcome.message).replace("|", "/")
    return f"{outcome.verdict}: {reason[:_LONGEST] + ' ...' if len(reason) > _LONGEST else reason}"


if __name__ == "__main__":
    print(json.dumps(examine(architectures()[sys.argv[1]], sys.argv[2:] or list(CHECKS))))
