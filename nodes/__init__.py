"""The nodes of the pack, one file per node."""

from .load_tiny_base import LoadTinyBase

NODES: list[type] = [LoadTinyBase]
