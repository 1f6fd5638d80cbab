"""A host's MODEL, CLIP and VAE as a `Denoiser`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_base import ModelType
from torch import Tensor, nn

from ...adapters.layers import (
    cross_attention_layers,
    joint_attention_layers,
    prompt_layers,
    split_joint_attention,
)
from ...denoiser import Conditioning, Parameterization, TokenVectors
from ...errors import ContinualLoraError
from ..fingerprint import autoencoder_fingerprint
from .changes import clip_changes
from .memory import host_mode, load, mixed_precision, needed_for_scores, needed_for_training, room
from .noising import changed_sampling, check_sampling, schedule
from .private import private_view
from .tokens import text_encoders, with_tokens
from .weights import check_layers, model_weights_fingerprint

TYPES = {ModelType.EPS, ModelType.V_PREDICTION, ModelType.FLOW, ModelType.FLUX}
# Where every block is checkpointed its inputs are kept, 1.0 times, and what one block keeps inside comes on top.
KEPT_CHECKPOINTED = 5.0
SCALE = 8  # pixels of a latent's side
# What Flux dev is told of the guidance that was distilled into it: none, since the loss is about the bare prediction.
GUIDANCE = 1.0


@dataclass(frozen=True)
class Family:
    """What the host's models of one kind have in common.

    Attributes:
        architecture: what metadata calls it.
        resolution: side of its training images in pixels.
        vector: width of the vector conditioning; of SDXL the pooled prompt and six sizes; 0 for none.
        in_place: the host adds onto what the layer norms of the network have just read.
        cfg: how strongly a picture that is drawn while it trains follows its prompt; 1 where guidance is distilled in.
        kept: what autograd keeps of a pass in bf16, counted tensor by tensor at sides of 512 to 1024 pixels, over the
            host's estimate of a pass: 8.6 for SD 1.5 and 18.7 for SDXL; not counted in the other families.
    """

    architecture: str
    resolution: int
    vector: int = 0
    in_place: bool = False
    cfg: float = 5.0
    kept: float = 20.0


# latent channels, and the width of the prompts of a U-Net or the class of another network -> what it is
FAMILIES: dict[tuple[int, int | str], Family] = {
    (4, 768): Family("stable-diffusion-v1", 512, kept=10.0),
    (4, 1024): Family("stable-diffusion-v2-512", 512),
    (4, 2048): Family("stable-diffusion-xl-v1-base", 1024, 2816),
    (8, 128): Family("continual-lora-tiny", 64),
    (16, "SD3"): Family("stable-diffusion-3", 1024, 2048),
    (16, "Flux"): Family("flux-1", 1024, 768, in_place=True, cfg=1.0),
}


def _scaled_dot_product(func: object, *args: Any, **kwargs: Any) -> Tensor:
    # The host's chunked attention depends on the free memory of the moment and cannot be trained through.
    attended: Tensor = attention_pytorch(*args, **kwargs)
    return attended


def _keep_inputs(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # The host's text encoders, and its Flux, add in place onto what their layer norms have just read.
    return (args[0].clone(), *args[1:])


def _keep_inputs_of_norms(module: nn.Module) -> None:
    for part in module.modules():
        if type(part).__name__.endswith("LayerNorm"):  # torch's, and T5's own
            part.register_forward_pre_hook(_keep_inputs)


def model_fingerprint(model: Any) -> str:
    """The fingerprint of a MODEL with the LoRAs that the user applied; it does not have to be loaded.

    Raises:
        ContinualLoraError: a kind of model that is not supported, or layers that cannot be trained through.
    """
    _family(model.model)
    check_layers(model)
    return model_weights_fingerprint(model, prompt_layers(model.model.diffusion_model))


def model_resolution(model: Any) -> int:
    """The side of a MODEL's training images in pixels."""
    return _family(model.model).resolution


class ComfyBase:
    """See `Denoiser` for the methods. Build it outside of inference mode; the host's objects are never changed.

    Args:
        model: MODEL; LoRAs that the user applied belong to the base.
        clip: CLIP.
        vae: VAE.

    Raises:
        ContinualLoraError: a kind of model that is not supported.
    """

    def __init__(self, model: Any, clip: Any, vae: Any) -> None:
        self.fingerprint = model_fingerprint(model)
        self.parameterization: Parameterization = check_sampling(model)
        sampling = changed_sampling(model)
        self.changes: Mapping[str, str] = ({"sampling": sampling} if sampling else {}) | clip_changes(clip)
        self._patcher, self._model, self._clip, self._vae = model, model.model, clip, vae
        self.device = torch.device(model.load_device)
        self.family = _family(self._model)
        channels, side = self._model.latent_format.latent_channels, self.family.resolution // SCALE
        needed = needed_for_scores(model, channels, side)
        load([model, clip.patcher], needed)
        self._take_views(needed)
        self.dtype: torch.dtype = self._model.manual_cast_dtype or self._model.get_dtype()
        self.mixed_precision = mixed_precision(self.device)
        self.architecture, self.resolution = self.family.architecture, self.family.resolution
        self._joint = bool(joint_attention_layers(self._model.diffusion_model))
        signal, spread, self._timesteps = schedule(
            model.get_model_object("model_sampling"), self.parameterization, self.device
        )
        self._scales = signal, spread

    def _take_views(self, needed: float) -> None:
        """Of the U-Net and the text encoders, beside which `needed` bytes are left."""
        unet, text = self._model.diffusion_model, self._clip.patcher
        adapted = set(joint_attention_layers(unet) or cross_attention_layers(unet))
        self.unet = split_joint_attention(private_view(unet, self.device, adapted, room(self._patcher, needed)))
        device = torch.device(text.load_device)
        self._text = private_view(self._clip.cond_stage_model, device, room=room(text, needed))
        _keep_inputs_of_norms(self._text)
        if self.family.in_place:
            _keep_inputs_of_norms(self.unet)

    def make_room(self, shape: Sequence[int], checkpointed: bool) -> None:
        """The models are loaded again, as the host sees fit beside a training of this size, and seen anew."""
        kept = KEPT_CHECKPOINTED if checkpointed else self.family.kept
        needed = needed_for_training(self._patcher, shape, kept)
        del self.unet, self._text  # their room is needed as well
        load([self._patcher, self._clip.patcher], needed)
        self._take_views(needed)

    def encode_images(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> latents in the U-Net's scale."""
        with host_mode():
            latents = self._vae.encode(images.movedim(1, -1).cpu())
            scaled: Tensor = self._model.process_latent_in(latents)
        return scaled.clone().float().to(self.device)

    def autoencoder_fingerprint(self) -> str:
        """Of the VAE, wherever its weights are."""
        return autoencoder_fingerprint(self._vae.first_stage_model)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents in the U-Net's scale -> [B, 3, H, W] in 0..1."""
        with host_mode():
            images: Tensor = self._vae.decode(self._model.process_latent_out(latents)).movedim(-1, 1)
        return images.clone()

    def encode_prompt(self, prompt: str, tokens: Mapping[str, TokenVectors]) -> Conditioning:
        """The text encoder's output; weights and `embedding:` in the prompt work as in the host."""
        pieces = with_tokens(self._clip.tokenizer, tokens).tokenize_with_weights(  # type: ignore[attr-defined]
            prompt, tokenizer_options=self._clip.tokenizer_options
        )
        self._text.reset_clip_options()  # type: ignore[operator]
        self._text.set_clip_options({"execution_device": torch.device(self._clip.patcher.load_device)})  # type: ignore[operator]
        if self._clip.layer_idx is not None:
            self._text.set_clip_options({"layer": self._clip.layer_idx})  # type: ignore[operator]
        context, pooled, *_ = self._text.encode_token_weights(pieces)  # type: ignore[operator]
        vector = pooled.float().to(self.device) if self.family.vector else None
        return Conditioning(context.float().to(self.device), vector, joint=self._joint)

    def word_vectors(self, word: str) -> TokenVectors:
        """The mean vector of the word's pieces in each text encoder."""
        vectors: TokenVectors = {}
        for encoder, part in text_encoders(self._clip.tokenizer).items():
            if getattr(self._text, encoder) is None:  # SD 3 without its T5
                continue
            inner = slice(part.tokens_start, -1 if part.tokenizer_adds_end_token else None)
            ids = torch.tensor(part.tokenizer(word)["input_ids"][inner])
            table = getattr(self._text, encoder).transformer.get_input_embeddings().weight
            vectors[encoder] = table[ids.to(table.device)].float().mean(0)
        return vectors

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """[B] timesteps -> signal and spread, [B] each."""
        signal, spread = self._scales
        return signal[t], spread[t]

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The raw output of the network, computed in the number format that the host chose for it.

        Where autocast would cast the weights back to what they are held in, they are not cast at all.
        """
        dtype = self.dtype
        if torch.is_autocast_enabled(self.device.type):
            wanted = torch.get_autocast_dtype(self.device.type)
            dtype = wanted if wanted == self._model.get_dtype() else dtype
        prediction: Tensor = self.unet(
            x_t.to(dtype),
            self._timesteps[t],
            context=conditioning.context.to(dtype),
            **self._vector(conditioning, x_t, dtype),
            transformer_options={"optimized_attention_override": _scaled_dot_product},
        )
        return prediction.float()

    def _vector(self, conditioning: Conditioning, x_t: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The vector conditioning as the host's sampler has it; of SDXL, uncropped and of the size of the images."""
        if conditioning.pooled is None:
            return {}
        height, width = (side * SCALE for side in x_t.shape[-2:])
        vector: Tensor = self._model.encode_adm(pooled_output=conditioning.pooled, height=height, width=width)
        more = {"y": vector.to(self.device, dtype)}
        if self._model.model_config.unet_config.get("guidance_embed"):
            more["guidance"] = torch.full((len(x_t),), GUIDANCE, device=self.device, dtype=dtype)
        return more


def _family(model: Any) -> Family:
    config, channels = model.model_config.unet_config, model.latent_format.latent_channels
    kind = (channels, config.get("context_dim") or type(model).__name__)
    vector = config.get("adm_in_channels") or config.get("vec_in_dim") or 0
    family = FAMILIES.get(kind)
    plain = family is not None and config.get("in_channels") == channels and vector == family.vector
    if family is None or model.model_type not in TYPES or not plain:
        raise ContinualLoraError(
            "This version teaches Stable Diffusion 1.x, 2.x, XL and 3, Flux.1 (no inpainting models) and the embedded "
            "base.",
            f"The model is a `{type(model).__name__}` of type {model.model_type.name}, {channels} latent channels, "
            f"{config.get('in_channels')} input channels and a vector conditioning {vector} wide.",
            "Load a checkpoint of one of these families.",
        )
    return family
