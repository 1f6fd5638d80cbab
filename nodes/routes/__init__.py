"""What the pages of the pack ask the server for; every path is below /continual_lora/."""

from aiohttp import web

from .concepts import add_concept_routes
from .training import add_training


def add_routes(routes: web.RouteTableDef) -> None:
    """Add the routes of every module of this folder to ComfyUI's."""
    add_concept_routes(routes)
    add_training(routes)
