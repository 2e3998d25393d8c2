"""How a private name of torch is found, by feature instead of version, and refused where it is missing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pkgutil import resolve_name
from typing import Any, cast

import torch


class Private:
    """A private function of torch, found and probed on first call.

    Args:
        name: dotted name.
        feature: feature that needs it, the beginning of "... needs".
        instead: what a user can do without it.
        probe: tests whether the function behaves as this package expects.
    """

    def __init__(self, name: str, feature: str, instead: str, probe: Callable[[Callable[..., Any]], bool]) -> None:
        self.name = name
        self.feature = feature
        self.instead = instead
        self.probe = probe
        self._probed: Callable[..., Any] | None = None

    def check(self) -> Callable[..., Any]:
        """Find and probe the function, once.

        Raises:
            RuntimeError: this torch doesn't have it, or it behaves differently.
        """
        # Not a cached_property, whose lock, before Python 3.12, is that of all names: a probe may ask for another one.
        if self._probed is None:
            self._probed = self._find_and_probe()
        return self._probed

    def forget(self) -> None:
        """Find and probe it anew when it is called next."""
        self._probed = None

    def _find_and_probe(self) -> Callable[..., Any]:
        try:
            found = self._find()
        except (AttributeError, ImportError):
            raise RuntimeError(self._refusal("doesn't have")) from None
        try:
            is_as_expected = self._try_out(found)
        except Exception as error:
            if isinstance(error, AttributeError) and f"'{self.name.rpartition('.')[2]}'" in str(error):
                raise RuntimeError(self._refusal("doesn't have")) from None
            raise RuntimeError(self._refusal(f"uses otherwise ({type(error).__name__}: {error})")) from error
        if not is_as_expected:
            raise RuntimeError(self._refusal("uses otherwise"))
        return cast(Callable[..., Any], found)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self._probed or self.check())(*args, **kwargs)

    def is_usable(self) -> bool:
        """Whether this torch has it, with the expected behaviour."""
        try:
            return bool(self.check())
        except RuntimeError:
            return False

    def _find(self) -> Any:
        return resolve_name(self.name)

    def _try_out(self, found: Any) -> bool:
        with ThreadPoolExecutor(1) as thread:  # where none of the caller's modes, transforms and hooks is active
            return thread.submit(self.probe, found).result()

    def _refusal(self, what: str) -> str:
        return (
            f"{self.feature} needs {self.name}, which torch {torch.__version__} {what}: {self.instead}, or use a torch "
            "of docs/versions.md"
        )


class PrivateAttribute(Private):
    """A private attribute of torch's objects: called with one, it answers the attribute's value."""

    def __call__(self, of: Any) -> Any:
        try:
            return (self._probed or self.check())(of)
        except AttributeError:
            raise RuntimeError(self._refusal("doesn't have")) from None

    def _find(self) -> Any:
        return attrgetter(self.name.rpartition(".")[2])


class PrivateClass(Private):
    """A private class of torch, which is looked at, as it is when this package is imported."""

    def _try_out(self, found: Any) -> bool:
        return self.probe(found)


def base_class(name: str, feature: str, instead: str, member: str) -> Any:
    """A private class of torch to derive from; one that refuses to be instantiated, where torch doesn't have it.

    Args:
        name: dotted name.
        feature: see `Private`.
        instead: see `Private`.
        member: what the class has, if it means what it is taken for.
    """
    wanted = PrivateClass(name, feature, instead, lambda found: isinstance(found, type) and hasattr(found, member))

    class Lacking:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            wanted.check()

    return wanted.check() if wanted.is_usable() else Lacking


# Mode that sees every operation that torch dispatches; documented, but without a public name.
TorchDispatchMode: Any = base_class(
    "torch.utils._python_dispatch.TorchDispatchMode",
    "what reads a model's graph",
    "don't give it example_input",
    "__torch_dispatch__",
)
