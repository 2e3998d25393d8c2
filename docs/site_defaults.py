"""Signatures of the API reference with values for defaults: `momentum = 0.1`, not `momentum = Options.momentum`."""

import dataclasses
import importlib
from typing import Any

from griffe import Extension, Function


class Defaults(Extension):
    """Puts the value of a default that is read from a dataclass of options."""

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Replace the defaults of one function."""
        for parameter in func.parameters:
            owner, _, name = str(parameter.default).partition(".")
            if name.isidentifier() and owner.isidentifier():
                options = vars(importlib.import_module(func.module.path)).get(owner)
                if dataclasses.is_dataclass(options) and hasattr(options, name):
                    parameter.default = repr(getattr(options, name))
