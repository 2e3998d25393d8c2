"""Shrinking of failing networks."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.networks.oracles.verdict import Facts, Outcome, judge
from tests.networks.spec import Node, Spec

_SIMPLEST = {
    "output": "plain",
    "inputs": "one",
    "head": "linear",
    "norms": "random",
    "example": "normal",
    "tap": 0,
}


def shrink(spec: Spec, oracle: Callable[[Spec], Facts], attempts: int = 300) -> tuple[Spec, Outcome]:
    """Shrink a network as long as its outcome stays the same.

    Args:
        spec: network to shrink.
        oracle: oracle that judges it.
        attempts: largest number of smaller networks to try.
    """
    outcome = judge(spec, oracle)
    found = True
    while found:
        found = False
        for smaller in _smaller(spec):
            attempts -= 1
            if attempts < 0:
                return spec, outcome
            again = judge(smaller, oracle)
            if again.verdict == outcome.verdict and _error(again) == _error(outcome):
                spec, outcome, found = smaller, again, True
                break
    return spec, outcome


def _error(outcome: Outcome) -> str:
    """Class of a crash's exception."""
    return outcome.message.partition(":")[0] if outcome.verdict == "crashed" else ""


def _smaller(spec: Spec) -> Iterator[Spec]:
    for nodes in _with_less(spec.nodes):
        yield replace(spec, nodes=nodes)
    for name, value in _SIMPLEST.items():
        if getattr(spec, name) != value:
            yield replace(spec, **{name: value})


def _with_less(nodes: tuple[Node, ...]) -> Iterator[tuple[Node, ...]]:
    """Smaller chains: without a node, with a node replaced by its inner nodes, or with fewer inner nodes."""
    half = len(nodes) // 2
    if half > 1:
        yield nodes[:half]
        yield nodes[half:]
    for i, node in enumerate(nodes):
        before, after = nodes[:i], nodes[i + 1 :]
        yield (*before, *after)
        for chain in node.chains:
            yield (*before, *chain, *after)
        for j, chain in enumerate(node.chains):
            for less in _with_less(chain):
                if less:
                    yield (*before, replace(node, chains=(*node.chains[:j], less, *node.chains[j + 1 :])), *after)
