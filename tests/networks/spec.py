"""Specification of a random network as a value that can be printed, parsed and shrunk."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Node:
    """A node of a network, of a named kind; `seed` determines its random choices, `chains` are inner nodes."""

    kind: str
    seed: int = 0
    chains: tuple[tuple["Node", ...], ...] = ()

    def __str__(self) -> str:
        inner = " | ".join(" ".join(map(str, chain)) for chain in self.chains)
        return f"{self.kind}.{self.seed}" + (f"({inner})" if self.chains else "")

    def walk(self) -> Iterator["Node"]:
        """Iterate over this node and all nodes inside it."""
        yield self
        for chain in self.chains:
            for node in chain:
                yield from node.walk()


@dataclass(frozen=True)
class Spec:
    """A whole network.

    Attributes:
        dim: number of dimensions of the input after (N, C).
        nodes: nodes, in order.
        head: head after the nodes: "linear", "conv" or "none".
        output: form of the result, see `outputs.OUTPUTS`.
        inputs: inputs of the network: "one" tensor, "two", or a tensor and a "scalar".
        example: values of the example input: "normal", "zeros" or "ones".
        norms: statistics, scales and shifts of the norms: "random", or those of a "fresh" layer.
        seed: seed of the head's random choices.
        tap: number of last nodes before which features are returned, too.
    """

    dim: int
    nodes: tuple[Node, ...]
    head: str = "linear"
    output: str = "plain"
    inputs: str = "one"
    example: str = "normal"
    norms: str = "random"
    seed: int = 0
    tap: int = 0

    def __str__(self) -> str:
        options = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name != "nodes"]
        return f"{' '.join(options)}: {' '.join(map(str, self.nodes))}"

    def walk(self) -> Iterator[Node]:
        """Iterate over all nodes."""
        for node in self.nodes:
            yield from node.walk()

    def kinds(self) -> Counter[str]:
        """Count the kinds of nodes in the network, including its output, inputs and head."""
        return Counter([node.kind for node in self.walk()] + [f"output_{self.output}", f"inputs_{self.inputs}"])


def parse(text: str) -> Spec:
    """Parse the `str` of a Spec.

    Raises:
        ValueError: the text isn't a Spec.
    """
    options, _, rest = text.partition(":")
    given: dict[str, str] = dict(re.findall(r"(\w+)=(\w+)", options))
    tokens = re.findall(r"[()|]|[a-z]\w*\.\d+", rest)
    understood = "".join(tokens) == re.sub(r"\s", "", rest) and not re.sub(r"\w+=\w+|\s", "", options)
    if not understood or tokens.count("(") != tokens.count(")") or not given.keys() <= {f.name for f in fields(Spec)}:
        raise ValueError(
            f"not a network: {text!r}; an example is 'dim=2 output=tuple: conv.1 residual.2(norm.3 act.4)'"
        )
    tokens.append(")")  # what ends the outermost chain
    chains = _chains(tokens)
    if tokens or len(chains) != 1:
        raise ValueError(f"not a network: {text!r}; a parenthesis or a | stands where it can't")
    (nodes,) = chains
    numbers = {name: int(given.pop(name)) for name in ("dim", "seed", "tap") if name in given}
    return replace(Spec(dim=2, nodes=nodes), **given, **numbers)


def _chains(tokens: list[str]) -> tuple[tuple[Node, ...], ...]:
    """Parse nodes up to the next closing parenthesis, consuming `tokens` from the front."""
    chains: list[list[Node]] = [[]]
    while (token := tokens.pop(0)) != ")":
        if token == "|":
            chains.append([])
            continue
        kind, _, seed = token.partition(".")
        inner: tuple[tuple[Node, ...], ...] = ()
        if tokens[0] == "(":
            tokens.pop(0)
            inner = _chains(tokens)
        chains[-1].append(Node(kind, int(seed), inner))
    return tuple(map(tuple, chains))
