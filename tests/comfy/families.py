"""Which models are taken, and what a token becomes in the tokenizers of every family, without any weights.

`python families.py COMFYUI PARENT FOLDER`: PARENT holds the pack as `continual_lora`; an embedding goes into FOLDER.
Prints a JSON object: model -> what it is or why it is refused, tokenizer -> whether its pieces are as expected.
"""

# ruff: noqa: TID251 (runs inside ComfyUI)

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# class of the host, kind of prediction, latent channels, what it detects in the weights
MODELS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "sd15": ("BaseModel", "EPS", 4, {"context_dim": 768, "in_channels": 4}),
    "sd15 inpainting": ("BaseModel", "EPS", 4, {"context_dim": 768, "in_channels": 9}),
    "sd2": ("BaseModel", "V_PREDICTION", 4, {"context_dim": 1024, "in_channels": 4, "adm_in_channels": None}),
    "unclip": ("SD21UNCLIP", "V_PREDICTION", 4, {"context_dim": 1024, "in_channels": 4, "adm_in_channels": 2048}),
    "sdxl": ("SDXL", "EPS", 4, {"context_dim": 2048, "in_channels": 4, "adm_in_channels": 2816}),
    "playground": ("SDXL", "EDM", 4, {"context_dim": 2048, "in_channels": 4, "adm_in_channels": 2816}),
    "refiner": ("SDXLRefiner", "EPS", 4, {"context_dim": 1280, "in_channels": 4, "adm_in_channels": 2560}),
    "sd3": ("SD3", "FLOW", 16, {"in_channels": 16, "adm_in_channels": 2048}),
    "dev": ("Flux", "FLUX", 16, {"in_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096}),
    "schnell": ("Flux", "FLOW", 16, {"in_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096}),
    "fill": ("Flux", "FLUX", 16, {"in_channels": 96, "vec_in_dim": 768, "context_in_dim": 4096}),
    "flux2": ("Flux2", "FLUX", 128, {"in_channels": 128, "vec_in_dim": None, "context_in_dim": 15360}),
    "chroma": ("Chroma", "FLUX", 16, {"in_channels": 64, "context_in_dim": 4096}),
}
PROMPTS = ["photo of a {} animal", "{}, a (red:1.2) fox", "a ({}:1.3) and (a cat, {}:0.5)", "no token here", "{}"]


def kinds() -> dict[str, str]:
    """Of every model, what metadata calls it, or the error."""
    from comfy.model_base import ModelType
    from continual_lora.trainer.bases.comfyui.base import _family
    from continual_lora.trainer.errors import ContinualLoraError

    found = {}
    for name, (kind, prediction, channels, config) in MODELS.items():
        model = type(kind, (), {})()
        model.model_type, model.model_config = ModelType[prediction], SimpleNamespace(unet_config=config)
        model.latent_format = SimpleNamespace(latent_channels=channels)
        try:
            found[name] = _family(model).architecture
        except ContinualLoraError as error:
            found[name] = str(error)
    return found


def pieces(folder: Path) -> dict[str, bool]:
    """Of every tokenizer: is our token what the host's `embedding:` is, and left out where it has no vector?"""
    import torch
    from comfy.sd1_clip import SD1Tokenizer
    from comfy.sdxl_clip import SDXLTokenizer
    from comfy.text_encoders.flux import FluxTokenizer
    from comfy.text_encoders.sd3_clip import SD3Tokenizer
    from continual_lora.trainer.bases.comfyui.tokens import text_encoders, with_tokens
    from safetensors.torch import save_file

    widths = {"clip_l": 768, "clip_g": 1280, "t5xxl": 4096}
    vectors = {name: torch.full((width,), 0.5) for name, width in widths.items()}
    save_file({name: vector[None] for name, vector in vectors.items()}, folder / "fox.safetensors")
    found = {}
    for kind in (SD1Tokenizer, SDXLTokenizer, SD3Tokenizer, FluxTokenizer):
        host = kind(embedding_directory=[str(folder)])
        ours = with_tokens(host, {"fox": vectors})
        known = all(
            same(host, ours, text.replace("{}", "embedding:fox"), text.replace("{}", "<fox>")) for text in PROMPTS
        )
        found[kind.__name__] = known and list(text_encoders(host)) == [n for n in widths if hasattr(host, n)]
        mute = with_tokens(host, {"fox": {}})
        found[f"{kind.__name__} without a vector"] = same(host, mute, "photo of a animal", "photo of a <fox> animal")
    return found


def same(host: Any, ours: Any, theirs: str, text: str) -> bool:
    """Whether two tokenizers give the same pieces, vectors and weights."""
    import torch

    batches = [tokenizer.tokenize_with_weights(prompt) for tokenizer, prompt in ((host, theirs), (ours, text))]
    flat = [[pair for name in sorted(batch) for chunk in batch[name] for pair in chunk] for batch in batches]
    return len(flat[0]) == len(flat[1]) and all(
        weight == other_weight and torch.equal(torch.as_tensor(piece), torch.as_tensor(other))
        for (piece, weight), (other, other_weight) in zip(*flat, strict=True)
    )


def main(comfyui: str, folder: Path) -> dict[str, Any]:
    """Everything."""
    sys.path.insert(0, comfyui)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    return {"kinds": kinds(), "pieces": pieces(folder)}


if __name__ == "__main__":
    sys.path[0] = sys.argv[2]  # instead of this folder, of which nothing may hide ComfyUI's
    sys.stdout.write(json.dumps(main(sys.argv[1], Path(sys.argv[3]))))
