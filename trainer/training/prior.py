"""Prior preservation: what the base draws for the class noun stays in the loss, so that the class stays."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Conditioning, Denoiser
from ..losses.denoising import NoisedBatch, draw_batch
from ..sampling import sample
from ..task import StepRecord, step_rng

PHASE = "prior"


def prior_prompt(class_noun: str) -> str:
    """What the base is asked to draw."""
    return f"photo of a {class_noun.strip()}"


@dataclass(frozen=True)
class Prior:
    """Pictures of the class noun.

    Attributes:
        latents: x_0 as the base drew them, [N, C, h, w].
        prompt: of the class noun.
    """

    latents: Tensor
    prompt: Conditioning

    def drawn(self, denoiser: Denoiser, count: int, rng: torch.Generator) -> NoisedBatch:
        """`count` of them, drawn from `rng` with their times and noise; their error is added to the concept's.

        Source: Ruiz et al., arXiv 2208.12242, eq. 2, the second term with lambda = 1.
        """
        indices = torch.randint(len(self.latents), (count,), generator=rng)
        return draw_batch(denoiser, self.latents, None, indices, rng)


def draw_prior(
    denoiser: Denoiser,
    prompt: Conditioning,
    empty: Conditioning,
    count: int,
    shape: torch.Size,
    batch_size: int,
    seed: str,
    on_step: Callable[[StepRecord], None],
) -> Tensor:
    """Let the base draw its class noun.

    Source: Ruiz et al., arXiv 2208.12242, section 3.2. Ours: by DDIM, as everywhere in this package, under a prompt
    that begins as the concept's does.

    Args:
        denoiser: the base, with no adapter or one that adds nothing yet.
        prompt: of the class noun.
        empty: the empty one.
        count: N, >= 1.
        shape: of a latent, [C, h, w].
        batch_size: how many are drawn at a time.
        seed: of the task; the same seed draws the same pictures, so a resumed training needs no copy of them.
        on_step: told after every sampling step; may raise to stop.

    Returns:
        x_0, [N, C, h, w].
    """
    parts = torch.randn(count, *shape, generator=step_rng(seed, PHASE, 0)).split(batch_size)

    def drawn(index: int, noise: Tensor) -> Tensor:
        def report(done: int, total: int) -> None:
            on_step(StepRecord(PHASE, index * total + done, len(parts) * total, loss=0.0))

        return sample(denoiser, prompt, empty, noise.to(denoiser.device), on_step=report)

    return torch.cat([drawn(index, noise) for index, noise in enumerate(parts)])
