"""Forms in which networks return results."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from torch import Tensor


@dataclass
class Prediction:
    """A plain dataclass."""

    logits: Tensor
    features: Tensor | None = None


class ModelOutput(OrderedDict[str, Any]):
    """As in transformers: a dataclass that is an OrderedDict of its fields, too."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


@dataclass
class ClassifierOutput(ModelOutput):
    """A ModelOutput of a classifier."""

    logits: Tensor | None = None
    features: Tensor | None = None


class Results(OrderedDict[str, Any]):
    """A dict with attributes, as in many projects."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Pair(NamedTuple):
    """A named tuple."""

    logits: Tensor
    features: Tensor


class Holder:
    """An object of an opaque class."""

    def __init__(self, logits: Tensor, features: Tensor) -> None:
        self.logits = logits
        self._features = [features]


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "plain": lambda logits, features: logits,
    "tuple": lambda logits, features: (logits, features),
    "list": lambda logits, features: [features, logits],
    "dict": lambda logits, features: {"out": logits, "features": features},
    "nested": lambda logits, features: {"levels": [features, (logits, None, "a name", 3)]},
    "dataclass": lambda logits, features: Prediction(logits, features),
    "model_output": lambda logits, features: ClassifierOutput(logits=logits, features=features),
    "ordered_subclass": lambda logits, features: Results(logits=logits, features=features),
    "named_tuple": lambda logits, features: Pair(logits, features),
    "object": lambda logits, features: Holder(logits, features),
}
OUTPUT_ROWS = ("dataclass", "model_output", "ordered_subclass")  # forms whose results were silently wrong before


def tensors_of(value: Any) -> list[Tensor]:
    """Tensors in a result, in order, in any packaging."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        parts: Any = value.values()
    elif isinstance(value, (tuple, list)):
        parts = value
    elif hasattr(value, "__dict__"):
        parts = vars(value).values()
    else:
        return []
    return [tensor for part in parts for tensor in tensors_of(part)]
