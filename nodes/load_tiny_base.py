"""The node that brings the embedded base model."""

import folder_paths
from comfy_api.v0_0_2 import io

from ..trainer.bases.comfyui.tiny import load_tiny_base
from ..trainer.bases.tiny.weights import fingerprint, weights_folder


class LoadTinyBase(io.ComfyNode):
    """Load Tiny Base: MODEL, CLIP and VAE without a download."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """No inputs; three sockets."""
        return io.Schema(
            node_id="ContinualLoRA_LoadTinyBase",
            display_name="Load Tiny Base",
            category="Continual LoRA",
            description="The small base model that comes with the pack: 64x64 pixels, emoji in six styles. "
            "Use it to try a workflow in seconds, also without a GPU.",
            outputs=[
                io.Model.Output(display_name="model", tooltip="The U-Net. Sample at 64x64 pixels."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder: one token per word, at most 22 words."),
                io.Vae.Output(display_name="vae", tooltip="The autoencoder: 8 channels, 8 times smaller."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls) -> str:
        """Run again only when the weights change."""
        return fingerprint(weights_folder())

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Load the three models."""
        return io.NodeOutput(*load_tiny_base(embedding_directory=folder_paths.get_folder_paths("embeddings")))
