"""The upper bound: all concepts at once, every image in every draw's reach, one LoRA and a word for each concept.

It is no recipe, since no training of a sequence could do it: it keeps the images of all tasks.
"""

import torch
from torch import Tensor

from trainer.adapters.lora import LoraAdapter
from trainer.bases.tiny.base import TinyBase
from trainer.concept import Concept, prepare
from trainer.denoiser import Conditioning, TokenVectors
from trainer.loop import train_concept
from trainer.sampling import generate
from trainer.settings import TrainSettings
from trainer.task import step_rng
from trainer.training.buckets import Bucket
from trainer.training.state import TrainState

NAME = "joint"


def train_jointly(concepts: list[Concept], settings: TrainSettings) -> tuple[TinyBase, dict[str, TokenVectors]]:
    """`settings.steps` for each concept, drawn from the images of all.

    Returns:
        The base that carries the LoRA, and the words.
    """
    base, steps = TinyBase(), settings.steps * len(concepts)
    together = TrainSettings(**{**vars(settings), "recipe": "lora", "steps": steps})
    rng = step_rng(f"{settings.seed}/joint", "initialize", 0)
    adapter = LoraAdapter(base.unet, settings.rank, settings.effective_alpha, rng)
    words = {
        f"{concept.token} {encoder}": vector
        for concept in concepts
        for encoder, vector in base.word_vectors(concept.class_noun).items()
    }
    state = TrainState(adapter, words, together)

    def tokens(vectors: dict[str, Tensor]) -> dict[str, TokenVectors]:
        named: dict[str, TokenVectors] = {}
        for name, vector in vectors.items():
            token, encoder = name.split()
            named.setdefault(token, {})[encoder] = vector
        return named

    pictures = [prepare(concept, base.resolution)[0] for concept in concepts]
    prompts = [concept.prompt for concept, images in zip(concepts, pictures, strict=True) for _ in images]
    with torch.no_grad():
        latents = base.encode_images(torch.cat(pictures))

    def encode(indices: Tensor, _: torch.Generator) -> Conditioning:
        live = tokens({**state.token})
        return Conditioning.cat([base.encode_prompt(prompts[i], live) for i in indices.tolist()])

    for _ in train_concept(base, [Bucket(latents)], encode, state, [], together, f"{settings.seed}/joint"):
        pass
    return base, tokens(state.frozen_token())


def drawn_jointly(
    base: TinyBase, tokens: dict[str, TokenVectors], prompt: str, count: int, seed: int, steps: int, guidance: float
) -> Tensor:
    """Images of a concept, [count, 3, 64, 64]."""
    with torch.no_grad():
        empty = base.encode_prompt("", tokens)
        return generate(base, base.encode_prompt(prompt, tokens), empty, count, seed, steps, guidance)
