"""Put what a sequence has learned onto a view of its base."""

import torch

from .adapters import ADAPTERS
from .adapters.adapter import Adapter
from .denoiser import Denoiser, TokenVectors
from .disk.sequence import ConceptSequence
from .errors import ContinualLoraError
from .recipes import adapter_name


def tokens_on(device: torch.device, sequence: ConceptSequence) -> dict[str, TokenVectors]:
    """Every token of the line, its vectors on `device`."""
    return {
        name: {encoder: vector.to(device) for encoder, vector in vectors.items()}
        for name, vectors in sequence.tokens().items()
    }


def attach(denoiser: Denoiser, sequence: ConceptSequence) -> tuple[Adapter, dict[str, TokenVectors]]:
    """The newest adapter of the line on the view, and its tokens for the prompts.

    Args:
        denoiser: a fresh view; it carries the adapter afterwards.
        sequence: at least one task.

    Returns:
        The adapter, and every token of the line, on the denoiser's device.

    Raises:
        ContinualLoraError: the sequence was trained on another base.
    """
    sequence.check_base(denoiser.fingerprint)
    newest = sequence.tasks[-1]
    name = adapter_name(newest.recipe, newest.adapter)
    if name not in ADAPTERS:
        raise ContinualLoraError(
            f'"{sequence.root.name}" should hold an adapter of this version ({", ".join(sorted(ADAPTERS))}).',
            f"It holds `{name}`.",
            "Update Continual LoRA, or undo what was changed in manifest.json.",
        )
    adapter = ADAPTERS[name](denoiser.unet, newest.rank, newest.alpha, torch.Generator().manual_seed(0))
    adapter.go_on_from(sequence.adapter_files(newest))
    return adapter, tokens_on(denoiser.device, sequence)


def apply_sequence(denoiser: Denoiser, sequence: ConceptSequence) -> dict[str, TokenVectors]:
    """`attach` for those who only want to draw or to classify: the tokens."""
    return attach(denoiser, sequence)[1]
