"""Continual LoRA: teach a text-to-image model one concept after another, without forgetting the earlier ones."""

from importlib.util import find_spec

WEB_DIRECTORY = "./js"

# Tests and type checkers import this file too, without ComfyUI around it.
if __package__ and find_spec("comfy_api"):
    from comfy_api.v0_0_2 import ComfyExtension, io

    from .nodes import NODES

    class ContinualLoraExtension(ComfyExtension):
        """Tells ComfyUI which nodes there are."""

        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            """Every node of the pack."""
            return NODES

    async def comfy_entrypoint() -> ContinualLoraExtension:
        """ComfyUI's door."""
        from server import PromptServer  # what imports the pack without a server has none

        from .nodes.routes import add_routes

        add_routes(PromptServer.instance.routes)
        return ContinualLoraExtension()
