"""What the pack's pages ask of the server, all below /continual_lora/; one file for each subject."""

from aiohttp import web

from .sequences import add_sequence_routes


def add_routes(routes: web.RouteTableDef) -> None:
    """Add every route of the pack; called once, before the server starts."""
    add_sequence_routes(routes)
