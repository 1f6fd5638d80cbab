"""What the pages of the pack ask the server for: all of it read-only, below /continual_lora/."""

from typing import Any

from .training import add_training


def add_routes(routes: Any) -> None:
    """Put every route of the pack into the server's table."""
    add_training(routes)
