"""The embedded base as ComfyUI's own MODEL, CLIP and VAE, for the core nodes to use unchanged.

The host's U-Net and CLIP classes load our weights as they are: the layer names and the arithmetic are the same.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.clip_model
import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL

from ..tiny import text, unet
from ..tiny.autoencoder import Autoencoder
from ..tiny.text import TextEncoder, WordTokenizer
from ..tiny.weights import load_weights, weights_folder

UNET_CONFIG = {
    "image_size": 8,
    "in_channels": unet.LATENT_CHANNELS,
    "out_channels": unet.LATENT_CHANNELS,
    "model_channels": unet.MODEL_CHANNELS,
    "channel_mult": list(unet.CHANNEL_MULT),
    "num_res_blocks": list(unet.NUM_RES_BLOCKS),
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": unet.CONTEXT_DIM,
    "use_spatial_transformer": True,
}


class _LatentFormat(comfy.latent_formats.LatentFormat):  # type: ignore[misc]
    """Latents of unit variance: nothing to scale."""

    latent_channels = unet.LATENT_CHANNELS


class _ModelConfig(comfy.supported_models_base.BASE):  # type: ignore[misc]
    """Noise prediction on Stable Diffusion's schedule, which is the host's default."""

    unet_extra_config = {"num_heads": -1, "num_head_channels": unet.HEAD_CHANNELS}  # noqa: RUF012
    latent_format = _LatentFormat
    supported_inference_dtypes = [torch.float32]  # noqa: RUF012

    def inpaint_model(self) -> bool:
        """False: the host takes every U-Net of more than four input channels for an inpainting model."""
        return False


class _Words:
    """`WordTokenizer` with the face of a Hugging Face tokenizer."""

    def __init__(self, words: WordTokenizer) -> None:
        self.words = words

    @classmethod
    def from_pretrained(cls, path: str, words: WordTokenizer) -> "_Words":
        """Called by the host with `tokenizer_path` and `tokenizer_args`."""
        return cls(words)

    def __call__(self, prompt: str) -> dict[str, list[int]]:
        """Start, the words of the prompt, end; of any length."""
        start, end = self.words.ids[text.START], self.words.ids[text.END]
        return {"input_ids": [start, *self.words.encode(prompt), end]}

    def get_vocab(self) -> dict[str, int]:
        """The id of each word."""
        return self.words.ids


class _Tokenizer(comfy.sd1_clip.SDTokenizer):  # type: ignore[misc]
    """Weights `(word:1.2)`, `embedding:NAME` and the cutting into chunks are the host's."""

    def __init__(self, embedding_directory: Any, tokenizer_data: dict[str, Any]) -> None:
        super().__init__(
            tokenizer_path="",
            max_length=text.MAX_LENGTH,
            embedding_directory=embedding_directory,
            embedding_size=text.WIDTH,
            embedding_key="clip_l",
            tokenizer_class=_Words,
            tokenizer_args={"words": tokenizer_data["words"]},
        )


class _ClipTokenizer(comfy.sd1_clip.SD1Tokenizer):  # type: ignore[misc]
    def __init__(self, embedding_directory: Any, tokenizer_data: dict[str, Any]) -> None:
        super().__init__(embedding_directory, tokenizer_data, tokenizer=_Tokenizer)


class _TextModel(comfy.clip_model.CLIPTextModel):  # type: ignore[misc]
    """The host's CLIP with a vocabulary of our size; its own has always 49,408 tokens."""

    def __init__(self, config_dict: dict[str, Any], dtype: Any, device: Any, operations: Any) -> None:
        super().__init__(config_dict, dtype, device, operations)
        size, width = config_dict["vocab_size"], config_dict["hidden_size"]
        self.set_input_embeddings(operations.Embedding(size, width, dtype=dtype, device=device))


class _ClipModel(comfy.sd1_clip.SD1ClipModel):  # type: ignore[misc]
    disable_offload = True  # small enough to be moved as a whole

    def __init__(self, words: WordTokenizer, **kwargs: Any) -> None:
        start, end = words.ids[text.START], words.ids[text.END]
        config = {
            "vocab_size": len(words.words),
            "hidden_size": text.WIDTH,
            "intermediate_size": text.WIDTH * 4,
            "num_attention_heads": text.HEADS,
            "num_hidden_layers": text.LAYERS,
            "max_position_embeddings": text.MAX_LENGTH,
            "hidden_act": "quick_gelu",
            "eos_token_id": end,
        }
        super().__init__(
            clip_model=comfy.sd1_clip.SDClipModel,
            model_class=_TextModel,
            max_length=text.MAX_LENGTH,
            textmodel_json_config=config,
            special_tokens={"start": start, "end": end, "pad": end},
            return_projected_pooled=False,
            **kwargs,
        )


class _Vae(comfy.sd.VAE):  # type: ignore[misc]
    """The host's VAE around our autoencoder.

    The host sets itself up around the smallest KL autoencoder that it can build; then ours takes its place, of the
    host's own layers. So every attribute that some version of the host wants is there.
    """

    def __init__(self, autoencoder: Autoencoder, device: Any) -> None:
        channels = {"in_channels": 3, "ch": 32, "out_ch": 3, "z_channels": 4, "double_z": True}
        depth = {"ch_mult": [1], "num_res_blocks": 0, "attn_resolutions": [], "resolution": 8, "dropout": 0.0}
        params = {"ddconfig": {**channels, **depth}, "embed_dim": 4}
        weights = AutoencoderKL(**params).state_dict()
        super().__init__(sd=weights, device=device, config={"params": params}, dtype=torch.float32)
        own = Autoencoder(comfy.ops.disable_weight_init).train(False).requires_grad_(False)
        own.load_state_dict(autoencoder.state_dict())
        self.first_stage_model = own
        self.latent_channels = unet.LATENT_CHANNELS
        self.disable_offload = True
        self.patcher = _patcher(own, self.device, comfy.model_management.vae_offload_device())
        self.size = comfy.model_management.module_size(own)
        # Bytes: activations of 48 channels at half the image's size dominate, some of them alive at once.
        self.memory_used_encode = lambda shape, dtype: 400 * shape[2] * shape[3]
        self.memory_used_decode = lambda shape, dtype: 400 * 64 * shape[2] * shape[3]


def _patcher(model: Any, load_device: Any, offload_device: Any) -> Any:
    return comfy.model_patcher.ModelPatcher(model, load_device=load_device, offload_device=offload_device)


def _model(weights: unet.UNet, device: Any) -> Any:
    config = _ModelConfig(UNET_CONFIG)
    config.set_inference_dtype(torch.float32, None)
    offload_device = comfy.model_management.unet_offload_device()
    model = config.get_model({}, device=offload_device)
    model.load_model_weights(weights.state_dict())
    return _patcher(model, device or comfy.model_management.get_torch_device(), offload_device)


def _clip(encoder: TextEncoder, words: WordTokenizer, folders: Sequence[str] | None, device: Any) -> Any:
    target = SimpleNamespace(clip=_ClipModel, tokenizer=_ClipTokenizer, params={"words": words})
    options = {"dtype": torch.float32, "initial_device": comfy.model_management.text_encoder_offload_device()}
    options |= {"load_device": device} if device else {}
    clip = comfy.sd.CLIP(
        target, embedding_directory=folders, tokenizer_data={"words": words}, parameters=0, model_options=options
    )
    clip.load_sd(encoder.state_dict() | {"text_projection.weight": torch.eye(text.WIDTH)})
    return clip


def load_tiny_base(
    device: Any = None, embedding_directory: Sequence[str] | None = None, folder: Path | None = None
) -> tuple[Any, Any, Any]:
    """Build the host's objects on the weights of the embedded base.

    Args:
        device: where they run; the host's choice by default.
        embedding_directory: the folders where `embedding:NAME` of a prompt is looked for.
        folder: the weights; the bundled ones by default.

    Returns:
        MODEL, CLIP and VAE.

    Raises:
        ContinualLoraError: a weight file is missing.
    """
    weights = load_weights(folder or weights_folder())
    clip = _clip(weights.text, weights.tokenizer, embedding_directory, device)
    return _model(weights.unet, device), clip, _Vae(weights.autoencoder, device)
