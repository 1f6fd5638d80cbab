"""What was taught, on the host's MODEL and CLIP; clones, the originals are never changed."""

from collections.abc import Mapping
from typing import Any

import comfy.sd
import torch

from ...denoiser import TokenVectors
from .tokens import with_tokens


def apply_lora(model: Any, lora: Mapping[str, torch.Tensor], strength: float) -> Any:
    """A clone of MODEL with a LoRA in kohya's keys on top."""
    return comfy.sd.load_lora_for_models(model, None, dict(lora), strength, 0.0)[0]


def clip_with_tokens(clip: Any, tokens: Mapping[str, TokenVectors]) -> Any:
    """A clone of CLIP in whose prompts `<name>` stands for the learned vectors."""
    clone = clip.clone()
    clone.tokenizer = with_tokens(clip.tokenizer, tokens)
    return clone
