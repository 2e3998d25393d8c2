"""Tests on many random networks, as a table: how often each kind of node was right, refused, wrong or crashed."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch

from tests.networks.generate import ROWS, build, random_spec
from tests.networks.oracles.convert import CONVERSIONS
from tests.networks.oracles.fuse import judge_fuse
from tests.networks.oracles.overlap import judge_overlap
from tests.networks.oracles.prune import judge_prune
from tests.networks.oracles.statistics import judge_freeze, judge_inspect, judge_recalibrate
from tests.networks.oracles.verdict import Facts, Outcome, judge
from tests.networks.shrink import shrink
from tests.networks.spec import Spec, parse

POLICIES: dict[str, Callable[[Spec], Facts]] = {
    "fuse": judge_fuse,
    "prune": judge_prune,
    **CONVERSIONS,
    "overlap": judge_overlap,
    "recalibrate": judge_recalibrate,
    "inspect": judge_inspect,
    "freeze": judge_freeze,
}
FAILURES = ("wrong", "crashed")


@dataclass
class Tally:
    """Outcomes of one policy on many networks.

    Attributes:
        outcomes: by the network's Spec.
        smallest: shrunk failing networks, with their outcomes.
    """

    policy: str
    outcomes: dict[Spec, Outcome] = field(default_factory=dict)
    smallest: dict[Spec, Outcome] = field(default_factory=dict)

    @property
    def failed(self) -> list[Spec]:
        """Networks with wrong or crashed outcomes."""
        return [spec for spec, outcome in self.outcomes.items() if outcome.verdict in FAILURES]

    def count(self, kind: str | None = None) -> Counter[str]:
        """Count networks with this kind of node by verdict, and possible and done norms."""
        counts: Counter[str] = Counter()
        for spec, outcome in self.outcomes.items():
            if kind is None or kind in spec.kinds():
                counts.update(networks=1, possible=outcome.facts.possible, done=outcome.facts.done)
                counts[outcome.verdict] += 1
        counts["smallest"] = sum(kind in spec.kinds() for spec in self.smallest) if kind else len(self.smallest)
        return counts


def examine(policies: Iterable[str], count: int, seed: int, shrinking: int = 20) -> list[Tally]:
    """Judge each policy on the networks seed, seed + 1, ..., and shrink the first failures."""
    tallies = [Tally(policy) for policy in policies]
    for tally in tallies:
        oracle = POLICIES[tally.policy]
        for number in range(seed, seed + count):
            spec = random_spec(number)
            tally.outcomes[spec] = _counted(tally.policy, spec, judge(spec, oracle))
        for spec in tally.failed[:shrinking]:
            smaller, outcome = shrink(spec, oracle)
            tally.smallest.setdefault(smaller, outcome)
    return tallies


def _counted(policy: str, spec: Spec, outcome: Outcome) -> Outcome:
    """Facts of an outcome; without a result, none of the possible norms is done."""
    if outcome.verdict == "right" or policy != "fuse":
        return outcome
    return replace(outcome, facts=Facts(possible=len(build(spec).description.foldable)))


_COLUMNS = ("networks", "right", "refused", "wrong", "crashed", "possible", "done", "smallest")


def table(tally: Tally) -> str:
    """Format a row for each kind of node, those required in 5 % of all networks first."""
    kinds = Counter(kind for spec in tally.outcomes for kind in spec.kinds())
    rows = [("all", tally.count()), *((k, tally.count(k)) for k in (*ROWS, *sorted(set(kinds) - set(ROWS))))]
    lines = [f"{tally.policy:<24}" + "".join(f"{name:>10}" for name in _COLUMNS)]
    for kind, counts in rows:
        mark = "*" if kind in ROWS else " "
        lines.append(f"{mark}{kind:<23}" + "".join(f"{counts[name] or '':>10}" for name in _COLUMNS))
    return "\n".join(lines)


def reproduction(tally: Tally) -> str:
    """Format the smallest failing networks, with the commands that reproduce them."""
    lines = []
    for spec, outcome in tally.smallest.items():
        lines.append(
            f'{outcome.verdict}: {outcome.message}\n    python -m tests.networks policy={tally.policy} network="{spec}"'
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """`[count=500] [seed=0] [policy=fuse,prune] [shrink=20]`, or `policy=fuse network="..."` for a single one."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    unknown = {*given} - {"count", "seed", "policy", "network", "shrink"} | {a for a in arguments if "=" not in a}
    policies = list(POLICIES) if given.get("policy") == "all" else given.get("policy", "fuse,prune").split(",")
    if unknown or not {*policies} <= {*POLICIES}:
        print(f"usage: python -m tests.networks {main.__doc__}\npolicies: all, {', '.join(POLICIES)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    if "network" in given:
        return _one(parse(given["network"]), policies)
    begin = time.perf_counter()
    tallies = examine(policies, int(given.get("count", 500)), int(given.get("seed", 0)), int(given.get("shrink", 20)))
    for tally in tallies:
        print(table(tally), end="\n\n")
        refusals = Counter(o.message for o in tally.outcomes.values() if o.verdict == "refused")
        for message, times in refusals.most_common(5):
            print(f"refused {times} times: {message}")
        print(reproduction(tally))
    for tally in tallies:
        counts = tally.count()
        share = f"; {counts['done']} of {counts['possible']} norms" if counts["possible"] else ""
        verdicts = ", ".join(f"{counts[v]} {v}" for v in ("right", "refused", "wrong", "crashed"))
        print(f"{tally.policy}: {verdicts} of {counts['networks']}{share}")
    print(f"{time.perf_counter() - begin:.0f} s")
    return int(any(tally.failed for tally in tallies))


def _one(spec: Spec, policies: list[str]) -> int:
    print(build(spec).model)
    outcomes = [judge(spec, POLICIES[policy]) for policy in policies]
    for policy, outcome in zip(policies, outcomes, strict=True):
        print(f"{policy}: {outcome}")
    return int(any(outcome.verdict in FAILURES for outcome in outcomes))
