"""A node for the tests: loads a checkpoint whose T5 is small, which no core loader can be told."""

# ruff: noqa: TID251 (runs inside ComfyUI)

import json
from typing import Any

import comfy.sd
import folder_paths


class LoadWithTextEncoder:
    """Load Checkpoint, with what the text encoder is like."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (the host's name)
        checkpoints = (folder_paths.get_filename_list("checkpoints"),)
        return {"required": {"ckpt_name": checkpoints, "options": ("STRING",), "t5_length": ("INT",)}}

    def load(self, ckpt_name: str, options: str, t5_length: int) -> tuple[Any, Any, Any]:
        """Load.

        Args:
            ckpt_name: of the list.
            options: of the text encoder, JSON.
            t5_length: pieces to which a prompt is filled up for the T5.
        """
        model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
            folder_paths.get_full_path("checkpoints", ckpt_name),
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
            te_model_options=json.loads(options),
        )
        clip.tokenizer.t5xxl.min_length = t5_length
        return model, clip, vae


NODE_CLASS_MAPPINGS = {"LoadWithTextEncoder": LoadWithTextEncoder}
