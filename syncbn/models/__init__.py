"""Networks that take their normalization as an argument. Imports only torch."""

from typing import TYPE_CHECKING

from syncbn.lazy import lazy_names

if TYPE_CHECKING:
    from syncbn.models.weights import load_weights as load_weights

_HOMES = {
    "load_weights": "weights",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
