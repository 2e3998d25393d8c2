"""The scenarios, by name."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.norm.fusion import overlap_steps as steps

SCENARIOS: dict[str, tuple[Callable[..., list[Tensor]], bool | None, dict[str, Any]]] = {}


def scenario(hidden: bool | None = True, **options: Any) -> Callable[[Any], Any]:
    """Compare what the function returns with and without overlap."""

    def add(function: Any) -> Any:
        SCENARIOS[function.__name__] = (function, hidden, options)
        return function

    return add


def compare_on_rank(name: str) -> None:
    function, hidden, options = SCENARIOS[name]
    steps.compare(function, hidden=hidden, **options)
