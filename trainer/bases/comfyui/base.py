"""A host's MODEL, CLIP and VAE as a `Denoiser`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_base import ModelType
from torch import Tensor, nn

from ...adapters.layers import cross_attention_layers
from ...denoiser import Conditioning, Parameterization, TokenVectors
from ...errors import ContinualLoraError
from .memory import load, load_for_training
from .private import private_view
from .tokens import text_encoders, with_tokens
from .weights import model_weights_fingerprint

PARAMETERIZATIONS: dict[ModelType, Parameterization] = {ModelType.EPS: "eps", ModelType.V_PREDICTION: "v"}
SCALE = 8  # pixels of a latent's side
# latent channels and context width -> what metadata calls the architecture, and the side of its training images
ARCHITECTURES = {
    (4, 768): ("stable-diffusion-v1", 512),
    (4, 1024): ("stable-diffusion-v2-512", 512),
    (4, 2048): ("stable-diffusion-xl-v1-base", 1024),
    (8, 128): ("continual-lora-tiny", 64),
}
# context width -> width of the vector conditioning: SDXL's pooled prompt and six sizes
VECTOR_WIDTHS = {2048: 2816}


def _scaled_dot_product(func: object, *args: Any, **kwargs: Any) -> Tensor:
    # The host's chunked attention depends on the free memory of the moment and cannot be trained through.
    attended: Tensor = attention_pytorch(*args, **kwargs)
    return attended


def _keep_inputs(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # The host's text encoder adds in place onto what its layer norms have just read.
    return (args[0].clone(), *args[1:])


def model_fingerprint(model: Any) -> str:
    """The fingerprint of a MODEL with the LoRAs that the user applied; it does not have to be loaded.

    Raises:
        ContinualLoraError: a kind of model that is not supported.
    """
    _check_kind(model.model)
    return model_weights_fingerprint(model, cross_attention_layers(model.model.diffusion_model))


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
        load([model, clip.patcher])
        self._patcher, self._model, self._clip, self._vae = model, model.model, clip, vae
        self.device = torch.device(model.load_device)
        self._take_views()
        self.parameterization: Parameterization = PARAMETERIZATIONS[self._model.model_type]
        context_width = self.unet.get_parameter(f"{cross_attention_layers(self.unet)[0]}.weight").shape[1]
        kind = (self._model.latent_format.latent_channels, context_width)
        self.architecture, self.resolution = ARCHITECTURES[kind]
        sigmas = self._model.model_sampling.sigmas.float().to(self.device)
        self._alphas_cumprod: Tensor = 1 / (1 + sigmas.square())

    def _take_views(self) -> None:
        unet = self._model.diffusion_model
        self.unet = private_view(unet, self.device, cross_attention_layers(unet))
        self._text = private_view(self._clip.cond_stage_model, torch.device(self._clip.patcher.load_device))
        for module in self._text.modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_pre_hook(_keep_inputs)

    def make_room(self, shape: Sequence[int], checkpointed: bool) -> None:
        """The models are loaded again, as the host sees fit beside a training of this size, and seen anew."""
        load_for_training([self._patcher, self._clip.patcher], self._patcher, shape, checkpointed)
        self._take_views()

    def encode_images(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> latents in the U-Net's scale."""
        with torch.no_grad():
            latents = self._vae.encode(images.movedim(1, -1).cpu())
            scaled: Tensor = self._model.process_latent_in(latents)
        return scaled.float().to(self.device)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents in the U-Net's scale -> [B, 3, H, W] in 0..1."""
        with torch.no_grad():
            images: Tensor = self._vae.decode(self._model.process_latent_out(latents)).movedim(-1, 1)
        return images

    def encode_prompt(self, prompt: str, tokens: Mapping[str, TokenVectors]) -> Conditioning:
        """The text encoder's output; weights and `embedding:` in the prompt work as in the host."""
        pieces = with_tokens(self._clip.tokenizer, tokens).tokenize_with_weights(prompt)  # type: ignore[attr-defined]
        self._text.reset_clip_options()  # type: ignore[operator]
        if self._clip.layer_idx is not None:
            self._text.set_clip_options({"layer": self._clip.layer_idx})  # type: ignore[operator]
        context, pooled, *_ = self._text.encode_token_weights(pieces)  # type: ignore[operator]
        vector = pooled.float().to(self.device) if self._model.adm_channels else None
        return Conditioning(context.float().to(self.device), vector)

    def word_vectors(self, word: str) -> TokenVectors:
        """The mean vector of the word's pieces in each text encoder."""
        vectors: TokenVectors = {}
        for encoder, part in text_encoders(self._clip.tokenizer).items():
            inner = slice(part.tokens_start, -1 if part.tokenizer_adds_end_token else None)
            ids = torch.tensor(part.tokenizer(word)["input_ids"][inner])
            table = getattr(self._text, encoder).transformer.get_input_embeddings().weight
            vectors[encoder] = table[ids.to(table.device)].float().mean(0)
        return vectors

    def alphas_cumprod(self, t: Tensor) -> Tensor:
        """[B] timesteps -> [B] share of signal variance."""
        return self._alphas_cumprod[t]

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The raw output of the U-Net, computed in the number format that the host chose for it."""
        dtype = self._model.manual_cast_dtype or self._model.get_dtype()
        prediction: Tensor = self.unet(
            x_t.to(dtype),
            t.float(),
            context=conditioning.context.to(dtype),
            **self._vector(conditioning, x_t, dtype),
            transformer_options={"optimized_attention_override": _scaled_dot_product},
        )
        return prediction.float()

    def _vector(self, conditioning: Conditioning, x_t: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """SDXL's vector conditioning, uncropped and of the size of the images, as the host's sampler has it."""
        if conditioning.pooled is None:
            return {}
        height, width = (side * SCALE for side in x_t.shape[-2:])
        vector: Tensor = self._model.encode_adm(pooled_output=conditioning.pooled, height=height, width=width)
        return {"y": vector.to(self.device, dtype)}


def _check_kind(model: Any) -> None:
    layers = cross_attention_layers(model.diffusion_model)
    width = model.diffusion_model.get_parameter(f"{layers[0]}.weight").shape[1]
    kind = (model.latent_format.latent_channels, width)
    plain = model.diffusion_model.in_channels == kind[0] and model.adm_channels == VECTOR_WIDTHS.get(width, 0)
    if model.model_type not in PARAMETERIZATIONS or kind not in ARCHITECTURES or not plain:
        raise ContinualLoraError(
            "This version teaches Stable Diffusion 1.x, 2.x and XL (no inpainting models) and the embedded base.",
            f"The model is a `{type(model).__name__}` of type {model.model_type.name}, {kind[0]} latent channels, "
            f"{model.diffusion_model.in_channels} input channels and "
            f"prompts {kind[1]} wide.",
            "Load a checkpoint of one of these families.",
        )
