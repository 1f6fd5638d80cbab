"""Ways not to forget, one file each; the folder is the registry.

A module here that defines `NAME` and a `Method` subclass called `METHOD` is offered under its name.
"""

from ..registry import discover
from .method import Method

METHODS: dict[str, type[Method]] = discover(__name__, __path__, "METHOD")
