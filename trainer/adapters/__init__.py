"""What is trained on top of the frozen base, one file each; the folder is the registry.

A module here that defines `NAME` and an `Adapter` subclass called `ADAPTER` is offered under its name.
"""

from ..registry import discover
from .adapter import Adapter

ADAPTERS: dict[str, type[Adapter]] = discover(__name__, __path__, "ADAPTER")
