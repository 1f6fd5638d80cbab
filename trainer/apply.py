"""Put what a sequence has learned onto a view of its base."""

import torch

from .adapters.kohya import diffusers_names, from_kohya
from .adapters.lora import LoraAdapter, state_of
from .denoiser import Denoiser, TokenVectors
from .sequence import ConceptSequence


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
    rank = newest.settings["rank"]
    adapter = LoraAdapter(denoiser.unet, rank, newest.settings["alpha"] or float(rank), torch.Generator())
    lora = from_kohya(sequence.lora(newest), adapter.names, diffusers_names(denoiser.unet))
    adapter.load_state_dict(state_of(lora))
    return {
        name: {encoder: vector.to(denoiser.device) for encoder, vector in vectors.items()}
        for name, vectors in sequence.tokens().items()
    }
