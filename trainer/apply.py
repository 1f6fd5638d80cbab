"""Put what a sequence has learned onto a view of its base."""

import torch
from torch import nn

from .adapters.kohya import diffusers_names, from_kohya
from .adapters.lora import LoraAdapter, state_of
from .denoiser import Denoiser, TokenVectors
from .sequence import ConceptSequence


def load_newest(adapter: LoraAdapter, unet: nn.Module, sequence: ConceptSequence) -> None:
    """Make an adapter what the newest task of the line left; `unet` is the view that it sits on."""
    lora = from_kohya(sequence.lora(sequence.tasks[-1]), adapter.names, diffusers_names(unet))
    adapter.load_state_dict(state_of(lora))


def tokens_on(device: torch.device, sequence: ConceptSequence) -> dict[str, TokenVectors]:
    """Every token of the line, its vectors on `device`."""
    return {
        name: {encoder: vector.to(device) for encoder, vector in vectors.items()}
        for name, vectors in sequence.tokens().items()
    }


def apply_sequence(denoiser: Denoiser, sequence: ConceptSequence) -> dict[str, TokenVectors]:
    """The newest LoRA of the line on the view, and its tokens for the prompts.

    Args:
        denoiser: a fresh view; it carries the LoRA afterwards.
        sequence: at least one task.

    Returns:
        Every token of the line, on the denoiser's device.

    Raises:
        ContinualLoraError: the sequence was trained on another base.
    """
    sequence.check_base(denoiser.fingerprint)
    newest = sequence.tasks[-1]
    adapter = LoraAdapter(denoiser.unet, newest.rank, newest.alpha, torch.Generator())
    load_newest(adapter, denoiser.unet, sequence)
    return tokens_on(denoiser.device, sequence)
