"""A folder of modules as a registry: each module that defines the thing offers it under its `NAME`."""

import importlib
import pkgutil
from typing import Any


def discover(package: str, path: list[str], attribute: str) -> dict[str, Any]:
    """Import every module of a package and collect `attribute` of those that define it.

    Args:
        package: the package's name.
        path: its `__path__`.
        attribute: for example "METHOD".

    Returns:
        `NAME` of the module -> its attribute.

    Raises:
        ImportError: a module with the attribute and no `NAME`, or two of one name.
    """
    folder = package.rpartition(".")[2]
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(path):
        module = importlib.import_module(f"{package}.{info.name}")
        if not hasattr(module, attribute):
            continue
        if not hasattr(module, "NAME"):
            raise ImportError(f"`{info.name}.py` in {folder}/ defines {attribute} and no NAME: give it one.")
        if module.NAME in found:
            raise ImportError(f"Two files in {folder}/ call themselves `{module.NAME}`: rename one.")
        found[module.NAME] = getattr(module, attribute)
    return found
