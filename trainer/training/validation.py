"""The denoising error on fixed draws: a curve without the noise of the training loss, best on images held back."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..classifier import stratified_timesteps
from ..concept import Concept
from ..denoiser import Conditioning, Denoiser
from ..errors import ContinualLoraError
from ..losses.denoising import NoisedBatch
from ..settings import TrainSettings
from ..task import step_rng
from . import schedule

PHASE = "validation"
DRAWS = 8  # of (t, noise), t from each eighth of 0..999


@dataclass(frozen=True)
class Validation:
    """Images to measure on.

    Attributes:
        latents: x_0, [N, C, h, w].
        masks: [N, 1, h, w] in 0..1, or None.
        prompts: of each image, as they are without dropout and shuffling.
    """

    latents: Tensor
    masks: Tensor | None
    prompts: list[str]

    @torch.no_grad()
    def error(
        self, denoiser: Denoiser, encode: Callable[[list[str]], Conditioning], settings: TrainSettings, seed: str
    ) -> float:
        """Mean denoising error over all images and `DRAWS` stratified times, the same draws whenever it is asked.

        Args:
            denoiser: with the adapter as it is to be measured.
            encode: prompts -> their conditioning.
            settings: batch size.
            seed: of the task.
        """
        rng = step_rng(seed, PHASE, 0)
        times, shape = stratified_timesteps(DRAWS, rng).tolist(), self.latents.shape
        noises = torch.randn(DRAWS, *shape, generator=rng)
        total = 0.0
        for part in torch.arange(shape[0]).split(settings.batch_size):
            masks = None if self.masks is None else self.masks[part]
            latents, prompt = self.latents[part], encode([self.prompts[i] for i in part.tolist()])
            for time, noise in zip(times, noises, strict=True):
                t = torch.full((len(part),), time, device=latents.device)
                batch = NoisedBatch(denoiser, latents, t, noise[part].to(latents), masks)
                total += batch.error(prompt).sum().item()
        return total / (DRAWS * shape[0])


def is_due(step: int, settings: TrainSettings) -> bool:
    """Whether to measure after a step (0 before the first): every so many, and after the last."""
    return schedule.is_due(step, settings.validation_every, settings.steps)


def num_held_back(settings: TrainSettings) -> int:
    """Images that are not trained on."""
    return settings.validation_images if settings.validation_every else 0


def split_off(concept: Concept, count: int) -> tuple[Concept, Concept | None]:
    """The concept without its last `count` images, and those; None at 0.

    Raises:
        ContinualLoraError: nothing would be left to train on.
    """
    if count >= len(concept.images):
        raise ContinualLoraError(
            f'"validation_images" should leave images of "{concept.name}" to train on.',
            f"It is {count}, and there are {len(concept.images)}.",
            "Lower it, or set it to 0 to measure on the training images.",
        )
    return (_part(concept, slice(-count)), _part(concept, slice(-count, None))) if count else (concept, None)


def _part(concept: Concept, part: slice) -> Concept:
    return replace(
        concept,
        images=concept.images[part],
        masks=concept.masks[part],
        captions=concept.captions[part],
        digests=concept.digests[part],
    )
