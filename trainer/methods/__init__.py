"""Ways not to forget, one file each; the folder is the registry.

A module here that defines `NAME` and a `Method` subclass called `METHOD` is offered under its name.
"""

import importlib
import pkgutil
from types import ModuleType

from .method import Method


def _discover() -> dict[str, type[Method]]:
    found: dict[str, type[Method]] = {}
    for info in pkgutil.iter_modules(__path__):
        module: ModuleType = importlib.import_module(f"{__name__}.{info.name}")
        if not hasattr(module, "METHOD"):
            continue
        if not hasattr(module, "NAME"):
            raise ImportError(f"`{info.name}.py` in methods/ defines a METHOD and no NAME: give it one.")
        if module.NAME in found:
            raise ImportError(f"Two files in methods/ call themselves `{module.NAME}`: rename one.")
        found[module.NAME] = module.METHOD
    return found


METHODS: dict[str, type[Method]] = _discover()
