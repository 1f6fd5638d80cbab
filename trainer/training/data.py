"""What a training draws its batches from: images encoded once, what is held back, and the class noun's pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..concept import Concept
from ..denoiser import Conditioning, Denoiser, encode_one_by_one
from ..disk.metadata import tensor_hash
from ..settings import TrainSettings
from ..task import StepRecord, step_rng
from .augment import Pool, bucket_pools, training_pool
from .buckets import Bucket
from .latent_cache import kept, pixel_digest
from .precision import number_format
from .prior import Prior, draw_prior, prior_prompt
from .validation import Validation, num_held_back, split_off


class TrainingData:
    """See the module.

    Args:
        denoiser: encodes, and draws the prior images: with no adapter, or one that adds nothing yet.
        concept: its images.
        settings: resolution, copies, prior images, validation.
        cache: a folder for latents; used if `cache_latents` is on.
        seed: of the task.
        on_step: told while prior images are drawn.

    Attributes:
        buckets: what is trained on: the images and their copies, squares unless `aspect_buckets` is on.
        prompts: of each, in the order of the buckets.
        latents: x_0 of the squares, [N, C, h, w]; what follows the training sees these.
        masks: of the squares, [N, 1, h, w] in 0..1, or None.
        validation: what to measure on, if that is asked for.
        prior: pictures of the class noun, if they are asked for.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        concept: Concept,
        settings: TrainSettings,
        cache: Path,
        seed: str,
        on_step: Callable[[StepRecord], None],
    ) -> None:
        self._denoiser, self._settings, self._seed, self._cache = denoiser, settings, seed, cache
        taught, held_back = split_off(concept, num_held_back(settings))
        squares = self._squares(taught, settings.flip, settings.rescale and not settings.aspect_buckets)
        self.latents, self.masks = self._encoded(squares)
        self._num_plain, self.prompts = squares.num_plain, squares.prompts
        self.buckets = [Bucket(self.latents, self.masks)]
        if settings.aspect_buckets:
            self.buckets, self.prompts = self._own_shapes(taught)
        self.validation = self._validation(taught, held_back) if settings.validation_every else None
        self.prior = self._prior(concept.class_noun, on_step) if settings.prior_images else None

    @property
    def plain(self) -> tuple[Tensor, Tensor | None]:
        """Latents and masks without the copies of another size, which the concept's own prompt does not fit."""
        return self._first(self._num_plain)

    def _first(self, count: int) -> tuple[Tensor, Tensor | None]:
        return self.latents[:count], None if self.masks is None else self.masks[:count]

    @property
    def _resolution(self) -> int:
        return self._settings.resolution or self._denoiser.resolution

    def _squares(self, concept: Concept, flip: bool, rescale: bool) -> Pool:
        return training_pool(concept, self._resolution, flip, rescale, step_rng(self._seed, "rescale", 0))

    def _own_shapes(self, concept: Concept) -> tuple[list[Bucket], list[str]]:
        """The images at their own aspect ratio, and their prompts in the buckets' order."""
        rng, buckets, prompts = step_rng(self._seed, "rescale", 0), list[Bucket](), list[str]()
        for pool in bucket_pools(concept, self._resolution, self._settings.flip, self._settings.rescale, rng):
            buckets.append(Bucket(*self._encoded(pool), len(prompts)))
            prompts += pool.prompts
        return buckets, prompts

    def _encoded(self, pool: Pool) -> tuple[Tensor, Tensor | None]:
        """Latents [N, C, h, w] and masks [N, 1, h, w]."""
        denoiser, masks = self._denoiser, pool.masks
        latents = self._kept(
            lambda: [denoiser.fingerprint, denoiser.autoencoder_fingerprint(), pixel_digest(pool.images)],
            lambda: encode_one_by_one(denoiser, pool.images),
        )
        return latents, None if masks is None else F.interpolate(masks, latents.shape[-2:], mode="area").to(latents)

    def _validation(self, taught: Concept, held_back: Concept | None) -> Validation:
        if held_back is None:
            return Validation(*self._first(len(taught.images)), taught.prompts)  # without copies
        pool = self._squares(held_back, flip=False, rescale=False)
        return Validation(*self._encoded(pool), pool.prompts)

    def _prior(self, noun: str, on_step: Callable[[StepRecord], None]) -> Prior:
        denoiser, seed, shape = self._denoiser, self._seed, self.latents.shape[1:]
        count, batch_size = self._settings.prior_images, self._settings.batch_size
        with torch.no_grad():
            prompt, empty = (denoiser.encode_prompt(text, {}) for text in (prior_prompt(noun), ""))
        computed_in = number_format(denoiser, self._settings.mixed_precision) or denoiser.dtype
        draws = [count, list(shape), batch_size, seed, str(computed_in), dict(denoiser.changes)]
        latents = self._kept(
            lambda: [denoiser.fingerprint, _digest(prompt), _digest(empty), *draws],
            lambda: draw_prior(denoiser, prompt, empty, count, shape, batch_size, seed, on_step),
        )
        return Prior(latents, prompt)

    def _kept(self, made_from: Callable[[], list[Any]], make: Callable[[], Tensor]) -> Tensor:
        """Latents, through the cache if that is asked for."""
        return kept(self._cache, made_from(), make, self._denoiser.device) if self._settings.cache_latents else make()


def _digest(prompt: Conditioning) -> str:
    """Another CLIP, or one that a LoRA or a layer was chosen for, makes other numbers of the same words."""
    parts = {"context": prompt.context} | ({} if prompt.pooled is None else {"pooled": prompt.pooled})
    return tensor_hash({name: part.detach().float().cpu() for name, part in parts.items()})
